"""The figures of a report. Each function draws one and returns it with the caption that says what to see in it."""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from experiments.files import write_atomic
from experiments.stored import PERCENT, PPM, SCORES, Cell, Experiment
from lightning_modules.components.metrics import checkerboard_energy
from lightning_modules.components.trimap import WIDTH as TRIMAP_WIDTH

# Okabe & Ito's palette, told apart by colour-blind readers; without its yellow, which is lost on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (4, 1.2, 1, 1.2)))
MARKERS = ("o", "s", "^", "D")
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # TrueType: text stays text, as venues ask
    "text.parse_math": False,  # a dollar in a class name is a dollar
}
DPI = 160
PANELS = ("miou", "boundary_f1", "checkerboard")
WIDTH = 11.0  # inches, of every figure
SAMPLES = 3  # more make the figure longer than a page
CROP = 48  # pixels: fine enough to see single pixels in print
IGNORED = (150, 150, 150)


@dataclass(frozen=True)
class Look:
    """How a variant is drawn, the same in every figure: colour by the main factor, line and marker by the others."""

    label: str
    colour: str
    line: Any
    marker: str


@dataclass(frozen=True)
class Group:
    """Variants that differ in the main factor alone; without a crossed design, all variants."""

    title: str
    variants: list[str]


def groups(plan: Mapping[str, Any]) -> list[Group]:
    """Variants of a crossed design by the levels of all factors but the main one, which has the most levels."""
    factors, variants = plan["factors"], plan["variants"]
    if not factors or math.prod(len(levels) for levels in factors.values()) != len(variants):
        return [Group("", list(variants))]
    main = max(factors, key=lambda factor: len(factors[factor]))
    by_rest: dict[str, list[str]] = {}
    for name, variant in variants.items():
        rest = ", ".join(f"{factor}: {variant['levels'][factor]}" for factor in factors if factor != main)
        by_rest.setdefault(rest, []).append(name)
    order = list(factors[main])
    return [
        Group(rest, sorted(names, key=lambda name: order.index(variants[name]["levels"][main])))
        for rest, names in by_rest.items()
    ]


def looks(plan: Mapping[str, Any]) -> dict[str, Look]:
    main = max(plan["factors"], key=lambda factor: len(plan["factors"][factor]), default="")
    found = {}
    for index, group in enumerate(groups(plan)):
        for rank, name in enumerate(group.variants):
            label = str(plan["variants"][name]["levels"][main]) if group.title else name
            style = index + rank // len(COLOURS)  # beyond the palette, the next line with the same colours
            line, marker = LINES[style % len(LINES)], MARKERS[style % len(MARKERS)]
            found[name] = Look(label, COLOURS[rank % len(COLOURS)], line, marker)
    return found


