"""An experiment and a repository for reproduce.sh, and a stand-in for Python that writes down what it is asked for."""

import json
import os
import subprocess
from pathlib import Path

from handmade import write_experiment

from experiments.evidence.experiment import Experiment, load_experiment
from experiments.shell.files import write_json

NAME = "$(touch broken) \"a' `touch broken`\n#"
COMMAND = (
    "python -m experiments.ablate_upsampling --data camvid --root /home/me/camvid --weights ~/w.pt --seeds 0 1 --jobs 2"
)
# As venv, makes itself the interpreter of the new environment; as report, writes the table that is compared.
STAND_IN = """#!/bin/sh
printf '%s|' "$PWD" "$@" >> {log}; echo >> {log}
case "$2" in
    venv) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
    experiments.report) cp {table} "$3/table.csv" ;;
esac
[ "$1" != - ] || exec {python} "$@"
"""


def git(folder: Path, *words: str) -> str:
    own = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", "-C", folder, *own, *words], check=True, capture_output=True, text=True
    ).stdout.strip()


def experiment(folder: Path, command: str, commit: str) -> Experiment:
    write_experiment(folder, seeds=2)
    for name, value in (("command", command), ("commit", commit), ("experiment", NAME), ("data", "CamVid\n; false")):
        plan = json.loads((folder / "plan.json").read_text())
        (folder / "plan.json").write_text(json.dumps(plan | {name: value}))
    for path in folder.glob("*/seed*/environment.json"):
        write_json(path, json.loads(path.read_text()) | {"command": command, "commit": commit})
    return load_experiment(folder)


def run_script(folder: Path, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    path = {"PATH": os.environ["PATH"], "HOME": str(folder), "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    command = ["bash", folder / "reproduce.sh", *arguments]
    options = {"env": path | variables, "cwd": folder, "capture_output": True, "text": True, "timeout": 60}
    return subprocess.run(command, check=False, **options)
