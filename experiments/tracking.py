"""Loggers beside metrics.csv: TensorBoard, or Weights & Biases, online or offline.

W&B holds the curves, sample masks, per-class table and confusion matrix of every run.

Local files are the source of truth and W&B a copy: nothing that W&B does can stop a training.
"""

import atexit
import logging
import os
import secrets
import shlex
import shutil
import socket
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
import wandb
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from experiments.callbacks import gathered, sample_positions, to_rgb
from experiments.checkpoints import LAST, PREVIOUS
from experiments.sync import HEADER, STAGED, STEP, logged_in
from lightning_modules.base import Batch, SegmentationModule
from lightning_modules.components.checkpoints import read_checkpoint
from lightning_modules.components.metrics import scores

PROJECT = "seglab"
MODES = ("online", "offline", "disabled", "shared")
LONGEST_SIDE = 512  # of a logged image: full-size masks took seconds an epoch
log = logging.getLogger("lightning.pytorch")


def tracking(kind: str, settings: dict[str, Any], out: Path) -> dict[str, Any]:
    """The logger, and for W&B the callback, of `train`; `settings` are those of a `Run`, flat, with its hash."""
    if kind == "tensorboard":
        # Events of steps that a resumed run does again are taken back: one curve, without a loop.
        logger = TensorBoardLogger(out, name="", version="tensorboard", purge_step=_step_of(out))
        return {"loggers": [logger]}
    # Group = experiment, name = variant and seed, from the folder.
    group, variant = out.absolute().parent.parent.name or PROJECT, out.absolute().parent.name
    before = sorted(out.glob("wandb/*run-*-*"))
    chosen = mode()
    if chosen == "online" and any(path.name.startswith("offline") for path in before):
        chosen = "offline"  # what began offline stays so: the server cannot put a first part in front of a second
    config = settings | {"experiment": group, "variant": variant, "attempt": 1 + len(before)}
    wandb_logger = PatientLogger(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=f"{variant}-s{settings['seed']}",
        # The attempts of a resumed run share their id; offline each leaves a fragment, and experiments.sync joins them.
        id=before[0].name.rsplit("-", 1)[1] if before else secrets.token_hex(4),
        group=group,
        job_type="train",
        tags=[*(settings[part].split(".")[-1] for part in ("module", "datamodule")), variant],
        save_dir=out,
        config={name: without_folders(value) for name, value in config.items()},
        mode=chosen,
        settings=wandb.Settings(
            x_transaction_log_flush_interval=1.0,  # a killed offline run would otherwise lose the last 15 s
            init_timeout=15,
            silent=True,
            # What would name the machine, its folders or its user, or repeat what the terminal said.
            console="off",
            host="unnamed",
            x_disable_meta=True,
            x_disable_machine_info=True,
            disable_git=True,
            disable_code=True,
            save_code=False,
        ),
    )
    return {"loggers": [wandb_logger], "callbacks": [Panels()]}


