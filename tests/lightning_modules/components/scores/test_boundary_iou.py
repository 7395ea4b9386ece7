"""Boundary IoU by hand, and by the erosions of the authors' definition."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from lightning_modules.components.scores.boundary_iou import boundary_iou, distance
from lightning_modules.components.scores.reductions import mean_iou


def maps(classes: int, size: tuple[int, int], coarse: int = 9) -> tuple[Tensor, Tensor]:
    """Labels and masks (2, H, W) with outlines that lie some pixels apart."""
    true = F.interpolate(torch.randn(2, classes, size[0] // coarse + 2, size[1] // coarse + 2), size, mode="bilinear")
    return (true + 0.3 * torch.randn_like(true)).argmax(1), true.argmax(1)


def near(mask: np.ndarray, ignored: np.ndarray, reach: int) -> np.ndarray:
    """The mask less what `reach` erosions of a pixel leave of it in a frame of other pixels."""
    framed = np.pad(mask | ignored, 1)
    return mask & ~ndimage.binary_erosion(framed, np.ones((3, 3)), iterations=reach)[1:-1, 1:-1]


@pytest.mark.parametrize("ignored", [0.0, 0.05])
@pytest.mark.parametrize(("classes", "size"), [(2, (60, 90)), (5, (150, 260)), (3, (1, 40)), (3, (7, 400))])
def test_equals_erosions(classes: int, size: tuple[int, int], ignored: float) -> None:
    labels, masks = maps(classes, size)
    masks[torch.rand(masks.shape) < ignored] = 255
    found = boundary_iou(labels, masks, classes, 255)
    assert found.dtype == torch.int64 and found.shape == (2, classes, 2)
    reach = max(1, round(0.02 * math.sqrt(size[0] ** 2 + size[1] ** 2)))
    for image in range(2):
        true, given = masks[image].numpy(), labels[image].numpy()
        unknown = true == 255
        for index in range(classes):
            one = near((true == index) & ~unknown, unknown, reach)
            other = near((given == index) & ~unknown, unknown, reach)
            assert found[image, index].tolist() == [(one & other).sum(), (one | other).sum()]


def test_the_distance_is_two_percent_of_the_diagonal_and_a_pixel_at_least() -> None:
    assert [distance(*size) for size in ((480, 640), (300, 400), (8, 8), (1024, 2048))] == [16, 10, 1, 46]


def test_a_wrong_outline_costs_a_large_object_more_than_its_iou() -> None:
    rows = torch.arange(100)[:, None].expand(100, 200)
    truth, given = (rows >= 50).long()[None], (rows >= 52).long()[None]
    counts = boundary_iou(given, truth, 2, 255)[0]
    # Four rows to either side of an outline, and four at each border of the image: 2 of the 4 are shared.
    assert distance(100, 200) == 4
    assert (counts[:, 0] / counts[:, 1])[1] < 0.8 < 96 / 100


def test_of_images_the_sums_are_divided_and_absent_classes_left_out() -> None:
    assert mean_iou(np.array([[3, 4], [0, 5], [0, 0]])) == pytest.approx((3 / 4 + 0) / 2)
    assert math.isnan(mean_iou(np.zeros((2, 2), dtype=int)))
    nothing = boundary_iou(torch.zeros(1, 4, 4).long(), torch.full((1, 4, 4), 255), 3, 255)
    assert not nothing.any()
