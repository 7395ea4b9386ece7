"""Families: what is judged, what is refused and why, and that a star stands exactly where 0 is outside its interval."""

import math
from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import t, ttest_rel

from experiments.evidence.family import Family, judge, judge_networks, judge_scores, score_images

NAMES = ["base", "equal", "better", "worse"]
WEIGHTS = {name: {name: 1.0, "base": -1.0} for name in NAMES[1:]}
EFFECTS = {"base": 0.0, "equal": 0.0, "better": 0.06, "worse": -0.2}


def draw(seeds: int = 3, sd: float = 0.01, seed: int = 0) -> dict[tuple[str, int], float]:
    generator = np.random.default_rng(seed)
    shared = generator.normal(size=seeds)
    return {(v, s): 0.6 + EFFECTS[v] + sd * (shared[s] + generator.normal()) for v, s in product(NAMES, range(seeds))}


def draw_matrices(groups: int, seeds: int = 3, seed: int = 0) -> dict[str, dict[int, NDArray[np.int64]]]:
    """Two images a group, three classes."""
    generator = np.random.default_rng(seed)
    cells: dict[str, dict[int, NDArray[np.int64]]] = {}
    for place, name in enumerate(NAMES):
        for number in range(seeds):
            right = 40 + 30 * place + generator.normal(scale=2)
            means = 10 * np.ones((3, 3)) + right * np.eye(3)
            cells.setdefault(name, {})[number] = 1 + generator.poisson(means, (2 * groups, 3, 3))
    return cells


def groups_of(groups: int) -> list[str]:
    return [f"g{i // 2}" for i in range(2 * groups)]


def check_stars(family: Family[str]) -> None:
    for row in family.rows.values():
        assert row.star == (not row.low <= 0 <= row.high) == (row.adjusted < 0.05) == (row.p < family.level)
        assert row.low < row.own_low < row.estimate < row.own_high < row.high


@pytest.mark.parametrize("separate", [False, True])
def test_planted_differences_are_found_and_an_equal_variant_is_not(separate: bool) -> None:
    family = judge_scores(draw(8, seed=1), WEIGHTS, separate=separate)
    assert {name: row.star for name, row in family.rows.items()} == {"equal": False, "better": True, "worse": True}
    check_stars(family)
    assert family.rows["better"].chance > 0.95 and family.rows["worse"].chance < 0.05
    assert family.images_only and family.judged == 3
    if not separate:
        assert (family.df, family.sd) == (21, pytest.approx(0.01, rel=0.4))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("groups", [0, 8])
def test_a_star_stands_exactly_where_0_is_outside_its_interval(seed: int, groups: int) -> None:
    """Also just beside it."""
    if groups:
        check_stars(judge(draw_matrices(groups, seed=seed), WEIGHTS, groups=groups_of(groups)))
        return
    scores = draw(3, seed=seed)
    row = judge_scores(scores, WEIGHTS).rows["equal"]
    for end in (row.low, row.high):
        for aside, star in ((1e-9, False), (-1e-9, True)):
            shift = end + aside * np.sign(row.estimate - end)
            moved = {(v, s): value - (shift if v == "equal" else 0) for (v, s), value in scores.items()}
            family = judge_scores(moved, WEIGHTS)
            assert family.rows["equal"].star is star
            check_stars(family)


def test_two_variants_have_the_paired_t_test() -> None:
    scores = {cell: value for cell, value in draw(4).items() if cell[0] in ("base", "better")}
    row = judge_scores(scores, {"better": WEIGHTS["better"]}).rows["better"]
    ours, theirs = ([scores[name, s] for s in range(4)] for name in ("better", "base"))
    assert row.p == pytest.approx(ttest_rel(ours, theirs).pvalue)
    assert row.adjusted == pytest.approx(row.p, abs=0.005)
    deviation = np.std(np.subtract(ours, theirs), ddof=1)
    assert row.chance == pytest.approx(t.cdf(row.estimate / (deviation * math.sqrt(1 + 1 / 4)), 3))


def test_separate_variances_are_paired_tests_with_bonferronis_correction() -> None:
    scores = draw(5)
    family = judge_scores(scores, WEIGHTS, separate=True)
    for name, row in family.rows.items():
        p = ttest_rel([scores[name, s] for s in range(5)], [scores["base", s] for s in range(5)]).pvalue
        assert (row.p, row.adjusted, row.df) == pytest.approx((p, min(3 * p, 1), 4))
    assert math.isnan(family.sd)


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("separate", [False, True])
def test_below_three_seeds_there_is_no_star_and_no_interval(seeds: int, separate: bool) -> None:
    family = judge_scores(draw(seeds), WEIGHTS, separate=separate)
    assert family.judged == 0
    for row in family.rows.values():
        assert row.reason == f"needs 3 seeds, got {seeds}" and not row.star and math.isfinite(row.estimate)
        assert all(map(math.isnan, (row.low, row.high, row.own_low, row.p, row.adjusted, row.chance)))


def test_missing_cells_leave_the_others_judged() -> None:
    scores = draw(4)
    del scores["worse", 1], scores["worse", 2], scores["better", 0]
    scores["equal", 3] = math.nan
    family = judge_scores(scores, WEIGHTS)
    assert family.rows["worse"].reason == "needs 3 seeds, got 2"
    assert (family.judged, family.df) == (2, 12 - 4 - 4 + 1) and family.rows["better"].seeds == 3
    gone = judge_scores({cell: value for cell, value in draw(3).items() if cell[0] != "base"}, WEIGHTS)
    assert all(row.reason == "needs 3 seeds, got 0" and math.isnan(row.estimate) for row in gone.rows.values())


