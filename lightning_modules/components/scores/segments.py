"""Segments that a prediction misses altogether, segments that it makes up, and how well it finds those of a size.

Rottmann et al. 2020, "Prediction error meta classification in semantic segmentation" (arXiv:1811.00648): a segment
whose IoU is 0 is a false positive if predicted, and overlooked if true. A score over pixels hardly sees small ones.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from lightning_modules.components.float64 import for_float64
from lightning_modules.components.scores.confusion import true_classes
from lightning_modules.components.scores.reductions import HALLUCINATED, LARGER, MISSED, PREDICTED, TRUE

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


def iou_by_size(labels: Tensor, masks: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """IoU of the true segments of each image, small, medium and large ones apart: (N, C, 3, 2) float64.

    The last two are how many segments there are, and the sum of their IoU. That of a segment is the adjusted one of
    Chan et al. 2021, "SegmentMeIfYouCan" (arXiv:2104.14812): its pixels that got its class, over all of them and those
    of the predicted segments that touch it. What of these lies in other true segments of the class is left out.

    A segment is `LARGER` or smaller by its share of the image, the sizes of COCO at 640 x 480. Ignored pixels count
    nowhere, and neither cut a predicted segment nor end it. Raises ValueError as `confusion_matrix`.
    """
    truth, ignored = true_classes(labels, masks, num_classes, ignore_index)
    sums = np.zeros((len(labels), num_classes, len(LARGER) + 1, 2))
    images = (x.cpu().numpy() for x in (truth.masked_fill(ignored, -1).int(), labels.int()))
    for of_image, true, predicted in zip(sums, *images, strict=True):
        given = ndimage.find_objects(predicted + 1, max_label=num_classes)
        for index, box in enumerate(ndimage.find_objects(true + 1, max_label=num_classes)):
            if box is None:
                continue
            # Large enough for every predicted segment of the class too, which may reach beyond the true ones.
            box = box if given[index] is None else tuple(map(_around, box, given[index]))
            area, iou = _segment_ious(true[box] == index, predicted[box] == index, true[box] >= 0)
            size = np.digitize(area, [share * true.size for share in LARGER])
            for place, value in zip(size, iou, strict=True):
                of_image[index, place] += 1, value
    return torch.from_numpy(sums).to(for_float64(masks).device)


def _around(one: slice, other: slice) -> slice:
    return slice(min(one.start, other.start), max(one.stop, other.stop))


def _segment_ious(
    true: NDArray[np.bool_], predicted: NDArray[np.bool_], labelled: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Area and IoU of each true segment of a class, whose pixels are `true` and whose predicted ones `predicted`."""
    (segment, count), (given, number) = ndimage.label(true, EIGHT), ndimage.label(predicted, EIGHT)
    area = np.bincount(segment.ravel(), minlength=count + 1)
    hit = true & predicted
    hits = np.bincount(segment[hit], minlength=count + 1)
    beyond = np.bincount(given[labelled & ~true], minlength=number + 1)  # pixels of each that are of no true segment
    # Each true segment with each predicted one that touches it, once.
    touching, touched = np.divmod(np.unique(segment[hit].astype(np.int64) * (number + 1) + given[hit]), number + 1)
    extra = np.bincount(touching, beyond[touched], minlength=count + 1)
    return area[1:], hits[1:] / (area + extra)[1:]
