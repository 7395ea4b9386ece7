"""Spreads between seeds, by hand and by drawn scores."""

import math
from itertools import product

import numpy as np
import pytest

from experiments.evidence.blocks import Blocks
from experiments.evidence.spread import diverged, spread


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
