"""Means and deviations over seeds, worked out by hand."""

import math

import pytest

from experiments.evidence.estimate import estimate, paired_difference


def test_mean_and_deviation_of_three_seeds() -> None:
    found = estimate([0.80, 0.82, 0.84])
    assert (found.n, found.mean, found.std) == pytest.approx((3, 0.82, 0.02))
    in_percent = found.times(100)
    assert (in_percent.n, in_percent.mean, in_percent.std) == pytest.approx((3, 82.0, 2.0))


def test_one_seed_has_no_deviation_and_undefined_values_are_left_out() -> None:
    found = estimate([0.7, math.nan])
    assert (found.n, found.mean) == (1, 0.7) and math.isnan(found.std)
    assert estimate([math.nan]).n == 0 and math.isnan(estimate([]).mean)


def test_difference_pairs_the_seeds_that_both_have() -> None:
    found = paired_difference({0: 0.5, 1: 0.6, 2: 0.7}, {0: 0.4, 1: 0.55, 3: 0.9})  # 0.10 and 0.05
    assert (found.n, found.mean, found.std) == pytest.approx((2, 0.075, 0.0353553), abs=1e-7)
