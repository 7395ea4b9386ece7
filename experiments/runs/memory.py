"""What a training does when the memory of its device runs out: smaller micro-batches, accumulated to the same batch.

A micro-batch is what a device trains on at a time. Dividing it changes neither images, steps, epochs nor the rate, and
nothing of what a run is named by. environment.json remembers it for those that go on with the run.
"""

import gc
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.nn import SyncBatchNorm
from torch.nn.modules.batchnorm import _BatchNorm

from datamodules.base import SegmentationDataModule
from experiments.shell.ending import NoMemoryError
from experiments.shell.files import read_json, write_json
from lightning_modules.base import Batch, SegmentationModule

KEY = "micro_batch"  # in environment.json
# Of CUDA, its libraries, MPS and the CPU, where torch has no class for it.
FULL = re.compile(r"out of memory|can't allocate memory|not enough memory|STATUS_ALLOC_FAILED", re.IGNORECASE)


def ran_out(error: BaseException) -> bool:
    """Whether an error says that the memory of the device, and not that of a process that loads data, is full."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    told = str(error)
    return isinstance(error, RuntimeError) and "DataLoader worker" not in told and bool(FULL.search(told))


def micro_batch(trainer: Trainer, datamodule: SegmentationDataModule) -> int:
    """How many images each device trains on at a time; 0 where they cannot be dealt out, which the data module says."""
    return datamodule.batch_size // (trainer.world_size * trainer.accumulate_grad_batches)


def is_divided(trainer: Trainer) -> bool:
    """Whether memory has made a step accumulate more batches than its run asks for."""
    return trainer.accumulate_grad_batches > trainer.fit_loop.asked  # type: ignore[attr-defined]


def divide(trainer: Trainer, datamodule: SegmentationDataModule, most: int | None) -> None:
    """Has no device of a trainer that has not run yet train on more than `most` images at a time.

    What the trainer counts in batches is multiplied, so that the steps and the validations stay where they were.
    """
    share, accumulated = micro_batch(trainer, datamodule), trainer.accumulate_grad_batches
    if most is None or share <= most:
        return
    factor = next(parts for parts in range(2, share + 1) if share % parts == 0 and share // parts <= most)
    batches = len(datamodule.dataset("train")) // datamodule.batch_size * accumulated  # of an epoch
    limit, every = trainer.limit_train_batches, trainer.val_check_interval
    if limit != 1.0 or isinstance(limit, int):
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        trainer.limit_train_batches = batches * factor or limit  # none at all is what Lightning refuses
    if isinstance(every, int):
        trainer.val_check_interval = every * factor
    elif every < 1.0:
        trainer.val_check_interval = max(1, int(batches * every)) * factor
    trainer.accumulate_grad_batches = accumulated * factor


def remembered(out: Path) -> int | None:
    """The most images at a time that fitted into the memory of the device when a run was begun; None for all."""
    try:
        most = read_json(out / "environment.json").get(KEY)
    except ValueError:  # not there yet, or damaged, and written anew
        return None
    return most if isinstance(most, int) and most > 0 else None


def fit(
    trainer: Trainer, module: SegmentationModule, datamodule: SegmentationDataModule, out: Path, last: Path | None
) -> int | None:
    """Trains, from the checkpoint `last` where there is one; None when it is done, else how many images to try.

    Several processes do not come back from the loss of one of them: they end, and `--resume` goes on with fewer images.
    Raises NoMemoryError then, for a single image, and for a validation.
    """
    where, callbacks = _Where(), trainer.callbacks  # type: ignore[attr-defined]
    callbacks.append(where)
    try:
        trainer.fit(module, datamodule, ckpt_path=str(last) if last else None, weights_only=True)
        return None
    except RuntimeError as error:
        if not ran_out(error):
            raise
        device, share = trainer.strategy.root_device, micro_batch(trainer, datamodule)
        if where.stage != "train":
            raise _of_scores(datamodule, device) from error
        if not where.begun:
            raise NoMemoryError(
                f"the memory of {device} is full before the first batch: end what else uses it, or take a smaller "
                f"network or --trainer.precision bf16-true ({_first_line(error)})"
            ) from error
        if share <= 1:
            raise NoMemoryError(
                f"the memory of {device} is too small to train on one image at a time: take a smaller --data.crop, "
                "--trainer.precision bf16-mixed, or --model.checkpointing where the architecture has it "
                f"({_first_line(error)})"
            ) from error
        fewer = max(parts for parts in range(1, share) if share % parts == 0)
        write_json(out / "environment.json", read_json(out / "environment.json") | {KEY: fewer})
        said, stays = f"the memory of {device} is too small to train on {share} images at a time", "a step has as many"
        if trainer.world_size > 1:
            raise NoMemoryError(f"{said}: the same command with --resume goes on with {fewer}, {stays}") from error
        sys.stderr.write(f"{said}: going on with {fewer}, {stays}\n")
    finally:
        callbacks.remove(where)
    return fewer


def free() -> None:
    """Gives back the memory of what is no longer referred to."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def scoring(trainer: Trainer, datamodule: SegmentationDataModule) -> Iterator[None]:
    """Raises NoMemoryError where the memory runs out for an image that is scored in this context."""
    try:
        yield
    except RuntimeError as error:
        if ran_out(error):
            raise _of_scores(datamodule, trainer.strategy.root_device) from error
        raise


def entries(trainer: Trainer, module: SegmentationModule, datamodule: SegmentationDataModule) -> dict[str, int]:
    """Entries of result.json that only those runs have whose micro-batches were divided; ask before the training.

    `accumulated`: the parts of each step. `norm_batch`: the images that a batch norm saw at a time, where there is one
    that takes statistics.
    """
    if not is_divided(trainer):
        return {}
    norms = [part for part in module.network.modules() if isinstance(part, _BatchNorm) and part.training]
    devices = trainer.world_size if any(isinstance(part, SyncBatchNorm) for part in norms) else 1
    seen = {"norm_batch": micro_batch(trainer, datamodule) * devices} if norms else {}
    return {"accumulated": trainer.accumulate_grad_batches, **seen}


class _Where(Callback):
    """Where a trainer was when it failed."""

    def __init__(self) -> None:
        self.begun, self.stage = False, ""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self.begun = True

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.stage = "train" if trainer.training else "scores"


def _of_scores(datamodule: SegmentationDataModule, device: Any) -> NoMemoryError:
    tile = datamodule.loading.tile
    less = "--data.tile 512 predicts it in exact tiles" if tile is None else f"take a smaller --data.tile than {tile}"
    return NoMemoryError(
        f"the memory of {device} is too small to score a whole image: {less}, which changes no number; continue with "
        "--resume"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
