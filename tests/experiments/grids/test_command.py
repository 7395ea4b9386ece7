"""How a grid ends: with the status of its cells, and with a signal passed on to them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from interrupt import BASE, QUIET, wait_for
from launched import StandIn

import experiments.grids.cells
from experiments.grids.ablation import Ablation, variants
from experiments.grids.cell import end_with_parent
from experiments.grids.command import add_arguments
from experiments.grids.command import run_ablation as run_grid
from experiments.runs.training import train
from experiments.shell.flags import Parser
from experiments.tracking.loggers import Logging

ROOT = Path(__file__).parents[3]


def grid() -> Ablation:
    runs = variants(BASE.but(norm="none"), {"good": {"lr": 0.001}, "bad": {"lr": 1e30}})
    return Ablation(name="ends", question="?", runs=runs, factors={"lr": (0.001, 1e30)}, baseline="good")


@pytest.mark.usefixtures("one_figure")
@pytest.mark.parametrize(("failing", "code"), [({"bad": "x"}, 3), ({"bad": "x", "good": "y"}, 65)])
def test_a_grid_that_ends_in_part_is_3_and_one_without_a_result_ends_as_its_cells(
    failing: dict[str, str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from experiments.grids import command

    class Process:
        returncode = 65

    def run_cells(cells: Any, *args: Any, **kwargs: Any) -> Any:
        failed = [cell for cell in cells if cell.variant in failing]
        for cell in cells:
            cell.process = Process()
            if cell not in failed:
                train(cell.run, cell.folder, **QUIET)
        return failed

    monkeypatch.setattr(command, "run_cells", run_cells)
    parser = Parser(description=None)
    add_arguments(parser)
    assert run_grid(grid(), parser.parse_args(["--out", str(tmp_path), "--seeds", "0"])) == code


@pytest.mark.parametrize("replaced", [False, True], ids=["as it is", "as Ray passes it on"])
def test_a_grid_passes_a_signal_on_and_ends_with_its_status(
    replaced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from experiments.grids import command

    def run_cells(*args: Any, **kwargs: Any) -> Any:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        except SystemExit:
            if replaced:  # ray.wait raises another one than the handler did
                raise SystemExit(1) from None
            raise

    monkeypatch.setattr(command, "run_cells", run_cells)
    parser = Parser(description=None)
    add_arguments(parser)
    assert run_grid(grid(), parser.parse_args(["--out", str(tmp_path), "--seeds", "0"])) == 143
    assert "the same command continues" in capsys.readouterr().err


def test_a_cell_that_still_imports_ends_with_its_grid(tmp_path: Path) -> None:
    """The grid is gone as soon as the cell's interpreter runs, long before torch is there."""
    script = (
        "import os, subprocess, sys, time\ncell = subprocess.Popen([sys.executable, '-X', 'importtime', '-m', "
        "'experiments.grids.cell', sys.argv[1], '--parent', str(os.getpid())], stderr=open(sys.argv[2], 'w'), "
        "start_new_session=True)\nprint(cell.pid, flush=True)\nwhile 'argparse' not in open(sys.argv[2]).read(): "
        "time.sleep(0.01)\ntime.sleep(0.3)\nos.kill(os.getpid(), 9)\n"
    )
    log = tmp_path / "log"
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "cell"), str(log)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    pid = int(done.stdout)
    wait_for(lambda: not running(pid), 5)
    assert "experiments.runs.training" not in log.read_text()  # it had not come so far


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


def test_the_processes_of_a_cell_on_several_devices_have_another_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: type("C", (), {"prctl": staticmethod(lambda *_: 0)}))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(SystemExit):
        end_with_parent(os.getpid())
    end_with_parent(os.getppid())
    monkeypatch.setenv("LOCAL_RANK", "1")
    end_with_parent(os.getpid())


def test_a_killed_cell_says_by_what(tmp_path: Path) -> None:
    from rich.console import Console

    cell = experiments.grids.cells.PlannedCell("v", BASE, tmp_path / "v" / "seed0", 3)
    cell.folder.mkdir(parents=True)

    def begin(folder: Path) -> list[str]:
        (folder / "log.txt").write_text("importing\n/lib/x.py:21: `a` is deprecated, use `b`.\n  warnings.warn(\n")
        return ["sh", "-c", "kill -9 $$"]

    (failed,) = experiments.grids.cells.run_cells(
        [cell],
        Console(),
        launcher=StandIn(1, begin),
        logging=Logging(),
        save_every=10.0,
        command="",
        seconds=lambda c: 1.0,
    )
    assert failed.error == "killed by SIGKILL, most likely because the memory ran out; its last line: importing"
