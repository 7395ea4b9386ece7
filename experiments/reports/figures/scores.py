"""Scores and differences: of every seed, and of every class."""

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from experiments.evidence.experiment import Experiment
from experiments.evidence.intervals import KINDS, Estimate, WeightedScore, estimate, make_contrasts
from experiments.reports.figures.looks import (
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
    looks,
    matrix,
    short,
    shown_kind,
)
from lightning_modules.components.scores.table import PERCENT, SCORES

PANELS = ("miou", "boundary_f1", "checkerboard")
NUMBERED_SEEDS = 6  # with more, the dots of a row are too small to hold their numbers
OF_KIND: dict[str, tuple[dict[str, Any], float]] = {  # what an interval allows for: how it is drawn, and where in a row
    "seeds": ({"linewidth": 1.4, "linestyle": "-"}, -0.24),
    "images": ({"linewidth": 1.4, "linestyle": (0, (2, 1))}, 0.0),
    "both": ({"linewidth": 3.6, "linestyle": "-"}, 0.24),
}
MOST_CLASSES = 40  # rows that a page holds
CLASS_RESAMPLES = 2_000  # in each class; ends of intervals move by a hundredth of their width


def scores(experiment: Experiment) -> Drawn:
    """Every seed's score, the mean and its interval, a row for each variant and a panel for each score."""
    look, rows = looks(experiment.plan), lay_rows(experiment.plan)
    figure = Figure(figsize=(WIDTH, 1.1 + 0.32 * rows.count), layout="constrained")
    axes = figure.subplots(1, len(PANELS), sharey=True)
    for axis, score in zip(axes, PANELS, strict=True):
        title, (unit, factor) = SCORES[score].title, SCORES[score].unit
        baseline = experiment.estimate(experiment.plan["baseline"], score)
        axis.axvline(factor * baseline.mean, color="#888888", linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
        for name, height in rows.heights.items():
            _score_row(axis, height, experiment, name, score, look[name])
        of_seeds = [factor * cell.scores[score] for cell in experiment.finished()]
        axis.set_xlim(*limits(of_seeds, axis.get_xlim(), 0, factor))
        axis.set(xlabel=f"{title} ({unit})")
        axis.locator_params(axis="x", nbins=6)
        axis.grid(axis="y", visible=False)
    label_rows(axes[0], rows, experiment)
    return figure, (
        "Scores on the test images, last epoch. Small dots: every seed; large mark: their mean; bar: 95 % interval of "
        "the mean over seeds (Student's t; none with one seed; it goes on where it meets the border). The dashed line "
        "is the mean of the baseline (*); '(2 of 3)' marks a variant with fewer seeds than planned. Higher is better "
        "for mIoU and boundary F1, lower for checkerboard energy."
    )


def seeds(experiment: Experiment) -> Drawn:
    """Every seed's mIoU, seeds joined over the variants, and beside it the paired differences to the baseline."""
    rows = lay_rows(experiment.plan)
    figure = Figure(figsize=(WIDTH, 1.6 + 0.6 * rows.count), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    numbered = _draw_seeds(left, experiment, rows)
    shown, reasons = _draw_differences(right, experiment, rows)
    for axis in (left, right):
        axis.grid(axis="y", visible=False)
    label_rows(left, rows, experiment)
    handles = [Line2D([], [], color="#444444", label=KINDS[kind], **style) for kind, (style, _) in shown.items()]
    if handles:
        title = "95 % intervals of the mean difference, for"
        figure.legend(handles=handles, title=title, loc="outside lower right", ncols=3, handlelength=4, fontsize=8)
    numbers = "with its number, " if numbered else ""
    meaning = (
        f"Left: mIoU of every seed (mark, {numbers}joined by a line to the same seed of the other variants) and the "
        "mean of a variant (upright line). Lines that run side by side mean that a seed is good or bad for all "
        "variants alike, which cancels in a difference; lines that cross, that the order of variants depends on the "
        "seed. Right: each variant minus the baseline (*), paired by seed: the marks are the seeds, the upright line "
        "their mean, the bars 95 % intervals of it, drawn apart by what may change when the experiment is made again. "
        "A claim on the design itself needs the thick one. They are not corrected for the number of variants. A bar "
        "that meets the border goes on."
    )
    left_out = [
        f"No interval for {KINDS[kind]} of {', '.join(names)}: {why}." for (kind, why), names in reasons.items()
    ]
    return figure, " ".join([meaning, *left_out])


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
    contrasts = _class_contrasts(experiment, compared, shown)
    kind = shown_kind([one for row in contrasts for one in row])
    miou = [factor * experiment.difference(name, plan["baseline"], "miou").mean for name in compared]
    drawn = np.vstack([values[shown], miou])
    figure = Figure(figsize=(WIDTH, 1.6 + 0.24 * len(drawn)), layout="constrained")
    columns = max(len(compared), 7)  # wider cells would only be stripes
    axis, bar = figure.subplots(1, 2, width_ratios=(len(compared), columns - len(compared) + 0.25))
    largest = max(float(np.nanmax(np.abs(drawn))), 1e-9)
    digits = (1 if largest >= 1 else 2) if len(compared) <= 14 else None
    colours = matrix(axis, drawn, FALL_AND_RISE, Normalize(-largest, largest), digits)
    axis.axhline(len(shown) - 0.5, color="black", linewidth=1.0)
    for row, of_class in enumerate([*contrasts, _miou_contrasts(experiment, compared)]):
        for column, one in enumerate(of_class):
            interval = one.estimate(kind) if kind else estimate([])
            if not math.isnan(drawn[row, column]) and (interval.low > 0 or interval.high < 0):
                box = Rectangle((column - 0.46, row - 0.42), 0.92, 0.84, fill=False, edgecolor="black", linewidth=1.3)
                axis.add_patch(box)
    labels = [short(names[k], 30) + (f" ({share[k]:.1f} %)" if true[k] else " (in no test image)") for k in shown]
    axis.set_yticks(range(len(drawn)), [*labels, "mIoU"])
    room = WIDTH - 0.075 * max(map(len, labels))
    _head_columns(axis, [full_labels(plan)[name] for name in compared], room / columns)
    bar.set_axis_off()
    title = f"difference in IoU to {short(plan['baseline'])} (percentage points)"
    figure.colorbar(colours, ax=axis, location="bottom", aspect=50, fraction=0.04, shrink=0.9).set_label(title)
    allowed = (
        f"Framed: its own 95 % interval, for {KINDS[kind]}, leaves out 0. Of many cells about one in twenty would be "
        "framed by chance: the intervals are not corrected for the number of classes or variants. Not framed: no such "
        "evidence, also where a class is in too few images for an interval."
        if kind
        else "No intervals: too few seeds and images."
    )
    return figure, (
        f"IoU of each class minus that of the baseline, {plan['baseline']}, on the test images: mean over seeds, "
        "paired by seed, in percentage points. Blue: the variant is better; orange: worse; white: equal. In brackets "
        f"the share of labelled pixels that are of the class. {allowed}{cut} Look for variants that gain in some "
        "classes what they lose in others: the mIoU (last row) hides it."
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
    draw_mean(axis, height, experiment.estimate(name, score).times(factor), look)


def _draw_seeds(axis: Axes, experiment: Experiment, rows: Rows) -> bool:
    """Each seed's mIoU, at a height of its own in every row, joined over the rows; whether the marks hold its
    number."""
    look, order = looks(experiment.plan), experiment.plan["seeds"]
    numbered = len(order) <= NUMBERED_SEEDS
    heights = dict(zip(order, np.linspace(-0.45, 0.45, len(order) + 2)[1:-1], strict=True))
    joined: dict[int, list[tuple[float, float]]] = {seed: [] for seed in order}
    for name, height in rows.heights.items():
        for seed, value in experiment.values(name, "miou").items():
            place = (PERCENT[1] * value, height + heights[seed])
            joined[seed].append(place)
            marks: dict[str, Any] = {"marker": look[name].marker, "s": 80 if numbered else 18}
            axis.scatter(*place, color=look[name].colour, linewidths=0, zorder=3, **marks)
            if numbered:
                text: dict[str, Any] = {"fontsize": 6.5, "color": ink(look[name].colour), "clip_on": True}
                axis.text(*place, str(seed), ha="center", va="center_baseline", **text)
        mean = PERCENT[1] * experiment.estimate(name, "miou").mean
        axis.plot([mean, mean], [height - 0.4, height + 0.4], color=look[name].colour, linewidth=1.6, zorder=1)
    for places in joined.values():
        axis.plot([x for x, _ in places], [y for _, y in places], color="#9a9a9a", linewidth=0.8, zorder=2)
    axis.set_xlabel("mIoU (%)")
    return numbered


def _draw_differences(
    axis: Axes, experiment: Experiment, rows: Rows
) -> tuple[dict[str, tuple[dict[str, Any], float]], dict[tuple[str, str], list[str]]]:
    """Differences to the baseline of each seed, their mean and its intervals.

    Returns the kinds of intervals that were drawn, of OF_KIND, and by kind and reason the variants that lack one.
    """
    look, baseline = looks(experiment.plan), experiment.plan["baseline"]
    drawn, reasons, every = set[str](), dict[tuple[str, str], list[str]](), [0.0]
    axis.axvline(0, color="#888888", linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
    for name, height in rows.heights.items():
        if name == baseline:
            text: dict[str, Any] = {"ha": "center", "va": "center", "color": "#555555"}
            text |= {"bbox": {"facecolor": "white", "edgecolor": "none", "pad": 1.5}}
            axis.text(0.5, height, "the baseline itself", transform=axis.get_yaxis_transform(), **text)
            continue
        line: dict[str, Any] = {"color": look[name].colour, "solid_capstyle": "butt", "zorder": 2}
        for kind, interval in _differences(experiment, name).items():
            if interval.reason:
                reasons.setdefault((kind, interval.reason), []).append(name)
                continue
            drawn.add(kind)
            style, aside = OF_KIND[kind]
            axis.plot([interval.low, interval.high], [height + aside] * 2, **line, **style)
        paired = _paired(experiment, name)
        every += paired
        dots: dict[str, Any] = {"marker": look[name].marker, "s": 22, "linewidths": 0, "zorder": 3}
        axis.scatter(paired, [height + OF_KIND["seeds"][1]] * len(paired), color=look[name].colour, **dots)
        if paired:
            axis.plot([np.mean(paired)] * 2, [height - 0.36, height + 0.36], linewidth=1.2, **line)
    axis.set_xlim(*limits(every, axis.get_xlim()))
    axis.set_xlabel(f"difference in mIoU to {short(baseline)} (percentage points)")
    return {kind: OF_KIND[kind] for kind in OF_KIND if kind in drawn}, reasons


def _paired(experiment: Experiment, name: str) -> list[float]:
    """Differences in mIoU to the baseline in points, of the seeds that both finished."""
    ours, theirs = experiment.values(name, "miou"), experiment.values(experiment.plan["baseline"], "miou")
    return [PERCENT[1] * (value - theirs[seed]) for seed, value in ours.items() if seed in theirs]


def _differences(experiment: Experiment, name: str) -> dict[str, Estimate]:
    """Of the difference in mIoU to the baseline in points, by what its interval allows for."""
    compared = experiment.compared
    if compared is None:
        return {"seeds": experiment.difference(name, experiment.plan["baseline"], "miou").times(PERCENT[1])}
    contrast = compared.differences[name].contrast
    return {kind: contrast.estimate(kind).times(PERCENT[1]) for kind in KINDS}


def _class_contrasts(
    experiment: Experiment, compared: Sequence[str], shown: Sequence[int]
) -> list[list[WeightedScore]]:
    """Difference in the IoU of each shown class to the baseline, a row a class."""
    baseline, names = experiment.plan["baseline"], experiment.plan["class_names"]
    if not experiment.same_images:
        of_classes = [f"iou/{names[k]}" for k in shown]
        return [[_over_seeds(experiment, name, baseline, score) for name in compared] for score in of_classes]
    counts = experiment.counts()
    cells = {name: counts[name] for name in (baseline, *compared)}
    weights = {name: {name: 1.0, baseline: -1.0} for name in compared}
    by_class = [make_contrasts(cells, weights, f"iou/{k}", resamples=CLASS_RESAMPLES) for k in shown]
    return [list(of_class.values()) for of_class in by_class]


def _miou_contrasts(experiment: Experiment, compared: Sequence[str]) -> list[WeightedScore]:
    if experiment.compared is None:
        return [_over_seeds(experiment, name, experiment.plan["baseline"], "miou") for name in compared]
    return [experiment.compared.differences[name].contrast for name in compared]


def _over_seeds(experiment: Experiment, name: str, reference: str, score: str) -> WeightedScore:
    ours, theirs = experiment.values(name, score), experiment.values(reference, score)
    pairs = [value - theirs[seed] for seed, value in ours.items() if seed in theirs]
    return WeightedScore(np.array([pair for pair in pairs if not math.isnan(pair)]))


def _head_columns(axis: Axes, labels: Sequence[str], width: float) -> None:
    """Names the columns of a map at its top, on more lines or upright where they are narrow; `width` in inches."""
    axis.xaxis.tick_top()
    letters = int(width * 72 / 4.9)  # of 7.5 points, on average
    upright = letters < 9
    wrapped = ["\n".join(textwrap.wrap(label, 40 if upright else letters)) for label in labels]
    axis.set_xticks(range(len(labels)), wrapped, fontsize=7.5, rotation=90 if upright else 0)
