"""A device whose memory runs out: the micro-batch shrinks, and all that a run is judged by stays."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from interrupt import BASE, OFTEN, QUIET, At, terminate
from lightning.pytorch import Callback
from torch import Tensor

from experiments.runs import memory
from experiments.runs.run import Run
from experiments.runs.training import train
from experiments.shell.ending import Interrupted, NoMemoryError, status
from lightning_modules.unet import UNetModule

ROOT = Path(__file__).parents[3]
# Without zoom no image is padded: a mean over labelled pixels is that of its parts where these have equally many.
STEPS = BASE.but(
    norm="group",
    dropout=0.0,
    optimizer="sgd",
    lr=0.05,
    data={"length": 26, "batch_size": 8, "zoom": (1.0, 1.0)},
    trainer={"max_epochs": 2},
)
RUNS = {
    "epochs": STEPS,
    "accumulate": STEPS.but(trainer={"accumulate_grad_batches": 2}),
    "validate-within": STEPS.but(trainer={"val_check_interval": 2}),
    "validate-share": STEPS.but(trainer={"val_check_interval": 0.7}),
    "validate-by-batches": STEPS.but(
        trainer={"check_val_every_n_epoch": None, "val_check_interval": 2, "max_epochs": None, "max_steps": 5}
    ),
    "limited": STEPS.but(trainer={"limit_train_batches": 2, "max_epochs": 3}),
    # Three of six micro-batches, of which two make a step: the second step has one alone.
    "limited-accumulate": STEPS.but(trainer={"limit_train_batches": 0.6, "accumulate_grad_batches": 2}),
}


def small(monkeypatch: pytest.MonkeyPatch, most: int, when: Callable[[Any], bool] = lambda module: True) -> list[int]:
    """Has training steps of more than `most` images raise as a full GPU does; how many they were, each time."""
    step, raised = UNetModule.training_step, list[int]()

    def limited(self: Any, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        if len(batch["image"]) > most and when(self):
            raised.append(len(batch["image"]))
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of"
            )
        return step(self, batch, batch_idx)

    monkeypatch.setattr(UNetModule, "training_step", limited)
    return raised


class Seen(Callback):
    """The images of each micro-batch, with the step they belong to."""

    def __init__(self) -> None:
        self.images: dict[int, list[int]] = {}

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        # After the last micro-batch of a step its number has gone up.
        done = trainer.fit_loop.epoch_loop._should_accumulate()
        self.images.setdefault(trainer.global_step + done, []).extend(batch["index"].tolist())


def same(one: Path, other: Path) -> None:
    """Whether two runs took the same steps and have the same weights, to 1e-5."""
    stored = [torch.load(out / "checkpoints" / "last.ckpt", weights_only=True) for out in (one, other)]
    assert stored[0]["global_step"] == stored[1]["global_step"]
    assert stored[0]["lr_schedulers"] == stored[1]["lr_schedulers"]
    for name, value in stored[0]["state_dict"].items():
        torch.testing.assert_close(stored[1]["state_dict"][name], value, rtol=1e-5, atol=1e-5)
    rows = [pd.read_csv(out / "metrics.csv").drop(columns="seconds") for out in (one, other)]
    pd.testing.assert_frame_equal(rows[0], rows[1], rtol=1e-4, atol=1e-4)
    results = [json.loads((out / "result.json").read_text()) for out in (one, other)]
    for key in ("hash", "steps", "epochs"):
        assert results[0][key] == results[1][key]


@pytest.mark.parametrize(
    "name",
    [
        *("epochs", "limited-accumulate"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in RUNS if name not in ("epochs", "limited-accumulate")),
    ],
)
def test_steps_and_weights_are_those_of_a_run_that_never_ran_out(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, whole = RUNS[name], Seen()
    train(run, tmp_path / "whole", callbacks=[whole], **QUIET)
    raised, seen = small(monkeypatch, 2), Seen()
    result = train(run, tmp_path / "small", callbacks=[seen], **QUIET)
    first = 8 // run.trainer.get("accumulate_grad_batches", 1)
    assert raised == [size for size in (8, 4) if size <= first]
    assert (result["accumulated"], "norm_batch" in result) == (4, False)
    assert json.loads((tmp_path / "small" / "environment.json").read_text())["micro_batch"] == 2
    assert "too small to train on 4 images at a time: going on with 2, a step has as many" in capsys.readouterr().err
    assert {step: sorted(images) for step, images in seen.images.items()} == {
        step: sorted(images) for step, images in whole.images.items()
    }
    same(tmp_path / "whole", tmp_path / "small")


@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("epochs", "limited-accumulate")),
        "validate-by-batches",
    ],
)
def test_it_goes_on_from_the_last_checkpoint_and_a_resumed_run_keeps_what_fitted(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory in the middle of the second epoch, then a signal two steps before the end."""
    run, whole = RUNS[name], Seen()
    train(run, tmp_path / "whole", callbacks=[whole], **QUIET)
    last = max(whole.images)
    raised, seen = small(monkeypatch, 3, lambda module: module.global_step >= last - 3), Seen()

    class Stop(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == last - 1 and not trainer.fit_loop.epoch_loop._should_accumulate():
                terminate()

    out = tmp_path / "small"
    with pytest.raises(Interrupted):
        train(run, out, callbacks=[seen, Stop()], save_every=OFTEN, **QUIET)
    assert len(raised) == len({*raised})
    tried = len(raised)
    result = train(run, out, callbacks=[seen], resume=True, **QUIET)
    assert len(raised) == tried  # what did not fit is not tried again
    assert result["accumulated"] == 4
    assert {step: sorted(images) for step, images in seen.images.items()} == {
        step: sorted(images) for step, images in whole.images.items()
    }
    same(tmp_path / "whole", out)


def test_a_batch_of_an_odd_number_is_divided_by_what_divides_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = STEPS.but(norm="batch", data={"length": 9, "batch_size": 9}, trainer={"max_epochs": 1})
    raised = small(monkeypatch, 2)
    result = train(run, tmp_path / "run", **QUIET)
    assert raised == [9, 3]
    assert (result["accumulated"], result["norm_batch"], result["steps"]) == (9, 1, 1)
    assert result["hash"] == run.hash


def test_statistics_that_are_measured_anew_take_as_many_images_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, seen = UNetModule.predict, set[int]()

    def limited(self: Any, images: Tensor) -> Tensor:
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        seen.add(len(images))
        return forward(self, images)

    monkeypatch.setattr(UNetModule, "predict", limited)
    run = STEPS.but(norm="batch", average="recalibrate", trainer={"max_epochs": 1})
    assert train(run, tmp_path / "run", **QUIET)["norm_batch"] == 2
    assert seen == {1, 2}  # one in evaluation


@pytest.mark.parametrize(
    ("hook", "expected"),
    [
        ("training_step", r"one image at a time: .*--data\.crop, .*--trainer\.precision .*--model\.checkpointing"),
        ("validation_step", r"score a whole image: --data\.tile 512 predicts it in exact tiles"),
        ("test_step", r"score a whole image: --data\.tile 512 predicts it in exact tiles"),
        ("on_train_start", r"full before the first batch: .*--trainer\.precision bf16-true"),
    ],
)
def test_what_fits_in_no_way_ends_with_the_flags_that_help(
    hook: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any, *_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(UNetModule, hook, full)
    with pytest.raises(NoMemoryError, match=expected) as raised:
        train(STEPS, tmp_path / "run", **QUIET)
    assert status(raised.value) == 1
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 17 GB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("Caught RuntimeError in DataLoader worker process 0.\n ... can't allocate memory"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_which_errors_are_a_full_device(error: Exception, expected: bool) -> None:
    assert memory.ran_out(error) == expected


def test_a_fault_of_another_kind_is_not_tried_again(tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        train(STEPS, tmp_path / "run", callbacks=[At(5, fail)], **QUIET)


SCRIPT = """
import os, torch
from experiments.train import main
from lightning_modules.unet import UNetModule

step = UNetModule.training_step
def limited(self, batch, batch_idx):
    if len(batch["image"]) > 2 and self.global_rank == int(os.environ["FULL"]):
        raise torch.OutOfMemoryError("CUDA out of memory")
    return step(self, batch, batch_idx)
UNetModule.training_step = limited
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("by", ["Lightning", "torchrun"])
def test_of_several_processes_one_that_is_full_ends_all_and_resume_divides(by: str, tmp_path: Path) -> None:
    """Or torchrun starts them again, by the same command."""
    (tmp_path / "full.py").write_text(SCRIPT)
    flags = "--data shapes --data.size 16 --data.length 8 --data.batch_size 8 --model.width 2 --model.depth 2"
    flags += f" --model.norm group --trainer.max_epochs 1 --trainer.accelerator cpu --out {tmp_path / 'run'}"
    command = [sys.executable, str(tmp_path / "full.py"), *flags.split()]
    typed = [[*command, "--trainer.devices", "2"], [*command, "--trainer.devices", "2", "--resume"]]
    if by == "torchrun":
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        typed = [[*torchrun, "--max_restarts", "1", *command[1:]]]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "FULL": "1", "PYTHONPATH": str(ROOT)}
    done = [
        subprocess.run(line, capture_output=True, text=True, check=False, timeout=200, cwd=tmp_path, env=environ)
        for line in typed
    ]
    assert "too small to train on 4 images at a time: the same command with --resume goes on with 2" in done[0].stderr
    assert "Traceback" not in done[0].stderr
    assert [ended.returncode for ended in done] == ([0] if by == "torchrun" else [1, 0]), done
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["accumulated"], result["steps"]) == (2, 1)


def test_the_hash_of_a_run_knows_nothing_of_the_division(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch, 4)
    result = train(STEPS.but(trainer={"max_epochs": 1}), tmp_path / "run", **QUIET)
    stored = json.loads((tmp_path / "run" / "run.json").read_text())
    assert result["hash"] == stored["hash"] == Run.from_config(stored).hash
    assert "accumulate_grad_batches" not in stored["trainer"]
