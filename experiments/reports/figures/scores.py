"""Scores and differences: of every seed, and of every class."""

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from experiments.evidence.experiment import Experiment
from experiments.evidence.family import Family, judge
from experiments.evidence.scored import as_scored
from experiments.reports.figures.looks import (
    COLUMN,
    FALL_AND_RISE,
    WIDTH,
    Drawn,
    Look,
    Rows,
    draw_mean,
    full_labels,
    ink,
    label_rows,
    lay_rows,
    limits,
    log_scale,
    looks,
    matrix,
    short,
)
from lightning_modules.components.scores.table import PERCENT, SCORES

PANELS = ("miou", "boundary_f1", "checkerboard")
NUMBERED_SEEDS = 6  # with more, or with MANY rows, the dots of a row are too small to hold their numbers
MANY = 12  # rows, from where on they are drawn closer to one another
MOST_CLASSES = 40  # rows that a page holds


def scores(experiment: Experiment) -> Drawn:
    """Every seed's score and the mean, a row for each variant and a panel for each score."""
    look, rows = looks(experiment.plan), lay_rows(experiment.plan)
    figure = Figure(figsize=(WIDTH, 1.1 + 0.32 * rows.count), layout="constrained")
    axes = figure.subplots(1, len(PANELS), sharey=True)
    for axis, score in zip(axes, PANELS, strict=True):
        title, (unit, factor) = SCORES[score].title, SCORES[score].unit
        of_seeds = [factor * cell.scores[score] for cell in experiment.finished()]
        log = unit != PERCENT[0] and all(value > 0 for value in of_seeds)  # NaN is not
        baseline = experiment.estimate(experiment.plan["baseline"], score)
        axis.axvline(factor * baseline.mean, color="#888888", linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
        for name, height in rows.heights.items():
            _score_row(axis, height, experiment, name, score, look[name])
        if log:
            log_scale(axis, "x")
        else:
            axis.locator_params(axis="x", nbins=6)
        axis.set(xlabel=f"{title} ({unit}{', log scale' if log else ''})")
        axis.grid(axis="y", visible=False)
    label_rows(axes[0], rows, experiment)
    return figure, (
        "Dots of two variants that overlap: their seeds cannot be told apart. Scores on the test images, last epoch. "
        "Small dots: every seed; large mark: their mean; thin line: from the lowest to the highest seed, which is no "
        "interval. The dashed line is the mean of the baseline; '(2 of 3)' marks a variant with fewer seeds than "
        "planned. Higher is better for mIoU and boundary F1, lower for checkerboard energy."
    )


def seeds(experiment: Experiment) -> Drawn:
    """Every seed's mIoU, seeds joined over the variants, and beside it the differences to the baseline."""
    rows = lay_rows(experiment.plan)
    height = 1.3 + (0.48 if rows.count <= MANY else 0.36) * rows.count
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    return figure, _seeds(experiment, rows, left, right, narrow=False)


def seeds_narrow(experiment: Experiment) -> Drawn:
    """The same for a column or a phone: the differences above the scores."""
    rows = lay_rows(experiment.plan)
    height = 1.4 + (0.6 if rows.count <= MANY else 0.36) * rows.count  # with the answer no longer than two screens
    figure = Figure(figsize=(COLUMN, height), layout="constrained")
    right, left = figure.subplots(2, 1)
    return figure, _seeds(experiment, rows, left, right, narrow=True)


def _seeds(experiment: Experiment, rows: Rows, left: Axes, right: Axes, *, narrow: bool) -> str:
    """Draws both panels; returns the caption."""
    numbered = _draw_seeds(left, experiment, rows, narrow=narrow)
    _draw_differences(right, experiment, rows, narrow=narrow)
    for axis in (left, right):
        axis.grid(axis="y", visible=False)
    for axis in (left, right) if narrow else (left,):
        label_rows(axis, rows, experiment, narrow=narrow)
    family, few = experiment.family, ""
    allowed = "these test images only" if family.images_only else "other images of the kind, too"
    intervals = "No interval can be given."
    if family.judged:
        intervals = (
            f"Bars: 95 % intervals that hold for all {family.judged} comparisons and effects of this report together, "
            f"for other seeds and {allowed}."
        )
        few = " A bar that meets the border goes on."
    where, beside = ("Above", "Below") if narrow else ("Right", "Left")
    numbers = "with its number, " if numbered else ""
    return (
        "A bar that leaves out 0 has a star: the variant differs from the baseline; without a star, the bar says how "
        f"large a difference can still be. {where}: each variant minus the baseline; marks are seeds, the upright line "
        f"is their mean. {intervals}{few} {beside}: mIoU of every seed (mark, {numbers}joined by a line to the same "
        "seed of the other variants) and the mean of a variant (upright line). Lines that run side by side: a seed is "
        "good or bad for all variants alike, which cancels in a difference; lines that cross: the order of variants "
        "depends on the seed."
    )


def classes(experiment: Experiment) -> Drawn:
    """Map of the differences in the IoU of every class to the baseline."""
    plan, factor = experiment.plan, PERCENT[1]
    compared = [name for name in lay_rows(plan).heights if name != plan["baseline"] and _paired(experiment, name)]
    names: list[str] = plan["class_names"]
    true = sum(cell.confusion.sum(axis=1) for cell in experiment.finished())
    share = 100 * true / true.sum()
    values = np.array(
        [
            [factor * experiment.difference(name, plan["baseline"], f"iou/{one}").mean for name in compared]
            for one in names
        ]
    )
    values[true == 0] = math.nan
    shown = list(range(len(names)))
    cut = ""
    if len(names) > MOST_CLASSES:
        most = np.nan_to_num(np.abs(values)).max(axis=1)
        order = np.argsort(-most, kind="stable")
        shown = sorted(int(index) for index in order[:MOST_CLASSES])
        cut = (
            f" Shown are the {MOST_CLASSES} of {len(names)} classes that move most in some variant, which makes the "
            "map look livelier than all classes would; none of the others moves by more than "
            f"{most[order[MOST_CLASSES]]:.2f} points."
        )
    judged = _judge_classes(experiment, compared, shown)
    miou = [factor * experiment.difference(name, plan["baseline"], "miou").mean for name in compared]
    drawn = np.vstack([values[shown], miou])
    figure = Figure(figsize=(WIDTH, 1.6 + 0.24 * len(drawn)), layout="constrained")
    columns = max(len(compared), 7)  # wider cells would only be stripes
    axis, bar = figure.subplots(1, 2, width_ratios=(len(compared), columns - len(compared) + 0.25))
    largest = max(float(np.nanmax(np.abs(drawn))), 1e-9)
    digits = (1 if largest >= 1 else 2) if len(compared) <= 14 else None
    colours = matrix(axis, drawn, FALL_AND_RISE, Normalize(-largest, largest), digits)
    axis.axhline(len(shown) - 0.5, color="black", linewidth=1.0)
    for row, of_variants in enumerate([*(family.rows for family in judged), experiment.comparisons]):
        for column, name in enumerate(compared):
            one = of_variants[name]
            if not math.isnan(drawn[row, column]) and (one.own_low > 0 or one.own_high < 0):
                box = Rectangle((column - 0.46, row - 0.42), 0.92, 0.84, fill=False, edgecolor="black", linewidth=1.3)
                axis.add_patch(box)
    absent = as_scored(" (in no test image)", plan)
    labels = [short(names[k], 30) + (f" ({share[k]:.1f} %)" if true[k] else absent) for k in shown]
    axis.set_yticks(range(len(drawn)), [*labels, "mIoU"])
    room = WIDTH - 0.075 * max(map(len, labels))
    _head_columns(axis, [full_labels(plan)[name] for name in compared], room / columns)
    bar.set_axis_off()
    title = f"difference in IoU to {short(plan['baseline'])} (percentage points)"
    figure.colorbar(colours, ax=axis, location="bottom", aspect=50, fraction=0.04, shrink=0.9).set_label(title)
    images_only = all(family.images_only for family in judged)
    only = "these images only" if images_only else "and other images where these lie in groups enough"
    allowed = (
        f"Framed: its own 95 % interval, for other seeds, {only}, leaves out 0. Of many cells about one in twenty "
        "would be framed by chance: the intervals are not corrected for the number of classes or variants. Not framed: "
        "no such evidence."
        if any(family.judged for family in judged)
        else f"No intervals: {next((row.reason for row in experiment.comparisons.values() if row.reason), 'too few')}."
    )
    return figure, (
        "Look for variants that gain in some classes what they lose in others: the mIoU (last row) hides it. IoU of "
        f"each class minus that of the baseline, {plan['baseline']}, on the test images: mean over seeds, paired by "
        "seed, in percentage points. Blue: the variant is better; orange: worse; white: equal. In brackets the share "
        f"of labelled pixels that are of the class. {allowed}{cut}"
    )


def refuse_differences(experiment: Experiment) -> str:
    """Why nothing can be compared with the baseline; empty where something can."""
    baseline = experiment.plan["baseline"]
    if not experiment.cells[baseline]:
        return f"the baseline, {baseline}, has no finished seed"
    if not any(_paired(experiment, name) for name in experiment.plan["variants"] if name != baseline):
        return "no other variant has finished a seed that the baseline has"
    return ""


def _score_row(axis: Axes, height: int, experiment: Experiment, name: str, score: str, look: Look) -> None:
    factor = SCORES[score].unit.factor
    values = [factor * value for value in experiment.values(name, score).values()]
    below = height + np.linspace(0.24, 0.4, len(values))  # the mark of the mean would hide them
    axis.scatter(values, below, s=13, color=look.colour, alpha=0.6, linewidths=0, zorder=3)
    draw_mean(axis, height, values, look)


def _draw_seeds(axis: Axes, experiment: Experiment, rows: Rows, *, narrow: bool) -> bool:
    """Each seed's mIoU, at a height of its own in every row, joined over the rows; whether the marks hold its
    number."""
    look, order = looks(experiment.plan), experiment.plan["seeds"]
    numbered = len(order) <= NUMBERED_SEEDS and rows.count <= MANY
    heights = dict(zip(order, np.linspace(-0.45, 0.45, len(order) + 2)[1:-1], strict=True))
    joined: dict[int, list[tuple[float, float]]] = {seed: [] for seed in order}
    for name, height in rows.heights.items():
        for seed, value in experiment.values(name, "miou").items():
            place = (PERCENT[1] * value, height + heights[seed])
            joined[seed].append(place)
            marks: dict[str, Any] = {"marker": look[name].marker, "s": (55 if narrow else 80) if numbered else 18}
            axis.scatter(*place, color=look[name].colour, linewidths=0, zorder=3, **marks)
            if numbered:
                text: dict[str, Any] = {
                    "fontsize": 6 if narrow else 7,
                    "color": ink(look[name].colour),
                    "clip_on": True,
                }
                axis.text(*place, str(seed), ha="center", va="center_baseline", **text)
        mean = PERCENT[1] * experiment.estimate(name, "miou").mean
        axis.plot([mean, mean], [height - 0.4, height + 0.4], color=look[name].colour, linewidth=1.6, zorder=1)
    for places in joined.values():
        axis.plot([x for x, _ in places], [y for _, y in places], color="#9a9a9a", linewidth=0.8, zorder=2)
    axis.set_xlabel("mIoU (%)")
    return numbered


def _draw_differences(axis: Axes, experiment: Experiment, rows: Rows, *, narrow: bool) -> None:
    """Differences to the baseline of each seed, their mean, and its interval of the report's family with its star."""
    look, baseline, family = looks(experiment.plan), experiment.plan["baseline"], experiment.family
    every, place = [0.0], axis.get_yaxis_transform()
    grey: dict[str, Any] = {"va": "center", "color": "#555555", "fontsize": 7 if narrow else 8, "transform": place}
    axis.axvline(0, color="#888888", linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
    for name, height in rows.heights.items():
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
        if name == baseline:
            axis.text(0.5, height, "the baseline itself", ha="center", bbox=box, **grey)
            continue
        row, paired = family.rows.get(name), _paired(experiment, name)
        reason = "no finished seed" if row is None else row.reason
        if reason:
            axis.text(0.99, height + 0.3, f"no interval: {reason}", ha="right", **grey)
        line: dict[str, Any] = {"color": look[name].colour, "solid_capstyle": "butt", "zorder": 2}
        if row is not None and not reason:
            row = row.times(PERCENT[1])
            axis.plot([row.low, row.high], [height] * 2, linewidth=3.2, **line)
            axis.plot([row.estimate] * 2, [height - 0.3, height + 0.3], linewidth=1.4, **line)
            if row.star:
                axis.text(1.01, height, "*", fontsize=14, ha="left", va="center_baseline", transform=place)
        every += paired
        dots: dict[str, Any] = {"marker": look[name].marker, "s": 22, "linewidths": 0, "zorder": 3}
        axis.scatter(paired, [height - 0.24] * len(paired), color=look[name].colour, **dots)
    axis.set_xlim(*limits(every, axis.get_xlim()))
    only = ", these images only" if family.images_only else ""
    named = f"difference to {short(baseline, 20)}" if narrow else f"difference in mIoU to {short(baseline)}"
    axis.set_xlabel(f"{named}\n({'' if narrow else 'percentage '}points{only})")


def _paired(experiment: Experiment, name: str) -> list[float]:
    """Differences in mIoU to the baseline in points, of the seeds that both finished."""
    ours, theirs = experiment.values(name, "miou"), experiment.values(experiment.plan["baseline"], "miou")
    return [PERCENT[1] * (value - theirs[seed]) for seed, value in ours.items() if seed in theirs]


def _judge_classes(experiment: Experiment, compared: Sequence[str], shown: Sequence[int]) -> list[Family[str]]:
    """Differences in the IoU of each shown class to the baseline, a family a class."""
    settings, baseline = experiment.plan.get("statistics", {}), experiment.plan["baseline"]
    options: dict[str, Any] = {"bound": 1.0, "draws": 1000}  # only a row's own interval is drawn
    options |= {"separate": settings.get("variances") == "separate", "stage": settings.get("stage")}
    weights, counts = {name: {name: 1.0, baseline: -1.0} for name in compared}, experiment.counts()
    return [judge(counts, weights, groups=experiment.groups, score=f"iou/{k}", **options) for k in shown]


def _head_columns(axis: Axes, labels: Sequence[str], width: float) -> None:
    """Names the columns of a map at its top, on more lines or upright where they are narrow; `width` in inches."""
    axis.xaxis.tick_top()
    letters = int(width * 72 / 4.9)  # of 7.5 points, on average
    upright = letters < 9
    wrapped = ["\n".join(textwrap.wrap(label, 40 if upright else letters)) for label in labels]
    axis.set_xticks(range(len(labels)), wrapped, fontsize=7.5, rotation=90 if upright else 0)
