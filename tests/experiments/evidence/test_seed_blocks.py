"""Blocks against plain regression, scipy's tests and its multivariate t."""

from itertools import product

import numpy as np
import pytest
from scipy.stats import multivariate_t, t, ttest_rel

from experiments.evidence.blocks import CHANCE, Blocks, Errors, Floats, Pairs, adjusted, effective, least_p, level_of
from experiments.simulate_designs import contrasts

CELLS = [(variant, seed) for variant, seed in product(range(4), range(3))]


def draw(cells: list[tuple[int, int]], seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(size=len(cells))


def test_two_variants_have_the_paired_t_test() -> None:
    cells = list(product(range(2), range(5)))
    blocks, scores = Blocks(cells, contrasts([2])), draw(cells)
    errors = blocks.errors(blocks.variance(scores), blocks.df)
    expected = ttest_rel(scores[5:], scores[:5])
    assert blocks.df == 4
    assert errors.p(blocks.weights @ scores)[0] == pytest.approx(expected.pvalue)
    low, high = expected.confidence_interval(0.95)
    assert errors.half_width(0.05)[0] == pytest.approx((high - low) / 2)


@pytest.mark.parametrize("missing", [[], [(1, 0)], [(1, 0), (3, 2)]])
def test_variance_and_errors_are_those_of_least_squares(missing: list[tuple[int, int]]) -> None:
    cells = [cell for cell in CELLS if cell not in missing]
    blocks, scores = Blocks(cells, contrasts([4])), draw(cells)
    design = np.zeros((len(cells), 4 + 2))
    for row, (variant, seed) in enumerate(cells):
        design[row, variant] = 1
        if seed:
            design[row, 3 + seed] = 1
    fitted, residual, rank, _ = np.linalg.lstsq(design, scores, rcond=None)
    variance = residual[0] / (len(cells) - rank)
    errors = variance * np.linalg.inv(design.T @ design)
    assert blocks.df == len(cells) - 4 - 3 + 1
    assert blocks.variance(scores) == pytest.approx(variance)
    for row, variant in enumerate((1, 2, 3)):
        assert blocks.weights[row] @ scores == pytest.approx(fitted[variant] - fitted[0])
        squared = errors[variant, variant] + errors[0, 0] - 2 * errors[variant, 0]
        assert blocks.errors(np.array(variance), blocks.df).total[row] == pytest.approx(np.sqrt(squared))


def test_a_contrast_that_the_cells_do_not_tell_is_nan() -> None:
    cells = [(0, 0), (0, 1), (1, 2), (1, 3)]  # no seed in common
    assert np.isnan(Blocks(cells, contrasts([2])).weights).all()
    assert np.isnan(Pairs(cells, contrasts([2])).weights).all()


def test_pairs_are_the_paired_t_tests_of_each() -> None:
    pairs, scores = Pairs(CELLS, contrasts([4])), draw(CELLS)
    found = pairs.errors(scores).p(pairs.weights @ scores)
    for row, variant in enumerate((1, 2, 3)):
        expected = ttest_rel(scores[3 * variant : 3 * variant + 3], scores[:3])
        assert found[row] == pytest.approx(expected.pvalue)


@pytest.mark.parametrize("levels", [(4,), (2, 2)])
def test_the_level_of_a_family_is_that_of_the_multivariate_t(levels: tuple[int, ...]) -> None:
    blocks = Blocks(CELLS, contrasts(levels)[:3])  # linearly independent, as scipy wants them
    level = level_of(least_p(blocks, 1.0, blocks.df, draws=200_000))
    covariance = blocks.weights @ blocks.weights.T
    deviation = np.sqrt(np.diagonal(covariance))
    quantile = float(t.isf(level / 2, blocks.df))
    joint = multivariate_t(shape=covariance / np.outer(deviation, deviation), df=blocks.df, seed=0)
    held = joint.cdf(np.full(3, quantile), lower_limit=np.full(3, -quantile))
    assert held == pytest.approx(0.95, abs=0.003)


def test_a_p_is_below_five_percent_in_its_family_exactly_below_the_level() -> None:
    blocks = Blocks(CELLS, contrasts([2, 2]))
    least = least_p(blocks, 1.0, blocks.df, draws=2_000)
    level = level_of(least)
    below, above = np.nextafter(level, 0), np.nextafter(level, 1)
    assert adjusted(np.array([below, level, above]), least).tolist() == pytest.approx([0.05, 0.0505, 0.0505], abs=6e-4)
    assert adjusted(np.array([below]), least)[0] <= 0.05 < adjusted(np.array([level]), least)[0]


def test_images_count_by_what_all_seeds_share() -> None:
    """Two variants, two seeds, three groups, by hand."""
    blocks = Blocks([(0, 0), (0, 1), (1, 0), (1, 1)], contrasts([2]))
    left_out = np.array([[0.0, 0, 0], [0, 0, 0], [1, 2, 3], [2, 2, 5]])
    moved = left_out - left_out.mean(axis=1, keepdims=True)  # of variant 1: -1, 0, 1 and -1, -1, 2
    assert blocks.images(left_out)[0, 0] == pytest.approx((moved[2] @ moved[3]) * 2 / 3)
    opposite = left_out * np.array([1, 1, 1, -1])[:, None]  # what seeds do not share is no covariance, nor below 0
    assert blocks.images(opposite)[0, 0] == pytest.approx(0, abs=1e-12)


def test_what_images_do_to_all_variants_alike_is_in_no_difference() -> None:
    generator = np.random.default_rng(0)
    left_out = generator.normal(size=(12, 8))
    common = 100 * generator.normal(size=8)
    blocks = Blocks(CELLS, contrasts([4]))
    np.testing.assert_allclose(blocks.images(left_out + common), blocks.images(left_out), atol=1e-8)


def test_unequal_groups_count_as_fewer() -> None:
    assert effective(np.ones(9)) == pytest.approx(9)
    assert effective(np.array([1.0, 1, 1, 3])) == pytest.approx(12**2 / (3 + 81))


def test_degrees_of_freedom_are_satterthwaites_or_the_fewest() -> None:
    seeds, images = np.array([1.0, 1.0, 0.0]), np.array([0.0, 1.0, 1.0])
    more = 1 + CHANCE / 14
    assert Errors(seeds, images, 14, 5).df.tolist() == pytest.approx([14, (more + 1) ** 2 / (more**2 / 14 + 1 / 5), 5])
    assert Errors(seeds, images, np.array([2.0, 2, 2]), 5, least=True).df.tolist() == [2, 2, 2]
