"""Test images with their predictions, and logits with their spectra."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from experiments.evidence.cell import Cell
from experiments.evidence.experiment import Experiment, Picture
from experiments.reports.figures.colours import RGB, unlike
from experiments.reports.figures.forms import WIDE, Form
from experiments.reports.figures.looks import (
    IGNORED,
    Drawn,
    Group,
    colormap,
    groups,
    label_colours,
    legend_columns,
    short,
)
from lightning_modules.components.scores.reductions import grid_share
from lightning_modules.components.scores.table import PPM

SAMPLES, EXTREMES = 3, 2  # images at most, of the extremes of each kind
LONGEST = {False: 15.0, True: 4.0}  # inches, in print half a page: fewer images where these would make a longer figure
ACROSS = 3  # tiles side by side in a column
LOGITS = ("initial_logits", "logits")  # before and after the training
CROP = 48  # pixels: fine enough to see single pixels in print
TITLE, GAP = {False: 0.36, True: 0.29}, {False: 0.2, True: 0.15}  # inches, above a tile and above a row of tiles
AGREEMENT: dict[str, list[RGB]] = {  # of two predictions with the truth: the first that no class has
    "both right": [(255, 255, 255), (225, 225, 245), (0, 0, 0)],
    "both wrong": [(60, 60, 60), (110, 110, 110), (0, 0, 0), (190, 190, 190)],
    "only the baseline right": [(213, 94, 0), (228, 0, 70), (255, 105, 180), (120, 60, 0), (255, 190, 150)],
    "only the other right": [
        (0, 114, 178),
        (0, 170, 150),
        (110, 60, 190),
        (0, 230, 230),
        (30, 60, 30),
    ],
}

Tile = tuple[str, NDArray[np.uint8]]  # title and colours (H, W, 3)
Strip = tuple[str, list[list[Tile | None]]]  # heading, and rows of tiles; None leaves a place empty


def samples(experiment: Experiment, form: Form = WIDE) -> Drawn:
    """The same test images, their truth and the prediction of every variant; in a column of one image."""
    shown = [picture for picture in experiment.pictures if "fixed" in picture.kinds]
    colours = label_colours(experiment.plan["palette"])
    finished = {name for name, cells in experiment.cells.items() if cells}
    rows = _prediction_rows(groups(experiment.plan), finished)
    beside = len(rows) == 1  # image and truth left of the one row, else the one above the other
    across = ACROSS if form.narrow else 1 + beside + max(map(len, rows))
    count = math.ceil((2 + len(finished)) / across) if form.narrow else max(len(rows), 2 - beside)
    width = form.width / across
    shown = shown[: 1 if form.narrow else _fitting(shown, width, count, SAMPLES, form)]
    strips = []
    for picture in shown:
        given: list[Tile | None] = [("image", picture.image), ("truth", colours[picture.mask])]
        left = [given] if beside else [[picture] for picture in given] + [[None]] * len(rows)
        lines = [
            [*start, *(_prediction(picture, name, colours, width, form) for name in row)]
            for start, row in zip(left, rows, strict=False)
        ]
        if form.narrow:
            predicted = [_prediction(picture, name, colours, width, form) for row in rows for name in row]
            lines = _in_rows([*given, *predicted], across)
        strips.append((short(picture.name, 40 if form.narrow else 120), lines))
    figure = _tiles(strips, width, *_class_legend(experiment, shown), form)
    return figure, (
        "Look at thin structures and at class borders, where the variants differ. The same test images, predicted by "
        f"every variant. mIoU: of this one image. {one_seed(experiment)}"
    )


def extremes(experiment: Experiment, form: Form = WIDE) -> Drawn:
    """The worst and the best test images, with the predictions of the baseline and of the best other variant."""
    baseline, other = experiment.plan["baseline"], best_other(experiment)
    colours = label_colours(experiment.plan["palette"])
    names = [name for name in (baseline, other) if name and experiment.cells[name]]
    pair = len(names) == 2
    tiles, pictures = 2 + len(names) + pair, experiment.pictures
    across = min(tiles, ACROSS) if form.narrow else tiles
    width = form.width / across
    count = 1 if form.narrow else _fitting(pictures, width, 2, EXTREMES, form)
    shown = [
        (kind, picture) for kind in ("worst", "best") for picture in [p for p in pictures if kind in p.kinds][:count]
    ]
    labels, patches = _class_legend(experiment, [picture for _, picture in shown])
    agreement = unlike(AGREEMENT, [*patches, IGNORED])
    strips = list[Strip]()
    for kind, picture in shown:
        row: list[Tile | None] = [("image", picture.image), ("truth", colours[picture.mask])]
        row += [_prediction(picture, name, colours, width, form) for name in names]
        if pair and set(names) <= set(picture.predictions):
            ours, theirs = (picture.predictions[name] == picture.mask for name in names)
            row.append(("which is right", _agreement(ours, theirs, picture.mask, agreement)))
        strips.append((f"{kind}: {short(picture.name, 40 if form.narrow else 120)}", _in_rows(row, across)))
    if pair:
        labels, patches = [*labels, *agreement], [*patches, *agreement.values()]
    best = f" and by {other}, of the other variants the one of highest mean mIoU" if other else ""
    which = " Last: where both predictions are right or wrong, or one of them is." if pair else ""
    return _tiles(strips, width, labels, patches, form), (
        "What kind of image fails: these are not typical of the test images. The test images with the lowest and with "
        f"the highest mIoU of the image alone (mean over variants), predicted by the baseline, {baseline}{best}.{which}"
        f" An image has a low mIoU also for a class of a few pixels that is missed. {one_seed(experiment)}"
    )


def _in_rows(tiles: Sequence[Tile | None], across: int) -> list[list[Tile | None]]:
    return [list(tiles[start : start + across]) for start in range(0, len(tiles), across)]


def refuse_extremes(experiment: Experiment) -> str:
    """Why there are no worst and best images; empty where there are."""
    kinds = {kind for picture in experiment.pictures for kind in picture.kinds}
    return "" if kinds - {"fixed"} else "not stored in these cells, which are of an earlier version"


def logits(experiment: Experiment, form: Form = WIDE) -> Drawn:
    """Logits of the variants with most and least checkerboard at initialisation, and their power spectra."""
    first = _with_logits(experiment)
    initial = {name: _energy(cell.samples()["initial_logits"]) for name, cell in first.items()}
    pair = _most_contrast(groups(experiment.plan), initial)
    stored = {name: {key: first[name].samples()[key] for key in LOGITS} for name in pair}
    channel = _most_gridded(stored[pair[0]]["initial_logits"])
    # Variants below one another, stages side by side; in a column the stages, too, lie below one another.
    stages = (len(LOGITS), 1) if form.narrow else (1, len(LOGITS))
    tall = (0.2 + 1.75 * stages[0] * len(pair)) if form.printed else 0.5 + 2.6 * len(pair)
    figure = Figure(figsize=(form.width, tall), layout="constrained")
    grid = figure.subplots(len(pair) * stages[0], 2 * stages[1], squeeze=False)
    size = form.letters(8)
    for stage, (key, when) in enumerate(zip(LOGITS, ("at initialisation", "after training"), strict=True)):
        down, right = (stage * len(pair), 0) if form.narrow else (0, 2 * stage)
        maps = [_centred(stored[name][key])[channel] for name in pair]
        spectra = [_log_spectrum(plane) for plane in maps]
        low, high = np.percentile(np.concatenate([plane.ravel() for plane in spectra]), (2, 99.9))
        for row, (name, plane, spectrum) in enumerate(zip(pair, maps, spectra, strict=True)):
            crop, power = grid[down + row, right], grid[down + row, right + 1]
            energy = PPM[1] * _energy(stored[name][key])
            crop.imshow(_centre(plane), cmap=colormap("gray"), interpolation="nearest")
            named = f"{short(name, 30)},{chr(10) if form.printed else ' '}{when}"
            crop.set_title(f"{named}\nenergy {energy:,.{0 if energy >= 10 else 1}f} ppm", fontsize=size)
            crop.set_axis_off()
            # From -1/4 to 3/4: the spectrum repeats, and the grid frequencies lie inside rather than on the border.
            shown = power.imshow(
                spectrum, cmap=colormap("magma"), vmin=low, vmax=high, extent=(-0.25, 0.75, 0.75, -0.25)
            )
            circles = ([0.5, 0, 0.5], [0, 0.5, 0.5])
            power.scatter(*circles, s=form.area(90), facecolors="none", edgecolors="#56B4E9", linewidths=1.2)
            power.set_title("log10 power", fontsize=size)
            power.set_xticks((0, 0.25, 0.5), ("0", "1/4", "1/2"), fontsize=7)
            power.set_yticks((0, 0.25, 0.5), ("0", "1/4", "1/2"), fontsize=7)
            power.grid(visible=False)
        power.set_xlabel("cycles per pixel", fontsize=size)
        column = grid[down : down + len(pair), right + 1].tolist()
        figure.colorbar(shown, ax=column, fraction=0.05).ax.tick_params(labelsize=7)
    name = experiment.plan["class_names"][channel]
    return figure, (
        "A checkerboard is a fine regular texture in the crop and a bright point inside the circles. "
        f"Logits of class '{name}' (less the mean over the classes) on the first test image: the middle {CROP} x "
        f"{CROP} pixels, each on its own grey scale, and the log10 power spectrum of the whole map. Shown are the "
        "variants with the most and the least checkerboard energy at initialisation among those that differ in the "
        "main factor alone. The circles lie at 1/2 cycle per pixel; coarser grids of earlier layers "
        "lie at 1/4, 1/8, ... A smooth map is bright at 0 only. Energy: "
        "share of the spectral power inside the circles, above what lies around them, in millionths "
        "(ppm), all classes together."
    )


def refuse_logits(experiment: Experiment) -> str:
    """Why there are no logits; empty where there are."""
    return "" if _with_logits(experiment) else "not stored in these cells, or not finite"


def _with_logits(experiment: Experiment) -> dict[str, Cell]:
    """The first cell of each variant that has stored finite logits: not of one that was not trained from the start.

    Read one array at a time: those of 150 classes take hundreds of megabytes.
    """
    found = {}
    for name, cell in _first_seeds(experiment).items():
        arrays = cell.samples()
        if all(key in arrays and np.isfinite(arrays[key]).all() for key in LOGITS):
            found[name] = cell
    return found


def _first_seeds(experiment: Experiment) -> dict[str, Cell]:
    """The finished cell of lowest seed of each variant that has one."""
    return {name: cells[min(cells)] for name, cells in experiment.cells.items() if cells}


def one_seed(experiment: Experiment) -> str:
    seeds = ", ".join(str(seed) for seed in sorted({cell.seed for cell in _first_seeds(experiment).values()}))
    return f"One seed of each variant, the lowest that finished ({seeds})."


def best_other(experiment: Experiment) -> str:
    """The variant of highest mean mIoU beside the baseline; "" for none."""
    others = [name for name, cells in experiment.cells.items() if cells and name != experiment.plan["baseline"]]
    return max(others, key=lambda name: experiment.estimate(name, "miou").mean, default="")


def _prediction(picture: Picture, name: str, colours: NDArray[np.uint8], width: float, form: Form) -> Tile | None:
    """The tile of a variant's prediction, its name cut to the width in inches; None where it is not stored."""
    if name not in picture.predictions:
        return None
    miou = 100 * picture.mious[name]
    score = "no labelled pixel" if math.isnan(miou) else f"mIoU {miou:.1f} %"
    letters = int((width - 0.06) / form.length(1, form.letters(7.5)))
    return f"{short(name, letters)}\n{score}", colours[picture.predictions[name]]


