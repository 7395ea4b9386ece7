"""DeepLab v3, Chen, Papandreou, Schroff, Adam 2017, https://arxiv.org/abs/1706.05587

The network of Fig. 5, ResNet-101 with ASPP: 58,040,661 parameters with 21 classes. The cascade of Fig. 3 (b), blocks 5
to 7 behind block 4: `DeepLabV3(21, cascade=7, context="none")`.

Departs from the paper:
- maps are resized with align_corners=False (the authors' TensorFlow code: True);
- an output stride beyond 32 (Table 1) is not offered.

`form="torchvision"` is torchvision's `deeplabv3_resnet50` and `101`, whose weights it takes. They have one more 3x3
convolution before the classifier, no multi-grid, and an atrous stage whose first block keeps the rate of the stage
before.
"""

from collections.abc import Sequence
from typing import Any, Literal, Self, get_args

from torch import Tensor, nn

from lightning_modules.base import SegmentationModule
from lightning_modules.components.blocks import (
    at_least_one,
    conv_norm_relu,
    freeze_batch_norms,
    he_,
    resize,
    set_batch_norm_decay,
)
from lightning_modules.components.checkpoints import start_from
from lightning_modules.components.choices import one_of
from lightning_modules.components.encoders import NATIVE, build_encoder
from lightning_modules.components.encoders.resnet import FORMS, Form, ResNet, stage
from lightning_modules.components.pyramid import ASPP, PyramidPooling, atrous_rates
from lightning_modules.recipe import Recipe

Context = Literal["aspp", "pyramid", "none"]
CONTEXTS = get_args(Context)


class DeepLabV3(nn.Module):
    """(N, in_channels, H, W) -> (N, num_classes, H, W).

    Args:
        encoder: "resnet101" as in the paper, another native one, or one of smp ("mobilenet_v2") or timm
            ("tu-convnext_atto")
        encoder_width: factor of the channels of a native encoder
        weights: weights of the encoder: null, "imagenet" (downloaded), "package" (of pip), a file or a folder with one
        output_stride: stride of the encoder's last map: 8, 16 or 32
        multi_grid: what multiplies the rates inside each of the blocks 4 to 7; null: 1, 2, 4 for ResNets of the paper's
            form
        cascade: number of the last ResNet block, 4 to 7
        context: what gathers context before the classifier: ASPP, the pyramid pooling of PSPNet, or nothing
        rates: atrous rates of ASPP; null: 6, 12, 18 at output stride 16, more at 8
        image_pooling: ASPP also sees the mean of the whole map
        decoder_width: channels of the context
        dropout: share of values dropped before the classifier
        form: the network of the paper, or torchvision's, for its weights
        batch_norm_decay: share of the running statistics that a step keeps. 0.9997 wants tens of thousands of steps, or
            pretrained statistics: after 1,000 steps 74 % are still the initial ones
        freeze_batch_norm: batch norms stay as they are, for the second half of the recipe, at output stride 8
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        encoder: str = "resnet101",
        encoder_width: float = 1.0,
        weights: str | None = None,
        output_stride: int = 16,
        multi_grid: Sequence[int] | None = None,
        cascade: int = 4,
        context: Context = "aspp",
        rates: Sequence[int] | None = None,
        image_pooling: bool = True,
        decoder_width: int = 256,
        dropout: float = 0.1,
        form: Form = "paper",
        batch_norm_decay: float = 0.9997,
        freeze_batch_norm: bool = False,
    ) -> None:
        super().__init__()
        one_of("context", context, CONTEXTS)
        one_of("form", form, FORMS)
        if not 4 <= cascade <= 7:
            raise ValueError(f"cascade must be the last ResNet block, 4 to 7, got {cascade}")
        at_least_one(decoder_width=decoder_width)
        native = NATIVE.get(encoder)
        resnet = native if native is not None and issubclass(native, ResNet) else None
        if resnet is None and (multi_grid is not None or cascade > 4):
            raise ValueError(
                f"multi_grid and cascade repeat and dilate blocks of a native ResNet: encoder={encoder!r} has none, "
                "pass encoder='resnet50' or leave them at their defaults"
            )
        options: dict[str, Any] = {}
        if resnet is not None:
            if multi_grid is None:
                multi_grid = (1, 2, 4) if form == "paper" and resnet.blocks[-1] == 3 else (1,) * resnet.blocks[-1]
            options = {"multi_grid": multi_grid, "rates": form}
        self.encoder = build_encoder(
            encoder, in_channels, output_stride=output_stride, weights=weights, width=encoder_width, **options
        )
        channels = self.encoder.out_channels[-1]
        self.cascade = nn.Sequential()
        for block in range(5, cascade + 1):  # Sec. 3.2: copies of block 4, whose rate doubles where a stride would be
            rate = 32 // output_stride * 2 ** (block - 4)
            made: Any = resnet  # the check above
            grid = [rate * factor for factor in multi_grid or ()]
            self.cascade.append(stage(made.block, channels, channels // made.block.expansion, rates=grid))
        he_(self.cascade)
        rates = atrous_rates(output_stride) if rates is None else rates
        self.context = _context(context, channels, decoder_width, rates, image_pooling, dropout)
        channels = channels if context == "none" else decoder_width
        extra = [conv_norm_relu(channels, channels)] if form == "torchvision" else []
        self.head = nn.Sequential(*extra, nn.Conv2d(channels, num_classes, kernel_size=1))
        set_batch_norm_decay(self, batch_norm_decay)
        self.freeze_batch_norm = freeze_batch_norm
        self.train()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.freeze_batch_norm:
            freeze_batch_norms(self)
        return self

    def logits(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, num_classes, H / output_stride, W / output_stride)."""
        logits: Tensor = self.head(self.context(self.cascade(self.encoder(x)[-1])))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return resize(self.logits(x), x.shape[-2:])  # Sec. 4.1, "Upsampling logits": the loss is at full resolution


def _context(
    kind: Context, in_channels: int, width: int, rates: Sequence[int], image_pooling: bool, dropout: float
) -> nn.Module:
    if kind == "none":
        return nn.Identity()
    if kind == "aspp":
        return ASPP(in_channels, width, rates, image_pooling=image_pooling, dropout=dropout)
    pyramid = PyramidPooling(in_channels)
    return nn.Sequential(pyramid, conv_norm_relu(pyramid.out_channels, width, kernel_size=1), nn.Dropout(dropout))


class DeepLabV3Module(SegmentationModule):
    """Trains `DeepLabV3` by the recipe of Sec. 4.1: batches of 16 crops of 513 pixels, poly schedule from 0.007.

    Weight decay 1e-4 is what the authors' code gives for ResNets (`deeplab/train.py`); the paper states none. The
    second half of the recipe is another run, with `init_from`, output_stride=8, freeze_batch_norm=True and lr=0.001.

    Args:
        init_from: checkpoint of the same network at any output stride, such as that of the first half of the recipe
    """

    network: DeepLabV3
    recipe = Recipe(lr=0.007)

    def __init__(self, num_classes: int, ignore_index: int, *, init_from: str | None = None, **settings: Any) -> None:
        super().__init__(num_classes, ignore_index, **settings)
        if init_from is not None:
            start_from(self, init_from)
