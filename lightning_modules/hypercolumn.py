"""Hypercolumns of whole images, after Hariharan, Arbelaez, Girshick, Malik 2015, https://arxiv.org/abs/1411.5752

A hypercolumn is what all layers of interest say of one pixel: their maps, upsampled bilinearly and stacked.
`Hypercolumn` classifies every pixel of a whole image: an adaptation, which the paper does not have. The paper's own use
of it, the figure in a given box of a known category, is in hypercolumn_boxes.py.

Departs from both the paper and the code that its authors released:
- a softmax over all classes;
- no grid of classifiers: a position in an image says less than one in a box;
- maps are taken before their pooling, and the deepest one in place of fc7, with no factor before each;
- the encoder is trained, which that code holds fixed.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.base import SegmentationModule
from lightning_modules.components.blocks import resize, small_, whole_numbers
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
