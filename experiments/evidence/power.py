"""How large a difference must be to be seen, and how many seeds an interval takes, by the spread of single networks.

All of single differences over seeds, of complete blocks (see `blocks`): what other images would add is not in them.
Differences, half-widths and standard deviations are in one unit, whichever.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from scipy.special import stdtrit

from experiments.evidence.blocks import LEVEL, Blocks, least_p, level_of
from experiments.evidence.experiment import Experiment
from experiments.evidence.factorial import level_words, starred
from experiments.evidence.family import MIN_SEEDS
from experiments.evidence.refused import said

MOST_SEEDS = 10_000  # beyond which nobody trains
LEVEL_SEEDS = 30  # with more of them the level of a design is not drawn anew
MARK = "spread:"


class Pilot(BaseModel):
    """The residual standard deviation of single networks over seeds that an experiment has shown."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    experiment: str
    data: str
    sd: float = Field(ge=0, le=100)  # points of mIoU
    df: int = Field(ge=1, le=10**6)

    @classmethod
    def of(cls, experiment: Experiment) -> "Pilot | None":
        """By all finished cells; None where they are too few to measure it."""
        if (spread := experiment.spread) is None:
            return None
        plan = experiment.plan
        return cls(experiment=plan["experiment"], data=plan["data"], sd=100 * spread.sd, df=spread.df)


def spread_line(experiment: str, data: str, sd: float, df: int) -> str:
    """A pilot as a record holds it: a comment of HTML in one line. `sd` in points."""
    text = json.dumps({"experiment": experiment, "data": data, "sd": float(f"{sd:.3g}"), "df": df})
    text = text.replace("--", "-\\u002d")  # two hyphens would end the comment
    return f"<!-- {MARK} {text} -->"


def pilots(record: str) -> Iterator[Pilot]:
    """Those of the lines of a record. Raises ValueError for one that is damaged."""
    for found in re.finditer(rf"^<!-- {MARK} (.*) -->$", record, re.MULTILINE):
        try:
            yield Pilot.model_validate_json(found[1])
        except ValidationError as error:
            raise ValueError(f"the line <!-- {MARK} --> {said(error.errors()[0])}") from None


@dataclass(frozen=True)
class Contrasts:
    """Of which the stars of a report are, as a plan knows them: weights of the variants by name."""

    variants: tuple[str, ...]
    weights: Mapping[Any, Mapping[str, float]]
    variances: str = "pooled"  # or "separate"

    @classmethod
    def of(cls, plan: Mapping[str, Any]) -> "Contrasts":
        """Of what plan.json holds, or will hold."""
        variances = plan.get("statistics", {}).get("variances", "pooled")
        return cls((*plan["variants"],), starred(level_words(plan), plan["baseline"]), variances)

    def df(self, seeds: int) -> int:
        """Of the variance by which a difference is judged."""
        return (seeds - 1) * (1 if self.variances == "separate" else len(self.variants) - 1)

    def level(self, seeds: int, df: float) -> float:
        """The p of its own below which a row has a star, as `family.judge_scores` finds it.

        With complete blocks it depends on the number of seeds by the rounding of its draws alone.
        """
        if self.variances == "separate":
            return LEVEL / len(self.weights)
        place = {name: number for number, name in enumerate(self.variants)}
        contrasts = np.zeros((len(self.weights), len(place)))
        for row, of_row in enumerate(self.weights.values()):
            for name, weight in of_row.items():
                contrasts[row, place[name]] = weight
        cells = [(variant, seed) for variant in range(len(place)) for seed in range(min(seeds, LEVEL_SEEDS))]
        return level_of(least_p(Blocks(cells, contrasts), 1.0, int(df)))


def chance_of_star(difference: float, sd: float, df: float, seeds: int, level: float) -> float:
    """The probability that a true difference of two variants gets a star, of either sign.

    `level` is the p below which a row has its star, `df` the degrees of freedom of `sd`. By the noncentral t.
    """
    if seeds < MIN_SEEDS:
        return 0.0
    if sd == 0:
        return float(difference != 0)
    critical, centre = _quantile(df, level), abs(difference) / (sd * math.sqrt(2 / seeds))
    return 1 - _noncentral_t(critical, df, centre) + _noncentral_t(-critical, df, centre)


def smallest_seen(chance: float, sd: float, df: float, seeds: int, level: float) -> float:
    """The true difference that gets a star with this probability, which must be above the level of the family."""
    from scipy.optimize import brentq  # of plans alone: a report does not pay for it, nor for scipy.stats

    if sd == 0:
        return 0.0
    error = sd * math.sqrt(2 / seeds)
    high = _quantile(df, level)
    while chance_of_star(high * error, sd, df, seeds, level) < chance:
        high *= 2
    return float(brentq(lambda t: chance_of_star(t * error, sd, df, seeds, level) - chance, 0, high)) * error


def half_width(sd: float, df: float, seeds: int, level: float) -> float:
    """Of the simultaneous interval of a difference of two variants."""
    return _quantile(df, level) * sd * math.sqrt(2 / seeds)


def seeds_for(wanted: float, sd: float, df: float, level: float) -> int:
    """The seeds until that half-width is the wanted one or less; `df` stays as it is, as it does in Stein's test."""
    return max(MIN_SEEDS, math.ceil((half_width(sd, df, 2, level) / wanted) ** 2 * 2 * (1 - 1e-12)))


def about(number: int) -> str:
    """A number of seeds as well as it can be known: "7", "about 25", "about 300"."""
    if number > MOST_SEEDS:
        return f"more than {MOST_SEEDS:,}"
    if number <= 10:
        return str(number)
    step = 5 if number < 100 else 10 ** (len(str(number)) - 1)
    return f"about {step * round(number / step):,}"


def _quantile(df: float, level: float) -> float:
    return float(-stdtrit(df, level / 2))


def _noncentral_t(value: float, df: float, centre: float) -> float:
    """P(T <= value) of the noncentral t distribution; scipy's is NaN in places far from the centre."""
    from scipy.stats import nct

    probability = float(nct.cdf(value, df, centre))
    return (1.0 if centre < value else 0.0) if math.isnan(probability) else probability
