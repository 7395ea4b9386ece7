"""A step in several parts, over devices or accumulated batches: its gradient is that of the whole batch's loss."""

from collections.abc import Iterable

import torch
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor

from lightning_modules.components.losses import DENOMINATORS, TINY


class WholeStep:
    """Turns the mean of the parts' means into the mean over all labelled pixels, for losses that divide by a sum.

    Trainers average the gradients of the parts. Where these have unequally many labelled pixels, the pixels of one
    would count for more than those of another, and the number of devices would change the result. The losses of regions
    are no sums over pixels: their parts' mean is what is trained on.
    """

    def __init__(self, loss: str) -> None:
        self._denominator = DENOMINATORS.get(loss)
        self._total: Tensor | None = None  # of the denominators of this step's parts, as shares of their pixels

    def part(self, loss: Tensor, masks: Tensor, ignore_index: int, class_weights: Tensor | None) -> Tensor:
        """What to take the gradient of for one part: its loss times its denominator, a share of its pixels."""
        if self._denominator is None:
            return loss
        share = self._denominator(masks, ignore_index, class_weights) / masks.numel()
        self._total = share if self._total is None else self._total + share
        return loss * share

    def complete(self, parameters: Iterable[Tensor], parts: int) -> None:
        """Divides the averaged gradients by the mean share of all `parts`, once each device has had its own."""
        if (total := self._total) is None:
            return
        self._total = None
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(total := total.clone())
        factor = parts / total.clamp(min=TINY)
        with torch.no_grad():
            for gradient in (parameter.grad for parameter in parameters if parameter.grad is not None):
                mine = gradient.to_local() if isinstance(gradient, DTensor) else gradient
                mine.mul_(factor.to(mine.dtype))
