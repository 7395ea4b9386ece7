"""What `experiments.explain` draws of a network: fields on an image, overlap of taps, activation map."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.patheffects as effects
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from experiments.reports.figures.looks import COLOURS, SHARE, WIDTH, colormap, ink, label_colours, short

FAINTEST = 1e-4  # of the largest influence, below which the heat map is one colour
NUMBERED = 16  # pixels of a side: in smaller maps each pixel says its number
COLUMNS = 4  # of maps in a row
NAMED = 12  # classes in a legend
SHADES = 256  # of the classes that have a colour; all others are grey
TALLEST = 1.6  # height of a panel over its width
THEORETICAL, EFFECTIVE, ASKED = COLOURS[4], COLOURS[5], COLOURS[1]

Picture = NDArray[np.uint8]  # (H, W, 3)
Box = tuple[int, int, int, int]  # first and last row, first and last column
Pixel = tuple[int, int]  # row, column


@dataclass(frozen=True)
class Fields:
    """Both fields of a unit, the theoretical one as it lies in the image."""

    pixel: Pixel
    box: Box | None  # None where it cannot be followed
    shares: tuple[NDArray[np.float64], NDArray[np.float64]] | None  # (H, W) as they are and smooth; None: nothing moves
    level: float  # of the smooth shares at the contour
    theoretical: str  # sizes, in words
    effective: str


@dataclass(frozen=True)
class Taps:
    """The taps (H, W) of one geometry; `inner` is away from the border: top, bottom, left, right, ends left out."""

    title: str
    layers: str
    counts: NDArray[np.int64]
    inner: Box


def draw_fields(picture: Picture, fields: Fields, title: str) -> Figure:
    """The image with the outlines of both fields; beside it the effective one, as large as it gets."""
    figure, (whole, near) = _panels(picture, 2, below=0.75)
    whole.imshow(_grey(picture), interpolation="nearest")
    handles: list[Any] = []
    if fields.box is not None:
        handles.append(_outline(whole, fields.box, f"theoretical field: {fields.theoretical}"))
    if fields.shares is None:
        near.set_axis_off()
        near.text(
            0.5,
            0.5,
            f"effective field: {fields.effective}",
            ha="center",
            va="center",
            transform=near.transAxes,
            wrap=True,
        )
    else:
        shares, smooth = fields.shares
        for axis in (whole, near):
            drawn = axis.contour(smooth, [fields.level], colors=EFFECTIVE, linewidths=1.8)
            drawn.set_path_effects([effects.withStroke(linewidth=3.2, foreground="black")])
        heat = near.imshow(shares / shares.max(), cmap=colormap("magma"), norm=LogNorm(FAINTEST, 1, clip=True))
        bar = figure.colorbar(heat, ax=near, label="influence, of the largest", fraction=0.045, pad=0.02, format="%g")
        bar.ax.minorticks_off()
        handles.append(Line2D([], [], color=EFFECTIVE, linewidth=2.2, label=f"effective field: {fields.effective}"))
        window = _window(smooth >= fields.level)
        near.set(xlim=(window[2] - 0.5, window[3] + 0.5), ylim=(window[1] + 0.5, window[0] - 0.5))
        near.set_title("effective field" + ("" if _all_of(window, shares.shape) else ", enlarged"))
        if not _all_of(window, shares.shape):
            _outline(whole, window, "", colour="white", line=":")
            handles.append(_line("white", ":", "what is enlarged"))
        _mark(near, fields.pixel)
    handles.append(_mark(whole, fields.pixel))
    whole.set_title(title)
    _legend(figure, handles, 2)
    return figure


def draw_overlaps(maps: Sequence[Taps], title: str) -> Figure:
    """The taps of each geometry in a small map; the numbers within the dashed line hold for all but the border."""
    columns = min(COLUMNS, len(maps))
    rows = math.ceil(len(maps) / columns)
    figure = Figure(figsize=(max(2.9 * columns, 4.6), 3.4 * rows + 0.7), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in grid[len(maps) :]:
        axis.set_axis_off()
    for axis, taps in zip(grid, maps, strict=False):
        height, width = taps.counts.shape
        norm = Normalize(0, 1.25 * max(int(taps.counts.max()), 1))  # no map is all of the darkest blue
        drawn = axis.imshow(taps.counts, cmap=SHARE, norm=norm, interpolation="nearest")
        if max(height, width) <= NUMBERED:
            size = 8 if max(height, width) <= 10 else 6
            for (row, column), count in np.ndenumerate(taps.counts):
                axis.text(
                    column, row, str(count), ha="center", va="center", fontsize=size, color=ink(SHARE(norm(count)))
                )
        else:
            bar = figure.colorbar(drawn, ax=axis, fraction=0.045, pad=0.02, location="bottom")
            bar.locator = MaxNLocator(nbins=5, integer=True)
            bar.update_ticks()
        top, bottom, left, right = taps.inner
        _outline(axis, (top, bottom - 1, left, right - 1), "", colour=ASKED, line="--", halo=False)
        axis.set_title(taps.title, fontsize=9)
        axis.set_xlabel(taps.layers, fontsize=8)
        _bare(axis)
    figure.suptitle(title, fontsize=10)
    _legend(figure, [_line(ASKED, "--", "away from the border", halo=False)], 1)
    return figure


def draw_cam(
    picture: Picture,
    labels: NDArray[np.int64],
    cam: NDArray[np.float64],
    pixel: Pixel,
    region: NDArray[np.bool_] | None,
    names: Sequence[str],
    palette: Sequence[Sequence[int]],
    titles: tuple[str, str, str],
) -> Figure:
    """The image, what is predicted of it, and the activation map over it; `region` is what it is asked of, where that
    is more than the pixel."""
    present = [int(label) for label in np.argsort(-np.bincount(labels.ravel())) if (labels == label).any()]
    colours = label_colours((palette if len(palette) >= len(names) else _palette(len(names)))[:SHADES])
    listed = [
        Patch(facecolor=tuple(colours[min(label, SHADES - 1)] / 255), edgecolor="0.4", label=short(names[label], 24))
        for label in present[:NAMED]
    ]
    listed += [Patch(alpha=0, label=f"and {len(present) - NAMED} more")] if len(present) > NAMED else []
    figure, (plain, predicted, over) = _panels(picture, 3, below=0.4 + 0.2 * math.ceil((len(listed) + 2) / 6))
    plain.imshow(picture, interpolation="nearest")
    predicted.imshow(colours[np.minimum(labels, SHADES - 1)], interpolation="nearest")
    over.imshow(_grey(picture), interpolation="nearest")
    strength = cam / cam.max() if cam.any() else cam
    heat = over.imshow(strength, cmap=colormap("inferno"), norm=Normalize(0, 1), alpha=np.clip(1.5 * strength, 0, 0.85))
    bar = figure.colorbar(heat, ax=over, label="activation, of the largest", fraction=0.045, pad=0.02)
    if bar.solids is not None:
        bar.solids.set_alpha(1)
    handles: list[Any] = []
    if region is not None:
        for axis in (predicted, over):
            if not region.all():
                axis.contour(region, [0.5], colors=EFFECTIVE, linewidths=1.4, linestyles="--")
        handles.append(_line(EFFECTIVE, "--", "region that is asked of", halo=False))
        marked = None
    else:
        (marked, *_) = [_mark(axis, pixel) for axis in (plain, predicted, over)]
        handles.append(marked)
    for axis, title in zip((plain, predicted, over), titles, strict=True):
        axis.set_title(title, fontsize=9)
    _legend(figure, [*handles, *listed], 6)
    return figure


def _panels(picture: Picture, count: int, below: float) -> tuple[Figure, Any]:
    """A row of panels as high as the picture wants, and inches below for a legend."""
    height, width = picture.shape[:2]
    wide = WIDTH / count
    figure = Figure(figsize=(WIDTH, wide * min(max(height / width, 0.4), TALLEST) + 0.4 + below), layout="compressed")
    axes = figure.subplots(1, count)
    for axis in axes:
        _bare(axis)
    return figure, axes


def _bare(axis: Axes) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)


def _grey(picture: Picture) -> Picture:
    """The picture in pale grey, on which colours are told apart."""
    grey = 70 + 0.7 * picture.mean(2, keepdims=True)
    return np.repeat(grey.round().astype(np.uint8), 3, axis=2)


def _outline(axis: Axes, box: Box, label: str, colour: str = THEORETICAL, line: str = "-", *, halo: bool = True) -> Any:
    """A rectangle around all pixels of the box."""
    top, bottom, left, right = box
    corner, across, down = (left - 0.5, top - 0.5), right - left + 1, bottom - top + 1
    drawn = Rectangle(corner, across, down, fill=False, edgecolor=colour, linewidth=2, linestyle=line, clip_on=False)
    if halo:
        drawn.set_path_effects([effects.withStroke(linewidth=3.4, foreground="black")])
    axis.add_patch(drawn)
    return _line(colour, line, label)


def _line(colour: str, line: str, label: str, *, halo: bool = True) -> Line2D:
    style: dict[str, Any] = {"linewidth": 2, "linestyle": line}
    handle = Line2D([], [], color=colour, label=label, **style)
    if halo:
        handle.set_path_effects([effects.withStroke(linewidth=3.4, foreground="black")])
    return handle


def _mark(axis: Axes, pixel: Pixel) -> Any:
    """A cross at the pixel that is asked of."""
    style: dict[str, Any] = {"marker": "P", "markersize": 9, "color": ASKED, "markeredgecolor": "white"}
    axis.plot([pixel[1]], [pixel[0]], linestyle="none", zorder=5, clip_on=False, **style)
    return Line2D([], [], linestyle="none", label=f"pixel at row {pixel[0]}, column {pixel[1]}", **style)


def _window(inside: NDArray[np.bool_]) -> Box:
    """A box around what is inside, with half as much again around it, within the image."""
    found: list[int] = []
    for axis, side in enumerate(inside.shape):
        places = np.flatnonzero(inside.any(1 - axis))
        first, last = int(places[0]), int(places[-1])
        margin = max(4, (last - first + 1) // 2)
        found += [max(first - margin, 0), min(last + margin, side - 1)]
    return found[0], found[1], found[2], found[3]


def _all_of(box: Box, shape: tuple[int, ...]) -> bool:
    return box == (0, shape[0] - 1, 0, shape[1] - 1)


def _palette(count: int) -> list[list[int]]:
    """Colours that differ in lightness, too, for classes that have none of their own."""
    return [[round(255 * value) for value in colour[:3]] for colour in colormap("viridis")(np.linspace(0, 1, count))]


def _legend(figure: Figure, handles: Sequence[Any], columns: int) -> None:
    figure.legend(handles=handles, loc="outside lower center", ncols=min(columns, len(handles)), fontsize=8)