def without_folders(value: Any) -> Any:
    """Settings as they are logged: of a path the last part alone. Where it lies on this machine is nobody's business."""
    if isinstance(value, Mapping):
        return {name: without_folders(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(inner) for inner in value]
    if isinstance(value, str) and (value.startswith("~") or os.path.isabs(value)):
        return PurePath(value).name
    return value


def _step_of(out: Path) -> int:
    """The number of steps that the newest sound checkpoint of a run was trained for; 0 where there is none."""
    for name in (LAST, PREVIOUS):
        try:
            return int(read_checkpoint(out / "checkpoints" / name)["global_step"])
        except (ValueError, FileNotFoundError):
            continue
    return 0


def mode() -> str:
    """What WANDB_MODE says; else offline where there is no key or the server cannot be reached within 3 s."""
    if wanted := os.environ.get("WANDB_MODE"):
        if wanted in MODES:
            return wanted
        log.warning("WANDB_MODE must be one of %s, got %r: logging offline", ", ".join(MODES), wanted)
        os.environ["WANDB_MODE"] = "offline"  # wandb reads it too
        return "offline"
    server = urlsplit(wandb.setup().settings.base_url)
    try:
        socket.create_connection((server.hostname or "", server.port or 443), timeout=3).close()
        return "online" if logged_in() else "offline"
    except OSError:
        return "offline"
    except Exception as error:  # noqa: BLE001  # W&B raises several kinds for a key that is none
        log.warning("W&B: %s: logging offline", error)
        return "offline"


def next_step(kind: str, out: Path) -> str | None:
    """The line that says how to see what was logged below `out`; None where it is on the server already."""
    if kind == "tensorboard":
        return f"see the curves with: tensorboard --logdir {shlex.quote(out.as_posix())}"
    if not any(path.stat().st_size > len(HEADER) for path in out.glob("**/wandb/offline-run-*/*.wandb")):
        return None
    return f"W&B logged offline; upload with: python -m experiments.sync {shlex.quote(out.as_posix())}"


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
        self.known = -1  # the last step that the server has of earlier attempts
        self._start(mode)

    @rank_zero_only
    def _start(self, mode: str) -> None:
        # W&B would stage the files of tables in the home folder, and write their whole paths into the record. Here they
        # go into the run's folder, where experiments.sync finds them, by a path that says nothing of where it lies.
        staged = Path(self._wandb_init["dir"], STAGED).absolute()
        staged.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix="seglab-"))
        atexit.register(shutil.rmtree, scratch, ignore_errors=True)
        (scratch / "data").symlink_to(staged, target_is_directory=True)
        os.environ |= {"WANDB_DATA_DIR": str(scratch / "data"), "WANDB_CACHE_DIR": str(scratch / "cache")}
        # Its debug.log would begin with the folder it lies in.
        logging.getLogger("wandb").addFilter(lambda record: record.levelno >= logging.WARNING)
        try:
            _ = self.experiment
        except Exception as error:  # noqa: BLE001  # whatever W&B raises
            log.warning("W&B could not be reached, logging offline: %s", error)
            self._wandb_init["mode"] = "offline" if mode != "offline" else "disabled"
            _ = self.experiment
        if self.experiment.resumed:
            self.known = int(self.experiment.summary.get(STEP, -1))

    @patient
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Leaves out the steps that a resumed run does again and that the server has.

        The last of them is logged again: whether all of its rows arrived is not known.
        """
        if step is None or step >= self.known:
            super().log_metrics(metrics, step)

    log_hyperparams = patient(WandbLogger.log_hyperparams)
    finalize = patient(WandbLogger.finalize)


class Panels(Callback):
    """Sample images with truth and prediction, the scores of each class and the confusion matrix, at each validation."""

    def __init__(self) -> None:
        self.labels: dict[int, torch.Tensor] = {}  # as they were scored, of the samples that this process has met

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.labels = {}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.labels = {}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._keep(trainer, "val", outputs, batch)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._keep(trainer, "test", outputs, batch)

    def _keep(self, trainer: Trainer, split: str, outputs: Any, batch: Batch) -> None:
        wanted = sample_positions(len(trainer.datamodule.dataset(split)))  # type: ignore[attr-defined]
        for position, labels in zip(batch["index"].tolist(), outputs["labels"], strict=True):
            if position in wanted:
                self.labels[position] = labels.byte().cpu()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._log(trainer, pl_module, "val", gathered(trainer, self.labels))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(trainer, pl_module, "test", gathered(trainer, self.labels))
        self._finish(trainer, 0)  # the test is the last thing a run does

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._finish(trainer, 1)

    @patient
    def _finish(self, trainer: Trainer, exit_code: int) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, PatientLogger) and trainer.is_global_zero:
                logger.experiment.finish(exit_code)

    @patient
    def _log(
        self, trainer: Trainer, module: SegmentationModule, split: str, labels: Mapping[int, torch.Tensor]
    ) -> None:
        logger = next((logger for logger in trainer.loggers if isinstance(logger, PatientLogger)), None)
        if logger is None or not trainer.is_global_zero:
            return
        # Lightning logs a validation at the last step that was taken, counted from 0, and the test after all of them.
        step = trainer.global_step - (split == "val")
        if step < logger.known:
            return
        confusion = module.last_confusion[split]
        logger.experiment.log(
            {
                f"{split}/samples": samples(module, trainer.datamodule.dataset(split), labels),  # type: ignore[attr-defined]
                f"{split}/per_class": per_class(confusion, module.class_names),
                f"{split}/confusion": confusion_table(confusion, module.class_names),
                f"{split}/confusion_matrix": confusion_image(confusion, module.class_names),
                STEP: step,
            }
        )


def samples(module: SegmentationModule, dataset: Any, labels: Mapping[int, torch.Tensor]) -> list[wandb.Image]:
    """The same few images each time, with the scored labels and the truth as masks that W&B can switch on and off.

    `labels` holds those (H, W) of each image by its position; one that `--trainer.limit_val_batches` left out has none.
    """
    names = {**dict(enumerate(module.class_names)), module.ignore_index: "ignored"}
    images = []
    for position in sample_positions(len(dataset)):
        if position not in labels:
            continue
        image, mask = dataset[position]
        step = max(1, -(-max(mask.shape) // LONGEST_SIDE))  # every step-th pixel keeps labels labels
        masks = {
            name: {"mask_data": np.asarray(label[::step, ::step].byte()), "class_labels": names}
            for name, label in (("prediction", labels[position]), ("ground_truth", mask))
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

    from experiments.figures import colormap, drawing  # slow to import, and the other loggers do without

    share = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    side = 2 + 0.45 * len(class_names)
    with drawing():
        figure = Figure(figsize=(side, side), layout="constrained")
        axes = figure.add_subplot(xlabel="prediction", ylabel="truth")
        axes.imshow(share, vmin=0, vmax=1, cmap=colormap("Blues"))
        axes.grid(visible=False)
        axes.set_xticks(range(len(class_names)), class_names, rotation=90)
        axes.set_yticks(range(len(class_names)), class_names)
        for (row, column), value in np.ndenumerate(share):
            axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", color="w" if value > 0.5 else "k")
        return wandb.Image(figure, caption="share of each true class, in percent")  # which draws it
