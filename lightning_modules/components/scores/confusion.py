"""Predicted labels and their confusion matrices.

Labels and masks are (N, H, W) integers, logits (N, C, H, W). Pixels whose mask is `ignore_index` count nowhere.
"""

import torch
from torch import Tensor

from lightning_modules.components.float64 import for_float64


def predict_labels(logits: Tensor) -> Tensor:
    """Logits (N, C, H, W) -> labels (N, H, W) int64: the class of the largest logit, the first one of a tie.

    NaN counts as -inf, on every device and in every memory format.
    """
    if logits.is_cuda or logits.stride(1) == 1:
        best, labels = logits.max(1)
    else:  # torch's search over the strided classes of an NCHW map costs about four times this running maximum on a CPU
        best, labels = logits[:, 0].clone(), torch.zeros_like(logits[:, 0], dtype=torch.int64)
        for index in range(1, logits.shape[1]):
            labels.masked_fill_(logits[:, index] > best, index)
            torch.maximum(best, logits[:, index], out=best)
    if best.isnan().any():  # the one search lets NaN win, the other lets it hide all classes behind it
        return predict_labels(logits.masked_fill(logits.isnan(), -torch.inf))
    return labels


def true_classes(labels: Tensor, masks: Tensor, num_classes: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """The masks with class 0 where ignored, and where that is; ValueError for other shapes or classes."""
    if labels.shape != masks.shape:
        raise ValueError(f"labels {tuple(labels.shape)} and masks {tuple(masks.shape)} must have the same shape")
    ignored = masks == ignore_index
    truth = masks.long().masked_fill(ignored, 0)
    for name, values in (("labels", labels), ("masks", truth)):
        if not values.numel():
            continue
        low, high = (int(v) for v in torch.aminmax(values))
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"{name} must hold classes 0 to {num_classes - 1} (masks also {ignore_index} where ignored), got "
                f"{low if low < 0 else high}: check num_classes, and that masks are class indices rather than colours"
            )
    return truth, ignored


def confusion_matrix(labels: Tensor, masks: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Pixels of each image by true class (row) and predicted class (column): (N, C, C) int64.

    Exact, and as fast and deterministic on every device: ignored pixels fall into one more bin of `torch.bincount`,
    which is thrown away, where selecting the others first would cost about six times as much.

    Raises ValueError for a label outside the classes that is not `ignore_index`, naming it.
    """
    truth, ignored = true_classes(labels, masks, num_classes, ignore_index)
    cells = num_classes**2
    pairs = (truth * num_classes + labels).masked_fill_(ignored, cells)
    counts = [torch.bincount(image.flatten(), minlength=cells + 1)[:cells] for image in pairs]
    return torch.stack(counts).view(-1, num_classes, num_classes)


def image_iou(labels: Tensor, masks: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """IoU of each class in each image alone: (N, C) float64, NaN for a class that the truth of the image lacks.

    Raises ValueError as `confusion_matrix`.
    """
    counts = for_float64(confusion_matrix(labels, masks, num_classes, ignore_index)).double()
    right, true, predicted = counts.diagonal(dim1=1, dim2=2), counts.sum(2), counts.sum(1)
    return (right / (true + predicted - right)).masked_fill(true == 0, torch.nan)
