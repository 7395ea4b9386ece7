"""Scores along an axis: epochs of training, distance from a true boundary, and the share of pixels that is kept."""

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from experiments.evidence.experiment import Experiment
from experiments.reports.figures.forms import WIDE, Form
from experiments.reports.figures.looks import Drawn, legend_height, log_scale, looks, short, variant_legend
from lightning_modules.components.scores.reductions import WIDTH as TRIMAP_WIDTH
from lightning_modules.components.scores.reductions import risk_at
from lightning_modules.components.scores.table import PERCENT


def curves(experiment: Experiment, form: Form = WIDE) -> Drawn:
    """Validation mIoU and training loss by epoch, mean and range over seeds."""
    look = looks(experiment.plan)
    figure, left, right = _two(form, 5.2, legend_height(experiment.plan, look, form))
    for axis, column, factor in ((left, "val/miou", 100.0), (right, "train/loss", 1.0)):
        for number, (name, cells) in enumerate(experiment.cells.items()):
            of_seeds = [cell.curve(column) for cell in cells.values()]
            epochs = sorted(set[int]().union(*of_seeds))
            values = np.array([[curve.get(epoch, math.nan) for epoch in epochs] for curve in of_seeds]) * factor
            if not values.size:
                continue
            trained = [epoch + 1 for epoch in epochs]  # metrics.csv counts from 0
            mean, low, high = (f(values, axis=0) for f in (np.nanmean, np.nanmin, np.nanmax))
            if len(trained) > 1:
                axis.plot(trained, mean, **_line(form, len(trained)), **look[name].style)
                axis.fill_between(trained, low, high, color=look[name].colour, alpha=0.13, linewidth=0)
            else:  # a band of one epoch has no width; side by side, or the variants hide one another
                aside = trained[0] + 0.04 * (number - (len(look) - 1) / 2)
                axis.plot([aside, aside], [low[0], high[0]], color=look[name].colour, linewidth=1.5)
                axis.plot([aside], mean, look[name].marker, color=look[name].colour, markersize=5)
        if axis is right or not form.narrow:
            axis.set_xlabel("epochs trained")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set_ylabel("validation mIoU (%)")
    right.set_ylabel("training loss (log scale)")
    log_scale(right, "y")
    variant_legend(figure, experiment.plan, look, form)
    return figure, (
        "Curves that still rise at the end would order the variants differently in longer training, perhaps. Mean over "
        "seeds (line) and smallest to largest seed (band; an upright line where there is one epoch alone). A band as "
        "wide as the gap between two lines means that the seed matters as much as the variant."
    )


def trimap(experiment: Experiment, form: Form = WIDE) -> Drawn:
    """mIoU near true boundaries against the width of the band, and the difference to the baseline."""
    look, plan = looks(experiment.plan), experiment.plan
    figure, left, right = _two(form, 4.6, legend_height(plan, look, form))
    widths, drawn = range(1, TRIMAP_WIDTH + 1), set[str]()
    for name in look:
        for axis, other in ((left, None), (right, plan["baseline"])):
            if other == name:
                axis.axhline(0, color=look[name].colour, linewidth=1.0)
                continue
            curve = [
                experiment.estimate(name, f"trimap/{width}")
                if other is None
                else experiment.difference(name, other, f"trimap/{width}")
                for width in widths
            ]
            if not curve[0].n:
                continue
            drawn.add(name)
            mean, std = (PERCENT[1] * np.array([getattr(e, key) for e in curve]) for key in ("mean", "std"))
            axis.plot(widths, mean, **_line(form, len(widths)), **look[name].style)
            if curve[0].n > 1:
                axis.fill_between(widths, mean - std, mean + std, color=look[name].colour, alpha=0.13, linewidth=0)
    for axis in (left, right):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    _label(left, right, "distance to a true boundary, at most (pixels)", "mIoU within it (%)", plan["baseline"], form)
    variant_legend(figure, plan, drawn, form)
    return figure, (
        "A gap at the left end that closes to the right is one of outlines; one all along, of everything. mIoU of the "
        "pixels within 1 to 20 pixels of a true boundary alone (the trimap of Kohli et al., 2009). Line: "
        "mean over seeds; band: ± one sample standard deviation, of the scores on the left and of the differences "
        "paired by seed on the right."
    )