def scores(experiment: Experiment) -> tuple[Figure, str]:
    """Every seed's score, the mean and its interval, a row for each variant and a panel for each score."""
    look, found = looks(experiment.plan), groups(experiment.plan)
    rows: list[str | None] = []  # None is a gap, with the group's title
    for group in found:
        rows += [*([None] if group.title else []), *group.variants]
    figure = Figure(figsize=(WIDTH, 1.1 + 0.32 * len(rows)), layout="constrained")
    axes = figure.subplots(1, len(PANELS), sharey=True)
    for axis, score in zip(axes, PANELS, strict=True):
        title, (unit, factor) = SCORES[score]
        baseline = experiment.estimate(experiment.plan["baseline"], score)
        axis.axvline(factor * baseline.mean, color="#888888", linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
        for height, name in enumerate(rows):
            if name is not None:
                _score_row(axis, height, experiment, name, score, look[name])
        axis.set_xlim(*_limits([factor * cell.scores[score] for cell in experiment.finished()], axis.get_xlim()))
        axis.set(xlabel=f"{title} ({unit})", ylim=(len(rows) - 0.3, -0.5))
        axis.locator_params(axis="x", nbins=6)
        axis.grid(axis="y", visible=False)
    axes[0].set_yticks(
        [height for height, name in enumerate(rows) if name],
        [_row_label(experiment, name, look[name]) for name in rows if name],
    )
    titles = iter(group.title for group in found)
    for height in (height for height, name in enumerate(rows) if name is None):
        place = axes[0].get_yaxis_transform()
        axes[0].text(0.015, height + 0.15, next(titles), transform=place, fontweight="bold", va="center")
    return figure, (
        "Scores on the test images, last epoch. Small dots: every seed; large mark: their mean; bar: 95 % interval of "
        "the mean over seeds (Student's t; none with one seed; it goes on where it meets the border). The dashed line "
        "is the mean of the baseline (*); '(2 of 3)' marks a variant with fewer seeds than planned. Higher is better "
        "for mIoU and boundary F1, lower for checkerboard energy."
    )


def curves(experiment: Experiment) -> tuple[Figure, str]:
    """Validation mIoU and training loss by epoch, mean and range over seeds."""
    look, found = looks(experiment.plan), groups(experiment.plan)
    figure = Figure(figsize=(WIDTH, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True)
    for axis, column, factor in ((left, "val/miou", 100.0), (right, "train/loss", 1.0)):
        for name, cells in experiment.cells.items():
            of_seeds = [cell.curve(column) for cell in cells.values()]
            epochs = sorted(set[int]().union(*of_seeds))
            values = np.array([[curve.get(epoch, math.nan) for epoch in epochs] for curve in of_seeds]) * factor
            if values.size:
                style = {"color": look[name].colour, "linestyle": look[name].line, "marker": look[name].marker}
                trained = [epoch + 1 for epoch in epochs]  # metrics.csv counts from 0
                axis.plot(trained, np.nanmean(values, axis=0), linewidth=1.5, markersize=3, **style)
                low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
                axis.fill_between(trained, low, high, color=look[name].colour, alpha=0.13, linewidth=0)
        axis.set_xlabel("epochs trained")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set_ylabel("validation mIoU (%)")
    right.set(ylabel="training loss (log scale)", yscale="log")
    right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    right.yaxis.set_minor_formatter(NullFormatter())
    handles = [
        Line2D([], [], color=look[n].colour, linestyle=look[n].line, marker=look[n].marker, label=_full(g, n, look))
        for g in found
        for n in g.variants
    ]
    columns = len(found) if len(found) > 1 else 4  # a group a column
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, handlelength=3, markerscale=0.6)
    return figure, (
        "Training curves: mean over seeds (line) and smallest to largest seed (band). A band as wide as the gap "
        "between two lines means that the seed matters as much as the variant. Curves that still rise at the end would "
        "order the variants differently in longer training, perhaps."
    )


def trimap(experiment: Experiment) -> tuple[Figure, str] | None:
    """mIoU near true boundaries against the width of the band, and the difference to the baseline."""
    if any(cell.trimap is None for cell in experiment.finished()):
        return None
    look, plan = looks(experiment.plan), experiment.plan
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True)
    widths = range(1, TRIMAP_WIDTH + 1)
    for group in groups(plan):
        for name in group.variants:
            style = {"color": look[name].colour, "linestyle": look[name].line, "marker": look[name].marker}
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
                mean, std = (PERCENT[1] * np.array([getattr(e, key) for e in curve]) for key in ("mean", "std"))
                label = _full(group, name, look) if other is None else None
                axis.plot(widths, mean, linewidth=1.5, markersize=3, label=label, **style)
                if curve[0].n > 1:
                    axis.fill_between(widths, mean - std, mean + std, color=look[name].colour, alpha=0.13, linewidth=0)
    for axis in (left, right):
        axis.set_xlabel("distance to a true boundary, at most (pixels)")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set_ylabel("mIoU within it (%)")
    right.set_ylabel(f"difference to {plan['baseline']} (percentage points)")
    figure.legend(loc="outside lower center", ncols=4, handlelength=3, markerscale=1.5)
    return figure, (
        "mIoU of the pixels within 1 to 20 pixels of a true boundary alone (the trimap of Kohli et al. 2009). Line: mean "
        "over seeds; band: ± one sample standard deviation, of the scores on the left and of the differences paired by "
        "seed on the right. What sharpens outlines gains most at the left end; what helps everywhere gains all along."
    )


