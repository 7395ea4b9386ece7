"""SegNet, Badrinarayanan, Kendall, Cipolla 2015, https://arxiv.org/abs/1511.00561

`SegNet` is the network of Fig. 2, 29,449,355 parameters with 11 classes; `SegNetBasic` is the small one of Sec. 3.1
with every decoder of Table 1. Where the text leaves a detail open, the authors' segnet_train.prototxt and
segnet_basic_train.prototxt decide, https://github.com/alexgkendall/SegNet-Tutorial; those of the variants never
appeared. Two variants have 1,661,323 parameters where Table 1 prints 1.625 million: four 8x8 kernels (Sec. 3.1) cannot
have fewer.

Departs from the paper:
- colours are normalised by mean and standard deviation instead of local contrast (Sec. 3.2);
- there is no dropout (Sec. 4), as in segnet_train.prototxt;
- the loss is divided by the number of labelled pixels, as in the authors' caffe-segnet, for which their rates are.
Departs from the prototxts:
- the shifts of batch norms start at 0, theirs at 0.001;
- as in the paper (Sec. 3.1) the convolutions of `SegNetBasic` have no biases. The prototxt has 512, each before a batch
  norm that subtracts it again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.base import SegmentationModule
from lightning_modules.components.blocks import at_least_one, conv_norm_relu, crop, he_, resize
from lightning_modules.components.choices import one_of
from lightning_modules.components.encoders import build_encoder
from lightning_modules.components.encoders.weights import ignored_normalisation
from lightning_modules.components.recomputing import Recomputing
from lightning_modules.components.schedules import caffe_groups
from lightning_modules.components.upsampling import bilinear_kernel, pool, unpool
from lightning_modules.recipe import MEDIAN_FREQUENCY, Recipe


@dataclass(frozen=True)
class Variant:
    """A row of Table 1: how a decoder upsamples, and what it does besides."""

    upsample: Literal[
        "unpool", "bilinear", "transposed"
    ]  # "unpool" to the indices of the maxima, then 7x7 convolution; "bilinear"; "transposed", 8x8, learned
    reduce: bool = False  # the encoder's maps to one a class, before the decoder sees them: "DimReduction"
    add: bool = False  # the encoder's pooled maps to the decoder's
    single_channel: bool = False  # each decoder filter sees the map it makes only


BasicName = Literal[
    "basic",
    "basic-encoder-addition",
    "basic-single-channel-decoder",
    "bilinear-interpolation",
    "fcn-basic",
    "fcn-basic-no-addition",
    "fcn-basic-no-dim-reduction",
    "fcn-basic-no-addition-no-dim-reduction",
]
SegNetName = Literal["segnet", BasicName]
VARIANTS: dict[BasicName, Variant] = {
    "basic": Variant("unpool"),
    "basic-encoder-addition": Variant("unpool", add=True),
    "basic-single-channel-decoder": Variant("unpool", single_channel=True),
    "bilinear-interpolation": Variant("bilinear", reduce=True),
    "fcn-basic": Variant("transposed", reduce=True, add=True),
    "fcn-basic-no-addition": Variant("transposed", reduce=True),
    "fcn-basic-no-dim-reduction": Variant("transposed", add=True),
    "fcn-basic-no-addition-no-dim-reduction": Variant("transposed"),
}


def conv_norm_relu_biased(in_channels: int, out_channels: int) -> nn.Sequential:
    """(N, in_channels, H, W) -> (N, out_channels, H, W), with the bias that VGG16 had before it got its batch norms."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


class SegNet(nn.Module):
    """(N, in_channels, H, W) -> (N, num_classes, H, W), any H and W: Fig. 2.

    Pooling rounds odd sizes up, as Caffe does, and each unpooling goes back to the size that was pooled.

    Args:
        width: maps at full resolution, of which all others are multiples
        weights: of VGG16 with batch norm: null, "imagenet" (downloaded), a file or a folder with one
    """

    def __init__(self, num_classes: int, in_channels: int = 3, *, width: int = 64, weights: str | None = None) -> None:
        super().__init__()
        at_least_one(width=width)
        self.encoder = build_encoder("vgg16", in_channels, weights=weights, width=width / 64, norm="batch")
        *widths, _ = self.encoder.out_channels  # 64, 128, 256, 512, 512
        self.decoder = nn.ModuleList()
        for level, convs in ((4, 3), (3, 3), (2, 3), (1, 2)):  # the encoder mirrored, new layers at each level
            channels = [widths[level]] * convs + [widths[level - 1]]
            self.decoder.append(nn.Sequential(*(conv_norm_relu_biased(i, o) for i, o in pairwise(channels))))
        last = nn.Conv2d(widths[0], num_classes, kernel_size=3, padding=1)  # conv1_1_D
        self.decoder.append(nn.Sequential(conv_norm_relu_biased(widths[0], widths[0]), last))
        he_(self.decoder)

    def forward(self, x: Tensor) -> Tensor:
        indices: list[Tensor] = []  # of the maxima of each pooling
        *maps, x = self.encoder(x, indices)  # the last one is pool5
        for decode, map_ in zip(self.decoder, reversed(maps), strict=True):
            x = decode(unpool(x, indices.pop(), map_.shape[-2:]))  # stride halves
        return x


