"""Segments that a prediction misses altogether, and segments that it makes up.

Rottmann et al. 2020, "Prediction error meta classification in semantic segmentation" (arXiv:1811.00648): a segment
whose IoU is 0 is a false positive if predicted, and overlooked if true. A score over pixels hardly sees small ones.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from lightning_modules.components.scores.confusion import true_classes
from lightning_modules.components.scores.reductions import HALLUCINATED, MISSED, PREDICTED, TRUE

EIGHT = np.ones((3, 3))  # a pixel's neighbours are the eight around it


def segments(labels: Tensor, masks: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Segments of each image and class, 8-connected components: (N, C, 4) int64.

    Labels and masks are (N, H, W) integers. The four are: true segments; those of them without a pixel that was given
    the class; predicted segments; those of them without a pixel of the class. A predicted segment may run through
    ignored pixels, and counts nowhere if it lies in them alone. Raises ValueError as `confusion_matrix`.
    """
    truth, ignored = true_classes(labels, masks, num_classes, ignore_index)
    counts = np.zeros((len(labels), num_classes, 4), dtype=np.int64)
    images = (x.cpu().numpy() for x in (truth.masked_fill(ignored, -1).int(), labels.int()))
    for count, true, predicted in zip(counts, *images, strict=True):
        hit = true == predicted
        count[:, TRUE], count[:, MISSED] = _components(true, true >= 0, hit, num_classes)
        count[:, PREDICTED], count[:, HALLUCINATED] = _components(predicted, true >= 0, hit, num_classes)
    return torch.from_numpy(counts).to(masks.device)


def _components(
    classes: NDArray[np.int32], labelled: NDArray[np.bool_], hit: NDArray[np.bool_], num_classes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each class in a map (H, W), -1 for none: components with a labelled pixel, and those of them without a hit."""
    number, without = np.zeros((2, num_classes), dtype=np.int64)
    for index, box in enumerate(ndimage.find_objects(classes + 1)):
        if box is None:
            continue
        component, count = ndimage.label(classes[box] == index, EIGHT)
        sizes, hits = (np.bincount(component[mask[box]], minlength=count + 1)[1:] for mask in (labelled, hit))
        number[index], without[index] = np.count_nonzero(sizes), np.count_nonzero((sizes > 0) & (hits == 0))
    return number, without
