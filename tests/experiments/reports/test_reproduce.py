"""reproduce.sh is run with a stand-in for Python, which writes down what it is asked for; environment.json is read."""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from handmade import write_cell, write_experiment, write_tables
from reproducing import COMMAND, NAME, STAND_IN, experiment, git, run_script

from experiments.evidence.experiment import load_experiment
from experiments.reports.commands import Code
from experiments.reports.reproduce import report_environment, reproduce_script
from experiments.shell.files import write_json


def test_the_script_repeats_no_logger(tmp_path: Path) -> None:
    """It would log the run again, under the name of whoever runs it; no number depends on it."""
    logged = COMMAND.replace("--jobs 2", "--logger wandb --private --log-gradients 10 --log-checkpoints --jobs 2")
    assert logged != COMMAND
    script = reproduce_script([experiment(tmp_path, logged, "ab12cd34")], {NAME: "x"}, Code("ab12cd34"))
    assert not {"--logger", "wandb", "--private", "--log-gradients", "--log-checkpoints"} & set(script.split())
    assert "--jobs 2 --seeds 0 1" in script


def test_the_script_asks_for_places_checks_out_trains_reports_and_compares(tmp_path: Path, repository: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    folder = tmp_path / "it's here"
    one = experiment(folder, COMMAND, f"{commit}-dirty")
    write_tables(folder)
    script = reproduce_script([one], {NAME: "a name"}, Code(commit))
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
    script = reproduce_script([one], {NAME: "x"}, Code("ab12cd34"))
    assert "code HEAD HEAD '' ablate_upsampling\ncode HEAD HEAD '' report\n" in script and "install HEAD ''" in script
    assert "the commit is not known: this runs the HEAD of REPOSITORY, and may find other numbers" in script
    lost = experiment(
        tmp_path / "y",
        "python -m experiments.ablate_upsampling --weights package",
        "0123456789abcdef0123456789abcdef01234567",
    )
    (tmp_path / "y" / "reproduce.sh").write_text(reproduce_script([lost], {NAME: "y"}, Code("ab12cd34")))
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


@pytest.mark.parametrize("command", HOSTILE)
def test_a_strangers_command_is_run_as_words_of_this_project_or_not_at_all(
    tmp_path: Path, repository: Path, stand_in: Path, command: str
) -> None:
    folder = tmp_path / "x"
    one = experiment(folder, command, f"{git(repository, 'rev-parse', 'HEAD')}$({CANARY})")
    (folder / "reproduce.sh").write_text(reproduce_script([one], {NAME: f"$({CANARY})"}, Code(f"; {CANARY}")))
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
    script = reproduce_script([experiment(tmp_path, COMMAND, commit)], {NAME: "x"}, Code(commit))
    assert [line for line in script.splitlines() if line.startswith("code ")] == [
        "code HEAD HEAD '' ablate_upsampling",
        "code HEAD HEAD '' report",
    ]


def test_results_lie_in_no_folder_of_the_code_or_of_the_report(tmp_path: Path) -> None:
    one = experiment(tmp_path, COMMAND, "unknown")
    for name in ("code-HEAD", "report"):
        assert f'--out "$folder"/{name}-results)' in reproduce_script([one], {NAME: name}, Code("unknown"))


def test_code_that_came_with_the_folder_is_not_run(tmp_path: Path, repository: Path, stand_in: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    folder = tmp_path / "x"
    one = experiment(folder, COMMAND.replace(" --weights ~/w.pt", ""), commit)
    (folder / "reproduce.sh").write_text(reproduce_script([one], {NAME: "y"}, Code(commit)))
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


def test_the_script_names_the_machine(tmp_path: Path) -> None:
    experiment(tmp_path, COMMAND, "ab12")
    for path in tmp_path.glob("*/seed*/environment.json"):
        machine = {"processor": "AMD EPYC (family 25, model 17)", "instruction_set": "AVX512", "blas": "MKL 2024.2"}
        write_json(path, json.loads(path.read_text()) | machine)
    one = load_experiment(tmp_path)
    script = reproduce_script([one], {NAME: "x"}, Code("ab12"))
    assert "processor AMD EPYC (family 25, model 17); instruction_set AVX512; blas MKL 2024.2;" in script
    assert "On the same kind of processor" in script and "differed by 0.9 points of mIoU" in script
    (found,) = report_environment([one])["experiments"].values()
    assert (found["processor"], found["instruction_set"]) == ("AMD EPYC (family 25, model 17)", "AVX512")
