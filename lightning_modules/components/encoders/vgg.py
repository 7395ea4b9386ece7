"""VGG, Simonyan, Zisserman 2014, https://arxiv.org/abs/1409.1556: the 13 convolutions of configuration D, VGG16.

14,714,688 parameters; the names of the weights are torchvision's (`features.0.weight`), so that its files load.

Departs from the paper:
- pooling rounds odd sizes up, as Caffe does.

At `output_stride` 8 and 16 it is the encoder of DeepLab v1 (Chen et al. 2014, Sec. 3.1): 3x3 pools, those beyond the
output stride without a stride, and atrous convolutions after them. There pooling rounds down: 320 pixels become 160,
and in Caffe 161; the published crop of 321 becomes 161 in both. `norm="batch"` puts a batch norm behind each
convolution. fc6 and fc7 of the classifier become convolutions, as FCN has them (Long et al. 2015, Sec. 3.1 and Fig. 2).
"""

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_modules.components.blocks import he_
from lightning_modules.components.choices import one_of
from lightning_modules.components.encoders.base import Encoder, scaled
from lightning_modules.components.encoders.weights import download, is_path, read_weights
from lightning_modules.components.upsampling import pool

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))  # Table 1, column D
VggNorm = Literal["none", "batch"]
PRETRAINED: dict[VggNorm, str] = {"none": "vgg16.tv_in1k", "batch": "vgg16_bn.tv_in1k"}  # by norm
# Of fc6 and fc7 in the files of VGG16 of torchvision and of timm, which has them as convolutions already.
FULLY_CONNECTED = (("classifier.0", "classifier.3"), ("pre_logits.fc1", "pre_logits.fc2"))


class VGG16(Encoder):
    """Maps conv1_2, conv2_2, conv3_3, conv4_3, conv5_3 and pool5, each convolution after its ReLU."""

    def __init__(
        self,
        in_channels: int = 3,
        *,
        depth: int = 5,
        output_stride: int = 32,
        width: float = 1.0,
        norm: VggNorm = "none",
    ) -> None:
        super().__init__()
        one_of("norm", norm, PRETRAINED)
        self.pretrained = PRETRAINED[norm]
        self.depth, self.output_stride = depth, min(output_stride, 2**depth)
        self.features = nn.ModuleList()
        self.taps: list[int] = []  # positions in `features` of the layers whose output is a map
        self.out_channels = ()
        below, rate = in_channels, 1
        for stage, channels in enumerate(STAGES[: depth + 1]):
            for out in (scaled(c, width) for c in channels):
                self.features.append(nn.Conv2d(below, out, 3, padding=rate, dilation=rate))  # a bias, as published
                if norm == "batch":
                    self.features.append(nn.BatchNorm2d(out))
                self.features.append(nn.ReLU(inplace=True))
                below = out
            self._tap(below)
            if stage < depth:
                stride = 2 if 2 ** (stage + 1) <= output_stride else 1
                rate = rate * 2 // stride
                whole = nn.MaxPool2d(2, 2, ceil_mode=True)
                self.features.append(whole if output_stride == 32 else nn.MaxPool2d(3, stride, padding=1))
        if depth == 5:
            self._tap(below)
        he_(self)

    def _tap(self, channels: int) -> None:
        self.taps.append(len(self.features) - 1)
        self.out_channels += (channels,)

    def forward(self, x: Tensor, indices: list[Tensor] | None = None) -> list[Tensor]:
        """At output stride 32 a list `indices` takes the positions of the maxima of each pooling: see `pool`."""
        maps, layers = [], list(self.features)
        for last, tap in pairwise([-1, *self.taps]):
            stage = layers[last + 1 : tap + 1]
            if indices is not None and isinstance(stage[0], nn.MaxPool2d):
                x, where = pool(x)  # the layer's windows
                indices.append(where)
                stage = stage[1:]
            x = self.through(stage, x)
            maps.append(x)
        return maps


def fully_connected(in_channels: int, width: int, kernel_size: int, rate: int, dropout: float) -> nn.Sequential:
    """(N, in_channels, H, W) -> (N, width, H, W): two layers such as VGG's fc6 and fc7, as convolutions.

    A kernel of even size keeps H and W too, if its rate is even.
    """
    return nn.Sequential(
        nn.Conv2d(in_channels, width, kernel_size, padding=rate * (kernel_size - 1) // 2, dilation=rate),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Conv2d(width, width, kernel_size=1),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
    )


@torch.no_grad()
def convolutionalise_(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    """Gives `conv`, in place, the weights (out, in * k * k) of a fully connected layer that sees a window of k x k.

    The convolution then says at each position what the layer says of the window there.
    """
    if weight.shape != (conv.out_channels, conv.weight[0].numel()):
        raise ValueError(
            f"a fully connected layer of shape {tuple(weight.shape)} does not fit the convolution "
            f"{tuple(conv.weight.shape)}: VGG16's own need fc_width=4096, got {conv.out_channels}; or pass the file of "
            "an encoder alone as weights"
        )
    conv.weight.copy_(weight.view_as(conv.weight))
    conv.bias.copy_(bias)  # type: ignore[union-attr]


def load_fully_connected_(weights: str | None, pretrained: str | None, fc6: nn.Conv2d, fc7: nn.Conv2d) -> None:
    """Gives `fc6` and `fc7` what the `weights` of VGG16 hold of them.

    A file or folder may hold the encoder alone; "imagenet" is the whole of `pretrained`, a name of timm.
    """
    if weights is None:
        return
    state = read_weights(weights) if is_path(weights) else download("vgg16", str(pretrained))
    for names in FULLY_CONNECTED:
        for conv, name in zip((fc6, fc7), names, strict=True):
            if f"{name}.weight" in state:
                convolutionalise_(conv, state[f"{name}.weight"].flatten(1), state[f"{name}.bias"])
