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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import rich.table
from rich.console import Console
from rich.text import Text

from experiments.figures import write_figures
from experiments.files import write_atomic
from experiments.flags import Parser, refuse
from experiments.statistics import (
    PERCENT,
    SCORES,
    Comparison,
    Estimate,
    Experiment,
    comparisons,
    estimate,
    flatten,
    load,
)

CLASSES_WITH_STD = 6  # with more, a page has room for the means only
LOG_COLUMNS = 160  # of a log file or a pipe, which have no width of their own


@dataclass(frozen=True)
class Table:
    """Text in rows; the first `texts` columns are words, the others numbers."""

    key: str
    title: str
    columns: list[str]
    rows: list[list[str]]
    texts: int = 1


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
    _print(experiment, tables[:2], page)
    return page


def make_tables(experiment: Experiment) -> list[Table]:
    """Scores, cost, one factor at a time, IoU by class, every seed: the tables of every form of the report."""
    tables = [_score_table(experiment), _cost_table(experiment), _comparison_table(experiment)]
    return [*tables, _class_table(experiment), _seed_table(experiment)]


def make_notes(experiment: Experiment) -> list[str]:
    """What each number is, a sentence or two each."""
    plan = experiment.plan
    images = len(experiment.finished()[0].image_names)
    seeds = ", ".join(str(seed) for seed in plan["seeds"])
    scores = (
        "Scores are in percent (x 100; checkerboard energy in millionths, ppm), on the "
        f"{images} images of the test split of {plan['data']}, with the weights of the last epoch, not of the best "
        f"one; mean ± sample standard deviation over seeds ({seeds})."
    )
    interval = (
        "The 95 % interval is Student's t over seeds (n - 1 degrees of freedom): how far the mean would move with "
        "other seeds on the same images. It says nothing of other images. It is no test of significance, and nothing "
        "is corrected for the number of comparisons."
    )
    difference = (
        f"Difference: variant minus baseline ({plan['baseline']}), paired by seed, in percentage points (ppm for "
        "checkerboard energy)."
    )
    miou = (
        "mIoU: the confusion matrices of all images are summed, then the IoU of the classes averaged. A class absent "
        "from both truth and prediction is left out of the mean and shown as -. Ignored pixels count nowhere."
    )
    boundary = (
        "Boundary F1: agreement of the class outlines within 0.75 % of the image diagonal (the tolerance of SegNet); "
        "mean over the classes of an image, then over images."
    )
    checkerboard = (
        "Checkerboard energy: share of the spectral power of the logits at the frequencies of the last upsampling grid "
        "(period 2), above that of a smooth neighbourhood; mean over images. Lower is smoother; sharp edges alone "
        "reach up to about 200 ppm."
    )
    cost = (
        "GMAC: 10^9 multiply-accumulates of the forward pass of one test image (half of what is called FLOPs). Step "
        f"time (median over training steps) and peak memory were measured on {plan['device']}, all variants in one go: "
        "compare them inside this table only. Ratio: to the baseline."
    )
    notes = [scores, interval, difference, miou, boundary, checkerboard, cost]
    if any(0 < len(cells) < 2 for cells in experiment.cells.values()):
        notes.append("One seed: no interval. A standard deviation and an interval need two seeds at least (-).")
    return notes + [plan[key] for key in ("scale_note", "data_note") if plan[key]]


def _score_table(experiment: Experiment) -> Table:
    plan, rows, digits = experiment.plan, [], _digits(experiment)
    for name in plan["variants"]:
        found = {score: experiment.estimate(name, score).times(factor) for score, (_, (_, factor)) in SCORES.items()}
        change = experiment.difference(name, plan["baseline"], "miou").times(PERCENT[1])
        row = [name, _seeds(experiment, name), _mean_std(found["miou"], 2), _interval(found["miou"], 2)]
        row += ["baseline", "-"] if name == plan["baseline"] else [_signed(change.mean, 2), _interval(change, 2)]
        rows.append([*row, *(_mean_std(found[score], digits[score]) for score in SCORES if score != "miou")])
    columns = ["variant", "seeds", "mIoU (%)", "95 % interval", "difference", "its 95 % interval", *_titles()[1:]]
    title = f"Test scores on {plan['data']}, last epoch: mean ± standard deviation over seeds"
    return Table("scores", title, columns, rows)


def _cost_table(experiment: Experiment) -> Table:
    rows = []
    for name, variant in experiment.plan["variants"].items():
        seconds = variant["step_seconds"]
        row = [name, _number(variant["parameters"] / 1e6, 3), _number(variant["gmac"], 3)]
        row += [_number(None if seconds is None else 1000 * seconds, 1), _number(variant["step_ratio"], 2)]
        rows.append([*row, _number(variant["peak_memory_mb"], 0)])
    columns = ["variant", "parameters (M)", "GMAC", "step (ms)", "ratio", "peak memory (MB)"]
    return Table("cost", f"Cost, measured on {experiment.plan['device']}", columns, rows)


def _comparison_table(experiment: Experiment) -> Table:
    """The effect of a factor at every level of the others; empty where no two variants differ in one factor alone."""
    shown, digits = ("miou", "boundary_f1", "checkerboard"), _digits(experiment)

    def row(one: Comparison) -> list[str]:
        at = ", ".join(f"{factor}: {level}" for factor, level in one.at.items()) or "-"
        levels = [experiment.plan["variants"][name]["levels"][one.factor] for name in (one.reference, one.variant)]
        cells = [f"{one.factor}: {levels[0]} to {levels[1]}", at]
        cells.append(str(experiment.difference(one.variant, one.reference, "miou").n))
        for score in shown:
            change = experiment.difference(one.variant, one.reference, score).times(SCORES[score][1][1])
            interval = "(one seed)" if change.n == 1 else _interval(change, digits[score])
            cells.append(f"{_signed(change.mean, digits[score])} {interval}" if change.n else "-")
        return cells

    rows = [row(one) for one in comparisons(experiment.plan)]
    title = "One factor at a time: difference paired by seed, with its 95 % interval over seeds"
    return Table("factors", title, ["change", "at", "seeds", *_titles()[:3]], rows, texts=2)


