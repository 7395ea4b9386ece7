"""<experiment>.md, the form in which a finished experiment is committed: the sentence that answers, a person's own
words, every seed, commit, command, cost, and what failed.

Written again, it keeps what a person wrote between its marks, and refuses to replace what was changed elsewhere.
"""

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from experiments.evidence.deviations import processor_of
from experiments.evidence.effect_size import CONFIDENCE
from experiments.evidence.experiment import Experiment
from experiments.evidence.factorial import Effect
from experiments.evidence.intervals import KINDS, Estimate, Test
from experiments.reports.commands import calls
from experiments.reports.formats import (
    code_to_markdown,
    escape_markdown,
    missing_to_markdown,
    table_to_markdown,
    tables_to_markdown,
)
from experiments.reports.page import Section
from experiments.reports.tables import Table, marked_test
from experiments.reports.tables.evidence import footnote
from experiments.reports.tables.summary import known_difference, known_test
from experiments.reports.tables.text import interval_of, mean_std, signed
from experiments.shell.files import slug, write_atomic
from experiments.shell.places import below
from lightning_modules.components.scores.table import PERCENT

RESULTS = Path(__file__).parents[1] / "results"
FIGURES = ("scores", "seeds", "pareto")  # none with images of a data set, whose licence may forbid to pass them on
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
    questions = dict.fromkeys(section.experiment.plan["question"] for section in sections)
    parts = [f"# {escape_markdown(' '.join(questions))}"]
    if "answer" in kept:
        parts.append("\n".join([_begin("answer"), kept["answer"], _end("answer")]))
    else:
        parts += [paragraph for section in sections for paragraph in draft(section.experiment)]
    parts.append("\n".join([_begin("words"), kept.get("words", ""), _end("words")]))
    for section in sections:
        for name in FIGURES:
            if name in section.figures:
                title = f"{section.experiment.plan['experiment']}: {name}"
                parts += [
                    f"![{escape_markdown(title)}]({_figure(section, name)})",
                    escape_markdown(section.figures[name][1]),
                ]
    if summary:
        parts.append(table_to_markdown(summary))
    return "\n\n".join([*parts, *map(_section, sections)])


def _section(section: Section) -> str:
    experiment = section.experiment
    plan = experiment.plan
    parts = [f"## {escape_markdown(plan['experiment'])}: {escape_markdown(plan['data'])}", _made(experiment)]
    lost = missing_to_markdown(experiment)
    parts += ["Failed or missing:", lost] if lost else ["Failed or missing: no cell."]
    deviations = "\n".join(f"- {escape_markdown(line)}" for line in section.warnings)
    parts += ["Deviations:", deviations] if deviations else ["Deviations: none."]
    return "\n\n".join([*parts, tables_to_markdown(section, level=3)])


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


class Found(NamedTuple):
    """A difference or an effect."""

    name: str
    estimate: Estimate  # in points
    test: Test | None  # the one whose star is printed; None where nothing could be tested

    @property
    def shown(self) -> str:
        interval = "no interval" if math.isnan(self.estimate.low) else interval_of(self.estimate, 2)
        star = self.test.mark if self.test else ""
        return f"{self.name} ({signed(self.estimate.mean, 2)} points, {interval}{star})"


@dataclass(frozen=True)
class Told:
    """What can be told of several: those with a star, those without though their interval leaves out 0, those of which
    nothing shows, and those that were not tested, each in words."""

    starred: list[str]
    undecided: list[str]
    rest: list[str]
    untested: list[str]
    lost_by_correction: bool = True  # whether each of the undecided had its star before Holm's correction

    def more(self, name: str = "") -> list[str]:
        """Sentences on the undecided and the untested, which are effects of this name."""
        sentences = []
        if self.undecided:
            alone = len(self.undecided) == 1
            why = " after the correction for the number of comparisons" if self.lost_by_correction else ""
            sentences.append(
                f"For {_listed(self.undecided)} the interval{'' if alone else 's'} leave{'s' if alone else ''} out 0, "
                f"but no star holds for {'it' if alone else 'them'}{why}."
            )
        many = "s" * (len(self.untested) > 1)
        title = f"{name.capitalize()}{many} not tested" if name else "Not tested"
        return [*sentences, *([f"{title}: {_listed(self.untested)}."] if self.untested else [])]


def _told(differences: Sequence[Found]) -> Told:
    told, corrected = Told([], [], [], []), True
    for difference in differences:
        if difference.test is None or difference.test.reason:
            told.untested.append(difference.shown)
        elif difference.test.mark:
            told.starred.append(difference.shown)
        else:
            leaves_out = difference.estimate.low > 0 or difference.estimate.high < 0
            (told.undecided if leaves_out else told.rest).append(difference.shown)
            corrected = corrected and not (leaves_out and difference.test.p >= 1 - CONFIDENCE)
    return replace(told, lost_by_correction=corrected)


