"""What experiments.benchmark_scaling measures is what happens, and its table is what was measured."""

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from datamodules.shapes import ShapesDataModule
from experiments import benchmark_scaling
from experiments.benchmark_scaling import Way, exchanged, measure, parse, table, ways
from experiments.machines import record
from experiments.machines.steps import Asked, Measured, Watch
from experiments.runs.run import Run
from experiments.runs.training import train
from lightning_modules.unet import UNetModule

HPARAMS = {"width": 2, "depth": 1, "norm": "group"}


def run(**data: Any) -> Run:
    return Run(module=UNetModule, datamodule=ShapesDataModule, hparams=HPARAMS, data={"size": 16, **data})


def test_weak_scaling_adds_images_and_strong_scaling_shares_them() -> None:
    assert ways([4, 2], 8) == [
        Way("both", 1, 8),
        Way("weak", 2, 16),
        Way("weak", 4, 32),
        Way("strong", 2, 8),
        Way("strong", 4, 8),
    ]
    with pytest.raises(ValueError, match=r"--data.batch_size must be a multiple of each of --processes.* 8 and 3"):
        ways([3], 8)


def test_flags_are_those_of_the_model_and_the_data() -> None:
    found, args = parse(
        ["--processes", "1", "4", "--model", "fcn", "--data.batch_size", "8", "--trainer.precision", "bf16-mixed"]
    )
    assert (found.module.__name__, found.data["batch_size"], found.trainer) == (
        "FCNModule",
        8,
        {"precision": "bf16-mixed"},
    )
    assert (args.processes, args.rounds, args.record) == ([1, 4], 3, None)


def test_the_steps_of_a_training_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the end of an epoch, whose saving belongs to no step; the wait for data and the step are told apart."""
    slow = ShapesDataModule.load

    def load(self: ShapesDataModule, split: str) -> Any:
        class Slow(type(slow(self, split))):  # type: ignore[misc]
            def __getitem__(self, index: int) -> Any:
                time.sleep(0.02 * (split == "train"))
                return super().__getitem__(index)

        return Slow(split, self.length, self.size)

    monkeypatch.setattr(ShapesDataModule, "load", load)
    asked = Asked({}, processes=1, warmup=1, steps=3, accelerator="cpu")
    trainer = {"max_steps": asked.total, "limit_val_batches": 1}
    watch, work = Watch(asked), UNetModule.loss

    def loss(self: UNetModule, *args: Any) -> Any:
        time.sleep(0.1)
        return work(self, *args)

    monkeypatch.setattr(UNetModule, "loss", loss)
    train(run(batch_size=2, length=10).but(trainer=trainer), tmp_path, callbacks=[watch], test=False, accelerator="cpu")
    found = watch.measured()
    assert watch.step == asked.total == 10
    assert 0.04 <= found.data < 0.1 <= found.compute and found.exchange == 0
    assert 0.14 <= found.period < 2 * (found.data + found.compute)
    parameters = sum(p.numel() for p in UNetModule(3, 255, **HPARAMS).parameters())
    assert found.gradient_bytes == 4 * parameters


def test_an_epoch_of_one_step_cannot_be_timed(tmp_path: Path) -> None:
    watch = Watch(Asked({}, processes=1, warmup=1, steps=1, accelerator="cpu"))
    trainer = {"max_steps": 4, "limit_val_batches": 1}
    train(run(batch_size=4, length=4).but(trainer=trainer), tmp_path, callbacks=[watch], test=False, accelerator="cpu")
    with pytest.raises(ValueError, match="an epoch must have at least 2 steps"):
        watch.measured()


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_every_other_step_that_is_taken_apart_exchanges_nothing(group: None) -> None:
    wrapped = DistributedDataParallel(nn.Linear(2, 2))
    exchanges = list[int]()

    def exchange(step: int, bucket: distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
        exchanges.append(watch.step)
        time.sleep(0.05)
        future = torch.futures.Future[torch.Tensor]()
        future.set_result(bucket.buffer())
        return future

    wrapped.register_comm_hook(0, exchange)
    watch = Watch(Asked({}, processes=2, warmup=1, steps=3, accelerator="cpu"))
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(model=wrapped, root_device=torch.device("cpu")))
    module: Any = wrapped
    watch.on_train_epoch_start(trainer, module)
    for number in range(10):
        watch.on_train_batch_start(trainer, module, None, number)
        wrapped(torch.ones(1, 2)).sum().backward()
        watch.on_train_batch_end(trainer, module, None, None, number)
    assert exchanges == [0, 1, 2, 3, 4, 6, 8]
    assert 0.04 < watch.measured().exchange < 0.2


ROUNDS = [Measured(0.5, 0.1, 0.3, 0.0, 0.0, 4_000_000), Measured(0.4, 0.1, 0.3, 0.0, 0.0, 4_000_000)]
FASTER = Measured(0.3, 0.1, 0.2, 0.1, 0.0, 4_000_000)


def test_efficiency_is_images_a_second_of_a_process_over_those_of_one() -> None:
    found = {Way("both", 1, 8): [[ROUNDS[0]], [ROUNDS[1]]], Way("weak", 2, 16): [[FASTER, FASTER]]}
    _, _, alone, weak = table(found).splitlines()
    assert alone.startswith(
        "| both | 1 | 8 | 18.00 | 16.00 20.00 | 100% | 100.0 ms, 25% | 300.0 ms, 75% | 0.0 ms, 0% |"
    )
    assert weak.startswith(
        "| weak | 2 | 16 | 53.33 | 53.33 53.33 | 148% | 100.0 ms, 25% | 200.0 ms, 50% | 100.0 ms, 25% |"
    )
    assert "2 processes: 2 (n - 1) / n x bytes = 4,000,000 bytes each in 100.00 ms" in exchanged(found)
    assert exchanged(found).endswith("0.04 GB/s.")


@pytest.mark.slow
def test_two_processes_share_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    _, args = parse(["--steps", "2", "--warmup", "1", "--accelerator", "cpu"])
    first, second = measure(run(), Way("strong", 2, 4), args)
    assert first.gradient_bytes == second.gradient_bytes > 0 and first.period > 0 and second.compute > 0


def test_what_fails_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = SimpleNamespace(returncode=1, stderr="x\nerror: no room\ny\n")
    monkeypatch.setattr(benchmark_scaling.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(ValueError, match="2 processes failed: error: no room"):
        measure(run(), Way("weak", 2, 4), parse([])[1])


def test_a_section_is_replaced_and_all_else_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scaling.md"
    path.write_text("# Title\n\nOwn words.\n")
    record.write_section(path, "measured", "first \\1")
    record.write_section(path, "plan", "other")
    record.write_section(path, "measured", "second \\1")
    marked = "<!-- begin measured -->\nsecond \\1\n<!-- end measured -->"
    assert path.read_text() == f"# Title\n\nOwn words.\n\n{marked}\n\n<!-- begin plan -->\nother\n<!-- end plan -->\n"
    monkeypatch.setattr(record.os, "getloadavg", lambda: (9.0, 0, 0))
    assert record.made_by("a GPU").startswith("**Provisional: the load average was 9.0")
    monkeypatch.setattr(record.os, "getloadavg", lambda: (0.1, 0, 0))
    assert record.made_by("a GPU").startswith("```sh\n") and "\na GPU, torch " in record.made_by("a GPU")
