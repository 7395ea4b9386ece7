"""One difference over several data sets: a random-effects mean, and how much the data sets disagree.

The true difference on a data set is taken as drawn from a normal distribution of standard deviation tau, whose mean is
asked for. DerSimonian, Laird 1986, https://doi.org/10.1016/0197-2456(86)90046-2, for tau. Hartung, Knapp 2001,
https://doi.org/10.1002/sim.791, for the interval, which is never narrower than the classic one: with few data sets that
one errs too often.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

MIN_DATA_SETS = 3  # with two, the spread between them is known from a single number


@dataclass(frozen=True)
class Pooled:
    """A random-effects mean of the differences on `count` data sets, in their unit, with its own 95 % interval.

    `tau` is the standard deviation between data sets, `inconsistency` (I²) the share of the variance between the
    estimates that is not of their errors, in [0, 1].
    """

    count: int
    mean: float
    low: float
    high: float
    tau: float
    inconsistency: float


def pool(estimates: Sequence[float], errors: Sequence[float]) -> Pooled:
    """Pools estimates with their standard errors; ValueError for fewer than `MIN_DATA_SETS`, or an error that is 0."""
    y, variances = np.array(estimates, dtype=np.float64), np.array(errors, dtype=np.float64) ** 2
    count = len(y)
    if count < MIN_DATA_SETS or count != len(variances):
        raise ValueError(f"a pooled mean takes at least {MIN_DATA_SETS} data sets with an error each, got {count}")
    if not (np.isfinite(y).all() and np.isfinite(variances).all() and (variances > 0).all()):
        raise ValueError("a pooled mean takes finite estimates with errors above 0: leave the others out")
    fixed = 1 / variances
    q = float(fixed @ (y - fixed @ y / fixed.sum()) ** 2)  # Cochran's
    tau2 = max(0.0, (q - (count - 1)) / (fixed.sum() - (fixed @ fixed) / fixed.sum()))
    weights = 1 / (variances + tau2)
    mean = float(weights @ y / weights.sum())
    factor = max(1.0, float(weights @ (y - mean) ** 2) / (count - 1))
    half = float(stdtrit(count - 1, 0.975)) * math.sqrt(factor / weights.sum())
    inconsistency = max(0.0, 1 - (count - 1) / q) if q > 0 else 0.0
    return Pooled(count, mean, mean - half, mean + half, math.sqrt(tau2), inconsistency)


def error_of(low: float, high: float, df: float) -> float:
    """The standard error behind a 95 % interval by t with `df` degrees of freedom; NaN where there is none."""
    return (high - low) / 2 / float(stdtrit(df, 0.975))
