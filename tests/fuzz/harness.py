"""Runs inputs in processes of their own, so that one that kills its process is noticed and named, and counts what
became of them."""

import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

# Of 100 inputs so many are of a kind: all of them take about as long.
SHARES = {"images": 30, "texts": 25, "stored": 20, "crf": 20, "flags": 5}
SECONDS = 1.0  # of processor time, as other programs may keep the processor from an input
HANG = 60.0  # seconds without a result after which a process is killed

One = Callable[[random.Random, Path], str]


@dataclass
class Tally:
    """What became of the inputs of one kind."""

    inputs: int = 0
    read: int = 0
    refused: int = 0
    uncaught: list[dict[str, Any]] = field(default_factory=list)  # index, type, message
    slow: list[dict[str, Any]] = field(default_factory=list)  # index, seconds
    slowest_s: float = 0.0
    cpu_s: float = 0.0

    def record(self) -> dict[str, Any]:
        """Plain numbers; `per_s` is that of one processor."""
        rate = round(self.inputs / self.cpu_s, 1) if self.cpu_s else None
        parts = {name: value for name, value in vars(self).items() if name != "cpu_s"}
        return parts | {"slowest_s": round(self.slowest_s, 3), "per_s": rate}

    def add(self, other: "Tally") -> None:
        for name, value in vars(other).items():
            setattr(self, name, max(self.slowest_s, value) if name == "slowest_s" else getattr(self, name) + value)


def rng_of(seed: int, name: str, index: int) -> random.Random:
    """What decides on input `index` of the kind `name`."""
    return random.Random(f"{seed}/{name}/{index}")


def attempt(one: One, name: str, seed: int, index: int, folder: Path, *, show: bool = False) -> Tally:
    """The tally of one input, which gets `folder` empty and leaves it so."""
    tally, start = Tally(inputs=1), time.process_time()
    try:
        outcome = one(rng_of(seed, name, index), folder)
        if outcome not in ("read", "refused"):
            raise AssertionError(f"one() must return read or refused, got {outcome!r}")
        setattr(tally, outcome, 1)
    except Exception as error:  # noqa: BLE001 - any that comes here is what is looked for
        tally.uncaught.append({"index": index, "type": type(error).__name__, "message": str(error)[:300]})
        if show:
            traceback.print_exc()
    tally.slowest_s = tally.cpu_s = time.process_time() - start
    if tally.slowest_s > SECONDS:
        tally.slow.append({"index": index, "seconds": round(tally.slowest_s, 2)})
    with os.scandir(folder) as entries:
        for entry in entries:
            shutil.rmtree(entry.path) if entry.is_dir(follow_symlinks=False) else os.unlink(entry.path)
    return tally


def work(name: str, seed: int, indices: list[int], current: Any, results: Connection) -> None:
    """Does the inputs in a process of its own; `current` always holds the index of the one that it is at."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is asked to stop, and ends this one
    parent = os.getppid()
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    os.environ.update(SEGLAB_CACHE=str(folder / "cache"), OMP_NUM_THREADS="1")
    (folder / "input").mkdir()
    try:
        one = import_module(f"tests.fuzz.{name}").one
        if len(indices) > 1:  # libraries of image formats write there what they think of a file
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        part, sent = Tally(), time.monotonic()
        for position, index in enumerate(indices):
            current.value = index
            part.add(attempt(one, name, seed, index, folder / "input", show=len(indices) == 1))
            if time.monotonic() - sent > 0.5 or part.uncaught or position + 1 == len(indices):
                results.send((position + 1, part))
                part, sent = Tally(), time.monotonic()
            if os.getppid() != parent:
                return
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Job:
    """A process at work on a part of the inputs of a kind, begun anew behind an input that kills it."""

    name: str
    seed: int
    indices: list[int]

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.current = context.Value("q", -1, lock=False)
        self.results, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=work, args=(self.name, self.seed, self.indices, self.current, theirs))
        self.process.start()
        theirs.close()  # so that the end of the process is the end of the pipe
        self.heard = time.monotonic() + HANG  # imports take long on a busy machine

    def look(self, ready: bool) -> Tally:
        """What has come since, and what has become of the process."""
        if ready:
            try:
                done, tally = self.results.recv()
            except (EOFError, OSError):
                return self._ended()
            self.indices, self.heard = self.indices[done - self._done() :], time.monotonic()
            self._sent = done
            return tally
        if time.monotonic() - self.heard > HANG:
            self.process.kill()
            return self._ended(f"no result within {HANG:.0f} s")
        return Tally()

    _sent: int = 0

    def _done(self) -> int:
        return self._sent

    def _ended(self, why: str = "") -> Tally:
        self.process.join()
        self._sent = 0
        if not self.indices:
            return Tally()
        code, index = self.process.exitcode or 0, self.current.value
        if index < 0:
            raise SystemExit(f"the process for {self.name} ended before its first input, exit status {code}")
        kind = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        # The inputs before it whose results were lost are done again: they give the same.
        self.indices.remove(index)
        if self.indices:
            self.start()
        entry = {"index": index, "type": "Hang" if why else kind, "message": why or "the process died"}
        return Tally(inputs=1, uncaught=[entry])


def run(kinds: dict[str, int], seed: int, first: int, jobs: int) -> Iterator[dict[str, Tally]]:
    """The tallies so far, again and again until all inputs are done."""
    tallies = {name: Tally() for name in kinds}
    parts = [(name, list(range(first + j, first + n, jobs))) for name, n in kinds.items() for j in range(jobs)]
    waiting = [part for part in parts if part[1]]
    working: list[Job] = []
    try:
        while waiting or working:
            while waiting and len(working) < jobs:
                name, indices = waiting.pop(0)
                working.append(Job(name, seed, indices))
            ready = wait([job.results for job in working], timeout=1.0)
            for job in working:
                tallies[job.name].add(job.look(job.results in ready))
            working = [job for job in working if job.indices or job.process.is_alive()]
            yield tallies
    finally:
        for job in working:
            job.process.terminate()


def available() -> list[str]:
    """The kinds that this checkout has."""
    return [name for name in SHARES if find_spec(f"tests.fuzz.{name}")]


def shares(names: list[str], count: int) -> dict[str, int]:
    """How many of `count` inputs are of each kind."""
    whole = sum(SHARES[name] for name in names)
    parts = {name: count * SHARES[name] // whole for name in names}
    parts[names[0]] += count - sum(parts.values())
    return parts
