"""Scores collected over the batches and devices of an epoch."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_modules.components.float64 import for_float64
from lightning_modules.components.scores.confusion import confusion_matrix


class ConfusionMatrix(Metric):
    """Sum of `confusion_matrix` over all images of all devices: (C, C) int64, exact beyond the 2^24 of a float32."""

    full_state_update = False
    confusion: Tensor

    def __init__(self, num_classes: int, ignore_index: int) -> None:
        super().__init__()
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.add_state("confusion", torch.zeros(num_classes, num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, labels: Tensor, masks: Tensor) -> None:
        counts = confusion_matrix(labels, masks, self.num_classes, self.ignore_index).sum(0)
        self.confusion = self.confusion + counts  # not in place: what compute() returned stays as it was

    def compute(self) -> Tensor:
        return self.confusion


class _Mean(Metric):
    """A float64 sum and how many it is of, over all devices; a module in half precision may convert the sum in between.

    It stays on the CPU where the device has no float64.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = ()) -> nn.Module:
        moved = fn(torch.empty(0))
        return super()._apply(fn, exclude_state) if for_float64(moved).device == moved.device else self

    def compute(self) -> Tensor:
        """Float64 scalar, NaN of nothing."""
        return self.total / self.count


class ImageMean(_Mean):
    """Mean over images of a score per image; NaN marks an image without a score, which counts nowhere."""

    def update(self, values: Tensor) -> None:
        values = for_float64(values)
        self.total = self.total.double() + values.double().nansum()
        self.count += (~values.isnan()).sum()


class LossMean(_Mean):
    """Mean loss of the images of an epoch; unlike a score, a loss that is NaN makes it NaN."""

    def update(self, total: Tensor | float, count: int) -> None:
        """`total` is the sum of the losses of `count` images."""
        total = for_float64(total) if isinstance(total, Tensor) else total
        self.total = self.total.double() + torch.as_tensor(total, dtype=torch.float64, device=self.total.device)
        self.count += count

    def sums(self) -> tuple[float, int]:
        """Total and count over all devices, which all have to ask: what a checkpoint within an epoch holds."""
        with self.sync_context(should_sync=self._to_sync):
            return float(self.total), int(self.count)
