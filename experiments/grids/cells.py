"""Cells of a grid, one process each: started, watched, stopped, and continued by what they left on disk."""

import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from experiments.grids.launchers.base import STOP_SECONDS, Asked, Job, Launcher
from experiments.grids.progress import Progress
from experiments.runs.checkpoints import LAST
from experiments.runs.run import Run, changes, check_kept
from experiments.runs.scored import scored_split
from experiments.runs.step import STEPS
from experiments.shell.ending import CannotWriteError
from experiments.shell.files import read_json, write_json
from experiments.shell.found import wanted
from experiments.shell.store import Store
from experiments.tracking.loggers import Logging

WARNING = r"\S+\.py:\d+: |  warnings\.warn\("  # as Python prints one: no reason for an end


@dataclass(eq=False)
class PlannedCell:
    """One variant or stage with one seed, and what became of it.

    `needs` are the cells of the same seed that must be done before it starts, by their names: those of the graph that
    point to it. Of these, it begins with the checkpoints of `parents`.
    """

    variant: str
    planned: Run  # but for what its parents and what it waits for decide
    folder: Path
    epochs: int
    steps: int = 0  # of the optimiser
    parents: Sequence[str] = ()
    needs: "dict[str, PlannedCell]" = field(default_factory=dict)
    stage: bool = False  # nothing is compared with it: it is run for those that need it
    tests: bool = True  # whether it ends with the scores of the test split, or of a trial with those of the validation
    process: Job | None = None
    started: float = 0.0
    error: str = ""

    @property
    def run(self) -> Run:
        """What it trains or does, by what it needs: as planned where that is not done yet."""
        known = {}
        for name, value in self.planned.hparams.items():
            if (of := wanted(value)) and (result := self.needs[of.of].result):
                if not isinstance(result.get("found"), dict) or of.key not in result["found"]:
                    raise ValueError(
                        f"{self.needs[of.of].folder / 'result.json'} must hold {of.key} in found, which {self.variant} "
                        f"waits for: name what the step of {of.of} finds, or delete this folder if it is damaged"
                    )
                known[name] = result["found"][of.key]
        run = self.planned.but(**known)
        return run.after(dict(map(self._start, self.parents))) if self.parents else run

    def _start(self, parent: str) -> tuple[str, str]:
        """The checkpoint of a parent, and what it holds or will hold; see `Run.parents`."""
        cell = self.needs[parent]
        result = cell.result or {}  # of an earlier version, which named the same run otherwise
        return start(cell.folder, result.get("hash", cell.run.hash), cell.steps)

    @property
    def result(self) -> dict[str, Any] | None:
        """What the finished cell wrote, if it is a result of this very run."""
        try:
            stored = read_json(self.folder / "result.json")
        except ValueError:
            return None
        scores = stored.get("test" if self.tests else "val")
        is_whole = isinstance(scores, dict) and "miou" in scores
        return stored if is_whole and stored.get("hash") in self.run.hashes else None

    @property
    def place(self) -> tuple[str, ...]:
        """Where it lies below its grid, in a store as here: VARIANT/SEED, of a trial FOLDER/VARIANT/VALUES/SEED."""
        return self.folder.parts[-2 if self.tests else -4 :]

    def epochs_done(self) -> int:
        if self.result:
            return self.epochs
        try:
            return len((self.folder / "metrics.csv").read_text(encoding="utf-8").splitlines()) - 1
        except OSError:
            return 0


def start(folder: Path, run_hash: str, steps: int) -> tuple[str, str]:
    """The last checkpoint of a cell, and what a run that begins with it calls it."""
    return str(folder / "checkpoints" / LAST), f"run:{run_hash}@{steps}"


