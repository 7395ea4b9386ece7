"""reproduce.sh makes the numbers of a study again that was never committed. All of it is run, but for the installation
of packages and for figures.
"""

import csv
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from reproducing import git

from experiments.shell.difference import CODE, ROOT
from experiments.shell.files import read_json

STUDY = '''"""A study of one variant.
Answer: none
"""

from datamodules.shapes import LENGTH
from experiments import Study, cpu_scale
from lightning_modules.unet import UNetModule

BASE = cpu_scale(UNetModule, width=2, depth=1, data={"size": 24, "length": LENGTH, "batch_size": 2})
STUDY = Study(name="mine", question="?", baseline="one", variants={"one": {}}, base=BASE)

if __name__ == "__main__":
    STUDY.command_line(__doc__)
'''
FLAGS = ("--data", "shapes", "--seeds", "0", "--jobs", "1", "--epochs", "1")
# As venv, makes itself the interpreter of the new environment, whose packages are those of this one.
PYTHON = """#!/bin/sh
case "$2" in
    venv) mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; exit ;;
    pip) exit ;;
esac
exec {python} "$@"
"""


def call(folder: Path, *words: str | Path, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    options = {"env": environment, "cwd": folder, "text": True, "capture_output": True, "timeout": 300}
    done = subprocess.run(words, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


def scores(folder: Path) -> dict[str, str]:
    with (folder / "table.csv").open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    return {name: value for name, value in row.items() if name.startswith(("miou", "boundary", "iou"))}


def test_a_study_that_was_never_committed_is_made_again(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    for package in CODE:
        shutil.copytree(ROOT / package, clone / package, ignore=shutil.ignore_patterns("__pycache__", "results"))
    drawing = clone / "experiments" / "reports" / "figures" / "__init__.py"
    drawing.write_text(drawing.read_text() + "\n\ndef write_figures(*_, **__):\n    return {}\n")  # they take seconds
    (clone / ".gitignore").write_text("__pycache__/\nablate_mine.py\n")  # which hides it from git, but not from Python
    git(clone, "init", "--quiet")
    git(clone, "add", ".")
    git(clone, "commit", "--quiet", "--message", "first")
    other, study = clone / "datamodules" / "shapes.py", clone / "experiments" / "ablate_mine.py"
    other.write_text(other.read_text() + "\nLENGTH = 6\n")
    study.write_text(STUDY)
    told = call(clone, sys.executable, "-m", "experiments.ablate_mine", *FLAGS, "--out", tmp_path / "x")
    assert "in experiments/ablate_mine.py (new) and 1 more file: each run keeps the difference as code.patch" in told
    trained = read_json(tmp_path / "x" / "one" / "seed0" / "environment.json")
    assert trained["commit"] == git(clone, "rev-parse", "HEAD") + "-dirty"
    other.unlink()
    study.unlink()

    python = tmp_path / "python"
    python.write_text(PYTHON.format(python=shlex.quote(sys.executable)))
    python.chmod(0o755)
    script = tmp_path / "x" / "reproduce.sh"
    made = call(tmp_path, "bash", script, "again", REPOSITORY=str(clone), PYTHON=str(python))
    assert "scores of the variants, table.csv here and there: all equal" in made and "note:" not in made
    assert scores(tmp_path / "again" / "x") == scores(tmp_path / "x")
    again = read_json(tmp_path / "again" / "x" / "one" / "seed0" / "environment.json")
    assert (again["commit"], again["patch"]) == (trained["commit"], trained["patch"])