def samples(experiment: Experiment) -> tuple[Figure, str]:
    """The same test images, their truth and the prediction of every variant."""
    first = _first_seeds(experiment)
    stored = {name: cell.samples() for name, cell in first.items()}
    one, classes = next(iter(stored.values())), experiment.plan["class_names"]
    shown, colours = range(min(SAMPLES, len(one["names"]))), label_colours(experiment.plan["palette"])
    rows = _prediction_rows(groups(experiment.plan), set(first))
    beside = len(rows) == 1  # image and truth left of the one row, else the one above the other
    columns = 1 + beside + max(len(row) for row in rows)

    # Every tile is placed in inches: images keep their shape, and titles their size.
    width, caption, gap = WIDTH / columns, 0.36, 0.2
    heights = [width * one[f"mask_{i}"].shape[0] / one[f"mask_{i}"].shape[1] + caption for i in shown]
    legend_columns = min(len(classes) + 1, 6)
    total = 0.15 + 0.24 * math.ceil((len(classes) + 1) / legend_columns) + sum(len(rows) * h + gap for h in heights)
    figure, top = Figure(figsize=(WIDTH, total)), total
    for index, height in zip(shown, heights, strict=True):
        top -= gap
        figure.text(0.005, top / total, str(one["names"][index]), fontsize=8, color="#555555")
        mask = one[f"mask_{index}"]
        given = [("image", one[f"image_{index}"]), ("truth", colours[mask])]
        for number, row in enumerate(rows):
            left = given if beside else given[number : number + 1]
            tiles = dict(enumerate(left))
            for column, name in enumerate(row, 1 + beside):
                prediction = stored[name][f"prediction_{index}"]
                right = 100 * (prediction == mask)[mask != 255].mean() if (mask != 255).any() else math.nan
                tiles[column] = (f"{name}\n{right:.1f} % of pixels right", colours[prediction])
            for column, (text, picture) in tiles.items():
                corner, size = (column * width + 0.03, top - height), (width - 0.06, height - caption)
                axis = figure.add_axes(
                    (corner[0] / WIDTH, corner[1] / total, size[0] / WIDTH, size[1] / total), anchor="N"
                )
                axis.imshow(picture, interpolation="nearest")
                axis.set_title(text, fontsize=7.5, pad=3, linespacing=1.15)
                axis.set_axis_off()
            top -= height
    names = [*classes, "not labelled"]
    patches = [
        Patch(facecolor=colours[i] / 255, edgecolor="#666666", label=name)
        for i, name in zip([*range(len(classes)), 255], names, strict=True)
    ]
    figure.legend(handles=patches, loc="lower center", ncols=legend_columns)
    seeds = ", ".join(str(seed) for seed in sorted({cell.seed for cell in first.values()}))
    return figure, (
        "The same test images predicted by every variant: look at thin structures and at class borders, where the "
        "variants differ. 'Pixels right' is the share of labelled pixels of this one image. One seed of each variant, "
        f"the lowest that finished ({seeds})."
    )


