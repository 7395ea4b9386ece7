"""A report of stored experiments: what it is made from, and its files."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import rich.table
from rich.console import Console
from rich.text import Text

from experiments.evidence.deviations import patch_name, planned_seeds, unequal
from experiments.evidence.experiment import Experiment, load_experiment
from experiments.evidence.failed import WAYS_OUT, failed, without_failed
from experiments.evidence.join import join
from experiments.evidence.scored import WARNING, as_scored, scored
from experiments.evidence.spread import diverged
from experiments.evidence.subset import choose, with_margin
from experiments.reports import formats, methods, paper
from experiments.reports.answer import answer
from experiments.reports.cells import MOST_ROWS, count_rows, write_cells
from experiments.reports.commands import patches, read_code, show_command
from experiments.reports.figures import missing_figures, too_tall, write_figures
from experiments.reports.page import SHOWN_WARNINGS, Section, render
from experiments.reports.pasted import in_print, write_table, write_tables
from experiments.reports.reproduce import report_environment, reproduce_script
from experiments.reports.tables import Table, make_notes, make_summary, make_tables
from experiments.reports.tables.evidence import SPREAD_P
from experiments.reports.tables.text import p_value
from experiments.shell.citation import PLACE
from experiments.shell.command import console
from experiments.shell.files import slug, write_atomic, write_json
from experiments.shell.places import below
from lightning_modules.components.scores.table import PERCENT


@dataclass(frozen=True)
class Report:
    """What all forms of a report are made from."""

    out: Path
    sections: Sequence[Section]
    places: Sequence[Path]  # of tables and figures of each
    summary: Table | None  # of several experiments
    script: str  # reproduce.sh
    patches: dict[str, bytes]  # which it applies, by the SHA-256
    environment: dict[str, Any]
    figures: Collection[str] | None  # that were asked for, by name


@dataclass(frozen=True)
class Printed:
    """What is asked for: figures by name (None: all) in formats, columns of the main table, and further scores."""

    figures: Collection[str] | None = None
    formats: Sequence[str] = ("pdf",)
    columns: Sequence[str] = ()
    transpose: bool = False
    scores: Sequence[str] = ()


PRINTED = Printed()


def write_report(folder: Path) -> Path:
    """Writes the report of the experiment in `folder`, prints its answer, and returns the path of report.html.

    Raises FileNotFoundError where there is no experiment, ValueError where no cell is finished or a file is damaged.
    """
    return write(collect([folder], folder))


def collect(
    folders: Sequence[Path],
    out: Path,
    *,
    only: Sequence[str] = (),
    margin: float | None = None,
    pooled: bool = False,
    printed: Printed = PRINTED,
) -> Report:
    """Reads the experiments, draws their figures and sets their tables, into `out`.

    `only` names the variants that are compared, beside the baseline; `margin`, in points, is that within which variants
    are equivalent; `pooled` adds a mean over data sets. Raises as `write_report`, and ValueError where folders hold
    different results of one cell, or none of these variants, or cannot be pooled.
    """
    experiments = join([_load(folder) for folder in folders])
    several = len(experiments) > 1
    folders_of = (
        _folder_names(experiments) if several else {experiments[0].plan["experiment"]: slug(folders[0].absolute().name)}
    )
    kept, environment = patches(experiments), report_environment(experiments)
    script = reproduce_script(experiments, folders_of, read_code(environment["report"]))
    sections, places = list[Section](), list[Path]()
    shown = choose(experiments, only) if only else experiments
    for experiment in map(_without_places, shown if margin is None else [with_margin(one, margin) for one in shown]):
        place = below(out, folders_of[experiment.plan["experiment"]], "figures").parent if several else out
        figures = write_figures(experiment, place, chosen=printed.figures, formats=printed.formats)
        asked = figures if printed.figures is None else {*printed.figures} & {*figures}
        notes = make_notes(experiment)
        notes += [f"Not drawn: {name}; {why}" for name, why in missing_figures(experiment).items()]
        notes += too_tall(place, asked, printed.formats[0])
        tables = make_tables(experiment, printed.scores)
        places.append(place)
        write_tables(experiment, tables, place, printed.columns, transpose=printed.transpose)
        sections.append(Section(experiment, answer(experiment), tables, notes, warnings(experiment), figures))
    summary = make_summary([section.experiment for section in sections], pooled=pooled) if several else None
    return Report(out, sections, places, summary, script, kept, environment, printed.figures)


def write(report: Report, *, cells: bool = False) -> Path:
    """Writes every form of the report, prints its answer and returns the path of report.html.

    `cells`: cells.csv, however large it is.
    """
    page = report.out / "report.html"
    write_atomic(report.out / "table.md", formats.to_markdown(report.sections, report.summary))
    write_atomic(report.out / "table.csv", formats.to_csv(report.sections))
    if report.summary:
        write_table(in_print(report.summary), report.out, "summary")
    write_atomic(report.out / "table.tex", formats.to_latex(report.sections, report.summary))
    experiments = [section.experiment for section in report.sections]
    rows, file = count_rows(experiments), report.out / "cells.csv"
    if cells or rows <= MOST_ROWS:
        write_cells(file, experiments)
    else:
        file.unlink(missing_ok=True)  # of an earlier report, it may hold other cells
    for sha256, patch in report.patches.items():
        write_atomic(report.out / patch_name(sha256), patch)
    write_atomic(report.out / "reproduce.sh", report.script)
    write_json(report.out / "environment.json", report.environment)
    write_atomic(page, render(report.sections, report.summary))
    _write_methods(report)
    write_atomic(
        report.out / "paper.tex",
        paper.to_latex(report.sections, report.places, report.out, report.summary, report.figures),
    )
    _print(report, page)
    if not file.exists():
        console().print(Text(f"not written: cells.csv, of {rows:,} rows; --cells writes it"), soft_wrap=True)
    return page


def _write_methods(report: Report) -> None:
    """methods.md, methods.tex and references.bib, for which CITATION.cff is needed; a checkout has it."""
    if not PLACE.is_file():
        console().print(Text("not written: methods.md, methods.tex and references.bib, as there is no CITATION.cff"))
        for name in ("methods.md", "methods.tex", "references.bib"):  # of an earlier report
            (report.out / name).unlink(missing_ok=True)
        return
    experiments = [section.experiment for section in report.sections]
    forms = {"methods.md": methods.to_markdown, "methods.tex": methods.to_latex, "references.bib": methods.to_bibtex}
    for name, form in forms.items():
        write_atomic(report.out / name, form(experiments))


def _load(folder: Path) -> Experiment:
    experiment = load_experiment(folder)
    if not experiment.finished():
        cells = "\n".join(f"  {m.variant} seed {m.seed}: {m.state}" for m in experiment.missing)
        raise ValueError(
            f"{folder} has no finished cell, so there is nothing to report yet. Run it first: "
            f"{experiment.plan['command']}\n{cells}"
        )
    return experiment


def _without_places(experiment: Experiment) -> Experiment:
    """The same for print: where the data lie on this machine is nobody's business."""
    plan = experiment.plan
    common = dict(plan["common"])
    if "data.root" in common:
        common["data.root"] = "DIR"
    return replace(experiment, plan=plan | {"command": show_command(plan["command"], plan["data"]), "common": common})


