"""The tables of one or several experiments as Markdown, CSV and LaTeX. Names are of users: each format escapes them."""

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from experiments.evidence.experiment import Experiment
from experiments.evidence.intervals import KINDS, Estimate, estimate
from experiments.reports.page import Section
from experiments.reports.tables import Table, marked_test
from lightning_modules.components.scores.table import PERCENT, SCORES, errors


def to_csv(sections: Sequence[Section]) -> str:
    """A row a variant, plain numbers: scores in percent or ppm, as the column says, empty where undefined."""
    lines = [line for section in sections for line in _lines(section.experiment)]
    columns = list(dict.fromkeys(column for line in lines for column in line))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([columns, *([_plain(line.get(column)) for column in columns] for line in lines)])
    return file.getvalue()


def _lines(experiment: Experiment) -> Iterable[dict[str, Any]]:
    plan = experiment.plan
    units = {score: printed.unit for score, printed in (SCORES | errors()).items()}
    units |= {f"iou/{name}": PERCENT for name in plan["class_names"]}
    for name, variant in plan["variants"].items():
        line: dict[str, Any] = {"experiment": _defused(plan["experiment"]), "data": _defused(plan["data"])}
        line |= {"variant": _defused(name), "baseline": int(name == plan["baseline"])}
        line |= {f"level_{factor}": _defused(str(level)) for factor, level in variant["levels"].items()}
        line |= {"seeds": len(experiment.cells[name]), "seeds_planned": len(plan["seeds"])}
        for score, (unit, factor) in units.items():
            column = f"{score}_{'percent' if unit == PERCENT[0] else unit}"
            line |= _parts(column, experiment.estimate(name, score).times(factor))
            change = experiment.difference(name, plan["baseline"], score).times(factor)
            # The baseline's difference to itself is no finding.
            line |= _parts(f"{column}_difference", estimate([]) if name == plan["baseline"] else change)
            if score == "miou":
                line |= _evidence(experiment, name, f"{column}_difference", factor)
        line |= {key: variant[key] for key in ("parameters", "gmac", "step_seconds", "step_ratio", "peak_memory_mb")}
        yield line


def _parts(column: str, estimate: Estimate) -> dict[str, float]:
    return {f"{column}_{part}": getattr(estimate, part) for part in ("mean", "std", "low", "high")}


def _evidence(experiment: Experiment, variant: str, column: str, factor: float) -> dict[str, Any]:
    """Intervals of the difference by what they allow for, the marked test and the effect size; empty where refused."""
    difference = experiment.compared.differences.get(variant) if experiment.compared else None
    line: dict[str, Any] = {}
    for kind in KINDS:
        interval = difference.contrast.estimate(kind).times(factor) if difference else None
        line |= {f"{column}_{part}_{kind}": getattr(interval, part) if interval else None for part in ("low", "high")}
    test = difference.tests[marked_test(experiment)] if difference else None
    line |= {f"{column}_p_adjusted": test.adjusted if test else None, f"{column}_test": test.name if test else None}
    parts = {"effect_size": "d", "effect_size_low": "low", "effect_size_high": "high"}
    return line | {
        f"{column}_{part}": getattr(difference.effect, name) if difference else None for part, name in parts.items()
    }


def _plain(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.8g}" if isinstance(value, float) else str(value)


