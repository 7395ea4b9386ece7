"""How variants look, the same in every figure: their colour, line and marker, and the rows they are drawn in."""

import io
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from experiments.evidence.experiment import Experiment
from experiments.reports.figures.forms import PRINT_STYLE, WIDE, Form
from experiments.shell.files import write_atomic

# Okabe & Ito's palette, told apart by colour-blind readers; without its yellow, which is lost on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (4, 1.2, 1, 1.2)), (0, (6, 1.2)))
MARKERS = (
    "o",
    "s",
    "^",
    "D",
    "v",
    "P",
    "X",
    "<",
    ">",
    "p",
    "*",
    "h",
    "d",
)  # 13: pairs repeat late
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
    "svg.hashsalt": "seglab",  # the same names in the same file
    "text.parse_math": False,  # a dollar in a class name is a dollar
}
MANY = 12  # rows, from where on they are drawn closer to one another
CLOSE = 0.14  # inches, for letters of 7 points
DPI = WIDE.dpi
WIDTH = WIDE.width  # inches
BASELINE = "(baseline)"  # behind its name; a star is for a difference
IGNORED = (150, 150, 150)
UNREAD = ("GDEF", "GPOS", "GSUB", "MATH", "name")  # tables of a font that a PDF does not need
ABSENT = "#e6e6e6"  # where a matrix has no number
FALL_AND_RISE = LinearSegmentedColormap.from_list("fall and rise", [COLOURS[1], "#ffffff", COLOURS[0]])
SHARE = LinearSegmentedColormap.from_list("share", ["#ffffff", "#8fc4e6", COLOURS[0], "#00304d"])

Drawn = tuple[Figure, str]  # with its caption


@contextmanager
def drawing(form: Form = WIDE) -> Iterator[None]:
    """Where every figure is made and saved: matplotlib's own settings with `STYLE`, whatever the user's are.

    No matplotlibrc, style sheet or backend changes a figure, so that the same cells give the same bytes anywhere.
    """
    plain = {name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"}
    style = STYLE | (PRINT_STYLE if form.printed else {})
    with matplotlib.rc_context(plain | style):  # not `rcdefaults`, after which the user's backend would be lost
        yield


def colormap(name: str) -> Colormap:
    """One of matplotlib's, of 256 colours: a matplotlibrc with `image.lut` changes their number at the import."""
    return matplotlib.colormaps[name].resampled(256)


@dataclass(frozen=True)
class Look:
    """How a variant is drawn, the same in every figure: colour by the main factor, line by the others.

    The marker is its own (of 13 variants at most), so that it is known in grey and by colour-blind readers, too.
    """

    label: str
    colour: str
    line: Any
    marker: str

    @property
    def style(self) -> dict[str, Any]:
        """For `Axes.plot`."""
        return {"color": self.colour, "linestyle": self.line, "marker": self.marker}


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
    by_variant, style = dict[str, Look](), 0
    for group in groups(plan):
        for rank, name in enumerate(group.variants):
            label = str(plan["variants"][name]["levels"][main]) if group.title else name
            now = style + rank // len(COLOURS)  # beyond the palette, the next line with the same colours
            line = LINES[(now if group.title else rank) % len(LINES)]
            marker = MARKERS[len(by_variant) % len(MARKERS)]
            by_variant[name] = Look(label, COLOURS[rank % len(COLOURS)], line, marker)
        style = now + 1
    return by_variant


def short(name: str, letters: int = 40) -> str:
    """The name on one line, without its middle where it has more letters."""
    name = " ".join(name.split())
    half = (letters - 1) // 2
    return name if len(name) <= letters else f"{name[:half]}…{name[-half:]}"


def legend_columns(labels: Iterable[str], most: int, form: Form = WIDE) -> int:
    """How many columns of a legend of such labels fit side by side."""
    letters = max(map(len, labels), default=0) + 7  # with the line or patch
    return max(1, min(most, int(form.width / form.length(letters))))


def full_labels(plan: Mapping[str, Any], form: Form = WIDE) -> dict[str, str]:
    """Of each variant, in the order of the groups: its label with the title of its group, cut where long.

    In print its name, where that is shorter.
    """
    look = looks(plan)
    labels = {
        name: short(f"{look[name].label}, {group.title}" if group.title else name)
        for group in groups(plan)
        for name in group.variants
    }
    return {name: min(label, short(name), key=len) if form.printed else label for name, label in labels.items()}


def variant_legend(figure: Figure, plan: Mapping[str, Any], shown: Iterable[str], form: Form = WIDE) -> None:
    """Below the figure, a group a column in a crossed design."""
    look, names = looks(plan), set(shown)
    handles = [
        Line2D([], [], **look[name].style, label=label, linewidth=1.5 * form.mark, markersize=5 if form.printed else 6)
        for name, label in full_labels(plan, form).items()
        if name in names
    ]
    columns = _legend_columns(plan, names, form)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, handlelength=3, markerscale=0.8)


