"""Hypercolumns, Hariharan, Arbelaez, Girshick, Malik 2015, https://arxiv.org/abs/1411.5752

A hypercolumn is what all layers of interest say of one pixel: their maps, upsampled bilinearly and stacked.
`HypercolumnBoxes` is the paper's use of it: the figure in a given box of a known category, 3,457,500 parameters with 20
categories. `Hypercolumn` classifies every pixel of a whole image: an adaptation, which the paper does not have.

The box form is the network of the code that the authors released, which classifies the maps of the whole image once for
all its boxes; the paper's first system runs VGG16 on each box. It starts from the maps of an encoder, given to it.

The whole-image form departs from both:
- a softmax over all classes;
- no grid of classifiers: a position in an image says less than one in a box;
- maps are taken before their pooling, and the deepest one in place of fc7, with no factor before each;
- the encoder is trained, which that code holds fixed.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.base import SegmentationModule
from lightning_modules.components.blocks import at_least_one, resize, small_, whole_numbers
from lightning_modules.components.encoders import build_encoder
from lightning_modules.components.schedules import caffe_groups
from lightning_modules.recipe import Recipe


class Hypercolumn(nn.Module):
    """(N, in_channels, H, W) -> (N, num_classes, H, W), resized from the finest of `levels`.

    A linear classifier of hypercolumns is a 1x1 convolution of each map, upsampled, and then their sum: the paper's way
    to evaluate it.

    Args:
        encoder: "vgg16" as in the paper, another native one, or one of smp ("mobilenet_v2") or timm
            ("tu-convnext_atto")
        weights: weights of the encoder: null, "imagenet" (downloaded), "package" (of pip), a file or a folder with one
        levels: numbers of the maps that are stacked, map i at stride 2 ** i; by default conv3_3, conv4_3 and pool5 of
            VGG16
        encoder_width: factor of the channels of a native encoder
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        encoder: str = "vgg16",
        weights: str | None = None,
        levels: Sequence[int] = (2, 3, 5),
        encoder_width: float = 1.0,
    ) -> None:
        super().__init__()
        rising = whole_numbers(levels, least=0) and sorted(set(levels)) == list(levels)
        if not rising or not 1 <= max(levels, default=0) <= 5:
            raise ValueError(
                "levels must be a list of numbers from 0 to 5 in rising order, the last not 0, such as [2, 3, 5], "
                f"got {levels!r}"
            )
        self.levels = tuple(levels)
        self.encoder = build_encoder(encoder, in_channels, depth=levels[-1], weights=weights, width=encoder_width)
        channels = self.encoder.out_channels
        if not all(channels[level] for level in levels):
            some = ", ".join(str(level) for level, count in enumerate(channels) if count)
            raise ValueError(
                f"levels must be maps that the encoder has: encoder={encoder!r} has {some} up to {levels[-1]}, "
                f"got {list(levels)}"
            )
        self.classifiers = nn.ModuleList(nn.Conv2d(channels[i], num_classes, kernel_size=1) for i in levels)
        small_(self.classifiers)

    def logits(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, num_classes, h, w) at the stride of the finest level."""
        features = self.encoder(x)
        scores = [classify(features[i]) for classify, i in zip(self.classifiers, self.levels, strict=True)]
        return torch.stack([resize(score, scores[0].shape[-2:]) for score in scores]).sum(0)

    def forward(self, x: Tensor) -> Tensor:
        return resize(self.logits(x), x.shape[-2:])


class HypercolumnModule(SegmentationModule):
    """Trains `Hypercolumn`, which is the whole-image form, by the authors' recipe for boxes, in batches of 20.

    A constant rate, twice as high for biases.
    """

    network: Hypercolumn
    recipe = Recipe(lr=1e-3, weight_decay=1e-3, schedule="constant")

    def parameter_groups(self) -> list[dict[str, Any]]:
        return caffe_groups(self.network, self.hparams["lr"], self.hparams["weight_decay"])


class HypercolumnBoxes(nn.Module):
    """pool3 (N, 256, h, w), pool4 (N, 512, h', w'), fc7 (R, 4096), R boxes and their categories -> (R, 50, 50).

    The log odds that a pixel of a box belongs to its object: the logits of `F.binary_cross_entropy_with_logits`.
    `boxes` (R, 5) hold the number of the image, then left, top, right and bottom as shares of its sides; `categories`
    (R,) are below `num_classes`. The maps are of whole images, fc7 is of the boxes: VGG16's on conv5_3, pooled to 7x7
    in each box.

    Each category has grid x grid classifiers, one for each part of the box; between their centres a pixel's probability
    is the bilinear mean of theirs. `scales` multiply pool3 and pool4 first: 0.0027 and 0.063 in the authors' network,
    for their VGG16 on images in 0..255, and nothing here, where images are normalised. Their recipe is that of
    `HypercolumnModule`, with fc7's classifiers at a tenth of the rate, and the loss added up over the pixels of a box.
    """

    blend_weights: Tensor

    def __init__(
        self,
        num_classes: int = 20,
        channels: tuple[int, int, int] = (256, 512, 4096),
        *,
        scales: tuple[float, float] = (1.0, 1.0),
        grid: int = 5,
        size: int = 50,
    ) -> None:
        super().__init__()
        at_least_one(num_classes=num_classes, grid=grid, size=size)
        self.scales, self.cells, self.size = scales, grid**2, size
        self.pool3 = nn.Conv2d(channels[0], num_classes * self.cells, kernel_size=3, padding=1)
        self.pool4 = nn.Conv2d(channels[1], num_classes * self.cells, kernel_size=1)
        self.fc7 = nn.Linear(channels[2], num_classes * self.cells)
        small_(self)
        taps = bilinear_taps(torch.tensor([[0.0, 1.0]]), size, grid)[0]  # of each pixel of one side, on the grid
        blend = torch.einsum("yi,xj->ijyx", taps, taps).flatten(0, 1)  # (cells, size, size)
        self.register_buffer("blend_weights", blend, persistent=False)

    def forward(self, pool3: Tensor, pool4: Tensor, fc7: Tensor, boxes: Tensor, categories: Tensor) -> Tensor:
        scores = self.fc7(fc7).unflatten(1, (-1, self.cells))[torch.arange(len(boxes), device=fc7.device), categories]
        scores = scores[..., None, None]
        for conv, maps, scale in ((self.pool3, pool3, self.scales[0]), (self.pool4, pool4, self.scales[1])):
            classified = conv(scale * maps).unflatten(1, (-1, self.cells))  # (N, num_classes, cells, h, w)
            scores = scores + crop(classified[boxes[:, 0].long(), categories], boxes[:, 1:], self.size)
        return self.blend(scores)

    def blend(self, scores: Tensor) -> Tensor:
        """Log odds of each cell's classifier (R, cells, size, size) -> those of their mean probability (R, size,
        size)."""
        share = self.blend_weights.log()
        figure = (share + F.logsigmoid(scores)).logsumexp(1)
        ground = (share + F.logsigmoid(-scores)).logsumexp(1)
        return figure - ground


def crop(maps: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Maps (R, C, h, w), one for each box, and boxes (R, 4) as shares of their sides -> (R, C, size, size), bilinear.

    The whole map as a box is `resize(maps, (size, size))`. Beyond the border a map repeats its edge.
    """
    rows = bilinear_taps(boxes[:, [1, 3]], size, maps.shape[-2])
    columns = bilinear_taps(boxes[:, [0, 2]], size, maps.shape[-1])
    return torch.einsum("ryh,rchw,rxw->rcyx", rows.to(maps), maps, columns.to(maps))


def bilinear_taps(intervals: Tensor, size: int, extent: int) -> Tensor:
    """Intervals (R, 2) of an axis, from 0 to 1, -> (R, size, extent): weights of its `extent` pixels, of sum 1.

    They interpolate linearly, between the centres of pixels, at the centres of `size` equal parts of each interval.
    """
    steps = (torch.arange(size, device=intervals.device) + 0.5) / size
    low, high = intervals[:, :1], intervals[:, 1:]
    positions = ((low + steps * (high - low)) * extent - 0.5).clamp(0, extent - 1)
    return (1 - (positions[..., None] - torch.arange(extent, device=intervals.device)).abs()).clamp(min=0)