def _defused(text: str) -> str:
    """A spreadsheet runs a cell that begins with one of these as a formula; the apostrophe makes it text."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def to_markdown(sections: Sequence[Section], summary: Table | None = None) -> str:
    """The report as a file of its own: a heading of the first order an experiment, below it those of the second."""
    parts = ["# Experiments reported together", table_to_markdown(summary)] if summary else []
    for section in sections:
        experiment, plan = section.experiment, section.experiment.plan
        parts += [f"# {escape_markdown(plan['experiment'])}", escape_markdown(plan["question"])]
        parts += [f"**{escape_markdown(line)}**" for line in section.warnings]
        parts.append(tables_to_markdown(section))
        if experiment.missing:
            parts += ["## Cells without a result", missing_to_markdown(experiment)]
        commit = escape_markdown(plan["commit"])
        parts.append(f"Made by\n\n{code_to_markdown(plan['command'])}\n\nat commit {commit}.")
    return "\n\n".join(parts) + "\n"


def tables_to_markdown(section: Section, level: int = 2) -> str:
    """The tables that have rows; the notes follow that of the cost."""
    parts = []
    for table in section.tables:
        if table.rows:
            parts.append(table_to_markdown(table, level))
            if table.key == "cost":
                parts.append("\n".join(f"- {escape_markdown(note)}" for note in section.notes))
    return "\n\n".join(parts)


def table_to_markdown(table: Table, level: int = 2) -> str:
    """Heading, table and its notes."""
    return f"{'#' * level} {escape_markdown(table.title)}\n\n{rows_to_markdown(table)}"


def rows_to_markdown(table: Table) -> str:
    """A table and its notes, without the title."""
    marks = ["---"] * table.texts + ["---:"] * (len(table.columns) - table.texts)
    cells = [[escape_markdown(cell) for cell in row] for row in (table.columns, *table.rows)]
    for row, column in table.best:
        cells[row + 1][column] = f"**{cells[row + 1][column]}**"
    lines = "\n".join(f"| {' | '.join(line)} |" for line in (cells[0], marks, *cells[1:]))
    return "\n\n".join([lines, *map(escape_markdown, table.notes)])


def missing_to_markdown(experiment: Experiment) -> str:
    return "\n".join(f"- {escape_markdown(f'{m.variant}, seed {m.seed}: {m.state}')}" for m in experiment.missing)


def code_to_markdown(code: str) -> str:
    """A fence longer than any run of backticks in the code, which may hold no mark of a record."""
    code = code.replace("<!--", "<! --")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", code)), default=2))
    return f"{fence}\n{code}\n{fence}"


def escape_markdown(text: str) -> str:
    text = re.sub(r"([\\`*|$])", r"\\\1", " ".join(text.split()))  # a dollar would begin a formula
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("](", "]\\(")


def to_latex(sections: Sequence[Section], summary: Table | None = None) -> str:
    """booktabs tables, each with its caption, its footnotes and a label."""
    needs = "Needs \\usepackage{booktabs} and \\usepackage{graphicx}; names beyond Latin letters need lualatex."
    parts = [f"% Written by python -m experiments.report. {needs}"]
    if summary:
        parts.append(_latex_table(summary, f"{summary.title}.", "summary"))
    for section in sections:
        name = re.sub(r"[^A-Za-z0-9]+", "-", section.experiment.plan["experiment"])
        parts += [
            _latex_table(table, _caption(table, section), f"{name}-{table.key}")
            for table in section.tables
            if table.caption and table.rows
        ]
    return "\n\n".join(parts) + "\n"


def _caption(table: Table, section: Section) -> str:
    """That of the first table says too what a reader must know before the first number."""
    if table is not section.tables[0]:
        return table.caption
    return " ".join([table.caption, *filter(None, (*section.warnings, section.experiment.plan["scale_note"]))])


def _latex_table(table: Table, caption: str, label: str) -> str:
    columns = "l" * table.texts + "r" * (len(table.columns) - table.texts)
    halves = [_halves(column) for column in table.columns]
    header = [[first for first, _ in halves], [second for _, second in halves]]
    # {}: a name that begins with a bracket would be read as the argument of the \\ before it.
    body = [[_latex_cell(cell, index >= table.texts) for index, cell in enumerate(row)] for row in table.rows]
    for row, column in table.best:
        body[row][column] = f"\\textbf{{{body[row][column]}}}"
    lines = ["{}" + " & ".join(row) + r" \\" for row in (*([*map(_escape_latex, line)] for line in header), *body)]
    notes = "\\par\n".join(re.sub(r"^\*", "$^{*}$", _escape_latex(note)) for note in table.notes)
    footnote = f"\n\\par\\smallskip\n\\begin{{minipage}}{{\\linewidth}}\\footnotesize\n{notes}\n\\end{{minipage}}"
    return (
        "\\begin{table*}\n\\centering\n\\setlength{\\tabcolsep}{4pt}\n"
        f"\\caption{{{_escape_latex(caption)}}}\n\\label{{tab:{label}}}\n"
        # Only ever made smaller: a narrow table keeps the size of the text.
        "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%\n"
        f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{lines[0]}\n{lines[1]}\n\\midrule\n"
        + "\n".join(lines[2:])
        + "\n\\bottomrule\n\\end{tabular}}"
        + (footnote if notes else "")
        + "\n\\end{table*}"
    )


def _latex_cell(cell: str, number: bool) -> str:
    """A star behind a number is raised; a name may hold one of its own."""
    starred = number and cell.endswith("*")
    return _escape_latex(cell.removesuffix("*")) + "$^{*}$" if starred else _escape_latex(cell)


def _halves(title: str) -> tuple[str, str]:
    """A column's title on two lines, cut at the space that leaves the shorter longest line."""
    words = title.split()
    cuts = [(" ".join(words[:cut]), " ".join(words[cut:])) for cut in range(1, len(words) + 1)]
    return min(cuts, key=lambda cut: max(map(len, cut)), default=("", ""))


def _escape_latex(text: str) -> str:
    special = {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}"}
    special |= {"^": "\\textasciicircum{}", "<": "\\textless{}", ">": "\\textgreater{}", "±": "$\\pm$"}
    escaped = "".join(special.get(c, c) for c in " ".join(text.split()))
    return re.sub(r"(?<![\w.}-])-(?=\d)", "$-$", escaped)  # a minus, not the hyphen of a name
