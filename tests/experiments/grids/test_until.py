"""--until: stage one measures the spread, stage two adds the seeds that it asks for, and no more on a second call."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from studied import STUDY, TINY, run

from experiments.evidence.deviations import LOOKED, planned_seeds
from experiments.evidence.experiment import load_experiment
from experiments.evidence.power import Contrasts, Pilot, half_width
from experiments.evidence.schema import StoredPlan
from experiments.grids import command
from experiments.grids.command import run_grid
from experiments.grids.study_flags import parse_study


@pytest.fixture
def stage(tmp_path: Path, in_process: list[str]) -> Path:
    """A finished grid of two variants and three seeds."""
    run(tmp_path / "pilot")
    in_process.clear()
    return tmp_path / "pilot"


def taken(stage: Path, out: Path) -> Path:
    """A folder with the cells and without a plan, in which the same cells need no training."""
    for variant in STUDY.variants:
        shutil.copytree(stage / variant, out / variant)
    return out


def width(stage: Path, seeds: int) -> float:
    """The half-width of an interval with so many seeds, by the spread that is there."""
    spread = Pilot.of(load_experiment(stage))
    assert spread is not None and spread.df == 2
    plan = load_experiment(stage).plan
    return half_width(spread.sd, 2, seeds, Contrasts.of(plan).level(seeds, 2))


def test_stage_two_adds_what_the_width_takes_and_a_second_call_continues(
    stage: Path, in_process: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    until = round(1.02 * width(stage, 5), 4)
    out, words = taken(stage, tmp_path / "grid"), ("--until", str(until), "--pilot", str(stage))
    run(out, *words, "--dry-run")
    assert f"--until {until} will take 5 seeds, 4 cells after the 3 seeds of stage one" in capsys.readouterr().out
    plan = run(out, *words)
    said = capsys.readouterr().out
    assert f"points (2 degrees of freedom): ± {until} points need 5 seeds: 4 more cells (seeds 3 4), about" in said
    assert in_process == ["width 2 3", "width 4 3", "width 2 4", "width 4 4"]
    assert (plan["seeds"], plan["statistics"]["stage"]) == ([0, 1, 2, 3, 4], [0, 1, 2])
    experiment = load_experiment(out)
    (row,) = experiment.comparisons.values()
    assert (row.df, row.seeds) == (2, 5)
    assert 100 * (row.high - row.low) / 2 <= until

    # Stopped in stage two: the variance stays that of stage one, and so does the number of seeds.
    shutil.rmtree(out / "width 4" / "seed4")
    in_process.clear()
    again = run(out, "--until", str(until))
    assert (in_process, again["seeds"]) == (["width 4 4"], [0, 1, 2, 3, 4])
    assert "need 5 seeds, and 5 are there" in capsys.readouterr().out
    StoredPlan.model_validate(again)


def test_most_cells_are_whole_seeds_and_what_they_leave_is_said(
    stage: Path, in_process: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    until = round(1.01 * width(stage, 9), 4)
    out = taken(stage, tmp_path / "grid")
    plan = run(out, "--until", str(until), "--max-cells", "3")
    left = f"{width(stage, 4):.2g}"
    assert f"need 9 seeds; --max-cells 3 allows 4, which leave ± {left} points: 2 more cells" in capsys.readouterr().out
    assert plan["seeds"] == [0, 1, 2, 3]
    assert plan["statistics"]["needed"] == 9
    assert in_process == ["width 2 3", "width 4 3"]
    few = run(taken(stage, tmp_path / "few"), "--until", str(until), "--max-cells", "1")
    assert few["seeds"] == [0, 1, 2]
    assert "--max-cells 1 allows 3, which leave" in capsys.readouterr().out


def test_a_width_that_stage_one_has_adds_nothing(
    stage: Path, in_process: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = run(taken(stage, tmp_path / "grid"), "--until", "100")
    assert (plan["seeds"], in_process) == ([0, 1, 2], [])
    assert "± 100.0 points need 3 seeds, and 3 are there" in capsys.readouterr().out


def test_nothing_is_added_before_stage_one_is_finished(
    stage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = taken(stage, tmp_path / "grid")
    shutil.rmtree(out / "width 4" / "seed1")

    def run_cells(cells: Any, *args: Any, **kwargs: Any) -> Any:
        (failed,) = [cell for cell in cells if cell.result is None]
        failed.error = "x"
        return [failed]

    monkeypatch.setattr(command, "run_cells", run_cells)
    study, settings, args = parse_study(STUDY, None, [*TINY, "--until", "0.001", "--out", str(out)])
    assert run_grid(lambda: study.asked(settings), "x", args) == 3
    said = capsys.readouterr().out
    assert "--until 0.001 adds no seed before stage one is finished: it lacks width 4 seed 1" in said


@pytest.mark.usefixtures("in_process")
def test_images_and_numbers_beyond_a_plan_are_named(
    stage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    family = SimpleNamespace(sd=0.01, df=2, groups=12)
    monkeypatch.setattr("experiments.grids.until.load_experiment", lambda out: SimpleNamespace(family=family))
    out = taken(stage, tmp_path / "grid")
    run(out, "--until", "3.0", "--max-cells", "2")
    assert "wider by what other images would change, which no seed narrows" in capsys.readouterr().out
    study, settings, args = parse_study(
        STUDY, None, [*TINY, "--until", "0.01", "--out", str(taken(stage, tmp_path / "more"))]
    )
    assert run_grid(lambda: study.asked(settings), "x", args) == 2
    assert "and a plan holds 10,000 cells: add --max-cells N" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": [0, 1, 2]}, ""),
        ({}, "3 seeds planned, 6 used."),
        ({"looks": [[0, 1, 2]]}, f"3 seeds planned, 6 used, looked at in between. {LOOKED}"),
        ({"seeds_planned": [0]}, "1 seed planned, 6 used."),
        ({"seeds": [1, 3]}, "3 seeds planned, 2 used: without seeds 0, 2."),
        ({"needed": 6}, "3 seeds planned for the variance, 6 used, as --until 2.0 asks: stage one fixes "),
        ({"needed": 9}, "3 seeds planned for the variance, 6 used, of 9 that --until 2.0 asks: "),
        ({"seeds_planned": [0, 1], "looks": [[0, 1]]}, "2 seeds planned, 6 used."),
        ({"seeds_planned": [0], "looks": [[0], [0, 1, 2]]}, "1 seed planned, 6 used, looked at in between. If"),
        ({"needed": 5, "looks": [[0, 1, 2]]}, "6 used, of which --until 2.0 asks 5, looked at in between: "),
    ],
)
def test_a_report_says_how_many_seeds_were_planned(changes: dict[str, Any], said: str) -> None:
    plan: dict[str, Any] = {"seeds_planned": [0, 1, 2], "seeds": [0, 1, 2, 3, 4, 5], "looks": []} | changes
    if "needed" in changes:
        plan["statistics"] = {"until": 2.0, "stage": [0, 1, 2], "needed": changes["needed"]}
    sentence = planned_seeds(plan)
    assert said in sentence and ("looked" in said) == ("looked" in sentence) and bool(said) == bool(sentence)
    del plan["seeds_planned"]
    assert planned_seeds(plan) == ""
