"""Tables, figures and one offline page from the finished cells of experiments, without training.

    python -m experiments.report outputs/ablate_upsampling
    python -m experiments.report outputs/ablate_decoder outputs/ablate_decoder_camvid --out outputs/decoders
    python -m experiments.report outputs/ablate_decoder outputs/ablate_decoder_camvid --out outputs/decoders --record

Writes table.md, table.csv, table.tex, figures/*.png, figures/*.pdf, report.html, reproduce.sh and environment.json: of
one experiment into its folder, of several into --out, with the figures in <experiment>/figures there. Folders of the
same grid with other seeds are joined into one experiment; others stand below one another, under a table of all of them.
--record also writes <experiment>.md, the form in which a finished experiment is committed; what a person wrote into it
is kept.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import rich.table
from rich.console import Console
from rich.text import Text

from experiments.evidence.deviations import unequal
from experiments.evidence.experiment import Experiment, load
from experiments.evidence.join import join
from experiments.reports import formats
from experiments.reports.figures import missing_figures, write_figures
from experiments.reports.page import Section, render
from experiments.reports.record import RESULTS, write_record
from experiments.reports.reproduce import report_environment, reproduce_script, show_command
from experiments.reports.tables import Table, make_notes, make_summary, make_tables
from experiments.shell.ending import ending, of_writing
from experiments.shell.files import slug, write_atomic, write_json
from experiments.shell.flags import Parser, forgiving_output, refuse
from experiments.shell.places import below

PRINTED = ("scores", "factorial", "needed", "cost")  # by table.key, on the terminal
LOG_COLUMNS = 160  # of a log file or a pipe, which have no width of their own


@dataclass(frozen=True)
class Report:
    """What all forms of a report are made from."""

    out: Path
    sections: Sequence[Section]
    summary: Table | None  # of several experiments
    script: str  # reproduce.sh
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
    environment = report_environment(experiments)
    script = reproduce_script(experiments, folders_of, environment["report"]["commit"])
    sections = []
    for experiment in map(_without_places, experiments):
        place = below(out, folders_of[experiment.plan["experiment"]], "figures").parent if several else out
        notes = make_notes(experiment) + [
            f"Not drawn: {name}; {why}" for name, why in missing_figures(experiment).items()
        ]
        figures = write_figures(experiment, place)
        sections.append(Section(experiment, make_tables(experiment), notes, warnings(experiment), figures))
    summary = make_summary([section.experiment for section in sections]) if several else None
    return Report(out, sections, summary, script, environment)


def write(report: Report) -> Path:
    """Writes every form of the report, prints its main tables and returns the path of report.html."""
    page = report.out / "report.html"
    write_atomic(report.out / "table.md", formats.to_markdown(report.sections, report.summary))
    write_atomic(report.out / "table.csv", formats.to_csv(report.sections))
    write_atomic(report.out / "table.tex", formats.to_latex(report.sections, report.summary))
    write_atomic(report.out / "reproduce.sh", report.script)
    write_json(report.out / "environment.json", report.environment)
    write_atomic(page, render(report.sections, report.summary))
    _print(report, page)
    return page


def _load(folder: Path) -> Experiment:
    experiment = load(folder)
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
    found: dict[str, str] = {}
    for experiment in experiments:
        name = slug(experiment.plan["experiment"])
        found[experiment.plan["experiment"]] = name if name not in found.values() else f"{name}-{len(found)}"
    return found


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
    console = Console()
    if not console.is_terminal:
        console = Console(width=LOG_COLUMNS)
    if report.summary:
        _print_table(console, report.summary)
    for section in report.sections:
        if not report.summary:
            for table in section.tables:
                if table.key in PRINTED and table.rows:
                    _print_table(console, table)
        name = f"{section.experiment.plan['experiment']}: " if report.summary else ""
        for line in section.warnings:
            console.print(Text(name + line, style="yellow"))
        for lost in section.experiment.missing:
            console.print(Text(f"  {name}{lost.variant}, seed {lost.seed}: {lost.state}"), soft_wrap=True)
    files = "table.md, table.csv, table.tex, figures, reproduce.sh and environment.json beside it"
    console.print(Text(f"report: {page} ({files})"), soft_wrap=True)


def _print_table(console: Console, table: Table) -> None:
    shown = rich.table.Table(title=Text(table.title), title_justify="left")
    for index, column in enumerate(table.columns):
        shown.add_column(Text(column), justify="left" if index < table.texts else "right", overflow="fold")
    for row in table.rows:
        shown.add_row(*(Text(cell) for cell in row))  # Text: a name in brackets is no markup
    console.print(shown)
    for note in table.notes:
        console.print(Text(note))


def main() -> None:
    forgiving_output()
    parser = Parser(description=__doc__)
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="DIR", help="of an experiment: outputs/ablate_upsampling"
    )
    parser.add_argument("--out", type=Path, help="folder of the report of several experiments (of one: its own folder)")
    parser.add_argument(
        *("--record",),
        type=Path,
        nargs="?",
        const=RESULTS,
        metavar="DIR",
        help="also write <experiment>.md, to be committed (default DIR: experiments/results)",
    )
    parser.add_argument(
        "--answer", metavar="TEXT_OR_FILE", help="of --record: your sentence that answers, for the drafted one"
    )
    args = parser.parse_args()
    if args.out is None and len(args.folders) > 1:
        refuse(f"several experiments ({', '.join(map(str, args.folders))}) need --out DIR, the folder of their report")
    if args.answer is not None and args.record is None:
        refuse("--answer is the sentence of a record: add --record")
    with ending():
        try:
            report = collect(args.folders, args.out or args.folders[0])
            write(report)
            if args.record is not None:
                path = write_record(report.sections, report.summary, args.record, answer=args.answer)
                Console().print(Text(f"record: {path}"), soft_wrap=True)
        except PermissionError as error:  # what is read names itself, so this one is of writing
            raise of_writing(error, args.out or args.folders[0]) from error


if __name__ == "__main__":
    main()
