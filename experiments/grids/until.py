"""--until: as many seeds as an interval of a wanted width takes, by the variance of the first ones (Stein 1945).

Variance and degrees of freedom stay those of stage one in every interval afterwards, which so holds whatever number of
seeds they have led to.
"""

from collections.abc import Callable
from itertools import chain, islice

from experiments.evidence.experiment import load_experiment
from experiments.evidence.power import LEVEL_SEEDS, Contrasts, half_width, seeds_for
from experiments.evidence.schema import MOST_CELLS
from experiments.grids.cells import clock
from experiments.grids.plan import Plan
from experiments.grids.tuning import SEED


def stage_two(plan: Plan, max_cells: int | None, say: Callable[[str], None]) -> Plan:
    """The plan with the seeds that --until adds once stage one is finished, all variants the same; says why so many.

    Raises ValueError where a plan cannot hold them.
    """
    statistics = plan.decided["statistics"]
    until, stage = statistics["until"], statistics["stage"]
    lacking = [cell for cell in plan.cells if cell.planned.seed in stage and not cell.stage and cell.result is None]
    if lacking:
        named = ", ".join(f"{cell.variant} seed {cell.planned.seed}" for cell in lacking[:6])
        more = f" and {len(lacking) - 6} more" if len(lacking) > 6 else ""
        say(
            f"--until {until} adds no seed before stage one is finished: it lacks {named}{more}. The same command goes "
            "on with them"
        )
        return plan
    family = load_experiment(plan.out).family
    contrasts, sd, df = Contrasts.of(plan.content()), 100 * family.sd, int(family.df)
    needed = _needed(contrasts, sd, df, until, len(stage))
    each = len(plan.ablation.every)
    most = needed if max_cells is None else min(needed, len(stage) + max_cells // each)
    if most * len(plan.ablation.runs) > MOST_CELLS:
        raise ValueError(
            f"--until {until} takes {needed:,} seeds by an sd of {sd:.2f} points, and a plan holds {MOST_CELLS:,} "
            "cells: add --max-cells N"
        )
    used = plan.seeds
    free = (seed for seed in chain(range(max(used) + 1, SEED), range(SEED)) if seed not in used)
    added = list(islice(free, max(most - len(used), 0)))
    longer = plan.of_seeds([*used, *added], {**plan.decided, "statistics": statistics | {"needed": needed}})
    said = f"sd {sd:.2f} points ({df} degrees of freedom): ± {until} points need {needed} seeds"
    count = len(longer.seeds)
    if count < needed:
        left = half_width(sd, df, count, contrasts.level(count, df))
        said += f"; --max-cells {max_cells} allows {count}, which leave ± {left:.2g} points"
    if added:
        new = [cell for cell in longer.cells if cell.planned.seed in added]
        seconds = sum(map(plan.seconds, new)) / plan.jobs
        said += f": {len(new)} more cells (seeds {' '.join(map(str, added))}), about {clock(seconds)}"
    elif count >= needed:
        said += f", and {count} are there"
    say(said)
    if family.groups:
        say("The intervals are wider by what other images would change, which no seed narrows")
    return longer


def _needed(contrasts: Contrasts, sd: float, df: int, until: float, stage: int) -> int:
    seeds = max(stage, seeds_for(until, sd, df, contrasts.level(stage, df)))
    # The quantile is drawn for each number of seeds, as the report draws it.
    while seeds < LEVEL_SEEDS and half_width(sd, df, seeds, contrasts.level(seeds, df)) > until:
        seeds += 1
    return seeds
