"""The drawing of a network as SVG: what `lightning_modules.analysis.blocks` found, in text that a browser draws."""

from typing import Any
from xml.sax.saxutils import escape

from experiments.reports.network_layout import (
    LINE,
    SLANT,
    TYPE,
    Arrow,
    Layout,
    Placed,
    Point,
    label,
    laid_out,
    names,
    scale,
    wide,
)
from lightning_modules.analysis.blocks import Block, Drawing, Role

# By role: of Okabe and Ito's palette, which the colour-blind tell apart; lighter and darker in turn, so that grey does.
COLOURS: dict[Role, tuple[str, str]] = {
    "image": ("#ffffff", "image, logits"),
    "encoder": ("#0072b2", "encoder"),
    "pool": ("#e69f00", "pooling, smaller map"),
    "convolution": ("#9bd0ee", "convolution"),
    "up": ("#00735c", "upsampling"),
    "scores": ("#f0e442", "scores of classes"),
    "logits": ("#ffffff", "image, logits"),
}
NOTE = "size: side of the map as a share of the image's"
INK, QUIET = "#1a1a1a", "#4d4d4d"
MARKER = (
    '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    f'<path d="M0 0.5L8 4L0 7.5Z" fill="{INK}"/></marker>'
)
FONT = "Helvetica, Arial, sans-serif"


def svg(drawing: Drawing, title: str) -> str:
    """The drawing; the same text for the same network."""
    layout = laid_out(drawing)
    layout.width = max(layout.width, 10 + wide(NOTE) + 10, 10 + wide(title, 13, bold=True) + 10)
    legend, foot = _legend(drawing, layout)
    width, height = round(layout.width), round(foot + 8)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-labelledby="title desc" font-family="{FONT}" font-size="{_n(TYPE)}" fill="{INK}">'
    )
    lines = [
        head,
        f'<title id="title">{escape(title)}</title>',
        f'<desc id="desc">{escape(described(drawing))}</desc>',
        f"<defs>{MARKER}</defs>",
        f'<rect x="0" y="0" width="{width}" height="{height}" fill="#ffffff"/>',
        _text(title, (10, 20), size=13, weight="bold"),
        *(_arrow(arrow) for arrow in layout.arrows),
        *(_block(one) for one in layout.placed),
        *_labels(layout),
        *_joins(drawing, layout),
        *legend,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def described(drawing: Drawing) -> str:
    """The blocks and arrows in words, for who does not see them."""
    told = [
        f"{number}: {' '.join(filter(None, names(block)))}, {block.channels} channels at {_of_image(block)}"
        for number, block in enumerate(drawing.blocks)
    ]
    ways = [
        f"{edge.source} to {edge.target}" + (f" ({edge.join})" if edge.join else "")
        for edge in drawing.edges
        if edge.join or edge.target != edge.source + 1
    ]
    more = f" Arrows beside those to the next block: {', '.join(ways)}." if ways else ""
    return f"Blocks from the image to the logits: {'; '.join(told)}.{more}"


def _of_image(block: Block) -> str:
    shown = scale(block)
    return "the image's size" if shown == "1" else f"{shown} of it" if "/" in shown else shown


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _text(
    text: str, at: Point, *, size: float = TYPE, weight: str = "", anchor: str = "", colour: str = "", more: str = ""
) -> str:
    given = {
        "font-size": _n(size) if size != TYPE else "",
        "font-weight": weight,
        "text-anchor": anchor,
        "fill": colour,
    }
    attributes = "".join(f' {name}="{value}"' for name, value in given.items() if value)
    return f'<text x="{_n(at[0])}" y="{_n(at[1])}"{attributes}{more}>{escape(text)}</text>'


def _block(one: Placed) -> str:
    shape = f'x="{_n(one.left)}" y="{_n(one.upper)}" width="{_n(one.width)}" height="{_n(one.height)}"'
    told = f"{', '.join(filter(None, names(one.block)))}: {one.block.channels} channels, {_of_image(one.block)}"
    style = f'rx="1.5" fill="{COLOURS[one.block.role][0]}" stroke="{INK}"'
    return f"<rect {shape} {style}><title>{escape(told)}</title></rect>"


def _arrow(arrow: Arrow) -> str:
    (x, y), *rest = arrow.points
    if arrow.curved:
        first, *bend, last = rest
        curve = " ".join(f"{_n(a)} {_n(b)}" for a, b in bend)
        way = f"M{_n(x)} {_n(y)}L{_n(first[0])} {_n(first[1])}C{curve}L{_n(last[0])} {_n(last[1])}"
    else:
        way = f"M{_n(x)} {_n(y)}" + "".join(f"L{_n(a)} {_n(b)}" for a, b in rest)
    return f'<path d="{way}" fill="none" stroke="{INK}" marker-end="url(#head)"/>'


def _labels(layout: Layout) -> list[str]:
    lines = []
    for row, name in enumerate(("channels", "size")):
        lines.append(_text(name, (10, layout.rows + row * LINE), colour=QUIET))
    for one in layout.placed:
        x = one.left + one.width / 2
        if not one.alone:
            for row, line in enumerate(label(one.block)):
                first: dict[str, Any] = {"weight": "bold"} if row == 0 else {"colour": QUIET} if row == 1 else {}
                lines.append(_text(line, (x, one.lower + (row + 1) * LINE - 1), anchor="middle", **first))
            continue
        lines.append(_text(str(one.block.channels), (x, layout.rows), anchor="middle"))
        lines.append(_text(scale(one.block), (x, layout.rows + LINE), anchor="middle"))
        for row, line in enumerate(names(one.block)):
            at = x + 4 - (LINE - 2) * 0.5 + row * (LINE + 3), layout.rows + 2 * LINE + 4
            turn = f' transform="rotate(-{_n(SLANT)} {_n(at[0])} {_n(at[1])})"'
            style: dict[str, Any] = {"colour": QUIET} if row else {"weight": "bold"}
            if line:
                lines.append(_text(line, at, anchor="end", more=turn, **style))
    return lines


def _joins(drawing: Drawing, layout: Layout) -> list[str]:
    """The word of each arrow that passes above; and one for those that come from the column before."""
    halo = ' stroke="#ffffff" stroke-width="3" paint-order="stroke" stroke-linejoin="round"'
    lines = [_text(a.edge.join, a.told, size=10, anchor="middle", more=halo) for a in layout.arrows if a.told]
    told = {arrow.edge.target for arrow in layout.arrows if arrow.told}
    for number, one in enumerate(layout.placed):
        words = [edge.join for edge in drawing.edges if edge.target == number]
        if any(words) and len(words) > 1 and number not in told:
            word = " and ".join(dict.fromkeys(filter(None, words)))
            lines.append(_text(word, (one.left - 9, one.middle - 7), size=10, anchor="end", more=halo))
    return lines


def _legend(drawing: Drawing, layout: Layout) -> tuple[list[str], float]:
    """Its lines, and where it ends."""
    lines, x, y = list[str](), 10.0, layout.foot + 6
    shown = {block.role for block in drawing.blocks}
    entries = {told: colour for role, (colour, told) in COLOURS.items() if role in shown}
    for told, colour in entries.items():
        room = 16 + wide(told) + 16
        if x + room > layout.width and x > 10:
            x, y = 10.0, y + LINE + 4
        lines.append(f'<rect x="{_n(x)}" y="{_n(y)}" width="11" height="11" fill="{colour}" stroke="{INK}"/>')
        lines.append(_text(told, (x + 16, y + 9.5)))
        x += room
    lines.append(_text(NOTE, (10, y + LINE + 14), colour=QUIET))
    return lines, y + LINE + 18
