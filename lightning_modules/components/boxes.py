"""Boxes of objects: made from masks, moved at a stated overlap, pooled from maps, and pasted back into the image.

A box is left, top, right and bottom in whole pixels, right and bottom exclusive, and the category of its object. The
boxes of a batch are (N, B, 5) int64; a row of -1 is none, as images have unequally many.
"""

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from lightning_modules.components.blocks import resize
from lightning_modules.components.pyramid import pool_to_bins

STEPS = 16  # in which a move is shortened until the overlap is kept
ENDS = torch.tensor([0, 1])  # what leads from an exclusive end to the last pixel
FLOOR = -20.0  # log odds where no box of a category is: a probability of 2e-9


class Flat(NamedTuple):
    """The boxes of a batch in one list: image (R,), sides (R, 4) and category (R,), all int64 on the CPU."""

    image: Tensor
    sides: Tensor
    category: Tensor


def flat(boxes: Tensor) -> Flat:
    """(N, B, 5) without the rows that are none."""
    boxes = boxes.cpu()
    image, row = (boxes[..., 4] >= 0).nonzero(as_tuple=True)
    return Flat(image, boxes[image, row, :4], boxes[image, row, 4])


def padded(of_images: list[Tensor], least: int = 1) -> Tensor:
    """Boxes (B, 5) of each image -> (N, the most of them, 5), filled up with rows of -1 to at least `least`."""
    batch = torch.full((len(of_images), max(least, *(len(boxes) for boxes in of_images)), 5), -1)
    for rows, boxes in zip(batch, of_images, strict=True):
        rows[: len(boxes)] = boxes
    return batch


def boxes_of_mask(mask: Tensor, ignored: Sequence[int], *, least_pixels: int, most: int) -> Tensor:
    """The bounding boxes (B, 5) of the connected components of each class in a mask (H, W), the largest first.

    Components are 4-connected. Those of fewer than `least_pixels` are left out, those beyond `most` too, and so are
    the labels that are `ignored`.
    """
    labels, found = mask.cpu().numpy(), []
    for category in np.unique(labels):
        if category in ignored:
            continue
        regions, _ = ndimage.label(labels == category)
        sizes = np.bincount(regions.ravel())
        for number, (rows, columns) in enumerate(ndimage.find_objects(regions), start=1):
            if sizes[number] >= least_pixels:
                sides = (columns.start, rows.start, columns.stop, rows.stop)
                found.append((int(sizes[number]), (*sides, int(category))))
    found.sort(key=lambda of: -of[0])  # stable: of equal sizes the lower class, and the upper component, goes first
    return torch.tensor([box for _, box in found[:most]], dtype=torch.int64).view(-1, 5)


def overlap_of(ours: Tensor, theirs: Tensor) -> Tensor:
    """Intersection over union (...) of boxes (..., 4) with others that broadcast, float64."""
    ours, theirs = torch.broadcast_tensors(ours, theirs)  # type: ignore[no-untyped-call]
    low, high = torch.maximum(ours[..., :2], theirs[..., :2]), torch.minimum(ours[..., 2:4], theirs[..., 2:4])
    both = (high - low).clamp(min=0).prod(-1).double()
    areas = [(boxes[..., 2:4] - boxes[..., :2]).prod(-1).double() for boxes in (ours, theirs)]
    return both / (areas[0] + areas[1] - both)


def jittered(boxes: Tensor, overlap: float, size: tuple[int, int], generator: torch.Generator | None = None) -> Tensor:
    """Boxes (B, 5) in an image of `size` (H, W), each side moved at random, at an IoU of at least `overlap` with them.

    Each side is to move by up to (1 / overlap - 1) of the box's length, and at most by all of it. The move is
    shortened, in `STEPS`, until the IoU of the rounded box, cut off at the image, is enough; at its shortest it is
    none. `generator` None is the global one.
    """
    sides = boxes[:, :4].double()
    lengths = (sides[:, 2:] - sides[:, :2]).repeat(1, 2)
    moves = (2 * torch.rand(len(boxes), 4, generator=generator) - 1).double() * lengths * min(1 / overlap - 1, 1)
    shares = torch.arange(STEPS, -1, -1)[:, None, None] / STEPS
    tried = (sides + shares * moves).round().long()  # (STEPS + 1, B, 4), the longest move first
    height, width = size
    edge = torch.tensor([width, height] * 2)
    tried = torch.minimum(tried.clamp(min=0), edge)
    enough = (tried[..., 2:] > tried[..., :2]).all(-1) & (overlap_of(tried, boxes[:, :4]) >= overlap)
    first = enough.int().argmax(0)  # of equal ones the first; the last is the box itself
    return torch.cat([tried[first, torch.arange(len(boxes))], boxes[:, 4:]], dim=1)


def generator_of(mask: Tensor) -> torch.Generator:
    """A generator that a mask decides: the same for the same image, whatever the order and the number of devices."""
    return torch.Generator().manual_seed(zlib.crc32(mask.cpu().contiguous().numpy().tobytes()))


def roi_pool(maps: Tensor, boxes: Flat, stride: int, bins: int) -> Tensor:
    """Maps (N, C, h, w) at `stride` -> the largest values in bins x bins parts of each box, (R, C, bins, bins).

    As Fast R-CNN has it (Girshick 2015, Sec. 2.1), https://arxiv.org/abs/1504.08083: a box is rounded to whole cells,
    and its parts overlap where bins do not divide it. Not `torchvision.ops.roi_pool`, which has no bfloat16 on a CPU,
    and whose backward on CUDA raises under deterministic algorithms.
    """
    (left, right), (top, bottom) = (_cells(boxes.sides[:, axis::2], stride, maps.shape[3 - axis]) for axis in (0, 1))
    ends = torch.stack([boxes.image, left, right, top, bottom], dim=1).tolist()
    return torch.cat([pool_to_bins(maps[i : i + 1, :, t:b, l:r], bins, "max") for i, l, r, t, b in ends])


def _cells(intervals: Tensor, stride: int, extent: int) -> tuple[Tensor, Tensor]:
    """The first cell (R,) of a map and the one after the last, of pixels (R, 2) of an axis: each end is rounded."""
    first, last = (((pixels / stride) + 0.5).long().clamp(max=extent - 1) for pixels in (intervals - ENDS).unbind(1))
    return first, torch.maximum(first, last) + 1


def labels_in(masks: Tensor, boxes: Flat, size: int) -> Tensor:
    """The labels (R, size, size) of masks (N, H, W) under the centres of size x size equal parts of each box."""
    steps = (torch.arange(size) + 0.5) / size
    sides = boxes.sides.double()
    columns, rows = ((sides[:, a, None] + steps * (sides[:, a + 2] - sides[:, a])[:, None]).long() for a in (0, 1))
    image, rows, columns = (index.to(masks.device) for index in (boxes.image, rows, columns))
    return masks[image[:, None, None], rows[:, :, None], columns[:, None, :]]


def paste(log_odds: Tensor, boxes: Flat, shape: tuple[int, int, int, int]) -> Tensor:
    """Log odds (R, s, s) of each box -> (N, num_classes, H, W) = `shape`, bilinear in its box.

    At each pixel the highest of the boxes of a category that cover it, and `FLOOR` where none does or all are lower.
    """
    canvas = log_odds.new_full(shape, FLOOR)
    for odds, image, box, category in zip(log_odds, *(part.tolist() for part in boxes), strict=True):
        left, top, right, bottom = box
        there = canvas[image, category, top:bottom, left:right]
        there.copy_(torch.maximum(there.clone(), resize(odds[None, None], (bottom - top, right - left))[0, 0]))
    return canvas


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
