"""Estimates worked out by hand. Student's t at 97.5 % is 12.7062 with 1 degree of freedom and 4.3027 with 2."""

import math
from pathlib import Path

import numpy as np
import pytest

from experiments.statistics import estimate, paired_difference
from experiments.stored import Cell, Comparison, comparisons, flatten


def test_mean_deviation_and_interval_of_three_seeds() -> None:
    found = estimate([0.80, 0.82, 0.84])
    assert found.n == 3
    assert (found.mean, found.std) == pytest.approx((0.82, 0.02))
    half = 4.302653 * 0.02 / math.sqrt(3)  # 0.04968
    assert (found.low, found.high) == pytest.approx((0.82 - half, 0.82 + half), abs=1e-7)


def test_one_seed_has_neither_deviation_nor_interval() -> None:
    found = estimate([0.7])
    assert (found.n, found.mean) == (1, 0.7)
    assert math.isnan(found.std) and math.isnan(found.low) and math.isnan(found.high)


def test_undefined_values_are_left_out() -> None:
    assert estimate([0.5, math.nan, 0.7]).n == 2
    assert estimate([math.nan]).n == 0 and math.isnan(estimate([]).mean)


def test_another_unit_scales_the_interval_too() -> None:
    found = estimate([0.80, 0.82, 0.84]).times(100)
    assert (found.n, found.mean, found.std) == pytest.approx((3, 82.0, 2.0))
    assert (found.low, found.high) == pytest.approx((77.0317, 86.9683), abs=1e-4)


def test_difference_pairs_the_seeds_that_both_have() -> None:
    found = paired_difference({0: 0.5, 1: 0.6, 2: 0.7}, {0: 0.4, 1: 0.55, 3: 0.9})  # 0.10 and 0.05
    assert (found.n, found.mean, found.std) == pytest.approx((2, 0.075, 0.0353553), abs=1e-7)
    half = 12.706205 * 0.0353553 / math.sqrt(2)
    assert (found.low, found.high) == pytest.approx((0.075 - half, 0.075 + half), abs=1e-6)


def test_what_the_seeds_share_cancels_in_the_difference() -> None:
    found = paired_difference({0: 0.1, 1: 0.5, 2: 0.9}, {0: 0.0, 1: 0.4, 2: 0.8})
    assert (found.mean, found.std) == pytest.approx((0.1, 0.0), abs=1e-12)


def test_one_factor_is_compared_at_every_level_of_the_other() -> None:
    plan = {
        "baseline": "a+x",
        "factors": {"up": ["a", "b"], "skip": ["x", "y"]},
        "variants": {f"{up}+{skip}": {"levels": {"up": up, "skip": skip}} for up in "ab" for skip in "xy"},
    }
    assert comparisons(plan) == [
        Comparison("up", "a+x", "b+x", {"skip": "x"}),
        Comparison("up", "a+y", "b+y", {"skip": "y"}),
        Comparison("skip", "a+x", "a+y", {"up": "a"}),
        Comparison("skip", "b+x", "b+y", {"up": "b"}),
    ]


def test_settings_are_compared_by_dotted_names() -> None:
    assert flatten({"data": {"zoom": [0.5, 2.0]}, "seed": 1, "module": "UNet"}) == {
        "data.zoom": "[0.5, 2.0]",
        "seed": "1",
        "module": "UNet",
    }
    assert flatten({"data.zoom": (0.5, 2.0)}) == {"data.zoom": "[0.5, 2.0]"}


def cell(confusion: list[list[list[int]]], boundary_f1: list[list[float]], checkerboard: list[float]) -> Cell:
    names = ["background", "grey", "never seen"]
    images = [str(index) for index in range(len(confusion))]
    arrays = (np.array(confusion), np.array(boundary_f1), np.array(checkerboard))
    return Cell("variant", 0, Path(), {}, {}, {}, names, images, *arrays)


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
