"""Calibration: whether a network that gives its labels 80 % is right about 80 % of them.

Guo, Pleiss, Sun, Weinberger 2017, "On calibration of modern neural networks" (arXiv:1706.04599), Sec. 2, with pixels
in the place of images.
"""

import torch
from torch import Tensor

from lightning_modules.components.float64 import for_float64
from lightning_modules.components.scores.confusion import predict_labels, true_classes
from lightning_modules.components.scores.reductions import BINS


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
