"""Tables, figures and one offline page from the finished cells of an experiment, without training.

    python -m experiments.report outputs/ablate_upsampling

Writes table.md, table.csv, table.tex, figures/*.png, figures/*.pdf and report.html into the experiment's folder.
"""

import base64
import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import rich.table
from rich.console import Console
from rich.text import Text

from experiments.figures import write_figures
from experiments.files import write_atomic
from experiments.flags import Parser, refuse
from experiments.statistics import KINDS, Estimate, estimate
from experiments.stored import PERCENT, SCORES, Experiment, flatten, load
from experiments.tables import Table, make_notes, make_tables, marked_test

PRINTED = ("scores", "factorial", "cost")  # by table.key, on the terminal
LOG_COLUMNS = 160  # of a log file or a pipe, which have no width of their own


def write_report(folder: Path) -> Path:
    """Writes the report of the experiment in `folder`, prints its main tables, and returns the path of report.html.

    Raises FileNotFoundError where there is no experiment, ValueError where no cell is finished or a file is damaged.
    """
    experiment = load(folder)
    if not experiment.finished():
        cells = "\n".join(f"  {m.variant} seed {m.seed}: {m.state}" for m in experiment.missing)
        raise ValueError(
            f"{folder} has no finished cell, so there is nothing to report yet. Run it first: "
            f"{experiment.plan['command']}\n{cells}"
        )
    tables, notes = make_tables(experiment), make_notes(experiment)
    write_atomic(folder / "table.md", _markdown(experiment, tables, notes))
    write_atomic(folder / "table.csv", _csv(experiment))
    write_atomic(folder / "table.tex", _latex(experiment, tables))
    page = folder / "report.html"
    write_atomic(page, _html(experiment, tables, notes, write_figures(experiment)))
    _print(experiment, [table for table in tables if table.key in PRINTED and table.rows], page)
    return page


def _csv(experiment: Experiment) -> str:
    """A row a variant, plain numbers: scores in percent or ppm, as the column says, empty where undefined."""
    plan, lines = experiment.plan, list[dict[str, Any]]()
    units = {score: unit for score, (_, unit) in SCORES.items()}
    units |= {f"iou/{name}": PERCENT for name in plan["class_names"]}
    for name, variant in plan["variants"].items():
        line: dict[str, Any] = {"variant": _defused(name), "baseline": int(name == plan["baseline"])}
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
        lines.append(line)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([list(lines[0]), *([_plain(value) for value in line.values()] for line in lines)])
    return file.getvalue()


def _parts(column: str, found: Estimate) -> dict[str, float]:
    return {f"{column}_{part}": getattr(found, part) for part in ("mean", "std", "low", "high")}


def _evidence(experiment: Experiment, variant: str, column: str, factor: float) -> dict[str, Any]:
    """Intervals of the difference by what they allow for, the marked test and the effect size; empty where refused."""
    one = experiment.compared.differences.get(variant) if experiment.compared else None
    line: dict[str, Any] = {}
    for kind in KINDS:
        found = one.contrast.estimate(kind).times(factor) if one else None
        line |= {f"{column}_{part}_{kind}": getattr(found, part) if found else None for part in ("low", "high")}
    test = one.tests[marked_test(experiment)] if one else None
    line |= {f"{column}_p_adjusted": test.adjusted if test else None, f"{column}_test": test.name if test else None}
    parts = {"effect_size": "d", "effect_size_low": "low", "effect_size_high": "high"}
    return line | {f"{column}_{part}": getattr(one.effect, name) if one else None for part, name in parts.items()}


def _plain(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.8g}" if isinstance(value, float) else str(value)


