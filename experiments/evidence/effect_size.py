"""How large a difference is beside its spread over the seeds, with an interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import bisect
from scipy.special import gammaln, ndtr
from scipy.stats import nct

CONFIDENCE = 0.95  # of every interval of a report


@dataclass(frozen=True)
class EffectSize:
    """Mean over standard deviation of n paired differences (Cohen's d_z), Hedges' (1981) correction for small n in it.

    low and high bound the 95 % interval, by the noncentral t distribution.
    """

    n: int
    d: float
    low: float
    high: float
    reason: str = ""

    @property
    def meaning(self) -> str:
        """The share of seeds that would favour the variant, were the differences normal."""
        if self.reason:
            return self.reason
        share, low, high = (100 * ndtr(value) for value in (self.d, self.low, self.high))
        return (
            f"the mean difference is {self.d:.2f} standard deviations of the difference between seeds: about "
            f"{share:.0f} of 100 seeds would raise the score ({low:.0f} to {high:.0f})"
        )


def effect_size(differences: Sequence[float]) -> EffectSize:
    """d_z of paired differences, one a seed."""
    x = np.array([value for value in differences if not math.isnan(value)], dtype=np.float64)
    n, nan = len(x), (math.nan, math.nan, math.nan)
    if n < 3:  # the correction is zero for 2
        return EffectSize(n, *nan, reason=f"needs 3 seeds, got {n}")
    std = float(x.std(ddof=1))
    if std <= 1e-12 * float(np.abs(x).max()):
        return EffectSize(n, *nan, reason="the differences do not vary")
    d, df = float(x.mean()) / std, n - 1
    correction = math.exp(gammaln(df / 2) - gammaln((df - 1) / 2)) * math.sqrt(2 / df)
    observed, sign = abs(d) * math.sqrt(n), math.copysign(1, d)

    def bound(share: float) -> float:  # of |d|: the true value at which this share of all samples would lie below
        return float(bisect(lambda c: noncentral_t(observed, df, c) - share, -10, 10 + 5 * observed)) / math.sqrt(n)

    ends = sorted(sign * bound(share) for share in ((1 + CONFIDENCE) / 2, (1 - CONFIDENCE) / 2))
    return EffectSize(n, correction * d, ends[0], ends[1])


def noncentral_t(value: float, df: float, centre: float) -> float:
    """P(T <= value) of the noncentral t distribution; scipy's is NaN in places far from the centre."""
    probability = float(nct.cdf(value, df, centre))
    return (1.0 if centre < value else 0.0) if math.isnan(probability) else probability
