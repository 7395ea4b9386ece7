"""Names beside their points, where no bar, line, mark or other name crosses them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, bottom, right, top

DISTANCES = (7, 9, 12, 16, 22, 30, 40, 52, 66, 84, 104, 130, 160, 200)  # points from a mark to its name
ANGLES = 16
LED = 12  # points from where on a thin line leads from a name to its point
MOST_EACH, MOST_PLACES = 120, 1400  # places of one name, and of all together, that are tried
MOST_STEPS = 400  # of the search: what takes longer has no room
STEPS = np.linspace(0, 1, 24)[:, None]  # along a line that leads


@dataclass(frozen=True)
class Place:
    """Where a name lies, in pixels of the figure: its box, and the points of the line that leads to it, if any."""

    box: Box
    led: NDArray[np.float64]  # (steps, 2)
    cost: float


def find_places(
    axis: Axes,
    points: Sequence[Point],
    lines: Sequence[tuple[Point, Point]],
    names: Sequence[str],
    size: float,
    mark: float = 8.0,
) -> list[Place] | None:
    """A place for each name beside its point; None where there is no room for all of them inside the axes.

    Points, and ends of the `lines`, which are upright or level, are data coordinates (x, y); `size` of the letters and
    `mark`, the width of a point, are in points. The same input gives the same places.
    """
    to_pixels, dot = axis.transData.transform, axis.figure.dpi / 72
    marks = np.array([_around(x, y, (mark + 4) * dot, (mark + 4) * dot) for x, y in to_pixels(points)])
    shut = [*map(tuple, marks)]
    for line in lines:
        (x0, y0), (x1, y1) = to_pixels(line)
        pad = 1.5 * dot
        shut.append((min(x0, x1) - pad, min(y0, y1) - pad, max(x0, x1) + pad, max(y0, y1) + pad))
    bars = np.array(shut[len(points) :]).reshape(-1, 4)
    found = []
    for number, (point, name) in enumerate(zip(points, names, strict=True)):
        text = axis.annotate(name, point, (0, 0), textcoords="offset points", fontsize=size)
        extent = text.get_window_extent()
        text.remove()
        # Wider than measured: at another resolution letters are a little wider.
        sides = 1.06 * extent.width + dot, extent.height + dot
        others = marks[~_overlaps(marks, marks[number : number + 1])[:, 0]]  # a line may begin below one that touches
        x, y = to_pixels(point)
        found.append(_free(x, y, sides, dot, mark, np.array(shut), others, bars, np.array(axis.bbox.extents)))
    return _search(found)


def draw_names(
    axis: Axes,
    points: Sequence[Point],
    places: Sequence[Place],
    names: Sequence[str],
    colours: Sequence[str],
    size: float,
) -> None:
    """Writes the names at their places."""
    dot = axis.figure.dpi / 72
    for point, place, name, colour in zip(points, places, names, colours, strict=True):
        x, y = axis.transData.transform(point)
        left, bottom, right, top = place.box
        middle = ((left + right) / 2 - x) / dot, ((bottom + top) / 2 - y) / dot
        style: dict[str, Any] = {"fontsize": size, "ha": "center", "va": "center", "zorder": 5}
        # The grid fades behind it; a white outline instead would turn the text of a PDF into drawings of letters.
        style["bbox"] = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.3}
        text = axis.annotate(name, point, middle, textcoords="offset points", annotation_clip=False, **style)
        text.set_in_layout(False)
        if len(place.led):
            ends = axis.transData.inverted().transform(place.led[[0, -1]])
            axis.plot(ends[:, 0], ends[:, 1], color=colour, linewidth=0.6, zorder=2.5, scalex=False, scaley=False)


def boxes(places: Sequence[Place]) -> list[Bbox]:
    """Where the names lie, in pixels of the figure."""
    return [Bbox.from_extents(*place.box) for place in places]


def _free(
    x: float,
    y: float,
    sides: tuple[float, float],
    dot: float,
    mark: float,
    shut: NDArray[np.float64],
    others: NDArray[np.float64],
    bars: NDArray[np.float64],
    inside: NDArray[np.float64],
) -> list[Place]:
    """The places of a name around (x, y) that are inside and clear of all that is drawn, the best first."""
    places = []
    for distance in DISTANCES:
        away = (distance + mark / 2 - 4) * dot
        for turn in range(ANGLES):
            aside, above = math.cos(2 * math.pi * turn / ANGLES), math.sin(2 * math.pi * turn / ANGLES)
            box = _around(x + aside * (away + sides[0] / 2), y + above * (away + sides[1] / 2), *sides)
            low, high = np.array(box[:2]), np.array(box[2:])
            if (low < inside[:2]).any() or (high > inside[2:]).any():
                continue
            if _overlaps(np.array([box]), shut).any():
                continue
            led, crossed = np.empty((0, 2)), 0
            if distance > LED:
                end = np.clip((x, y), low, high)
                start = np.array((x, y)) + (mark / 2 + 1) * dot * (end - (x, y)) / max(math.dist(end, (x, y)), 1e-9)
                led = start + STEPS * (end - start)
                if _holds(others, led).any():
                    continue
                on_bars = _holds(bars, led)
                if on_bars.any(axis=0).mean() > 0.3:  # along one it would make it look longer
                    continue
                crossed = int(on_bars.any(axis=1).sum())
            places.append(Place(box, led, distance + 25.0 * crossed + 0.5 * (turn % 4 != 0)))
    return sorted(places, key=lambda place: place.cost)


def _search(candidates: Sequence[Sequence[Place]]) -> list[Place] | None:
    """One of each, of which no two are in each other's way.

    A local search: each begins at its best place, then the one that is most in the way moves to where it is least. What
    stays in each other's way weighs more from step to step (Morris 1993, "The breakout method").
    """
    if not all(candidates):
        return None
    most = max(8, min(MOST_EACH, MOST_PLACES // max(len(candidates), 1)))
    lists = [list(places[:most]) for places in candidates]
    starts = np.cumsum([0, *map(len, lists)])
    every = [place for places in lists for place in places]
    owner = np.repeat(np.arange(len(lists)), [len(places) for places in lists])
    clash, cost = _clashes(every, owner), np.array([place.cost for place in every])
    weights = np.ones((len(lists), len(lists)))
    chosen = starts[:-1].copy()
    for _ in range(MOST_STEPS):
        between = clash[np.ix_(chosen, chosen)]
        if not between.any():
            return [every[index] for index in chosen]
        weights += between
        worst = int(np.argmax((between * weights).sum(axis=1)))
        own = np.arange(starts[worst], starts[worst + 1])
        bad = (clash[np.ix_(own, chosen)] * weights[worst]).sum(axis=1)
        chosen[worst] = own[np.lexsort((cost[own], bad))[0]]
    return None


def _clashes(places: Sequence[Place], owner: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether two places of different names are in each other's way (n, n): a name, or the line that leads to one."""
    if not places:
        return np.zeros((0, 0), dtype=np.bool_)
    all_boxes = np.array([place.box for place in places])
    clash = _overlaps(all_boxes, all_boxes)
    for index, place in enumerate(places):
        if len(place.led):
            crossed = _holds(all_boxes, place.led).any(axis=1)
            clash[index] |= crossed
            clash[:, index] |= crossed
    return clash & (owner[:, None] != owner[None])


def _around(x: float, y: float, width: float, height: float) -> Box:
    return (x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def _overlaps(some: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether each box (n, 4) has an area in common with each other one (m, 4): (n, m)."""
    low = np.maximum(some[:, None, :2], others[None, :, :2])
    high = np.minimum(some[:, None, 2:], others[None, :, 2:])
    return np.asarray((high > low).all(axis=-1), dtype=np.bool_)


def _holds(some: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether each box (n, 4) holds each of the points (m, 2): (n, m)."""
    inside = (points[None] >= some[:, None, :2]) & (points[None] <= some[:, None, 2:])
    return np.asarray(inside.all(axis=-1), dtype=np.bool_)
