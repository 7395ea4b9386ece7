"""Cells on machines that are not there, which are lost now and then: the scheduler is the real one, and time flies."""

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.grids.launchers.base import Asked, Job
from experiments.grids.launchers.on_ray import QUEUED, RETRIES


@dataclass(frozen=True)
class Machines:
    """Spot machines, one cell each at a time. All times in seconds.

    `losses` are those that one machine can expect in an hour of work, at moments that know nothing of each other. A
    lost one is `replaced` after so long; that it is gone is known after `notice`, and only then its cell waits again.
    """

    workers: int
    losses: float = 0.0
    replaced: float = 300.0
    notice: float = 60.0
    startup: float = 60.0  # of each start of a cell: imports, data, and the wait for the claim of the one before
    interval: float = 600.0  # of work between two checkpoints
    saving: float = 5.0  # of a checkpoint, in which nothing else is done
    queued: int = QUEUED  # cells, not a time: those that wait in the launcher, where lost ones go behind them
    seed: int = 0


@dataclass
class Spent:
    """What it came to, in seconds of machines but for the counts."""

    work: float = 0.0  # that is part of a result
    redone: float = 0.0  # what was lost since the last checkpoint
    overhead: float = 0.0  # starts and checkpoints
    losses: int = 0

    @property
    def machines(self) -> float:
        """What is paid for: a machine is, while it has a cell."""
        return self.work + self.redone + self.overhead


class Simulated:
    """See `Launcher`. As Ray does, it takes more cells than run, and starts lost ones again, `RETRIES` times.

    `work` says how many seconds the cell in a folder takes, and `finish` writes its result there.
    """

    devices = "1"

    def __init__(self, machines: Machines, work: Callable[[Path], float], finish: Callable[[Path], None]) -> None:
        self.machines, self.work, self.finish = machines, work, finish
        self.jobs = machines.workers
        self.spent = Spent()
        self._now, self._free, self._unfinished = 0.0, machines.workers, 0
        self._queue: deque[_Cell] = deque()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number, self._cells = itertools.count(), itertools.count()

    @contextmanager
    def open(self, classes: Sequence[str]) -> Iterator[None]:
        yield

    def room(self) -> int:
        return self.jobs + self.machines.queued - self._unfinished

    def start(self, asked: Sequence[Asked]) -> Sequence[Job]:
        cells = [_Cell(one.folder, next(self._cells), self.work(one.folder)) for one in asked]
        self._unfinished += len(cells)
        self._queue.extend(cells)
        self._deal()
        return cells

    def now(self) -> float:
        return self._now

    def pause(self) -> None:
        """The next thing happens."""
        if self._events:
            self._now, _, happens = heapq.heappop(self._events)
            happens()
            self._deal()

    def _at(self, moment: float, happens: Callable[[], None]) -> None:
        heapq.heappush(self._events, (moment, next(self._number), happens))

    def _deal(self) -> None:
        while self._free and self._queue:
            self._free -= 1
            self._begin(self._queue.popleft())

    def _begin(self, cell: "_Cell") -> None:
        """Starts the cell on a machine; how that ends is drawn here, from what tells this start apart alone."""
        of = self.machines
        saves = max(math.ceil(cell.left / of.interval) - 1, 0)  # the last stretch ends with the result
        whole = of.startup + cell.left + saves * of.saving
        drawn = np.random.default_rng([of.seed, cell.number, cell.losses]).exponential()
        lost = drawn * 3600 / of.losses if of.losses else math.inf
        if lost < whole:
            self._at(self._now + lost, lambda: self._lose(cell, lost, saves))
        else:
            self._at(self._now + whole, lambda: self._end(cell, saves))

    def _end(self, cell: "_Cell", saves: int) -> None:
        self._free += 1
        self._unfinished -= 1
        self.spent.work += cell.left
        self.spent.overhead += self.machines.startup + saves * self.machines.saving
        cell.returncode = 0
        cell.place = f"attempt {cell.losses + 1}" if cell.losses else ""
        self.finish(cell.folder)

    def _lose(self, cell: "_Cell", after: float, saves: int) -> None:
        """The machine is gone `after` so many seconds with the cell, and with it the work since the last checkpoint."""
        of = self.machines
        worked = max(after - of.startup, 0.0)
        saved = min(int(worked / (of.interval + of.saving)), saves)
        since = worked - saved * (of.interval + of.saving)
        redone = min(since, of.interval) if saved < saves else since
        self.spent.work += saved * of.interval
        self.spent.redone += redone
        self.spent.overhead += after - saved * of.interval - redone
        self.spent.losses += 1
        cell.left -= saved * of.interval
        cell.losses += 1
        self._at(self._now + of.replaced, self._replace)
        self._at(self._now + of.notice, lambda: self._again(cell))

    def _replace(self) -> None:
        self._free += 1

    def _again(self, cell: "_Cell") -> None:
        if cell.losses <= RETRIES:
            self._queue.append(cell)
        else:
            self._unfinished -= 1
            cell.returncode, cell.lost = 1, "its worker is gone"


class _Cell:
    """A `Job` with `left` seconds of work behind its last checkpoint."""

    def __init__(self, folder: Path, number: int, left: float) -> None:
        self.folder, self.number, self.left, self.losses = folder, number, left, 0
        self.returncode: int | None = None
        self.lost = self.place = ""

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Of one that was ended: time stands still once nobody asks for it."""
        return self.returncode if self.returncode is not None else -15

    def terminate(self) -> None:
        self.returncode = -15

    def kill(self) -> None:
        self.terminate()
