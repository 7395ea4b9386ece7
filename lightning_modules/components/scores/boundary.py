"""Boundary F1: how well predicted outlines follow the true ones."""

import math

import torch
from torch import Tensor

from lightning_modules.components.float64 import for_float64
from lightning_modules.components.scores.confusion import true_classes


def boundary_f1(labels: Tensor, masks: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """How well predicted outlines follow the true ones: F1 of each class in each image, (N, C) float64.

    The measure of Csurka et al. 2013 ("What is a good evaluation measure for semantic segmentation?") as SegNet uses
    it (Badrinarayanan et al. 2017): a boundary pixel of a class is a pixel of it with a 4-neighbour of another
    class. Near is within 0.75 % of the image diagonal, Euclidean, in pixels. Precision is the share of the predicted
    boundary pixels near to a true one of the same class, recall the share of the true ones near to a predicted one. F1
    is their harmonic mean. Ignored pixels neither make a boundary nor belong to one, in the prediction too.

    NaN for a class absent from the truth; 0 for a true class that is not predicted. Where neither side has a boundary
    pixel of a class that both hold (it fills the image), 1, and 0 where only one side has. The score of an image is the
    mean over the classes in its truth, `nanmean(1)`; that of a data set the mean over its images.

    Raises ValueError for a label outside the classes that is not `ignore_index`, naming it.
    """
    truth, ignored = true_classes(labels, masks, num_classes, ignore_index)
    n = len(labels)
    maps = torch.stack([labels, truth])  # (2, N, H, W): prediction, truth
    edges = borders(maps, ~ignored)
    height, width = masks.shape[-2:]
    radius2 = 9 * (height**2 + width**2) // 160_000  # 0.0075^2 = 9 / 160,000: whole numbers, so that ties are exact
    drawn, hits = matched(maps, edges, num_classes, radius2)
    size, shape = 2 * n * num_classes, (2, n, num_classes)
    offset = torch.arange(2 * n, device=maps.device).view(2, n, 1, 1) * num_classes
    pixels = (maps + offset).masked_fill_(ignored, size)
    held = torch.bincount(pixels.flatten(), minlength=size + 1)[:size].view(shape) > 0

    hits, drawn, held = map(for_float64, (hits, drawn, held))
    precision, recall = hits.double() / drawn  # NaN without a boundary pixel
    f1 = (2 * precision * recall / (precision + recall)).nan_to_num(0)
    f1[held.all(0) & (drawn == 0).all(0)] = 1
    f1[~held[1]] = torch.nan
    return f1


def matched(maps: Tensor, edges: Tensor, num_classes: int, radius2: int) -> tuple[Tensor, Tensor]:
    """Of the edge pixels of each map and class: how many there are, and how many have one of the other map near.

    `maps` (2, N, H, W) are classes of two maps of each image, `edges` (2, N, H, W) says which pixels are edges. Near is
    of the same class, and at most the root of `radius2` pixels away. Both counts are (2, N, C) int64.
    """
    side, image, row, column = edges.nonzero(as_tuple=True)
    classes, n = maps[side, image, row, column], maps.shape[1]
    met = torch.zeros_like(classes)
    # The edges of 31 classes at a time are the bits of one integer map, so one dilation does for all of them.
    for first in range(0, num_classes, 31):
        shift = classes - first
        here = (shift >= 0) & (shift < 31)
        bits = torch.zeros(maps.shape, dtype=torch.int32, device=maps.device)
        bits[side, image, row, column] = torch.where(here, 1 << shift.clamp(0, 30), 0).int()
        other = _dilate(bits, radius2)[1 - side, image, row, column]
        met += torch.where(here, (other >> shift.clamp(0, 30)) & 1, 0)
    group = (side * n + image) * num_classes + classes
    size, shape = 2 * n * num_classes, (2, n, num_classes)
    drawn = torch.bincount(group, minlength=size).view(shape)
    return drawn, torch.bincount(group[met.bool()], minlength=size).view(shape)


def borders(maps: Tensor, valid: Tensor) -> Tensor:
    """Where a valid pixel of maps (2, N, H, W) has a valid 4-neighbour of another class: bool of the same shape."""
    edges = torch.zeros_like(maps, dtype=torch.bool)
    for dim in (-2, -1):
        last = maps.shape[dim] - 1
        differ = maps.narrow(dim, 0, last) != maps.narrow(dim, 1, last)
        differ &= valid.narrow(dim, 0, last) & valid.narrow(dim, 1, last)
        edges.narrow(dim, 0, last).logical_or_(differ)
        edges.narrow(dim, 1, last).logical_or_(differ)
    return edges


def _dilate(bits: Tensor, radius2: int) -> Tensor:
    """Spreads the set bits of (..., H, W) integers over a disc whose squared radius is `radius2`."""
    height, width = bits.shape[-2:]
    out, spread, reach = torch.zeros_like(bits), bits.clone(), 0
    for down in range(min(math.isqrt(radius2), height - 1), -1, -1):  # the disc widens towards its middle row
        while reach < min(math.isqrt(radius2 - down**2), width - 1):
            reach += 1
            spread[..., reach:] |= bits[..., :-reach]
            spread[..., :-reach] |= bits[..., reach:]
        out[..., down:, :] |= spread[..., : height - down, :]
        out[..., : height - down, :] |= spread[..., down:, :]
    return out
