"""<experiment>.md, the form in which a finished experiment is committed: the sentence that answers, a person's own
words, every seed, commit, command, cost, and what failed.

Written again, it keeps what a person wrote between its marks, and refuses to replace what was changed elsewhere.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.evidence.deviations import processor_of
from experiments.evidence.experiment import Experiment
from experiments.evidence.failed import failed_line
from experiments.evidence.power import spread_line
from experiments.reports.commands import calls
from experiments.reports.formats import (
    code_to_markdown,
    escape_markdown,
    missing_to_markdown,
    rows_to_markdown,
    tables_to_markdown,
)
from experiments.reports.page import Section
from experiments.reports.tables import Table
from experiments.shell.files import slug, write_atomic
from experiments.shell.places import below
from lightning_modules.components.scores.table import PERCENT

RESULTS = Path(__file__).parents[1] / "results"
SHOWN = "seeds"  # beside the answer
FIGURES = ("scores", SHOWN, "pareto")  # none with images of a data set, whose licence may forbid to pass them on
HINTS = {
    "answer": "a person's answer; experiments.report --record --answer replaces it",
    "words": "your own words: what they add, limits, what failed; kept when this file is written again",
}
DIGEST = "<!-- sha256 of the text without what is between the marks: {} -->"


def write_record(
    sections: Sequence[Section], summary: Table | None, folder: Path, *, answer: str | None = None
) -> Path:
    """Writes <experiment>.md and its figures into `folder`, and returns its path.

    `answer`: the sentence that answers, or a file that holds it, in the place of one drafted from the statistics; it is
    kept like the own words. Raises ValueError for a file without marks, or with changes outside them.
    """
    name = _name([section.experiment.plan["experiment"] for section in sections])
    path = folder / f"{name}.md"
    kept = _read_kept(path)
    if answer is not None:
        kept["answer"] = _read_answer(answer)
    for section in sections:
        for figure, (png, _) in section.figures.items():
            if figure in FIGURES:
                write_atomic(below(folder, *_figure(section, figure).split("/")), png)
    text = _text(sections, summary, kept)
    write_atomic(path, f"{text}\n{DIGEST.format(_digest(text))}\n")
    return path


def _name(names: Sequence[str]) -> str:
    """That of the experiment whose name all others begin with, else that of the first."""
    shared = next((name for name in names if all(other.startswith(name) for other in names)), names[0])
    return slug(shared)


def _figure(section: Section, figure: str) -> str:
    return f"figures/{slug(section.experiment.plan['experiment'])}_{figure}.png"


def _begin(part: str) -> str:
    return f"<!-- begin {part}: {HINTS[part]} -->"


def _end(part: str) -> str:
    return f"<!-- end {part} -->"


def _part(part: str) -> re.Pattern[str]:
    """The marks of a part, with what is between them."""
    return re.compile(rf"(<!-- begin {part}:[^\n]*-->\n)(.*?)(<!-- end {part} -->)", re.DOTALL)


def _digest(text: str) -> str:
    for part in HINTS:
        text = _part(part).sub(r"\1\3", text)
    return hashlib.sha256(text.encode()).hexdigest()


def _read_kept(path: Path) -> dict[str, str]:
    """What a person wrote into the file, by the part."""
    if not path.exists():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} must be text in UTF-8, got {error}: save it as such, or record elsewhere: --record DIR"
        ) from error
    parts = {part: match[2].strip("\n") for part in HINTS if (match := _part(part).search(text))}
    if "words" not in parts:
        raise ValueError(
            f"{path} was not written by --record, or has lost its marks: expected the lines\n{_begin('words')}\n"
            f"{_end('words')}\nPut them around the words that are to be kept: all others are replaced. Or record "
            "elsewhere: --record DIR"
        )
    body, _, last = text.rstrip("\n").rpartition("\n")
    digest = re.fullmatch(re.escape(DIGEST).replace(r"\{\}", "([0-9a-f]{64})"), last)
    # Without its last line the file is given up but for the parts between the marks.
    if digest and digest[1] != _digest(body):
        raise ValueError(
            f"{path} was changed outside its marks, which would be lost: move the change between the "
            f"lines\n{_begin('words')}\n{_end('words')}\nand delete the last line of the file, which tells that it "
            "was changed"
        )
    return parts


def _read_answer(answer: str) -> str:
    try:
        text = Path(answer).read_text(encoding="utf-8") if Path(answer).is_file() else answer
    except OSError:  # a sentence is too long for the name of a file
        text = answer
    except UnicodeDecodeError as error:
        raise ValueError(f"--answer {answer} must be a text file in UTF-8, got {error}: save it as such") from error
    if text == answer and not re.search(r"\s", answer.strip()) and re.search(r"[\\/]|\.\w+$", answer):
        raise ValueError(
            f"--answer must be a sentence or a file that holds one, got {answer!r}, which is no file: name it"
        )
    if "<!--" in text or not text.strip():
        raise ValueError(f"--answer must be a sentence without HTML comments, or a file with one, got {text!r}")
    return text.strip()


def _text(sections: Sequence[Section], summary: Table | None, kept: dict[str, str]) -> str:
    """The sentence, table, figure and limits; the rest is folded."""
    questions = dict.fromkeys(section.experiment.plan["question"] for section in sections)
    parts = [f"# {escape_markdown(' '.join(questions))}"]
    if "answer" in kept:
        parts += [escape_markdown(failed_line(section.experiment)) for section in sections]
        parts.append("\n".join([_begin("answer"), kept["answer"], _end("answer")]))
    else:
        parts += [f"**{escape_markdown(section.headline)}**" for section in sections]
    for section in sections:
        parts += [escape_markdown(line) for line in section.warnings]
        parts.append(rows_to_markdown(section.tables[0]))
        if SHOWN in section.figures:
            parts.append(_picture(section, SHOWN))
        plan = section.experiment.plan
        parts += [escape_markdown(line) for line in (*section.answer[1:], plan["scale_note"]) if line]
        if (spread := section.experiment.spread) is not None:
            parts.append(spread_line(plan["experiment"], plan["data"], PERCENT[1] * spread.sd, spread.df))
    words = "\n".join([_begin("words"), kept.get("words", ""), _end("words")])
    parts.append(_folded("More of what was seen", words) if kept.get("words") else words)
    if summary:
        parts.append(_folded(summary.title, rows_to_markdown(summary)))
    return "\n\n".join([*(part for part in parts if part), *map(_section, sections)])


def _picture(section: Section, name: str) -> str:
    title = f"{section.experiment.plan['experiment']}: {name}"
    return f"![{escape_markdown(title)}]({_figure(section, name)})"


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{escape_markdown(title)}</summary>\n\n{text}\n\n</details>"


def _section(section: Section) -> str:
    experiment = section.experiment
    plan = experiment.plan
    parts = [_made(experiment)]
    lost = missing_to_markdown(experiment)
    parts += ["Failed or missing:", lost] if lost else ["Failed or missing: no cell."]
    for name in FIGURES:
        if name in section.figures and name != SHOWN:
            parts += [_picture(section, name), escape_markdown(section.figures[name][1])]
    title = f"{plan['experiment']} on {plan['data']}: every table, how it was made, what failed"
    return _folded(title, "\n\n".join([*parts, tables_to_markdown(section, level=3)]))


def _made(experiment: Experiment) -> str:
    """Commands, code, machine and cost."""
    plan, cells = experiment.plan, experiment.finished()

    made = [
        f"{code_to_markdown(call.shown)}\n\nat commit {escape_markdown(call.code.shown)}" for call in calls(experiment)
    ]
    commands, seconds = "\n\n".join(made), sum(cell.result["seconds"] for cell in cells)
    conditions: dict[str, Callable[[Mapping[str, Any]], Any]] = {
        "Device of a cell": lambda cell: cell.get("device"),
        "processor": processor_of,
        "BLAS": lambda cell: cell.get("blas"),
        "CPU threads of a cell": lambda cell: cell.get("torch_threads"),
        "versions": _versions,
    }
    known = []
    for name, read in conditions.items():
        values = sorted({str(read(cell.environment) or "unknown") for cell in cells})
        known.append(f"{name}: {escape_markdown('; '.join(values))}")
    return (
        f"{commands}. {'; '.join(known)}. {len(cells)} finished cells ({len(plan['variants'])} variants, "
        f"{len(plan['seeds'])} seeds) took {seconds:,.0f} s together, training and test."
    )


def _versions(environment: Mapping[str, Any]) -> str:
    python = {"python": environment["python"]} if environment.get("python") else {}
    return ", ".join(f"{name} {version}" for name, version in {**python, **environment.get("versions", {})}.items())
