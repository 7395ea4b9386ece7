"""Cells as processes of their own: forked from one that has imported everything, and each an interpreter of its own."""

import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from interrupt import BASE, outcome, unequal, wait_for
from rich.console import Console

from datamodules.brain import BrainDataModule, read_template
from datamodules.shapes import ShapesDataModule
from experiments.grids import processes, warm
from experiments.grids.cells import PlannedCell, _stop, run_cells
from experiments.grids.launchers.local import Local
from experiments.grids.processes import Forked, Processes, can_fork
from experiments.runs.checkpoints import Signals
from experiments.shell.files import read_json
from experiments.tracking.loggers import Logging

if sys.platform != "linux":
    pytest.skip("processes are forked, and seen in /proc", allow_module_level=True)

ENDLESS = BASE.but(trainer={"max_epochs": 100_000})
SLOW = pytest.mark.slow
WAYS = ["forked", pytest.param("fresh", marks=SLOW)]


@pytest.fixture
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How cells are started, where the machine may have a GPU."""
    monkeypatch.setattr(processes, "can_fork", lambda *_: request.param == "forked")
    return str(request.param)


def cells(out: Path, **runs: Any) -> list[PlannedCell]:
    return [PlannedCell(name, run, out / name / "seed0", run.trainer["max_epochs"]) for name, run in runs.items()]


def run(planned: list[PlannedCell], **how: Any) -> list[PlannedCell]:
    where = {"jobs": 2, "threads": 1} | {name: how.pop(name) for name in ("jobs", "threads", "devices") if name in how}
    usual = {"logging": Logging(), "save_every": 10.0, "command": "it", **how}
    return run_cells(planned, Console(), launcher=Local(**where), seconds=lambda cell: 1.0, **usual)


def children(pid: int) -> list[int]:
    """Those of a process and theirs."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            state, parent = (entry / "stat").read_text().rpartition(") ")[2].split()[:2]
        except (OSError, ValueError):
            continue
        if int(parent) == pid and state not in "ZX":
            found += [int(entry.name), *children(int(entry.name))]
    return found


def running(pid: int) -> bool:
    return processes._is_running(pid)


def told(cell: PlannedCell) -> list[str]:
    """What a cell printed, without what Lightning recommends, which is another package each time."""
    return [line for line in (cell.folder / "log.txt").read_text().splitlines() if "Tip:" not in line]


def is_saved(cell: PlannedCell) -> bool:
    """Whether nothing that was reported is lost."""
    last = (cell.folder / "metrics.csv").read_text().splitlines()[-1]
    stored = torch.load(cell.folder / "checkpoints" / "last.ckpt", weights_only=True)
    return bool(stored["global_step"] >= int(last.split(",")[1]))


