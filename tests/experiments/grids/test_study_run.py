"""A study that is run: its seeds add up, and what it measured or refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from studied import STUDY, run

from experiments import cpu_scale
from experiments.grids.ablation import Measured
from experiments.grids.command import run_grid
from experiments.grids.cost import Cost
from experiments.grids.study_flags import parse_study
from lightning_modules.fcn import FCNModule


def test_seeds_add_up_and_a_dry_run_keeps_its_measurements(
    tmp_path: Path, in_process: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "grid"
    assert run(out, "--dry-run") == {}
    assert not out.exists()
    assert "earlier measurement" not in capsys.readouterr().out
    monkeypatch.setattr("experiments.grids.known_costs.measure", lambda *a, **k: pytest.fail("measured again"))
    assert run(out, "--seeds", "0")["seeds"] == [0]
    assert "Times of a step are of an earlier measurement: delete " in capsys.readouterr().out
    assert run(out, "--seeds", "1")["seeds"] == [0, 1]
    assert "seeds 0 of" in capsys.readouterr().out
    assert in_process == ["width 2 0", "width 4 0", "width 2 1", "width 4 1"]
    assert run(out, "--seeds", "1", "--only-seeds")["seeds"] == [1]
    assert run(out, "--seeds", "1")["seeds"] == [0, 1]  # what was left out once is not lost

    # Times are of a number of threads: with another one they are measured again.
    monkeypatch.setattr(
        "experiments.grids.known_costs.measure", lambda *a, **k: {name: Cost(9.0, 1.0) for name in STUDY.variants}
    )
    capsys.readouterr()
    run(out, "--threads", "2", "--dry-run")
    assert "9000" in capsys.readouterr().out  # ms/step
    assert run(out, "--seeds", "0", "1", "--only-seeds")["seeds"] == [0, 1]


def test_what_was_measured_stays_where_it_cannot_be_measured_again(
    tmp_path: Path, in_process: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = {"image_seconds": {"network": 0.5, "crf": 0.25}}
    found = iter([Measured({"width 2": seconds}, ["A note."])])

    def finish(cells: Any, say: Any) -> Measured:
        for measured in found:
            return measured
        raise FileNotFoundError("last.ckpt is not there")

    study = replace(STUDY, finish=finish)
    for _ in range(2):
        plan = run(tmp_path / "grid", "--seeds", "0", study=study)
        assert plan["notes"] == ["A note."]
        assert plan["variants"]["width 2"].items() >= seconds.items()
        assert "image_seconds" not in plan["variants"]["width 4"]
    assert "not measured: last.ckpt is not there" in capsys.readouterr().out


def test_a_file_that_is_not_found_is_not_taken_for_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = replace(STUDY, base=cpu_scale(FCNModule), variants={"width 2": {}, "b": {"stride": 16}})
    words = ["--data", "shapes", "--weights", str(tmp_path / "none.pth"), "--dry-run", "--out", str(tmp_path / "out")]
    study, settings, args = parse_study(study, None, words)
    assert run_grid(lambda: study.asked(settings), "x", args) == 2
    assert "none.pth" in capsys.readouterr().err


def test_a_refused_call_leaves_no_folder(tmp_path: Path) -> None:
    study, settings, args = parse_study(STUDY, None, ["--tune", "width", "2", "4", "--out", str(tmp_path / "a" / "b")])
    assert run_grid(lambda: study.asked(settings), "x", args) == 2
    assert [*tmp_path.iterdir()] == []


def test_a_dry_run_without_the_data_says_so_and_names_a_damaged_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["--data", "folder", "--root", str(tmp_path / "gone"), "--dry-run", "--out", str(out)]
    study, settings, args = parse_study(STUDY, None, words)
    assert run_grid(lambda: study.asked(settings), "x", args) == 0
    assert "Not known without the data: the data folder" in capsys.readouterr().out
    out.mkdir()
    (out / "plan.json").write_text('{"variants": null}')
    assert run_grid(lambda: study.asked(settings), "x", args) == 2
    assert "delete this file alone and start the experiment again" in capsys.readouterr().err
