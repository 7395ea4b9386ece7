"""Loggers beside metrics.csv: TensorBoard, or Weights & Biases, online or offline.

W&B holds the curves, sample masks, per-class table and confusion matrix of every run.

Local files are the source of truth and W&B a copy: nothing that W&B does can stop, slow or hang a training.
"""

import os
import re
import secrets
from collections.abc import Mapping
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from experiments.runs.callbacks import gathered, sample_positions, to_rgb
from experiments.runs.checkpoints import LAST, PREVIOUS
from experiments.runs.training import Tracker, Tracking
from experiments.tracking.client import Client, agent_settings, given_settings
from experiments.tracking.loggers import LOGGERS, NAME, PROJECT, STEP, TAG, Logging, short
from lightning_modules.base import Batch, SegmentationModule
from lightning_modules.components.checkpoints import read_checkpoint
from lightning_modules.components.scores.reductions import scores

LONGEST_SIDE = 512  # of a logged image: full-size masks took seconds an epoch
BINS = 64  # of a histogram of gradients


class WandbTracking(Tracking):
    """W&B begins when it is sure that a run trains, and ends after the result is stored."""

    def __init__(self, logger: "WandbLogger", callbacks: list[Callback]) -> None:
        super().__init__([logger], callbacks)
        self.logger = logger

    def start(self, config: Mapping[str, Any]) -> None:
        self.logger.start(config)

    def finish(self, exit_code: int) -> None:
        self.logger.finish(exit_code)


def tracker(logging: Logging | str) -> Tracker:
    """What `train` is handed to log to: by the name of a logger, or by all that the flags say."""
    return partial(tracking, Logging(logging) if isinstance(logging, str) else logging)


def tracking(logging: Logging, settings: dict[str, Any], out: Path) -> Tracking:
    """The loggers of a run into the folder `out`; `settings` are those of a `Run`, flat, with its hash."""
    make = LOGGERS[logging.logger].make
    return Tracking() if make is None else make(logging, settings, out)


def tensorboard(logging: Logging, settings: dict[str, Any], out: Path) -> Tracking:
    # Events of steps that a resumed run does again are taken back: one curve, without a loop.
    return Tracking([TensorBoardLogger(out, name="", version="tensorboard", purge_step=_step_of(out))])


def wandb(logging: Logging, settings: dict[str, Any], out: Path) -> Tracking:
    callbacks: list[Callback] = [Panels()]
    if logging.gradients:
        callbacks.append(Gradients(logging.gradients))
    if logging.checkpoints:
        callbacks.append(Checkpoints(out))
    return WandbTracking(WandbLogger(logging, settings, out), callbacks)


class WandbLogger(Logger):
    """Logs to W&B through a `Client`: of its methods, `finish` alone waits, and not for long; none raises."""

    def __init__(self, logging: Logging, settings: Mapping[str, Any], out: Path) -> None:
        super().__init__()
        self.private = logging.private
        # Group = experiment, name = variant and seed, from the folder.
        group, variant = out.absolute().parent.parent.name or PROJECT, out.absolute().parent.name
        if not re.fullmatch(r"seed\d+", out.name):  # folders of somebody's own choice may be named after persons
            group, variant = PROJECT, "-".join(settings[part].split(".")[-1] for part in ("module", "datamodule"))
        before = sorted(out.glob("wandb/*run-*-*"))
        given = given_settings(os.environ, Path.cwd())
        if given.get("mode", "online") == "online" and any(path.name.startswith("offline") for path in before):
            given["mode"] = "offline"  # what began so stays so: the server cannot put a first part in front of a second
        agent = agent_settings(os.environ) if logging.agent and not before else {}
        if "sweep_param_path" in agent:
            agent["sweep_param_path"] = os.path.abspath(agent["sweep_param_path"])
        config = dict(settings) | {"experiment": group, "variant": variant, "attempt": 1 + len(before)}
        self.config = {name: without_folders(value) for name, value in config.items()}
        # The attempts of a resumed run share their id; offline each leaves a fragment, and experiments.sync joins them.
        self._version = before[0].name.rsplit("-", 1)[1] if before else agent.get("run_id", secrets.token_hex(4))
        start = {
            "step": STEP,
            "given": given,
            "init": {
                "project": PROJECT,
                "name": short(f"{variant}-s{settings['seed']}", NAME),
                "id": self._version,
                "resume": "allow",
                "group": short(group, NAME),
                "job_type": "train",
                "tags": [
                    short(word, TAG)
                    for word in (*(settings[part].split(".")[-1] for part in ("module", "datamodule")), variant)
                ],
                "dir": str(out.absolute()),
            },
            "settings": {
                **agent,  # with the id of its run: in a sweep W&B takes none from `init`
                "x_transaction_log_flush_interval": 1.0,  # a killed offline run would otherwise lose the last 15 s
                "x_disable_stats": self.private,
                "x_stats_pid": os.getpid(),
                "silent": True,
                # What would name the machine, its folders or its user, or repeat what the terminal said.
                "console": "off",
                "host": "unnamed",
                "username": "unnamed",
                "program": "experiments.train",
                "docker": "",
                "x_disable_meta": True,
                "x_disable_machine_info": self.private,  # which is the hardware metrics
                "x_save_requirements": False,
                "disable_git": True,
                "disable_code": True,
                "save_code": False,
                "sagemaker_disable": True,
            },
        }
        self.client = Client(start, out)

    @property
    def name(self) -> str:
        return PROJECT

    @property
    def version(self) -> str:
        return self._version

    def start(self, config: Mapping[str, Any]) -> None:
        self.config |= {name: value for name, value in config.items() if not (self.private and name == "device")}
        self.client.start_message["init"]["config"] = self.config
        self.client.start()

    def finish(self, exit_code: int) -> None:
        self.client.finish(exit_code)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.log("row", metrics, step)

    def log(self, kind: str, row: Mapping[str, Any], step: int | None) -> None:
        self.client.send(kind, dict(row) if step is None else {**row, STEP: step})

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass  # the whole `Run` is there from the start


