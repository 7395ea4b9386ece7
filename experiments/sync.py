"""Uploads what was logged to W&B offline below a folder: one run a cell, however often it was killed and continued.

    python -m experiments.sync outputs/ablate_upsampling --dry-run
    python -m experiments.sync outputs/ablate_upsampling

Every attempt of a cell leaves a fragment that counts its rows from 0 and does again what came after the last checkpoint.
`wandb sync` would upload both versions, and it stops at a fragment that a kill left empty. Here the fragments of a cell
are joined in a temporary folder into one run without the rows that were done again, and that is uploaded. The fragments
stay as they are; a marker beside each, the one that `wandb sync` writes, says that it is on the server.
"""

import json
import math
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import rich.table
import wandb
from google.protobuf.message import DecodeError
from rich.console import Console
from rich.text import Text
from wandb.proto import wandb_internal_pb2

from experiments.shell.ending import ending
from experiments.shell.files import locked, write_atomic, write_whole
from experiments.shell.flags import Parser, forgiving_output, refuse
from experiments.tracking.client import CUT, own_environ
from experiments.tracking.loggers import HEADER, STAGED, STEP

pb: Any = wandb_internal_pb2
BLOCK, CHUNK = 32768, struct.Struct("<IHB")  # LevelDB's log format: blocks of chunks of [crc32, length, kind, data]
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4  # kinds of chunk: a whole record, or a part of one
MALFORMED = (ValueError, TypeError, AttributeError, KeyError, RecursionError)
MOST_BYTES = 2**32  # of a record, which is read whole
LOG_COLUMNS = 160  # of a log file or a pipe, which have no width of their own


def read_records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file, up to the torn end that a kill leaves.

    Raises ValueError for a file that is damaged anywhere else.
    """
    if not path.is_file() or path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} must be a file of up to {MOST_BYTES >> 30} GB")
    data = path.read_bytes()
    if not HEADER.startswith(data[: len(HEADER)]):
        raise ValueError(f"{path} is no W&B record: it begins with {data[:7]!r}")
    position, parts = len(HEADER), b""
    while position + CHUNK.size <= len(data):
        if (left := BLOCK - position % BLOCK) < CHUNK.size:  # too short for a header: padding
            position += left
            continue
        checksum, length, kind = CHUNK.unpack_from(data, position)
        chunk = data[position + CHUNK.size : position + CHUNK.size + length]
        if len(chunk) < length or not any(data[position:]):
            return
        if zlib.crc32(chunk, zlib.crc32(bytes([kind]))) != checksum or not FULL <= kind <= LAST:
            raise ValueError(f"{path} is damaged at byte {position}")
        position, parts = position + CHUNK.size + length, chunk if kind in (FULL, FIRST) else parts + chunk
        if kind in (FULL, LAST):
            record = pb.Record()
            record.ParseFromString(parts)
            yield record


def write_records(path: Path, records: Sequence[Any]) -> None:
    """Writes a .wandb file."""
    data = bytearray(HEADER)
    for number, record in enumerate(records, 1):
        record.num = number
        rest, first = record.SerializeToString(), True
        while first or rest:
            if (left := BLOCK - len(data) % BLOCK) < CHUNK.size:
                data += bytes(left)
                left = BLOCK
            part, rest = rest[: left - CHUNK.size], rest[left - CHUNK.size :]
            kind = (FULL if first else LAST) if not rest else (FIRST if first else MIDDLE)
            data += CHUNK.pack(zlib.crc32(part, zlib.crc32(bytes([kind]))), len(part), kind) + part
            first = False
    write_whole(path, lambda file: file.write(data))


def values(items: Any) -> dict[str, Any]:
    """What the items of a history, summary or config record say, nested keys as nested dicts."""
    found: dict[str, Any] = {}
    for item in items:
        *outer, last = item.nested_key or [item.key]
        place = found
        for key in outer:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)
    return found


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
class Cell:
    """The fragments of one run, in the order of their start, and what is to be done with them."""

    folder: Path
    fragments: list[Fragment] = field(default_factory=list)  # without the empty ones
    empty: int = 0
    error: str = ""

    @property
    def finished(self) -> bool:
        exits = self.fragments[-1].of("exit") if self.fragments else []
        return (self.folder / "result.json").exists() or any(one.exit_code == 0 for one in exits)

    @property
    def uploaded(self) -> bool:
        return all(one.marker.exists() or (one.online and not one.cut) for one in self.fragments)

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
        """That of its first fragment; another where the server has a part already, which rows cannot be put in front of."""
        first = str(self.fragments[0].run.run_id)
        return f"{first}-{len(self.fragments)}" if self.known else first


def logged_in() -> bool:
    """Whether there are credentials for W&B; asks nobody at the terminal, and does not prove them."""
    found: bool = wandb.login(prompt=False, verify=False)
    return found


def find_cells(root: Path) -> list[Cell]:
    """Every run below `root` with a part that was logged offline; a fragment that cannot be read is its run's error."""
    cells: dict[Path, Cell] = {}
    for path in sorted(root.glob("**/wandb/*run-*-*/*.wandb")):
        folder = path.parents[2]
        if any(re.fullmatch(r"seed\d+\.old\d+", part) for part in folder.relative_to(root).parts):
            continue  # set aside by a grid that began anew
        cell = cells.setdefault(folder, Cell(folder))
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


