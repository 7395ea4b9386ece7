"""The tables of one or several experiments as Markdown, CSV and LaTeX. Names are of users: each format escapes them."""

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from experiments.evidence.energy import Energies
from experiments.evidence.estimate import Estimate, estimate
from experiments.evidence.experiment import Experiment
from experiments.evidence.failed import failed_line
from experiments.evidence.scored import scored
from experiments.reports.commands import uncommitted
from experiments.reports.page import Section
from experiments.reports.tables import Table
from experiments.reports.typeset import HEAD, label_of
from experiments.reports.typeset import to_latex as typeset
from experiments.shell.files import slug
from lightning_modules.components.scores.table import ASKED, PERCENT, SCORES, SIZES, Number, errors


def to_csv(sections: Sequence[Section]) -> str:
    """A row a variant, plain numbers: scores in percent or ppm, as the column says, empty where undefined."""
    lines = [line for section in sections for line in _lines(section.experiment)]
    columns = list(dict.fromkeys(column for line in lines for column in line))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([columns, *([_plain(line.get(column)) for column in columns] for line in lines)])
    return file.getvalue()


def _in_order() -> dict[str, Number]:
    return SCORES | errors() | SIZES | ASKED


def _lines(experiment: Experiment) -> Iterable[dict[str, Any]]:
    plan = experiment.plan
    units = {score: printed.unit for score, printed in _in_order().items()}
    units |= {f"iou/{name}": PERCENT for name in plan["class_names"]}
    energies = Energies(experiment)
    for name, variant in plan["variants"].items():
        line: dict[str, Any] = {"experiment": defused(plan["experiment"]), "data": defused(plan["data"])}
        line |= {} if scored(plan) == "test" else {"scored": scored(plan)}
        line |= {"variant": defused(name), "baseline": int(name == plan["baseline"])}
        line |= {f"level_{factor}": defused(str(level)) for factor, level in variant["levels"].items()}
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
        line |= _parts("energy_wh", estimate(energies.of(name))) if energies.watt_hours else {}
        yield line


def _parts(column: str, estimate: Estimate) -> dict[str, float]:
    return {f"{column}_{part}": getattr(estimate, part) for part in ("mean", "std")}


def _evidence(experiment: Experiment, variant: str, column: str, factor: float) -> dict[str, Any]:
    """What the difference in mIoU is judged by: `low` and `high` hold together with those of all rows."""
    row, family = experiment.comparisons.get(variant), experiment.family
    parts = ("estimate", "low", "high", "own_low", "own_high")
    of_row = row.times(factor) if row else None
    line: dict[str, Any] = {f"{column}_{part}": getattr(of_row, part) if of_row else None for part in parts}
    for part in ("p", "adjusted", "df", "chance"):
        line[f"{column}_{part}"] = getattr(row, part) if row else None
    line[f"{column}_star"] = int(row.star) if row and not row.reason else None
    kind = "seeds" if family.images_only else "seeds and images"
    return line | {f"{column}_interval": kind if row and not row.reason else None}


def _plain(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.8g}" if isinstance(value, float) else str(value)


def defused(text: str) -> str:
    """A spreadsheet runs a cell that begins with one of these as a formula; the apostrophe makes it text."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def to_markdown(sections: Sequence[Section], summary: Table | None = None) -> str:
    """The report as a file of its own: of each experiment the answer, its figure and table, then all else."""
    parts = []
    if summary:
        parts += [f"**{escape_markdown(section.headline)}**" for section in sections]
        parts += ["# Experiments reported together", table_to_markdown(summary)]
    for section in sections:
        experiment, plan = section.experiment, section.experiment.plan
        head = f"**{escape_markdown(section.headline)}**"
        parts += [head, *map(escape_markdown, (*section.answer[1:], *section.warnings))]
        if "seeds" in section.figures:
            folder = f"{slug(plan['experiment'])}/" if summary else ""
            parts.append(f"![seeds and differences]({folder}figures/seeds.png)")
        parts.append(rows_to_markdown(section.tables[0]))
        parts += [f"# {escape_markdown(plan['experiment'])}", escape_markdown(plan["question"])]
        parts.append(tables_to_markdown(section))
        if experiment.missing:
            parts += ["## Cells without a result", missing_to_markdown(experiment)]
        commit = escape_markdown(plan["commit"])
        parts.append(f"Made by\n\n{code_to_markdown(plan['command'])}\n\nat commit {commit}.")
        parts += filter(None, [uncommitted(experiment)])
    return "\n\n".join(parts) + "\n"


def tables_to_markdown(section: Section, level: int = 2) -> str:
    """The tables behind the first that have rows, and the notes."""
    parts = [table_to_markdown(table, level) for table in section.tables[1:] if table.rows]
    parts.append(f"{'#' * level} What each number is")
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
    """All tables in full, each a float with its caption, its notes and a label: a supplement."""
    parts = [HEAD.rstrip()]
    if summary:
        parts.append(typeset(replace(summary, caption=f"{summary.title}."), "summary"))
    for section in sections:
        name = label_of(section.experiment.plan["experiment"])
        parts += [
            typeset(replace(table, caption=_caption(table, section)), f"{name}-{table.key}")
            for table in section.tables
            if table.caption and table.rows
        ]
    return "\n\n".join(parts) + "\n"


def _caption(table: Table, section: Section) -> str:
    """That of the first table says too what a reader must know before the first number."""
    if table is not section.tables[0]:
        return table.caption
    known = (failed_line(section.experiment), *section.warnings, section.experiment.plan["scale_note"])
    return " ".join([table.caption, *filter(None, known)])
