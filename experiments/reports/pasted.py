"""Tables as an author pastes them: each a file of LaTeX, with Markdown and HTML beside it."""

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from experiments.evidence.experiment import Experiment
from experiments.reports.formats import escape_markdown, rows_to_markdown
from experiments.reports.tables import Table
from experiments.reports.tables.evidence import star_note
from experiments.reports.tables.paper import paper_table, test_note
from experiments.reports.typeset import HEAD, label_of, lay_out, to_latex
from experiments.shell.files import write_atomic
from experiments.shell.places import below

KINDS = ("tex", "md", "html")


def write_tables(
    experiment: Experiment,
    tables: Iterable[Table],
    folder: Path,
    columns: Sequence[str] = (),
    *,
    transpose: bool = False,
) -> None:
    """Writes tables/<key>.tex, .md and .html below `folder`: that of the paper, and all others that are for print.

    Those that an earlier report wrote and this one does not are deleted. Raises CannotWriteError where `tables` is a
    link.
    """
    main = [paper_table(experiment, columns, transpose=transpose, digits=digits) for digits in (2, 1)]
    # One decimal where that alone fits into a column: standard deviations are of tenths of a point at least.
    fitting = (t for t in main if not lay_out(t).star and not any(_at_zero(cell) for row in t.rows for cell in row))
    first = next(fitting, main[0])
    name = label_of(experiment.plan["experiment"])
    tables = list(tables)
    star, test = star_note(experiment), test_note(experiment)
    others = [in_print(table) for table in tables if table.key != first.key and table.caption and table.rows]
    shown = [first, *(replace(t, notes=[test if note == star else note for note in t.notes]) for t in others)]
    for key in {table.key for table in tables} - {table.key for table in shown}:
        for kind in KINDS:
            below(folder, "tables", f"{key}.{kind}").unlink(missing_ok=True)
    for table in shown:
        write_table(table, folder, f"{name}-{table.key}")


def _at_zero(cell: str) -> bool:
    """Whether an interval that leaves out 0 seems to end at it, for want of decimals."""
    return cell.endswith("*") and re.search(r"[\[ ]0\.0[,\]]", cell) is not None


def write_table(table: Table, folder: Path, label: str) -> None:
    """One table in every form."""
    texts = {"tex": HEAD + to_latex(table, label) + "\n", "md": to_markdown(table), "html": to_html(table)}
    for kind, text in texts.items():
        write_atomic(below(folder, "tables", f"{table.key}.{kind}"), text)


def in_print(table: Table) -> Table:
    """With a caption of one sentence, and below it the few that a paper has room for."""
    caption = re.split(r"(?<=[.?!]) (?=[A-Z])", table.caption or f"{table.title}.")[0]
    heads = table.heads or [row[0] for row in table.rows]
    rows = [[head, *row[1:]] for head, row in zip(heads, table.rows, strict=True)]
    notes = [*filter(None, table.notes if table.foot is None else table.foot)]
    return replace(table, caption=caption, rows=rows, notes=notes)


def to_markdown(table: Table) -> str:
    return f"{escape_markdown(table.caption or table.title)}\n\n{rows_to_markdown(table)}\n"


def to_html(table: Table) -> str:
    """A fragment: a table with its caption and its notes as a foot."""
    best = {*table.best}

    def line(cells: Sequence[str], tag: str, row: int) -> str:
        parts = []
        for column, cell in enumerate(cells):
            number = column >= table.texts
            text = html.escape(cell)
            if tag == "td" and number and cell.endswith("*"):
                text = f"{html.escape(cell[:-1])}<sup>*</sup>"
            text = f"<strong>{text}</strong>" if (row, column) in best else text
            side = ' style="text-align: right"' if number else ""
            parts.append(f"<{tag}{side}>{text}</{tag}>")
        return f"<tr>{''.join(parts)}</tr>"

    body = "\n".join(line(cells, "td", row) for row, cells in enumerate(table.rows))
    notes = "<br>\n".join(html.escape(note) for note in table.notes)
    foot = f'\n<tfoot>\n<tr><td colspan="{len(table.columns)}">{notes}</td></tr>\n</tfoot>' if notes else ""
    return (
        f"<table>\n<caption>{html.escape(table.caption or table.title)}</caption>\n<thead>\n"
        f"{line(table.columns, 'th', -1)}\n</thead>\n<tbody>\n{body}\n</tbody>{foot}\n</table>\n"
    )