def refuse_trimap(experiment: Experiment) -> str:
    """Why there is no trimap; empty where there is one."""
    lacking = any(cell.trimap is None for cell in experiment.finished())
    return "not all cells stored a trimap (of many classes, or of an earlier version)" if lacking else ""


def coverage(experiment: Experiment, form: Form = WIDE) -> Drawn:
    """The share of wrong pixels among the surest ones, and the difference to the baseline."""
    look, plan = looks(experiment.plan), experiment.plan
    figure, left, right = _two(form, 4.6, legend_height(plan, look, form))
    baseline, drawn = plan["baseline"], set[str]()
    shares = np.arange(5, 101, 5)
    risks = {name: _risks(experiment, name, shares) for name in look}
    for name, of_seeds in risks.items():
        for axis, other in ((left, None), (right, baseline)):
            if other == name:
                axis.axhline(0, color=look[name].colour, linewidth=1.0)
                continue
            shown = list(of_seeds.values())
            if other is not None:
                shown = [of_seeds[seed] - risks[baseline][seed] for seed in of_seeds if seed in risks[baseline]]
            if not shown:
                continue
            drawn.add(name)
            mean = np.mean(shown, axis=0)
            axis.plot(shares, mean, **_line(form, len(shares)), **look[name].style)
            if len(shown) > 1:
                std = np.std(shown, axis=0, ddof=1)
                low = mean - std if other else np.maximum(mean - std, 0)  # no risk is below 0
                axis.fill_between(shares, low, mean + std, color=look[name].colour, alpha=0.13, linewidth=0)
    _label(left, right, "surest pixels that are kept (%)", "wrong among them (%)", baseline, form)
    variant_legend(figure, plan, drawn, form)
    return figure, (
        "A curve that rises late: the network knows where it errs, and a person who looks at its least sure pixels "
        "finds most errors. Risk over coverage (Geifman & El-Yaniv, 2017): of the pixels whose label has the largest "
        "probability, the share that is wrong; at 100 % it is that of all. Line: mean over seeds; band: ± one sample "
        "standard deviation, of the risk on the left and of the differences paired by seed on the right."
    )


def _risks(experiment: Experiment, name: str, shares: NDArray[np.integer]) -> dict[int, NDArray[np.float64]]:
    """Risk in percent at these coverages in percent, by seed."""
    counts = {seed: cell.arrays["coverage"] for seed, cell in experiment.cells[name].items()}
    return {
        seed: PERCENT[1] * np.array([risk_at(of_seed, share / 100) for share in shares])
        for seed, of_seed in counts.items()
    }


def refuse_coverage(experiment: Experiment) -> str:
    """Why there is no curve of risk over coverage; empty where there is one."""
    lacking = any("coverage" not in cell.arrays for cell in experiment.finished())
    return "not all cells stored how sure they are of their errors (of an earlier version)" if lacking else ""


def _two(form: Form, height: float, below: float) -> tuple[Figure, Axes, Axes]:
    """Two panels of the same x beside one another, in a column below one another.

    `height`, in inches, is that of the wide form; in print the legend takes what it needs `below`.
    """
    if form.printed:
        height = (2 * 1.75 if form.narrow else 2.3) + below
    figure = Figure(figsize=(form.width, height), layout="constrained")
    first, second = figure.subplots(2, 1, sharex=True) if form.narrow else figure.subplots(1, 2, sharex=True)
    return figure, first, second


def _label(left: Axes, right: Axes, along: str, score: str, baseline: str, form: Form) -> None:
    """Names the axes of two such panels, a score and its difference to the baseline."""
    for axis in (right,) if form.narrow else (left, right):
        axis.set_xlabel(along)
    left.set_ylabel(score)
    named = "baseline\n(points)" if form.printed else f"{short(baseline)}\n(percentage points)"
    right.set_ylabel(f"difference to {named}")


def _line(form: Form, points: int) -> dict[str, Any]:
    """Of a curve: marks far enough from one another to be told apart."""
    size, most = (3.2, 7) if form.printed else (4.5, 12)
    return {"linewidth": 1.5 * form.mark, "markersize": size, "markevery": max(1, round(points / most))}