def run_cells(
    cells: Sequence[PlannedCell],
    console: Console,
    *,
    launcher: Launcher,
    logging: Logging,
    save_every: float,
    command: str,
    seconds: Callable[[PlannedCell], float],
    store: Store | None = None,
    energy: bool = False,
) -> list[PlannedCell]:
    """Runs what is not done yet, each cell once those that it needs are done, and of one seed the longest first.

    Returns the cells that failed, and with them those that were not started because one that they need has failed.
    `command` is what a person typed to get these cells; `seconds` estimates the time of one. In the `store` of the grid
    each cell has its place, from which others that were done elsewhere come, too.
    """
    if store:
        collect(cells, store)
    waiting: list[PlannedCell] = []
    for cell in reversed(cells):  # a cell stands behind those that it needs
        if cell.result is None and (not cell.stage or any(cell in later.needs.values() for later in waiting)):
            waiting.insert(0, cell)
    cells = [cell for cell in cells if cell in waiting or cell.result]
    rank = _ranks(waiting, seconds)
    running: list[PlannedCell] = []
    failed: list[PlannedCell] = []
    done = {id(cell): seconds(cell) for cell in cells if cell not in waiting}
    again: list[PlannedCell] = []  # those that were lost once, and go on
    flags = ["--command", command, *logging.flags(), "--save-every", str(save_every), *["--energy"] * energy]
    started, before = launcher.now(), sum(done.values())
    total = sum(map(seconds, cells))

    def how_far() -> str:
        spent = launcher.now() - started
        worked = sum(done.values()) + sum(seconds(c) * c.epochs_done() / max(c.epochs, 1) for c in running)
        left = spent * (total - worked) / (worked - before) if worked > before else (total - worked) / launcher.jobs
        return (
            f"{len(done)} of {len(cells)} cells done, "
            f"{worked / total:.0%} of the work, {clock(spent)} so far, about {clock(left)} to go"
        )

    with Progress(console) as progress, launcher.open(_classes(waiting)):
        try:
            while waiting or running:
                for cell in [*waiting] if failed else ():
                    if lacking := [name for name, need in cell.needs.items() if need in failed]:
                        waiting.remove(cell)
                        cell.error = f"not started, because {' and '.join(lacking)} failed"
                        failed.append(cell)
                        console.print(f"[red]{cell.folder}[/red] {cell.error}", soft_wrap=True)
                ready = [c for c in waiting if all(id(n) in done for n in c.needs.values())]
                begun = sorted(ready, key=lambda cell: rank[id(cell)])[: launcher.room()]
                asked = []
                for cell in begun:
                    waiting.remove(cell)
                    if said := make_room(cell.folder, cell.run):
                        console.print(said, soft_wrap=True, markup=False)
                    asked.append(_asked(cell, flags, store))
                    cell.started = launcher.now()
                for cell, job in zip(begun, launcher.start(asked) if asked else (), strict=True):
                    cell.process = job
                    running.append(cell)
                launcher.pause()
                for cell in [c for c in running if c.process is not None and c.process.poll() is not None]:
                    running.remove(cell)
                    if store:
                        try:
                            _collect(cell, store)
                        except CannotWriteError as error:  # others go on; of this one nothing is known here
                            console.print(str(error), soft_wrap=True, markup=False)
                    if cell.process and cell.process.lost and cell.result is None and cell not in again:
                        again.append(cell)
                        console.print(
                            f"{cell.folder} goes on from what it has saved, as {cell.process.lost}",
                            soft_wrap=True,
                            markup=False,
                        )
                        waiting.insert(0, cell)
                    elif _tell_end(cell, console, launcher.now() - cell.started):
                        done[id(cell)] = seconds(cell)
                    else:
                        failed.append(cell)
                if running:
                    progress.show(how_far)
        finally:
            _stop(running)
    return failed


def _asked(cell: PlannedCell, flags: Sequence[str], store: Store | None) -> Asked:
    flags = [*flags, *(["--no-test"] if not cell.tests else [])]
    if store is None:
        return Asked(cell.folder, flags)
    place = store.at(*cell.place)
    place.send(cell.folder / "run.json")
    return Asked(cell.folder, [*flags, "--store", place.url], Path(store.scratch(), *cell.place))


def _collect(cell: PlannedCell, store: Store) -> None:
    """Brings what a cell has left in the store, but for its weights."""
    place = store.at(*cell.place)
    if place.is_from(cell.folder):  # it ran here, and has since said in its log how it ended
        return
    known = {"run.json"} if (cell.folder / "run.json").exists() else {}
    place.fetch(cell.folder, lambda name: not name.startswith("checkpoints/") and name not in known)


def collect(cells: Sequence[PlannedCell], store: Store) -> None:
    """Brings what other machines have done; ValueError where a cell's place in the store is that of another run."""
    kept = {tuple(name.split("/")[:levels]) for name in store.names() for levels in (2, 4)}
    for cell in cells:
        if (place := cell.place) not in kept or cell.result:
            continue
        if store.at(*place).bring("run.json", stored := cell.folder / ".run.json"):
            try:
                check_kept(stored, f"{store.url}/{'/'.join(place)}", cell.run)
            finally:
                stored.unlink(missing_ok=True)
        _collect(cell, store)


