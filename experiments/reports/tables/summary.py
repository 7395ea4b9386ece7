"""The table on top of several experiments: the same effects on several data sets, or the effects of several studies."""

import math
from collections.abc import Sequence

from experiments.evidence.experiment import Experiment
from experiments.evidence.scored import WARNING, scored
from experiments.reports.tables.evidence import star_note
from experiments.reports.tables.text import Table, mean_std, millions, number, seeds_done, starred
from lightning_modules.components.scores.table import PERCENT

SCORED, COST = ("mIoU (%)", "difference (points) [95 % interval]"), ("GMAC", "parameters (M)")


def make_summary(experiments: Sequence[Experiment]) -> Table:
    """Every variant of every experiment; experiments with the same variants stand side by side."""
    first, *others = (experiment.plan for experiment in experiments)
    alike = all(
        set(plan["variants"]) == set(first["variants"]) and plan["baseline"] == first["baseline"] for plan in others
    )
    columns, rows = _beside(experiments) if alike else _below(experiments)
    rule = (
        "Difference: to the baseline of the same experiment, with the interval and star that it has there. Nothing is "
        "pooled over data sets or experiments, and no interval is corrected for their number."
    )
    sign = "Sign: of the difference on each, with its star (? where it is not known)."
    notes = [rule, *([sign] if alike else [])]
    notes += [f"{experiment.plan['experiment']}: {star_note(experiment)}" for experiment in experiments]
    notes += [f"{one.plan['experiment']}: {WARNING}" for one in experiments if scored(one.plan) != "test"]
    title = (
        f"{'The same variants' if alike else 'The variants'} of {len(experiments)} experiments: mIoU, mean ± standard "
    )
    title += "deviation over seeds"
    return Table("summary", title, columns, rows, texts=2 if alike else 3, notes=notes)


def _below(experiments: Sequence[Experiment]) -> tuple[list[str], list[list[str]]]:
    columns = ["experiment", "data", "variant", "seeds", *SCORED, *COST]
    rows = []
    for experiment in experiments:
        plan = experiment.plan
        for name in plan["variants"]:
            row = [plan["experiment"], plan["data"], name, seeds_done(experiment, name)]
            rows.append([*row, *_scored(experiment, name), *_cost(experiment, name)])
    return columns, rows


def _beside(experiments: Sequence[Experiment]) -> tuple[list[str], list[list[str]]]:
    data = [experiment.plan["data"] for experiment in experiments]
    names = data if len(set(data)) == len(data) else [experiment.plan["experiment"] for experiment in experiments]
    columns = ["variant", f"sign ({' / '.join(names)})"]
    columns += [f"{title}, {name}" for titles in (SCORED, COST) for name in names for title in titles]
    rows = []
    for variant in experiments[0].plan["variants"]:
        is_baseline = variant == experiments[0].plan["baseline"]
        row = [
            variant,
            "baseline" if is_baseline else " / ".join(_sign(experiment, variant) for experiment in experiments),
        ]
        row += [cell for experiment in experiments for cell in _scored(experiment, variant, few=True)]
        rows.append([*row, *(cell for experiment in experiments for cell in _cost(experiment, variant))])
    return columns, rows


def _sign(experiment: Experiment, variant: str) -> str:
    """Of the difference, with its star."""
    row = experiment.comparisons[variant]
    mean = row.estimate
    return "?" if math.isnan(mean) else ("+" if mean > 0 else "-" if mean < 0 else "0") + row.mark


def _scored(experiment: Experiment, name: str, *, few: bool = False) -> list[str]:
    """Score and difference; `few`: says, where seeds are lacking, how many there are."""
    score = mean_std(experiment.estimate(name, "miou").times(PERCENT[1]), 2)
    if few and len(experiment.cells[name]) < len(experiment.plan["seeds"]):
        score += f" ({seeds_done(experiment, name)} seeds)"
    if name == experiment.plan["baseline"]:
        return [score, "baseline"]
    return [score, starred(experiment.comparisons[name].times(PERCENT[1]))]


def _cost(experiment: Experiment, name: str) -> list[str]:
    variant = experiment.plan["variants"][name]
    return [number(variant["gmac"], 3), number(millions(variant), 3)]