def _agreement(
    ours: NDArray[np.bool_], theirs: NDArray[np.bool_], mask: NDArray[np.uint8], agreement: Mapping[str, RGB]
) -> NDArray[np.uint8]:
    """Which of two predictions is right, in the colours of the agreement (H, W, 3); grey where nothing is labelled."""
    colours = np.array([*agreement.values(), IGNORED], dtype=np.uint8)
    which = np.select([mask == 255, ours & theirs, ours, theirs], [4, 0, 2, 3], default=1)
    return colours[which]


def _class_legend(experiment: Experiment, shown: Sequence[Picture]) -> tuple[list[str], list[Any]]:
    """Names and colours of what is in the pictures: of 150 classes an image holds a few."""
    seen = set[int]()
    for picture in shown:
        for array in (picture.mask, *picture.predictions.values()):
            seen.update(np.unique(array).tolist())
    names: list[str] = experiment.plan["class_names"]
    colours = label_colours(experiment.plan["palette"])
    labelled = sorted(label for label in seen if label < len(names))
    ignored = any(label >= len(names) for label in seen)
    labels = [short(names[label]) for label in labelled] + ["not labelled"] * ignored
    return labels, [colours[label].tolist() for label in labelled] + [IGNORED] * ignored


def _fitting(pictures: Sequence[Picture], width: float, rows: int, most: int, form: Form) -> int:
    """How many pictures fit into a figure, each in so many rows of tiles of this width: one at least."""
    tallest = max((width * picture.mask.shape[0] / picture.mask.shape[1] for picture in pictures), default=1.0)
    title, gap = TITLE[form.printed], GAP[form.printed]
    return max(1, min(most, int(LONGEST[form.printed] / (rows * (tallest + title) + gap))))


