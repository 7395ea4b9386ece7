"""Weights & Biases: curves, sample masks, per-class table and confusion matrix of every run, online or offline.

Local files are the source of truth and W&B a copy: nothing that W&B does can stop a training.
"""

import logging
import os
import shlex
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import wandb
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from experiments.callbacks import predict, sample_positions, to_rgb
from lightning_modules.base import SegmentationModule
from lightning_modules.components.metrics import predict_labels, scores

PROJECT = "seglab"
MODES = ("online", "offline", "disabled", "shared")
LONGEST_SIDE = 512  # of a logged image: full-size masks took seconds an epoch
log = logging.getLogger("lightning.pytorch")


def tracking(settings: dict[str, Any], out: Path) -> dict[str, Any]:
    """The logger and the callback for `train`: group = experiment, name = variant and seed, from the folder `out`.

    `settings` are those of a `Run`, flat, with its hash.
    """
    group, variant = out.absolute().parent.parent.name or PROJECT, out.absolute().parent.name
    attempt = 1 + len(
        list(out.glob("wandb/*run-*"))
    )  # a resumed run writes a new record: W&B cannot continue one offline
    name = f"{variant}-s{settings['seed']}" + (f"-a{attempt}" if attempt > 1 else "")
    config = settings | {"experiment": group, "variant": variant, "attempt": attempt}
    if "data.root" in config:
        config["data.root"] = Path(config["data.root"]).name  # where it lies on this machine is nobody's business
    logger = PatientLogger(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=name,
        group=group,
        job_type="train",
        tags=[*(settings[part].split(".")[-1] for part in ("module", "datamodule")), variant],
        save_dir=out,
        config=config,
        mode=mode(),
        # A killed offline run would otherwise lose all that W&B buffers for 15 s.
        settings=wandb.Settings(
            x_transaction_log_flush_interval=1.0, init_timeout=15, silent=True, console="off", x_disable_meta=True
        ),
    )
    return {"loggers": [logger], "callbacks": [Panels()]}


def mode() -> str:
    """What WANDB_MODE says; else offline where there is no key or the server cannot be reached within 3 s."""
    if wanted := os.environ.get("WANDB_MODE"):
        if wanted in MODES:
            return wanted
        log.warning("WANDB_MODE must be one of %s, got %r: logging offline", ", ".join(MODES), wanted)
        os.environ["WANDB_MODE"] = "offline"  # wandb reads it too
        return "offline"
    server = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    if not wandb.api.api_key:
        return "offline"
    try:
        socket.create_connection((server.hostname or "", server.port or 443), timeout=3).close()
    except OSError:
        return "offline"
    return "online"


def sync_line(out: Path) -> str | None:
    """The command that uploads what was logged offline below `out`, or None where there is nothing to upload."""
    folders = {path.parent.parent for path in out.glob("**/wandb/offline-run-*/*.wandb") if path.stat().st_size > 7}
    if not folders:
        return None
    depth = {"/".join("*" for _ in folder.relative_to(out).parts[:-1]) for folder in folders}
    patterns = [f"{shlex.quote(out.as_posix())}/{d}/wandb/offline-run-*" for d in sorted(depth)]
    return "wandb sync " + " ".join(pattern.replace("//", "/") for pattern in patterns)


