"""The table of what the variants were given: how they differ, how long they were trained, how large they are."""

import json

from experiments.evidence.deviations import statements, unequal
from experiments.evidence.experiment import Experiment
from experiments.reports.tables.text import Table, number


def fairness_table(experiment: Experiment) -> Table:
    """Plans of earlier versions have no budgets: steps and images are then dashes."""
    plan = experiment.plan
    baseline, budgets = plan["variants"][plan["baseline"]], plan.get("budget", {})
    rows = []
    for name, variant in plan["variants"].items():
        budget = budgets.get(name, {})
        row = [name, "-" if name == plan["baseline"] else _difference(experiment, name)]
        row += [f"{budget[key]:,}" if key in budget else "-" for key in ("steps", "images")]
        for key in ("parameters", "gmac"):
            row.append(number(variant[key] / baseline[key], 2) if baseline[key] and variant[key] is not None else "-")
        rows.append(row)
    columns = ["variant", f"differs from {plan['baseline']} in", "optimiser steps", "images seen"]
    columns += ["parameters, ratio", "GMAC, ratio"]
    notes = statements(plan)
    foot = [*unequal(plan), "Ratios: to the baseline's."]
    if not budgets:
        notes.append("The plan is of an earlier version, which stored no budgets: steps and images are not known (-).")
    title, short = "What each variant was given", "Budgets"
    caption = "What the variants were given: optimiser steps, images seen, size and compute beside the baseline's."
    return Table("fairness", title, columns, rows, texts=2, notes=notes, short=short, caption=caption, foot=foot)


def tuning_table(experiment: Experiment) -> Table:
    """The validation mIoU of every trial of an experiment that was tuned; no rows otherwise."""
    tuning = experiment.plan.get("tuning") or {"settings": {}, "trials": {}, "chosen": {}}
    tried = [trial["values"] for trials in list(tuning["trials"].values())[:1] for trial in trials]
    rows, best = [], []
    for i, (variant, trials) in enumerate(tuning["trials"].items()):
        scores = {json.dumps(trial["values"]): trial["miou"] for trial in trials}
        values = [scores.get(json.dumps(combination)) for combination in tried]
        rows.append([variant, *("diverged" if score is None else number(100 * score, 2) for score in values)])
        best.append((i, 1 + tried.index(tuning["chosen"][variant])))
    columns = ["variant", *(", ".join(f"{name} {value}" for name, value in values.items()) for values in tried)]
    notes = ["Validation mIoU (%) of one run a value; no test image was read. Each variant was trained with its best."]
    title, short = "What each variant was tried with", "Tuning"
    caption = "Validation mIoU (%) of each value that the variants were tried with; the best was taken."
    foot = ["Bold: the value that the variant was trained with; one run a value, and no test image was read."]
    return Table("tuning", title, columns, rows, best=best, notes=notes, short=short, caption=caption, foot=foot)


def _difference(experiment: Experiment, variant: str) -> str:
    plan = experiment.plan
    if "differences" in plan:
        pairs = {key.removeprefix("hparams."): pair for key, pair in plan["differences"][variant].items()}
    else:
        levels, base = (plan["variants"][name]["levels"] for name in (variant, plan["baseline"]))
        pairs = {factor: (base[factor], level) for factor, level in levels.items() if base[factor] != level}
    return "; ".join(f"{key}: {before} to {after}" for key, (before, after) in pairs.items())
