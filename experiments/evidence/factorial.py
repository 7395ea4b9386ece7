"""Effects of crossed factors: what each changes on average over the others, and what two change only together.

Every effect is a weighted sum of variants, and is judged with the comparisons as one family.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations, islice, product
from typing import Any

import numpy as np

from experiments.evidence.family import Row


@dataclass(frozen=True)
class Effect:
    """One factor (main effect) or two (interaction), each at a level that is compared with its reference level.

    Main effect: the score with the level minus that with the reference, averaged over all levels of the others.
    Interaction of a and b: how much more a's level changes the score with b's level than with b's reference.
    It is (a b - a' b) - (a b' - a' b'), averaged likewise and not halved; zero where the effects add.
    """

    levels: dict[str, str]  # factor -> level
    references: dict[str, str]
    row: Row

    @property
    def title(self) -> str:
        parts = [f"{factor} {level} - {self.references[factor]}" for factor, level in self.levels.items()]
        return " x ".join(parts)


def refuse_crossing(levels: Mapping[str, Mapping[str, str]]) -> str:
    """Why the variants (name -> factor -> level) are no crossed design; empty where each combination is there once."""
    factors = list(next(iter(levels.values()), {}))
    if not factors or any(list(of_variant) != factors for of_variant in levels.values()):
        return "not crossed: the variants do not have the same factors"
    crossed = [tuple(of_variant[factor] for factor in factors) for of_variant in levels.values()]
    if len(set(crossed)) < len(crossed):
        return "not crossed: two variants have the same levels"
    # Counted, not listed: a stranger's plan of 40 factors has a million million combinations.
    pools, present = list(_of_factors(levels).values()), set(crossed)
    absent = math.prod(map(len, pools)) - len(present)
    named = islice((combination for combination in product(*pools) if combination not in present), 3)
    listed = ", ".join(" + ".join(combination) for combination in named) + (
        f" and {absent - 3} more" if absent > 3 else ""
    )
    return f"not fully crossed: there is no variant with {listed}" if absent else ""


Levels = tuple[tuple[str, str], ...]  # (factor, level) of one factor or of two


def effect_weights(
    levels: Mapping[str, Mapping[str, str]], reference: Mapping[str, str]
) -> dict[Levels, dict[str, float]]:
    """Main effect of every level against its factor's reference level, then every interaction of two factors.

    `levels` gives each variant its levels; the weights are of the variants. ValueError for a design that is not fully
    crossed, where an average over the other factors would compare different things.
    """
    reason = refuse_crossing(levels)
    if reason:
        raise ValueError(reason)
    of_factors = _of_factors(levels)
    weights = dict[Levels, dict[str, float]]()
    for order in (1, 2):
        for factors in combinations(of_factors, order):
            for chosen in product(*([level for level in of_factors[f] if level != reference[f]] for f in factors)):
                key = tuple(zip(factors, chosen, strict=True))
                weights[key] = _weigh(levels, dict(key), reference)
    return weights


def starred(levels: Mapping[str, Mapping[str, str]], baseline: str) -> dict[str | Levels, dict[str, float]]:
    """The contrasts that a report judges: each variant minus the baseline, and the effects of crossed factors.

    `levels` gives each variant its levels.
    """
    weights: dict[str | Levels, dict[str, float]] = {
        name: {name: 1.0, baseline: -1.0} for name in levels if name != baseline
    }
    if len(levels[baseline]) > 1 and not refuse_crossing(levels):
        weights.update(effect_weights(levels, levels[baseline]).items())
    return weights


def level_words(plan: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The levels of a plan by variant, then factor."""
    return {
        name: {factor: str(level) for factor, level in variant["levels"].items()}
        for name, variant in plan["variants"].items()
    }


def _of_factors(levels: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
    """Each factor's levels, in the order in which they appear."""
    factors = next(iter(levels.values()))
    return {factor: list(dict.fromkeys(of_variant[factor] for of_variant in levels.values())) for factor in factors}


def _weigh(
    levels: Mapping[str, Mapping[str, str]], wanted: Mapping[str, str], reference: Mapping[str, str]
) -> dict[str, float]:
    """+1 for the level, -1 for the reference, their product over the factors; shared out over the others' levels."""
    signs = dict[str, int]()
    for variant, of_variant in levels.items():
        each = [
            (of_variant[factor] == level) - (of_variant[factor] == reference[factor])
            for factor, level in wanted.items()
        ]
        if all(each):
            signs[variant] = int(np.prod(each))
    others = len(signs) / 2 ** len(wanted)
    return {variant: sign / others for variant, sign in signs.items()}