def plan_rows(cell: Cell) -> tuple[int, int]:
    """How many rows the fragments hold, and how many of them stay."""
    stay = sum(len(_rows(f, limit)) for f, limit in zip(cell.fragments, _limits(cell.fragments), strict=True))
    return sum(len(fragment.of("history")) for fragment in cell.fragments), stay


def merge(cell: Cell, out: Path) -> Path:
    """Joins the fragments of `cell` into one run, with its files, below the folder `out`; returns the run's folder.

    Of a step that was done again the last version stays. Rows are counted anew, the clock goes on where the attempt
    before left it, the summary is that of the rows that stay.
    """
    first, last = cell.fragments[0], cell.fragments[-1]
    folder = out / f"offline-{first.path.parent.name.removeprefix('offline-')}"
    body: list[Any] = []
    config: dict[str, Any] = {}
    summary: dict[str, list[Any]] = {}
    rows, clock = 0, 0.0
    for fragment, limit in zip(cell.fragments, _limits(cell.fragments), strict=True):
        began = clock
        for original in _kept(fragment, limit):
            record = pb.Record()
            record.CopyFrom(original)
            if record.HasField("history"):
                clock = began + float(values(record.history.item).get("_runtime", 0))
                _number(record.history, rows, clock)
                rows += 1
                of_row: dict[str, list[Any]] = {}
                for item in record.history.item:
                    of_row.setdefault(_path(item)[0], []).append(item)
                summary |= of_row
            elif record.HasField("files"):
                _copy(record.files, fragment.path.parent / "files", folder / "files", cell)
            elif record.HasField("artifact"):
                _point_to_staged(record.artifact, cell)
            body.append(record)
        for update in (*(run.config for run in fragment.of("run")), *fragment.of("config")):
            _update(config, values(update.update))
    head = [record for record in first.records if record.HasField("header")]
    head.append(_run(first.run, last.run, cell.run_id, config))
    head += [record for record in last.records if record.HasField("telemetry")][-1:]
    head += [record for record in last.records if record.HasField("metric")]
    write_records(folder / f"run-{cell.run_id}.wandb", [*head, *body, _summary(summary, clock), _exit(cell, clock)])
    return folder


def _limits(fragments: Sequence[Fragment]) -> list[float]:
    """For each fragment the first step of those after it, from where on its rows were done again."""
    limits, limit = [], math.inf
    for fragment in reversed(fragments):
        limits.append(limit)
        limit = min([limit, *(step for row in fragment.of("history") if (step := _step(row)) is not None)])
    return limits[::-1]


def _rows(fragment: Fragment, limit: float) -> list[Any]:
    """The history records before the step `limit`; one without a step belongs to the step before it."""
    rows, step = [], -1.0
    for record in fragment.records:
        if record.HasField("history"):
            own = _step(record.history)
            step = step if own is None else own
            if step < limit:
                rows.append(record)
    return rows


def _step(history: Any) -> float | None:
    step: float | None = values(history.item).get(STEP)
    return step


def _kept(fragment: Fragment, limit: float) -> list[Any]:
    """The rows that stay, with the media and tables that they show, and the measurements of the machine."""
    rows = _rows(fragment, limit)
    staying, shown = {id(row) for row in rows}, "".join(item.value_json for row in rows for item in row.history.item)

    def stays(record: Any) -> bool:
        if record.HasField("history"):
            return id(record) in staying
        if record.HasField("artifact"):
            return record.artifact.client_id in shown
        if record.HasField("files"):
            return all(not one.path.startswith("media/") or one.path in shown for one in record.files.files)
        return bool(record.HasField("stats"))

    return [record for record in fragment.records if stays(record)]


def _path(item: Any) -> list[str]:
    return list(item.nested_key) or [item.key]


def _number(history: Any, row: int, clock: float) -> None:
    history.step.num = row
    for item in history.item:
        if _path(item) in (["_step"], ["_runtime"]):
            item.value_json = json.dumps(row if _path(item) == ["_step"] else clock)


def _copy(files: Any, source: Path, target: Path, cell: Cell) -> None:
    for one in files.files:
        place = PurePosixPath(one.path)
        inside = (source / place).resolve().is_relative_to(cell.folder.resolve())
        if place.is_absolute() or ".." in place.parts or not inside:
            raise ValueError(
                f"{source.parent} names a file outside of it ({one.path}), which is not uploaded: move it away"
            )
        (target / one.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / one.path, target / one.path)


def _point_to_staged(artifact: Any, cell: Cell) -> None:
    """Where the file of a table lies now: the path that was noted when it was logged ended with that process."""
    if artifact.manifest.manifest_file_path:
        raise ValueError(f"{cell.folder} names a file with the contents of {artifact.name}, which is not read")
    artifact.name = artifact.name.replace(artifact.run_id, cell.run_id, 1)
    artifact.run_id = cell.run_id
    for entry in artifact.manifest.contents:
        staged = cell.folder / STAGED / "artifacts" / "staging" / Path(entry.local_path).name
        inside = staged.resolve().is_relative_to(cell.folder.resolve())
        if staged.is_symlink() or not staged.is_file() or not inside:
            raise ValueError(
                f"{staged} is missing, or a link: the file of {entry.path}: bring the whole folder of the run"
            )
        entry.local_path = str(staged.absolute())