def legend_height(plan: Mapping[str, Any], shown: Iterable[str], form: Form) -> float:
    """Inches of a legend in print."""
    names = set(shown)
    return 0.1 + 0.135 * math.ceil(len(names) / _legend_columns(plan, names, form))


def _legend_columns(plan: Mapping[str, Any], names: Collection[str], form: Form) -> int:
    labels, of_groups = full_labels(plan, form), groups(plan)
    columns = len(of_groups) if len(of_groups) > 1 and len(names) == len(labels) else 4
    return legend_columns([labels[name] for name in names], columns, form)


@dataclass(frozen=True)
class Rows:
    """Where a variant's row lies, from 0 at the top, and where the titles of the groups."""

    heights: dict[str, int]
    titles: dict[int, str]

    @property
    def count(self) -> int:
        return len(self.heights) + len(self.titles)


def lay_rows(plan: Mapping[str, Any]) -> Rows:
    rows, count = Rows({}, {}), 0
    for group in groups(plan):
        if group.title:
            rows.titles[count] = group.title
            count += 1
        for name in group.variants:
            rows.heights[name] = count
            count += 1
    return rows


def row_height(form: Form, rows: Rows) -> float:
    """Inches of a row: in print many lie as close as their letters allow."""
    return CLOSE if form.printed and rows.count > MANY else 0.34 * form.row


def label_rows(axis: Axes, rows: Rows, experiment: Experiment, form: Form = WIDE) -> None:
    """Names the rows at the left of `axis`: which is the baseline, where there is room, and who lacks seeds."""
    look, plan = looks(experiment.plan), experiment.plan
    labels = []
    for name in rows.heights:
        done, planned = len(experiment.cells[name]), len(plan["seeds"])
        parts = [short(look[name].label, 20 if form.narrow else 40)]
        parts += [BASELINE] if name == plan["baseline"] and not form.narrow else []
        parts += [] if done == planned else [f"({done} of {planned})"]
        labels.append(" ".join(parts))
    axis.set_yticks(list(rows.heights.values()), labels)
    axis.set_ylim(rows.count - 0.4, -0.6)
    place = axis.get_yaxis_transform()
    for height, title in rows.titles.items():
        style: dict[str, Any] = {"transform": place, "fontweight": "bold", "va": "center"}
        axis.text(0.015, height + 0.15, short(title), fontsize=form.letters(9), **style)


def draw_mean(
    axis: Axes, height: float, values: Sequence[float], look: Look, form: Form = WIDE, *, hollow: bool = False
) -> None:
    """The mean of the seeds' values in a row, on a thin line from the lowest to the highest."""
    found = [value for value in values if not math.isnan(value)]
    if not found:
        return
    face, edge = ("white", look.colour) if hollow else (look.colour, "white")
    axis.plot([min(found), max(found)], [height, height], color=look.colour, linewidth=form.mark, zorder=2)
    size, width = (5.2, 0.4) if form.printed else (7, 1.0)
    marks: dict[str, Any] = {"markersize": size, "markeredgecolor": edge, "markeredgewidth": width, "zorder": 4}
    axis.plot([np.mean(found)], [height], look.marker, color=face, **marks)


