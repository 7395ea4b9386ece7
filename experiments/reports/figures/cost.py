"""What a score costs: mIoU against the operations and the time of a network."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from experiments.evidence.experiment import Experiment
from experiments.reports.figures.looks import BASELINE, WIDTH, Drawn, full_labels, limits, log_scale, looks
from lightning_modules.components.scores.table import PERCENT

LOG_FROM = 8  # times the smallest cost, from where an axis of costs is logarithmic
LEAST_RANGE = 0.25  # of the largest cost, or a difference of a few percent would look like one of many
NAME_SIZE = 7.5  # points
BESIDE = 7  # points between marks that would hide one another

Box = tuple[float, float, float, float]  # left, bottom, right, top


def pareto(experiment: Experiment) -> Drawn:
    """mIoU against each cost that was measured, with its seeds and the variants that no other beats in both."""
    plan, factor = experiment.plan, PERCENT[1]
    scores = {
        name: factor * np.array([value for value in experiment.values(name, "miou").values() if not math.isnan(value)])
        for name in experiment.cells
    }
    costs, equal = _panels(experiment)
    figure = Figure(figsize=(WIDTH, 5.0), layout="constrained")
    axes = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    for axis, (title, of_variants) in zip(axes, costs.items(), strict=True):
        _scale_costs(axis, title, list(of_variants.values()))
    every = np.concatenate(list(scores.values()))
    margin = 0.06 * float(every.max() - every.min()) or 1.0
    axes[0].set_ylim(*limits([], (float(every.min()) - margin, float(every.max()) + margin), 0, factor))
    axes[0].set_ylabel("mIoU (%)")
    figure.draw_without_rendering()  # settles where the axes lie: marks and names are placed in pixels
    for axis, of_variants in zip(axes, costs.values(), strict=True):
        _draw_costs(axis, experiment, of_variants, scores)
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


def place_names(
    axis: Axes,
    places: Sequence[tuple[float, float]],
    lines: Sequence[tuple[tuple[float, float], tuple[float, float]]],
    names: Sequence[str],
    colours: Sequence[str],
) -> list[Bbox]:
    """Writes the names beside their points; returns where they lie, in pixels of the figure.

    They are clear of each other and, where there is room, of the points and the `lines`. A thin line leads to a point
    that is far.

    Places, and ends of the lines, which are upright or level, are data coordinates (x, y).
    """
    inside, to_pixels, dot = axis.get_window_extent(), axis.transData.transform, axis.figure.dpi / 72
    taken = [_box(x, y, 13 * dot, 13 * dot) for x, y in to_pixels(places)]
    for line in lines:
        (left, low), (right, high) = to_pixels(line)
        taken.append((left - 2 * dot, low - 2 * dot, right + 2 * dot, high + 2 * dot))
    placed: dict[int, Box] = {}
    for index in sorted(range(len(names)), key=lambda index: -len(names[index])):  # a short one still fits at the end
        style: dict[str, Any] = {"fontsize": NAME_SIZE, "ha": "center", "va": "center", "zorder": 5}
        style |= {"textcoords": "offset points", "annotation_clip": False}
        # A bar fades behind it; a white outline instead would turn the text of a PDF into drawings of letters.
        style |= {"bbox": {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.3}}
        text = axis.annotate(names[index], places[index], (0, 0), **style)
        size = text.get_window_extent()
        text.remove()
        x, y = to_pixels(places[index])
        # Wider than measured: at another resolution letters are a little wider.
        tries = _tries(x, y, 1.06 * size.width, size.height + dot, dot)
        boxes = np.array([box for box, _ in tries])
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        bad = _overlap(boxes, np.array(taken)).sum(axis=1) + 3 * dot * np.array([distance for _, distance in tries])
        bad += 4 * (area - _overlap(boxes, np.array([inside.extents]))[:, 0])
        shut = np.array([*placed.values(), *(taken[other] for other in range(len(names)) if other != index)])
        if len(shut):  # other names and marks, which the name must not hide, nor its line cross
            bad += 10 * _overlap(boxes, shut).sum(axis=1)
            middles = (boxes[:, :2] + boxes[:, 2:]) / 2
            along = (x, y) + np.linspace(0, 1, 20)[:, None, None] * (middles - (x, y))  # (20, tries, 2)
            crossed = (along[:, :, None] >= shut[:, :2]) & (along[:, :, None] <= shut[:, 2:])
            bad += 40 * dot**2 * crossed.all(axis=-1).sum(axis=(0, 2))
        best = int(np.argmin(bad))
        box, distance = tries[best]
        middle = (((box[0] + box[2]) / 2 - x) / dot, ((box[1] + box[3]) / 2 - y) / dot)
        thin = {"arrowstyle": "-", "color": colours[index], "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4}
        far: dict[str, Any] = {"arrowprops": thin} if distance > 12 * dot else {}
        if far:
            steps = np.linspace(0, 1, 20)[:, None] * np.array([middle[0] * dot, middle[1] * dot]) + (x, y)
            taken += [_box(u, v, 3 * dot, 3 * dot) for u, v in steps]
        axis.annotate(names[index], places[index], middle, **far, **style).set_in_layout(False)
        placed[index] = box
    return [Bbox.from_extents(*placed[index]) for index in range(len(names))]


def _draw_costs(
    axis: Axes, experiment: Experiment, costs: Mapping[str, float], scores: Mapping[str, NDArray[np.float64]]
) -> None:
    """Marks, bars, front and names of the variants whose cost is known."""
    look, labels = looks(experiment.plan), full_labels(experiment.plan)
    means = {name: float(scores[name].mean()) for name in costs}
    best = on_front({name: (cost, means[name]) for name, cost in costs.items()})
    drawn = dict(zip(costs, _side_by_side(axis, list(costs.values())), strict=True))
    for name, x in drawn.items():
        colour = look[name].colour
        axis.plot([x, x], [scores[name].min(), scores[name].max()], color=colour, linewidth=1.3, alpha=0.8, zorder=2)
        marks: dict[str, Any] = {"markersize": 8, "markeredgewidth": 1.6, "zorder": 4}
        face = colour if name in best else "white"
        axis.plot([x], [means[name]], look[name].marker, color=face, markeredgecolor=colour, **marks)
    corners = sorted((drawn[name], means[name]) for name in best)
    corners.append((axis.get_xlim()[1], corners[-1][1]))
    line: dict[str, Any] = {"color": "#777777", "linewidth": 1.0, "drawstyle": "steps-post", "zorder": 1}
    axis.plot([x for x, _ in corners], [y for _, y in corners], **line)
    steps = [((x, y), (end, y)) for (x, y), (end, _) in pairwise(corners)]
    bars = [((drawn[n], float(scores[n].min())), (drawn[n], float(scores[n].max()))) for n in costs]
    texts = [f"{labels[n]} {BASELINE}" if n == experiment.plan["baseline"] else labels[n] for n in costs]
    places = [(drawn[name], means[name]) for name in costs]
    place_names(axis, places, [*bars, *steps], texts, [look[name].colour for name in costs])


def _scale_costs(axis: Axes, title: str, costs: Sequence[float]) -> None:
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
    axis.set_xlabel(f"{title}, log scale" if log else title)


def _side_by_side(axis: Axes, costs: Sequence[float]) -> list[float]:
    """Where on x the marks go: those that would hide one another a few points apart."""
    apart = BESIDE * axis.figure.dpi / 72
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


def _box(x: float, y: float, width: float, height: float) -> Box:
    """Around its middle."""
    return (x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def _tries(x: float, y: float, width: float, height: float, dot: float) -> list[tuple[Box, float]]:
    """Where a name could lie around its point, with the distance, the nearest first."""
    tries = []
    for distance in (8, 14, 22, 32, 44, 58, 76, 96, 120, 150, 190, 240):
        for angle in np.arange(16) * math.pi / 8:
            aside, above = math.cos(angle), math.sin(angle)
            middle = (x + aside * (distance * dot + width / 2), y + above * (distance * dot + height / 2))
            tries.append((_box(middle[0], middle[1], width, height), distance * dot))
    return tries


def _overlap(boxes: Any, others: Any) -> Any:
    """Common area of each box (n, 4) with each other one (m, 4): (n, m)."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return np.prod(np.maximum(high - low, 0), axis=-1)