def _ranks(cells: Sequence[PlannedCell], seconds: Callable[[PlannedCell], float]) -> dict[int, tuple[int, float, int]]:
    """What cells are started by: seed after seed, then the longest first, counting what waits for it.

    Seeds first, because an interrupted grid then has whole replications of the table. The longest first, because one
    that begins last would run alone at the end.
    """
    behind: dict[int, float] = {}
    for cell in reversed(cells):
        behind[id(cell)] = seconds(cell) + behind.get(id(cell), 0.0)
        for need in cell.needs.values():
            behind[id(need)] = max(behind.get(id(need), 0.0), behind[id(cell)])
    seeds = list(dict.fromkeys(cell.planned.seed for cell in cells))
    return {id(c): (seeds.index(c.planned.seed), -behind[id(c)], place) for place, c in enumerate(cells)}


def _classes(cells: Sequence[PlannedCell]) -> list[str]:
    """What their processes import, by name: modules, data modules and steps."""
    names = set[str]()
    for run in (cell.planned for cell in cells):
        config = run.config()
        names |= {config["module"], config["datamodule"], *([".".join(STEPS[run.step.name])] if run.step else [])}
    return sorted(names)


def _tell_end(cell: PlannedCell, console: Console, seconds: float) -> bool:
    """Prints how a cell ended that has a result, or why it has none; whether it has one."""
    took = clock(seconds)
    if cell.process and cell.process.place:
        took += f", {cell.process.place}"
    if result := cell.result:
        split = "test" if cell.tests else "val"
        named = scored_split(result) if cell.tests else split
        console.print(f"{cell.folder}: {named}/miou {result[split]['miou']:.4f} ({took})", soft_wrap=True)
        return True
    cell.error = _why(cell)
    console.print(f"[red]{cell.folder} failed[/red] after {took}: {escape(cell.error)}", soft_wrap=True)
    return False


def _why(cell: PlannedCell) -> str:
    """What the process of a cell without a result ended by."""
    last, process = _last_line(cell.folder / "log.txt"), cell.process
    by = f"ended with {process.returncode}" if process else ""
    if process and process.returncode is not None and process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        by = f"killed by {name}{', most likely because the memory ran out' if name == 'SIGKILL' else ''}"
    if process and process.lost:
        how = f" ({by})" if by.startswith("killed") else ""
        return f"{process.lost}{how}; the same command goes on from what it has saved; its last line: {last}"
    return f"{by}; its last line: {last}" if by.startswith("killed") else last


def make_room(folder: Path, run: Run) -> str:
    """Writes the run.json of a cell, and sets aside what another run has left there; what is to be said of that."""
    stored, said = folder / "run.json", ""
    if stored.exists() and (why := _of_another(stored, run)):
        aside = _set_aside(folder)
        said = f"{folder} held another run ({why}), which is now {aside}; it starts anew"
    write_json(stored, run.record())
    return said


def _of_another(stored: Path, run: Run) -> str:
    """What a run.json says otherwise than `run`, or why it cannot be read; empty where it is the same."""
    try:
        return "; ".join(changes(read_json(stored), run))
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"


def _set_aside(folder: Path) -> Path:
    """Keeps what another configuration left: seed0 -> seed0.old1. Nothing of the user's is deleted."""
    number = next(n for n in range(1, 10_000) if not folder.with_name(f"{folder.name}.old{n}").exists())
    return folder.rename(folder.with_name(f"{folder.name}.old{number}"))


def _stop(cells: Sequence[PlannedCell]) -> None:
    """Ends the processes of all cells, which save at the same time, as a scheduler may not wait for long."""
    processes = [cell.process for cell in cells if cell.process is not None and cell.process.poll() is None]
    for process in processes:
        process.terminate()  # it alone: it saves, and ends the processes that it has started
    for process in (left := _not_ended(processes)):
        process.kill()
    _not_ended(left)  # a scheduler may tell of an end long after it


def _not_ended(processes: Sequence[Job]) -> list[Job]:
    """Those that have not ended after a while."""
    until, left = time.monotonic() + STOP_SECONDS, []
    for process in processes:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            left.append(process)
    return left


def _last_line(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        lines = [line for line in text.splitlines() if line.strip() and not re.match(WARNING, line)]
    except OSError:  # its process has not begun
        lines = []
    return lines[-1] if lines else "no output"


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
