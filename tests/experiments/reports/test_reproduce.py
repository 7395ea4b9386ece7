"""reproduce.sh is run with a stand-in for Python, which writes down what it is asked for; environment.json is read."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from handmade import write_cell, write_experiment, write_tables

from experiments.evidence.experiment import Experiment, load_experiment
from experiments.reports.reproduce import calls, read_command, report_environment, reproduce_script, show_command
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


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "a clone"
    folder.mkdir()
    git(folder, "init", "--quiet")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "first")
    return folder


def experiment(folder: Path, command: str, commit: str) -> Experiment:
    write_experiment(folder, seeds=2)
    for name, value in (("command", command), ("commit", commit), ("experiment", NAME), ("data", "CamVid\n; false")):
        plan = json.loads((folder / "plan.json").read_text())
        (folder / "plan.json").write_text(json.dumps(plan | {name: value}))
    for path in folder.glob("*/seed*/environment.json"):
        write_json(path, json.loads(path.read_text()) | {"command": command, "commit": commit})
    return load_experiment(folder)


def test_places_become_variables_and_all_else_stays_as_typed() -> None:
    words = read_command(COMMAND, "camvid")
    assert [word.variable for word in words if word.variable] == ["CAMVID_ROOT", "WEIGHTS_PATH"]
    expected = "python -m experiments.ablate_upsampling --data camvid --root DIR --weights PATH --seeds 0 1 --jobs 2"
    assert show_command(COMMAND, "camvid") == expected == show_command(expected, "camvid")
    kept = "python -m experiments.ablate_upsampling --scale 0.5 --data.zoom '[0.75,1.5]' --epochs=1 --name 'a b/c'"
    assert show_command(kept, "brain") == kept
    assert show_command('python -m x --root data --init=/a/b \'k={"p": "/home/me"}\'', "3d") == (
        "python -m x --root DIR --init=PATH PATH"
    )
    assert read_command("x --root a", "3d")[-1].variable == "DATA_3D_ROOT"


def test_commands_that_differ_in_their_seeds_alone_are_one(tmp_path: Path) -> None:
    one = experiment(tmp_path, COMMAND, "ab12cd34")
    path = tmp_path / "nearest+none" / "seed1" / "environment.json"
    write_json(path, json.loads(path.read_text()) | {"command": COMMAND.replace("0 1", "0 1 2") + " --out /tmp/x"})
    (call,) = calls(one)
    assert (call.commit, call.seeds) == ("ab12cd34", [0, 1])
    assert "--out" not in call.shown and call.shown.endswith("--root DIR --weights PATH --jobs 2 --seeds 0 1")
    other = tmp_path / "nearest+none" / "seed0" / "environment.json"
    write_json(other, json.loads(other.read_text()) | {"commit": "ffff0000"})
    two = load_experiment(tmp_path)
    assert [(call.commit, call.seeds) for call in calls(two)] == [("ab12cd34", [0, 1]), ("ffff0000", [0])]
    # The plan that is written last names the seeds of all.
    lines = reproduce_script([two], {NAME: "x"}, "ab12cd34").splitlines()
    assert [line.count("--seeds 0 1 --out") for line in lines if "experiments.ablate_upsampling" in line] == [1, 1]


def test_the_script_repeats_no_logger(tmp_path: Path) -> None:
    """It would log the run again, under the name of whoever runs it; no number depends on it."""
    logged = COMMAND.replace("--jobs 2", "--logger wandb --private --log-gradients 10 --log-checkpoints --jobs 2")
    assert logged != COMMAND
    script = reproduce_script([experiment(tmp_path, logged, "ab12cd34")], {NAME: "x"}, "ab12cd34")
    assert not {"--logger", "wandb", "--private", "--log-gradients", "--log-checkpoints"} & set(script.split())
    assert "--jobs 2 --seeds 0 1" in script


def run_script(folder: Path, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    path = {"PATH": os.environ["PATH"], "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    command = ["bash", folder / "reproduce.sh", *arguments]
    options = {"env": path | variables, "cwd": folder, "capture_output": True, "text": True, "timeout": 60}
    return subprocess.run(command, check=False, **options)


def test_the_script_asks_for_places_checks_out_trains_reports_and_compares(tmp_path: Path, repository: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    folder = tmp_path / "it's here"
    one = experiment(folder, COMMAND, f"{commit}-dirty")
    write_tables(folder)
    script = reproduce_script([one], {NAME: "a name"}, commit)
    assert "/home" not in script and "~/w" not in script
    (folder / "reproduce.sh").write_text(script)
    subprocess.run(["bash", "-n", folder / "reproduce.sh"], check=True)

    (tmp_path / "data").mkdir()
    (tmp_path / "w.pt").touch()
    given = {"CAMVID_FALSE_ROOT": str(tmp_path / "data")}
    missing = run_script(folder, REPOSITORY=str(repository), **given)
    assert missing.returncode == 2
    assert (
        "error: WEIGHTS_PATH is not set: expected what weights named on the machine of the training" in missing.stderr
    )
    given["WEIGHTS_PATH"] = str(tmp_path / "nothing")
    assert "which is not there" in run_script(folder, REPOSITORY=str(repository), **given).stderr
    given["WEIGHTS_PATH"] = str(tmp_path / "w.pt")
    assert "REPOSITORY is not set" in run_script(folder, **given).stderr

    log, table, python = tmp_path / "log", tmp_path / "table.csv", tmp_path / "python"
    table.write_text((folder / "table.csv").read_text().replace(",61,", ",63.5,", 1))
    quoted = {
        key: shlex.quote(str(value)) for key, value in (("log", log), ("table", table), ("python", sys.executable))
    }
    python.write_text(STAND_IN.format(**quoted))
    python.chmod(0o755)
    # The report is written into a folder that the training would have made.
    (folder / "again" / "a name").mkdir(parents=True)
    done = run_script(folder, "again", REPOSITORY=str(repository), PYTHON=str(python), **given)
    assert done.returncode == 0, done.stderr
    code = folder / "again" / f"code-{commit}"
    assert git(code, "rev-parse", "HEAD") == commit
    asked = [line.rstrip("|").split("|") for line in log.read_text().splitlines()]
    assert asked[0][1:] == ["-m", "venv", f"{code}/.venv"]
    install = "-m pip install --requirement requirements.txt --constraint constraints.txt --editable ."
    assert asked[1] == [str(code), *install.split()]
    trained = f"-m experiments.ablate_upsampling --data camvid --root {tmp_path}/data --weights {tmp_path}/w.pt"
    trained += " --jobs 2 --seeds 0 1 --out"
    assert asked[2] == [str(code), *trained.split(), f"{folder}/again/a name"]
    assert asked[3] == [str(code), "-m", "experiments.report", f"{folder}/again/a name"]
    assert "changes that were not committed" in done.stdout
    assert "1 differ, most of all\n  miou_percent_mean of transposed-3+none: 61, now 63.5\n" in done.stdout
    assert not list(tmp_path.rglob("broken"))
    again = run_script(folder, "again", REPOSITORY=str(repository), PYTHON=str(python), **given)
    assert again.returncode == 0 and log.read_text().count("|pip|") == 1  # continues, and installs once


def test_a_commit_that_is_not_known_is_said(tmp_path: Path, repository: Path) -> None:
    one = experiment(tmp_path / "x", "python -m experiments.ablate_upsampling", "unknown")
    script = reproduce_script([one], {NAME: "x"}, "ab12cd34")
    assert "code HEAD\ninstall HEAD ''" in script
    assert "the commit is not known: this runs the HEAD of REPOSITORY, and may find other numbers" in script
    lost = experiment(
        tmp_path / "y",
        "python -m experiments.ablate_upsampling --weights package",
        "0123456789abcdef0123456789abcdef01234567",
    )
    (tmp_path / "y" / "reproduce.sh").write_text(reproduce_script([lost], {NAME: "y"}, "ab12cd34"))
    found = run_script(tmp_path / "y", REPOSITORY=str(repository))
    assert found.returncode == 2 and "the commit 0123456789abcdef0123456789abcdef01234567 is not in" in found.stderr
    assert (
        "install 0123456789abcdef0123456789abcdef01234567 '[pretrained]'"
        in (tmp_path / "y" / "reproduce.sh").read_text()
    )


def test_the_environment_holds_what_all_cells_share_and_lists_what_differs(tmp_path: Path) -> None:
    one = experiment(tmp_path, COMMAND, "ab12cd34")
    (found,) = report_environment([one])["experiments"].values()
    assert found["commit"] == "ab12cd34" and found["cells_agree"] and found["differences"] == {}
    assert found["seeds"] == [0, 1] and found["cells_finished"] == 8 and found["torch_threads"] == 1
    assert found["data"]["test_images"] == 2 and len(found["data"]["test_image_names_sha256"]) == 64
    assert found["commands"] == [
        "python -m experiments.ablate_upsampling --data camvid --root DIR --weights PATH --jobs 2 --seeds 0 1"
    ]
    path = tmp_path / "nearest+none" / "seed1" / "environment.json"
    write_json(path, json.loads(path.read_text()) | {"device": "1 x H200"})
    (found,) = report_environment([load_experiment(tmp_path)])["experiments"].values()
    assert not found["cells_agree"] and "device" not in found
    assert found["differences"]["device"][1] == {"value": "1 x H200", "cells": ["nearest+none/seed1"]}
    assert "/home" not in json.dumps(found)


CANARY = "touch canary"
HOSTILE = [
    CANARY,
    f"python -c 'import os; os.system(\"{CANARY}\")'",
    f"python -m experiments.ablate_upsampling; {CANARY}",
    f"python -m experiments.ablate_upsampling $({CANARY})",
    f"python -m experiments.ablate_upsampling `{CANARY}` --root '$({CANARY})'",
    f"python -m experiments.ablate_upsampling\n{CANARY}",
    f"python -m experiments.ablate_upsampling\u2028{CANARY}",
    f"python -m experiments.ablate_upsampling '\n{CANARY}\n'",
    f"python -m experiments.ablate_upsampling 'unbalanced\n{CANARY}",
    "python -m experiments.sync --publish",
    "python -m experiments.grids.cell x",
    "python -m timeit 'import os'",
    "python -X importtime -m experiments.ablate_upsampling",
    "python -m experiments.ablate_upsampling.py",
    "python -m experiments.../etc/x",
    "python -m",
    "./python -m experiments.ablate_upsampling",
    "BASH_ENV=x python -m experiments.ablate_upsampling",
    'python -m experiments.train --trainer.callbacks \'{"class_path": "os.system"}\'',
    "python notebook.py",
    "",
]
RUN = {HOSTILE[3], HOSTILE[4], HOSTILE[5]}  # of this project's modules, with words that are only words


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """An interpreter that writes down what it is asked for, into `log` beside it."""
    python = tmp_path / "python"
    quoted = {"log": shlex.quote(str(tmp_path / "log")), "table": "/dev/null", "python": "true"}
    python.write_text(STAND_IN.format(**quoted))
    python.chmod(0o755)
    return python


@pytest.mark.parametrize("command", HOSTILE)
def test_a_strangers_command_is_run_as_words_of_this_project_or_not_at_all(
    tmp_path: Path, repository: Path, stand_in: Path, command: str
) -> None:
    folder = tmp_path / "x"
    one = experiment(folder, command, f"{git(repository, 'rev-parse', 'HEAD')}$({CANARY})")
    (folder / "reproduce.sh").write_text(reproduce_script([one], {NAME: f"$({CANARY})"}, f"; {CANARY}"))
    subprocess.run(["bash", "-n", folder / "reproduce.sh"], check=True)
    (tmp_path / "data").mkdir()
    places = {"CAMVID_FALSE_ROOT": str(tmp_path / "data")}
    done = run_script(folder, REPOSITORY=str(repository), PYTHON=str(stand_in), **places)
    assert not [*tmp_path.rglob("canary"), *repository.rglob("canary")]
    log = (tmp_path / "log").read_text() if (tmp_path / "log").exists() else ""
    if command in RUN:
        assert done.returncode == 0, done.stderr
        assert log.count("|-m|experiments.ablate_upsampling|") == 1
    else:
        assert done.returncode == 2 and not log
        assert "cannot be made again by a script" in done.stderr and "Nothing was run" in done.stderr


@pytest.mark.parametrize("seed", ["0; touch canary; echo", "0", -1, 1.0, True, None, 2**32, [0]])
def test_a_seed_that_is_no_whole_number_is_refused(tmp_path: Path, seed: Any) -> None:
    write_experiment(tmp_path, seeds=1)
    write_cell(tmp_path / "nearest+none" / f"seed{seed}", "nearest", "none", 0, 80)
    plan = json.loads((tmp_path / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps(plan | {"seeds": [seed]}))
    with pytest.raises(ValueError, match=r"plan\.json seeds\.0 must .*, got "):
        load_experiment(tmp_path)


@pytest.mark.parametrize("commit", ["ab12cd34", "main", "--upload-pack=touch canary", "$(touch canary)", "a" * 39])
def test_what_is_no_whole_commit_is_never_handed_to_git(tmp_path: Path, commit: str) -> None:
    script = reproduce_script([experiment(tmp_path, COMMAND, commit)], {NAME: "x"}, commit)
    assert [line for line in script.splitlines() if line.startswith("code ")] == ["code HEAD"] * 2


def test_variables_are_never_names_that_programs_know() -> None:
    for flag in ("--ld-library", "--git-exec", "--pythonhome", "--bash-env"):
        (variable,) = [word.variable for word in read_command(f"x {flag} /y", "camvid") if word.variable]
        assert variable.startswith("DATA_")


def test_results_lie_in_no_folder_of_the_code_or_of_the_report(tmp_path: Path) -> None:
    one = experiment(tmp_path, COMMAND, "unknown")
    for name in ("code-HEAD", "report"):
        assert f'--out "$folder"/{name}-results)' in reproduce_script([one], {NAME: name}, "unknown")


def test_code_that_came_with_the_folder_is_not_run(tmp_path: Path, repository: Path, stand_in: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    folder = tmp_path / "x"
    one = experiment(folder, COMMAND.replace(" --weights ~/w.pt", ""), commit)
    (folder / "reproduce.sh").write_text(reproduce_script([one], {NAME: "y"}, commit))
    planted = folder / "reproduced" / f"code-{commit}" / ".venv"
    (planted / "bin").mkdir(parents=True)
    (planted / "installed").touch()
    (planted / "bin" / "python").write_text(f"#!/bin/sh\ntouch {shlex.quote(str(tmp_path / 'canary'))}\n")
    (planted / "bin" / "python").chmod(0o755)
    (tmp_path / "data").mkdir()
    done = run_script(
        folder, REPOSITORY=str(repository), PYTHON=str(stand_in), CAMVID_FALSE_ROOT=str(tmp_path / "data")
    )
    assert done.returncode == 2 and f"code-{commit} is not of {repository}: remove it" in done.stderr
    assert not (tmp_path / "canary").exists()
