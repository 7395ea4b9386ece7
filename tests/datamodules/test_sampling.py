"""Which images a device sees, in which order, also after an interruption."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from datamodules.base import EpochSampler, EvaluationSampler, EvaluationSamples, Sample
from datamodules.shapes import Shapes, ShapesDataModule


def test_order_is_a_function_of_seed_and_epoch() -> None:
    sampler = EpochSampler(10, 4, seed=3)
    first = list(sampler)
    assert first == list(sampler) == list(EpochSampler(10, 4, seed=3))
    assert len(first) == len(sampler) == 8  # two whole batches
    assert len({index for _, index in first}) == 8
    assert first != list(EpochSampler(10, 4, seed=4))
    sampler.set_epoch(1)
    assert {epoch for epoch, _ in sampler} == {1}
    assert [index for _, index in sampler] != [index for _, index in first]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_devices_share_the_same_global_batches(world: int) -> None:
    expected = [set(list(EpochSampler(11, 4, seed=0))[start : start + 4]) for start in (0, 4)]
    ranks = [list(EpochSampler(11, 4, seed=0, rank=rank, world=world)) for rank in range(world)]
    size = 4 // world
    assert [{key for rank in ranks for key in rank[step * size : (step + 1) * size]} for step in (0, 1)] == expected
    assert [len(rank) for rank in ranks] == [2 * size] * world


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [1, 5, 8])
def test_evaluation_deals_every_image_to_one_device(length: int, world: int) -> None:
    ranks = [list(EvaluationSampler(length, rank, world)) for rank in range(world)]
    assert sorted(index for rank in ranks for index in rank if index >= 0) == list(range(length))
    assert {len(rank) for rank in ranks} == {len(EvaluationSampler(length, 0, world))}


def test_padding_of_an_evaluation_is_ignored() -> None:
    dataset = Shapes("val", length=2, size=8)
    sample = EvaluationSamples(dataset, 255)[-1]
    assert sample["index"] == -1
    assert sample["mask"].unique().tolist() == [255]
    assert sample["image"].shape == dataset[0][0].shape


class Recorder(LightningModule):
    """Trains nothing to speak of and remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[tuple[list[int], float]] = []

    def training_step(self, batch: Sample, batch_idx: int) -> torch.Tensor:
        self.seen.append((batch["index"].tolist(), float(batch["image"].double().sum())))
        return self.layer(torch.ones(1, 1)).sum()

    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class Interruption(Exception):  # noqa: N818
    pass


class InterruptAt(Callback):
    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise Interruption


def fit(folder: Path, workers: int, *, stop: int | None = None, resume: Path | None = None, **save: Any) -> list[Any]:
    """Three epochs of three steps, or up to step `stop`; leaves last.ckpt in `folder`."""
    module = Recorder()
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        callbacks=[ModelCheckpoint(folder, save_last=True, **save), InterruptAt(stop)],
    )
    try:
        trainer.fit(module, ShapesDataModule(size=16, length=14, num_workers=workers), ckpt_path=resume)
    except Interruption:
        assert stop is not None
    return module.seen


@pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:You're resuming from a checkpoint that ended")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("save", "stop"),
    [
        ({"save_on_train_epoch_end": True}, 6),
        ({"save_on_train_epoch_end": False}, 6),  # after validation
        ({"every_n_train_steps": 1}, 5),  # within an epoch
        ({"every_n_train_steps": 1}, 6),  # with its last step
    ],
    ids=["epoch", "validation", "step", "last-step"],
)
def test_resumed_run_sees_what_is_left(tmp_path: Path, save: dict[str, Any], stop: int, workers: int) -> None:
    whole = fit(tmp_path / "whole", 0)
    before = fit(tmp_path / "a", 0, stop=stop, **save)
    after = fit(tmp_path / "b", workers, resume=tmp_path / "a/last.ckpt", **save)
    assert len(whole) == 9
    assert before + after == whole
