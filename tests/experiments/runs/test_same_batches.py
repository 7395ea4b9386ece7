"""The same images in the same order and the same losses on any number of processes, also where it changes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded import RECORDED, Steps, record, steps

from experiments.shell.ending import Interrupted
from lightning_modules.components.losses import DENOMINATORS, LOSSES
from lightning_modules.components.whole_step import WholeStep

ROOT = Path(__file__).parents[3]
AGREE = 1e-5


def record_in_two_processes(out: Path, stop: int = 0) -> int:
    command = [sys.executable, str(ROOT / "tests" / "experiments" / "recorded.py"), str(out), str(stop)]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200, env=environ)
    assert done.returncode in (0, 143), done.stderr
    return done.returncode


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Steps:
    """The 24 steps of a run in one process that nothing interrupts."""
    out = tmp_path_factory.mktemp("whole") / "run"
    record(RECORDED, out)
    found = steps(out)
    assert [*found] == list(range(1, 25))
    assert all(len({*images}) == 4 for _, images in found.values())
    return found


def agree(found: Steps, whole: Steps) -> None:
    assert [*found] == [*whole]
    assert [images for _, images in found.values()] == [images for _, images in whole.values()]
    assert [loss for loss, _ in found.values()] == pytest.approx([loss for loss, _ in whole.values()], abs=AGREE)


def test_accumulated_batches_are_the_same_steps(whole: Steps, tmp_path: Path) -> None:
    record(RECORDED.but(trainer={"accumulate_grad_batches": 2}), tmp_path / "run")
    agree(steps(tmp_path / "run"), whole)


def test_losses_of_two_processes_are_those_of_one_which_goes_on_where_they_were_killed(
    whole: Steps, tmp_path: Path
) -> None:
    """Twenty steps of two, told to end within an epoch, and the rest in one."""
    assert record_in_two_processes(tmp_path / "run", stop=20) == 143
    assert [*steps(tmp_path / "run")] == list(range(1, 21))
    record(RECORDED, tmp_path / "run")
    agree(steps(tmp_path / "run"), whole)


@pytest.mark.slow
def test_two_processes_go_on_where_one_was_killed(whole: Steps, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        record(RECORDED, tmp_path / "run", stop=5)
    assert [*steps(tmp_path / "run")] == list(range(1, 6))
    assert record_in_two_processes(tmp_path / "run") == 0
    agree(steps(tmp_path / "run"), whole)


def test_what_was_accumulated_before_is_trained_anew_where_its_loss_was_another() -> None:
    accumulated = RECORDED.but(trainer={"accumulate_grad_batches": 2})
    assert [*accumulated.corrections()] == ["accumulated_mean"]
    for same in (RECORDED, accumulated.but(loss="ce_sum"), accumulated.but(loss="dice")):
        assert "accumulated_mean" not in same.corrections()


@pytest.mark.parametrize("loss", [*DENOMINATORS])
def test_the_parts_of_a_step_have_the_gradient_of_the_whole(loss: str) -> None:
    """Of masks of which one has a tenth of the other's labelled pixels."""
    torch.manual_seed(0)
    logits, masks, weights = torch.randn(2, 3, 8, 8), torch.randint(3, (2, 8, 8)), torch.tensor([1.0, 2.0, 0.5])
    masks[1, 1:] = 255
    function: Any = LOSSES[loss]  # type: ignore[index]
    gradients = []
    for parts in (1, 2):
        scale = torch.ones((), requires_grad=True)
        step = WholeStep(loss)
        for images, labels in zip(logits.chunk(parts), masks.chunk(parts), strict=True):
            part = function(scale * images, labels, 255, weights)
            (part if parts == 1 else step.part(part, labels, 255, weights) / parts).backward()
        if parts == 2:
            step.complete([scale], parts)
        gradients.append(float(scale.grad))  # type: ignore[arg-type]
    # The weights of borders see all objects of an image alone, so these parts are the same as well.
    assert gradients[1] == pytest.approx(gradients[0], rel=1e-5)
