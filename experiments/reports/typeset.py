"""A table as LaTeX: one column wide where it fits, with booktabs alone, and never scaled."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from experiments.reports.tables.text import Table
from experiments.reports.tex import escape

COLUMN, PAGE = 3.35 * 72.27, 6.8 * 72.27  # points of TeX, and a little room
# Points of an em where a class has 10-point letters: small ones of Computer Modern are wider for their size.
SIZES = {"small": 9.25, "footnotesize": 8.5, "scriptsize": 7.97}
THIN, WIDE = {"f": 0.31, "i": 0.28, "j": 0.31, "l": 0.28, "r": 0.39, "s": 0.39, "t": 0.39}, {"m": 0.83, "w": 0.72}
BROAD = dict.fromkeys("bdhnpqu", 0.56) | dict.fromkeys("kvxy", 0.53) | dict.fromkeys("cez", 0.45)
SIGNS = {"\N{PLUS-MINUS SIGN}": 0.78, "+": 0.78, "*": 0.48, "(": 0.39, ")": 0.39, "%": 0.83, "/": 0.5, "-": 0.34}
EM = THIN | WIDE | BROAD | SIGNS | dict.fromkeys(" .,;:[]|'", 0.29)
HEAD = "% Written by python -m experiments.report. Needs \\usepackage{booktabs}.\n"
GAP = 2.7  # points to either side of a column, which a little more is reckoned for
RECKONED = 3.0


@dataclass(frozen=True)
class Layout:
    """What a table takes: one column or both, the size of its letters, and its columns in blocks below one another."""

    star: str
    size: str
    blocks: Sequence[Sequence[int]]


def to_latex(table: Table, label: str) -> str:
    """A float with caption, label, booktabs and its notes; one column wide where it fits, never scaled."""
    layout = lay_out(table)
    notes = "\\par\n".join(re.sub(r"^\*", "$^{*}$", escape(note)) for note in table.notes)
    width = "\\textwidth" if layout.star else "\\columnwidth"
    footnote = f"\n\\par\\smallskip\n\\begin{{minipage}}{{{width}}}\\footnotesize\n{notes}\n\\end{{minipage}}"
    tabulars = "\n\\par\\medskip\n".join(_tabular(table, block) for block in layout.blocks)
    return (
        f"\\begin{{table{layout.star}}}\n\\centering\n\\caption{{{escape(table.caption or table.title)}}}\n"
        f"\\label{{tab:{label}}}\n\\smallskip\n\\{layout.size}\\setlength{{\\tabcolsep}}{{{GAP:g}pt}}\n"
        f"{tabulars}{footnote if notes else ''}\n\\end{{table{layout.star}}}"
    )


def label_of(experiment: str) -> str:
    """What the labels of its tables and figures begin with; other names have other ones."""
    return "".join(
        char if char.isascii() and char.isalnum() else "-" if char == "_" else f"-x{ord(char):x}-"
        for char in experiment
    )


def lay_out(table: Table) -> Layout:
    """One column where that holds it, else the page; columns that do not fit on it go into blocks."""
    widths, every = _widths(table), range(len(table.columns))
    for star, room, sizes in (("", COLUMN, ("small", "footnotesize")), ("*", PAGE, tuple(SIZES))):
        for size in sizes:
            if _room(widths, every, size) <= room:
                return Layout(star, size, [every])
    fixed, blocks = list(every[: table.texts]), [list(every[: table.texts])]
    for column in every[table.texts :]:
        if len(blocks[-1]) > len(fixed) and _room(widths, [*blocks[-1], column], "footnotesize") > PAGE:
            blocks.append([*fixed])
        blocks[-1].append(column)
    return Layout("*", "footnotesize", blocks)


def _room(widths: Sequence[float], columns: Iterable[int], size: str) -> float:
    return sum(SIZES[size] * widths[column] + 2 * RECKONED for column in columns) - 2 * RECKONED


def _widths(table: Table) -> list[float]:
    """Of each column about, in the size of the letters: those of Computer Modern, a little more."""
    cells = [[*_halves(title), *(row[k] for row in table.rows)] for k, title in enumerate(table.columns)]
    return [max(map(_width, column)) for column in cells]


def _width(text: str) -> float:
    """In em; a hyphen before a number is set as a minus."""
    minuses = len(re.findall(r"(?<![\w.})\]-])-(?=\d)", text))
    return 0.44 * minuses + sum(EM.get(c, 0.5 if c.isdigit() or c.islower() else 0.73) for c in text)


def _tabular(table: Table, columns: Sequence[int]) -> str:
    kinds = "".join("l" if column < table.texts else "r" for column in columns)
    halves = [_halves(table.columns[column]) for column in columns]
    heads = [[escape(half[line]) for half in halves] for line in (0, 1)]
    best = {*table.best}
    body = [
        [_cell(row[column], column >= table.texts, (index, column) in best) for column in columns]
        for index, row in enumerate(table.rows)
    ]
    # {}: a name that begins with a bracket would be read as the argument of the \\ before it.
    lines = ["{}" + " & ".join(line) + r" \\" for line in (*(head for head in heads if any(head)), *body)]
    split = len(lines) - len(body)
    return (
        f"\\begin{{tabular}}{{@{{}}{kinds}@{{}}}}\n\\toprule\n"
        + "\n".join(lines[:split])
        + "\n\\midrule\n"
        + "\n".join(lines[split:])
        + "\n\\bottomrule\n\\end{tabular}"
    )


def _cell(cell: str, number: bool, best: bool) -> str:
    """A star behind a number is raised; a name may hold one of its own."""
    if cell == "-":
        return "--"
    starred = number and cell.endswith("*")
    text = escape(cell.removesuffix("*")) + "$^{*}$" if starred else escape(cell)
    return f"\\textbf{{{text}}}" if best else text


def _halves(title: str) -> tuple[str, str]:
    """A column's title on two lines, cut at the space that leaves the shorter longest line."""
    words = title.split()
    cuts = [(" ".join(words[:cut]), " ".join(words[cut:])) for cut in range(1, len(words) + 1)]
    return min(cuts, key=lambda cut: max(map(len, cut)), default=("", ""))
