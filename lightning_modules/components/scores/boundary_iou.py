"""Boundary IoU: the IoU of what lies near the outlines, which the inside of a large object cannot hide."""

import math

import torch
from torch import Tensor

from lightning_modules.components.scores.confusion import true_classes


def boundary_iou(labels: Tensor, masks: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Intersection and union, in pixels, of what lies near the outlines of each class: (N, C, 2) int64.

    Cheng, Girshick, Dollár, Berg, Kirillov 2021, "Boundary IoU" (arXiv:2103.16562), with the authors' distance:
    2 % of the image diagonal, rounded, at least a pixel, along rows, columns and diagonals alike. A pixel of a class is
    near its outline if another class, or the outside of the image, is at most as far away.

    Ignored pixels belong to no class, and make no outline, in the prediction too. The IoU of a class is that of the
    sums over all images, as in mIoU. Raises ValueError as `confusion_matrix`.
    """
    truth, ignored = true_classes(labels, masks, num_classes, ignore_index)
    maps = torch.stack([labels, truth])  # (2, N, H, W)
    near = _near_outline(maps.int(), ~ignored)
    n = len(labels)
    classes = maps + (torch.arange(n, device=maps.device) * num_classes).view(1, n, 1, 1)
    both = near.all(0) & (labels == truth)
    counts = [torch.bincount(classes[i][kept], minlength=n * num_classes) for i, kept in ((0, near[0]), (1, near[1]))]
    shared = torch.bincount(classes[1][both], minlength=n * num_classes)
    return torch.stack([shared, counts[0] + counts[1] - shared], -1).view(n, num_classes, 2)


def distance(height: int, width: int) -> int:
    """Pixels from an outline that count as near it, in an image of this size."""
    return max(1, round(0.02 * math.hypot(height, width)))


def _near_outline(maps: Tensor, valid: Tensor) -> Tensor:
    """Where a valid pixel of maps (2, N, H, W) is near a valid one of another class or the border of the image."""
    reach = distance(*maps.shape[-2:])
    beyond = int(maps.max()) + 1 if maps.numel() else 1
    high, low = maps.masked_fill(~valid, -1), maps.masked_fill(~valid, beyond).neg()
    for dim in (-2, -1):
        high, low = _largest(high, reach, dim), _largest(low, reach, dim)
    near = (high > maps) | (low.neg() < maps)
    for dim in (-2, -1):
        side = maps.shape[dim]
        for first in (0, max(0, side - reach)):
            near.narrow(dim, first, min(reach, side)).fill_(True)
    return near & valid


def _largest(values: Tensor, reach: int, dim: int) -> Tensor:
    """The largest of the 2 `reach` + 1 values around each along a dimension.

    Windows of two, four, eight values and so on, so that the work grows with the logarithm of the window.
    """
    shape = list(values.shape)
    shape[dim] = reach
    beyond = values.new_full(shape, torch.iinfo(values.dtype).min)
    out, window = torch.cat([beyond, values, beyond], dim), 1
    while window < 2 * reach + 1:
        step = min(window, 2 * reach + 1 - window)
        kept = out.shape[dim] - step
        out = torch.maximum(out.narrow(dim, 0, kept), out.narrow(dim, step, kept))
        window += step
    return out
