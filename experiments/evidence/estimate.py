"""The score of a variant over its seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """Mean of n values, one a seed; std is of the sample (n - 1). NaN where there are too few."""

    n: int
    mean: float
    std: float

    def times(self, factor: float) -> "Estimate":
        """The same in another unit."""
        return replace(self, mean=factor * self.mean, std=factor * self.std)


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and sample standard deviation; NaN values are left out."""
    x = np.array([value for value in values if not math.isnan(value)], dtype=np.float64)
    mean = float(x.mean()) if len(x) else math.nan
    return Estimate(len(x), mean, float(x.std(ddof=1)) if len(x) > 1 else math.nan)


def paired_difference(values: Mapping[int, float], reference: Mapping[int, float]) -> Estimate:
    """Estimate of values - reference over the seeds in both."""
    return estimate([values[seed] - reference[seed] for seed in values if seed in reference])
