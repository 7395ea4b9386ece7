"""What experiments there are below a folder, and what was found in each: nothing is written."""

import html
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.text import Text

from experiments.evidence import schema
from experiments.evidence.experiment import state_of

MOST_READ = 2**16  # bytes of a table.md, which begins with the answer


@dataclass(frozen=True)
class Entry:
    """An experiment as it is listed."""

    folder: Path
    time: float  # of the report, or of the plan
    question: str
    answer: str  # or why there is none


def list_experiments(folder: Path) -> list[Entry]:
    """All experiments in `folder` and below it, the newest first. Raises FileNotFoundError where there is no folder."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is no folder: expected one with experiments in it or below it, such as outputs"
        )
    return sorted((_read(path) for path in _plans(folder)), key=lambda entry: (-entry.time, entry.folder))


def print_experiments(console: Console, folder: Path) -> None:
    entries = list_experiments(folder)
    for entry in entries:
        day = datetime.fromtimestamp(entry.time).strftime("%Y-%m-%d %H:%M")
        console.print(Text(f"{day}  {entry.folder}", style="bold"), soft_wrap=True)
        for line in filter(None, (entry.question, entry.answer)):
            console.print(Text(f"  {line}"), soft_wrap=True)
    if not entries:
        console.print(Text(f"no experiment in {folder} or below it"), soft_wrap=True)


def _plans(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):  # follows no link
        folders[:] = [name for name in folders if not re.fullmatch(r"seed\d+|figures|\..*", name)]
        if "plan.json" in files:
            yield Path(place)


def _read(folder: Path) -> Entry:
    table = folder / "table.md"
    time = (table if table.is_file() else folder / "plan.json").lstat().st_mtime  # of a link that leads nowhere, too
    try:
        plan = schema.read(folder / "plan.json", schema.StoredPlan)
        cells = [(folder / name / f"seed{seed}", name) for name in plan["variants"] for seed in plan["seeds"]]
        done = [cell for cell, name in cells if not state_of(folder, cell, plan, name)]
        return Entry(folder, time, plan["question"], _answer(table, done, len(cells)))
    except (ValueError, OSError) as error:
        return Entry(folder, time, "", " ".join(f"cannot be read: {error}".split()))


def _answer(table: Path, done: list[Path], planned: int) -> str:
    """The first paragraph of the report, and what has changed since."""
    cells = f"{len(done)} of {planned} cells"
    if not table.is_file():
        return f"not reported yet: {cells}"
    with table.open(encoding="utf-8", errors="replace") as file:
        first = file.read(MOST_READ).split("\n\n")[0].strip()
    if not first.startswith("**"):
        return f"reported by an earlier version: {cells}"
    sentence = html.unescape(re.sub(r"\\([^\w\s])", r"\1", first.strip("*")))
    written = table.stat().st_mtime
    newer = sum((cell / "result.json").stat().st_mtime > written for cell in done)
    since = f" ({newer} cells are newer than this report: write it again)" if newer else ""
    return schema.printable(" ".join(sentence.split())) + since
