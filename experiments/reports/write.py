"""A report of stored experiments: what it is made from, and its files."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import rich.table
from rich.console import Console
from rich.text import Text

from experiments.evidence.deviations import patch_name, unequal
from experiments.evidence.experiment import Experiment, load_experiment
from experiments.evidence.join import join
from experiments.reports import formats
from experiments.reports.commands import patches, read_code, show_command
from experiments.reports.figures import missing_figures, write_figures
from experiments.reports.page import Section, render
from experiments.reports.reproduce import report_environment, reproduce_script
from experiments.reports.tables import Table, make_notes, make_summary, make_tables
from experiments.shell.command import console
from experiments.shell.files import slug, write_atomic, write_json
from experiments.shell.places import below


@dataclass(frozen=True)
class Report:
    """What all forms of a report are made from."""

    out: Path
    sections: Sequence[Section]
    summary: Table | None  # of several experiments
    script: str  # reproduce.sh
    patches: dict[str, bytes]  # which it applies, by the SHA-256
    environment: dict[str, Any]


def write_report(folder: Path) -> Path:
    """Writes the report of the experiment in `folder`, prints its main tables, and returns the path of report.html.

    Raises FileNotFoundError where there is no experiment, ValueError where no cell is finished or a file is damaged.
    """
    return write(collect([folder], folder))


def collect(folders: Sequence[Path], out: Path) -> Report:
    """Reads the experiments and draws their figures, into `out`.

    Raises as `write_report`, and ValueError where folders hold different results of one cell.
    """
    experiments = join([_load(folder) for folder in folders])
    several = len(experiments) > 1
    folders_of = (
        _folder_names(experiments) if several else {experiments[0].plan["experiment"]: slug(folders[0].absolute().name)}
    )
    kept, environment = patches(experiments), report_environment(experiments)
    script = reproduce_script(experiments, folders_of, read_code(environment["report"]))
    sections = []
    for experiment in map(_without_places, experiments):
        place = below(out, folders_of[experiment.plan["experiment"]], "figures").parent if several else out
        notes = make_notes(experiment) + [
            f"Not drawn: {name}; {why}" for name, why in missing_figures(experiment).items()
        ]
        figures = write_figures(experiment, place)
        sections.append(Section(experiment, make_tables(experiment), notes, warnings(experiment), figures))
    summary = make_summary([section.experiment for section in sections]) if several else None
    return Report(out, sections, summary, script, kept, environment)


def write(report: Report) -> Path:
    """Writes every form of the report, prints its main tables and returns the path of report.html."""
    page = report.out / "report.html"
    write_atomic(report.out / "table.md", formats.to_markdown(report.sections, report.summary))
    write_atomic(report.out / "table.csv", formats.to_csv(report.sections))
    write_atomic(report.out / "table.tex", formats.to_latex(report.sections, report.summary))
    for sha256, patch in report.patches.items():
        write_atomic(report.out / patch_name(sha256), patch)
    write_atomic(report.out / "reproduce.sh", report.script)
    write_json(report.out / "environment.json", report.environment)
    write_atomic(page, render(report.sections, report.summary))
    _print(report, page)
    return page


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
    lines = []
    if experiment.missing:
        planned = len(experiment.missing) + len(experiment.finished())
        lines.append(
            f"Partial: {len(experiment.finished())} of {planned} cells are finished; the others are listed below."
        )
    if not experiment.cells[experiment.plan["baseline"]]:
        lines.append("The baseline has no finished seed: there are no differences to it.")
    return lines + unequal(experiment.plan) + experiment.deviations


def _print(report: Report, page: Path) -> None:
    shown = console()
    if report.summary:
        _print_table(shown, report.summary)
    for section in report.sections:
        if not report.summary:
            for table in section.tables:
                if table.on_terminal and table.rows:
                    _print_table(shown, table)
        name = f"{section.experiment.plan['experiment']}: " if report.summary else ""
        for line in section.warnings:
            shown.print(Text(name + line, style="yellow"))
        for lost in section.experiment.missing:
            shown.print(Text(f"  {name}{lost.variant}, seed {lost.seed}: {lost.state}"), soft_wrap=True)
    files = "table.md, table.csv, table.tex, figures, reproduce.sh and environment.json beside it"
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
