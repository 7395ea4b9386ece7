"""Losses of logits (N, C, H, W) against masks (N, H, W), averaged over the pixels that are not `ignore_index`."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, masks: Tensor, ignore_index: int, class_weights: Tensor | None = None) -> Tensor:
    """Mean pixel-wise cross-entropy, each pixel counted by the weight of its true class.

    Zero, with zero gradient, for a batch without a labelled pixel, where torch's own mean is NaN. In float32 whatever
    the precision of the network: a float16 sum over the pixels of one image overflows.
    """
    total = F.cross_entropy(logits.float(), masks, class_weights, ignore_index=ignore_index, reduction="sum")
    labelled = masks != ignore_index
    if class_weights is None:
        return total / labelled.sum().clamp(min=1)
    weight = class_weights[torch.where(labelled, masks, 0)] * labelled
    return total / weight.sum().clamp(min=1e-12)


Loss = Callable[[Tensor, Tensor, int, Tensor | None], Tensor]
LOSSES: dict[str, Loss] = {"ce": cross_entropy}
