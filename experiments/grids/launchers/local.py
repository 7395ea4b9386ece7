"""Cells on this machine: as many at a time as CPU cores or GPUs, which are dealt to them, allow."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction

import torch

from experiments.grids.launchers.base import Asked, Job
from experiments.grids.processes import Processes


class Local:
    """A process each. See `Launcher`.

    Args:
        jobs: cells at a time; None for as many as the GPUs, or the CPU cores by `threads`, allow
        threads: CPU threads of a cell
        devices: devices of a cell, a number or "auto"; more than one trains it with DDP
        gpus_per_cell: GPUs of a cell: a share of one, or a whole number, which are then its devices; None for one, or
            for less where `jobs` are more than the GPUs
    """

    def __init__(
        self, *, jobs: int | None, threads: int, devices: str = "auto", gpus_per_cell: float | None = None
    ) -> None:
        self.threads = threads
        names, each = visible_gpus(), gpus_of_cell(devices, gpus_per_cell)
        if gpus_per_cell is not None and not names:
            raise ValueError(f"--gpus-per-cell {gpus_per_cell:g} needs a GPU, and this machine has none")
        self.gpus = Gpus(names, each, jobs)
        self.devices = str(int(each)) if each and each > 1 else devices
        processes = 1 if devices == "auto" else int(devices)
        self.jobs = jobs or self.gpus.cells or max((os.cpu_count() or 1) // (threads * processes), 1)
        self._processes: Processes | None = None
        self._running: list[tuple[Job, list[str]]] = []

    @contextmanager
    def open(self, classes: Sequence[str]) -> Iterator[None]:
        self._running = []
        with Processes(classes, self.threads, self.devices) as self._processes:
            yield

    def room(self) -> int:
        for job, gpus in [*self._running]:
            if job.returncode is not None:
                self._running.remove((job, gpus))
                self.gpus.give(gpus)
        free = self.jobs - len(self._running)
        return min(free, self.gpus.room()) if self.gpus.free else free

    def start(self, asked: Sequence[Asked]) -> list[Job]:
        assert self._processes is not None
        for one in asked:
            gpus = self.gpus.take()
            self._running.append((self._processes.start(one.folder, one.flags, gpus), gpus))
        return [job for job, _ in self._running[len(self._running) - len(asked) :]]

    def now(self) -> float:
        return time.monotonic()

    def pause(self) -> None:
        time.sleep(0.2)


class Gpus:
    """GPUs, by the names of CUDA_VISIBLE_DEVICES, dealt in equal shares or whole.

    `each` is what a cell gets: None stands for one, or for less where `jobs` cells are more than the GPUs.
    """

    def __init__(self, names: Sequence[str], each: float | None, jobs: int | None = None) -> None:
        crowded = Fraction(1, -(-jobs // len(names))) if names and jobs else Fraction(1)
        self.each = crowded if each is None else Fraction(each).limit_denominator(100)
        if not self.each:
            raise ValueError(f"--gpus-per-cell must be at least 0.01, got {each:g}")
        if names and self.each > len(names):
            raise ValueError(
                f"a cell on {float(self.each):g} GPUs does not fit on this machine, which has {len(names)}"
            )
        self.free = dict.fromkeys(names, Fraction(1))
        self.cells = self.room()

    def room(self) -> int:
        """How many more cells fit."""
        if self.each > 1:
            return int(sum(free == 1 for free in self.free.values()) // self.each)
        return sum(int(free // self.each) for free in self.free.values())

    def take(self) -> list[str]:
        """The GPUs of one more cell, the emptiest first; none where there are none."""
        share = min(self.each, Fraction(1))
        chosen = sorted(self.free, key=lambda name: -self.free[name])[: max(int(self.each), 1)]
        for name in chosen:
            self.free[name] -= share
        return chosen

    def give(self, names: Sequence[str]) -> None:
        for name in names:
            self.free[name] += min(self.each, Fraction(1))


def visible_gpus() -> list[str]:
    """The GPUs that this process sees, by the names that CUDA_VISIBLE_DEVICES gives them."""
    count = torch.cuda.device_count()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named[:count] if len(named) >= count else [str(index) for index in range(count)]


def gpus_of_cell(devices: str, gpus_per_cell: float | None) -> float | None:
    """What --devices and --gpus-per-cell say of a cell's GPUs together; ValueError where they say two things."""
    if gpus_per_cell is None:
        return None if devices in ("auto", "1") else float(devices)
    if gpus_per_cell > 1 and gpus_per_cell != int(gpus_per_cell):
        raise ValueError(f"--gpus-per-cell must be a share of one GPU or a whole number, got {gpus_per_cell}")
    if devices != "auto" and float(devices) != max(gpus_per_cell, 1):
        raise ValueError(f"--devices {devices} and --gpus-per-cell {gpus_per_cell:g} disagree: leave out --devices")
    return gpus_per_cell
