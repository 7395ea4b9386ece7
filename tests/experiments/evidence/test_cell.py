"""The scores of a cell, from matrices worked out by hand."""

import math
from pathlib import Path

import numpy as np
import pytest

from experiments.evidence.cell import Cell, sum_up


def cell(confusion: list[list[list[int]]], boundary_f1: list[list[float]], checkerboard: list[float]) -> Cell:
    names = ["background", "grey", "never seen"]
    images = [str(index) for index in range(len(confusion))]
    summed = sum_up([(0, np.array(confusion))], len(images), len(names))
    arrays = {"boundary_f1": np.array(boundary_f1), "checkerboard": np.array(checkerboard)}
    return Cell("variant", 0, Path(), {}, {}, {}, names, images, *summed, arrays)


def test_scores_come_from_the_sum_over_images() -> None:
    # Summed: 6 and 8 right, 2 background seen as grey. IoU 6 / 8 and 8 / 10; the mean of the images' would be another.
    first, second = [[6, 0, 0], [0, 0, 0], [0, 0, 0]], [[0, 2, 0], [0, 8, 0], [0, 0, 0]]
    found = cell([first, second], [[1.0, math.nan, math.nan], [0.5, 0.7, math.nan]], [0.02, 0.04]).scores
    assert (found["iou/background"], found["iou/grey"]) == pytest.approx((0.75, 0.8))
    assert math.isnan(found["iou/never seen"])
    assert (found["miou"], found["pixel_acc"]) == pytest.approx((0.775, 14 / 16))
    assert (found["boundary_f1"], found["checkerboard"]) == pytest.approx(((1.0 + 0.6) / 2, 0.03))


def test_an_image_without_a_label_counts_nowhere() -> None:
    right, empty, nan = [[5, 0, 0], [0, 5, 0], [0, 0, 0]], [[0] * 3] * 3, math.nan
    found = cell([right, empty], [[1.0, 0.5, nan], [nan, nan, nan]], [0.1, 0.9]).scores
    assert (found["miou"], found["boundary_f1"], found["checkerboard"]) == pytest.approx((1.0, 0.75, 0.1))


def test_images_too_small_for_a_spectrum_have_no_energy() -> None:
    right = [[5, 0, 0], [0, 5, 0], [0, 0, 0]]
    assert cell([right, right], [[1.0, 1.0, 1.0]] * 2, [math.nan, 0.2]).scores["checkerboard"] == pytest.approx(0.2)
    assert math.isnan(cell([right], [[1.0, 1.0, 1.0]], [math.nan]).scores["checkerboard"])