def logits(experiment: Experiment) -> tuple[Figure, str] | None:
    """Logits of the variants with most and least checkerboard at initialisation, and their power spectra."""
    stored = {name: cell.samples() for name, cell in _first_seeds(experiment).items()}
    stored = {name: arrays for name, arrays in stored.items() if "initial_logits" in arrays}
    if not stored:
        return None  # cells that were continued from a checkpoint alone have no logits from before training
    initial = {name: _energy(arrays["initial_logits"]) for name, arrays in stored.items()}
    pair = _most_contrast(groups(experiment.plan), initial)
    channel = _most_gridded(stored[pair[0]]["initial_logits"])
    figure = Figure(figsize=(WIDTH, 0.5 + 2.6 * len(pair)), layout="constrained")
    axes = figure.subplots(len(pair), 4, squeeze=False)
    for column, (key, stage) in enumerate((("initial_logits", "at initialisation"), ("logits", "after training"))):
        maps = [_centred(stored[name][key])[channel] for name in pair]
        spectra = [_log_spectrum(one) for one in maps]
        low, high = np.percentile(np.concatenate([one.ravel() for one in spectra]), (2, 99.9))
        for row, (name, one, spectrum) in enumerate(zip(pair, maps, spectra, strict=True)):
            crop, power = axes[row][2 * column], axes[row][2 * column + 1]
            energy = PPM[1] * _energy(stored[name][key])
            crop.imshow(_centre(one), cmap="gray", interpolation="nearest")
            crop.set_title(f"{name}, {stage}\nenergy {energy:,.{0 if energy >= 10 else 1}f} ppm", fontsize=8)
            crop.set_axis_off()
            # From -1/4 to 3/4: the spectrum repeats, and the grid frequencies lie inside rather than on the border.
            shown = power.imshow(spectrum, cmap="magma", vmin=low, vmax=high, extent=(-0.25, 0.75, 0.75, -0.25))
            grid = ([0.5, 0, 0.5], [0, 0.5, 0.5])
            power.scatter(*grid, s=90, facecolors="none", edgecolors="#56B4E9", linewidths=1.2)
            power.set_title("log10 power", fontsize=8)
            power.set_xticks((0, 0.25, 0.5), ("0", "1/4", "1/2"), fontsize=7)
            power.set_yticks((0, 0.25, 0.5), ("0", "1/4", "1/2"), fontsize=7)
            power.grid(visible=False)
        axes[-1][2 * column + 1].set_xlabel("cycles per pixel", fontsize=8)
        figure.colorbar(shown, ax=axes[:, 2 * column + 1].tolist(), fraction=0.05).ax.tick_params(labelsize=7)
    name = experiment.plan["class_names"][channel]
    return figure, (
        f"Logits of class '{name}' (less the mean over the classes) on the first test image: the middle {CROP} x "
        f"{CROP} pixels, each on its own grey scale, and the log10 power spectrum of the whole map. Shown are the "
        "variants with the most and the least checkerboard energy at initialisation among those that differ in the "
        "main factor alone. A checkerboard is a fine regular texture in the crop and a bright point inside the "
        "circles, at 1/2 cycle per pixel; coarser grids of earlier layers lie at 1/4, 1/8, ... A smooth map is bright "
        "at 0 only. Energy: share of the spectral power inside the circles, above what lies around them, in millionths "
        "(ppm), all classes together."
    )


FIGURES: dict[str, Callable[[Experiment], tuple[Figure, str] | None]] = {
    "scores": scores,
    "curves": curves,
    "trimap": trimap,
    "samples": samples,
    "logits": logits,
}


def write_figures(experiment: Experiment) -> dict[str, tuple[bytes, str]]:
    """Writes figures/<name>.png and .pdf; returns the PNG and the caption of each."""
    written = {}
    for name, draw in FIGURES.items():
        with matplotlib.rc_context(STYLE):
            drawn = draw(experiment)
            if drawn is None:
                continue
            figure, caption = drawn
            png = save_figure(figure, experiment.folder / "figures" / f"{name}.png", {"Software": None})
            save_figure(figure, experiment.folder / "figures" / f"{name}.pdf", {"CreationDate": None})
        written[name] = (png, caption)
    return written