def patient(method: Callable[..., Any]) -> Callable[..., Any]:
    """Turns an error of W&B into a warning."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except Exception as error:  # noqa: BLE001  # whatever W&B raises
            log.warning("W&B: %s: %s (training goes on; metrics.csv has the numbers)", type(error).__name__, error)
            return None

    return wrapped


class PatientLogger(WandbLogger):
    """A `WandbLogger` that goes offline when the server does not answer and never raises."""

    def __init__(self, *, mode: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._wandb_init["mode"] = mode
        self._start(mode)

    @rank_zero_only
    def _start(self, mode: str) -> None:
        try:
            _ = self.experiment
        except Exception as error:  # noqa: BLE001  # whatever W&B raises
            log.warning("W&B could not be reached, logging offline: %s", error)
            self._wandb_init["mode"] = "offline" if mode != "offline" else "disabled"
            _ = self.experiment

    log_metrics = patient(WandbLogger.log_metrics)
    log_hyperparams = patient(WandbLogger.log_hyperparams)
    finalize = patient(WandbLogger.finalize)


class Panels(Callback):
    """Sample images with truth and prediction, the scores of each class and the confusion matrix, at each validation."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._log(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(trainer, pl_module, "test")
        self._finish(trainer, 0)  # the test is the last thing a run does

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._finish(trainer, 1)

    @patient
    def _finish(self, trainer: Trainer, exit_code: int) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, PatientLogger) and trainer.is_global_zero:
                logger.experiment.finish(exit_code)

    @patient
    def _log(self, trainer: Trainer, module: SegmentationModule, split: str) -> None:
        logger = next((logger for logger in trainer.loggers if isinstance(logger, PatientLogger)), None)
        if logger is None or not trainer.is_global_zero:
            return
        confusion = module.last_confusion[split]
        logger.experiment.log(
            {
                f"{split}/samples": samples(module, trainer.datamodule.dataset(split)),  # type: ignore[attr-defined]
                f"{split}/per_class": per_class(confusion, module.class_names),
                f"{split}/confusion": confusion_table(confusion, module.class_names),
                f"{split}/confusion_matrix": confusion_image(confusion, module.class_names),
                "trainer/global_step": trainer.global_step,
            }
        )


def samples(module: SegmentationModule, dataset: Any) -> list[wandb.Image]:
    """The same few images each time, with prediction and ground truth as masks that W&B can switch on and off."""
    labels = {**dict(enumerate(module.class_names)), module.ignore_index: "ignored"}
    images = []
    for position in sample_positions(len(dataset)):
        image, mask = dataset[position]
        prediction = predict_labels(predict(module, image)[None])[0]
        step = max(1, -(-max(mask.shape) // LONGEST_SIDE))  # every step-th pixel keeps labels labels
        masks = {
            name: {"mask_data": np.asarray(label[::step, ::step].byte()), "class_labels": labels}
            for name, label in (("prediction", prediction), ("ground_truth", mask))
        }
        images.append(wandb.Image(to_rgb(image[:, ::step, ::step]), masks=masks, caption=dataset.names[position]))
    return images


def per_class(confusion: np.ndarray, class_names: list[str]) -> wandb.Table:
    """IoU, accuracy, Dice and labelled pixels of each class; absent classes are empty."""
    values = scores(confusion)
    table = wandb.Table(columns=["class", "iou", "acc", "dice", "pixels"])
    for index, name in enumerate(class_names):
        row = [float(values[key][index]) for key in ("iou", "acc", "dice")]
        table.add_data(name, *(None if np.isnan(value) else value for value in row), int(confusion[index].sum()))
    return table


def confusion_table(confusion: np.ndarray, class_names: list[str]) -> wandb.Table:
    """Pixels by truth and prediction. W&B's own plot takes one label a sample: an image has 10^5."""
    table = wandb.Table(columns=["truth", "prediction", "pixels"])
    for row, truth in enumerate(class_names):
        for column, prediction in enumerate(class_names):
            table.add_data(truth, prediction, int(confusion[row, column]))
    return table


def confusion_image(confusion: np.ndarray, class_names: list[str]) -> wandb.Image:
    """The same as a picture, each row divided by the pixels of the true class."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no window

    share = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    side = 2 + 0.45 * len(class_names)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot(xlabel="prediction", ylabel="truth")
    axes.imshow(share, vmin=0, vmax=1, cmap="Blues")
    axes.set_xticks(range(len(class_names)), class_names, rotation=90)
    axes.set_yticks(range(len(class_names)), class_names)
    for (row, column), value in np.ndenumerate(share):
        axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", color="w" if value > 0.5 else "k")
    return wandb.Image(figure, caption="share of each true class, in percent")