def without_folders(value: Any) -> Any:
    """Settings as they are logged: of a path the last part alone. Where it lies on this machine is nobody's
    business."""
    if isinstance(value, Mapping):
        return {name: without_folders(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(inner) for inner in value]
    if isinstance(value, str) and (value.startswith(("~", "..")) or os.path.isabs(value)):
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


class Panels(Callback):
    """Sample images with truth and prediction, the scores of each class and the confusion matrix, at each
    validation."""

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

    def _log(self, trainer: Trainer, module: LightningModule, split: str, labels: Mapping[int, torch.Tensor]) -> None:
        logger = logger_of(trainer)
        if logger is None or not isinstance(module, SegmentationModule):
            return
        confusion = module.last_confusion[split]
        row = {
            f"{split}/samples": samples(module, trainer.datamodule.dataset(split), labels),  # type: ignore[attr-defined]
            f"{split}/per_class": per_class(confusion, module.class_names),
            f"{split}/confusion": confusion_table(confusion, module.class_names),
            f"{split}/confusion_matrix": {"is": "confusion", "confusion": confusion, "names": module.class_names},
        }
        # Lightning logs a validation at the last step that was taken, counted from 0, and the test after all of them.
        logger.log("panels", row, trainer.global_step - (split == "val"))


class Gradients(Callback):
    """Histograms of the gradients of every weight, before they are clipped, every `steps` steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        logger = logger_of(trainer)
        if logger is not None and trainer.global_step % self.steps == 0:
            row = {
                f"gradients/{name}": histogram(weight.grad)
                for name, weight in pl_module.named_parameters()
                if weight.grad is not None
            }
            logger.log("panels", row, trainer.global_step)


class Checkpoints(Callback):
    """The last checkpoint, when the run has ended, as an artifact of W&B."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        logger = logger_of(trainer)
        if logger is not None:
            named = {key: logger.config.get(key) for key in ("hash", "commit", "experiment", "variant", "seed")}
            content = {
                "name": f"checkpoint-{logger.version}",
                "path": str((self.out / "checkpoints" / LAST).absolute()),
            }
            logger.client.send("artifact", content | {"metadata": named | {"steps": trainer.global_step}})


def logger_of(trainer: Trainer) -> WandbLogger | None:
    """That of W&B, in the process that logs."""
    loggers = (logger for logger in trainer.loggers if isinstance(logger, WandbLogger))
    return next(loggers, None) if trainer.is_global_zero else None


def histogram(values: torch.Tensor) -> dict[str, Any]:
    """`BINS` bins of the finite values, from the smallest to the largest."""
    finite = values.detach().float().flatten()
    finite = finite[finite.isfinite()]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
    if low == high:
        low, high = (end + sign * max(0.5, abs(low) * 1e-6) for end, sign in ((low, -1), (high, 1)))
    place = (
        ((finite - low) * (BINS / (high - low))).long().clamp(0, BINS - 1)
    )  # histc has no deterministic form on CUDA
    counts = torch.bincount(place, minlength=BINS).cpu().numpy()
    return {"is": "histogram", "counts": counts.tolist(), "edges": np.linspace(low, high, BINS + 1).tolist()}


def samples(module: SegmentationModule, dataset: Any, labels: Mapping[int, torch.Tensor]) -> list[dict[str, Any]]:
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
        both = (("prediction", labels[position]), ("ground_truth", mask))
        masks = {name: np.array(label[::step, ::step].byte()) for name, label in both}
        shown = np.ascontiguousarray(to_rgb(image[:, ::step, ::step]))
        caption = dataset.names[position]
        images.append({"is": "image", "image": shown, "masks": masks, "names": names, "caption": caption})
    return images


def per_class(confusion: np.ndarray, class_names: list[str]) -> dict[str, Any]:
    """IoU, accuracy, Dice and labelled pixels of each class; absent classes are empty."""
    values = scores(confusion)
    rows = []
    for index, name in enumerate(class_names):
        row = [float(values[key][index]) for key in ("iou", "acc", "dice")]
        rows.append([name, *(None if np.isnan(value) else value for value in row), int(confusion[index].sum())])
    return {"is": "table", "columns": ["class", "iou", "acc", "dice", "pixels"], "rows": rows}


def confusion_table(confusion: np.ndarray, class_names: list[str]) -> dict[str, Any]:
    """Pixels by truth and prediction. W&B's own plot takes one label a sample: an image has 10^5."""
    pairs = [(truth, row) for truth, row in zip(class_names, confusion.tolist(), strict=True)]
    rows = [[truth, name, pixels] for truth, row in pairs for name, pixels in zip(class_names, row, strict=True)]
    return {"is": "table", "columns": ["truth", "prediction", "pixels"], "rows": rows}
