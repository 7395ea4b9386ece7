"""Means, deviations and intervals of scores over seeds.

An interval here is over seeds: it says how far the mean would move if the same recipe were trained again from other
seeds and scored on the same images. It says nothing of other images.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """Mean of n values, one a seed; std is of the sample (n - 1), low and high bound the 95 % interval of the mean.

    With one value std, low and high are NaN: one seed says nothing of the others.
    """

    n: int
    mean: float
    std: float
    low: float
    high: float

    def times(self, factor: float) -> "Estimate":
        """The same in another unit."""
        return Estimate(self.n, *(factor * value for value in (self.mean, self.std, self.low, self.high)))


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, sample standard deviation and Student's t interval (n - 1 degrees of freedom); NaN values are left out."""
    x = np.array([value for value in values if not math.isnan(value)], dtype=np.float64)
    if len(x) == 0:
        return Estimate(0, math.nan, math.nan, math.nan, math.nan)
    mean = float(x.mean())
    if len(x) == 1:
        return Estimate(1, mean, math.nan, math.nan, math.nan)
    std = float(x.std(ddof=1))
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(x) - 1)) * std / math.sqrt(len(x))
    return Estimate(len(x), mean, std, mean - half, mean + half)


def paired_difference(values: Mapping[int, float], reference: Mapping[int, float]) -> Estimate:
    """Estimate of values - reference over the seeds in both.

    Paired, because a seed fixes the order of the images in both arms: what they share cancels in the difference.
    """
    return estimate([values[seed] - reference[seed] for seed in values if seed in reference])
