"""Scores and differences: of every seed, and of every class."""

import math
import re
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
from experiments.reports.figures.forms import TEXT, WIDE, Form
from experiments.reports.figures.looks import (
    FALL_AND_RISE,
    MANY,
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
    row_height,
    short,
)
from lightning_modules.components.scores.table import PERCENT, SCORES

PANELS = ("miou", "boundary_f1", "checkerboard")
NUMBERED_SEEDS = 6  # with more, or with MANY rows, the dots of a row are too small to hold their numbers
MOST_CLASSES = 40  # rows that a page holds


def scores(experiment: Experiment, form: Form = WIDE) -> Drawn:
    """Every seed's score and the mean, a row for each variant and a panel for each score."""
    look, rows, count = looks(experiment.plan), lay_rows(experiment.plan), len(PANELS)
    height = (0.55 if form.printed else 1.1) + row_height(form, rows) * rows.count
    figure = Figure(figsize=(form.width, height * (count if form.narrow else 1)), layout="constrained")
    axes = figure.subplots(count, 1) if form.narrow else figure.subplots(1, count, sharey=True)
    for axis, score in zip(axes, PANELS, strict=True):
        title, (unit, factor) = SCORES[score].title, SCORES[score].unit
        of_seeds = [factor * cell.scores[score] for cell in experiment.finished()]
        log = unit != PERCENT[0] and all(value > 0 for value in of_seeds)  # NaN is not
        baseline = experiment.estimate(experiment.plan["baseline"], score)
        axis.axvline(factor * baseline.mean, color="#888888", linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
        for name, height in rows.heights.items():
            _score_row(axis, height, experiment, name, score, look[name], form)
        if log:
            log_scale(axis, "x")
        else:
            axis.locator_params(axis="x", nbins=6 if form.narrow or not form.printed else 4)
        line = "\n" if log and form.printed and not form.narrow else " "
        axis.set(xlabel=f"{title}{line}({unit}{', log scale' if log else ''})")
        axis.grid(axis="y", visible=False)
    for axis in axes if form.narrow else axes[:1]:
        label_rows(axis, rows, experiment, form)
    return figure, (
        "Dots of two variants that overlap: their seeds cannot be told apart. Scores on the test images, last epoch. "
        "Small dots: every seed; large mark: their mean; thin line: from the lowest to the highest seed, which is no "
        "interval. The dashed line is the mean of the baseline; '(2 of 3)' marks a variant with fewer seeds than "
        "planned. Higher is better for mIoU and boundary F1, lower for checkerboard energy."
    )


def seeds(experiment: Experiment, form: Form = WIDE) -> Drawn:
    """Every seed's mIoU, seeds joined over the variants, and beside it the differences to the baseline.

    In a column the differences stand above the scores.
    """
    rows = lay_rows(experiment.plan)
    close = rows.count > MANY
    if form.narrow:  # with the answer no longer than two screens of a phone
        height = 1.1 + (0.3 if close else 0.42) * rows.count
    elif form.printed:
        height = 0.7 + (0.2 if close else 0.26) * rows.count
    else:
        height = 1.3 + (0.36 if close else 0.48) * rows.count
    figure = Figure(figsize=(form.width, height), layout="constrained")
    if form.narrow:
        right, left = figure.subplots(2, 1)
    else:
        left, right = figure.subplots(1, 2, sharey=True)
    return figure, _seeds(experiment, rows, left, right, form)


def _seeds(experiment: Experiment, rows: Rows, left: Axes, right: Axes, form: Form) -> str:
    """Draws both panels; returns the caption."""
    numbered = _draw_seeds(left, experiment, rows, form)
    _draw_differences(right, experiment, rows, form)
    for axis in (left, right):
        axis.grid(axis="y", visible=False)
    for axis in (left, right) if form.narrow else (left,):
        label_rows(axis, rows, experiment, form)
    family, few = experiment.family, ""
    allowed = "these test images only" if family.images_only else "other images of the kind, too"
    intervals = "No interval can be given."
    if family.judged:
        intervals = (
            f"Bars: 95 % intervals that hold for all {family.judged} comparisons and effects of this report together, "
            f"for other seeds and {allowed}."
        )
        few = " A bar that meets the border goes on."
    where, beside = ("Above", "Below") if form.narrow else ("Right", "Left")
    numbers = "with its number, " if numbered else ""
    return (
        "A bar that leaves out 0 has a star: the variant differs from the baseline; without a star, the bar says how "
        f"large a difference can still be. {where}: each variant minus the baseline; marks are seeds, the upright line "
        f"is their mean. {intervals}{few} {beside}: mIoU of every seed (mark, {numbers}joined by a line to the same "
        "seed of the other variants) and the mean of a variant (upright line). Lines that run side by side: a seed is "
        "good or bad for all variants alike, which cancels in a difference; lines that cross: the order of variants "
        "depends on the seed."
    )


def classes(experiment: Experiment, form: Form = WIDE) -> Drawn:
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
    absent = as_scored(" (in no test image)", plan)
    labels = [short(names[k], 16 if form.narrow else 30) for k in shown]
    if not form.narrow:
        labels = [
            label + (f" ({share[k]:.1f} %)" if true[k] else absent) for label, k in zip(labels, shown, strict=True)
        ]
    room = form.width - form.length(max(map(len, labels)))
    columns = len(compared) if form.narrow else max(len(compared), 7)  # wider cells would only be stripes
    heads, upright = _wrap(
        [full_labels(plan, form)[name] for name in compared], room / columns, form, 24 if form.narrow else 40
    )
    height = (1.0 if form.printed else 1.6) + (0.17 if form.printed else 0.24) * len(drawn)
    if form.printed:  # below the wide form there is room for any head
        height += form.length(max(map(len, heads)) if upright else 0) + 0.11 * max(head.count("\n") for head in heads)
    figure = Figure(figsize=(form.width, height), layout="constrained")
    if columns > len(compared):
        axis, bar = figure.subplots(1, 2, width_ratios=(len(compared), columns - len(compared) + 0.25))
        bar.set_axis_off()
    else:
        axis = figure.subplots()
    largest = max(float(np.nanmax(np.abs(drawn))), 1e-9)
    digits = 1 if largest >= 1 else 2
    widest = len(f"+{largest:.{digits}f}")
    fits = widest * 0.62 * form.letters(7) / 72 < room / columns if form.printed else len(compared) <= 14
    colours = matrix(axis, drawn, FALL_AND_RISE, Normalize(-largest, largest), digits if fits else None)
    axis.axhline(len(shown) - 0.5, color="black", linewidth=1.0)
    for row, of_variants in enumerate([*(family.rows for family in judged), experiment.comparisons]):
        for column, name in enumerate(compared):
            one = of_variants[name]
            if not math.isnan(drawn[row, column]) and (one.own_low > 0 or one.own_high < 0):
                width = 1.3 * form.mark
                box = Rectangle((column - 0.46, row - 0.42), 0.92, 0.84, fill=False, edgecolor="black", linewidth=width)
                axis.add_patch(box)
    axis.set_yticks(range(len(drawn)), [*labels, "mIoU"])
    axis.xaxis.tick_top()
    axis.set_xticks(range(len(heads)), heads, fontsize=form.letters(7.5), rotation=90 if upright else 0)
    unit = "points" if form.narrow else "percentage points"
    title = f"difference in IoU to {short(plan['baseline'])}{chr(10) if form.narrow else ' '}({unit})"
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


def _score_row(axis: Axes, height: int, experiment: Experiment, name: str, score: str, look: Look, form: Form) -> None:
    factor = SCORES[score].unit.factor
    values = [factor * value for value in experiment.values(name, score).values()]
    below = height + np.linspace(0.24, 0.4, len(values))  # the mark of the mean would hide them
    axis.scatter(values, below, s=form.area(13), color=look.colour, alpha=0.6, linewidths=0, zorder=3)
    draw_mean(axis, height, values, look, form)


def _draw_seeds(axis: Axes, experiment: Experiment, rows: Rows, form: Form) -> bool:
    """Each seed's mIoU, at a height of its own in every row, joined over the rows; whether the marks hold its
    number."""
    look, order = looks(experiment.plan), experiment.plan["seeds"]
    # In print letters of 7 points would fill the marks of a row.
    numbered = len(order) <= NUMBERED_SEEDS and rows.count <= MANY and not form.printed
    heights = dict(zip(order, np.linspace(-0.45, 0.45, len(order) + 2)[1:-1], strict=True))
    joined: dict[int, list[tuple[float, float]]] = {seed: [] for seed in order}
    for name, height in rows.heights.items():
        for seed, value in experiment.values(name, "miou").items():
            place = (PERCENT[1] * value, height + heights[seed])
            joined[seed].append(place)
            # Round ones hold a number best; a row has its name at the left.
            marks: dict[str, Any] = {"marker": "o" if numbered else look[name].marker, "s": 80 if numbered else 18}
            axis.scatter(*place, color=look[name].colour, linewidths=0, zorder=3, **marks)
            if numbered:
                text: dict[str, Any] = {"fontsize": 7, "color": ink(look[name].colour), "clip_on": True}
                axis.text(*place, str(seed), ha="center", va="center_baseline", **text)
        mean = PERCENT[1] * experiment.estimate(name, "miou").mean
        width = 1.6 * form.mark
        axis.plot([mean, mean], [height - 0.4, height + 0.4], color=look[name].colour, linewidth=width, zorder=1)
    for places in joined.values():
        width = 0.8 * form.mark
        axis.plot([x for x, _ in places], [y for _, y in places], color="#9a9a9a", linewidth=width, zorder=2)
    axis.set_xlabel("mIoU (%)")
    return numbered


def _draw_differences(axis: Axes, experiment: Experiment, rows: Rows, form: Form) -> None:
    """Differences to the baseline of each seed, their mean, and its interval of the report's family with its star."""
    look, baseline, family = looks(experiment.plan), experiment.plan["baseline"], experiment.family
    every, place = [0.0], axis.get_yaxis_transform()
    grey: dict[str, Any] = {"va": "center", "color": "#555555", "fontsize": form.letters(8), "transform": place}
    axis.axvline(0, color="#888888", linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
    for name, height in rows.heights.items():
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
        if name == baseline:
            axis.text(0.5, height, "the baseline itself", ha="center", bbox=box, **grey)
            continue
        row, paired = family.rows.get(name), _paired(experiment, name)
        reason = "no finished seed" if row is None else row.reason
        if reason:
            why = short(reason, 34 if form.printed else 80)
            axis.text(0.99, height + 0.3, f"no interval: {why}", ha="right", **grey)
        line: dict[str, Any] = {"color": look[name].colour, "solid_capstyle": "butt", "zorder": 2}
        if row is not None and not reason:
            row = row.times(PERCENT[1])
            axis.plot([row.low, row.high], [height] * 2, linewidth=3.2 * form.mark, **line)
            axis.plot([row.estimate] * 2, [height - 0.3, height + 0.3], linewidth=1.4 * form.mark, **line)
            if row.star:
                star: dict[str, Any] = {"fontsize": TEXT if form.printed else 14, "transform": place}
                axis.text(1.01, height, "*", ha="left", va="center_baseline", **star)
        every += paired
        dots: dict[str, Any] = {"marker": look[name].marker, "s": form.area(22), "linewidths": 0, "zorder": 3}
        axis.scatter(paired, [height - 0.24] * len(paired), color=look[name].colour, **dots)
    axis.set_xlim(*limits(every, axis.get_xlim()))
    only = ", these images only" if family.images_only else ""
    brief = form.printed  # a panel is too narrow for all of the words
    named = f"difference to {short(baseline, 20)}" if brief else f"difference in mIoU to {short(baseline)}"
    axis.set_xlabel(f"{named}\n({'' if brief else 'percentage '}points{only})")


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


def _wrap(labels: Sequence[str], width: float, form: Form, most: int) -> tuple[list[str], bool]:
    """The heads of the columns of a map, on more lines where they are narrow, and whether they stand upright.

    `width` in inches, `most` letters of one that is upright.
    """
    letters = int(width / form.length(1, form.letters(7.5))) if form.printed else int(width * 72 / 4.9)
    upright = letters < 9
    return [_lines(label, most if upright else letters) for label in labels], upright


def _lines(text: str, letters: int) -> str:
    """The text on lines of so many letters, cut behind the signs that join its words, elsewhere only where it must."""
    lines = [""]
    for part in re.findall(r"[^ +,_/-]+[ +,_/-]*|[ +,_/-]+", text):
        if lines[-1] and len((lines[-1] + part).rstrip()) > letters:
            lines.append("")
        pieces = [part[start : start + letters] for start in range(0, len(part), letters)]
        lines[-1] += pieces[0]
        lines += pieces[1:]
    return "\n".join(line.rstrip() for line in lines)