def _folder_names(experiments: Iterable[Experiment]) -> dict[str, str]:
    """A folder for each experiment, by its name."""
    folders: dict[str, str] = {}
    for experiment in experiments:
        name = slug(experiment.plan["experiment"])
        folders[experiment.plan["experiment"]] = name if name not in folders.values() else f"{name}-{len(folders)}"
    return folders


def warnings(experiment: Experiment) -> list[str]:
    """What a reader must know before the first number."""
    lines = [] if scored(experiment.plan) == "test" else [WARNING]
    lines += [told] if (told := experiment.plan.get("subset", "")) else []
    if experiment.missing:
        planned = len(experiment.missing) + len(experiment.finished())
        lines.append(
            f"Partial: {len(experiment.finished())} of {planned} cells are finished; the others are listed below."
        )
    if not experiment.cells[experiment.plan["baseline"]]:
        lines.append("The baseline has no finished seed: there are no differences to it.")
    lines += [
        f"{variant} seed {seed} lies {PERCENT[1] * below:.0f} points of mIoU below the variant's next: it may have "
        "diverged, and then the mean tells little."
        for variant, seed, below in diverged(experiment.scores("miou"))
    ]
    lines += [WAYS_OUT] * bool(failed(experiment))
    lines += [told] if (told := planned_seeds(experiment.plan)) else []
    lines += [as_scored(line, experiment.plan) for line in unequal(experiment.plan) + experiment.deviations]
    if (spread := experiment.spread) and spread.p < SPREAD_P and not experiment.family.separate:
        lines.append(
            f"Seeds lie further apart in some variants than in others (p {p_value(spread.p)}), and all stars "
            "and intervals take one spread for all: more than 5 % of such reports may have a wrong one. The table "
            '"Spread" has each.' + f" {without_failed(experiment)}".rstrip()
        )
    return lines


def _print(report: Report, page: Path) -> None:
    shown = console()
    for section in report.sections:
        name = f"{section.experiment.plan['experiment']}: " if report.summary else ""
        shown.print(Text(name + " ".join([section.headline, *section.answer[1:]]), style="bold"))
        for line in section.warnings[:SHOWN_WARNINGS]:
            shown.print(Text(name + line, style="yellow"))
        if (more := len(section.warnings) - SHOWN_WARNINGS) > 0:
            shown.print(Text(f"{name}{more} more warning{'s' * (more > 1)} in the report", style="yellow"))
        for lost in section.experiment.missing:
            shown.print(Text(f"  {name}{lost.variant}, seed {lost.seed}: {lost.state}"), soft_wrap=True)
    _print_table(shown, report.summary or report.sections[0].tables[0])
    files = "all other tables and figures; table.md, table.csv, tables, figures and reproduce.sh lie beside it"
    shown.print(Text(f"report: {page} ({files})"), soft_wrap=True)


def _print_table(console: Console, table: Table) -> None:
    shown = rich.table.Table(title=Text(table.title), title_justify="left")
    for index, column in enumerate(table.columns):
        shown.add_column(Text(column), justify="left" if index < table.texts else "right", overflow="fold")
    for row in table.rows:
        shown.add_row(*(Text(cell) for cell in row))  # Text: a name in brackets is no markup
    console.print(shown)
    for note in table.notes:
        console.print(Text(note))
