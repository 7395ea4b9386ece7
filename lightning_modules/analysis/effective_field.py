"""The effective receptive field: how much each pixel of the image moves a unit, not only whether it can.

Luo, Li, Urtasun, Zemel 2016, https://arxiv.org/abs/1701.04128: of the pixels within the theoretical field those in its
middle matter most, and the share of the field that matters shrinks with depth.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.analysis.receptive_field import evaluating

CLASSES = 2  # whose logits are looked at: each takes a way back through the network
SHARE = 0.95  # of all influence, within the contour
SMOOTH = 0.1  # of the side of the field: standard deviation of what smooths it


class Held(NamedTuple):
    """The smallest set of pixels that holds a share of the influence: all that have at least `level` of it."""

    level: float
    pixels: int

    @property
    def side(self) -> float:
        """Of a square of so many pixels, to be compared with the side of the theoretical field."""
        return math.sqrt(self.pixels)


def effective_field(network: nn.Module, images: Tensor, pixel: tuple[int, int]) -> Tensor:
    """Images (N, C, H, W) -> the share (H, W) of each of their pixels in what moves the logits at `pixel`, row first.

    The share is that of |d logit / d pixel|, summed over the channels of the image and over the `CLASSES` highest
    logits there, and averaged over the images, each of which counts the same. Classes are not summed before the
    derivative: logits of two classes mirror each other after a training, and their sum moves with nothing.

    The shares add up to 1; they are all 0 where no pixel moves the logits, as with scores that start at 0. The network
    evaluates meanwhile.
    """
    row, column = pixel
    total = torch.zeros(images.shape[2:], dtype=torch.float64, device=images.device)
    with evaluating(network), torch.enable_grad():
        for image in images:
            seen = image[None].detach().clone().requires_grad_()
            logits = network(seen)[0, :, row, column]
            moved = torch.zeros_like(total)
            for logit in logits.topk(min(CLASSES, len(logits))).values:
                if logit.requires_grad:
                    (gradient,) = torch.autograd.grad(logit, seen, retain_graph=True, allow_unused=True)
                    moved += 0 if gradient is None else gradient[0].abs().sum(0, dtype=torch.float64)
            total += moved / moved.sum() if moved.any() else 0
    return total / total.sum() if total.any() else total


def held(field: Tensor, share: float = SHARE) -> Held:
    """What of an effective field (H, W) holds `share` of it; ValueError for a field that is 0 everywhere."""
    values = field.flatten().sort(descending=True).values
    if not values[0] > 0:
        raise ValueError("field must hold influence, got 0 at every pixel: nothing there moves the unit")
    enough = int((values.cumsum(0) < share * values.sum()).sum())  # index of the first pixel with which it is
    level = float(values[min(enough, len(values) - 1)])
    return Held(level, int((values >= level).sum()))


def smoothed(field: Tensor) -> Tensor:
    """An effective field (H, W) under a Gaussian of `SMOOTH` times its side, mirrored at the border.

    Of few images neighbouring pixels differ by chance, and the contour of what is `held` would fray into single ones.
    The sum stays; a field of a few pixels stays as it is, in effect.
    """
    sigma = SMOOTH * held(field).side
    for axis in (0, 1):
        reach = min(math.ceil(3 * sigma), field.shape[axis] - 1)
        weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=field.dtype) / sigma) ** 2)
        lines = field.movedim(axis, 1)[:, None]  # each line is a signal of its own
        padded = torch.cat([lines[..., :reach].flip(-1), lines, lines[..., lines.shape[-1] - reach :].flip(-1)], -1)
        field = F.conv1d(padded, (weights / weights.sum())[None, None])[:, 0].movedim(1, axis)
    return field