def draft(experiment: Experiment) -> list[str]:
    """The answer that the statistics of an experiment give, as Markdown.

    A paragraph each: what differs from the baseline and what does not show; effects of crossed factors; what these
    numbers are.
    """
    plan = experiment.plan
    baseline, where = plan["baseline"], f"On {plan['data']}" if plan["data"] else "Here"
    others = [name for name in plan["variants"] if name != baseline and experiment.difference(name, baseline, "miou").n]
    if not others:
        reason = (
            "no variant has a finished seed of the baseline" if len(plan["variants"]) > 1 else "there is one variant"
        )
        sentence = f"{where}, nothing can be compared{' yet' * (len(plan['variants']) > 1)}: {reason}."
        return [f"**{escape_markdown(sentence)}**"]
    level = mean_std(experiment.estimate(baseline, "miou").times(PERCENT[1]), 2)
    against = f"{baseline} ({level} % mIoU)"
    told = _told([Found(name, known_difference(experiment, name), known_test(experiment, name)) for name in others])
    if told.starred:
        sentences = [f"{where}, {_listed(told.starred)} differ{'s' * (len(told.starred) == 1)} from {against}."]
        sentences += [f"No difference shows for {_listed(told.rest)}."] if told.rest else []
    elif told.rest:
        sentences = [f"{where}, no difference to {against} shows: {_listed(told.rest)}."]
    else:
        sentences = [f"{where}, no difference to {against} is {'certain' if told.undecided else 'known'}."]
    effects = " ".join(_effects(experiment.effects))
    sentences += [*told.more(), *_of_networks(experiment)]
    paragraphs = [f"**{escape_markdown(text)}**" for text in (" ".join(sentences), effects) if text]
    return [*paragraphs, escape_markdown(_legend(experiment, others))]


def _of_networks(experiment: Experiment) -> list[str]:
    """What the sentences before it are not about, where the test is of the trained networks alone: the sign of such a
    difference can turn with the next seed."""
    differences = experiment.compared.differences.values() if experiment.compared else ()
    if marked_test(experiment) == "both" or all(difference.tests["swap"].reason for difference in differences):
        return []
    most = max(len(difference.contrast.values) for difference in differences)
    few = "1 seed is" if most == 1 else f"{most} seeds are"
    return [f"All of this is of these trained networks alone: {few} too few to tell what other seeds would give."]


def _effects(effects: Sequence[Effect]) -> list[str]:
    """Main effects, then interactions, each with those that have a star first."""
    sentences = []
    for order, name in ((1, "main effect"), (2, "interaction")):
        of_order = [effect for effect in effects if len(effect.levels) == order and len(effect.contrast.values)]
        told = _told([Found(_title(effect), _estimate(effect), effect.test) for effect in of_order])
        if told.starred:
            averaged = ", averaged over the levels of the other factors" if order == 1 else ""
            sentences.append(f"{name.capitalize()}{'s' * (len(told.starred) > 1)}{averaged}: {_listed(told.starred)}.")
        if told.rest:
            sentences.append(f"No {'other ' * bool(told.starred)}{name} shows: {_listed(told.rest)}.")
        sentences += told.more(name)
        lost = [_title(effect) for effect in effects if len(effect.levels) == order and not len(effect.contrast.values)]
        sentences += [f"Without a seed that all its variants have finished: {_listed(lost)}."] if lost else []
    return sentences


def _title(effect: Effect) -> str:
    return " x ".join(f"{factor} {effect.references[factor]} to {level}" for factor, level in effect.levels.items())


def _estimate(effect: Effect) -> Estimate:
    """With the interval of the effect's test, which is over seeds and images."""
    return effect.contrast.estimate("both").times(PERCENT[1])


def _legend(experiment: Experiment, others: Sequence[str]) -> str:
    """What the numbers of the drafted answer are."""
    estimates = [known_difference(experiment, name) for name in others]
    meanings = list(dict.fromkeys(estimate.meaning for estimate in estimates if not math.isnan(estimate.low)))
    if meanings and not experiment.compared:
        meanings = ["95 % interval over seeds (Student's t), which does not allow for the images being other ones"]
    brackets = [f"in brackets the {' or the '.join(meanings)}"] if meanings else []
    tested = (
        footnote(experiment)
        if experiment.compared
        else "The cells were not scored on the same images: nothing is tested."
    )
    of_effects = ""
    if any(not effect.test.reason for effect in experiment.effects):
        of_effects = (
            f" Intervals and stars of effects: for {KINDS['both']}, Holm's correction over all of the same kind."
        )
    elif experiment.effects:
        reasons = dict.fromkeys(effect.test.reason for effect in experiment.effects)
        of_effects = f" Effects of the factors are not tested: {'; '.join(reasons)}."
    first = [
        "mIoU: mean ± standard deviation over seeds",
        "differences in percentage points, paired by seed",
        *brackets,
    ]
    return f"{'; '.join(first)}. {tested}{of_effects}"


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