def _tiles(
    strips: Sequence[Strip], width: float, labels: Sequence[str], patches: Sequence[Any], form: Form = WIDE
) -> Figure:
    """Rows of pictures of this width, and below them what the colours are.

    Every tile is placed in inches: images keep their shape, and titles their size.
    """
    columns, title, gap = legend_columns(labels, 6, form), TITLE[form.printed], GAP[form.printed]
    heights = []
    for _, rows in strips:
        image = next(tile for row in rows for tile in row if tile)[1]
        heights.append(width * image.shape[0] / image.shape[1] + title)
    total = 0.15 + (0.17 if form.printed else 0.24) * math.ceil(len(labels) / columns)
    total += sum(len(rows) * height + gap for (_, rows), height in zip(strips, heights, strict=True))
    figure, top = Figure(figsize=(form.width, total)), total
    for (heading, rows), height in zip(strips, heights, strict=True):
        top -= gap
        figure.text(0.005, top / total, heading, fontsize=form.letters(8), color="#555555")
        for row in rows:
            for column, tile in enumerate(row):
                if tile is None:
                    continue
                corner, size = (column * width + 0.03, top - height), (width - 0.06, height - title)
                place = (corner[0] / form.width, corner[1] / total, size[0] / form.width, size[1] / total)
                axis = figure.add_axes(place, anchor="N")
                axis.imshow(tile[1], interpolation="nearest")
                axis.set_title(tile[0], fontsize=form.letters(7.5), pad=3, linespacing=1.15)
                axis.set_axis_off()
            top -= height
    handles = [
        Patch(facecolor=tuple(level / 255 for level in colour), edgecolor="#666666", label=label)
        for label, colour in zip(labels, patches, strict=True)
    ]
    figure.legend(handles=handles, loc="lower center", ncols=columns)
    return figure


