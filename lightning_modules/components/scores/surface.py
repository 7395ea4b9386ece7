"""Normalised surface distance: how much of the outlines lies within a few pixels of one another."""

import torch
from torch import Tensor

from lightning_modules.components.float64 import for_float64
from lightning_modules.components.scores.boundary import borders, matched
from lightning_modules.components.scores.confusion import true_classes
from lightning_modules.components.scores.reductions import TOLERANCES


def surface_distance(labels: Tensor, masks: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Normalised surface distance of each class in each image, at each of `TOLERANCES`: (N, T, C) float64.

    Nikolov et al. 2021 (doi:10.2196/26151), "surface Dice", by pixels as MONAI's `compute_surface_dice` counts: of the
    outlines of a class, true and predicted together, the share of pixels within the tolerance of the other outline.
    Distances are Euclidean. A pixel is on the outline of its class if one of its four neighbours is of another class or
    outside the image.

    NaN for a class that neither holds, 0 for one that only one holds. Ignored pixels belong to no outline and make
    none, in the prediction too. Raises ValueError as `confusion_matrix`.
    """
    truth, ignored = true_classes(labels, masks, num_classes, ignore_index)
    maps = torch.stack([labels, truth])  # (2, N, H, W)
    edges = borders(maps, ~ignored)
    for dim in (-2, -1):
        for row in (0, maps.shape[dim] - 1):
            edges.select(dim, row).copy_(~ignored.select(dim, row))
    shares = []
    for tolerance in TOLERANCES:
        drawn, hits = (
            for_float64(counts).double().sum(0) for counts in matched(maps, edges, num_classes, tolerance**2)
        )
        shares.append(hits / drawn)  # NaN without a pixel
    return torch.stack(shares, 1)
