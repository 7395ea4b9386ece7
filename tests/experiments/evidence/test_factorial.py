"""Effects of factors by hand, and the pairs of variants that differ in one factor alone."""

import math
from itertools import combinations, product

import pytest

from experiments.evidence.experiment import OneFactorStep, one_factor_steps
from experiments.evidence.factorial import Effect, effect_weights, refuse_crossing, starred
from experiments.evidence.family import Row


def effects(scores: dict[str, float], levels: dict[str, dict[str, str]], baseline: str) -> dict[str, float]:
    """By title."""
    of_baseline, found = levels[baseline], dict[str, float]()
    for key, weights in effect_weights(levels, of_baseline).items():
        effect = Effect(dict(key), {factor: of_baseline[factor] for factor, _ in key}, Row(math.nan, 0))
        found[effect.title] = sum(weight * scores[name] for name, weight in weights.items())
    return found


def test_main_effects_and_interaction_by_hand() -> None:
    by_level = {
        ("x", "p"): 0.50,
        ("x", "q"): 0.52,
        ("y", "p"): 0.56,
        ("y", "q"): 0.60,
        ("z", "p"): 0.5,
        ("z", "q"): 0.5,
    }
    levels = {"".join(key): dict(zip(("a", "b"), key, strict=True)) for key in by_level}
    assert effects({"".join(key): value for key, value in by_level.items()}, levels, "xp") == pytest.approx(
        {
            "a y - x": (0.56 + 0.60 - 0.50 - 0.52) / 2,
            "a z - x": (0.5 + 0.5 - 0.50 - 0.52) / 2,
            "b q - p": (0.02 + 0.04 + 0.0) / 3,
            "a y - x x b q - p": (0.60 - 0.52) - (0.56 - 0.50),
            "a z - x x b q - p": (0.5 - 0.52) - (0.5 - 0.50),
        }
    )


def test_two_factors_of_three_are_averaged_over_the_third() -> None:
    levels = {a + b + c: {"a": a, "b": b, "c": c} for a in "xy" for b in "pq" for c in "st"}
    found = effects({name: float(index**2) for index, name in enumerate(levels)}, levels, "xps")
    assert [*found][:3] == ["a y - x", "b q - p", "c t - s"] and len(found) == 6
    # Indices 0 to 7 squared. a: (16 + 25 + 36 + 49 - 0 - 1 - 4 - 9) / 4; a and b: (36 + 49 - 16 - 25 - 4 - 9 + 1) / 2
    assert found["a y - x"] == pytest.approx(28) and found["a y - x x b q - p"] == pytest.approx(16)


@pytest.mark.parametrize("shape", [(2, 2), (4, 2), (3, 3), (2, 2, 2)])
def test_every_contrast_weighs_as_much_for_as_against(shape: tuple[int, ...]) -> None:
    names = [*product(*(map(str, range(count)) for count in shape))]
    levels = {"".join(name): dict(zip("abc", name, strict=False)) for name in names}
    weights = starred(levels, "0" * len(shape))
    main = sum(count - 1 for count in shape)
    both = sum((p - 1) * (q - 1) for p, q in combinations(shape, 2))
    assert len(weights) == len(levels) - 1 + main + both
    assert all(sum(row.values()) == pytest.approx(0) for row in weights.values())
    # Comparisons and main effects are of one variant's worth, interactions of two.
    sizes = {round(sum(map(abs, row.values())) / 2, 9) for row in weights.values()}
    assert sizes == {1, 2}


def test_a_design_that_is_not_crossed_or_has_one_factor_is_judged_by_its_comparisons_alone() -> None:
    crossed = {a + b: {"a": a, "b": b} for a in "xy" for b in "pq"}
    assert [*starred({name: crossed[name] for name in ("xp", "xq", "yp")}, "xp")] == ["xq", "yp"]
    assert [*starred({name: {"a": name} for name in "xyz"}, "y")] == ["x", "z"]


def test_designs_that_are_not_crossed_are_refused() -> None:
    crossed = {a + b: {"a": a, "b": b} for a in "xyz" for b in "pq"}
    assert refuse_crossing(crossed) == ""
    lacking = {name: own for name, own in crossed.items() if name not in ("yq", "zp")}
    assert refuse_crossing(lacking) == "not fully crossed: there is no variant with y + q, z + p"
    huge = {name: {f"f{factor}": name for factor in range(40)} for name in "ab"}  # of 2^40 combinations
    assert refuse_crossing(huge).endswith(f" and {2**40 - 2 - 3} more")
    assert "same levels" in refuse_crossing(crossed | {"again": {"a": "x", "b": "p"}})
    assert "same factors" in refuse_crossing({"one": {"a": "x"}, "two": {"b": "p"}})
    with pytest.raises(ValueError, match=r"no variant with y \+ q, z \+ p"):
        effect_weights(lacking, {"a": "x", "b": "p"})


def test_one_factor_is_compared_at_every_level_of_the_other() -> None:
    plan = {
        "baseline": "a+x",
        "factors": {"up": ["a", "b"], "skip": ["x", "y"]},
        "variants": {f"{up}+{skip}": {"levels": {"up": up, "skip": skip}} for up in "ab" for skip in "xy"},
    }
    assert one_factor_steps(plan) == [
        OneFactorStep("up", "a+x", "b+x", {"skip": "x"}),
        OneFactorStep("up", "a+y", "b+y", {"skip": "y"}),
        OneFactorStep("skip", "a+x", "a+y", {"up": "a"}),
        OneFactorStep("skip", "b+x", "b+y", {"up": "b"}),
    ]
