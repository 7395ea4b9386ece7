"""An offline W&B run is read back from its file."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from PIL import Image

from datamodules.camvid import CamVidDataModule
from datamodules.shapes import ShapesDataModule
from experiments.runs.run import Run
from experiments.runs.training import train
from experiments.shell.difference import git_commit
from experiments.tracking.logger import tracker, tracking
from experiments.tracking.loggers import Logging
from experiments.tracking.records import read_records, values
from lightning_modules.unet import UNetModule

RUN = Run(
    module=UNetModule,
    datamodule=ShapesDataModule,
    hparams={"width": 2, "depth": 1},
    data={"size": 48, "length": 4, "batch_size": 2},
    trainer={"max_epochs": 2, "log_every_n_steps": 1},
)


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("outputs") / "ablate_something" / "nearest+none" / "seed3"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        run = RUN.but(seed=3)
        train(run, out, accelerator="cpu", enable_progress_bar=False, tracker=tracker("wandb"))
    return out


def test_an_offline_run_holds_curves_masks_table_and_confusion_matrix(logged: Path) -> None:
    (folder,) = logged.glob("wandb/offline-run-*")
    (file,) = folder.glob("*.wandb")
    found: dict[str, list[Any]] = {}
    for record in read_records(file):
        kind = record.WhichOneof("record_type")
        found.setdefault(kind, []).append(getattr(record, kind))
    (run,) = found["run"][:1]
    assert (run.project, run.run_group, run.job_type, run.display_name) == (
        "seglab",
        "ablate_something",
        "train",
        "nearest+none-s3",
    )
    assert set(run.tags) == {"UNetModule", "ShapesDataModule", "nearest+none"}
    assert found["exit"][0].exit_code == 0

    config: dict[str, Any] = {}
    for update in (run.config, *found.get("config", [])):
        config |= values(update.update)
    assert config["hparams.width"] == 2
    assert config["hash"] == RUN.but(seed=3).hash
    assert (config["commit"], config["device"]) == (git_commit(), "1 x CPU")
    assert str(logged) not in json.dumps(config)  # no path of this machine

    rows = [values(history.item) for history in found["history"]]
    steps = [row["train/loss"] for row in rows if "train/loss" in row]
    assert len(steps) == 4  # 2 epochs of 2 steps
    assert [key in row for row in rows for key in ("train/loss_epoch",) if key in row] == [True, True]  # one an epoch
    assert {"train/lr", "val/miou", "val/iou/disc", "test/boundary_f1"} <= {key for row in rows for key in row}

    media = {name: row[name] for row in rows for name in row if name.split("/")[-1] in ("samples", "per_class")}
    images = media["val/samples"]
    assert images["count"] == 4
    truth = folder / "files" / images["all_masks"][0]["ground_truth"]["path"]
    mask = np.array(Image.open(truth))
    expected = ShapesDataModule(**RUN.data).dataset("val")[0][1].numpy()
    assert np.array_equal(mask, expected)
    assert set(images["all_masks"][0]) == {"ground_truth", "prediction"}
    labels = next(v for k, v in config["_wandb"]["mask/class_labels"].items() if "ground_truth" in k)["value"]
    assert labels == {"0": "background", "1": "disc", "2": "square", "255": "ignored"}

    table = json.loads((folder / "files" / media["test/per_class"]["path"]).read_text())
    assert table["columns"] == ["class", "iou", "acc", "dice", "pixels"]
    assert [row[0] for row in table["data"]] == ["background", "disc", "square"]
    path = next(row["test/confusion"]["path"] for row in rows if "test/confusion" in row)
    pixels = {
        (truth, prediction): n for truth, prediction, n in json.loads((folder / "files" / path).read_text())["data"]
    }
    stored = np.load(logged / "per_image.npz")["confusion"].sum(0)
    assert pixels[("disc", "background")] == stored[1, 0]
    assert sum(pixels.values()) == 4 * 47 * 48  # the first row of each mask is ignored


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_logged_samples_are_what_was_scored(split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under autocast, where another forward in another precision predicts other labels of some pixels."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    scored: dict[int, np.ndarray] = {}

    class Listener(Callback):
        def near_ties(self, trainer: Any, module: Any) -> None:
            """Class 1 has logits a thousandth above those of class 0, which bfloat16 cannot tell apart."""
            with torch.no_grad():
                module.network.head.weight[1:] = module.network.head.weight[:1] * 1.001
                module.network.head.bias.zero_()

        on_validation_start = on_test_start = near_ties

        def keep(self, trainer: Any, module: Any, outputs: Any, batch: Any, *rest: Any) -> None:
            scored[int(batch["index"][0])] = outputs["labels"][0].numpy()

    setattr(Listener, f"on_{'validation' if split == 'val' else 'test'}_batch_end", Listener.keep)
    out = tmp_path / "experiment" / "variant" / "seed0"
    run = RUN.but(trainer={"max_epochs": 1, "precision": "bf16-mixed"})
    train(run, out, callbacks=[Listener()], accelerator="cpu", enable_progress_bar=False, tracker=tracker("wandb"))
    (folder,) = out.glob("wandb/offline-run-*")
    (file,) = folder.glob("*.wandb")
    rows = [values(record.history.item) for record in read_records(file) if record.HasField("history")]
    images = next(row[f"{split}/samples"] for row in rows if f"{split}/samples" in row)
    assert len(scored) == images["count"] == 4
    for position, masks in enumerate(images["all_masks"]):
        shown = np.array(Image.open(folder / "files" / masks["prediction"]["path"]))
        assert np.array_equal(shown, scored[position])


def test_the_one_line_that_uploads_it(logged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = logged.parents[1]
    assert Logging("wandb").next_step(out) == f"W&B logged offline; upload with: python -m experiments.sync {out}"
    assert Logging("wandb").next_step(logged / "checkpoints") is None
    assert Logging().next_step(out) is None
    monkeypatch.setattr("experiments.tracking.loggers.find_spec", lambda name: True)  # the package is an extra
    assert Logging("tensorboard").next_step(Path("a b")) == "see the curves with: tensorboard --logdir 'a b'"


SECRETS = {
    "WANDB_API_KEY": "5ec2e7000000000000000000000000000000key1",
    "AWS_SECRET_ACCESS_KEY": "5ec2e7-of-a-cloud",
    "HF_TOKEN": "hf_5ec2e7",
}


def test_neither_secrets_nor_the_home_folder_are_logged(
    tmp_path: Path, camvid_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home" / "jane"
    code = home / "code"
    code.mkdir(parents=True)
    remote = "https://jane:5ec2e7@git.example.org/code.git"
    for command in (["init", "--quiet"], ["remote", "add", "origin", remote]):
        subprocess.run(["git", *command], cwd=code, check=True)
    monkeypatch.chdir(code)
    for name, value in (SECRETS | {"HOME": str(home), "USER": "jane", "WANDB_MODE": "offline"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", [str(code / "train.py"), "--token", "t0ken"])
    data = camvid_root.rename(home / "camvid")
    run = Run(
        module=UNetModule,
        datamodule=CamVidDataModule,
        hparams=RUN.hparams,
        data={"root": str(data), "crop": 32, "batch_size": 1},
        trainer={"max_epochs": 1, "log_every_n_steps": 1},
    )
    out = home / "outputs" / "experiment" / "variant" / "seed0"
    train(run, out, accelerator="cpu", enable_progress_bar=False, tracker=tracker("wandb"))

    (folder,) = out.glob("wandb/offline-run-*")
    files = [path for path in (out / "wandb").rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        for word in (b"5ec2e7", b"t0ken", b"jane", str(home).encode()):
            assert word not in path.read_bytes(), f"{word!r} in {path.relative_to(out)}"
    assert not [path for path in folder.rglob("*") if path.is_symlink() and str(home) in str(path.readlink())]
    (file,) = folder.glob("*.wandb")
    record = next(record.run for record in read_records(file) if record.HasField("run"))
    config = values(record.config.update)
    assert (config["data.root"], record.host) == ("camvid", "unnamed")
    assert not record.HasField("git")
    # What stays on this machine names the data as the run needs it, and nothing else of the environment.
    for name in ("run.json", "environment.json", "result.json"):
        assert "5ec2e7" not in (out / name).read_text(), name
    assert json.loads((out / "run.json").read_text())["data"]["root"] == str(data)
    assert not (home / ".local").exists() and not (home / ".cache" / "wandb").exists()


def test_paths_in_settings_are_cut_to_their_last_part(tmp_path: Path) -> None:
    settings = RUN.resolved() | {"hash": "0", "hparams.weights": str(tmp_path / "x.pt"), "data.roots": ["~/a/b", "c/d"]}
    (logger,) = tracking(Logging("wandb"), settings, tmp_path / "experiment" / "variant" / "seed0").loggers
    assert (logger.config["hparams.weights"], logger.config["data.roots"]) == ("x.pt", ["b", "c/d"])


def test_a_resumed_attempt_keeps_id_and_name_and_stays_offline(
    logged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    copy = shutil.copytree(logged, tmp_path / "ablate_something" / "nearest+none" / "seed3", symlinks=True)
    (before,) = copy.glob("wandb/offline-run-*")
    tracked = tracking(Logging("wandb"), RUN.but(seed=3).resolved(), copy)
    tracked.start({})
    tracked.finish(0)
    both = sorted(copy.glob("wandb/offline-run-*/*.wandb"))
    assert len(both) == 2
    (run,) = (record.run for record in read_records(both[1]) if record.HasField("run"))
    assert (run.run_id, run.display_name) == (before.name.rsplit("-", 1)[1], "nearest+none-s3")
    assert values(run.config.update)["attempt"] == 2


def test_a_logger_whose_package_is_missing_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("experiments.tracking.loggers.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install -e "\.\[tensorboard\]"'):
        train(RUN, tmp_path / "out", tracker=tracker("tensorboard"))
    with pytest.raises(ValueError, match=r"one of csv, tensorboard, wandb, .*none, got 'papyrus'"):
        train(RUN, tmp_path / "out", tracker=tracker("papyrus"))
    for wrong in ({"private": True}, {"checkpoints": True}, {"gradients": 5}):
        with pytest.raises(ValueError, match="is for Weights & Biases: add --logger wandb"):
            Logging("csv", **wrong)
    assert not (tmp_path / "out").exists()


@pytest.mark.extra("tensorboard", "tensorboard")
def test_tensorboard_takes_back_the_steps_that_are_done_again(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Crash(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
            if trainer.global_step == 3:
                raise RuntimeError("in the middle of the second epoch")

    out = tmp_path / "experiment" / "variant" / "seed0"
    with pytest.raises(RuntimeError, match="in the middle"):
        train(
            RUN, out, callbacks=[Crash()], accelerator="cpu", enable_progress_bar=False, tracker=tracker("tensorboard")
        )
    train(RUN, out, resume=True, accelerator="cpu", enable_progress_bar=False, tracker=tracker("tensorboard"))
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [0, 1, 2, 3]
    assert [event.step for event in events.Scalars("val/miou")] == [1, 3]