def _update(config: dict[str, Any], new: dict[str, Any]) -> None:
    """Later values win; those of W&B's own entry, which each attempt begins anew, are joined."""
    for name, value in new.items():
        if name == "_wandb" and isinstance(value, dict):
            own = config.setdefault(name, {})
            for key, inner in value.items():
                own[key] = own.get(key, {}) | inner if isinstance(inner, dict) else inner
        else:
            config[name] = value


def _run(first: Any, last: Any, run_id: str, config: dict[str, Any]) -> Any:
    record = pb.Record()
    record.run.CopyFrom(last)
    record.run.run_id = run_id
    record.run.start_time.CopyFrom(first.start_time)
    for name in ("config", "resume", "resumed", "starting_step", "runtime"):
        record.run.ClearField(name)
    for name, value in config.items():
        record.run.config.update.add(key=name, value_json=json.dumps(value))
    return record


def _summary(items: dict[str, list[Any]], clock: float) -> Any:
    record = pb.Record()
    for item in (item for of_name in items.values() for item in of_name):
        record.summary.update.add(nested_key=_path(item), value_json=item.value_json)
    record.summary.update.add(nested_key=["_wandb", "runtime"], value_json=json.dumps(int(clock)))
    return record


def _exit(cell: Cell, clock: float) -> Any:
    record = pb.Record()
    record.exit.exit_code = 0 if cell.finished else 1
    record.exit.runtime = int(clock)
    return record


def upload(cells: Sequence[Cell], entity: str | None, project: str | None) -> None:
    """Joins and uploads `cells` and marks their fragments; what fails becomes the error of its cell."""
    with tempfile.TemporaryDirectory(prefix="seglab-sync-") as temporary, ExitStack() as stack:
        merged = {}
        for number, cell in enumerate(cells):
            try:
                stack.enter_context(locked(cell.folder))
                merged[number] = merge(cell, Path(temporary, str(number)))
            except (OSError, *MALFORMED) as error:
                cell.error = str(error)
        if not merged:
            return
        flags = [*(["--entity", entity] if entity else []), *(["--project", project] if project else [])]
        command = [sys.executable, "-m", "wandb", "sync", *flags, *map(str, merged.values())]
        subprocess.run(command, cwd=temporary, env=own_environ(os.environ), check=False)
        for number, folder in merged.items():
            cell = cells[number]
            if not (folder / f"run-{cell.run_id}.wandb.synced").exists():  # its status is 0 after a failure, too
                cell.error = "wandb sync did not upload it: see above"
                continue
            run_id = cell.run_id  # which the markers change
            for fragment in cell.fragments:
                write_atomic(fragment.marker, run_id + "\n")


def state(cell: Cell, unfinished: bool) -> str:
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


@ending()
def main() -> None:
    forgiving_output()
    parser = Parser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of an experiment or a run, such as outputs/ablate_upsampling")
    parser.add_argument("--dry-run", action="store_true", help="say what would be uploaded and stop")
    parser.add_argument("--unfinished", action="store_true", help="also runs that were killed or have failed")
    parser.add_argument("--entity", help="user or team on the server (default: that of the run, or of the login)")
    parser.add_argument("--project", help="project on the server (default: that of the run)")
    args = parser.parse_args()
    os.environ.pop("WANDB_MODE", None)  # which said offline when the runs were made
    cells = find_cells(args.folder)
    if not cells:
        refuse(f"nothing was logged to W&B offline below {args.folder}: train with --logger wandb")
    todo = [cell for cell in cells if state(cell, args.unfinished).startswith("upload")]
    console = Console(width=None if sys.stdout.isatty() else LOG_COLUMNS)
    table = rich.table.Table("run", "parts", "empty", "rows", "done again", "what to do")
    for cell in cells:
        rows, stay = plan_rows(cell)
        counts = (len(cell.fragments), cell.empty, rows, rows - stay)
        what = Text(state(cell, args.unfinished), overflow="fold")
        table.add_row(Text(str(cell.folder), overflow="fold"), *map(str, counts), what)
    console.print(table)
    if not args.dry_run and todo:
        try:
            known = logged_in()
        except Exception as error:  # noqa: BLE001  # W&B raises several kinds for a key that is none
            refuse(f"{error}: type `wandb login --relogin`, or set WANDB_API_KEY, and call this again")
        if not known:
            refuse("there is no key for W&B: type `wandb login`, or set WANDB_API_KEY, and call this again")
        upload(todo, args.entity, args.project)
    failed = [cell for cell in cells if cell.error]
    for cell in failed:
        console.print(Text(f"error: {cell.folder}: {cell.error}"), soft_wrap=True)
    if not args.dry_run:
        console.print(f"{sum(not cell.error for cell in todo)} uploaded, {len(failed)} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
