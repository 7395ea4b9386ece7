"""The drawing of a network: what it says, that nothing in it covers anything else, and how branches stand."""

import math
import xml.etree.ElementTree as ET
from itertools import combinations, pairwise

import pytest

from experiments.reports.network_drawing import svg
from experiments.reports.network_layout import GLYPH, SLANT, TYPE, laid_out, scale
from lightning_modules.analysis.blocks import Block, Drawing, Edge

SPACE = "{http://www.w3.org/2000/svg}"


def block(name: str, stride: float | None, channels: int = 16, kind: str = "conv 3x3") -> Block:
    side = int(64 / stride) if stride else 1
    return Block(name, kind, "convolution", channels, (side, side), stride)


IMAGE, LOGITS = Block("", "image", "image", 3, (64, 64), 1), Block("", "logits", "logits", 2, (64, 64), 1)
CHAIN = Drawing([IMAGE, block("one", 1), LOGITS], [Edge(0, 1), Edge(1, 2)], (64, 64))
BRANCHES = Drawing(
    [IMAGE, block("stem", 4), *(block(f"branches.{n}", 4) for n in range(3)), block("project", 4), LOGITS],
    [Edge(0, 1), *(Edge(1, n) for n in (2, 3, 4)), *(Edge(n, 5, "concat") for n in (2, 3, 4)), Edge(5, 6)],
    (64, 64),
)
SKIPS = Drawing(
    [IMAGE, block("a", 1), block("b", 2), block("c", 4), block("d", 2), block("e", 1), LOGITS],
    [*(Edge(n, n + 1) for n in range(6)), Edge(1, 5, "concat"), Edge(2, 4, "add")],
    (64, 64),
)
SIDE = Drawing(
    [IMAGE, block("a", 1), block("b", 2), block("c", 4), block("reduce", 1), block("up", 1), block("e", 1), LOGITS],
    [
        Edge(0, 1),
        Edge(1, 2),
        Edge(2, 3),
        Edge(1, 4),
        Edge(3, 5),
        Edge(4, 6, "concat"),
        Edge(5, 6, "concat"),
        Edge(6, 7),
    ],
    (64, 64),
)
LOST = Drawing([IMAGE, block("one", 1), block("two", None), LOGITS], [Edge(0, 1), Edge(2, 3)], (64, 64))
ALL = {"chain": CHAIN, "branches": BRANCHES, "skips": SKIPS, "side": SIDE, "lost": LOST}
each = pytest.mark.parametrize("drawing", ALL.values(), ids=ALL)


@each
def test_it_is_xml_that_says_what_it_shows(drawing: Drawing) -> None:
    text = svg(drawing, "A network & its title")
    root = ET.fromstring(text)
    assert root.find(f"{SPACE}title").text == "A network & its title"  # type: ignore[union-attr]
    told = root.find(f"{SPACE}desc").text or ""  # type: ignore[union-attr]
    written = {one.text for one in root.findall(f"{SPACE}text")}
    for one in drawing.blocks:
        assert one.name in told and (one.name or one.kind) in written and f"{one.channels} channels" in told
    assert len(root.findall(f"{SPACE}path")) == len(drawing.edges)
    assert all(f"{e.source} to {e.target} ({e.join})" in told for e in drawing.edges if e.join)
    first = root.find(f"{SPACE}rect")
    assert first is not None and first.get("fill") == "#ffffff" and first.get("width") == root.get("width")
    assert svg(drawing, "A network & its title") == text


@each
def test_nothing_is_outside_and_no_text_covers_another(drawing: Drawing) -> None:
    root = ET.fromstring(svg(drawing, "A network"))
    width, height = float(root.get("width") or 0), float(root.get("height") or 0)
    boxes = []
    for one in root.findall(f"{SPACE}text"):
        if one.get("transform"):  # slanted, beside each other by a line
            continue
        size = float(one.get("font-size") or TYPE)
        long = len(one.text or "") * size * GLYPH * 0.95
        x, y = float(one.get("x") or 0), float(one.get("y") or 0)
        x -= {"middle": long / 2, "end": long}.get(one.get("text-anchor") or "", 0)
        boxes.append((x, y - 0.7 * size, x + long, y, one.text))
        assert 0 <= x and x + long <= width and 0 <= y - size and y <= height, one.text
    slanted = sorted(float(one.get("x") or 0) for one in root.findall(f"{SPACE}text") if one.get("transform"))
    apart = math.sin(math.radians(SLANT))  # of two parallel lines whose ends are 1 apart
    assert all((b - a) * apart >= TYPE for a, b in pairwise(slanted))
    for a, b in combinations(boxes, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (a, b)


def test_blocks_are_higher_and_wider_for_larger_maps_and_more_channels() -> None:
    one, two, three = laid_out(SKIPS).placed[1:4]
    assert one.height > two.height > three.height
    drawing = Drawing(
        [IMAGE, block("few", 1, 8), block("many", 1, 512), LOGITS], [Edge(n, n + 1) for n in range(3)], (64, 64)
    )
    assert laid_out(drawing).placed[2].width > laid_out(drawing).placed[1].width


def test_branches_stand_above_each_other() -> None:
    placed = laid_out(BRANCHES).placed
    assert [one.column for one in placed] == [0, 1, 2, 2, 2, 3, 4]
    middles = [one.middle for one in placed[2:5]]
    assert middles == sorted(middles) and placed[3].middle == pytest.approx(placed[1].middle)
    assert all(a.lower < b.upper for a, b in pairwise(placed[2:5]))


def test_skips_pass_above_each_other_and_the_blocks() -> None:
    layout = laid_out(SKIPS)
    wide, narrow = (next(a for a in layout.arrows if a.edge.source == source and a.told) for source in (1, 2))
    top = min(one.upper for one in layout.placed)
    heights = [min(y for _, y in arrow.points) for arrow in (wide, narrow)]
    assert heights[0] < heights[1] < min(one.upper for one in layout.placed[2:5]) and heights[0] < top


def test_a_branch_of_an_early_map_stands_above_the_way_that_it_meets() -> None:
    placed = {one.block.name: one for one in laid_out(SIDE).placed}
    assert placed["reduce"].column == placed["up"].column and placed["reduce"].lower < placed["up"].upper
    assert placed["up"].middle == pytest.approx(placed["a"].middle)


def test_what_is_lost_stands_in_the_order_of_calls() -> None:
    assert [one.column for one in laid_out(LOST).placed] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("stride", "size", "said"),
    [
        (1, (64, 64), "1"),
        (16, (4, 4), "1/16"),
        (4 / 3, (48, 48), "0.75"),
        (None, (6, 6), "6 x 6"),
        (None, None, "points"),
    ],
)
def test_the_size_of_a_map(stride: float | None, size: tuple[int, int] | None, said: str) -> None:
    assert scale(Block("x", "conv", "convolution", 1, size, stride)) == said
