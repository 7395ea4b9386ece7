"""Checkpoints of a run: when they are written, what they are checked for, and which one a run goes on from."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Self

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from experiments.shell.ending import SIGNALS, ElsewhereError, Interrupted
from experiments.shell.files import check_space, temporary_prefix, write_atomic, write_whole
from lightning_modules.base import Batch
from lightning_modules.components.checkpoints import digest, digest_file, read_checkpoint, stored_digests
from lightning_modules.components.errors import MoreThanDataError, NonFiniteError
from lightning_modules.components.finite import not_finite

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
SAVE_EVERY = 10.0  # minutes
SAVE_EVERY_HELP = "minutes between checkpoints within an epoch; one is written after every epoch, too"
PATIENCE = 60.0  # seconds that a process told to end waits for the others
STATES = {"sgd": 1, "adamw": 2}  # what an optimiser keeps of every weight


class Signals:
    """Turns SIGTERM, SIGHUP and SIGINT into `Interrupted`: at once, or at the next safe point while `waiting`.

    A second signal ends at once. What is ignored, as SIGHUP is under nohup, stays ignored. Use it as a context.
    """

    def __init__(self) -> None:
        self.received = 0
        self.waiting = False
        self._raised = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                if signal.getsignal(signum) is not signal.SIG_IGN:
                    self._before[signum] = signal.signal(signum, self._receive)
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        if self._raised and type(error) is SystemExit:  # Ray, within its calls, makes a SystemExit(1) of any
            raise Interrupted(self._raised) from error

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self.received or not self.waiting:
            self._raised = self.received or signum
            raise Interrupted(self._raised)
        self.received = signum
        os.write(2, f"{signal.Signals(signum).name}: ending after this step; once more ends at once\n".encode())


class SafePoints(Checkpoint):
    """After every step: is the loss a number, has a signal arrived, is it time to save? All processes get one answer.

    Writes checkpoints/last.ckpt at the end of every epoch, every `minutes` within one or its validation, and before it
    raises `Interrupted` for a signal. Raises NonFiniteError for a training loss or a weight that is no number, and
    saves neither.
    """

    def __init__(
        self,
        out: Path,
        run_hash: str,
        signals: Signals,
        minutes: float = SAVE_EVERY,
        written: Callable[[], None] = lambda: None,
    ) -> None:
        self.path = out / "checkpoints" / LAST
        self.run_hash, self.signals, self.seconds = run_hash, signals, 60 * minutes
        self.written = written  # called in the first process after a checkpoint; elsewhere it does nothing
        self.saved = time.monotonic()
        self.saved_validation = (
            False  # this one is repeated whole when it is resumed, so one checkpoint of it is enough
        )
        self.loss: tuple[Tensor, Tensor, int] | None = None  # of the latest step, with its images and its number
        self.wrong = ""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        weights = sum(p.numel() * p.element_size() for p in pl_module.parameters())
        if trainer.is_global_zero:  # two checkpoints are kept
            check_space(self.path, 2 * weights * (1 + STATES[pl_module.hparams["optimizer"]]))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.saved = time.monotonic()
        if trainer.world_size > 1:
            steps = [0] * trainer.world_size
            torch.distributed.all_gather_object(steps, trainer.global_step)
            if len({*steps}) > 1:
                begun = ", ".join(map(str, steps))
                raise ValueError(
                    f"the processes begin at different steps ({begun}): {self.path.parents[1]} must be one folder for "
                    "all of them, on a file system that every machine sees (--out)"
                )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        before, self.loss = self.loss, (outputs["loss"].detach(), batch["index"], trainer.global_step)
        # On a GPU that of the step before, which is there: waiting for this one would leave the GPU idle.
        self._judge(trainer, before if self.loss[0].is_cuda else self.loss)
        loop = trainer.fit_loop.epoch_loop
        if not loop._should_accumulate():  # else gradients are under way, which no checkpoint holds
            # After the last step follow the validation and the end of the epoch, which have safe points of their own.
            within = not loop._is_training_done
            self._act(trainer, save=within, end=within)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.saved_validation = False

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.sanity_checking:
            self._act(trainer, save=False, end=True)
        elif not trainer.fit_loop.epoch_loop._should_accumulate():
            self._act(trainer, save=not self.saved_validation, end=True)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._act(trainer, save=False, end=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._judge(trainer, self.loss)
        self._act(trainer, save=False, end=False)
        self._save(trainer)
        self._act(trainer, save=False, end=True)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["run"] = self.run_hash
        # Of a sharded network the first process alone has the weights here, and all of them are to end.
        if names := trainer.strategy.broadcast(not_finite(checkpoint["state_dict"])):
            raise NonFiniteError(
                f"not finite after step {trainer.global_step}: {names}; lower the learning rate (lr) or clip "
                "the gradients (--trainer.gradient_clip_val); these weights are not saved"
            )

    def _judge(self, trainer: Trainer, step: tuple[Tensor, Tensor, int] | None) -> None:
        """Remembers what is wrong with the loss of a step, until all processes know it."""
        if step is None or bool(step[0].isfinite()):
            return
        names = trainer.datamodule.dataset("train").names  # type: ignore[attr-defined]
        self.wrong = (
            f"the training loss is {float(step[0])} in epoch {trainer.current_epoch}, step {step[2]}, on "
            f"{', '.join(names[i] for i in step[1].tolist())}: lower the learning rate (lr) or clip the "
            "gradients (--trainer.gradient_clip_val); these weights are not saved"
        )

    def _act(self, trainer: Trainer, *, save: bool, end: bool) -> None:
        signum, due, wrong = self._agree(trainer)
        if wrong:
            raise (
                NonFiniteError(self.wrong) if self.wrong else ElsewhereError("a loss of another process is not finite")
            )
        if save and (signum or due):
            self._save(trainer)
            self.saved_validation = trainer.validating
        if signum and end:
            raise Interrupted(signum)

    def _agree(self, trainer: Trainer) -> tuple[int, bool, bool]:
        """A signal's number or 0, whether it is time to save, and whether a loss is none: of any process, in all of
        them."""
        mine = self.signals.received, time.monotonic() - self.saved > self.seconds, bool(self.wrong)
        if trainer.world_size == 1:
            return mine
        # In case another process is gone, for which this one would wait.
        timer = threading.Timer(PATIENCE, lambda: os._exit(128 + mine[0]))
        timer.daemon = True
        if mine[0]:
            timer.start()
        every = torch.tensor(mine, dtype=torch.int64, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(every, torch.distributed.ReduceOp.MAX)
        signum, due, wrong = every.tolist()
        timer.cancel()
        return signum, bool(due), bool(wrong)

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.path, weights_only=False)
        self.written()
        self.saved = time.monotonic()


class CheckpointFiles(TorchCheckpointIO):
    """Writes a checkpoint whole beside its SHA-256, and keeps the one before it.

    Lightning's own stage in the system's temporary folder and copy from there, so that a kill can leave half a file.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        path, written = Path(path), ""

        def keep_previous(new: Path) -> None:
            """Until the files have changed places, each passes under either name: a kill leaves two sound ones."""
            nonlocal written
            written = digest(new)
            if not path.exists():
                _write_digests(path, {written})
                return
            previous, old = path.with_name(PREVIOUS), stored_digests(path) or {digest(path)}
            _write_digests(path, {written, *old})
            _write_digests(previous, {*old, *(stored_digests(previous) or ())})
            second = path.with_name(f"{temporary_prefix(previous)}00000000.tmp")
            second.unlink(missing_ok=True)
            try:
                os.link(path, second)
            except OSError:  # a file system without hard links: for a moment there is only the one before
                os.replace(path, second)
            os.replace(second, previous)
            _write_digests(previous, old)

        write_whole(path, lambda file: torch.save(checkpoint, file), needed=_bytes(checkpoint), before=keep_previous)
        _write_digests(path, {written})

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return read_checkpoint(path)


