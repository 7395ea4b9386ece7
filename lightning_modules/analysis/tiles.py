"""Prediction in tiles that is prediction at once, for networks that are local: see `tiling.py`."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_modules.analysis.tiling import Reach, Windowed, resized_sizes


class Span(NamedTuple):
    """A part of an axis that is predicted, and the part of the image that is read for it."""

    start: int
    stop: int
    first: int
    last: int

    @property
    def inner(self) -> slice:
        """What is predicted, within what is read."""
        return slice(self.start - self.first, self.stop - self.first)

    @property
    def read(self) -> slice:
        return slice(self.first, self.last)


def spans(length: int, side: int, reach: Reach) -> list[Span]:
    """An axis of `length` pixels cut into spans of `side`, rounded down to `reach.step`; each pixel is in one."""
    side = max(side // reach.step, 1) * reach.step
    return [
        Span(start, min(start + side, length), max(0, start - reach.halo), min(length, start + side + reach.halo))
        for start in range(0, length, side)
    ]


def windows(height: int, width: int, side: int, reach: Reach) -> Iterator[tuple[Span, Span]]:
    """Rows and columns of each tile, row by row."""
    for rows in spans(height, side, reach):
        for columns in spans(width, side, reach):
            yield rows, columns


class Tiles:
    """Predicts windows of an image of `height` x `width` pixels as the whole image would be predicted.

    Args:
        predict: (N, C, H, W) images in [0, 1] -> (N, num_classes, H, W)
        network: what `predict` calls, whose shapes are followed
        in_channels: channels of the image
    """

    def __init__(
        self,
        predict: Callable[[Tensor], Tensor],
        network: nn.Module,
        in_channels: int,
        height: int,
        width: int,
        reach: Reach,
    ) -> None:
        self.predict, self.reach = predict, reach
        self.sizes = resized_sizes(network, in_channels, height, width) if reach.resizes else []

    def __call__(self, window: Tensor, rows: Span, columns: Span) -> Tensor:
        """Logits of the inner part, of what is read of the image for it."""
        with Windowed(self.reach, self.sizes, rows.first, columns.first):
            logits = self.predict(window)
        return logits[..., rows.inner, columns.inner]


def predict_in_tiles(
    predict: Callable[[Tensor], Tensor], network: nn.Module, images: Tensor, side: int, reach: Reach
) -> Tensor:
    """Images (N, C, H, W) -> logits (N, num_classes, H, W), in squares of at most `side` pixels and their halo."""
    height, width = images.shape[-2:]
    tiles = Tiles(predict, network, images.shape[1], height, width, reach)
    bands = [
        torch.cat([tiles(images[..., r.read, c.read], r, c) for c in spans(width, side, reach)], dim=-1)
        for r in spans(height, side, reach)
    ]
    return torch.cat(bands, dim=-2)
