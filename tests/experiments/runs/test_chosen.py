"""What `train` chooses for images of one's own, what flags leave of it, and how a run goes on with it."""

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.folder import FolderDataModule
from datamodules.scale import scale_by_rule
from experiments.grids.bases import cpu_scale
from experiments.runs.chosen import FROM_SCRATCH, by_data, flag, word
from experiments.runs.run import Run
from experiments.train import complete, main, parse_run
from lightning_modules.unet import UNetModule

SMALL = ("--model.width", "8", "--model.depth", "2")


@pytest.fixture(autouse=True)
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """40 images of 64 x 96 pixels with 5 % foreground, which is a little lighter than the noise around it."""
    root, rng = tmp_path / "own", np.random.default_rng(0)
    for part in ("images", "masks", "splits"):
        (root / part).mkdir(parents=True)
    (root / "classes.txt").write_text("ground\nspot\n")
    names = [f"n{index:02}" for index in range(40)]
    y, x = np.mgrid[:64, :96]
    for name in names:
        image, mask = rng.normal(110, 25, (64, 96, 3)), np.zeros((64, 96), dtype=np.uint8)
        for _ in range(2):
            mask[(y - rng.integers(8, 56)) ** 2 + (x - rng.integers(8, 88)) ** 2 < 49] = 1
        image[mask == 1] += (25, 10, -15)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / f"images/{name}.png")
        Image.fromarray(mask).save(root / f"masks/{name}.png")
    for split, of_split in (("train", names[:28]), ("val", names[28:34]), ("test", names[34:])):
        (root / f"splits/{split}.txt").write_text("\n".join(of_split))
    return root


@pytest.fixture
def planned(folder: Path) -> Callable[..., Run]:
    """The run of these flags, completed."""

    def make(*flags: str) -> Run:
        run, args = parse_run(["--data", "folder", "--data.root", str(folder), *flags])
        chosen = complete(run, args)
        return chosen.run if chosen else run

    return make


def test_settings_that_nobody_states_follow_from_the_images(planned: Callable[..., Run], folder: Path) -> None:
    run, scale = planned(), scale_by_rule(FolderDataModule, {"root": str(folder)})
    assert run.data["crop"] == (64, 96) == scale.data["crop"]
    assert run.data["zoom"] == (0.75, 1.5) and run.data["batch_size"] == 4
    assert run.trainer["max_epochs"] == scale.epochs == 42
    assert run.trainer["check_val_every_n_epoch"] == 14
    assert run.hparams["class_weights"] == "median-frequency"
    assert run.hparams["norm"] == "batch"
    assert {name: run.hparams[name] for name in FROM_SCRATCH} == FROM_SCRATCH
    assert run.hash == planned().hash


