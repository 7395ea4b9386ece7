"""A launcher whose cells are whatever a test starts in their place."""

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from experiments.grids.launchers.base import Asked, Job
from experiments.grids.processes import Fresh


class StandIn:
    """Starts the command that `begin` returns for the folder of a cell, which it may have done the work of."""

    devices = "auto"

    def __init__(self, jobs: int, begin: Callable[[Path], Sequence[str]]) -> None:
        self.jobs, self.begin = jobs, begin
        self._started: list[Fresh] = []

    @contextmanager
    def open(self, classes: Sequence[str]) -> Iterator[None]:
        yield

    def room(self) -> int:
        return self.jobs - sum(job.returncode is None for job in self._started)

    def start(self, asked: Sequence[Asked]) -> list[Job]:
        jobs = [Fresh([*self.begin(one.folder)], stdin=subprocess.DEVNULL, start_new_session=True) for one in asked]
        self._started += jobs
        return [*jobs]

    def now(self) -> float:
        return time.monotonic()

    def pause(self) -> None:
        time.sleep(0.05)
