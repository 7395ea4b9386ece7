"""What plan.json fixes before training: variances, margin, width, seeds; and what a plan says that it can see."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from studied import STUDY, TINY, run

from experiments import Study, crossed
from experiments.evidence.experiment import load_experiment
from experiments.evidence.power import Pilot, spread_line
from experiments.grids.command import run_grid
from experiments.grids.decided import Asked, decide
from experiments.grids.study_flags import parse_study
from experiments.shell.files import write_json

PLANNED = {"statistics": {"variances": "pooled", "margin": None, "until": None}, "seeds": [0, 1, 2]}
PLANNED |= {"seeds_planned": [0, 1, 2], "looks": []}


def refused(out: Path, *words: str) -> int:
    study, settings, args = parse_study(STUDY, None, [*TINY, *words, "--out", str(out)])
    return run_grid(lambda: study.asked(settings), "x", args)


def decided(out: Path, seeds: list[int], stored: dict[str, Any] | None = None, **asked: Any) -> dict[str, Any]:
    return decide(Asked(**asked), PLANNED if stored is None else stored, seeds, out, trained=True)


def test_what_is_not_trained_yet_is_planned_anew_and_what_is_stays(tmp_path: Path) -> None:
    fresh = decide(Asked(separate=True, margin=1.0), PLANNED, [3, 4], tmp_path, trained=False)
    assert fresh["statistics"] == {"variances": "separate", "margin": 1.0, "until": None}
    assert fresh["seeds_planned"] == [3, 4]
    assert decided(tmp_path, [0, 1, 2]) == {key: PLANNED[key] for key in ("statistics", "seeds_planned", "looks")}
    # A flag that is left out leaves what the plan has.
    assert decided(tmp_path, [0, 1], PLANNED | fresh)["statistics"] == fresh["statistics"]
    until = decide(Asked(until=2.0), {}, [0, 1, 2], tmp_path, trained=False)
    assert until["statistics"] == {"variances": "pooled", "margin": None, "until": 2.0, "stage": [0, 1, 2]}
    more = decided(tmp_path, [0, 1, 2, 3], PLANNED | until, max_cells=4)
    assert (more["statistics"]["stage"], more["seeds_planned"]) == ([0, 1, 2], [0, 1, 2])


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"separate": True}, "was planned without --separate-variances: .* or leave the flag out"),
        ({"until": 2.0}, "was planned without --until: that is fixed before training, and --until 2.0 comes behind it"),
        ({"max_cells": 4}, "--max-cells is the most that --until adds: add --until"),
    ],
)
def test_what_comes_behind_training_is_refused_by_name(asked: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        decided(tmp_path, [0, 1, 2], **asked)
    older = {"seeds": [0, 1, 2]}  # a plan of an earlier version, which was judged as the default now is
    with pytest.raises(ValueError, match=said):
        decided(tmp_path, [0, 1, 2], older, **asked)
    assert "seeds_planned" not in decided(tmp_path, [0, 1, 2, 3], older)


def test_another_width_and_a_seed_left_out_are_refused(tmp_path: Path) -> None:
    stored = PLANNED | {"statistics": {"variances": "pooled", "until": 2.0, "stage": [0, 1, 2]}}
    with pytest.raises(ValueError, match=r"was planned with --until 2\.0: .* --until 1\.0 comes behind it"):
        decided(tmp_path, [0, 1, 2], stored, until=1.0)
    with pytest.raises(ValueError, match="--only-seeds would leave out seeds that --until has measured or added"):
        decide(Asked(), stored, [0], tmp_path, trained=True, only_seeds=True)


def test_a_margin_behind_training_says_so(tmp_path: Path) -> None:
    before = PLANNED | decide(Asked(margin=1.0), {}, [0, 1, 2], tmp_path, trained=False)
    assert "margin_after" not in decided(tmp_path, [0, 1, 2], before, margin=1.0)["statistics"]
    after = decided(tmp_path, [0, 1, 2], before, margin=2.0)
    assert (after["statistics"]["margin"], after["statistics"]["margin_after"]) == (2.0, True)
    assert decided(tmp_path, [0, 1, 2], PLANNED | after)["statistics"]["margin_after"] is True


def test_reports_before_more_seeds_are_looks(tmp_path: Path) -> None:
    assert decided(tmp_path, [0, 1, 2, 3])["looks"] == []  # no report yet
    (tmp_path / "report.html").touch()
    assert decided(tmp_path, [0, 1, 2])["looks"] == []
    assert decided(tmp_path, [0, 1, 2, 3])["looks"] == [[0, 1, 2]]
    again = decided(tmp_path, [0, 1, 2, 3, 4], PLANNED | {"seeds": [0, 1, 2, 3], "looks": [[0, 1, 2]]})
    assert again["looks"] == [[0, 1, 2], [0, 1, 2, 3]]


def test_contradictions_are_refused_before_anything_is_read_and_measured(
    tmp_path: Path, in_process: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Study, "asked", lambda *_: pytest.fail("reads the data"))
    for words, said in [
        (["--seeds", "0", "1", "0"], r"--seeds must differ from one another, got \[0, 1, 0\]"),
        (["--until", "2.0", "--seeds", "0", "1", "2", "--only-seeds"], "--only-seeds would leave out seeds"),
        (["--until", "2.0", "--separate-variances"], "--until counts seeds by one variance of all variants"),
        (["--until", "2.0", "--seeds", "0", "1"], "at least 3, got --seeds 0 1: add seeds"),
        (["--max-cells", "4"], "add --until POINTS"),
        (["--pilot", str(tmp_path / "none")], "--pilot: .*none holds no experiment"),
    ]:
        assert refused(tmp_path / "out", *words) == 2
        assert re.search(said, capsys.readouterr().err.replace("\n", " "))
    assert in_process == []
    assert not (tmp_path / "out" / "plan.json").exists()


def test_a_plan_keeps_what_it_fixes_and_says_what_it_can_see(
    tmp_path: Path, in_process: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.grids.foresight.RECORDS", tmp_path / "experiments" / "results")
    out, words = tmp_path / "grid", ("--seeds", "0", "1", "2")
    run(out, *words, "--dry-run")
    assert "3 seeds: which differences can get a star is not known" in capsys.readouterr().out
    run(out, "--seeds", "0", "--dry-run")
    assert "1 seed: no star is possible; 3 are needed." in capsys.readouterr().out
    (tmp_path / "experiments" / "results").mkdir(parents=True)
    record = tmp_path / "experiments" / "results" / "width.md"
    lines = [spread_line("ablate_width_shapes", data, sd, 14) for data, sd in (("brain", 9.0), ("shapes", 1.7))]
    record.write_text("\n".join(lines))
    plan = run(out, *words, "--margin", "1.5")
    # 2 variants: one comparison, 4 degrees of freedom of the plan's own.
    said = capsys.readouterr().out
    assert "sd 1.70 points (14 degrees of freedom), of the record experiments/results/width.md)" in said
    shares = [int(share) for share in re.findall(r"(\d+) %", said.partition("3 seeds: ")[2])[:2]]
    assert 60 <= shares[0] <= 80 and 12 <= shares[1] <= 28
    assert plan["statistics"] == {"variances": "pooled", "margin": 1.5, "until": None}
    assert (plan["seeds_planned"], plan["looks"]) == ([0, 1, 2], [])
    hashes = [variant["hash"] for variant in plan["variants"].values()]

    own = Pilot.of(load_experiment(out))
    assert own is not None and own.df == 2
    run(out, "--seeds", "3", "--dry-run")
    assert f"sd {own.sd:.2f} points (2 degrees of freedom), of the finished cells of {out})" in capsys.readouterr().out
    write_json(out / "plan.json", json.loads((out / "plan.json").read_text()) | {"experiment": "pilot"})
    fixed = run(tmp_path / "new", "--seeds", "0", "--pilot", str(out), "--separate-variances")
    assert [variant["hash"] for variant in fixed["variants"].values()] == hashes  # the statistics are in none
    assert fixed["statistics"]["variances"] == "separate"
    record.write_text("<!-- spread: {} -->")
    assert refused(tmp_path / "other", "--dry-run") == 2
    assert "width.md: the line <!-- spread: --> lacks experiment" in capsys.readouterr().err


def test_a_design_with_several_factors_counts_its_effects(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.grids.foresight.RECORDS", tmp_path)
    (tmp_path / "a.md").write_text(spread_line("ablate_width_shapes", "shapes", 1.7, 14))
    study = replace(
        STUDY, variants=crossed(width=(2, 4), dropout=(0.0, 0.1, 0.2, 0.3)), baseline="width 2, dropout 0.0"
    )
    run(tmp_path / "grid", "--dry-run", study=study)
    assert (
        "3 seeds: 5 points have a 64 % chance of a star, 3 points 19 %, on the same test images"
        in capsys.readouterr().out
    )
