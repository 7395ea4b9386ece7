"""A cell on another machine: the process that a worker of Ray or SLURM starts for it, and ends with."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from experiments.grids.launchers.base import STOP_SECONDS

ROOT = Path(__file__).parents[3]
PATIENCE = 120.0  # seconds that a cell waits for the one before it, of a node that is gone, to let go of its folder
ATTEMPT = "== attempt {} on {}"


def run_cell(
    folder: str, flags: Sequence[str], variables: Mapping[str, str], started: Callable[[Any], None] = lambda _: None
) -> dict[str, Any]:
    """Trains the run.json in `folder` in a process of its own and waits for it: how it ended, and where.

    It is an interpreter of its own because training on several devices starts the command of the first anew, and what
    is killed for its memory is then the cell and not the worker. It ends when this process does, however it ends.
    """
    log = Path(folder, "log.txt")
    log.parent.mkdir(parents=True, exist_ok=True)
    attempt, host = 1 + _attempts(log), socket.gethostname()
    with log.open("ab") as file:
        file.write(f"{ATTEMPT.format(attempt, host)}\n".encode())
        file.flush()
        process = subprocess.Popen(
            [sys.executable, "-m", "experiments.grids.cell", folder, *flags, "--parent", str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=_alone() | dict(variables) | {"PYTHONPATH": _path()},
            start_new_session=True,
        )
    begun = time.monotonic()
    started(process)
    try:
        # Not `wait`, which holds a lock that `end` would need where a signal's handler calls it.
        while (status := process.poll()) is None:
            time.sleep(0.1)
    except BaseException:  # this task is cancelled
        end(process)
        raise
    return {"status": status, "host": host, "attempt": attempt, "seconds": time.monotonic() - begun}


def end(process: "subprocess.Popen[bytes]") -> None:
    """Has a cell save and end, and the processes that it has started with it."""
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGTERM)
    until = time.monotonic() + STOP_SECONDS
    while process.poll() is None and time.monotonic() < until:
        with suppress(KeyboardInterrupt):  # Ray repeats itself
            time.sleep(0.1)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _alone() -> dict[str, str]:
    """The environment without what says that this process is one of several: a cell starts its own."""
    ranks = {"RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    return {
        name: value
        for name, value in os.environ.items()
        if name not in ranks and not name.startswith(("SLURM_", "TORCHELASTIC_"))
    }


def _attempts(log: Path) -> int:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return 0
    return sum(line.startswith(ATTEMPT.split("{")[0]) for line in lines)


def _path() -> str:
    """Where the process finds this project, also where it is not installed."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