def _class_table(experiment: Experiment) -> Table:
    names = experiment.plan["class_names"]
    with_std = len(names) <= CLASSES_WITH_STD
    rows = []
    for variant in experiment.plan["variants"]:
        found = [experiment.estimate(variant, f"iou/{name}").times(PERCENT[1]) for name in names]
        rows.append([variant, *(_mean_std(one, 2) if with_std else _number(one.mean, 2) for one in found)])
    title = f"IoU by class in percent, mean {'± standard deviation ' if with_std else ''}over seeds"
    return Table("classes", title, ["variant", *names], rows)


def _seed_table(experiment: Experiment) -> Table:
    digits, rows = _digits(experiment), []
    for name, cells in experiment.cells.items():
        for seed in experiment.plan["seeds"]:
            row = [name, str(seed), *["-"] * (len(SCORES) + 2)]
            if seed in cells:
                result, scores = cells[seed].result, cells[seed].scores
                row[2:-2] = [_number(factor * scores[s], digits[s]) for s, (_, (_, factor)) in SCORES.items()]
                row[-2:] = [str(result["epochs"]), _number(result["seconds"], 0)]
            rows.append(row)
    return Table("seeds", "Every seed", ["variant", "seed", *_titles(), "epochs", "seconds"], rows)


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
        line |= {key: variant[key] for key in ("parameters", "gmac", "step_seconds", "step_ratio", "peak_memory_mb")}
        lines.append(line)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([list(lines[0]), *([_plain(value) for value in line.values()] for line in lines)])
    return file.getvalue()


def _parts(column: str, found: Estimate) -> dict[str, float]:
    return {f"{column}_{part}": getattr(found, part) for part in ("mean", "std", "low", "high")}


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
        lines = [cells[0], marks, *cells[1:]]
        parts += [f"## {_escape_markdown(table.title)}", "\n".join(f"| {' | '.join(line)} |" for line in lines)]
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
        "prediction left out. Interval: 95 % of the mean over seeds (Student's t), not over images. Difference: to the "
        "baseline, paired by seed. Boundary F1 within 0.75 % of the image diagonal. Checkerboard energy: share of the "
        "spectral power of the logits on the upsampling grid, in millionths; lower is smoother.",
        "cost": f"Cost of the variants. GMAC: of the forward pass of one test image. Step time and peak memory on "
        f"{plan['device']}; ratio to the baseline.",
        "factors": "One factor at a time: difference paired by seed, in percentage points (energy in millionths), with "
        "its 95 % interval over seeds.",
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
        lines = ["{}" + " & ".join(map(_escape_latex, row)) + r" \\" for row in (*header, *table.rows)]
        parts.append(
            "\\begin{table*}\n\\centering\n\\setlength{\\tabcolsep}{4pt}\n"
            f"\\caption{{{_escape_latex(rules[table.key])}}}\n\\label{{tab:{name}-{table.key}}}\n"
            # Only ever made smaller: a narrow table keeps the size of the text.
            "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%\n"
            f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{lines[0]}\n{lines[1]}\n\\midrule\n"
            + "\n".join(lines[2:])
            + "\n\\bottomrule\n\\end{tabular}}\n\\end{table*}"
        )
    return "\n\n".join(parts) + "\n"


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
    for line in warnings(experiment):
        console.print(Text(line, style="yellow"))
    for lost in experiment.missing:
        console.print(Text(f"  {lost.variant}, seed {lost.seed}: {lost.state}"), soft_wrap=True)
    console.print(Text(f"report: {page}"), soft_wrap=True)


def _titles() -> list[str]:
    return [f"{title} ({unit})" for title, (unit, _) in SCORES.values()]


def _seeds(experiment: Experiment, variant: str) -> str:
    done, planned = len(experiment.cells[variant]), len(experiment.plan["seeds"])
    return str(done) if done == planned else f"{done} of {planned}"


def _digits(experiment: Experiment) -> dict[str, int]:
    """Decimals of each score: two for percent, otherwise what leaves three digits to the largest value."""
    found = {}
    for score, (_, (unit, factor)) in SCORES.items():
        largest = max(factor * abs(cell.scores[score]) for cell in experiment.finished())
        known = unit != PERCENT[0] and largest > 0  # NaN is not
        found[score] = min(2, max(0, 2 - math.floor(math.log10(largest)))) if known else 2
    return found


def _mean_std(found: Estimate, digits: int) -> str:
    return f"{_number(found.mean, digits)} ± {_number(found.std, digits)}" if found.n else "-"


def _interval(found: Estimate, digits: int) -> str:
    return "-" if found.n < 2 else f"[{_number(found.low, digits)}, {_number(found.high, digits)}]"


def _signed(value: float, digits: int) -> str:
    text = _number(value, digits)
    return text if text.startswith("-") or float(text) == 0 else f"+{text}"


def _number(value: float | None, digits: int) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{value:z.{digits}f}"  # z: what rounds to zero has no sign


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of an experiment, such as outputs/ablate_upsampling")
    try:
        write_report(parser.parse_args().folder)
    except (FileNotFoundError, ValueError) as error:
        refuse(str(error))


if __name__ == "__main__":
    main()
