"""InvertedNet, Novikov, Lenis, Major, Hladuvka, Wimmer, Buehler, IEEE TMI 37(8), 2018, https://arxiv.org/abs/1701.08816

Three networks for the organs in chest radiographs, each a U-Net with dropout after every convolution. What the paper's
text says of them:

- All-Dropout is that and no more.
- All-Convolutional has convolutions with a stride in the place of the poolings.
- InvertedNet has "delayed subsampling" of the poolings, ELU, and many maps at full resolution, 256. They are halved
  after each pooling and doubled after each upsampling, where U-Net does the reverse.

Decided here:
- ELU in all three, and dropout after it; softmax; how much is dropped and how weights start;
- four poolings and two padded 3x3 convolutions with bias a level; upsampling by repetition, without weights;
- 64 maps at full resolution in the first two networks, as in U-Net;
- for a pooling of All-Convolutional a 3x3 convolution of stride 2 that keeps the number of maps;
- for a delayed pooling a 2x2 maximum of stride 1 and the stride of 2 in the convolution that follows, which lands on
  the grid of a 2x2 pooling.

With one channel and four classes (lungs, clavicles, heart, background) the parameters are then 31,377,988, 34,512,388
and 3,141,028: counts of what is built here.

Departs from the paper:
- the default loss is Jaccard's with classes weighted by median frequency: the paper's best scores are of one built on
  the Dice coefficient.
"""

import math
from itertools import pairwise
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.base import SegmentationModule
from lightning_modules.components.blocks import at_least_one, crop, pad_to_multiple
from lightning_modules.components.choices import one_of
from lightning_modules.components.recomputing import Recomputing
from lightning_modules.recipe import MEDIAN_FREQUENCY, Recipe

Variant = Literal["all-dropout", "all-conv", "inverted"]
VARIANTS = get_args(Variant)


def conv_elu(in_channels: int, out_channels: int, *, stride: int = 1, dropout: float) -> nn.Sequential:
    """(N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride): dropout comes after the activation."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1)
    return nn.Sequential(conv, nn.ELU(inplace=True), nn.Dropout(dropout))


def double_conv(in_channels: int, out_channels: int, *, stride: int = 1, dropout: float) -> nn.Sequential:
    """(N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride)."""
    return nn.Sequential(
        conv_elu(in_channels, out_channels, stride=stride, dropout=dropout),
        conv_elu(out_channels, out_channels, dropout=dropout),
    )


class DelayedMaxPool(nn.Module):
    """(N, C, H, W) -> the same: each pixel becomes the maximum of the 2x2 window below and to the right of it."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-torch.inf), kernel_size=2, stride=1)


class InvertedNet(Recomputing):
    """(N, in_channels, H, W) -> (N, num_classes, H, W), any H and W.

    Args:
        variant: one of the paper's three networks
        width: maps at full resolution; null: 256 for "inverted", as in the paper, and 64 otherwise
        depth: how many times the maps are pooled, and as often upsampled
        dropout: share of values dropped behind each convolution
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        variant: Variant = "inverted",
        width: int | None = None,
        depth: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        one_of("variant", variant, VARIANTS)
        if width is None:
            width = 256 if variant == "inverted" else 64
        at_least_one(width=width, depth=depth)
        if variant == "inverted" and width % 2**depth:
            raise ValueError(
                f"width is halved {depth} times in variant='inverted' and must be a multiple of {2**depth}, got {width}"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be at least 0 and less than 1, got {dropout}")
        self.depth = depth
        if variant == "inverted":
            widths = [width // 2**level for level in range(depth + 1)]  # 256, 128, 64, 32, 16
        else:
            widths = [width * 2**level for level in range(depth + 1)]  # 64, 128, 256, 512, 1024, as U-Net

        self.encoder = nn.ModuleList([double_conv(in_channels, widths[0], dropout=dropout)])
        self.down, self.decoder = nn.ModuleList(), nn.ModuleList()
        for above, below in pairwise(widths):
            if variant == "all-dropout":
                self.down.append(nn.MaxPool2d(2))
            elif variant == "all-conv":
                self.down.append(conv_elu(above, above, stride=2, dropout=dropout))
            else:
                self.down.append(DelayedMaxPool())
            stride = 2 if variant == "inverted" else 1
            self.encoder.append(double_conv(above, below, stride=stride, dropout=dropout))
            self.decoder.insert(0, double_conv(above + below, above, dropout=dropout))
        self.head = nn.Conv2d(widths[0], num_classes, kernel_size=1)
        self._initialise()

    def _initialise(self) -> None:
        """Normal weights that keep the mean square of the activations, as those of He et al. with ReLU; biases of zero.

        For standard normal x, ELU(x)^2 is 1 + e^2 P(-2) - 2 sqrt(e) P(-1) = 0.645 in the mean, with P their
        distribution function; ReLU(x)^2 is 0.5. With ReLU's rule the softmax starts nearer to saturation, where the
        Jaccard loss has next to no gradient.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                inputs = module.in_channels * math.prod(module.kernel_size)
                nn.init.normal_(module.weight, std=math.sqrt(1 / (0.645 * inputs)))
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        x = pad_to_multiple(x, 2**self.depth)
        skips = [self.through(self.encoder[0], x)]  # at strides 1, 2, 4, 8, 16
        for down, encode in zip(self.down, self.encoder[1:], strict=True):
            skips.append(self.through([down, encode], skips[-1]))  # stride doubles
        x = skips.pop()
        for decode in self.decoder:
            x = F.interpolate(x, scale_factor=2, mode="nearest")  # stride halves
            x = decode(torch.cat([skips.pop(), x], dim=1))  # channels add up
        logits: Tensor = self.head(x)
        return crop(logits, height, width)


class InvertedNetModule(SegmentationModule):
    """Trains `InvertedNet` with Adam, which is AdamW without weight decay, and the Jaccard loss, weighted by class.

    That, rate and schedule are decided here; `loss="dice"` is nearer to the paper's best.
    """

    network: InvertedNet
    recipe = Recipe(
        loss="jaccard",
        class_weights=MEDIAN_FREQUENCY,
        optimizer="adamw",
        lr=1e-4,
        weight_decay=0.0,
        schedule="constant",
    )
