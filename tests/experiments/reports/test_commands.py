"""The commands that trained the cells, as a report prints them and a script repeats them."""

import json
from pathlib import Path

from reproducing import COMMAND, NAME, experiment

from experiments.evidence.experiment import load_experiment
from experiments.reports.commands import Code, calls, read_command, show_command
from experiments.reports.reproduce import reproduce_script
from experiments.shell.files import write_json


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
    assert (call.code, call.seeds) == (Code("ab12cd34"), [0, 1])
    assert "--out" not in call.shown and call.shown.endswith("--root DIR --weights PATH --jobs 2 --seeds 0 1")
    other = tmp_path / "nearest+none" / "seed0" / "environment.json"
    write_json(other, json.loads(other.read_text()) | {"commit": "ffff0000"})
    two = load_experiment(tmp_path)
    assert [(call.code.commit, call.seeds) for call in calls(two)] == [("ab12cd34", [0, 1]), ("ffff0000", [0])]
    # The plan that is written last names the seeds of all.
    lines = reproduce_script([two], {NAME: "x"}, Code("ab12cd34")).splitlines()
    assert [line.count("--seeds 0 1 --out") for line in lines if "experiments.ablate_upsampling" in line] == [1, 1]


def test_variables_are_never_names_that_programs_know() -> None:
    for flag in ("--ld-library", "--git-exec", "--pythonhome", "--bash-env"):
        (variable,) = [word.variable for word in read_command(f"x {flag} /y", "camvid") if word.variable]
        assert variable.startswith("DATA_")


def test_each_of_several_paths_has_a_variable_of_its_own() -> None:
    words = read_command(
        "python -m experiments.ablate_x --tune weights /a/b.pth ../c/d.ckpt none --root /data", "folder"
    )
    assert [word.variable for word in words if word.variable] == ["TUNE_PATH", "TUNE_PATH_2", "FOLDER_ROOT"]
    assert words[-3].text == "none"
