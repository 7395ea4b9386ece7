"""What a design can see, against simulated reports, and the line of a record that says by what spread."""

from itertools import product

import numpy as np
import pytest
from scipy.stats import t

from experiments.evidence.blocks import Blocks
from experiments.evidence.factorial import starred
from experiments.evidence.power import (
    Contrasts,
    Pilot,
    about,
    chance_of_star,
    half_width,
    pilots,
    seeds_for,
    smallest_seen,
    spread_line,
)

LEVELS = {f"{a}+{b}": {"a": a, "b": b} for a, b in product("ijkl", "xy")}  # 4 x 2, with 14 contrasts
CONTRASTS = Contrasts((*LEVELS,), starred(LEVELS, "i+x"))


def starred_in(draws: int, difference: float, sd: float, seeds: int, level: float) -> float:
    """The share of simulated reports in which the first comparison has a star."""
    rng, comparison = np.random.default_rng(0), np.array([[-1.0, 1.0, 0, 0, 0, 0, 0, 0]])
    blocks = Blocks(list(product(range(8), range(seeds))), comparison)
    means = np.zeros((8, seeds))
    means[1] = difference
    scores = means + rng.normal(scale=5, size=(draws, 1, seeds)) + rng.normal(scale=sd, size=(draws, 8, seeds))
    flat = scores.reshape(draws, -1)
    p = blocks.errors(blocks.variance(flat), blocks.df).p(flat @ blocks.weights.T)
    return float((p[:, 0] < level).mean())


@pytest.mark.parametrize(("difference", "seeds"), [(5.0, 3), (3.0, 3), (2.0, 6), (0.0, 3)])
def test_the_chance_of_a_star_is_the_share_of_simulated_reports_that_have_it(difference: float, seeds: int) -> None:
    df = CONTRASTS.df(seeds)
    level = CONTRASTS.level(seeds, df)
    expected = starred_in(20_000, difference, 1.7, seeds, level)
    assert chance_of_star(difference, 1.7, df, seeds, level) == pytest.approx(expected, abs=0.012)


def test_a_difference_of_5_points_between_8_variants_is_seen_with_3_seeds() -> None:
    assert len(CONTRASTS.weights) == 14
    level = CONTRASTS.level(3, 14)
    assert 0.05 / 14 < level < 0.05  # correlated contrasts cost less than Bonferroni's
    assert chance_of_star(5.0, 1.7, 14, 3, level) > 0.6
    alone = Contrasts(CONTRASTS.variants, CONTRASTS.weights, "separate")
    assert (alone.df(3), alone.level(3, 2)) == (2, 0.05 / 14)
    assert chance_of_star(5.0, 1.7, 2, 3, 0.05 / 14) < 0.1


def test_the_smallest_difference_seen_is_the_inverse_and_two_seeds_see_none() -> None:
    for chance in (0.2, 0.7, 0.99):
        seen = smallest_seen(chance, 1.7, 14, 3, 0.01)
        assert chance_of_star(seen, 1.7, 14, 3, 0.01) == pytest.approx(chance)
        assert chance_of_star(-seen, 1.7, 14, 3, 0.01) == pytest.approx(chance)
    assert chance_of_star(50.0, 0.1, 7, 2, 0.01) == 0.0
    assert (smallest_seen(0.7, 0.0, 14, 3, 0.01), chance_of_star(1e-9, 0.0, 14, 3, 0.01)) == (0.0, 1.0)
    assert chance_of_star(1e4, 1.0, 2, 3, 1e-4) == 1.0  # where scipy's distribution is NaN


def test_seeds_for_a_width_are_the_fewest() -> None:
    assert half_width(1.78, 14, 3, 0.05) == pytest.approx(t.isf(0.025, 14) * 1.78 * np.sqrt(2 / 3))
    for wanted in (0.1, 0.5, 1.0, 2.0):
        seeds = seeds_for(wanted, 1.78, 14, 0.01)
        assert half_width(1.78, 14, seeds, 0.01) <= wanted < half_width(1.78, 14, seeds - 1, 0.01)
    assert seeds_for(50.0, 1.78, 14, 0.01) == seeds_for(1.0, 0.0, 14, 0.01) == 3
    assert seeds_for(half_width(1.78, 14, 9, 0.01), 1.78, 14, 0.01) == 9


def test_a_number_of_seeds_is_as_exact_as_it_can_be_known() -> None:
    numbers = (3, 10, 11, 26, 99, 100, 301, 1234, 20_000)
    assert [about(number) for number in numbers] == [
        *("3", "10", "about 10", "about 25", "about 100"),
        *("about 100", "about 300", "about 1,000", "more than 10,000"),
    ]


def test_the_line_of_a_record_is_read_as_it_was_written() -> None:
    line = spread_line('a "--> b', "brain", 1.7849, 14)
    text = f"# Title\n\n{line}\n\nText with <!-- spread: --> in it.\n"
    assert [*pilots(text)] == [Pilot(experiment='a "--> b', data="brain", sd=1.78, df=14)]
    assert text.count("-->") == 2
    assert [*pilots('<!-- spread: {"experiment": "x", "data": "brain", "sd": 1.78, "df": 14} -->')]
    with pytest.raises(ValueError, match=r"sd must be greater than or equal to 0, got -1"):
        [*pilots('<!-- spread: {"experiment": "x", "data": "brain", "sd": -1.0, "df": 14} -->')]
