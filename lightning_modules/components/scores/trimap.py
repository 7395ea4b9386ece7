"""The trimap: scores of the pixels near true boundaries alone, by their distance from them.

Kohli, Ladicky, Torr 2009, "Robust higher order potentials for enforcing label consistency": a CRF sharpens outlines,
which few pixels lie on, so that a score over all pixels hides what it does. DeepLab (v1, Sec. 5) draws mean IoU
against the width of the band.

Departs from DeepLab in where the band lies. Theirs is around the pixels annotated as "void", which separate most
objects of its data; here it is around the boundaries of the classes themselves, because other data have no such pixels.
"""

import math

import torch
from torch import Tensor

from lightning_modules.components.scores.confusion import true_classes
from lightning_modules.components.scores.reductions import WIDTH


def trimap(labels: Tensor, masks: Tensor, num_classes: int, ignore_index: int, width: int = WIDTH) -> Tensor:
    """Confusion matrices of each image's bands along true boundaries: (N, width, C, C) int64, rows the truth.

    Labels and masks are (N, H, W) integers. The distance of a pixel is the Euclidean one to the nearest pixel of
    another class, centre to centre. Band b = 0 to width - 1 counts the pixels whose distance is in (b, b + 1] pixels;
    band 0 is the two sides of a straight boundary. Pixels farther than `width` are in none: the sum of the first w
    bands is the trimap of width w. Ignored pixels neither count nor make a boundary; across them two classes are as far
    apart as they are.

    Raises ValueError for a label outside the classes that is not `ignore_index`, naming it.
    """
    if width < 1:
        raise ValueError(f"width must be at least 1 pixel, got {width}")
    truth, ignored = true_classes(labels, masks, num_classes, ignore_index)
    squared = _squared_distance(truth.int().masked_fill_(ignored, -1), width)
    bands = [math.isqrt(d - 1) if d else width for d in range(width**2 + 1)] + [width]  # exact, by squared distance
    band = torch.tensor(bands, device=masks.device)[squared]
    cells = width * num_classes**2
    place = (band * num_classes + truth) * num_classes + labels
    place.masked_fill_(ignored | (band == width), cells)
    counts = [torch.bincount(image.flatten(), minlength=cells + 1)[:cells] for image in place]
    return torch.stack(counts).view(-1, width, num_classes, num_classes)


def _squared_distance(classes: Tensor, width: int) -> Tensor:
    """Of each pixel of maps (N, H, W), to the nearest one of another class: int32, width^2 + 1 where that is farther.

    Classes are int32, -1 where ignored. Separable, as for one set of pixels (Meijster et al. 2000): a row answers "how
    far along you is another class than c" for every c by its nearest class and the nearest beside that one, and each
    pixel asks the rows around. Whole numbers, so exact.
    """
    far, height = width**2 + 1, classes.shape[-2]
    left, right = _before(classes, width), [x.flip(-1) for x in _before(classes.flip(-1), width)]
    nearest_class = torch.where(left[0] <= right[0], left[1], right[1])
    other_side = torch.maximum(left[0], right[0]).masked_fill_(left[1] == right[1], far)
    near, beside = torch.minimum(left[0], right[0]), torch.minimum(torch.minimum(left[2], right[2]), other_side)
    gap = beside - near
    squared, buffer = torch.full_like(classes, far), torch.empty_like(classes)
    for shift in range(-min(width, height - 1), min(width, height - 1) + 1):
        here = slice(max(-shift, 0), height - max(shift, 0))
        there = slice(max(shift, 0), height - max(-shift, 0))
        candidate = torch.eq(nearest_class[:, there], classes[:, here], out=buffer[:, here])  # five times torch.where
        torch.addcmul(near[:, there], candidate, gap[:, there], out=candidate).add_(shift**2)
        torch.minimum(squared[:, here], candidate, out=squared[:, here])
    return squared


def _before(classes: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """What a pixel of (N, H, W) sees to its left, itself included, as int32 maps of the same shape.

    The squared distance of the first labelled pixel, its class, and the squared distance of the first pixel of another
    class than that one; distances are at most width^2 + 1.
    """
    far, beyond = width**2 + 1, -width - 1  # as the place of what is not there
    place = torch.arange(classes.shape[-1], dtype=torch.int32, device=classes.device).expand_as(classes)
    labelled = classes >= 0
    first = place.masked_fill(~labelled, beyond).cummax(-1).values
    first_class = classes.gather(-1, first.clamp(min=0).long()).masked_fill_(first < 0, -1)
    # A run of one class ends at a labelled pixel that follows one of another class.
    changes = labelled[..., 1:] & (first[..., :-1] >= 0) & (first_class[..., :-1] != classes[..., 1:])
    second = torch.full_like(place, beyond)
    second[..., 1:] = first[..., :-1].masked_fill(~changes, beyond)
    second = second.cummax(-1).values
    to_first, to_second = ((place - at).clamp_(max=width + 1) for at in (first, second))
    return (to_first * to_first).clamp_(max=far), first_class, (to_second * to_second).clamp_(max=far)
