"""Confusion matrices of predicted labels, and the scores that are read from them.

Labels and masks are (N, H, W) integers, logits (N, C, H, W). Pixels whose mask is `ignore_index` count nowhere.
"""

import numpy as np
import torch
from torch import Tensor


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


def scores(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Scores in [0, 1] of confusion matrices (..., C, C), rows truth and columns prediction, as float64.

    Per class (..., C), with t true pixels, p predicted and h right: `iou` h / (t + p - h), `dice` 2h / (t + p), `acc`
    h / t. Their means (...): `miou`, `mdice`, `macc`. Over pixels (...): `pixel_acc` and `fwiou`, the IoU weighted by
    t.

    A class absent from both truth and prediction is NaN and left out of the mean; one that is only predicted has IoU
    and Dice 0 and no accuracy. Without a labelled pixel everything is NaN.
    """
    counts = confusion.astype(np.float64)  # exact up to 2^53 pixels
    right = np.diagonal(counts, axis1=-2, axis2=-1)
    true, predicted = counts.sum(-1), counts.sum(-2)
    pixels = true.sum(-1)
    iou = _ratio(right, true + predicted - right)
    dice = _ratio(2 * right, true + predicted)
    acc = _ratio(right, true)
    return {
        "iou": iou,
        "dice": dice,
        "acc": acc,
        "miou": _mean_of_present(iou),
        "mdice": _mean_of_present(dice),
        "macc": _mean_of_present(acc),
        "pixel_acc": _ratio(right.sum(-1), pixels),
        "fwiou": _ratio(np.nansum(true * iou, -1), pixels),
    }


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.full_like(a, np.nan), where=b > 0)


def _mean_of_present(values: np.ndarray) -> np.ndarray:
    return _ratio(np.nansum(values, -1), (~np.isnan(values)).sum(-1).astype(np.float64))
