"""The same images in the same order and the same losses on any number of processes, also where it changes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from recorded import RECORDED, Steps, record, steps

from experiments.shell.ending import Interrupted

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
