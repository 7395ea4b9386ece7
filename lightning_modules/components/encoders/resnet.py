"""Deep residual learning, He, Zhang, Ren, Sun 2015, https://arxiv.org/abs/1512.03385: ResNet-18, 34, 50 and 101.

"resnet50-deep" and "resnet101-deep" start with three 3x3 convolutions of 64, 64 and 128 channels in place of the 7x7
one: the encoder of PSPNet's authors (`pspnet50_ADE20K_473.prototxt`), 23,631,808 parameters and not 23,508,032.

With `output_stride` 8 or 16 the last stages are atrous: DeepLab v2 and v3 (Chen et al. 2017, arXiv:1706.05587).
The names of the weights are torchvision's, so that its files load.

Departs from the paper:
- a bottleneck strides in its 3x3 convolution, not in the 1x1 before it, as the published PyTorch weights do.
Departs from the authors' Caffe models:
- pooling rounds down: of 32 pixels, stride 8 makes 4, where Caffe's ceiling makes 5.

`rates="torchvision"` leaves the first block of an atrous stage at the rate of the stage before, which is what weights
trained with strides expect; "paper" dilates every 3x3 convolution of the stage.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal, get_args

from torch import Tensor, nn

from lightning_modules.components.blocks import conv_norm_relu, he_
from lightning_modules.components.choices import one_of
from lightning_modules.components.encoders.base import Encoder, scaled

Form = Literal["paper", "torchvision"]  # of an atrous stage: see `stage`
FORMS = get_args(Form)


def conv_norm(in_channels: int, out_channels: int, kernel_size: int, stride: int, rate: int) -> list[nn.Module]:
    padding = rate * (kernel_size // 2)
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, rate, bias=False)
    return [conv, nn.BatchNorm2d(out_channels)]


class Block(nn.Module):
    """(N, in_channels, H, W) -> (N, expansion * width, H / stride, W / stride): Fig. 5, left.

    `rate` is that of its first 3x3 convolution, and of the second one in a basic block.
    """

    expansion: ClassVar[int] = 1

    def __init__(self, in_channels: int, width: int, *, stride: int = 1, rate: int = 1) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self._branch(in_channels, width, stride, rate)
        out_channels = self.expansion * width
        self.downsample = (
            nn.Sequential(*conv_norm(in_channels, out_channels, 1, stride, 1))
            if stride != 1 or in_channels != out_channels
            else nn.Identity()
        )

    def _branch(self, in_channels: int, width: int, stride: int, rate: int) -> None:
        self.conv1, self.bn1 = conv_norm(in_channels, width, 3, stride, rate)
        self.conv2, self.bn2 = conv_norm(width, width, 3, 1, rate)

    def residual(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return out

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.residual(x) + self.downsample(x))
        return out


class Bottleneck(Block):
    """Fig. 5, right: 1x1, 3x3 with the stride and the rate, 1x1 to four times the width."""

    expansion = 4

    def _branch(self, in_channels: int, width: int, stride: int, rate: int) -> None:
        self.conv1, self.bn1 = conv_norm(in_channels, width, 1, 1, 1)
        self.conv2, self.bn2 = conv_norm(width, width, 3, stride, rate)
        self.conv3, self.bn3 = conv_norm(width, 4 * width, 1, 1, 1)

    def residual(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        out: Tensor = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(x)))))
        return out


def stage(
    block: type[Block], in_channels: int, width: int, *, stride: int = 1, rates: Sequence[int] = (1, 1, 1)
) -> nn.Sequential:
    """(N, in_channels, H, W) -> (N, expansion * width, ...): one block for each of `rates`, the first with the
    stride."""
    channels = [in_channels] + [block.expansion * width] * len(rates)
    return nn.Sequential(
        *(
            block(below, width, stride=stride if index == 0 else 1, rate=rate)
            for index, (below, rate) in enumerate(zip(channels, rates, strict=False))
        )
    )


class ResNet(Encoder):
    """Maps: the image, the first convolution (or three) after its ReLU, and the outputs of the four stages.

    `multi_grid` multiplies the rates of the blocks of the last stage, one value a block (DeepLab v3, Sec. 3.2.1).
    """

    block: ClassVar[type[Block]] = Bottleneck
    blocks: ClassVar[tuple[int, ...]]  # of each stage, Table 1
    deep_stem: ClassVar[bool] = False

    def __init__(
        self,
        in_channels: int = 3,
        *,
        depth: int = 5,
        output_stride: int = 32,
        width: float = 1.0,
        multi_grid: Sequence[int] | None = None,
        rates: Form = "paper",
    ) -> None:
        super().__init__()
        one_of("rates", rates, FORMS)
        if rates == "torchvision" and self.block is not Bottleneck:
            raise ValueError("rates='torchvision' is of resnet50 and resnet101: torchvision has no other atrous ones")
        last = self.blocks[-1]
        grid = multi_grid if multi_grid is not None else [1] * last
        whole = isinstance(grid, Sequence) and all(isinstance(factor, int) and factor >= 1 for factor in grid)
        if not whole or len(grid) != last:
            raise ValueError(
                f"multi_grid must hold one factor, an integer of at least 1, for each of the {last} blocks of the last "
                f"stage, such as {[2**index for index in range(last)]}, got {multi_grid!r}"
            )
        self.depth, self.output_stride = depth, min(output_stride, 2**depth)
        wide = [scaled(channels, width) for channels in (64, 64, 128, 256, 512)]  # Table 1
        stem = 2 * wide[0] if self.deep_stem else wide[0]
        if self.deep_stem:  # names as timm's
            first, second = conv_norm_relu(in_channels, wide[0], stride=2), conv_norm_relu(wide[0], wide[0])
            conv, self.bn1 = conv_norm(wide[0], stem, 3, 1, 1)
            self.conv1: nn.Module = nn.Sequential(*first, *second, conv)
        else:
            self.conv1, self.bn1 = conv_norm(in_channels, stem, 7, 2, 1)
        self.relu = nn.ReLU(inplace=True)
        self.out_channels = (in_channels, stem)
        self.layers = [f"layer{index}" for index in range(1, depth)]
        if self.layers:
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        rate = 1
        for index, name in enumerate(self.layers):
            stride = 2 if 0 < index and 2 ** (index + 2) <= output_stride else 1
            before, rate = rate, rate if stride == 2 or index == 0 else 2 * rate
            of_blocks = [before if rates == "torchvision" else rate] + [rate] * (self.blocks[index] - 1)
            if name == "layer4":
                of_blocks = [factor * rate for factor, rate in zip(grid, of_blocks, strict=True)]
            made = stage(self.block, self.out_channels[-1], wide[index + 1], stride=stride, rates=of_blocks)
            setattr(self, name, made)
            self.out_channels += (self.block.expansion * wide[index + 1],)
        he_(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [x, self.through([self.conv1, self.bn1, self.relu], x)]  # strides 1, 2
        x = self.maxpool(maps[-1]) if self.layers else x  # stride 4
        for name in self.layers:
            x = self.through(getattr(self, name), x)
            maps.append(x)
        return maps


class ResNet18(ResNet):
    block, blocks, pretrained = Block, (2, 2, 2, 2), "resnet18.tv_in1k"


class ResNet34(ResNet):
    block, blocks, pretrained = Block, (3, 4, 6, 3), "resnet34.tv_in1k"


class ResNet50(ResNet):
    blocks, pretrained = (3, 4, 6, 3), "resnet50.tv_in1k"


class ResNet101(ResNet):
    blocks, pretrained = (3, 4, 23, 3), "resnet101.tv_in1k"


class ResNet50Deep(ResNet50):
    deep_stem, pretrained = True, "resnet50s.gluon_in1k"


class ResNet101Deep(ResNet101):
    deep_stem, pretrained = True, "resnet101s.gluon_in1k"
