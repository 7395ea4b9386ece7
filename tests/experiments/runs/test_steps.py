"""What happens beside the arithmetic of a step: what it logs, and what its random numbers follow from."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from datamodules.shapes import ShapesDataModule
from experiments.runs.callbacks import SeedSteps
from lightning_modules.base import Batch
from lightning_modules.unet import UNetModule


class LogsEachStep(UNetModule):
    def loss(self, images: Tensor, masks: Tensor) -> Tensor:
        self.latest = super().loss(images, masks)
        return self.latest

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.log_dict({"each/loss": self.latest.detach(), "each/lr": rate})
        return loss


class Rows(CSVLogger):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: Any, step: Any = None) -> None:
        self.rows.append((step, dict(metrics)))


@pytest.mark.parametrize(
    ("flags", "logged"),
    [
        ({"log_every_n_steps": 3, "max_epochs": 2}, [2, 5]),
        ({"log_every_n_steps": 2, "max_epochs": 2, "accumulate_grad_batches": 2}, [1, 3, 5, 7]),
        ({"log_every_n_steps": 3, "max_epochs": 2, "val_check_interval": 2}, [2, 5]),
        ({"log_every_n_steps": 50, "max_steps": 5}, []),
    ],
)
def test_loggers_get_of_each_step_what_they_got_when_every_one_was_logged(
    flags: dict[str, Any], logged: list[int], tmp_path: Path
) -> None:
    logger = Rows(tmp_path)
    trainer = Trainer(
        **flags,
        logger=logger,
        accelerator="cpu",
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = ShapesDataModule(size=16, length=8, batch_size=2)
    trainer.fit(LogsEachStep(3, 255, width=2, depth=1), data)  # 4 batches an epoch
    of_steps = [(step, row) for step, row in logger.rows if "each/loss" in row]
    assert [step for step, _ in of_steps] == logged
    for _, row in of_steps:
        assert (row["train/loss"], row["train/lr"]) == (row["each/loss"], row["each/lr"])
    assert sum("train/loss_epoch" in row for _, row in logger.rows) == 2


def test_callbacks_find_the_loss_of_the_last_step_of_an_epoch(tmp_path: Path) -> None:
    trainer = Trainer(
        max_epochs=1,
        logger=False,
        accelerator="cpu",
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(LogsEachStep(3, 255, width=2, depth=1), ShapesDataModule(size=16, length=8, batch_size=2))
    assert trainer.callback_metrics["train/loss"] == trainer.callback_metrics["each/loss"]


def test_a_step_draws_as_after_manual_seed() -> None:
    trainer: Any = SimpleNamespace(fit_loop=SimpleNamespace(total_batch_idx=7), global_rank=1)
    module: Any = nn.Module()
    module.device = torch.device("cpu")
    SeedSteps(3).on_train_batch_start(trainer, module, {}, 0)
    drawn = torch.rand(5), torch.nn.functional.dropout(torch.ones(50), 0.5)
    torch.manual_seed(int(np.random.SeedSequence([3, 7, 1]).generate_state(1, np.uint64)[0]))
    assert torch.equal(drawn[0], torch.rand(5))
    assert torch.equal(drawn[1], torch.nn.functional.dropout(torch.ones(50), 0.5))