def limits(
    values: Iterable[float], wanted: tuple[float, float], lowest: float = -math.inf, highest: float = math.inf
) -> tuple[float, float]:
    """The wanted limits, but no more than the range of the values to either side: a long interval would squeeze all
    dots into one. Nor do they go far beyond what a score can be."""
    low, high = wanted
    numbers = [value for value in values if not math.isnan(value)]
    if len(set(numbers)) > 1:
        low, high = max(low, 2 * min(numbers) - max(numbers)), min(high, 2 * max(numbers) - min(numbers))
    margin = 0.02 * (high - low)
    return max(low, lowest - margin), min(high, highest + margin)


class _Decades(LogLocator):
    """Numbers at 1, 2 and 5 where few decades are shown, else at 1 alone: at most about six."""

    def tick_values(self, vmin: float, vmax: float) -> Any:
        few = vmax < 30 * vmin
        self.set_params(subs=(1, 2, 5) if few else (1,), numticks=9 if few else 6)
        return super().tick_values(vmin, vmax)


def log_scale(axis: Axes, which: str) -> None:
    """Makes the x or y axis logarithmic, its numbers written in full."""
    axis.set(**{f"{which}scale": "log"})
    scale = axis.xaxis if which == "x" else axis.yaxis
    scale.set_major_locator(_Decades())
    scale.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    scale.set_minor_formatter(NullFormatter())


def ink(colour: Any) -> str:
    """Black or white, whichever is read better on the colour."""
    red, green, blue, _ = to_rgba(colour)
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.52 else "white"


def matrix(
    axis: Axes,
    values: NDArray[np.float64],
    colours: LinearSegmentedColormap,
    norm: Normalize,
    digits: int | None,
) -> AxesImage:
    """A map of numbers (rows, columns), grey where NaN; `digits` after the point of what is written in the cells, with
    a sign where they can be negative."""
    drawn = axis.imshow(values, cmap=colours.with_extremes(bad=ABSENT), norm=norm, aspect="auto")
    axis.grid(visible=False)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    for (row, column), value in np.ndenumerate(values):
        if digits is not None and not math.isnan(value):
            sign = "+" if (norm.vmin or 0) < 0 and round(value, digits) > 0 else ""
            style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 7, "color": ink(colours(norm(value)))}
            axis.text(column, row, f"{sign}{value:z.{digits}f}", **style)
    return drawn


def label_colours(palette: Sequence[Sequence[int]]) -> NDArray[np.uint8]:
    """The colour of each label (256, 3): those of the classes, grey for the others."""
    colours = np.full((256, 3), IGNORED, dtype=np.uint8)
    colours[: len(palette)] = palette
    return colours


def lay_out(figure: Figure, form: Form = WIDE) -> None:
    """Places what the layout engine of the figure places, once for all formats: it takes longer than to draw."""
    figure.set_dpi(form.dpi)  # as it is saved: texts are measured in pixels
    if engine := figure.get_layout_engine():
        engine.execute(figure)
        figure.set_layout_engine(None)  # not "none", for which matplotlib draws once more before it saves


@contextmanager
def plain_fonts() -> Iterator[None]:
    """Where a PDF is saved: its fonts are cut down without the tables that join and shift letters, which no PDF reads.

    To cut these down as well takes twice the time of all else in a font, of which each PDF has its own.
    """
    from fontTools.subset import Options

    kept = getattr(Options, "_drop_tables_default", [])  # no name that fontTools has promised
    Options._drop_tables_default = [*kept, *UNREAD]
    try:
        yield
    finally:
        Options._drop_tables_default = kept


def save_figure(figure: Figure, path: Path, metadata: dict[str, Any], *, tight: bool = False, dpi: int = DPI) -> bytes:
    """Without a date, so that the same cells give the same bytes; `tight` cuts empty borders off."""
    buffer = io.BytesIO()
    box = "tight" if tight else None
    figure.savefig(buffer, format=path.suffix[1:], dpi=dpi, metadata=metadata, bbox_inches=box)
    write_atomic(path, buffer.getvalue())
    return buffer.getvalue()
