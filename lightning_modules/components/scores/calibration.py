"""Calibration: whether a network that gives its labels 80 % is right about 80 % of them, and whether its errors are
where it is least sure.

Guo, Pleiss, Sun, Weinberger 2017, "On calibration of modern neural networks" (arXiv:1706.04599), Sec. 2, with pixels
in the place of images.
"""

import torch
from torch import Tensor

from lightning_modules.components.float64 import for_float64
from lightning_modules.components.scores.confusion import predict_labels, true_classes
from lightning_modules.components.scores.reductions import BINS, FINEST, ODDS


def calibration(logits: Tensor, masks: Tensor, ignore_index: int, bins: int = BINS) -> Tensor:
    """Of each image's labelled pixels by confidence, which is the largest probability: (N, bins, 3) float64.

    Logits (N, C, H, W), masks (N, H, W). Bin b counts the pixels whose confidence is in (b / bins, (b + 1) / bins],
    then holds the sum of their confidences, and how many of their labels are right. Raises ValueError as
    `confusion_matrix`.
    """
    labels = predict_labels(logits)
    truth, ignored = true_classes(labels, masks, logits.shape[1], ignore_index)
    confidence = (-logits.float().logsumexp(1) + logits.float().amax(1)).exp()
    counts = []
    for image, right, kept in zip(confidence, labels == truth, ~ignored, strict=True):
        # On the CPU, where the order of a sum is the same every time.
        confident, hits = image[kept].cpu().double(), right[kept].cpu().double()
        place = (confident * bins).ceil().long().clamp(1, bins) - 1
        kinds = (torch.ones_like(confident), confident, hits)
        counts.append(torch.stack([torch.bincount(place, weights=kind, minlength=bins) for kind in kinds], -1))
    return torch.stack(counts).to(for_float64(masks).device)


def coverage(logits: Tensor, masks: Tensor, ignore_index: int) -> Tensor:
    """Of each image's labelled pixels by confidence: how many, and how many wrong, surest last: (N, `ODDS`, 2) int64.

    Logits (N, C, H, W), masks (N, H, W). Bin b holds odds, of the label against all others, from 2 to the power of
    b / 4 - `FINEST` on: nearly all pixels of a trained network lie between 99 and 100 %. Raises ValueError as
    `confusion_matrix`.
    """
    labels = predict_labels(logits)
    truth, ignored = true_classes(labels, masks, logits.shape[1], ignore_index)
    counts = []
    for image, of_image, wrong, kept in zip(logits, labels, labels != truth, ~ignored, strict=True):
        scores, label = image[:, kept].float(), of_image[kept][None]
        # Without the label's own probability: beside one of nearly 1, a float32 has no digit left for the others.
        others = (scores - scores.amax(0)).scatter(0, label, -torch.inf).exp().sum(0)
        place = (4 * (FINEST - others.clamp(min=2.0**-60).log2())).floor().long().clamp(0, ODDS - 1).cpu()
        kinds = (place, place[wrong[kept].cpu()])
        counts.append(torch.stack([torch.bincount(kind, minlength=ODDS) for kind in kinds], -1))
    return torch.stack(counts).to(masks.device)
