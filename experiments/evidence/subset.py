"""A subset of an experiment's variants, and a margin, as a report may be asked for them after the run."""

import difflib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from experiments.evidence.deviations import deviations
from experiments.evidence.experiment import OTHER_IMAGES, Experiment

OF_VARIANTS = ("budget", "differences", "matched", "variants")  # fields of a plan with an entry for each variant


def choose(experiments: Sequence[Experiment], names: Sequence[str]) -> list[Experiment]:
    """Each experiment with those of the variants that it has, and its baseline.

    Raises ValueError for a name that is no variant of any, or where an experiment has none of them.
    """
    known = list(dict.fromkeys(name for experiment in experiments for name in experiment.plan["variants"]))
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"--only must name variants ({', '.join(known)}), got {name}{hint}")
    return [_subset(experiment, names) for experiment in experiments]


def with_margin(experiment: Experiment, points: float) -> Experiment:
    """The same with a margin of equivalence; one that the plan does not have is told as chosen afterwards."""
    settings: dict[str, Any] = experiment.plan.get("statistics", {})
    if settings.get("margin") == points:
        return experiment
    return replace(
        experiment, plan=experiment.plan | {"statistics": settings | {"margin": points, "margin_after": True}}
    )


def _subset(experiment: Experiment, names: Sequence[str]) -> Experiment:
    plan = experiment.plan
    kept = [name for name in plan["variants"] if name in names or name == plan["baseline"]]
    if len(kept) < 2:
        raise ValueError(
            f"--only must leave a variant of {plan['experiment']} to compare with its baseline, {plan['baseline']}: "
            f"name one of {', '.join(name for name in plan['variants'] if name != plan['baseline'])}"
        )
    fewer = dict(plan)
    for field in set(OF_VARIANTS) & set(plan):
        fewer[field] = {name: plan[field][name] for name in kept if name in plan[field]}
    if plan.get("tuning"):
        fewer["tuning"] = plan["tuning"] | {"chosen": {name: plan["tuning"]["chosen"][name] for name in kept}}
    levels = {
        factor: [level for level in all_levels if any(plan["variants"][v]["levels"][factor] == level for v in kept)]
        for factor, all_levels in plan["factors"].items()
    }
    # A factor that is the same for all that are left is none any longer.
    fewer["factors"] = {factor: of_factor for factor, of_factor in levels.items() if len(of_factor) > 1}
    fewer["variants"] = {
        name: variant | {"levels": {factor: variant["levels"][factor] for factor in fewer["factors"]}}
        for name, variant in fewer["variants"].items()
    }
    fewer["subset"] = (
        f"A subset: {len(kept)} of {len(plan['variants'])} variants, chosen after the run. Intervals and stars are "
        "corrected for these comparisons alone, not for those that were left out."
    )
    cells = {name: experiment.cells[name] for name in kept}
    missing = [lost for lost in experiment.missing if lost.variant in kept]
    of_all = deviations(plan, experiment.cells)
    chosen = replace(experiment, plan=fewer, cells=cells, missing=missing)
    told = [line for line in experiment.deviations if line not in of_all]
    if chosen.same_images:
        told = [line for line in told if line != OTHER_IMAGES]
    return replace(chosen, deviations=[*told, *deviations(fewer, cells)])
