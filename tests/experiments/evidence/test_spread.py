"""Spreads between seeds, by hand and by drawn scores."""

import math
from itertools import product

import numpy as np
import pytest

from experiments.evidence.blocks import Blocks
from experiments.evidence.spread import common, diverged, mean_with_interval, ratio_of_deviations, spread


def scores(deviations: list[float], seeds: int, seed: int = 0) -> dict[tuple[str, int], float]:
    generator = np.random.default_rng(seed)
    return {(f"v{v}", s): d * generator.normal() for (v, d), s in product(enumerate(deviations), range(seeds))}


def test_arms_and_pooled_deviation_agree() -> None:
    drawn = scores([1.0] * 4, 6)
    found = spread(drawn)
    assert found is not None and found.df == 15
    blocks = Blocks([(int(v[1]), s) for v, s in drawn], np.zeros((0, 4)))
    assert found.sd == pytest.approx(math.sqrt(blocks.variance(np.array(list(drawn.values())))))
    # Each arm has the same share of the degrees of freedom, so that the variances' mean is the pooled one.
    assert np.mean([sd**2 for sd in found.arms.values()]) == pytest.approx(found.sd**2)


def test_equal_spreads_are_called_unequal_in_one_of_twenty() -> None:
    found = [spread(scores([1.0] * 4, 3, seed)) for seed in range(200)]
    assert np.mean([one.p < 0.05 for one in found if one]) == pytest.approx(0.05, abs=0.035)


def test_a_very_noisy_arm_is_seen() -> None:
    found = spread(scores([1, 1, 1, 12], 5))
    assert found is not None and found.p < 0.05 and max(found.arms, key=lambda name: found.arms[name]) == "v3"


def test_one_seed_has_no_spread() -> None:
    assert spread(scores([1, 1], 1)) is None and spread({}) is None


def test_a_seed_far_below_its_arms_others_is_named() -> None:
    cells = {(variant, seed): 0.8 + 0.01 * seed for variant in ("a", "b", "c") for seed in range(3)}
    assert diverged(cells) == []
    assert diverged(cells | {("b", 1): 0.3}) == [("b", 1, pytest.approx(0.5))]
    assert diverged(cells | {("b", 1): 0.3, ("b", 2): 0.3}) == []  # most of them: then it is the other one that is odd
    noisy = {cell: value + 0.2 * (cell in (("a", 0), ("c", 2))) for cell, value in cells.items()}
    assert diverged(noisy | {("b", 1): 0.6}) == []  # as far as other arms' seeds lie apart


@pytest.mark.parametrize(("arms", "together"), [(1, 0.0), (1, 0.8), (3, 0.8)])
def test_the_interval_of_a_ratio_of_deviations_covers_it(arms: int, together: float) -> None:
    """True ratio 0.5, of networks that go together or not."""
    generator, covered, ratios = np.random.default_rng(0), 0, []
    for _ in range(2000):
        shared, a, b = generator.normal(size=(3, arms, 8))
        under = np.sqrt(together) * shared + np.sqrt(1 - together) * a
        over = 0.5 * (np.sqrt(together) * shared + np.sqrt(1 - together) * b) + 3.0
        ratio, low, high = ratio_of_deviations(over, under)
        covered += low <= 0.5 <= high
        ratios.append(ratio)
    assert covered / 2000 == pytest.approx(0.95, abs=0.015)
    assert np.median(ratios) == pytest.approx(0.5, rel=0.05)


def test_a_ratio_of_deviations_is_narrower_for_networks_that_go_together() -> None:
    under = np.random.default_rng(1).normal(size=(1, 10))
    apart = np.random.default_rng(2).normal(size=(1, 10))
    widths = [high / low for _, low, high in (ratio_of_deviations(x, under) for x in (apart, under + 0.3 * apart))]
    assert widths[1] < widths[0]
    assert np.isnan(ratio_of_deviations(np.ones((1, 5)), under[:, :5])).all()
    assert np.isnan(ratio_of_deviations(under[:, :2], under[:, :2])).all()


def test_what_a_seed_does_to_all_agrees_with_the_analysis_of_variance() -> None:
    """By the sums of squares of a two-way table, written out."""
    x = np.random.default_rng(3).normal(size=(3, 6)) + 2 * np.random.default_rng(4).normal(size=6)
    whole = ((x - x.mean()) ** 2).sum()
    rows, columns = (x.shape[1 - i] * ((x.mean(axis=1 - i) - x.mean()) ** 2).sum() for i in (0, 1))
    between, within = columns / 5, (whole - rows - columns) / 10
    found = common(x)
    assert found is not None and found.f == pytest.approx(between / within)
    assert found.share == pytest.approx((between - within) / (between + 2 * within))
    assert found.p < 0.01
    assert common(x[:1]) is None and common(np.ones((3, 4))) is None


def test_the_interval_of_one_value_is_open() -> None:
    mean, low, high = mean_with_interval(np.array([2.0]))
    assert mean == 2 and np.isnan([low, high]).all()
