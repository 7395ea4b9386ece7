"""Losses of logits (N, C, H, W) against masks (N, H, W) of classes and `ignore_index`, as a scalar.

Each of them promises:
- a pixel that is `ignore_index` changes neither value nor gradient;
- a batch without a labelled pixel costs exactly zero, with zero gradient;
- float32 is used whatever the precision of the network, because a float16 sum over the pixels of one image overflows.

`class_weights` (C,) weigh each pixel by its true class in the losses of pixels ("ce", "ce_sum", "ce_per_pixel",
"focal", "ce_border"), and each class in the losses of regions ("dice", "jaccard", "lovasz"). A class of weight 0 has no
term of its own; its pixels still are wrong answers of the other classes in the losses of regions, which see each class
against all others.

The losses of regions take the pixels of a batch together and average over the classes that its masks hold. They are not
sums over pixels: accumulated batches or several devices train on the mean of their parts' losses.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from lightning_modules.components.blocks import wide

Loss = Callable[[Tensor, Tensor, int, Tensor | None], Tensor]
TINY = 1e-12  # in the place of a sum of weights that is 0

BORDER_WEIGHT, BORDER_SIGMA = 10.0, 5.0  # w0 and sigma, in pixels, of U-Net (Ronneberger et al. 2015), Sec. 3


def cross_entropy(logits: Tensor, masks: Tensor, ignore_index: int, class_weights: Tensor | None = None) -> Tensor:
    """Mean over the labelled pixels, each counted by the weight of its true class."""
    weights = _pixel_weights(masks, ignore_index, class_weights)
    return (weights * _entropy(logits, masks, ignore_index)).sum() / weights.sum().clamp(min=TINY)


def cross_entropy_sum(logits: Tensor, masks: Tensor, ignore_index: int, class_weights: Tensor | None = None) -> Tensor:
    """Sum over the labelled pixels of an image, mean over the images: FCN's unnormalised loss.

    Caffe's `normalize: false` divides by the number of images too. FCN trains on one at a time: there it is the sum.
    """
    weights = _pixel_weights(masks, ignore_index, class_weights)
    return (weights * _entropy(logits, masks, ignore_index)).sum() / len(masks)


def cross_entropy_per_pixel(
    logits: Tensor, masks: Tensor, ignore_index: int, class_weights: Tensor | None = None
) -> Tensor:
    """Sum over the labelled pixels, each times the weight of its true class, over their number: SegNet's loss.

    caffe-segnet divides by the count of labelled pixels (`softmax_loss_layer.cpp`), whatever their weights.
    Median-frequency weights are below 1 for most pixels, so that it is smaller than `cross_entropy`: 0.48 times for
    those that SegNet gives CamVid's classes.
    """
    weights = _pixel_weights(masks, ignore_index, class_weights)
    labelled = (masks != ignore_index).sum()
    return (weights * _entropy(logits, masks, ignore_index)).sum() / labelled.clamp(min=1)


def focal(
    logits: Tensor, masks: Tensor, ignore_index: int, class_weights: Tensor | None = None, *, gamma: float = 2.0
) -> Tensor:
    """-(1 - p)^gamma log p of the true class's probability p, averaged as `cross_entropy`, which it is for gamma 0.

    Lin et al. 2017, https://arxiv.org/abs/1708.02002, Eq. 4, with a softmax, where their detector has a sigmoid for
    each class (as has smp's FocalLoss): so that the one thing which differs from cross-entropy is the factor.
    """
    weights = _pixel_weights(masks, ignore_index, class_weights)
    entropy = _entropy(logits, masks, ignore_index)
    factor = (1 - torch.exp(-entropy)) ** gamma
    return (weights * factor * entropy).sum() / weights.sum().clamp(min=TINY)


def dice(logits: Tensor, masks: Tensor, ignore_index: int, class_weights: Tensor | None = None) -> Tensor:
    """1 - 2 sum(p t) / (sum(p) + sum(t)) of each class, p its softmax and t its truth at the labelled pixels."""
    from segmentation_models_pytorch.losses import DiceLoss  # a third of the start of a run that has no such loss

    return _overlap(DiceLoss, logits, masks, ignore_index, class_weights)


def jaccard(logits: Tensor, masks: Tensor, ignore_index: int, class_weights: Tensor | None = None) -> Tensor:
    """1 - I / (sum(p) + sum(t) - I) of each class, I = sum(p t)."""
    from segmentation_models_pytorch.losses import JaccardLoss

    return _overlap(JaccardLoss, logits, masks, ignore_index, class_weights)


def lovasz(logits: Tensor, masks: Tensor, ignore_index: int, class_weights: Tensor | None = None) -> Tensor:
    """Lovasz-softmax: the Jaccard loss of label maps, extended to probabilities by interpolation.

    Berman et al. 2018, https://arxiv.org/abs/1705.08790. smp's has no class weights, and for a batch without labels it
    is no scalar.
    """
    probabilities = wide(logits).softmax(1).transpose(0, 1).flatten(1)  # (C, pixels)
    labels, ignored = masks.flatten(), masks.flatten() == ignore_index
    truth = (labels == torch.arange(len(probabilities), device=labels.device)[:, None]) & ~ignored
    # An ignored pixel has no error: it comes after all that have one, and its step is multiplied by zero.
    errors = (truth.to(probabilities) - probabilities).abs().masked_fill(ignored, 0)
    order = errors.detach().argsort(dim=1, descending=True)
    hits = truth.gather(1, order).cumsum(1)  # whole numbers: exact, and deterministic on every device
    false = torch.arange(1, hits.shape[1] + 1, device=hits.device) - hits
    total = truth.sum(1, keepdim=True)
    index = 1 - (total - hits) / (total + false).to(probabilities)  # Jaccard loss of the first pixels of the order
    steps = torch.empty_like(index).scatter_(1, order, index.diff(dim=1, prepend=torch.zeros_like(total)))
    weights = _present(masks, ignore_index, class_weights, logits.shape[1])
    return (weights * (errors * steps).sum(1)).sum() / weights.sum().clamp(min=TINY)


def border_cross_entropy(
    logits: Tensor, masks: Tensor, ignore_index: int, class_weights: Tensor | None = None
) -> Tensor:
    """Cross-entropy weighted by class and, more, in the gaps between two objects: U-Net, Sec. 3, Eq. 1 and 2.

    The sum over the pixels is divided by the sum of their class weights, as in `cross_entropy`, so that a learning rate
    suits both. See `border_weights` for the gaps, and for what it costs.
    """
    weights = _pixel_weights(masks, ignore_index, class_weights)
    border = border_weights(masks, ignore_index).masked_fill(weights == 0, 0)
    return ((weights + border) * _entropy(logits, masks, ignore_index)).sum() / weights.sum().clamp(min=TINY)


def border_weights(masks: Tensor, ignore_index: int) -> Tensor:
    """w0 exp(-(d1 + d2)^2 / (2 sigma^2)) of U-Net, Eq. 2, for masks (N, H, W): float32 of the same shape.

    d1 and d2 are a pixel's distances to the nearest and the second nearest object. The paper's objects are cells on a
    background. Here they are, for each pixel, the 4-connected regions of all classes other than its own, so that no
    label has to be the background. Membrane between two cells is a gap, be it labelled 0 or 1. A narrow part of a cell
    between two regions of background is one too, in which the paper sees none. Inside a cell with one neighbour the
    weight is 0, where the equation taken at its word, with d1 = 0, has up to 9.2, two pixels away from that neighbour.

    Computed on the CPU, about 0.1 s for 512 x 512 pixels with a hundred cells, because a crop is new in every step.
    """
    gaps = torch.from_numpy(np.stack([_gaps(mask, ignore_index) for mask in masks.cpu().numpy()]))
    return BORDER_WEIGHT * torch.exp(-(gaps.to(masks.device) ** 2) / (2 * BORDER_SIGMA**2))


def _gaps(mask: np.ndarray, ignore_index: int) -> np.ndarray:
    """d1 + d2 of a mask (H, W) in pixels, float32, infinite where it makes no difference."""
    reach = math.ceil(6 * BORDER_SIGMA)  # w0 exp(-18) = 1.5e-7: nothing beside the 1 it is added to in float32
    nearest = np.full((2, *mask.shape), np.inf, dtype=np.float32)
    for label in np.unique(mask[mask != ignore_index]):
        regions, _ = ndimage.label(mask == label)
        for number, box in enumerate(ndimage.find_objects(regions), start=1):
            window = tuple(slice(max(side.start - reach, 0), side.stop + reach) for side in box)
            distance = ndimage.distance_transform_edt(regions[window] != number).astype(np.float32)
            distance[mask[window] == label] = np.inf
            first, second = nearest[0][window], nearest[1][window]
            np.minimum(second, np.maximum(first, distance), out=second)
            np.minimum(first, distance, out=first)
    return np.asarray(nearest.sum(0))


def median_frequency_weights(pixels: Tensor, pixels_of_images: Tensor) -> Tensor:
    """Weights (C,) float32 that balance classes: the median of all frequencies over the frequency of each.

    The frequency of a class is `pixels`, its number, over `pixels_of_images`, the number of all labelled pixels in the
    images that hold it. The median is over the classes that occur, of an even number the mean of the middle two;
    a class that does not occur gets weight 0, as nothing can be learned of it.

    Eigen and Fergus 2015, https://arxiv.org/abs/1411.4734; used by SegNet, https://arxiv.org/abs/1511.00561.
    """
    occurs = pixels > 0
    if not occurs.any():
        raise ValueError("class_weights='median-frequency' needs training masks with at least one labelled pixel")
    frequency = pixels.double() / pixels_of_images.clamp(min=1)
    return torch.where(occurs, frequency[occurs].quantile(0.5) / frequency, 0).float()


def _pixel_weights(masks: Tensor, ignore_index: int, class_weights: Tensor | None) -> Tensor:
    """The weight of each pixel's true class (N, H, W), 1 without `class_weights`, 0 where ignored."""
    labelled = masks != ignore_index
    if class_weights is None:
        return labelled.float()
    return wide(class_weights)[torch.where(labelled, masks, 0)] * labelled


def _entropy(logits: Tensor, masks: Tensor, ignore_index: int) -> Tensor:
    """-log p of each pixel's true class (N, H, W), 0 where ignored."""
    # not reduction="sum", which on CUDA adds in no fixed order and raises under deterministic algorithms
    return F.cross_entropy(wide(logits), masks, ignore_index=ignore_index, reduction="none")


def _present(masks: Tensor, ignore_index: int, class_weights: Tensor | None, num_classes: int) -> Tensor:
    """The weight of each class (C,) that the masks hold, 0 for the others."""
    pixels = torch.bincount(masks[masks != ignore_index], minlength=num_classes)
    if len(pixels) > num_classes:
        raise ValueError(
            f"masks must hold classes 0 to {num_classes - 1}, or {ignore_index} where ignored, got {len(pixels) - 1}: "
            "set num_classes and ignore_index to those of the data"
        )
    present = (pixels > 0).float()
    return present if class_weights is None else present * class_weights


def _overlap(
    kind: Callable[..., Any],
    logits: Tensor,
    masks: Tensor,
    ignore_index: int,
    class_weights: Tensor | None,
) -> Tensor:
    """smp's loss, right on ignored pixels, averaged over the classes in the masks: smp counts the others as perfect."""
    weights = _present(masks, ignore_index, class_weights, logits.shape[1])
    if not weights.any():
        return wide(logits[:0]).sum()
    loss: Tensor = kind("multiclass", ignore_index=ignore_index, class_weights=weights)(wide(logits), masks)
    return loss


LossName = Literal[
    "ce",
    "ce_sum",
    "ce_per_pixel",
    "focal",
    "dice",
    "jaccard",
    "lovasz",
    "ce_border",
]
LOSSES: dict[LossName, Loss] = {
    "ce": cross_entropy,
    "ce_sum": cross_entropy_sum,
    "ce_per_pixel": cross_entropy_per_pixel,
    "focal": focal,
    "dice": dice,
    "jaccard": jaccard,
    "lovasz": lovasz,
    "ce_border": border_cross_entropy,
}


def _weight(masks: Tensor, ignore_index: int, class_weights: Tensor | None) -> Tensor:
    return _pixel_weights(masks, ignore_index, class_weights).sum()


def _labelled(masks: Tensor, ignore_index: int, class_weights: Tensor | None) -> Tensor:
    return (masks != ignore_index).sum().float()


# What the losses that are sums over pixels divide by: see `whole_step`. "ce_sum" divides by the number of images.
DENOMINATORS: dict[str, Callable[[Tensor, int, Tensor | None], Tensor]] = {
    "ce": _weight,
    "ce_per_pixel": _labelled,
    "focal": _weight,
    "ce_border": _weight,
}
