"""Runs that are cut off at a chosen moment, and what must be equal once they have been continued."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning.pytorch import Callback, Trainer

from datamodules.shapes import ShapesDataModule
from experiments.runs.run import Run
from experiments.runs.training import train
from lightning_modules.unet import UNetModule

QUIET: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False}
OFTEN = 1e-9  # minutes between checkpoints: one at every safe point

# What is random, what is counted and what ends a run, each of it in some run.
BASE = Run(
    module=UNetModule,
    datamodule=ShapesDataModule,
    hparams={"width": 2, "depth": 2, "norm": "batch", "dropout": 0.2, "optimizer": "adamw", "warmup": 0.2},
    data={"size": 16, "length": 7, "batch_size": 2},
    trainer={"max_epochs": 3},
)
RUNS = {
    "epochs": BASE,
    "steps": BASE.but(trainer={"max_epochs": None, "max_steps": 7}),
    "steps-end-of-epoch": BASE.but(trainer={"max_epochs": None, "max_steps": 6}),
    "steps-before-epochs": BASE.but(trainer={"max_steps": 5}),
    "epochs-before-steps": BASE.but(trainer={"max_epochs": 2, "max_steps": 50}),
    "accumulate": BASE.but(trainer={"accumulate_grad_batches": 2}),
    "accumulate-steps": BASE.but(trainer={"max_epochs": None, "max_steps": 7, "accumulate_grad_batches": 2}),
    "validate-within": BASE.but(trainer={"val_check_interval": 2}),
    "validate-half": BASE.but(data={"length": 8}, trainer={"val_check_interval": 0.5}),
    "validate-by-batches": BASE.but(
        trainer={"check_val_every_n_epoch": None, "val_check_interval": 2, "max_epochs": None, "max_steps": 7}
    ),
    "validate-accumulate": BASE.but(trainer={"val_check_interval": 3, "accumulate_grad_batches": 2}),
    "validate-rarely": BASE.but(trainer={"check_val_every_n_epoch": 2}),
    "no-validation": BASE.but(trainer={"limit_val_batches": 0}),
    "limited": BASE.but(trainer={"limit_train_batches": 2, "limit_val_batches": 1}),
    "limited-accumulate": BASE.but(trainer={"limit_train_batches": 3, "accumulate_grad_batches": 2}),
    "counted-weights": BASE.but(
        class_weights="median-frequency", trainer={"max_epochs": None, "max_steps": 7, "gradient_clip_val": 0.5}
    ),
    "recalibrated": BASE.but(average="recalibrate"),
    "averaged": BASE.but(average="ema", ema_decay=0.6, trainer={"val_check_interval": 2}),
    "averaged-recalibrated": BASE.but(
        average="ema+recalibrate", ema_decay=0.6, trainer={"max_epochs": None, "max_steps": 7}
    ),
    "averaged-accumulate": BASE.but(average="ema+recalibrate", trainer={"accumulate_grad_batches": 2}),
    "channels-last": BASE.but(channels_last=True),
}


class At(Callback):
    """Does something at the n-th call of one of its hooks, counted over all of them."""

    def __init__(self, moment: int | None, act: Any) -> None:
        self.moment, self.act, self.calls = moment, act, 0

    def _count(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        if trainer.sanity_checking:
            return
        self.calls += 1
        if self.calls == self.moment:
            self.act()

    on_train_batch_start = on_validation_batch_start = on_validation_start = on_validation_end = _count
    on_train_batch_end = on_train_epoch_end = on_test_batch_start = _count


class PowerCut(RuntimeError):  # noqa: N818
    """What stands for kill -9 within a process."""


def cut() -> None:
    raise PowerCut


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def outcome(out: Path) -> dict[str, Any]:
    """All that a finished run has written and that must not depend on whether it was interrupted."""
    stored = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    found: dict[str, Any] = {key: stored[key] for key in ("epoch", "global_step", "optimizer_states", "lr_schedulers")}
    found |= {key: stored[key] for key in ("state_dict", "averaging") if key in stored}
    found["metrics"] = pd.read_csv(out / "metrics.csv").drop(columns="seconds").to_csv()
    result = json.loads((out / "result.json").read_text())
    found["result"] = {key: value for key, value in result.items() if key != "seconds"}
    for name in ("per_image.npz", "samples.npz"):
        with np.load(out / name) as arrays:
            found[name] = {key: torch.from_numpy(arrays[key]) for key in arrays.files if arrays[key].dtype.kind != "U"}
    found["predictions"] = (out / "predictions.zip").read_bytes()
    return found


def unequal(one: Any, other: Any, where: str = "") -> list[str]:
    """Where two outcomes differ in a bit."""
    if isinstance(one, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape
        return [] if same and torch.equal(one.nan_to_num(), other.nan_to_num()) else [where]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{where}: {sorted(one.keys() ^ other.keys(), key=str)}"]
        return [line for key in one for line in unequal(one[key], other[key], f"{where}/{key}")]
    if isinstance(one, list | tuple):
        pairs = enumerate(zip(one, other, strict=True))
        return [line for i, (a, b) in pairs for line in unequal(a, b, f"{where}/{i}")]
    return [] if one == other else [f"{where}: {one!r} and {other!r}"]


def whole(run: Run, out: Path) -> tuple[dict[str, Any], int]:
    """The outcome of a run that nothing interrupts, and how many moments it has."""
    watch = At(None, None)
    train(run, out, callbacks=[watch], **QUIET)
    return outcome(out), watch.calls


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.1)