def test_a_network_is_narrower_on_a_cpu_unless_it_begins_with_weights_or_a_flag_says(
    planned: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert planned().hparams["width"] == 16
    assert planned("--model.width", "32").hparams["width"] == 32
    run = replace(planned(), hparams={"init_from": "last.ckpt"})
    assert "width" not in by_data(run, {"init_from", "data.root"}).settings
    assert planned("--settings", "paper").hparams["width"] == 64
    assert planned("--model", "deeplabv3plus").hparams.get("width", 1.0) == 1.0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert planned().hparams["width"] == 64


def test_a_study_has_the_same_scale_and_recipe(planned: Callable[..., Run], folder: Path) -> None:
    study, reason = cpu_scale(UNetModule, norm="batch").run(FolderDataModule, {"root": str(folder)})
    run = planned()
    for part in ("hparams", "data", "trainer"):
        theirs = getattr(study, part)
        assert {name: getattr(run, part)[name] for name in theirs} == theirs
    assert reason.startswith("The settings follow from the data by rule.")


@pytest.mark.parametrize(
    ("flags", "kept", "chosen"),
    [
        ("--data.crop 48", {"data.crop": 48}, {"data.batch_size": 4}),
        ("--data.scale 0.5", {"data.scale": 0.5}, {"data.crop": [32, 48]}),
        ("--data.batch_size 7", {"data.batch_size": 7}, {"trainer.max_epochs": 75}),
        ("--trainer.max_epochs 10", {"trainer.max_epochs": 10}, {"trainer.check_val_every_n_epoch": 2}),
        ("--trainer.check_val_every_n_epoch 5", {"trainer.check_val_every_n_epoch": 5}, {"trainer.max_epochs": 42}),
        ("--trainer.limit_train_batches 3", {"trainer.limit_train_batches": 3}, {"trainer.max_epochs": 42}),
        ("--model.class_weights null", {"hparams.class_weights": None}, {"hparams.norm": "batch"}),
        ("--model.class_weights [1,9]", {"hparams.class_weights": [1.0, 9.0]}, {"hparams.norm": "batch"}),
        ("--model.norm none", {"hparams.norm": "none"}, {"hparams.lr": 2e-3}),
        ("--model.lr 1e-4", {"hparams.lr": 1e-4}, {"hparams.optimizer": "adamw"}),
        ("--model.average none", {}, {"hparams.optimizer": "adamw"}),
        ("--model.optimizer adamw", {"hparams.optimizer": "adamw"}, {"hparams.lr": 2e-3}),
        # The rate, the momentum and the decay of another optimiser are those of its recipe.
        ("--model.optimizer sgd", {"hparams.optimizer": "sgd", "hparams.momentum": 0.99}, {"hparams.schedule": "poly"}),
        # As many steps as are asked for, whatever the rule would have.
        ("--trainer.max_steps 500", {"trainer.max_steps": 500}, {}),
        ("--trainer.precision bf16-true", {"trainer.precision": "bf16-true"}, {"hparams.lr": 2e-3}),
    ],
)
def test_any_flag_wins(flags: str, kept: dict[str, Any], chosen: dict[str, Any], planned: Callable[..., Run]) -> None:
    settings = json.loads(json.dumps(planned(*flags.split()).resolved()))
    assert {name: settings[name] for name in kept | chosen} == kept | chosen
    assert ("hparams.average" in settings) == (not {"--model.average", "bf16-true"} & {*flags.split()})
    if "max_steps" in flags:
        assert "trainer.max_epochs" not in settings and "trainer.check_val_every_n_epoch" not in settings


def test_what_is_printed_is_the_same_run_as_flags(folder: Path, planned: Callable[..., Run]) -> None:
    run, args = parse_run(["--data", "folder", "--data.root", str(folder)])
    chosen = complete(run, args)
    assert chosen
    words = chosen.told.splitlines()[0].partition("says otherwise: ")[2]
    assert "--data.crop '[64,96]'" in words and "--model.lr 0.002" in words
    assert planned(*shlex.split(words), "--settings", "paper").hash == planned().hash


def test_settings_paper_are_the_defaults_of_the_paper(planned: Callable[..., Run]) -> None:
    run = planned("--settings", "paper")
    assert run.hparams["norm"] == "none" and run.hparams["optimizer"] == "sgd" and run.hparams["average"] == "none"
    assert run.trainer["max_epochs"] == 20 and run.hparams["class_weights"] is None


def test_data_that_state_their_scale_keep_their_defaults_unless_asked() -> None:
    run, args = parse_run(["--data", "shapes"])
    assert complete(run, args) is None and run.trainer == {"max_epochs": 20}
    asked = complete(*parse_run(["--data", "shapes", "--settings", "data"]))
    assert asked and asked.run.trainer["max_epochs"] == 2 and asked.run.hparams["norm"] == "batch"
    assert "those that the data set states" in asked.reason
    longer = complete(*parse_run(["--data", "brain", "--settings", "data", "--trainer.max_epochs", "7"]))
    assert longer and longer.run.trainer["max_epochs"] == 7
    assert 7 % longer.run.trainer.get("check_val_every_n_epoch", 1) == 0


def test_on_a_gpu_images_keep_their_size(planned: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    run = planned()
    assert run.trainer["max_epochs"] == 200 and run.data["num_workers"] == 8 and run.data["batch_size"] == 16
    assert planned("--trainer.accelerator", "cpu").trainer["max_epochs"] == 42


def test_an_architecture_gets_what_it_takes(planned: Callable[..., Run]) -> None:
    run = planned("--model", "segnet")
    assert "norm" not in run.hparams and run.hparams["optimizer"] == "adamw"


def test_a_run_that_starts_from_another_has_the_norm_of_that_one(folder: Path) -> None:
    run = Run(module=UNetModule, datamodule=FolderDataModule, hparams={"init_from": "x"}, data={"root": str(folder)})
    assert "norm" not in by_data(run, {"data.root", "init_from"}).settings


def test_defaults_learn_more_than_one_class_and_say_what_they_are(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = ["--data", "folder", "--data.root", str(folder), *SMALL, "--out", str(out)]
    main(command)
    printed = capsys.readouterr().out
    first, why, *_ = printed.splitlines()
    assert first.startswith("Chosen for these data, as no flag says otherwise: --data.crop ")
    assert "--trainer.max_epochs 42" in first and "--data.root" not in first and "--model.width" not in first
    assert why.startswith("The settings follow from the data by rule. 28 training images") and "--settings paper" in why
    assert "everywhere" not in printed.splitlines()[-1]
    result = json.loads((out / "result.json").read_text())
    assert "constant" not in result and result["test"]["miou"] > 0.6
    stored = json.loads((out / "run.json").read_text())
    assert stored["data"]["crop"] == [64, 96] and stored["hparams"]["lr"] == 2e-3
    assert stored["trainer"] == {"max_epochs": 42, "check_val_every_n_epoch": 14}

    # Finished, the same command finds it; a change of the rule, or a GPU, does not make it another run.
    main([*command, "--resume"])
    printed = capsys.readouterr().out
    assert "The settings are those of the run that goes on" in printed and "Chosen" not in printed
    stored["trainer"]["check_val_every_n_epoch"], stored["hparams"]["lr"] = 21, 3e-3
    as_begun = Run.from_config({key: stored[key] for key in stored if key not in ("hash", "settings")})
    (out / "run.json").write_text(json.dumps(as_begun.record()))
    (out / "result.json").write_text(json.dumps(result | {"hash": as_begun.hash}))
    main([*command, "--resume"])
    with pytest.raises(SystemExit):
        main([*command, "--resume", "--model.lr", "1e-4"])
    assert "hparams.lr: 0.003 -> 0.0001" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "--model.lr", "3e-3", "--trainer.check_val_every_n_epoch", "21"])
    assert "already holds this run: continue it with --resume" in capsys.readouterr().err


def test_what_is_wrong_with_the_data_is_said_first_and_once(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "masks/n00.png").unlink()
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as stop:
        main(["--data", "folder", "--data.root", str(folder), "--out", str(out)])
    said = capsys.readouterr()
    assert stop.value.code == 2 and not out.exists()
    assert said.err.count("E_MISSING_MASK") == 1 and said.out == ""
    assert said.err.startswith("error: ")


@pytest.mark.filterwarnings("always")
def test_a_warning_of_the_data_is_said_once(folder: Path, tmp_path: Path) -> None:
    (folder / "images/n01.png").rename(folder / "images/n01.PNG")
    (folder / "images/.hidden").touch()
    command = ["--data", "folder", "--data.root", str(folder), *SMALL, "--trainer.max_epochs", "1"]
    with pytest.warns(UserWarning) as warned:
        main([*command, "--out", str(tmp_path / "run")])
    assert sum("W_JUNK" in str(one.message) for one in warned) == 1


def test_neither_help_nor_the_flags_of_a_sweep_read_the_data(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_run(["--data", "folder", "--help"])
    assert stop.value.code == 0
    assert "crop, batch, length, class weights and recipe follow from the images" in " ".join(
        capsys.readouterr().out.split()
    )
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    monkeypatch.setenv("WANDB_RUN_ID", "r1")
    _, args = parse_run(["--data", "folder", "--data.root", "/nowhere", "--logger", "wandb", "--model.lr", "0.1"])
    assert args.out == Path("outputs/sweeps/s1/r1/seed0") and args.by_data and args.given == {"data.root", "lr"}


def test_words_are_those_of_a_shell() -> None:
    assert [word(value) for value in ((64, 96), None, True, 0.5, "a b")] == [
        "'[64,96]'",
        "null",
        "true",
        "0.5",
        "'a b'",
    ]
    assert [flag(name) for name in ("lr", "data.crop", "trainer.max_epochs")] == [
        "--model.lr",
        "--data.crop",
        "--trainer.max_epochs",
    ]
