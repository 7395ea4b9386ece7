"""What a score costs: mIoU against the operations and the time of a network."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from experiments.evidence.experiment import Experiment
from experiments.reports.figures.forms import WIDE, Form
from experiments.reports.figures.looks import (
    BASELINE,
    Drawn,
    full_labels,
    limits,
    log_scale,
    looks,
    variant_legend,
)
from experiments.reports.figures.names import Place, Point, draw_names, find_places
from lightning_modules.components.scores.table import PERCENT

LOG_FROM = 8  # times the smallest cost, from where an axis of costs is logarithmic
LEAST_RANGE = 0.25  # of the largest cost, or a difference of a few percent would look like one of many
NAME_SIZE = 7.5  # points
BESIDE = 7  # points between marks that would hide one another
MARK = 8.0  # points


@dataclass(frozen=True)
class Panel:
    """What stands in a panel, in data coordinates (x, y): points, those of the front, its corners, and all lines."""

    points: Mapping[str, Point]
    best: set[str]
    corners: Sequence[Point]
    lines: Sequence[tuple[Point, Point]]


def pareto(experiment: Experiment, form: Form = WIDE) -> Drawn:
    """mIoU against each cost that was measured, with its seeds and the variants that no other beats in both."""
    plan, factor = experiment.plan, PERCENT[1]
    scores = {
        name: factor * np.array([value for value in experiment.values(name, "miou").values() if not math.isnan(value)])
        for name in experiment.cells
    }
    costs, equal = _panels(experiment)
    count = max(len(costs), 1)
    height = (2.4 * count if form.narrow else 2.9) if form.printed else 5.0
    figure = Figure(figsize=(form.width, height), layout="constrained", dpi=form.dpi)
    if form.narrow:
        axes = figure.subplots(count, 1, squeeze=False)[:, 0]
    else:
        axes = figure.subplots(1, count, sharey=True, squeeze=False)[0]
    every = np.concatenate(list(scores.values()))
    margin = (0.08 if form.printed else 0.06) * float(every.max() - every.min()) or 1.0
    for axis, (title, of_variants) in zip(axes, costs.items(), strict=True):
        _scale_costs(axis, title, list(of_variants.values()), form)
        axis.set_ylim(*limits([], (float(every.min()) - margin, float(every.max()) + margin), 0, factor))
        if axis is axes[0] or form.narrow:
            axis.set_ylabel("mIoU (%)")
    look, size, mark = looks(plan), form.letters(NAME_SIZE), (MARK + 1.6) * form.mark
    named, drawn = list[list[Place] | None](), list[Panel]()
    for legend in (False, True):
        if legend:  # no room beside the points
            variant_legend(figure, plan, [name for name in look if any(name in one for one in costs.values())], form)
        figure.draw_without_rendering()  # settles where the axes lie: marks and names are placed in pixels
        drawn = [_place_costs(axis, one, scores, form) for axis, one in zip(axes, costs.values(), strict=True)]
        named = [
            find_places(axis, list(one.points.values()), one.lines, _names(experiment, one.points, form), size, mark)
            for axis, one in zip(axes, drawn, strict=True)
            if not legend
        ]
        if None not in named:
            break
    for axis, one, of_variants in zip(axes, drawn, costs.values(), strict=True):
        _draw_costs(axis, experiment, of_variants, scores, one, form)
    for axis, one, places in zip(axes, drawn, named, strict=False):
        colours = [look[name].colour for name in one.points]
        draw_names(axis, list(one.points.values()), places or [], _names(experiment, one.points, form), colours, size)
    same = f" Not drawn: {' and '.join(equal)}, the same for all variants." if equal else ""
    return figure, (
        "Filled marks are the Pareto front (grey steps): no other variant is as good and as cheap at least, and better "
        "in one of the two. That is of the means alone and no claim of significance. Test mIoU (mean over seeds) "
        "against cost; upright bar: from the lowest to the highest seed, which is no interval; where bars overlap, "
        "other seeds may well put another variant on the front. GMAC: 10^9 multiply-accumulates of the network's "
        f"forward pass of one test image; training step: median time on {plan['device']}; prediction: median time of "
        "one test image, with what follows the network. Times are of one machine. Variants of almost equal cost are "
        f"drawn side by side.{same}"
    )


def on_front(points: Mapping[str, tuple[float, float]]) -> set[str]:
    """Those of the points (cost, score) that no other beats: as cheap and as good, and better in one of the two."""
    return {
        name
        for name, (cost, score) in points.items()
        if not any((c <= cost and s >= score) and (c < cost or s > score) for c, s in points.values())
    }


def refuse_pareto(experiment: Experiment) -> str:
    """Why there is no cost to draw against; empty where there is one."""
    costs, equal = _panels(experiment)
    return "" if costs else "all variants cost the same" if equal else "no cost was measured"


def _draw_costs(
    axis: Axes,
    experiment: Experiment,
    costs: Mapping[str, float],
    scores: Mapping[str, NDArray[np.float64]],
    drawn: Panel,
    form: Form,
) -> None:
    """Marks, bars and front of the variants whose cost is known."""
    look, best = looks(experiment.plan), drawn.best
    for name, (x, mean) in drawn.points.items():
        colour = look[name].colour
        width = 1.3 * form.mark
        axis.plot([x, x], [scores[name].min(), scores[name].max()], color=colour, linewidth=width, alpha=0.8, zorder=2)
        marks: dict[str, Any] = {"markersize": MARK * form.mark, "markeredgewidth": 1.6 * form.mark, "zorder": 4}
        face = colour if name in best else "white"
        axis.plot([x], [mean], look[name].marker, color=face, markeredgecolor=colour, **marks)
    line: dict[str, Any] = {"color": "#777777", "linewidth": form.mark, "drawstyle": "steps-post", "zorder": 1}
    axis.plot([x for x, _ in drawn.corners], [y for _, y in drawn.corners], **line)


def _place_costs(
    axis: Axes, costs: Mapping[str, float], scores: Mapping[str, NDArray[np.float64]], form: Form
) -> Panel:
    """Where all goes, once it is known where the axes lie."""
    means = {name: float(scores[name].mean()) for name in costs}
    best = on_front({name: (cost, means[name]) for name, cost in costs.items()})
    beside = dict(zip(costs, _side_by_side(axis, list(costs.values()), BESIDE * form.mark), strict=True))
    points = {name: (x, means[name]) for name, x in beside.items()}
    corners = sorted(points[name] for name in best)
    corners.append((axis.get_xlim()[1], corners[-1][1]))
    lines = [((x, float(scores[name].min())), (x, float(scores[name].max()))) for name, x in beside.items()]
    for (x, y), (end, above) in pairwise(corners):
        lines += [((x, y), (end, y)), ((end, y), (end, above))]
    return Panel(points, best, corners, lines)


def _names(experiment: Experiment, costs: Iterable[str], form: Form) -> list[str]:
    """What stands beside the points."""
    labels, baseline = full_labels(experiment.plan, form), experiment.plan["baseline"]
    return [labels[n] + (f" {BASELINE}" if n == baseline and not form.narrow else "") for n in costs]


def _scale_costs(axis: Axes, title: str, costs: Sequence[float], form: Form) -> None:
    """Limits of x with room for names, on a logarithmic axis where the costs are far apart."""
    low, high = min(costs), max(costs)
    log = 0 < low < high / LOG_FROM
    if log:
        log_scale(axis, "x")
        room = (high / low) ** 0.12
        axis.set_xlim(low / room, high * room)
    else:
        room = 0.12 * (high - low) + max(LEAST_RANGE * high - (high - low), 0) / 2
        axis.set_xlim(low - room, high + room)
        if form.printed:
            axis.locator_params(axis="x", nbins=5)
    axis.set_xlabel(f"{title}, log scale" if log else title)


def _side_by_side(axis: Axes, costs: Sequence[float], points: float) -> list[float]:
    """Where on x the marks go: those that would hide one another a few points apart."""
    apart = points * axis.figure.dpi / 72
    pixels = axis.transData.transform([(cost, axis.get_ylim()[0]) for cost in costs])[:, 0]
    moved, order = pixels.copy(), np.argsort(pixels, kind="stable")
    for cluster in np.split(order, np.flatnonzero(np.diff(pixels[order]) >= apart) + 1):
        start = pixels[cluster].mean() - apart * (len(cluster) - 1) / 2
        moved[cluster] = start + apart * np.arange(len(cluster))
    return [float(x) for x, _ in axis.transData.inverted().transform([(x, 0) for x in moved])]


def _panels(experiment: Experiment) -> tuple[dict[str, dict[str, float]], list[str]]:
    """The costs of the finished variants by the title of their axis, and the titles of those that are equal for all."""
    costs = {
        title: {name: cost for name, cost in of_variants.items() if experiment.estimate(name, "miou").n}
        for title, of_variants in _costs(experiment.plan).items()
    }
    differ = {title: of_variants for title, of_variants in costs.items() if len(set(of_variants.values())) > 1}
    return differ, [title for title, of_variants in costs.items() if of_variants and title not in differ]


def _costs(plan: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """By the title of the axis, what each variant costs where that was measured."""
    read: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
        "GMAC of one image": lambda variant: variant["gmac"],
        "training step (ms)": lambda variant: _milliseconds(variant["step_seconds"]),
        "prediction of one image (ms)": lambda variant: _milliseconds(
            sum(variant["image_seconds"].values()) if variant.get("image_seconds") else None
        ),
    }
    by_title = {}
    for title, of_variant in read.items():
        costs = {name: of_variant(variant) for name, variant in plan["variants"].items()}
        by_title[title] = {name: cost for name, cost in costs.items() if cost is not None}
    return by_title


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds
