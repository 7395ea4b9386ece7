"""Joins the attempts at a run that was logged to W&B into one run, and uploads it."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Any

import wandb

from experiments.shell.files import locked, write_atomic
from experiments.tracking.attempts import MALFORMED, Fragment, LoggedRun, limits, rows_before
from experiments.tracking.client import own_environ
from experiments.tracking.loggers import STAGED
from experiments.tracking.records import pb, values, write_records


def logged_in() -> bool:
    """Whether there are credentials for W&B; asks nobody at the terminal, and does not prove them."""
    has_key: bool = wandb.login(prompt=False, verify=False)
    return has_key


def merge(cell: LoggedRun, out: Path) -> Path:
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
    for fragment, limit in zip(cell.fragments, limits(cell.fragments), strict=True):
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


def _kept(fragment: Fragment, limit: float) -> list[Any]:
    """The rows that stay, with the media and tables that they show, and the measurements of the machine."""
    rows = rows_before(fragment, limit)
    staying, shown = {id(row) for row in rows}, "".join(item.value_json for row in rows for item in row.history.item)

    def stays(record: Any) -> bool:
        if record.HasField("history"):
            return id(record) in staying
        if record.HasField("artifact"):
            return record.artifact.client_id in shown
        if record.HasField("files"):
            return all(not file.path.startswith("media/") or file.path in shown for file in record.files.files)
        return bool(record.HasField("stats"))

    return [record for record in fragment.records if stays(record)]


def _path(item: Any) -> list[str]:
    return list(item.nested_key) or [item.key]


def _number(history: Any, row: int, clock: float) -> None:
    history.step.num = row
    for item in history.item:
        if _path(item) in (["_step"], ["_runtime"]):
            item.value_json = json.dumps(row if _path(item) == ["_step"] else clock)


def _copy(files: Any, source: Path, target: Path, cell: LoggedRun) -> None:
    for file in files.files:
        place = PurePosixPath(file.path)
        inside = (source / place).resolve().is_relative_to(cell.folder.resolve())
        if place.is_absolute() or ".." in place.parts or not inside:
            raise ValueError(
                f"{source.parent} names a file outside of it ({file.path}), which is not uploaded: move it away"
            )
        (target / file.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / file.path, target / file.path)


def _point_to_staged(artifact: Any, cell: LoggedRun) -> None:
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
            entry = config.setdefault(name, {})
            for key, inner in value.items():
                entry[key] = entry.get(key, {}) | inner if isinstance(inner, dict) else inner
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


def _exit(cell: LoggedRun, clock: float) -> Any:
    record = pb.Record()
    record.exit.exit_code = 0 if cell.finished else 1
    record.exit.runtime = int(clock)
    return record


def upload(cells: Sequence[LoggedRun], entity: str | None, project: str | None) -> None:
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
