"""A study on any data: its bases, the flags that change them, and what its plan says of both."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from interrupt import QUIET

from datamodules.base import Loading, SegmentationDataModule, SegmentationDataset
from datamodules.shapes import Shapes
from experiments import Match, Study, cpu_scale, crossed, full_size
from experiments.grids import command, tuning
from experiments.grids.ablation import Ablation, Measured
from experiments.grids.cells import PlannedCell
from experiments.grids.command import run_grid
from experiments.grids.cost import Cost
from experiments.grids.fairness import check_fair
from experiments.grids.plan import COSTS
from experiments.grids.settings import Flag
from experiments.grids.study_flags import parse_study
from experiments.runs.training import train
from experiments.shell.catalogue import DATAMODULES
from lightning_modules.fcn import FCNModule
from lightning_modules.unet import UNetModule

STUDY = Study(
    name="ablate_width",
    question="Does width help?",
    baseline="width 2",
    variants=crossed(width=(2, 4)),
    base=cpu_scale(UNetModule, depth=1, lr=5e-3, exceptions={"brain": {"depth": 2, "data.crop": 64}}),
)
TINY = ["--data", "shapes", "--data.size", "24", "--data.length", "4", "--data.batch_size", "2", "--epochs", "1"]


def asked(*words: str, study: Study = STUDY) -> Ablation:
    changed, settings, _ = parse_study(study, None, words)
    return changed.asked(settings)


def test_numbers_are_named_with_their_factor_and_words_stand_alone() -> None:
    assert list(crossed(width=(4, 8), dropout=(0.0, 0.2))) == [
        "width 4, dropout 0.0",
        "width 4, dropout 0.2",
        "width 8, dropout 0.0",
        "width 8, dropout 0.2",
    ]
    assert list(crossed(upsample=("nearest",), skips=("none",))) == ["nearest+none"]
    assert list(crossed(upsample=("nearest",), **{"data.crop": (64, 96)})) == ["nearest, crop 64", "nearest, crop 96"]


def test_a_study_takes_a_folder_whose_base_follows_from_its_images(camvid_root: Path) -> None:
    grid = asked("--data", "folder", "--root", str(camvid_root))
    assert grid.name == "ablate_width_folder"
    assert grid.data == "folder"
    assert "Road scenes" not in grid.data_note
    assert grid.data_note.startswith("Images of one's own")
    assert "The settings follow from the data by rule." in grid.scale_note
    assert grid.runs == asked("--data", "FolderDataModule", f"--data.root={camvid_root}").runs
    check_fair(grid)


def test_what_a_data_set_has_of_its_own_comes_before_the_rule_and_after_the_flags() -> None:
    run = STUDY.runs("brain")["width 2"]
    assert (run.hparams["depth"], run.data["crop"], run.trainer["max_epochs"]) == (2, 64, 12)
    assert run.hparams["class_weights"] == (0.5, 3.0, 1.0, 1.0)
    run = asked("--data.crop", "80").runs["width 2"]
    assert (run.hparams["depth"], run.data["crop"]) == (2, 80)


class WholeDataModule(SegmentationDataModule):
    """Images that are not cropped, one at a time."""

    num_classes = 3
    loading = Loading(crop=32, batch_size=1)
    hidden = ("scale", "batch_size", "zoom", "crop")

    def __init__(self) -> None:
        super().__init__()
        self.class_names, self.palette = ["background", "disc", "square"], [(0, 0, 0), (1, 1, 1), (2, 2, 2)]

    def load(self, split: str) -> SegmentationDataset:
        return Shapes(split, 2, 32)


def test_a_data_set_need_not_take_a_crop_a_zoom_or_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATAMODULES, "whole", WholeDataModule)
    grid = asked("--data", "whole")
    assert grid.runs["width 2"].data == {}
    assert grid.scale_note.startswith("CPU scale: 150 epochs")
    check_fair(grid)
    with pytest.raises(ValueError, match="leaves a crop of 3 x 3 pixels"):
        asked("--data", "whole", "--scale", "0.1")


def test_overrides_are_part_of_the_hash_and_named() -> None:
    plain = asked(*TINY)
    grid = asked(*TINY, "--base.lr", "1e-3", "--trainer.precision", "bf16-mixed")
    run = grid.runs["width 4"]
    assert (run.hparams["lr"], run.trainer["precision"]) == (1e-3, "bf16-mixed")
    assert run.hash != plain.runs["width 4"].hash
    assert "lr 0.001 (the study has 0.005)" in grid.scale_note
    assert "trainer.precision bf16-mixed" in grid.scale_note
    assert "data.size 24" in grid.scale_note
    assert asked(*TINY, "--data.crop", "[16,16]").runs["width 2"].data["crop"] == (16, 16)
    # As large as the default of the class, and yet asked for.
    assert asked("--data.crop", "160").runs["width 2"].data["crop"] == 160


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "fodler"], "--data must be one of .*folder.*, got 'fodler'; did you mean folder"),
        (["--data", "folder"], "--data.root is required"),
        (["--root", "x"], "--root is for data in a folder, got --data brain"),
        (["--base.lrr", "3"], "unrecognized arguments: --base.lrr 3; did you mean --base.lr?"),
        (["--seeds", "x"], "--seeds expects a whole number of at least 0 and less than 2.*, got 'x'"),
        (["--devices", "y"], "--devices expects auto or a whole number of at least 1, got 'y'"),
        (["--save-every", "0"], "--save-every expects a number above 0, got '0'"),
        (["--tune", "lr", "3"], "--tune takes a hyperparameter and at least two values, got 'lr 3'"),
        (["--tune", "norn", "3", "4"], "got 'norn'; did you mean norm?"),
        (["--tune", "norm", "batch", "foo"], "--tune.norm must be one of none, batch, group, got 'foo'"),
        (["--tune", "lr", "1", "2", "--tune", "lr", "3", "4"], "--tune lr stands there twice"),
        (["--data", "folder", "--root", "a", "--data.root", "b"], "--root and --data.root are one flag"),
        (["--seeds", "4294967296"], "--seeds expects a whole number of at least 0 and less than 2"),
    ],
)
def test_wrong_flags_are_refused_with_the_right_one(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse_study(STUDY, None, words)
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--base.width", "8"], "--base.width is for studies whose variants share width"),
        (["--full-size"], "ablate_width has no full size"),
        (["--scale", "0.1"], "leaves a crop of 6 x 6 pixels"),
        (["--tune", "width", "2", "4"], "tune names 'width', which the variants differ in"),
        (["--tune", "lr", "1e-3", "1e-3"], "at least two values of lr, all different"),
        (["--trainer.max_epochs", "3", "--epochs", "2"], "--epochs and --trainer.max_epochs are one setting"),
        (["--trainer.max_epochs", "0"], "--trainer.max_epochs must be at least 1, got 0"),
        (["--trainer.limit_val_batches", "0", "--tune", "lr", "1", "2"], "a trial must end with a validation"),
    ],
)
def test_flags_that_the_study_cannot_take_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        asked(*words)


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


def test_a_matched_arm_keeps_what_was_chosen_for_it() -> None:
    study = Study(
        name="x",
        question="?",
        baseline="with",
        variants=dict(zip(("with", "none"), crossed(skips=("concat", "none")).values(), strict=True)),
        matched={"none": Match(of="parameters", like="with", by="width", tolerance=1.0)},
        base=cpu_scale(UNetModule, depth=1, width=8),
    )
    with pytest.raises(ValueError, match=r"--base\.width is for studies whose variants share width"):
        study.ablation("shapes", hparams={"width": 4})


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


def test_the_plan_states_the_epochs_that_are_trained(camvid_root: Path) -> None:
    folder = ("--data", "folder", "--root", str(camvid_root))
    for flag in ("--epochs", "--trainer.max_epochs"):
        grid = asked(*folder, flag, "7")
        assert "7 epochs, as asked for, make" in grid.scale_note
        assert grid.runs["width 2"].trainer["max_epochs"] == 7
        assert 7 % grid.runs["width 2"].trainer["check_val_every_n_epoch"] == 0
    with pytest.raises(ValueError, match=r"--data\.batch_size must be at most the \d+ training images, got 64"):
        asked(*folder, "--data.batch_size", "64")
    grid = asked(
        "--data", "shapes", "--data.size", "64", "--scale", "0.5", "--base.lr", "5e-3", "--tune", "lr", "1", "2"
    )
    assert "Set by flags: data.size 32, data.crop (32, 32)." in grid.scale_note


def test_levels_that_read_alike_and_names_of_files_are_refused() -> None:
    with pytest.raises(ValueError, match="levels that read differently"):
        crossed(a=(1, "1"))
    with pytest.raises(ValueError, match="a variant cannot be called 'tuning'"):
        Study(**{**vars(STUDY), "baseline": "tuning", "variants": {"tuning": {}, "b": {"width": 8}}}).ablation("shapes")
    with pytest.raises(ValueError, match="ShapesDataModule takes no siez: it takes size, length"):
        STUDY.runs("shapes", siez=3)


def test_a_flag_of_the_study_makes_another_study_of_it() -> None:
    deep = Flag(
        name="--deeper",
        help="a network with more levels",
        change=lambda study, levels: Study(
            **{**vars(study), "name": "ablate_width_deep", "base": cpu_scale(UNetModule, depth=levels)}
        ),
        read=int,
    )
    study = Study(**{**vars(STUDY), "flags": (deep,)})
    assert asked(*TINY, study=study).runs["width 2"].hparams["depth"] == 1
    grid = asked(*TINY, "--deeper", "3", study=study)
    assert (grid.name, grid.runs["width 2"].hparams["depth"]) == ("ablate_width_deep_shapes", 3)


def test_full_size_is_the_papers_recipe_on_whole_images() -> None:
    study = Study(
        **{**vars(STUDY), "base": cpu_scale(FCNModule), "full_size": full_size(FCNModule, data={"batch_size": 1})}
    )
    run = next(iter(Study(**{**vars(study), "variants": {"width 2": {}}}).runs("brain", full_size=True).values()))
    assert (run.data["batch_size"], run.data["crop"], run.hparams.get("optimizer")) == (1, 192, None)


# Grids that are run, each cell in this process.


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cells that were trained, by folder and seed."""
    trained: list[str] = []

    def run_cells(cells: Any, *args: Any, **kwargs: Any) -> list[PlannedCell]:
        for cell in cells:
            if cell.result is None:
                train(cell.run, cell.folder, test=cell.tests, **QUIET)
                trained.append(f"{cell.variant} {cell.run.seed}")
        return []

    monkeypatch.setattr(command, "run_cells", run_cells)
    monkeypatch.setattr("experiments.reports.write.write_report", lambda out: None)
    return trained