def test_a_forked_cell_is_bit_identical_to_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With data workers and dropout; the third fails, by which the others are not disturbed."""
    before = children(os.getpid())
    found: dict[bool, list[dict[str, Any]]] = {}
    logs: dict[bool, list[list[str]]] = {}
    for forked in (True, False):
        monkeypatch.setattr(processes, "can_fork", lambda *_, forked=forked: forked)
        out = tmp_path / str(forked)
        planned = cells(out, a=BASE, workers=BASE.but(seed=1, data={"num_workers": 2}), bad=BASE.but(lr=1e30))
        (bad,) = run(planned, jobs=2)
        assert bad.variant == "bad" and bad.process is not None and bad.process.returncode == 65
        assert isinstance(bad.process, Forked) == forked
        assert bad.error.startswith("error: the training loss is")
        found[forked] = [outcome(cell.folder) for cell in planned[:2]]
        for cell in planned[:2]:
            assert "error" not in (cell.folder / "log.txt").read_text()
            assert read_json(cell.folder / "environment.json")["command"] == "it"
            assert read_json(cell.folder / "environment.json")["torch_threads"] == 1
        logs[forked] = [told(cell) for cell in planned]
    assert unequal(found[True], found[False]) == []
    assert logs[True] == logs[False]
    assert children(os.getpid()) == before
    assert "a/seed0: test/miou" in capsys.readouterr().out.replace("\n", "")


@pytest.mark.parametrize("way", WAYS, indirect=True)
def test_a_cell_that_is_killed_is_named_and_the_others_go_on(
    way: str, tmp_path: Path, meanwhile: Callable[[Callable[[], None]], None]
) -> None:
    killed, other, later = planned = cells(tmp_path, killed=ENDLESS, other=BASE, later=BASE.but(seed=1))

    def kill() -> None:
        wait_for(lambda: killed.epochs_done() > 1, 120)
        assert killed.process is not None
        os.kill(killed.process.pid, signal.SIGKILL)

    meanwhile(kill)
    assert run(planned) == [killed]
    assert killed.error.startswith("killed by SIGKILL, most likely because the memory ran out; its last line: ")
    assert killed.process is not None and killed.process.returncode == -signal.SIGKILL
    assert other.result and later.result


def test_cells_whose_common_process_is_killed_go_on_once_and_the_second_time_say_so(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    meanwhile: Callable[[Callable[[], None]], None],
) -> None:
    monkeypatch.setattr(processes, "can_fork", lambda *_: True)
    before = children(os.getpid())
    one, two, later = planned = cells(tmp_path, one=ENDLESS, two=ENDLESS.but(seed=1), later=BASE)

    def common() -> list[int]:
        found = [cell.process for cell in (one, two) if isinstance(cell.process, Forked)]
        return [process._warm.process.pid for process in found if process.returncode is None]

    def kill() -> None:
        killed: list[int] = []
        done = [0]
        for _ in range(2):
            wait_for(lambda: len(common()) == 2 and len({*common()}) == 1 and not {*common()} & {*killed}, 120)
            wait_for(lambda: min(one.epochs_done(), two.epochs_done()) > done[-1] + 1, 120)
            done.append(max(one.epochs_done(), two.epochs_done()))
            killed.append(common()[0])
            os.kill(killed[-1], signal.SIGKILL)

    meanwhile(kill)
    assert {*run(planned)} == {one, two}
    assert capsys.readouterr().out.replace("\n", " ").count("goes on from what it has saved, as the process") == 2
    for cell in (one, two):
        assert cell.error.startswith(
            "the process that it was forked from is gone (killed by SIGKILL, most likely because the memory ran out); "
            "the same command goes on from what it has saved"
        )
        assert is_saved(cell)
    assert later.result
    assert children(os.getpid()) == before


def test_all_cells_are_told_to_end_before_any_is_waited_for(tmp_path: Path) -> None:
    events = []

    class Process:
        pid, returncode = 0, None

        def poll(self) -> None: ...

        def terminate(self) -> None:
            events.append("told")

        def wait(self, timeout: float = 0) -> None:
            events.append("waited")

    ending = cells(tmp_path, a=BASE, b=BASE.but(seed=1))
    for cell in ending:
        cell.process = Process()  # type: ignore[assignment]
    _stop(ending)
    assert events == ["told", "told", "waited", "waited"]


def grid(out: Path, forked: bool) -> None:
    """What a grid does with its cells, in a process of its own."""
    processes.can_fork = lambda *_: forked  # type: ignore[assignment]
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)
    os.setsid()
    with Signals():
        run(cells(out, a=ENDLESS, b=ENDLESS.but(seed=1, data={"num_workers": 1})))


@pytest.mark.parametrize("way", WAYS, indirect=True)
@pytest.mark.parametrize(
    "signum",
    [
        signal.SIGTERM,
        signal.SIGKILL,
        pytest.param(signal.SIGINT, marks=SLOW),
        pytest.param(signal.SIGHUP, marks=SLOW),
    ],
)
def test_a_grid_that_ends_takes_its_cells_with_it_and_they_save(way: str, signum: int, tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=grid, args=(tmp_path, way == "forked"))
    process.start()
    assert process.pid is not None
    planned = cells(tmp_path, a=ENDLESS, b=ENDLESS)
    try:
        wait_for(lambda: all(cell.epochs_done() > 1 for cell in planned), 120)
        below = children(process.pid)
        assert len(below) == {"forked": 1, "fresh": 0}[way] + 2 + 2  # a worker for each of the two splits
        os.kill(process.pid, signum)
        process.join(60)
        assert process.exitcode == (128 + signum if signum != signal.SIGKILL else -signum)
        wait_for(lambda: not any(map(running, below)), 15)
    finally:
        process.kill()
    for cell in planned:
        assert is_saved(cell)
        assert "SIGTERM: ending after this step" in (cell.folder / "log.txt").read_text()


def test_a_signal_while_it_still_imports_leaves_no_process(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=grid, args=(tmp_path, True))
    process.start()
    assert process.pid is not None
    wait_for(lambda: bool(children(process.pid or 0)), 60)
    (below,) = children(process.pid)
    process.kill()
    wait_for(lambda: not running(below), 5)


def test_a_process_that_cannot_be_forked_from_leaves_the_cells_to_interpreters(tmp_path: Path) -> None:
    folder = tmp_path / "v" / "seed0"
    folder.mkdir(parents=True)
    with Processes(["datamodules.none.None"], 1, "1") as started:
        started._forks = True
        process = started.start(folder, [])
        assert not isinstance(process, Forked)
        assert process.wait(120) == 2
    assert "error: " in (folder / "log.txt").read_text() and "run.json" in (folder / "log.txt").read_text()


@pytest.mark.parametrize("way", ["forked"], indirect=True)
def test_a_forked_cell_logs_to_wandb(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    (cell,) = planned = cells(tmp_path / "grid", a=BASE)
    assert run(planned, logging=Logging("wandb")) == []
    (stored,) = cell.folder.glob("wandb/offline-run-*/run-*.wandb")
    assert stored.stat().st_size > 1000
    assert cell.result


def test_only_cells_of_one_cpu_thread_are_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert can_fork(1, "auto") and can_fork(1, "1")
    assert not can_fork(2, "auto") and not can_fork(1, "2")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not can_fork(1, "auto")
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not can_fork(1, "auto")


def test_what_data_modules_share_is_read_before_the_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(ShapesDataModule, "read_shared", classmethod(lambda cls: read.append(cls.__name__)))
    monkeypatch.setattr(warm.gc, "freeze", lambda: read.append("frozen"))
    warm.prepare(["datamodules.shapes.ShapesDataModule", "lightning_modules.unet.UNetModule"])
    assert read == ["ShapesDataModule", "frozen"]
    BrainDataModule.read_shared()
    assert read_template.cache_info().currsize == 1


def test_a_process_with_threads_is_not_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends without a word: its cells are interpreters."""
    monkeypatch.setattr(os, "listdir", lambda path: ["1", "2"])
    monkeypatch.setattr(warm, "prepare", lambda classes: None)
    monkeypatch.setattr(warm, "serve", lambda grid: pytest.fail("it would fork"))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    words = ["--parent", str(os.getppid()), "--socket", str(theirs.detach())]
    monkeypatch.setattr(sys, "argv", ["warm", *words])
    monkeypatch.setattr("experiments.grids.cell.end_with_parent", lambda parent: None)
    warm.main()
    assert ours.recv(100) == b""
    ours.close()
