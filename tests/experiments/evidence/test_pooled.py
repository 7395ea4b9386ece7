import math

import numpy as np
import pytest

from experiments.evidence.pooled import error_of, pool

EFFECTS, ERRORS = [2.0, 5.0, -1.0, 3.0], [1.0, 1.5, 1.2, 0.8]


def test_it_is_the_formula_worked_out_by_hand() -> None:
    """Weights 1, 4/9, 25/36, 25/16; every step on paper."""
    w = [1, 4 / 9, 25 / 36, 25 / 16]
    mean = sum(a * b for a, b in zip(w, EFFECTS, strict=True)) / sum(w)
    q = sum(a * (b - mean) ** 2 for a, b in zip(w, EFFECTS, strict=True))
    tau2 = (q - 3) / (sum(w) - sum(a * a for a in w) / sum(w))
    found = pool(EFFECTS, ERRORS)
    assert found.tau == pytest.approx(math.sqrt(tau2)) and found.inconsistency == pytest.approx(1 - 3 / q)
    v = [1 / (e * e + tau2) for e in ERRORS]
    assert found.mean == pytest.approx(sum(a * b for a, b in zip(v, EFFECTS, strict=True)) / sum(v))
    spread = sum(a * (b - found.mean) ** 2 for a, b in zip(v, EFFECTS, strict=True)) / 3
    assert found.high - found.mean == pytest.approx(3.182446 * math.sqrt(max(1, spread) / sum(v)), rel=1e-6)


@pytest.mark.extra("dev", "statsmodels")
@pytest.mark.parametrize("seed", range(3))
def test_it_is_that_of_statsmodels(seed: int) -> None:
    from statsmodels.stats.meta_analysis import combine_effects

    rng = np.random.default_rng(seed)
    effects, errors = rng.normal(1, 4, 5), rng.uniform(0.5, 1.5, 5)
    theirs = combine_effects(effects, errors**2, method_re="dl", use_t=True)
    assert theirs.tau2 > 0  # theirs may be negative
    ours = pool(effects.tolist(), errors.tolist())
    assert ours.mean == pytest.approx(theirs.mean_effect_re) and ours.tau**2 == pytest.approx(theirs.tau2)
    low, high = theirs.summary_frame().loc["random effect wls", ["ci_low", "ci_upp"]]  # Hartung and Knapp's
    if theirs.scale_hksj_re >= 1:
        assert (ours.low, ours.high) == pytest.approx((low, high))
    else:
        assert ours.high - ours.low >= high - low


def test_data_sets_that_agree_have_no_spread_and_a_narrower_interval_than_one_of_them() -> None:
    found = pool([1.0, 1.0, 1.0, 1.0], [1.0] * 4)
    assert (found.mean, found.tau, found.inconsistency) == (1.0, 0.0, 0.0)
    assert found.high - found.mean == pytest.approx(3.182446 / 2, rel=1e-6)


def test_its_interval_holds_the_truth_in_95_of_100() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(1500):
        errors = rng.uniform(0.5, 2, 4)
        effects = rng.normal(1, 1.5, 4) + rng.normal(0, errors)
        found = pool(effects.tolist(), errors.tolist())
        held += found.low <= 1 <= found.high
    assert 0.93 < held / 1500 < 0.985


def test_an_error_is_that_behind_its_interval() -> None:
    assert error_of(-2.776445, 2.776445, 4) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize(
    ("estimates", "errors", "said"),
    [([1, 2], [1, 1], "at least 3"), ([1, 2, 3], [1, 0, 1], "above 0"), ([1, math.nan, 3], [1, 1, 1], "finite")],
)
def test_what_cannot_be_pooled_is_refused(estimates: list[float], errors: list[float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        pool(estimates, errors)
