"""Reports of several folders: seeds of one grid joined, other experiments below one another."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import plant, save_npz, write_experiment

from experiments.evidence.deviations import planned_seeds
from experiments.evidence.experiment import load_experiment
from experiments.evidence.join import join
from experiments.report import main
from experiments.reports.tables import make_summary
from experiments.reports.write import collect, write
from experiments.shell.files import write_json


def change_plan(folder: Path, **changes: Any) -> None:
    path = folder / "plan.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def hashed(folder: Path, seeds: list[int]) -> Path:
    """The grid of MIOU with these of its seeds."""
    write_experiment(folder)
    plan = json.loads((folder / "plan.json").read_text())
    for name, variant in plan["variants"].items():
        variant["hash"] = f"hash of {name}"
        for seed in {0, 1, 2} - {*seeds}:
            (folder / name / f"seed{seed}" / "result.json").unlink()
    change_plan(folder, variants=plan["variants"], seeds=seeds)
    return folder


def test_folders_of_one_grid_with_other_seeds_are_one_experiment(tmp_path: Path) -> None:
    one, other = hashed(tmp_path / "one", [0, 2]), hashed(tmp_path / "other", [0, 1])
    (one / "nearest+none" / "seed0" / "result.json").unlink()  # finished in the other
    (other / "nearest+none" / "seed1" / "result.json").unlink()  # nowhere
    change_plan(other, command="python -m experiments.x --seeds 0 1", commit="cd34")
    (joined,) = join([load_experiment(one), load_experiment(other)])
    assert joined.plan["seeds"] == [0, 2, 1]
    assert joined.values("transposed-3+concat", "miou") == pytest.approx({0: 0.80, 2: 0.84, 1: 0.82})
    assert list(joined.cells["nearest+none"]) == [0, 2]
    assert [(m.variant, m.seed) for m in joined.missing] == [("nearest+none", 1)]
    assert joined.plan["command"].splitlines() == ["python -m experiments.x", "python -m experiments.x --seeds 0 1"]
    assert joined.plan["commit"] == "ab12, cd34"
    # What one folder lacked alone is not said of the whole.
    assert [line for line in joined.deviations if "lacks seed" in line] == [
        line for line in joined.deviations if "nearest+none lacks seed 1" in line
    ]
    assert any("step times and memory were measured in one" in line for line in joined.deviations)


def planned(seeds: list[int], **statistics: Any) -> dict[str, Any]:
    return {"seeds_planned": seeds, "statistics": {"variances": "pooled", "margin": None, "until": None} | statistics}


def test_what_both_folders_fixed_before_training_is_united(tmp_path: Path) -> None:
    one, other = hashed(tmp_path / "one", [0, 2]), hashed(tmp_path / "other", [1])
    folders = [one, other]
    change_plan(one, **planned([0], margin=1.0), looks=[[0]])
    change_plan(other, **planned([1]), looks=[[0]])
    (joined,) = join([load_experiment(folder) for folder in folders])
    assert (joined.plan["seeds_planned"], joined.plan["looks"]) == ([0, 1], [[0]])
    assert joined.plan["statistics"]["margin"] == 1.0
    assert joined.plan["statistics"]["margin_after"] is True  # of one of them
    assert planned_seeds(joined.plan) == "2 seeds planned, 3 used."  # a look at one seed shows no star

    change_plan(other, statistics={})
    plan = json.loads((other / "plan.json").read_text())
    (other / "plan.json").write_text(json.dumps({k: v for k, v in plan.items() if k != "seeds_planned"}))
    (joined,) = join([load_experiment(folder) for folder in folders])
    assert planned_seeds(joined.plan) == ""  # of an earlier version: not known

    for key, value in (("variances", "separate"), ("until", 2.0)):
        change_plan(other, **planned([1], **{key: value}))
        with pytest.raises(
            ValueError, match=rf"one and .*other hold seeds .* \({key}: (pooled|None) against {value}\)"
        ):
            join([load_experiment(folder) for folder in folders])


def test_stages_of_both_folders_measure_the_variance(tmp_path: Path) -> None:
    one, other = hashed(tmp_path / "one", [0, 1, 2]), hashed(tmp_path / "other", [0, 1, 2])
    for folder in (one, other):
        change_plan(folder, **planned([0, 1, 2], until=2.0, stage=[0, 1, 2], needed=5))
    (joined,) = join([load_experiment(folder) for folder in (one, other)])
    assert (joined.plan["statistics"]["stage"], joined.plan["statistics"]["needed"]) == ([0, 1, 2], 5)
    first = load_experiment(one)
    apart = replace(
        first,
        plan=first.plan | planned([3, 4, 5], until=2.0, stage=[3, 4, 5], needed=4),
        cells={name: {seed + 3: cell for seed, cell in cells.items()} for name, cells in first.cells.items()},
    )
    (joined,) = join([first, apart])
    assert (joined.plan["statistics"]["stage"], joined.plan["statistics"]["needed"]) == ([0, 1, 2, 3, 4, 5], 9)


def test_another_result_of_the_same_cell_is_refused_and_an_equal_one_is_not(tmp_path: Path) -> None:
    folders = [hashed(tmp_path / name, [0, 1, 2]) for name in ("one", "other")]
    assert len(join([load_experiment(folder) for folder in folders])) == 1
    path = tmp_path / "other" / "nearest+none" / "seed2" / "per_image.npz"
    with np.load(path) as stored:
        arrays = dict(stored)
    save_npz(path, **{**arrays, "confusion": arrays["confusion"] + 1})
    with pytest.raises(ValueError, match=r"one.nearest\+none.seed2 and .*other.nearest\+none.seed2 hold other results"):
        join([load_experiment(folder) for folder in folders])


def test_other_settings_are_no_seeds_of_the_same_grid(tmp_path: Path) -> None:
    one, other = hashed(tmp_path / "a" / "one", [0]), hashed(tmp_path / "other", [1])
    plan = json.loads((other / "plan.json").read_text())
    plan["variants"]["nearest+none"]["hash"] = "another"
    change_plan(other, variants=plan["variants"])
    names = [experiment.plan["experiment"] for experiment in join([load_experiment(one), load_experiment(other)])]
    assert names == ["ablate_up_sampling (one)", "ablate_up_sampling (other)"]
    same = other.rename(tmp_path / "one")
    change_plan(same, common={"trainer.max_epochs": 9, "hparams.width": 4})
    for path in same.glob("*/seed*/run.json"):
        write_json(path, json.loads(path.read_text()) | {"trainer": {"max_epochs": 9}})
    with pytest.raises(ValueError, match=r"a.one and .*one hold .*trainer.max_epochs 2 against 9.*Rename"):
        join([load_experiment(one), load_experiment(same)])


def test_the_same_variants_on_two_data_sets_stand_side_by_side(tmp_path: Path) -> None:
    plant(tmp_path / "one")
    plant(tmp_path / "two")
    change_plan(tmp_path / "two", experiment="planted_two", data="photographs")
    table = make_summary([load_experiment(tmp_path / "one"), load_experiment(tmp_path / "two")])
    assert table.columns[:4] == ["variant", "sign (shapes / photographs)", "mIoU (%), shapes", table.columns[3]]
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["transposed-3+concat"][:3] == ["baseline", "60.00 ± 0.60", "baseline"]
    assert rows["transposed-3+none"][0] == "-* / -*" and rows["transposed-3+none"][1] == rows["transposed-3+none"][3]
    assert re.fullmatch(r"-20\.00 \[-\d\d\.\d\d, -\d\d\.\d\d\]\*", rows["transposed-3+none"][2])
    assert rows["nearest+concat"][2].startswith("0.00 [") and not rows["nearest+concat"][2].endswith("*")
    notes = " ".join(table.notes)
    assert (
        "planted_two: * 0 lies outside the interval; all 6 intervals of this report hold together with 95 %, for "
        in notes
    )
    assert (
        "ablate_up_sampling: * 0 lies" in notes
        and notes.count("on these images only (their groups were not stored)") == 2
    )
    assert "Nothing is pooled" in notes


def test_folders_that_name_other_groups_of_images_are_joined_with_a_warning(tmp_path: Path) -> None:
    folders = [hashed(tmp_path / "one", [0, 1]), hashed(tmp_path / "other", [2])]
    for path in folders[0].glob("*/seed*/per_image.npz"):
        with np.load(path) as stored:
            save_npz(path, **stored, groups=np.array(["left", "right"]))
    parts = [load_experiment(folder) for folder in folders]
    assert parts[0].groups == ["left", "right"] and not [line for part in parts for line in part.deviations]
    (joined,) = join(parts)
    assert joined.groups is None and joined.family.reason == "cells differ in their groups of images"
    (said,) = [line for line in joined.deviations if "groups" in line]
    assert said == (
        "Cells do not name the same groups of test images (none in transposed-3+concat seed 2, nearest+concat seed 2, "
        "transposed-3+none seed 2 and 1 more): every interval is for these images only."
    )


@pytest.mark.usefixtures("one_figure")
def test_several_experiments_are_one_report_with_an_experiment_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(tmp_path / "one", seeds=1)
    write_experiment(tmp_path / "two", seeds=1)
    plan = json.loads((tmp_path / "two" / "plan.json").read_text())
    del plan["variants"]["nearest+none"]
    change_plan(tmp_path / "two", experiment="../<b>two", class_names=["a", "b", "c"], variants=plan["variants"])
    out = tmp_path / "out"
    write(collect([tmp_path / "one", tmp_path / "two"], out))
    with (out / "table.csv").open(newline="", encoding="utf-8") as file:
        found = [*csv.DictReader(file)]
    assert [row["experiment"] for row in found] == ["ablate_up_sampling"] * 4 + ["../<b>two"] * 3
    assert found[0]["iou/a_percent_mean"] == "" and found[4]["iou/a_percent_mean"] == "80"
    text = (out / "table.md").read_text(encoding="utf-8")
    assert (
        "| experiment | data | variant | seeds |" in text and "| ../&lt;b>two | shapes | nearest+concat | 1 |" in text
    )
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;two" in page and "The variants of 2 experiments" in page
    assert r"\label{tab:summary}" in (out / "table.tex").read_text(encoding="utf-8")
    assert {path.parent.parent.name for path in out.glob("*/figures/scores.png")} == {"ablate_up_sampling", "b-two"}
    assert set(json.loads((out / "environment.json").read_text())["experiments"]) == {"ablate_up_sampling", "../<b>two"}
    assert not (tmp_path / "<b>two").exists()
    assert "The variants of 2 experiments" in capsys.readouterr().out


def test_wrong_flags_are_refused_in_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for flags, words in (
        (["a", "b"], "a, b) need --out DIR"),
        (["a", "--answer", "x"], "add --record"),
        ([], "expected the folder of an experiment"),
    ):
        monkeypatch.setattr("sys.argv", ["report", *flags])
        with pytest.raises(SystemExit, match="2"):
            main()
        assert words in capsys.readouterr().err