def add_scores(path: Path, split: str, scored: Mapping[str, float]) -> None:
    """Puts the final scores into the checkpoint that they are of, so that it alone tells how good it is."""
    content = read_checkpoint(path)
    of_splits = content["segmentation"].setdefault("trained", {}).setdefault("scores", {})
    of_splits[split] = {name: float(value) for name, value in scored.items()}
    before = stored_digests(path) or {digest(path)}
    write_whole(
        path,
        lambda file: torch.save(content, file),
        needed=_bytes(content),
        before=lambda new: _write_digests(path, {digest(new), *before}),
    )
    _write_digests(path, {digest(path)})


def _write_digests(path: Path, digests: set[str]) -> None:
    write_atomic(digest_file(path), "".join(f"{value}  {path.name}\n" for value in sorted(digests)))


def _bytes(value: Any) -> int:
    """About as many as a checkpoint takes: its tensors, and a little for the rest."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size() + 200
    if isinstance(value, Mapping):
        return sum(map(_bytes, value.values()), 100)
    return sum(map(_bytes, value), 100) if isinstance(value, list | tuple) else 100


def checkpoint_to_resume(folder: Path, run_hash: str, *, first: bool = True) -> Path | None:
    """The newest sound checkpoint in a run's folder, which is locked; None where there is none at all.

    A damaged one is set aside by the `first` process, so that it takes the place of no sound one, with a line that says
    why. Raises ValueError where all are damaged, or one is of another run.
    """
    damaged: list[str] = []
    for path in (folder / "checkpoints" / name for name in (LAST, PREVIOUS)):
        if not os.path.lexists(path):
            continue
        try:
            stored = read_checkpoint(path)
        except MoreThanDataError:
            raise  # nothing to be set aside in silence, and no reason to delete a run
        except (ValueError, FileNotFoundError) as error:  # or the first process has just set it aside
            damaged.append(str(error))
            continue
        if stored.get("run", run_hash) != run_hash:  # those of earlier versions do not say
            raise ValueError(
                f"{path} is a checkpoint of another run ({stored['run']}, and this is {run_hash}): put back the one "
                "that belongs there, or choose another folder with --out"
            )
        if damaged and first:
            aside = _free(path.with_name(f"{LAST}.damaged"))
            os.rename(path.with_name(LAST), aside)
            if os.path.lexists(digest_file(path.with_name(LAST))):
                os.rename(digest_file(path.with_name(LAST)), _free(digest_file(aside)))
            sys.stderr.write(
                f"{damaged[0]} (now {aside.name}); going on from {path.name}, at step {stored.get('global_step')}\n"
            )
        return path
    if damaged:
        raise ValueError(f"{'; '.join(damaged)}. To train it from the start, delete {folder}")
    return None


def _free(path: Path) -> Path:
    """The path, or one with a number behind it where that is taken."""
    names = [path, *(path.with_name(f"{path.name}{number}") for number in range(2, 1000))]
    return next(name for name in names if not os.path.lexists(name))