class Decoder(nn.Module):
    """(N, channels, h, w) -> (N, channels, *size), twice as large: one of the four decoders of a variant (Fig. 3)."""

    def __init__(self, channels: int, variant: Variant) -> None:
        super().__init__()
        self.upsample = variant.upsample
        if variant.upsample == "unpool":
            groups = channels if variant.single_channel else 1
            conv = nn.Conv2d(channels, channels, kernel_size=7, padding=3, groups=groups, bias=False)
            self.layer = nn.Sequential(conv, nn.BatchNorm2d(channels))  # "no ReLU nonlinearity", Sec. 3.1
            he_(self.layer)
        elif variant.upsample == "transposed":
            up = nn.ConvTranspose2d(channels, channels, kernel_size=8, stride=2, padding=3, bias=False)
            # A kernel of 4 is enough for bilinear weights, the rest of the 8 starts at zero.
            up.weight = nn.Parameter(F.pad(bilinear_kernel(channels, 2), [2] * 4))
            self.layer = nn.Sequential(up)

    def forward(self, x: Tensor, indices: Tensor, size: tuple[int, int]) -> Tensor:
        if self.upsample == "bilinear":
            return resize(x, size)
        if self.upsample == "unpool":
            x = unpool(x, indices, size)
        x = self.layer(x)
        return crop(x, *size)


class SegNetBasic(Recomputing):
    """(N, in_channels, H, W) -> (N, num_classes, H, W), any H and W: Sec. 3.1.

    Four encoders of a 7x7 convolution without bias, then 2x2 pooling. A variant that adds the encoder's maps adds the
    pooled ones (Fig. 3), so the last decoder, at full resolution, adds none.

    Args:
        variant: the decoder, a row of Table 1
        width: maps of every convolution
    """

    def __init__(
        self, num_classes: int, in_channels: int = 3, *, variant: BasicName = "basic", width: int = 64
    ) -> None:
        super().__init__()
        one_of("variant", variant, VARIANTS)
        at_least_one(width=width)
        kind = VARIANTS[variant]
        self.encoder = nn.ModuleList(conv_norm_relu(i, width, 7) for i in (in_channels, width, width, width))
        he_(self.encoder)

        def classify() -> nn.Conv2d:
            return nn.Conv2d(width, num_classes, kernel_size=1)

        channels = num_classes if kind.reduce else width
        self.reduce = classify() if kind.reduce else nn.Identity()
        self.skips = nn.ModuleList(classify() if kind.reduce else nn.Identity() for _ in range(3 if kind.add else 0))
        self.decoder = nn.ModuleList(Decoder(channels, kind) for _ in self.encoder)
        self.classifier = nn.Identity() if kind.reduce else classify()

    def forward(self, x: Tensor) -> Tensor:
        pooled: list[tuple[Tensor, Tensor, tuple[int, int]]] = []  # map, indices of its maxima, size before pooling
        for encode in self.encoder:
            x = self.through(encode, x)
            size = (x.shape[-2], x.shape[-1])
            x, indices = pool(x)  # stride doubles
            pooled.append((x, indices, size))
        x = self.reduce(x)
        for level in reversed(range(len(self.encoder))):
            _, indices, size = pooled[level]
            x = self.decoder[level](x, indices, size)  # stride halves
            if level and self.skips:
                x = x + self.skips[level - 1](pooled[level - 1][0])
        logits: Tensor = self.classifier(x)
        return logits


class SegNetModule(SegmentationModule):
    """Trains `SegNet` or a `SegNetBasic` by the authors' solvers: SGD at a constant rate.

    A bias learns at twice the rate and without decay; of "segnet" the shifts of batch norms do not decay either. The
    published batch is 12 images for the variants, 5 on CamVid for SegNet. Classes are balanced by median frequency.
    Rates, momentum and weight decay are those of Sec. 3.2 and 4, segnet_solver.prototxt and
    segnet_basic_solver.prototxt.

    Args:
        variant: "segnet" (Fig. 2), or a small network of Table 1, which trains from scratch
        lr: learning rate; null takes 0.001 for "segnet" and 0.1 for the small networks
    """

    network: SegNet | SegNetBasic
    recipe = Recipe(
        loss="ce_per_pixel", lr=None, weight_decay=5e-4, schedule="constant", class_weights=MEDIAN_FREQUENCY
    )

    def __init__(self, num_classes: int, ignore_index: int, *, variant: SegNetName = "segnet", **settings: Any) -> None:
        one_of("variant", variant, get_args(SegNetName))
        super().__init__(num_classes, ignore_index, **settings)

    def build(self, num_classes: int, in_channels: int, **options: Any) -> SegNet | SegNetBasic:
        variant = self.hparams["variant"]
        if variant == "segnet":
            return SegNet(num_classes, in_channels, **options)
        if options.pop("weights", None) is not None:
            raise ValueError(f"weights are for variant='segnet', got {variant!r}, which trains from scratch")
        return SegNetBasic(num_classes, in_channels, variant=variant, **options)

    @classmethod
    def published_lr(cls, hparams: Mapping[str, Any]) -> float:
        return 1e-3 if hparams["variant"] == "segnet" else 0.1

    @classmethod
    def corrections(cls, hparams: Mapping[str, Any]) -> dict[str, str]:
        if hparams["variant"] != "segnet":
            return {}
        corrected = ignored_normalisation(hparams)
        if hparams["weight_decay"]:
            corrected["segnet-shift-decay"] = (
                "the shifts of batch norms decayed, and in the authors' segnet_train.prototxt do not"
            )
        return corrected

    def parameter_groups(self) -> list[dict[str, Any]]:
        h = self.hparams
        return caffe_groups(self.network, h["lr"], h["weight_decay"], decay_shifts=h["variant"] != "segnet")
