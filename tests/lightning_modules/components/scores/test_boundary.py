"""Boundary F1 of outlines drawn by hand, and of distance transforms."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from test_checkerboard import smooth_map
from torch import Tensor

from lightning_modules.components.scores.boundary import boundary_f1


def halves(column: int, height: int = 240, width: int = 320) -> Tensor:
    """(1, height, width): class 0 left of a column, class 1 from there on. At 240 x 320 the tolerance is 3 pixels."""
    return (torch.arange(width) >= column).long().expand(1, height, width)


@pytest.mark.parametrize("shift", [0, 1, 3, -3])
def test_boundaries_within_the_tolerance_match(shift: int) -> None:
    # the boundary of each class is one column, so it moves by the shift
    assert boundary_f1(halves(160 + shift), halves(160), 2, 255).tolist() == [[1, 1]]


@pytest.mark.parametrize("shift", [4, -4])
def test_boundaries_beyond_the_tolerance_do_not(shift: int) -> None:
    assert boundary_f1(halves(160 + shift), halves(160), 2, 255).tolist() == [[0, 0]]


def test_boundary_f1_of_a_half_missing_line() -> None:
    # at 4 x 4 the tolerance is under a pixel: boundaries must coincide
    masks = torch.tensor([[[0, 0, 1, 1]] * 4])
    labels = torch.tensor([[[0, 0, 1, 1]] * 2 + [[1, 1, 1, 1]] * 2])
    # class 0: true {column 1}, 4 pixels; predicted {(0,1), (1,0), (1,1)}: 2 of 3 met, recall 2 of 4
    # class 1: true {column 2}, 4 pixels; predicted {(0,2), (1,2), (2,0), (2,1)}: 2 of 4 met, recall 2 of 4
    assert boundary_f1(labels, masks, 2, 255).tolist()[0] == pytest.approx([2 * (2 / 3) / 2 / (2 / 3 + 1 / 2), 1 / 2])


def test_boundary_f1_of_absent_missed_and_filling_classes() -> None:
    zeros, ones, both = torch.zeros(1, 4, 4, dtype=torch.int64), torch.ones(1, 4, 4, dtype=torch.int64), halves(2, 4, 4)

    def row(labels: Tensor, masks: Tensor) -> list[float]:
        return boundary_f1(labels, masks, 2, 255)[0].tolist()

    nan = math.nan
    assert row(zeros, zeros) == pytest.approx([1, nan], nan_ok=True)  # fills both: nothing to draw, nothing drawn
    assert row(ones, zeros) == pytest.approx([0, nan], nan_ok=True)  # true, not predicted
    assert row(both, zeros) == pytest.approx([0, nan], nan_ok=True)  # a boundary where there is none
    assert row(zeros, both) == [0, 0]
    ignored = torch.full_like(zeros, 255)
    assert row(both, ignored) == pytest.approx([nan, nan], nan_ok=True)
    # a column of ignored pixels between the classes leaves no boundary, on either side
    assert row(both, both.index_fill(2, torch.tensor([2]), 255)) == [1, 1]


def brute_force_f1(labels: np.ndarray, masks: np.ndarray, num_classes: int) -> list[float]:
    """The docstring of `boundary_f1`, pixel by pixel, with an exact Euclidean distance transform."""
    height, width = masks.shape
    valid = masks != 255

    def boundary(image: np.ndarray, index: int) -> np.ndarray:
        found = np.zeros_like(valid)
        for y, x in np.argwhere(valid & (image == index)):
            for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if 0 <= v < height and 0 <= u < width and valid[v, u] and image[v, u] != index:
                    found[y, x] = True
        return found

    def share(of: np.ndarray, near: np.ndarray) -> float:
        if not of.any() or not near.any():
            return 0.0
        return float((ndimage.distance_transform_edt(~near)[of] <= 0.0075 * math.hypot(height, width)).mean())

    result = []
    for index in range(num_classes):
        predicted, true = boundary(labels, index), boundary(masks, index)
        precision, recall = share(predicted, true), share(true, predicted)
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        if not predicted.any() and not true.any() and (valid & (labels == index)).any():
            f1 = 1.0
        result.append(f1 if (masks == index).any() else math.nan)
    return result


@pytest.mark.parametrize(("num_classes", "size"), [(4, (150, 260)), (11, (90, 120)), (70, (80, 130)), (3, (3, 900))])
def test_boundary_f1_equals_distance_transforms(num_classes: int, size: tuple[int, int]) -> None:
    true = F.interpolate(torch.randn(2, num_classes, size[0] // 9 + 2, size[1] // 9 + 2), size=size, mode="bilinear")
    masks, labels = true.argmax(1), (true + 0.3 * torch.randn_like(true)).argmax(1)
    masks[torch.rand(masks.shape) < 0.02] = 255
    expected = [brute_force_f1(p, t, num_classes) for p, t in zip(labels.numpy(), masks.numpy(), strict=True)]
    f1 = boundary_f1(labels, masks, num_classes, 255)
    assert f1.dtype == torch.float64
    np.testing.assert_allclose(f1.numpy(), expected, atol=1e-12)


def test_boundary_f1_is_symmetric() -> None:
    a, b = (smooth_map(4, 120, 160).argmax(1) for _ in range(2))
    torch.testing.assert_close(boundary_f1(a, b, 4, 255), boundary_f1(b, a, 4, 255))
