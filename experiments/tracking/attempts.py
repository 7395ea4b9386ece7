"""What was logged to W&B below a folder: the runs, and the attempts at each, which leave a fragment each."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from experiments.tracking.loggers import CUT, STEP
from experiments.tracking.records import read_records, values

MALFORMED = (ValueError, TypeError, AttributeError, KeyError, RecursionError)


@dataclass(frozen=True)
class Fragment:
    """One attempt of a cell: a folder of W&B with its record."""

    path: Path  # the .wandb file
    records: list[Any]

    def of(self, kind: str) -> list[Any]:
        return [getattr(record, kind) for record in self.records if record.WhichOneof("record_type") == kind]

    @property
    def run(self) -> Any:
        return self.of("run")[0]

    @property
    def online(self) -> bool:
        return not self.path.parent.name.startswith("offline-")

    @property
    def cut(self) -> bool:
        """Whether the server did not take the whole of it in time, see tracking.client.Client."""
        return self.path.with_name(self.path.name + CUT).exists()

    @property
    def marker(self) -> Path:
        return self.path.with_name(f"{self.path.name}.synced")


@dataclass
class LoggedRun:
    """The fragments of one run, in the order of their start, and what is to be done with them."""

    folder: Path
    fragments: list[Fragment] = field(default_factory=list)  # without the empty ones
    empty: int = 0
    error: str = ""

    @property
    def finished(self) -> bool:
        exits = self.fragments[-1].of("exit") if self.fragments else []
        return (self.folder / "result.json").exists() or any(ended.exit_code == 0 for ended in exits)

    @property
    def uploaded(self) -> bool:
        return all(fragment.marker.exists() or (fragment.online and not fragment.cut) for fragment in self.fragments)

    @property
    def known(self) -> set[str]:
        """Ids of the runs on the server that hold a part of this one."""
        ids = {fragment.run.run_id for fragment in self.fragments if fragment.online}
        for fragment in self.fragments:
            if fragment.marker.exists():  # by upload below with the run's id, by `wandb sync` without
                text = fragment.marker.read_text(encoding="utf-8").strip()
                ids.add(text if re.fullmatch(r"[\w-]+", text) else fragment.run.run_id)
        return ids

    @property
    def run_id(self) -> str:
        """That of its first fragment; another where the server has a part already, which rows cannot be put in front
        of."""
        first = str(self.fragments[0].run.run_id)
        return f"{first}-{len(self.fragments)}" if self.known else first


def find_runs(root: Path) -> list[LoggedRun]:
    """Every run below `root` with a part that was logged offline; a fragment that cannot be read is its run's error."""
    cells: dict[Path, LoggedRun] = {}
    for path in sorted(root.glob("**/wandb/*run-*-*/*.wandb")):
        folder = path.parents[2]
        if any(re.fullmatch(r"seed\d+\.old\d+", part) for part in folder.relative_to(root).parts):
            continue  # set aside by a grid that began anew
        cell = cells.setdefault(folder, LoggedRun(folder))
        try:
            fragment = Fragment(path, list(read_records(path)))
            if fragment.of("run") and not re.fullmatch(r"[\w-]{1,128}", fragment.run.run_id, re.ASCII):
                raise ValueError(f"{path} has no name of a run")  # it becomes that of a file
        except (OSError, ValueError, DecodeError) as error:
            cell.error = f"{error}; move {path.parent} away to upload the run without it"
            continue
        if fragment.of("run"):
            cell.fragments.append(fragment)
        else:
            cell.empty += 1
    for cell in cells.values():
        cell.fragments.sort(key=lambda f: (f.run.start_time.seconds, f.run.start_time.nanos, f.path))
        try:  # of what a stranger has written every part may be of another kind
            _ = plan_rows(cell), cell.known
        except MALFORMED as error:
            cell.error = f"the record of W&B is none ({type(error).__name__}); move {cell.folder / 'wandb'} away"
            cell.fragments = []
    return [cell for cell in cells.values() if cell.error or not all(f.online and not f.cut for f in cell.fragments)]


def plan_rows(cell: LoggedRun) -> tuple[int, int]:
    """How many rows the fragments hold, and how many of them stay."""
    stay = sum(len(rows_before(f, limit)) for f, limit in zip(cell.fragments, limits(cell.fragments), strict=True))
    return sum(len(fragment.of("history")) for fragment in cell.fragments), stay


def limits(fragments: Sequence[Fragment]) -> list[float]:
    """For each fragment the first step of those after it, from where on its rows were done again."""
    limits, limit = [], math.inf
    for fragment in reversed(fragments):
        limits.append(limit)
        limit = min([limit, *(step for row in fragment.of("history") if (step := _step(row)) is not None)])
    return limits[::-1]


def rows_before(fragment: Fragment, limit: float) -> list[Any]:
    """The history records before the step `limit`; one without a step belongs to the step before it."""
    rows, step = [], -1.0
    for record in fragment.records:
        if record.HasField("history"):
            of_row = _step(record.history)
            step = step if of_row is None else of_row
            if step < limit:
                rows.append(record)
    return rows


def _step(history: Any) -> float | None:
    step: float | None = values(history.item).get(STEP)
    return step


def state(cell: LoggedRun, unfinished: bool) -> str:
    """What is to be done with a cell, in words; "upload" begins those that are uploaded."""
    if cell.error:
        return f"error: {cell.error}"
    if not cell.fragments:
        return "nothing was logged: a kill came first"
    if cell.uploaded:
        return "on the server"
    if not (cell.finished or unfinished):
        return "not finished: continue it, or upload it as it is with --unfinished"
    other = ", ".join(sorted(cell.known))
    return f"upload as {cell.run_id}" + (f", a run of its own; delete {other}, which has a part of it" if other else "")