def run(out: Path, *words: str, study: Study = STUDY) -> dict[str, Any]:
    study, settings, args = parse_study(study, None, [*TINY, *words, "--out", str(out)])
    assert run_grid(lambda: study.asked(settings), study.experiment(settings), args) == 0
    plan: dict[str, Any] = json.loads((out / "plan.json").read_text()) if (out / "plan.json").exists() else {}
    return plan


def test_seeds_add_up_and_a_dry_run_keeps_its_measurements(
    tmp_path: Path, in_process: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "grid"
    assert run(out, "--dry-run") == {}
    assert [path.name for path in out.iterdir() if path.name != ".lock"] == [COSTS]
    monkeypatch.setattr("experiments.grids.plan.measure", lambda *a, **k: pytest.fail("measured again"))
    assert run(out, "--seeds", "0")["seeds"] == [0]
    assert not (out / COSTS).exists()
    assert run(out, "--seeds", "1")["seeds"] == [0, 1]
    assert "seeds 0 of" in capsys.readouterr().out
    assert in_process == ["width 2 0", "width 4 0", "width 2 1", "width 4 1"]
    assert run(out, "--seeds", "1", "--only-seeds")["seeds"] == [1]
    assert run(out, "--seeds", "1")["seeds"] == [0, 1]  # what was left out once is not lost

    # Times are of a number of threads: with another one they are measured again.
    monkeypatch.setattr(
        "experiments.grids.plan.measure", lambda *a, **k: {name: Cost(9.0, 1.0) for name in STUDY.variants}
    )
    run(out, "--threads", "2", "--dry-run")
    assert json.loads((out / COSTS).read_text())["variants"]["width 2"]["step_seconds"] == 9.0
    (out / COSTS).unlink()
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


def test_every_variant_gets_the_same_trials_and_its_best(tmp_path: Path, in_process: list[str]) -> None:
    out = tmp_path / "grid"
    tune = ("--tune", "lr", "1e-3", "1e-2", "--seeds", "0")
    plan = run(out, *tune)
    trials = plan["tuning"]["trials"]
    assert plan["tuning"]["seed"] == tuning.SEED
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
