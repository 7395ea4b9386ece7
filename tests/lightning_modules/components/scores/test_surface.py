"""Normalised surface distance by hand, by distance transforms, and by MONAI."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from test_boundary_iou import maps
from torch.nn.functional import one_hot

from lightning_modules.components.scores.reductions import TOLERANCES, surface_means
from lightning_modules.components.scores.surface import surface_distance


def outline(mask: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    eroded = ndimage.binary_erosion(mask | ignored)
    return mask & ~eroded


def brute_force(given: np.ndarray, true: np.ndarray, index: int, tolerance: int) -> float:
    unknown = true == 255
    one, other = (outline((x == index) & ~unknown, unknown) for x in (given, true))
    if not (one.any() or other.any()):
        return math.nan
    met = 0
    for this, that in ((one, other), (other, one)):
        if that.any():
            met += int((ndimage.distance_transform_edt(~that)[this] <= tolerance).sum())
    return met / int(one.sum() + other.sum())


@pytest.mark.parametrize("ignored", [0.0, 0.05])
@pytest.mark.parametrize(("classes", "size"), [(2, (40, 60)), (34, (70, 50)), (3, (1, 30)), (3, (5, 90))])
def test_equals_distance_transforms(classes: int, size: tuple[int, int], ignored: float) -> None:
    labels, masks = maps(classes, size)
    masks[torch.rand(masks.shape) < ignored] = 255
    found = surface_distance(labels, masks, classes, 255)
    assert found.shape == (2, len(TOLERANCES), classes) and found.dtype == torch.float64
    for image, place, index in np.ndindex(*found.shape):
        expected = brute_force(labels[image].numpy(), masks[image].numpy(), index, TOLERANCES[place])
        assert float(found[image, place, index]) == pytest.approx(expected, abs=1e-12, nan_ok=True)


@pytest.mark.extra("overlap", "monai")
@pytest.mark.parametrize(("classes", "size"), [(2, (40, 60)), (6, (70, 50)), (12, (33, 47))])
def test_equals_monai(classes: int, size: tuple[int, int]) -> None:
    from monai.metrics import SurfaceDiceMetric, compute_surface_dice

    labels, masks = maps(classes, size)
    labels[0, labels[0] == 1] = 0  # a class that only one side has
    pair = [one_hot(x, classes).movedim(-1, 1) for x in (labels, masks)]
    found = surface_distance(labels, masks, classes, 255)
    for place, tolerance in enumerate(TOLERANCES):
        limits = [float(tolerance)] * classes
        expected = compute_surface_dice(*pair, class_thresholds=limits, include_background=True)
        np.testing.assert_allclose(found[:, place].numpy(), expected.numpy(), rtol=0, atol=1e-6)
        metric = SurfaceDiceMetric(class_thresholds=limits, include_background=True)
        metric(*pair)
        assert surface_means(found.numpy())[place] == pytest.approx(float(metric.aggregate()), abs=1e-6)


def test_an_outline_that_is_off_by_two_pixels() -> None:
    columns = torch.arange(40).expand(1, 20, 40)
    found = surface_distance((columns >= 22).long(), (columns >= 20).long(), 2, 255)[0]
    # The columns at the outline, and what runs along the image's border: rows and the last column lie on one another.
    assert (found[1:] == 1).all() and (found[0] < 1).all()


def test_means_are_of_what_an_image_holds() -> None:
    nan = math.nan
    shares = np.array([[[0.5, nan], [1.0, nan]], [[nan, nan], [nan, nan]], [[0.0, 1.0], [1.0, 1.0]]])
    assert surface_means(shares).tolist() == [0.5, 1.0]
