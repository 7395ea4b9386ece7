"""Lightning's training loop, continued exactly: from a step inside an epoch, from a validation, or from an epoch's end.

Lightning guesses from its counters where a checkpoint was written. The guess is wrong where a run is told to end by
steps, after several interruptions, and during a validation. Here the checkpoint says it, and the counters are set from
that.
"""

from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loops.evaluation_loop import RestartStage
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop


class ResumableEpochLoop(_TrainingEpochLoop):
    """The batches of an epoch, or what is left of them."""

    # Whether the validation after the last batch has yet to run, or to run again, when the loop goes on.
    pending = False

    def position(self) -> dict[str, Any]:
        """Where the loop is: batches of this epoch that are done, and whether the validation after the last is not."""
        fetcher = self.trainer.fit_loop._data_fetcher
        assert fetcher is not None
        pending = self.trainer.validating or self._should_check_val_fx(fetcher)
        done: int = self.batch_progress.current.processed  # type: ignore[attr-defined]
        return {"batches": done, "pending": pending, "accumulated": self.trainer.accumulate_grad_batches}

    def place(self, batches: int, pending: bool, accumulated: int) -> None:
        """Sets the counters to those of an uninterrupted run after so many batches of its epoch.

        Counted are batches of which a step accumulated so many, as they were then; now it may be others: see `memory`.
        """
        now, total = self.trainer.accumulate_grad_batches, self.batch_progress.total.processed  # type: ignore[attr-defined]
        batches = batches * now // accumulated
        _set(self.batch_progress.current, batches)
        _set(self.batch_progress.total, total * now // accumulated)
        self.batch_progress.is_last_batch = False
        self.pending = pending
        self._restarting = batches > 0
        self.val_loop._restarting = False  # a validation is repeated whole, as what it had scored is not stored
        self.val_loop.batch_progress.reset()
        if batches and not pending:
            self._batches_that_stepped += 1  # Lightning counts a step after its checkpoint

    def reset(self) -> None:
        if not self._restarting:
            super().reset()
        elif self.pending:
            self.batch_progress.is_last_batch = self._num_ready_batches_reached()
            self.val_loop._restart_stage = RestartStage.RESTARTED_MID_EVALUATION  # `advance` then validates first

    def on_iteration_done(self) -> None:
        super().on_iteration_done()
        self.pending = False

    def _broadcast_sigterm_tensor(self) -> None:
        """Nothing: `experiments.runs.checkpoints.SafePoints` agrees on signals, and also on those of other
        processes."""


class ResumableFitLoop(_FitLoop):
    """The epochs of a run, or what is left of them."""

    epoch_loop: ResumableEpochLoop
    asked = 1  # accumulated batches of a step, before memory made them more

    @property
    def done(self) -> bool:
        # Of a run whose last step is taken, the validation and the end of the epoch may still be to do.
        return not self.epoch_loop.pending and bool(super().done)

    def reset(self) -> None:
        torch.set_grad_enabled(True)  # the counters are right already

    def on_save_checkpoint(self) -> dict[str, Any]:
        within = self.epoch_progress.current.ready > self.epoch_progress.current.processed  # type: ignore[attr-defined]
        now = {"batches": 0, "pending": False, "accumulated": self.trainer.accumulate_grad_batches}
        return {**super().on_save_checkpoint(), "position": self.epoch_loop.position() if within else now}

    def load_state_dict(self, state_dict: dict[str, Any], prefix: str = "") -> None:
        super().load_state_dict(state_dict, prefix)
        epoch = self.epoch_progress.current.processed  # type: ignore[attr-defined]
        _set(self.epoch_progress.current, epoch)
        _set(self.epoch_progress.total, epoch)
        self._restarting = False
        # Checkpoints of earlier versions are those of an epoch's end, or of batches as the run asks for them.
        position = state_dict.get(f"{prefix}state_dict", {}).get("position", {"batches": 0, "pending": False})
        self.epoch_loop.place(**{"accumulated": self.asked, **position})


def _set(progress: Any, done: int) -> None:
    progress.ready = progress.started = progress.processed = progress.completed = done


def make_resumable(trainer: Trainer) -> None:
    """Gives a trainer that has not run yet these loops in the place of Lightning's."""
    theirs = trainer.fit_loop
    loop = ResumableFitLoop(trainer, theirs.min_epochs, theirs.max_epochs)
    loop.epoch_loop = ResumableEpochLoop(trainer, theirs.epoch_loop.min_steps, theirs.epoch_loop.max_steps)
    loop.asked = trainer.accumulate_grad_batches
    trainer.fit_loop = loop
    # Theirs broadcasts inside the handler of SIGTERM, and waits for ever where one process alone is told to end.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
