"""Resizing an image of which only some rows are in memory, as `resize_image` resizes the whole one."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


class Axis:
    """Bilinear resizing with antialiasing of an axis from `source` pixels to `length`.

    As torch computes it (`upsample_bilinear2d_aa`): a triangle around the centre of each pixel, as wide as the step.
    """

    def __init__(self, length: int, source: int) -> None:
        self.length, self.source = length, source
        if length == source:
            return
        step = source / length
        support, narrow = (step, 1 / step) if step >= 1 else (1.0, 1.0)
        centre = step * (np.arange(length) + 0.5)
        self.first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
        self.last = np.minimum((centre + support + 0.5).astype(np.int64), source)
        places = self.first[:, None] + np.arange(int((self.last - self.first).max()))
        weights = np.maximum(1 - np.abs((places - centre[:, None] + 0.5) * narrow), 0)
        weights[places >= self.last[:, None]] = 0
        self.weights = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
        self.places = np.minimum(places, source - 1)

    def needs(self, start: int, stop: int) -> tuple[int, int]:
        """The pixels of the source, [first, last), that pixels [start, stop) are made of."""
        if self.length == self.source:
            return start, stop
        return int(self.first[start]), int(self.last[stop - 1])


def combine(part: NDArray[Any], dim: int, axis: Axis, start: int, stop: int, first: int) -> NDArray[Any]:
    """Pixels [start, stop) along `dim`, of a part of the source that begins at its pixel `first`."""
    if axis.length == axis.source:
        return part
    shape = [1] * part.ndim
    shape[dim] = stop - start
    out = np.zeros([*part.shape[:dim], stop - start, *part.shape[dim + 1 :]], np.float32)
    for place, weight in zip(axis.places[start:stop].T, axis.weights[start:stop].T, strict=True):
        # A weight of 0 stands where the source may not be in memory.
        here = np.clip(place - first, 0, part.shape[dim] - 1)
        out += np.take(part, here, axis=dim) * weight.reshape(shape)
    return out
