"""The effective receptive field: how much each pixel of the image moves a unit, not only whether it can.

Luo, Li, Urtasun, Zemel 2016, https://arxiv.org/abs/1701.04128: of the pixels within the theoretical field those in its
middle matter most, and the share of the field that matters shrinks with depth.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_modules.analysis.receptive_field import evaluating

CLASSES = 4  # whose logits are looked at: each takes a way back through the network
SHARE = 0.95  # of all influence, within the contour


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
