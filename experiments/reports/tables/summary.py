"""The table on top of several experiments: the same effects on several data sets, or the effects of several studies."""

import math
from collections.abc import Sequence

from experiments.evidence.experiment import Experiment
from experiments.evidence.pooled import MIN_DATA_SETS, error_of, pool
from experiments.evidence.scored import WARNING, scored
from experiments.reports.tables.evidence import star_note
from experiments.reports.tables.text import (
    GMAC,
    Table,
    interval,
    mean_std,
    millions,
    number,
    seeds_done,
    signed,
    starred,
)
from lightning_modules.components.scores.table import PERCENT

SCORED, COST = ("mIoU (%)", "difference (points) [95 % interval]"), ("GMAC", "parameters (M)")


POOLED = ("mean over data sets [95 % interval] (points)", "between data sets: tau (points), I² (%)")
FORMULA = (
    "Mean over data sets: random effects (DerSimonian & Laird's tau; weights 1 / (error² + tau²); interval by Hartung "
    "& Knapp's t, never narrower than the classic one). It speaks of data sets like these. Each interval is its own, "
    "not corrected for the number of variants. I²: the share of the variance between data sets that is not of their "
    "errors."
)
BRIEF_FORMULA = (
    "Mean over data sets: random effects (DerSimonian & Laird), each interval its own, by Hartung & Knapp's t; tau: "
    "the standard deviation between data sets, I²: the share of the variance that is between them."
)


def make_summary(experiments: Sequence[Experiment], *, pooled: bool = False) -> Table:
    """Every variant of every experiment; experiments with the same variants stand side by side.

    `pooled` adds a mean over the data sets. ValueError where they are fewer than three, or not of the same variants.
    """
    first, *others = (experiment.plan for experiment in experiments)
    alike = all(
        set(plan["variants"]) == set(first["variants"]) and plan["baseline"] == first["baseline"] for plan in others
    )
    columns, rows = _beside(experiments) if alike else _below(experiments)
    rule = "Difference: to the baseline of the same experiment, with the interval and star that it has there. "
    star = "* 0 lies outside the interval; those of one experiment hold together with 95 %, as its own tables say."
    starred_rows = any(row.star for one in experiments for row in one.comparisons.values())
    foot = [rule, *([star] if starred_rows else []), f"{GMAC}."]
    if pooled:
        _refuse_pooling(experiments, alike)
        columns[2:2] = POOLED
        for row, variant in zip(rows, first["variants"], strict=True):
            row[2:2] = _pooled(experiments, variant)
        rule += FORMULA
        foot.append(BRIEF_FORMULA)
    else:
        rule += "Nothing is pooled over data sets or experiments, and no interval is corrected for their number."
    sign = "Sign: of the difference on each, with its star (? where it is not known)."
    notes, foot = [rule, *([sign] if alike else [])], [*foot, *([sign] if alike else [])]
    notes += [f"{experiment.plan['experiment']}: {star_note(experiment)}" for experiment in experiments]
    notes += [f"{one.plan['experiment']}: {WARNING}" for one in experiments if scored(one.plan) != "test"]
    title = (
        f"{'The same variants' if alike else 'The variants'} of {len(experiments)} experiments: mIoU, mean ± standard "
    )
    title += "deviation over seeds"
    return Table("summary", title, columns, rows, texts=2 if alike else 3, notes=notes, foot=foot)


def _refuse_pooling(experiments: Sequence[Experiment], alike: bool) -> None:
    data = [experiment.plan["data"] for experiment in experiments]
    if not alike:
        raise ValueError("--pool takes experiments of the same variants and baseline: these differ")
    if len(set(data)) < len(data) or len(data) < MIN_DATA_SETS:
        raise ValueError(
            f"--pool takes at least {MIN_DATA_SETS} experiments, each on a data set of its own, got {', '.join(data)}: "
            "leave it out, and read each by itself"
        )


def _pooled(experiments: Sequence[Experiment], variant: str) -> list[str]:
    """The mean over the data sets on which the difference is known, and their disagreement."""
    if variant == experiments[0].plan["baseline"]:
        return ["baseline", "-"]
    rows = [experiment.comparisons[variant].times(PERCENT[1]) for experiment in experiments]
    known = [row for row in rows if not row.reason and not math.isnan(row.own_low)]
    if len(known) < MIN_DATA_SETS:
        return [f"- (known on {len(known)})", "-"]
    found = pool([row.estimate for row in known], [error_of(row.own_low, row.own_high, row.df) for row in known])
    fewer = "" if found.count == len(rows) else f" ({found.count} of {len(rows)})"
    mean = f"{signed(found.mean, 2)} {interval(found.low, found.high, 2)}{fewer}"
    return [mean, f"{number(found.tau, 2)}, {100 * found.inconsistency:.0f}"]


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
