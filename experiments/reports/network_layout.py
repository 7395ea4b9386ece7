"""Where the blocks and arrows of a network's drawing go: columns from left to right, in pixels."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lightning_modules.analysis.blocks import Block, Drawing, Edge

Point = tuple[float, float]

GLYPH, BOLD = 0.56, 0.61  # widths of a letter, as shares of the size of the type
TYPE = 11.0  # pixels
LINE = 13.0
TALL, SHORT = 112.0, 9.0  # heights of a map of the image's size, and of one that does not grow with it
PITCH = 37.0  # from one column to the next
GUTTER = 26.0  # for arrows, beside a column of several blocks
TRACK = 17.0  # between arrows that pass above
SLANT = 52.0  # degrees of the names below
HIGHEST, LOWEST = 480.0, 40.0  # pixels of a column, and of the image's size at the least


@dataclass
class Placed:
    """A block: the centre of its left side, its size, and whether its names stand below it or in the rows below all."""

    block: Block
    column: int
    left: float = 0.0
    middle: float = 0.0
    width: float = 0.0
    height: float = 0.0
    alone: bool = True
    top: bool = True  # whether arrows reach it from above
    room: tuple[float, float] = (0.0, 0.0)  # from where to where its column has text

    @property
    def right(self) -> float:
        return self.left + self.width

    @property
    def upper(self) -> float:
        return self.middle - self.height / 2

    @property
    def lower(self) -> float:
        return self.middle + self.height / 2


@dataclass(frozen=True)
class Arrow:
    """A way of straight lines, or a curve between two of them, of which the four in the middle are the points."""

    edge: Edge
    points: tuple[Point, ...]
    curved: bool
    told: Point | None = None  # where its word stands: the middle of its lower side


@dataclass
class Layout:
    placed: list[Placed]
    arrows: list[Arrow] = field(default_factory=list)
    width: float = 0.0
    height: float = 0.0
    rows: float = 0.0  # the line of channels
    foot: float = 0.0  # below all names


def names(block: Block) -> tuple[str, str]:
    """What is written of a block: its path and what it does; the latter alone for a function."""
    kind = block.kind + (f", {block.calls} calls" if block.calls > 1 else "")
    return (block.name, kind) if block.name else (kind, "")


def scale(block: Block) -> str:
    """The stride of a map as a share of the image; the sides of one that does not grow with it."""
    if block.stride is None:
        return " x ".join(map(str, block.size)) if block.size else "points"
    whole = block.stride > 1 and abs(block.stride - round(block.stride)) < 0.02 * block.stride
    return f"1/{block.stride:.0f}" if whole else f"{1 / block.stride:.2g}"


def wide(text: str, size: float = TYPE, *, bold: bool = False) -> float:
    return len(text) * size * (BOLD if bold else GLYPH)


def laid_out(drawing: Drawing) -> Layout:
    columns = _columns(drawing)
    members: list[list[int]] = [[] for _ in range(max(columns) + 1)]
    for number, column in enumerate(columns):
        members[column].append(number)
    placed = [Placed(block, column) for block, column in zip(drawing.blocks, columns, strict=True)]
    above = _above(drawing, columns, members)
    tall = TALL
    while max(_stack(placed, column, above, tall) for column in members) > HIGHEST and tall > LOWEST:
        tall -= 4
    _across(drawing, placed, members)
    layout = Layout(placed)
    layout.arrows = _arrows(drawing, placed)
    _settle(layout)
    return layout


def _columns(drawing: Drawing) -> list[int]:
    """As far right as what comes next allows, so that branches stand above each other where they meet again."""
    count = len(drawing.blocks)
    follows = [{edge.target for edge in drawing.edges if edge.source == number} for number in range(count)]
    led = {edge.target for edge in drawing.edges}
    for number in range(count - 1):  # what could not be followed stands in the order of calls
        if not follows[number] or number + 1 not in led:
            follows[number].add(number + 1)
    left = [0] * count
    for number in reversed(range(count - 1)):
        left[number] = 1 + max(left[later] for later in follows[number])
    return [left[0] - steps for steps in left] if left[0] == max(left) else [max(left) - steps for steps in left]


def _above(drawing: Drawing, columns: Sequence[int], members: Sequence[Sequence[int]]) -> dict[int, int]:
    """Blocks that stand above those in the middle, by what is above them: a map from further left alone goes there."""
    above: dict[int, int] = {}
    for number in range(1, len(columns)):
        if len(members[columns[number]]) == 1:
            continue
        sources = [edge.source for edge in drawing.edges if edge.target == number]
        if any(columns[number] - columns[source] > 1 for source in sources):
            above[number] = 0
        elif sources and all(source in above for source in sources):
            above[number] = 1
    for column in members:
        if all(number in above for number in column):
            above.pop(column[-1])
    return above


def _stack(placed: list[Placed], column: Sequence[int], above: Mapping[int, int], tall: float) -> float:
    """Lays the blocks of a column above each other, and returns how high it is."""
    for number in column:
        one = placed[number]
        deep = 6.0 if one.block.stride is None else min(math.log2(max(one.block.stride, 1)), 6.0)
        one.height = SHORT + (tall - SHORT) * (1 - deep / 6)
        one.width = 4 + 1.7 * math.log2(max(one.block.channels, 1) + 1)
        one.alone = len(column) == 1
    ordered = sorted(column, key=lambda number: (above.get(number, 2), number))
    y, places = 0.0, []
    for number in ordered:
        one = placed[number]
        places.append(y + one.height / 2)
        y += one.height + (0 if one.alone else _lines(one.block) * LINE + 14)
    first = places[sum(number in above for number in column)]
    for number, place in zip(ordered, places, strict=True):
        placed[number].middle = place - (first + places[-1]) / 2
        placed[number].top = number == ordered[0]
    return y


def _lines(block: Block) -> int:
    return 1 + sum(map(bool, names(block)))


def label(block: Block) -> list[str]:
    """The lines below a block that has others in its column."""
    return [line for line in (*names(block), f"{block.channels} at {scale(block)}") if line]


def _across(drawing: Drawing, placed: list[Placed], members: list[list[int]]) -> None:
    """Lays the columns beside each other."""
    x = 0.0
    for column in members:
        told = {edge.target for edge in drawing.edges if edge.target in column and edge.join and _near(edge, placed)}
        if len(column) == 1:
            block = placed[column[0]].block
            room = max(PITCH, wide(str(block.channels)) + 8, wide(scale(block)) + 8)
            beside = placed[column[0]].column and len(members[placed[column[0]].column - 1]) > 1
            x += wide("indices") if told and beside else 0
        else:
            lines = [(line, not at) for number in column for at, line in enumerate(label(placed[number].block))]
            room = max(wide(line, bold=bold) for line, bold in lines) + 4
            x += GUTTER
        for number in column:
            placed[number].left = x + (room - placed[number].width) / 2
            placed[number].room = (x, x + room) if len(column) > 1 else (placed[number].left, placed[number].right)
        x += room + (GUTTER if len(column) > 1 else 0)


def _near(edge: Edge, placed: list[Placed]) -> bool:
    return placed[edge.target].column - placed[edge.source].column == 1


def _arrows(drawing: Drawing, placed: list[Placed]) -> list[Arrow]:
    arrows = []
    for edge in drawing.edges:
        start, end = placed[edge.source], placed[edge.target]
        if _near(edge, placed):
            (x1, y1), (x2, y2) = (start.right, start.middle), (end.left, end.middle)
            begin, stop = start.room[1], min(end.room[0], x2 - 8)
            bent = (begin + stop) / 2
            way = (x1, y1), (begin, y1), (bent, y1), (bent, y2), (stop, y2), (x2 - 1, y2)
            arrows.append(Arrow(edge, way if y1 != y2 else (way[0], way[-1]), curved=y1 != y2))
    sides: dict[tuple[int, int], int] = {}  # arrows that go up or down beside a column, by its number and side
    above: list[tuple[float, float, float]] = []  # from where to where arrows pass, and how high
    long = [edge for edge in drawing.edges if not _near(edge, placed)]
    for edge in sorted(long, key=lambda edge: (placed[edge.target].column - placed[edge.source].column, edge.source)):
        start, end = placed[edge.source], placed[edge.target]
        x1, out = _port(start, sides, leaves=True)
        x2, into = _port(end, sides, leaves=False)
        y = min(one.upper for one in placed if start.column <= one.column <= end.column) - 16
        y = min([y, *(passed - TRACK for a, b, passed in above if a < x2 + 4 and x1 - 4 < b)])
        above.append((x1, x2, y))
        points = (*out, (x1, y), (x2, y), *reversed(into))
        arrows.append(Arrow(edge, points, curved=False, told=((x1 + x2) / 2, y - 3) if edge.join else None))
    return arrows


def _port(one: Placed, sides: dict[tuple[int, int], int], *, leaves: bool) -> tuple[float, list[Point]]:
    """Where an arrow that passes above leaves or reaches a block: its x, and the points between it and the block."""
    if one.top:
        x = one.left + one.width * (0.72 if leaves else 0.28)
        return x, [(x, one.upper - (0 if leaves else 1))]
    side = (one.column, 1 if leaves else -1)
    sides[side] = sides.get(side, 0) + 1
    if leaves:
        x = one.room[1] + 5 * sides[side]
        return x, [(one.right, one.middle), (x, one.middle)]
    x = one.room[0] - 5 * sides[side]
    return x, [(one.left - 1, one.middle), (x, one.middle)]


def _settle(layout: Layout) -> None:
    """Moves all so that nothing is left of or above the margin, and finds the lines of the names."""
    margin = 10.0
    heads = wide("channels") + 12  # of the two rows
    lean = math.cos(math.radians(SLANT))
    left = min(
        one.left + one.width / 2 - lean * max(map(wide, names(one.block))) - 4 if one.alone else one.left
        for one in layout.placed
    )
    left = min(left, min(one.left for one in layout.placed) - heads)
    points = [point for arrow in layout.arrows for point in arrow.points]
    upper = min([one.upper for one in layout.placed] + [y - 14 for _, y in points])
    dx, dy = margin - left, margin + 26 - upper  # for the title
    for one in layout.placed:
        one.left, one.middle, one.room = one.left + dx, one.middle + dy, (one.room[0] + dx, one.room[1] + dx)
    layout.arrows = [
        Arrow(
            arrow.edge,
            tuple((x + dx, y + dy) for x, y in arrow.points),
            arrow.curved,
            arrow.told and (arrow.told[0] + dx, arrow.told[1] + dy),
        )
        for arrow in layout.arrows
    ]
    layout.rows = (
        max(one.lower + (0 if one.alone else _lines(one.block) * LINE + 4) for one in layout.placed) + LINE + 4
    )
    longest = max((max(map(wide, names(one.block))) for one in layout.placed if one.alone), default=0.0)
    layout.foot = layout.rows + 2 * LINE + math.sin(math.radians(SLANT)) * longest + 2 * LINE
    ends = [
        one.left + one.width / 2 + (0 if one.alone else max(map(wide, label(one.block))) / 2) for one in layout.placed
    ]
    layout.width = max(ends) + PITCH / 2 + margin