def _prediction_rows(of_groups: Sequence[Group], finished: set[str]) -> list[list[str]]:
    """Variants in rows of at most four beside image and truth, a group a row where the design is crossed."""
    rows = [[name for name in group.variants if name in finished] for group in of_groups]
    return [row[start : start + 4] for row in rows for start in range(0, len(row), 4)]


def _energy(maps: NDArray[Any]) -> float:
    """Checkerboard energy of logits (C, H, W); 0 for a map too small to have one."""
    energy = grid_share(maps)
    return 0.0 if math.isnan(energy) else energy


def _centred(maps: NDArray[Any]) -> NDArray[np.float64]:
    """Logits (C, H, W) less their mean over the classes, which changes no prediction."""
    maps = maps.astype(np.float64)
    return maps - maps.mean(axis=0)


def _most_gridded(maps: NDArray[Any]) -> int:
    """The class whose logits differ most between the four pixels of a 2 x 2 block, on average over all blocks."""
    maps = _centred(maps)[:, : maps.shape[1] // 2 * 2, : maps.shape[2] // 2 * 2]
    phases = maps.reshape(len(maps), maps.shape[1] // 2, 2, maps.shape[2] // 2, 2).mean(axis=(1, 3))
    return int((phases.var(axis=(1, 2)) / np.maximum(maps.var(axis=(1, 2)), 1e-30)).argmax())


def _most_contrast(of_groups: Sequence[Group], energy: Mapping[str, float]) -> list[str]:
    """The variants of largest and smallest energy of the group where they lie furthest apart."""
    ranked = [sorted((n for n in g.variants if n in energy), key=lambda n: -energy[n]) for g in of_groups]
    best = max((row for row in ranked if row), key=lambda row: energy[row[0]] - energy[row[-1]])
    return [best[0], best[-1]] if len(best) > 1 else best


def _log_spectrum(plane: NDArray[np.float64]) -> NDArray[np.float64]:
    """log10 of the power of a map (H, W), from -1/4 to 3/4 cycles per pixel; a Hann window keeps its edges out."""
    window = np.outer(np.hanning(plane.shape[0]), np.hanning(plane.shape[1]))
    power = np.abs(np.fft.fft2((plane - plane.mean()) * window)) ** 2
    power = np.roll(power, (plane.shape[0] // 4, plane.shape[1] // 4), axis=(0, 1))
    return np.log10(power / max(float(power.sum()), 1e-30) + 1e-12)


def _centre(plane: NDArray[np.float64]) -> NDArray[np.float64]:
    top, left = (max(0, (side - CROP) // 2) for side in plane.shape)
    return plane[top : top + CROP, left : left + CROP]