def save_figure(figure: Figure, path: Path, metadata: dict[str, Any]) -> bytes:
    """Without a date, so that the same cells give the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:], dpi=DPI, metadata=metadata)
    write_atomic(path, buffer.getvalue())
    return buffer.getvalue()


def _score_row(axis: Axes, height: int, experiment: Experiment, name: str, score: str, look: Look) -> None:
    _, (_, factor) = SCORES[score]
    values = [factor * value for value in experiment.values(name, score).values()]
    below = height + np.linspace(0.24, 0.4, len(values))  # the mark of the mean would hide them
    axis.scatter(values, below, s=13, color=look.colour, alpha=0.6, linewidths=0, zorder=3)
    found = experiment.estimate(name, score).times(factor)
    if found.n > 1:
        axis.plot([found.low, found.high], [height, height], color=look.colour, linewidth=1.6, zorder=2)
    axis.plot([found.mean], [height], look.marker, color=look.colour, markersize=7, markeredgecolor="white", zorder=4)


def _first_seeds(experiment: Experiment) -> dict[str, Cell]:
    """The finished cell of lowest seed of each variant that has one."""
    return {name: cells[min(cells)] for name, cells in experiment.cells.items() if cells}


def _limits(values: Sequence[float], wanted: tuple[float, float]) -> tuple[float, float]:
    """The wanted limits, but no more than the range of the values to either side: an interval of two seeds can be a
    hundred times as long, and would squeeze all dots into one."""
    known = [value for value in values if not math.isnan(value)]
    if len(set(known)) < 2:
        return wanted
    low, high = min(known), max(known)
    return max(wanted[0], 2 * low - high), min(wanted[1], 2 * high - low)


def _row_label(experiment: Experiment, name: str, look: Look) -> str:
    done, planned = len(experiment.cells[name]), len(experiment.plan["seeds"])
    few = "" if done == planned else f" ({done} of {planned})"
    return f"{look.label}{' *' if name == experiment.plan['baseline'] else ''}{few}"


def _full(group: Group, name: str, look: Mapping[str, Look]) -> str:
    return f"{look[name].label}, {group.title}" if group.title else name


def _prediction_rows(found: Sequence[Group], finished: set[str]) -> list[list[str]]:
    """Variants in rows of at most four beside image and truth, a group a row where the design is crossed."""
    rows = [[name for name in group.variants if name in finished] for group in found]
    return [row[start : start + 4] for row in rows for start in range(0, len(row), 4)]


def label_colours(palette: Sequence[Sequence[int]]) -> NDArray[np.uint8]:
    """The colour of each label (256, 3): those of the classes, grey for the others."""
    colours = np.full((256, 3), IGNORED, dtype=np.uint8)
    colours[: len(palette)] = palette
    return colours


def _energy(maps: NDArray[Any]) -> float:
    """Checkerboard energy of logits (C, H, W); 0 for a map too small to have one."""
    return float(checkerboard_energy(torch.from_numpy(maps.astype(np.float32))[None]).nan_to_num())


def _centred(maps: NDArray[Any]) -> NDArray[np.float64]:
    """Logits (C, H, W) less their mean over the classes, which changes no prediction."""
    maps = maps.astype(np.float64)
    return maps - maps.mean(axis=0)


def _most_gridded(maps: NDArray[Any]) -> int:
    """The class whose logits differ most between the four pixels of a 2 x 2 block, on average over all blocks."""
    maps = _centred(maps)[:, : maps.shape[1] // 2 * 2, : maps.shape[2] // 2 * 2]
    phases = maps.reshape(len(maps), maps.shape[1] // 2, 2, maps.shape[2] // 2, 2).mean(axis=(1, 3))
    return int((phases.var(axis=(1, 2)) / np.maximum(maps.var(axis=(1, 2)), 1e-30)).argmax())


def _most_contrast(found: Sequence[Group], energy: Mapping[str, float]) -> list[str]:
    """The variants of largest and smallest energy of the group where they lie furthest apart."""
    ranked = [sorted((n for n in g.variants if n in energy), key=lambda n: -energy[n]) for g in found]
    best = max((row for row in ranked if row), key=lambda row: energy[row[0]] - energy[row[-1]])
    return [best[0], best[-1]] if len(best) > 1 else best


def _log_spectrum(one: NDArray[np.float64]) -> NDArray[np.float64]:
    """log10 of the power of a map (H, W), from -1/4 to 3/4 cycles per pixel; a Hann window keeps its edges out."""
    window = np.outer(np.hanning(one.shape[0]), np.hanning(one.shape[1]))
    power = np.abs(np.fft.fft2((one - one.mean()) * window)) ** 2
    power = np.roll(power, (one.shape[0] // 4, one.shape[1] // 4), axis=(0, 1))
    return np.log10(power / max(float(power.sum()), 1e-30) + 1e-12)


def _centre(one: NDArray[np.float64]) -> NDArray[np.float64]:
    top, left = (max(0, (side - CROP) // 2) for side in one.shape)
    return one[top : top + CROP, left : left + CROP]
