"""How predictions err: which classes they mix up, where the errors lie, and whether the network knows of them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from experiments.evidence.confusions import confusion_shares, frequent_confusions
from experiments.evidence.experiment import Experiment
from experiments.reports.figures.forms import WIDE, Form
from experiments.reports.figures.looks import (
    FALL_AND_RISE,
    SHARE,
    Drawn,
    Look,
    draw_mean,
    label_rows,
    lay_rows,
    legend_height,
    limits,
    looks,
    matrix,
    row_height,
    short,
    variant_legend,
)
from lightning_modules.components.scores.table import BOUNDARY, PERCENT

MOST_CONFUSED = 24  # classes of a confusion matrix that stay readable at half the width of a page
WITH_NUMBERS = 13
RARE = 1 / 1000  # of the pixels: bins with fewer are left out of a reliability curve


def confusion(experiment: Experiment, form: Form = WIDE) -> Drawn:
    """Confusion matrix of the baseline, and beside it what the variant of most different mIoU changes."""
    plan, factor = experiment.plan, PERCENT[1]
    baseline = plan["baseline"]
    of_baseline, names = _normalised(experiment, baseline), plan["class_names"]
    other = most_different(experiment)
    shown = list(range(len(names)))
    cut = ""
    if len(names) > MOST_CONFUSED:
        pixels = _pixels(experiment, baseline)
        wrong = pixels - np.diag(np.diag(pixels))
        order = np.argsort(-(wrong.sum(axis=0) + wrong.sum(axis=1)), kind="stable")
        shown = sorted(int(index) for index in order[:MOST_CONFUSED])
        cut = (
            f" Shown are the {MOST_CONFUSED} of {len(names)} classes with the most wrong pixels of the baseline; "
            "shares are of all pixels of a class, so that rows do not add up to 100 % here."
        )
    rows = np.ix_(shown, shown)
    # In print a number such as +12.3 takes 0.3 inches.
    panel = form.width if form.narrow else form.width / 2
    numbered = len(shown) <= WITH_NUMBERS and not (form.printed and len(shown) > 0.7 * panel / 0.3)
    digits = 0 if numbered else None
    count = 2 if other else 1
    labels = [short(names[k], 16 if form.narrow else 24) for k in shown]
    longest = form.length(max(map(len, labels))) if form.printed else 0.07 * max(map(len, labels))  # inches, about
    below = [label.replace(" ", "\n") for label in labels] if form.printed else labels
    widest = form.length(max(len(word) for label in below for word in label.split("\n"))) if form.printed else longest
    upright = len(shown) * widest > panel - (0.5 if form.printed else 0.8) - longest
    below = labels if upright else below
    if form.printed:
        height = 0.95 + max(0.14 * len(shown), 0.22 * min(len(shown), 8)) + (longest if upright else 0.22)
        height *= count if form.narrow else 1
    else:
        height = 1.9 + 0.32 * min(len(shown), 14) + (longest if upright else 0.2)
    figure = Figure(figsize=(form.width, height), layout="constrained")
    axes = figure.subplots(count, 1, squeeze=False)[:, 0] if form.narrow else figure.subplots(1, 2)
    drawn = matrix(axes[0], of_baseline[rows], SHARE, PowerNorm(0.5, 0, 100), digits)
    figure.colorbar(drawn, ax=axes[0], location="bottom", aspect=40, fraction=0.05).set_label(
        f"{short(baseline)}:\nshare of the true class's pixels (%)"
    )
    caption, points = "", "points" if form.printed else "percentage points"
    if other:
        apart = experiment.difference(other, baseline, "miou")
        change = (_normalised(experiment, other) - of_baseline)[rows]
        largest = max(float(np.nanmax(np.abs(change), initial=0)), 1e-9)
        finer = None if digits is None else 1
        drawn = matrix(axes[1], change, FALL_AND_RISE, Normalize(-largest, largest), finer)
        figure.colorbar(drawn, ax=axes[1], location="bottom", aspect=40, fraction=0.05).set_label(
            f"{short(other)}\nminus {short(baseline, 26 if form.printed else 40)} ({points})"
        )
        signed = f"{factor * apart.mean:+.2f}"
        caption = (
            f" Right: the same matrix of {other} minus it, in percentage points (blue: more, orange: fewer pixels). Of "
            f"all variants it is the one whose mean mIoU differs most from the baseline's ({signed} points, "
            f"{apart.n} seed{'s' if apart.n > 1 else ''}). Better is blue on the diagonal and orange off "
            "it."
        )
    elif not form.narrow:
        axes[1].set_axis_off()
    for axis in axes[:count]:
        size = form.letters(7 if len(shown) > WITH_NUMBERS else 8)
        axis.set_xticks(range(len(shown)), below, fontsize=size, rotation=90 if upright else 0)
        axis.set_yticks(range(len(shown)), labels, fontsize=size)
        axis.set(xlabel="predicted", ylabel="true")
    return figure, (
        "Look for what is mixed up, not for small differences: no uncertainty is drawn. "
        f"Left: confusion matrix of the baseline, {baseline}: of the pixels of a true class (row), the share that was "
        "given each class (column), mean over seeds; the diagonal is the class's accuracy (the colours follow the "
        f"square root, so that small shares show). A grey row is a class that is in no test image.{caption}{cut}"
    )


def errors(experiment: Experiment, form: Form = WIDE) -> Drawn:
    """Wrong pixels by where they lie, segments that are missed or made up, and the most frequent confusions."""
    plan, look, rows = experiment.plan, looks(experiment.plan), lay_rows(experiment.plan)
    shares = confusion_shares(experiment)
    pairs = list(frequent_confusions(shares))[: 5 if form.narrow else None]
    with_segments = any(cell.segments is not None for cell in experiment.finished())
    panels = 1 + with_segments
    if form.printed:
        below = legend_height(plan, look, form)
        tall = 0.6 + row_height(form, rows) * rows.count, 0.4 + (0.34 if form.narrow else 0.25) * len(pairs)
        tall = (tall[0] * (panels if form.narrow else 1), tall[1])
    else:
        below, tall = 0.7, (0.8 + 0.34 * rows.count, 0.7 + 0.36 * len(pairs))
    figure = Figure(figsize=(form.width, sum(tall) + below), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=tall, squeeze=False)[:, 0]
    if form.narrow:
        axes = top.subplots(panels, 1, squeeze=False)[:, 0]
    else:
        axes = top.subplots(1, panels, sharey=True, squeeze=False)[0]
    split_known = _wrong_pixels(axes[0], experiment, rows.heights, look, form)
    if with_segments:
        _segments(axes[1], experiment, rows.heights, look, form)
    for axis in axes if form.narrow else axes[:1]:
        label_rows(axis, rows, experiment, form)
    for axis in axes:
        axis.grid(axis="y", visible=False)
    caption = [
        "Where predictions err: at borders or inside, in whole segments, and between which classes. Means over seeds; "
        "strokes: the seeds, on a thin line. Wrong pixels in percent of all labelled ones"
        + (f", full colour: within {BOUNDARY} pixels of a true boundary; pale: inside." if split_known else ".")
    ]
    if not split_known:
        caption.append("Where they lie is not stored in these cells.")
    if with_segments:
        caption.append(
            "Segments are connected pixels of one class (8 neighbours). Missed, filled mark: true segments of which no "
            "pixel got the class, in percent of all true ones. Hallucinated, hollow mark: predicted segments without a "
            "single pixel of the class, in percent of all predicted ones. Small segments count like large ones."
        )
    else:
        caption.append("Segments are not stored in these cells.")
    if pairs:
        of_variants = {name: shares.get(name) for name in rows.heights}
        _confusions(bottom.subplots(), experiment, pairs, of_variants, look, form)
        caption.append(
            f"Below: the {len(pairs)} most frequent confusions (true → predicted class), by the mean over variants, in "
            "percent of the wrong pixels of each variant, mean over seeds: one to the right errs in this way more than "
            "in others, though not more often in all."
        )
    variant_legend(figure, plan, [name for name in look if experiment.cells[name]], form)
    return figure, " ".join(caption)


def calibration(experiment: Experiment, form: Form = WIDE) -> Drawn:
    """Accuracy against confidence, how often each confidence occurs, and the calibration error of every seed."""
    plan, look, rows = experiment.plan, looks(experiment.plan), lay_rows(experiment.plan)
    row = 0.4 + row_height(form, rows) * rows.count
    if form.narrow:
        heights, below = (2.1, 0.8, row), legend_height(plan, look, form)
        figure = Figure(figsize=(form.width, sum(heights) + 0.3 + below), layout="constrained")
        curve, counts, error = figure.subplots(3, 1, height_ratios=heights)
        counts.sharex(curve)
    else:
        height = max(5.4, 1.4 + 0.34 * rows.count)
        if form.printed:
            height = max(2.6, row) + legend_height(plan, look, form)
        figure = Figure(figsize=(form.width, height), layout="constrained")
        grid = figure.add_gridspec(2, 2, width_ratios=(1, 1), height_ratios=(3, 1))
        curve = figure.add_subplot(grid[0, 0])
        counts = figure.add_subplot(grid[1, 0], sharex=curve)
        error = figure.add_subplot(grid[:, 1])
    curve.plot([0, 100], [0, 100], color="#888888", linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
    lowest = 100.0
    for name in rows.heights:
        pooled = _pooled(experiment, name)
        if pooled is None:
            continue
        pixels, confident, right = pooled.T
        enough = pixels >= max(RARE * pixels.sum(), 1)
        x, y = 100 * confident[enough] / pixels[enough], 100 * right[enough] / pixels[enough]
        curve.plot(x, y, linewidth=1.4 * form.mark, markersize=3 if form.printed else 4.5, **look[name].style)
        edges = np.linspace(0, 100, len(pixels) + 1)
        line = {"color": look[name].colour, "linestyle": look[name].line, "linewidth": 1.3 * form.mark}
        counts.stairs(100 * pixels / pixels.sum(), edges, **line)
        lowest = min(lowest, float(edges[np.flatnonzero(enough)[0]]))
    curve.set(ylabel="accuracy of these pixels (%)", ylim=(-2, 102), xlim=(lowest - 2, 102))
    curve.tick_params(labelbottom=False)
    confidence = "confidence (%)" if form.printed else "confidence: the largest probability of a pixel (%)"
    counts.set(xlabel=confidence, ylabel="pixels (%)", ylim=(0, None))
    for name, height in rows.heights.items():
        values = [100 * value for value in experiment.values(name, "ece").values()]
        lower = height + np.linspace(0.24, 0.4, len(values))
        error.scatter(values, lower, s=form.area(13), color=look[name].colour, alpha=0.6, linewidths=0, zorder=3)
        draw_mean(error, height, values, look[name], form)
    error.set_xlim(left=0)
    error.set_xlabel(f"expected calibration error ({'' if form.printed else 'percentage '}points)")
    error.grid(axis="y", visible=False)
    label_rows(error, rows, experiment, form)
    variant_legend(figure, plan, [name for name in look if _pooled(experiment, name) is not None], form)
    bins = len(next(cell.calibration for cell in experiment.finished() if cell.calibration is not None))
    return figure, (
        "Below the diagonal a network is surer than it should be. Left: the test pixels in "
        f"{bins} bins by confidence; accuracy against mean confidence of a bin, all seeds "
        "and images together (a curve without an interval). On the diagonal the network is right as often as "
        f"it says. Bins with fewer than {100 * RARE:g} % of a variant's pixels are left out "
        "of the curves. Below: the share of pixels in each bin. Right: expected calibration error (Guo et al. 2017), "
        "the mean over pixels of |accuracy - confidence| of their bin: every seed (dots), the mean and a thin "
        "line from the lowest to the highest seed. Lower is better."
    )


def most_different(experiment: Experiment) -> str:
    """The variant whose mean mIoU differs most from that of the baseline; "" where none can be compared."""
    baseline = experiment.plan["baseline"]
    others = (name for name in experiment.plan["variants"] if name != baseline)
    apart = {name: experiment.difference(name, baseline, "miou") for name in others}
    return max((name for name in apart if apart[name].n), key=lambda name: abs(apart[name].mean), default="")


def refuse_confusion(experiment: Experiment) -> str:
    """Why there is no confusion matrix; empty where there is one."""
    baseline = experiment.plan["baseline"]
    return "" if experiment.cells[baseline] else f"the baseline, {baseline}, has no finished seed"


def refuse_calibration(experiment: Experiment) -> str:
    """Why there is no calibration; empty where there is one."""
    stored = any(cell.calibration is not None for cell in experiment.finished())
    return "" if stored else "not stored in these cells, which are of an earlier version"


def _pixels(experiment: Experiment, name: str) -> NDArray[np.int64]:
    """The confusion matrix of all images and seeds of a variant (C, C)."""
    total: NDArray[np.int64] = np.sum([cell.confusion for cell in experiment.cells[name].values()], axis=0)
    return total


def _normalised(experiment: Experiment, name: str) -> NDArray[np.float64]:
    """In percent of the row, mean over seeds (C, C); NaN for a class without a pixel."""
    of_seeds = np.stack([cell.confusion for cell in experiment.cells[name].values()]).astype(np.float64)
    true = of_seeds.sum(axis=2, keepdims=True)
    shares = np.divide(100 * of_seeds, true, out=np.full_like(of_seeds, math.nan), where=true > 0)
    mean: NDArray[np.float64] = shares.mean(axis=0)
    return mean


def _wrong_pixels(
    axis: Axes, experiment: Experiment, heights: Mapping[str, int], look: Mapping[str, Look], form: Form
) -> bool:
    """Bars of the wrong pixels, cut where they lie; whether that is known of any."""
    split = False
    for name, height in heights.items():
        wrong, near = experiment.values(name, "wrong"), experiment.values(name, "boundary_errors")
        if not wrong:
            continue
        mean = 100 * float(np.mean(list(wrong.values())))
        at_boundary = 100 * float(np.mean([wrong[seed] * near[seed] for seed in wrong]))
        has_place = not math.isnan(at_boundary)
        split |= has_place
        bar: dict[str, Any] = {"height": 0.56, "color": look[name].colour, "linewidth": 0}
        axis.barh(height, mean, alpha=0.35 if has_place else 0.7, **bar)
        if has_place:
            axis.barh(height, at_boundary, **bar)
        of_seeds = 100 * np.array(list(wrong.values()))
        axis.plot([of_seeds.min(), of_seeds.max()], [height, height], color="black", linewidth=form.mark)
        axis.plot(of_seeds, [height] * len(wrong), "|", color="black", markersize=6 * form.mark)
    axis.set_xlabel("wrong pixels (% of labelled pixels)")
    patches = [
        Patch(color="#444444", label=f"within {BOUNDARY} px of a boundary"),
        Patch(color="#c4c4c4", label="inside"),
    ]
    if split:
        axis.legend(handles=patches, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=form.letters(8))
    return split


def _segments(
    axis: Axes, experiment: Experiment, heights: Mapping[str, int], look: Mapping[str, Look], form: Form
) -> None:
    every = list[float]()
    for name, height in heights.items():
        for score, aside, hollow in (("missed", -0.18, False), ("hallucinated", 0.18, True)):
            values = [100 * value for value in experiment.values(name, score).values()]
            every += values
            draw_mean(axis, height + aside, values, look[name], form, hollow=hollow)
            axis.plot(values, [height + aside] * len(values), "|", color="black", markersize=6 * form.mark)
    axis.set_xlim(*limits(every, axis.get_xlim(), 0, 100))
    long = "missed (% of true segments), hallucinated (% of predicted ones)"
    axis.set_xlabel("segments (% of true, of predicted ones)" if form.printed else long)
    common: dict[str, Any] = {"color": "#444444", "linestyle": "none", "marker": "o", "markersize": 7 * form.mark}
    handles = [
        Line2D([], [], label="missed", **common),
        Line2D([], [], label="hallucinated", markerfacecolor="white", **common),
    ]
    axis.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=form.letters(8))


def _confusions(
    axis: Axes,
    experiment: Experiment,
    pairs: Sequence[tuple[int, int]],
    shares: Mapping[str, NDArray[np.float64] | None],
    look: Mapping[str, Look],
    form: Form,
) -> None:
    """A row a pair, with a mark of each variant, a little lower than that of the one before it."""
    for place, (name, share) in zip(np.linspace(-0.33, 0.33, len(shares) + 2)[1:-1], shares.items(), strict=True):
        if share is not None:
            marks: dict[str, Any] = {"color": look[name].colour, "markersize": 5 * form.mark**0.5, "linestyle": "none"}
            percents = [PERCENT[1] * share[pair] for pair in pairs]
            axis.plot(percents, place + np.arange(len(pairs)), look[name].marker, **marks)
    names = experiment.plan["class_names"]
    letters, arrow = (14, "\n→ ") if form.narrow else (24, " → ")
    axis.set_yticks(
        range(len(pairs)),
        [f"{short(names[true], letters)}{arrow}{short(names[given], letters)}" for true, given in pairs],
    )
    axis.set(
        ylim=(len(pairs) - 0.5, -0.5), xlabel=f"share of {'' if form.narrow else 'all '}wrong pixels of the variant (%)"
    )
    axis.set_xlim(left=0)
    for edge in range(1, len(pairs)):
        axis.axhline(edge - 0.5, color="#dddddd", linewidth=0.6)
    axis.grid(axis="y", visible=False)


def _pooled(experiment: Experiment, name: str) -> NDArray[np.float64] | None:
    """Pixels, sum of confidence and right pixels of each bin, of all images and seeds (bins, 3); None where not
    stored."""
    stored = [cell.calibration for cell in experiment.cells[name].values() if cell.calibration is not None]
    return np.sum(stored, axis=0) if stored else None
