"""The scores of images, and what is collected of them over the batches and devices of an epoch."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_modules.components.float64 import for_float64
from lightning_modules.components.scores.confusion import predict_labels
from lightning_modules.components.scores.table import PER_IMAGE, Predicted


class ConfusionMatrix(Metric):
    """Sum of `confusion_matrix` over all images of all devices: (C, C) int64, exact beyond the 2^24 of a float32."""

    full_state_update = False
    confusion: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.add_state("confusion", torch.zeros(num_classes, num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, of_images: Tensor) -> None:
        """`of_images` are those (N, C, C) of a batch."""
        self.confusion = self.confusion + of_images.sum(0)  # not in place: what compute() returned stays as it was

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
        self.count = self.count + (~values.isnan()).sum()  # not in place: `validate` leaves tensors of inference mode


class LossMean(_Mean):
    """Mean loss of the images of an epoch; unlike a score, a loss that is NaN makes it NaN."""

    def update(self, total: Tensor | float, count: int) -> None:
        """`total` is the sum of the losses of `count` images."""
        total = for_float64(total) if isinstance(total, Tensor) else total
        self.total = self.total.double() + torch.as_tensor(total, dtype=torch.float64, device=self.total.device)
        self.count = self.count + count

    def sums(self) -> tuple[float, int]:
        """Total and count over all devices, which all have to ask: what a checkpoint within an epoch holds."""
        with self.sync_context(should_sync=self._to_sync):
            return float(self.total), int(self.count)


class Scores(nn.Module):
    """What one split is scored by: a confusion matrix over all its pixels, and means over its images.

    `detailed`: of each image also its logits, and the scores of `PER_IMAGE` that are stored of the test split alone.
    """

    def __init__(self, num_classes: int, ignore_index: int, *, detailed: bool = False) -> None:
        super().__init__()
        self.num_classes, self.ignore_index, self.detailed = num_classes, ignore_index, detailed
        scored = {name: s for name, s in PER_IMAGE.items() if s.applies(num_classes, detailed=detailed)}
        # The detailed ones by name, so that the order of a report's columns moves no byte of a stored file.
        self.names = sorted(scored, key=lambda name: (scored[name].detailed, name if scored[name].detailed else ""))
        self.confusion = ConfusionMatrix(num_classes)
        self.means: dict[str, ImageMean] = {}
        for name in ("loss", *(name for name in self.names if scored[name].mean)):
            self.add_mean(name)

    def add_mean(self, name: str) -> None:
        """One more mean, which is logged by this name, of what an architecture updates it with itself."""
        self.means[name] = ImageMean()
        self.add_module(name, self.means[name])

    def update(self, logits: Tensor, masks: Tensor, losses: Tensor) -> dict[str, Tensor]:
        """Logits (N, C, H, W), masks (N, H, W) and losses (N,) -> each image's labels and scores, by name.

        Where a mask has no label the logits may be NaN or infinite; an image without any label counts in no mean.
        """
        batch = Predicted(logits, predict_labels(logits), masks, self.num_classes, self.ignore_index)
        of_images = {name: PER_IMAGE[name].compute(batch) for name in self.names}
        unlabelled = for_float64((masks == self.ignore_index).flatten(1).all(1))  # where the scores are
        self.confusion.update(of_images["confusion"])
        self.means["loss"].update(for_float64(losses).double().masked_fill(unlabelled, torch.nan))
        for name in self.names:
            if (of_image := PER_IMAGE[name].mean) is not None:
                self.means[name].update(of_image(of_images[name]).masked_fill(unlabelled, torch.nan))
        return {"labels": batch.labels, **of_images} | ({"logits": logits} if self.detailed else {})

    def reset(self) -> None:
        for metric in (self.confusion, *self.means.values()):
            metric.reset()