def test_what_no_seed_connects_is_refused_and_the_others_are_judged() -> None:
    scores = {(v, s): value for (v, s), value in draw(6).items() if (s < 3) == (v in ("base", "equal"))}
    family = judge_scores(scores, WEIGHTS)
    assert {name: row.reason for name, row in family.rows.items() if row.reason} == {
        name: "no seed connects its variants" for name in ("better", "worse")
    }
    assert not math.isnan(family.rows["equal"].low)


def test_a_stage_one_that_is_lost_measures_no_spread() -> None:
    family = judge_scores(
        {cell: value for cell, value in draw(6).items() if cell[1] in (0, 3, 4, 5)}, WEIGHTS, stage=[0, 1, 2]
    )
    assert {row.reason for row in family.rows.values()} == {"too few seeds to measure their spread"}


def test_variants_that_do_not_vary_have_no_interval() -> None:
    family = judge_scores({cell: 0.5 for cell in draw(3)}, WEIGHTS)
    assert {row.reason for row in family.rows.values()} == {"the seeds do not vary"}


def test_intervals_stay_within_what_a_score_can_be() -> None:
    scores = {cell: float(value > 0.59) for cell, value in draw(3, sd=0.3).items()}
    for bound, limit in ((1.0, 1.0), (math.inf, math.inf)):
        rows = judge_scores(scores, WEIGHTS, bound=bound).rows.values()
        assert all(-limit <= row.low <= row.high <= limit for row in rows)
    assert any(row.high > 1 or row.low < -1 for row in rows)
    crossed = {"interaction": {"base": 1.0, "equal": -1.0, "better": -1.0, "worse": 1.0}}
    assert judge_scores(draw(3, sd=9), crossed, bound=1.0).rows["interaction"].high <= 2


def test_with_groups_enough_the_error_has_both_parts() -> None:
    cells = draw_matrices(8)
    seeds_only, both = judge(cells, WEIGHTS), judge(cells, WEIGHTS, groups=groups_of(8))
    assert seeds_only.images_only and seeds_only.reason == "their groups were not stored"
    assert both.groups == 8 and not both.reason and not both.images_only
    for name in WEIGHTS:
        few, all_of_it = seeds_only.rows[name], both.rows[name]
        assert all_of_it.own_high - all_of_it.own_low > few.own_high - few.own_low
        assert all_of_it.estimate == few.estimate and all_of_it.chance == few.chance


def test_images_of_one_group_count_as_one() -> None:
    """The same images twice, in the same group or not: twice as many of their own would halve the variance."""
    cells = {name: {s: np.repeat(m, 2, axis=0) for s, m in of.items()} for name, of in draw_matrices(8).items()}
    grouped = judge(cells, WEIGHTS, groups=[name for name in groups_of(8) for _ in range(2)])
    as_is = judge(draw_matrices(8), WEIGHTS, groups=groups_of(8))
    for name in WEIGHTS:
        assert grouped.rows[name].own_high == pytest.approx(as_is.rows[name].own_high)


def test_too_few_groups_say_that_it_is_of_these_images_only() -> None:
    family = judge(draw_matrices(2), WEIGHTS, groups=groups_of(2))
    assert (
        family.images_only
        and family.reason == "2 independent images or groups of images, and 8 are needed to speak of others"
    )
    assert {n: r.low for n, r in family.rows.items()} == {
        n: r.low for n, r in judge(draw_matrices(2), WEIGHTS).rows.items()
    }


def test_very_many_groups_are_judged_too() -> None:
    check_stars(judge(draw_matrices(300), WEIGHTS, groups=groups_of(300)))


def test_stage_one_fixes_variance_and_degrees_of_freedom() -> None:
    scores = draw(9)
    first = judge_scores({cell: value for cell, value in scores.items() if cell[1] < 3}, WEIGHTS)
    both = judge_scores(scores, WEIGHTS, stage=[0, 1, 2])
    assert (both.sd, both.df) == (first.sd, first.df) == (pytest.approx(first.sd), 6)
    for name in WEIGHTS:
        one, two = first.rows[name], both.rows[name]
        assert (two.high - two.low) == pytest.approx((one.high - one.low) / math.sqrt(3), rel=0.01)


def test_a_row_tells_what_it_excludes_and_what_it_is_equivalent_to() -> None:
    row = judge_scores(draw(3), WEIGHTS).rows["equal"].times(100)
    assert row.excluded == max(-row.low, row.high)
    assert row.within(row.excluded + 1e-9) and not row.within(row.excluded)


def test_networks_alone_are_told_apart_by_other_images() -> None:
    """Of 1 seed, too, but never from too few groups."""
    found = judge_networks(*score_images(draw_matrices(8, seeds=1), groups_of(8), "miou"), WEIGHTS)
    assert found is not None and found.rows["worse"].star and found.rows["worse"].seeds == 1
    half = (found.rows["worse"].high - found.rows["worse"].low) / 2
    assert found.rows["worse"].adjusted < 0.05 and half > 0
    assert judge_networks(*score_images(draw_matrices(2, seeds=1), groups_of(2), "miou"), WEIGHTS) is None
    assert judge_networks(*score_images(draw_matrices(8), None, "miou"), WEIGHTS) is None


def test_the_same_cells_give_the_same_numbers() -> None:
    cells: Mapping[str, Any] = draw_matrices(8)
    assert judge(cells, WEIGHTS, groups=groups_of(8)) == judge(cells, WEIGHTS, groups=groups_of(8))
