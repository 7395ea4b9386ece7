"""Effects of factors by hand, and the pairs of variants that differ in one factor alone."""

import numpy as np
import pytest

from experiments.evidence.experiment import OneFactorStep, one_factor_steps
from experiments.evidence.factorial import factorial_effects, refuse_crossing


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
    wiggle = np.linspace(-0.1, 0.1, 8)  # of images; the same for all, so that it cancels
    cells = {"".join(key): {s: value + 0.01 * s + wiggle for s in range(3)} for key, value in by_level.items()}
    effects = factorial_effects(cells, levels, {"a": "x", "b": "p"}, "mean", resamples=99)
    found = {effect.title: effect.contrast.mean for effect in effects}
    assert found == pytest.approx(
        {
            "a y - x": (0.56 + 0.60 - 0.50 - 0.52) / 2,
            "a z - x": (0.5 + 0.5 - 0.50 - 0.52) / 2,
            "b q - p": (0.02 + 0.04 + 0.0) / 3,
            "a y - x x b q - p": (0.60 - 0.52) - (0.56 - 0.50),
            "a z - x x b q - p": (0.5 - 0.52) - (0.5 - 0.50),
        }
    )
    assert all(effect.contrast.std == pytest.approx(0, abs=1e-12) for effect in effects)  # paired by seed


def test_two_factors_of_three_are_averaged_over_the_third() -> None:
    levels = {a + b + c: {"a": a, "b": b, "c": c} for a in "xy" for b in "pq" for c in "st"}
    values = {name: float(index**2) for index, name in enumerate(levels)}
    cells = {name: {s: np.full(8, values[name] + s) for s in range(2)} for name in levels}
    effects = factorial_effects(cells, levels, {"a": "x", "b": "p", "c": "s"}, "mean", resamples=99)
    assert [effect.title for effect in effects][:3] == ["a y - x", "b q - p", "c t - s"] and len(effects) == 6
    # Indices 0 to 7 squared. a: (16 + 25 + 36 + 49 - 0 - 1 - 4 - 9) / 4; a and b: (36 + 49 - 16 - 25 - 4 - 9 + 1) / 2
    found = {tuple(effect.levels): effect.contrast.mean for effect in effects}
    assert found["a",] == pytest.approx(28) and found["a", "b"] == pytest.approx(16)


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
        factorial_effects({name: {} for name in lacking}, lacking, {"a": "x", "b": "p"})


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