def _defused(text: str) -> str:
    """A spreadsheet runs a cell that begins with one of these as a formula; the apostrophe makes it text."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _markdown(experiment: Experiment, tables: Sequence[Table], notes: Sequence[str]) -> str:
    plan = experiment.plan
    parts = [f"# {_escape_markdown(plan['experiment'])}", _escape_markdown(plan["question"])]
    parts += [f"**{_escape_markdown(line)}**" for line in warnings(experiment)]
    for table in tables:
        if not table.rows:
            continue
        marks = ["---"] * table.texts + ["---:"] * (len(table.columns) - table.texts)
        cells = [[_escape_markdown(cell) for cell in row] for row in (table.columns, *table.rows)]
        for row, column in table.best:
            cells[row + 1][column] = f"**{cells[row + 1][column]}**"
        lines = [cells[0], marks, *cells[1:]]
        parts += [f"## {_escape_markdown(table.title)}", "\n".join(f"| {' | '.join(line)} |" for line in lines)]
        parts += [_escape_markdown(note) for note in table.notes]
        if table.key == "cost":
            parts.append("\n".join(f"- {_escape_markdown(note)}" for note in notes))
    if experiment.missing:
        lost = [f"- {m.variant}, seed {m.seed}: {m.state}" for m in experiment.missing]
        parts += ["## Cells without a result", "\n".join(_escape_markdown(line) for line in lost)]
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", plan["command"])), default=2))
    parts.append(f"Made by\n\n{fence}\n{plan['command']}\n{fence}\n\nat commit {_escape_markdown(plan['commit'])}.")
    return "\n\n".join(parts) + "\n"


def _escape_markdown(text: str) -> str:
    text = re.sub(r"([\\`*|])", r"\\\1", " ".join(text.split()))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("](", "]\\(")


def _latex(experiment: Experiment, tables: Sequence[Table]) -> str:
    plan = experiment.plan
    seeds = ", ".join(str(seed) for seed in plan["seeds"])
    rules = {
        "scores": f"{plan['question']} Mean ± standard deviation over the seeds {seeds}, last epoch, test split of "
        f"{plan['data']}; mIoU from the confusion matrices summed over images, a class absent from truth and "
        "prediction left out. Intervals here: 95 % of the mean over seeds (Student's t), not over images. Difference: to "
        "the baseline, paired by seed. Boundary F1 within 0.75 % of the image diagonal. Checkerboard energy: share of the "
        "spectral power of the logits on the upsampling grid, in millionths; lower is smoother.",
        "evidence": f"Difference in mIoU to {plan['baseline']}, in percentage points, paired by seed and image, with 95 % "
        "intervals for other seeds (Student's t), for other images (paired bootstrap) and for both; they are not corrected "
        "for the number of comparisons.",
        "factorial": "Effects of the crossed factors on the mIoU, in percentage points, paired by seed and image, with "
        "95 % intervals, which are not corrected for the number of effects.",
        "needed": "Seeds or images that a difference in mIoU would need.",
        "cost": f"Cost of the variants. GMAC: of the forward pass of one test image. Step time and peak memory on "
        f"{plan['device']}; ratio to the baseline.",
        "factors": "One factor at a time: difference paired by seed, in percentage points (energy in millionths), with "
        "its 95 % interval over seeds.",
        "trimap": "mIoU in percent of the pixels within the given distance of a true boundary, mean ± standard deviation over "
        f"the seeds {seeds}; in brackets the difference to the baseline, paired by seed.",
        "speed": "Milliseconds to predict one test image, medians on one thread, all variants on the same images in turn.",
        "classes": f"IoU by class in percent, mean over the seeds {seeds}.",
    }
    rules["scores"] += "".join(f" {line}" for line in (*warnings(experiment), plan["scale_note"]) if line)
    name = re.sub(r"[^A-Za-z0-9]+", "-", plan["experiment"])
    needs = "Needs \\usepackage{booktabs} and \\usepackage{graphicx}; names beyond Latin letters need lualatex."
    parts = [f"% Written by python -m experiments.report. {needs}"]
    for table in tables:
        if table.key not in rules or not table.rows:
            continue
        columns = "l" * table.texts + "r" * (len(table.columns) - table.texts)
        halves = [_halves(column) for column in table.columns]
        header = [[first for first, _ in halves], [second for _, second in halves]]
        # {}: a name that begins with a bracket would be read as the argument of the \\ before it.
        body = [[_latex_cell(cell, index >= table.texts) for index, cell in enumerate(row)] for row in table.rows]
        for row, column in table.best:
            body[row][column] = f"\\textbf{{{body[row][column]}}}"
        lines = ["{}" + " & ".join(row) + r" \\" for row in (*([*map(_escape_latex, one)] for one in header), *body)]
        notes = "\\par\n".join(re.sub(r"^\*", "$^{*}$", _escape_latex(note)) for note in table.notes)
        footnote = f"\n\\par\\smallskip\n\\begin{{minipage}}{{\\linewidth}}\\footnotesize\n{notes}\n\\end{{minipage}}"
        parts.append(
            "\\begin{table*}\n\\centering\n\\setlength{\\tabcolsep}{4pt}\n"
            f"\\caption{{{_escape_latex(rules[table.key])}}}\n\\label{{tab:{name}-{table.key}}}\n"
            # Only ever made smaller: a narrow table keeps the size of the text.
            "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%\n"
            f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{lines[0]}\n{lines[1]}\n\\midrule\n"
            + "\n".join(lines[2:])
            + "\n\\bottomrule\n\\end{tabular}}"
            + (footnote if notes else "")
            + "\n\\end{table*}"
        )
    return "\n\n".join(parts) + "\n"


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


def _html(
    experiment: Experiment, tables: Sequence[Table], notes: Sequence[str], figures: Mapping[str, tuple[bytes, str]]
) -> str:
    # Escapes every value: names of classes, variants and images come from users' files.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pictures = [(name, base64.b64encode(png).decode(), caption) for name, (png, caption) in figures.items()]
    done, planned = len(experiment.finished()), len(experiment.finished()) + len(experiment.missing)
    return environment.get_template("report.html.j2").render(
        experiment=experiment,
        plan=experiment.plan,
        tables={table.key: table for table in tables},
        notes=notes,
        warnings=warnings(experiment),
        figures=pictures,
        common=sorted(flatten(experiment.plan["common"]).items()),
        cells=f"{done} of {planned}",
    )


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
    return lines + experiment.deviations


def _print(experiment: Experiment, tables: Iterable[Table], page: Path) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=LOG_COLUMNS)
    for table in tables:
        shown = rich.table.Table(title=Text(table.title), title_justify="left")
        for index, column in enumerate(table.columns):
            shown.add_column(Text(column), justify="left" if index < table.texts else "right", overflow="fold")
        for row in table.rows:
            shown.add_row(*(Text(cell) for cell in row))  # Text: a name in brackets is no markup
        console.print(shown)
        for note in table.notes:
            console.print(Text(note))
    for line in warnings(experiment):
        console.print(Text(line, style="yellow"))
    for lost in experiment.missing:
        console.print(Text(f"  {lost.variant}, seed {lost.seed}: {lost.state}"), soft_wrap=True)
    console.print(Text(f"report: {page}"), soft_wrap=True)


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of an experiment, such as outputs/ablate_upsampling")
    try:
        write_report(parser.parse_args().folder)
    except (FileNotFoundError, ValueError) as error:
        refuse(str(error))


if __name__ == "__main__":
    main()
