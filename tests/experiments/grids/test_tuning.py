"""Equal tuning: every variant gets the same trials, on validation alone, and keeps its best."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from studied import STUDY, TINY, asked, run

from experiments import Match, Study, cpu_scale, crossed
from experiments.evidence.deviations import statements
from experiments.grids import tuning
from experiments.grids.command import run_grid
from experiments.grids.study_flags import parse_study
from lightning_modules.unet import UNetModule


@pytest.mark.parametrize("name", ["data.length", "trainer.max_epochs", "module", "unknown"])
def test_a_trial_may_not_change_data_or_length(name: str) -> None:
    study = Study(
        name="x",
        question="?",
        baseline="a",
        variants={"a": {}, "b": {"width": 4}},
        base=STUDY.base,
        tune={name: (1, 2)},
    )
    with pytest.raises(ValueError, match="touch the test split" if name != "unknown" else "no hyperparameter of"):
        study.ablation("shapes")


def test_what_changes_a_size_is_not_tuned_where_arms_are_matched() -> None:
    study = Study(
        name="x",
        question="?",
        baseline="concat",
        variants=crossed(skips=("concat", "none")),
        matched={"none": Match(of="parameters", like="concat", tolerance=1.0)},
        base=cpu_scale(UNetModule, depth=1, width=8, match_parameters=True),
    )
    study.ablation("shapes", tune={"lr": (1e-3, 1e-2)})
    with pytest.raises(ValueError, match="'width', which changes a network's size, and arms of this study are matched"):
        study.ablation("shapes", tune={"width": (4, 8)})


def test_every_variant_gets_the_same_trials_and_its_best(
    tmp_path: Path, in_process: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "grid"
    tune = ("--tune", "lr", "1e-3", "1e-2", "--seeds", "0")
    plan = run(out, *tune)
    trials = plan["tuning"]["trials"]
    assert plan["tuning"]["seed"] == tuning.SEED
    said = " ".join([capsys.readouterr().out, *statements(plan)])  # of a number that says nothing to a reader
    assert "a seed of its own that no score" in said and str(tuning.SEED) not in said
    assert plan["scale_note"].endswith("Each variant has its best lr of 0.001, 0.01 on validation.")
    assert len(in_process) == 4 + 2
    for variant in ("width 2", "width 4"):
        folders = [out / "tuning" / variant / f"lr {lr}" / f"seed{tuning.SEED}" for lr in (0.001, 0.01)]
        found = [json.loads((folder / "result.json").read_text()) for folder in folders]
        assert [trial["miou"] for trial in trials[variant]] == [result["val"]["miou"] for result in found]
        assert all(result["test"] == {} for result in found)
        assert not any((folder / "per_image.npz").exists() for folder in folders)
        best = max(trials[variant], key=lambda trial: trial["miou"])["values"]
        assert plan["tuning"]["chosen"][variant] == best
        stored = json.loads((out / variant / "seed0" / "run.json").read_text())
        assert stored["hparams"]["lr"] == best["lr"]
    in_process.clear()
    assert run(out, *tune)["tuning"] == plan["tuning"]
    assert in_process == []

    # Refused before a trial: other values, and another length.
    for words in (("--tune", "lr", "1e-3", "5e-2"), (*tune, "--data.length", "6")):
        study, settings, args = parse_study(STUDY, None, [*TINY, *words, "--out", str(out)])
        assert run_grid(lambda study=study, settings=settings: study.asked(settings), "x", args) == 2  # type: ignore[misc]
    assert in_process == [] and not [*out.rglob("*.old*")]

    touched = out / "tuning" / "width 2" / "lr 0.01" / f"seed{tuning.SEED}"
    shutil.copy(out / "width 2" / "seed0" / "per_image.npz", touched)
    study, settings, args = parse_study(STUDY, None, [*TINY, *tune, "--out", str(out)])
    with pytest.raises(ValueError, match=r"lr 0\.01.* holds scores of the test split, which a trial must not touch"):
        tuning.tuned(study.asked(settings), tuning.trials(study.asked(settings), out))
    args.seeds = [tuning.SEED]
    assert run_grid(lambda: study.asked(settings), "x", args) == 2  # the seed of the trials is used for nothing else


def test_an_untuned_grid_is_not_tuned_in_its_folder(tmp_path: Path, in_process: list[str]) -> None:
    out = tmp_path / "grid"
    run(out, "--seeds", "0")
    in_process.clear()
    study, settings, args = parse_study(STUDY, None, [*TINY, "--tune", "lr", "1e-3", "1e-2", "--out", str(out)])
    assert run_grid(lambda: study.asked(settings), "x", args) == 2
    assert in_process == []

    plan = json.loads((out / "plan.json").read_text())
    for damaged in ({"seeds": None}, {"seeds": [0, 0]}, {"variants": None}, {"device": 3}):
        (out / "plan.json").write_text(json.dumps(plan | damaged))
        study, settings, args = parse_study(STUDY, None, [*TINY, "--seeds", "0", "--out", str(out)])
        assert run_grid(lambda study=study, settings=settings: study.asked(settings), "x", args) == 2  # type: ignore[misc]


def test_trials_have_folders_of_their_own(tmp_path: Path) -> None:
    values = {"lr": (0.001, 0.0010000001), "weights": ("a/b", "a-b", "x" * 300)}
    grid = replace(asked(*TINY), tune=values)
    folders = [cell.folder for cell in tuning.trials(grid, tmp_path)["width 2"]]
    assert len({*folders}) == 6
    assert all(len(part.encode()) <= 120 for folder in folders for part in folder.relative_to(tmp_path).parts)


def test_a_trial_that_diverged_is_not_taken_and_not_tried_again(tmp_path: Path) -> None:
    grid = asked(*TINY, "--tune", "lr", "1e-3", "1e30")
    planned = tuning.trials(grid, tmp_path)
    for cells in planned.values():
        good, bad = cells
        good.folder.mkdir(parents=True)
        (good.folder / "result.json").write_text(json.dumps({"hash": good.run.hash, "val": {"miou": 0.25}}))
        bad.process = type("Process", (), {"returncode": 65})()  # type: ignore[assignment]
        assert tuning.mark_diverged([bad]) == []
    assert tuning.to_do(planned) == []
    good = planned["width 4"][0].folder / "result.json"
    whole = good.read_text()
    good.write_text(whole.replace("0.25", "null"))
    with pytest.raises(ValueError, match=r"result\.json is damaged: val\.miou must be a number from 0 to 1, got None"):
        tuning.tuned(grid, planned)
    good.write_text(whole)
    tuned = tuning.tuned(grid, planned)
    assert {run.hparams["lr"] for run in tuned.runs.values()} == {1e-3}
    assert tuned.tuning["trials"]["width 2"][1] == {"values": {"lr": 1e30}, "miou": None}
    crashed = planned["width 2"][1]
    crashed.process = type("Process", (), {"returncode": 1})()  # type: ignore[assignment]
    assert tuning.mark_diverged([crashed]) == [crashed]
    for cell in (cells[0] for cells in planned.values()):
        (cell.folder / "result.json").unlink()
        tuning.write_json(cell.folder / tuning.DIVERGED, {"hash": cell.run.hash})
    with pytest.raises(ValueError, match="every trial of width 2 ended with NaN or infinity: try other values"):
        tuning.tuned(grid, planned)
