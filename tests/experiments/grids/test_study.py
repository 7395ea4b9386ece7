"""A study on any data: its bases, the flags that change them, and what its plan says of both."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from studied import STUDY, TINY, asked

from datamodules.base import Loading, SegmentationDataModule, SegmentationDataset
from datamodules.shapes import Shapes
from experiments import Match, Study, cpu_scale, crossed, full_size
from experiments.grids.fairness import check_fair
from experiments.grids.settings import Flag
from experiments.grids.study_flags import parse_study
from experiments.shell.catalogue import DATAMODULES
from lightning_modules.fcn import FCNModule
from lightning_modules.unet import UNetModule


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


def test_a_quick_look_is_shorter_and_says_so_in_a_folder_of_its_own() -> None:
    changed, settings, args = parse_study(STUDY, None, ["--quick"])
    grid, whole = changed.asked(settings), asked()
    assert (args.seeds, changed.experiment(settings), grid.name) == ([0, 1, 2], *["ablate_width_quick"] * 2)
    lengths = [of.runs["width 2"].trainer["max_epochs"] for of in (grid, whole)]
    assert lengths == [3, 12] and grid.runs["width 2"].trainer["check_val_every_n_epoch"] in (1, 3)
    assert "A first look with --quick, which set the epochs to a quarter: after" in grid.scale_note
    assert "Set by flags" not in grid.scale_note and "3 epochs" in grid.scale_note
    set_too = changed.asked(parse_study(STUDY, None, ["--quick", "--base.lr", "1e-3"])[1]).scale_note
    assert set_too.endswith("Set by flags: lr 0.001 (the study has 0.005).")
    assert parse_study(STUDY, None, ["--quick", "--seeds", "7"])[2].seeds == [7]
    assert parse_study(STUDY, None, [])[2].seeds == [0, 1, 2, 3, 4]
    assert parse_study(replace(STUDY, seeds=2), None, [])[2].seeds == [0, 1]


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
        (["--base.lr", "1e-3", "--tune", "lr", "1e-3", "1e-2"], "--base.lr and --tune lr set the same: leave one of"),
        (["--tune", "lr", "1e-3", "1e-3"], "at least two values of lr, all different"),
        (["--trainer.max_epochs", "3", "--epochs", "2"], "--epochs and --trainer.max_epochs are one setting"),
        (["--quick", "--epochs", "2"], "--quick says how long to train: leave out --epochs"),
        (["--quick", "--full-size"], "ablate_width has no full size"),
        (["--trainer.max_epochs", "0"], "--trainer.max_epochs must be at least 1, got 0"),
        (["--trainer.limit_val_batches", "0", "--tune", "lr", "1", "2"], "a trial must end with a validation"),
    ],
)
def test_flags_that_the_study_cannot_take_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        asked(*words)


def test_a_flag_for_what_the_study_tunes_is_refused() -> None:
    study = replace(STUDY, tune={"lr": (1e-3, 1e-2)})
    with pytest.raises(
        ValueError, match=r"--base\.lr sets what ablate_width tunes, lr: leave it out, or give --tune lr"
    ):
        study.ablation(hparams={"lr": 1e-4})
    with pytest.raises(ValueError, match="--weights and --tune weights set the same"):
        STUDY.ablation(weights="x", tune={"weights": ("y", "z")})
    assert study.ablation(hparams={"weight_decay": 0.0}).tune == {"lr": (1e-3, 1e-2)}


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


def test_the_plan_states_the_epochs_that_are_trained(camvid_root: Path) -> None:
    folder = ("--data", "folder", "--root", str(camvid_root))
    for flag in ("--epochs", "--trainer.max_epochs"):
        grid = asked(*folder, flag, "7")
        assert "7 epochs, as asked for, make" in grid.scale_note
        assert grid.runs["width 2"].trainer["max_epochs"] == 7
        assert 7 % grid.runs["width 2"].trainer["check_val_every_n_epoch"] == 0
    with pytest.raises(ValueError, match=r"--data\.batch_size must be at most the \d+ training images, got 64"):
        asked(*folder, "--data.batch_size", "64")
    grid = asked("--data", "shapes", "--data.size", "64", "--scale", "0.5", "--tune", "lr", "1", "2")
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
