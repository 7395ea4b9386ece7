"""What Ray costs a cell, and what two workers gain: the numbers of experiments/results/scaling.md.

    python tests/cluster/measured.py --record experiments/results/scaling.md

A cell's overhead is the time from its start by the grid until the grid knows of its end, less that of its own process.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path += [str(Path(__file__).parents[2]), str(Path(__file__).parents[1] / "experiments")]

from interrupt import BASE
from rich.console import Console

from experiments.grids.cells import PlannedCell, run_cells
from experiments.grids.launchers.base import Asked
from experiments.grids.launchers.local import Local
from experiments.grids.launchers.on_ray import OnRay
from experiments.machines.record import made_by, write_section
from experiments.shell.files import write_json
from experiments.tracking.loggers import Logging

CELLS, ROUNDS = 4, 2
RUN = BASE.but(data={"length": 40}, trainer={"max_epochs": 12})


def planned(out: Path) -> list[PlannedCell]:
    return [PlannedCell("v", RUN.but(seed=seed), out / "v" / f"seed{seed}", 12) for seed in range(CELLS)]


def grid(out: Path, launcher: Any) -> float:
    """Seconds of the whole grid."""
    started = time.monotonic()
    usual: dict[str, Any] = {"logging": Logging(), "save_every": 10.0, "command": "measured"}
    assert run_cells(planned(out), Console(quiet=True), launcher=launcher, seconds=lambda cell: 1.0, **usual) == []
    return time.monotonic() - started


def overheads(out: Path, launcher: OnRay) -> list[float]:
    """Seconds of each of some cells, one after the other, beyond those of its process."""
    found = []
    with launcher.open([]):
        for cell in planned(out):
            write_json(cell.folder / "run.json", cell.run.record())
            started = time.monotonic()
            (job,) = launcher.start([Asked(cell.folder, [])])
            while job.poll() is None:
                launcher.pause()
            took = time.monotonic() - started
            assert job.returncode == 0
            found.append(took - launcher.ray.get(job.reference)["seconds"])  # type: ignore[attr-defined]
    return found


def main(record: Path | None) -> None:
    made = made_by()  # before this itself is a load
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        one, two = (OnRay(None, jobs=jobs, threads=1, devices="auto", gpus_per_cell=None) for jobs in (1, 2))
        extra = overheads(out / "overhead", one)
        lines = [
            (
                f"A cell on Ray takes {statistics.median(extra[1:]):.2f} s beyond its own process "
                f"(median of {CELLS - 1}; "
                f"{min(extra[1:]):.2f} to {max(extra[1:]):.2f}), and the first, whose worker starts, {extra[0]:.2f} s."
            ),
            "",
            f"| launcher | cells at a time | seconds of {CELLS} cells, median | from | to | speed-up |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        rows: dict[tuple[str, int], list[float]] = {}
        for number in range(ROUNDS):
            for jobs, on_ray in ((1, one), (2, two)):
                for name, launcher in (("ray", on_ray), ("local", Local(jobs=jobs, threads=1))):
                    rows.setdefault((name, jobs), []).append(grid(out / f"{name} {jobs} {number}", launcher))
        for (name, jobs), seconds in sorted(rows.items()):
            gained = statistics.median(a / b for a, b in zip(rows[name, 1], seconds, strict=True))
            numbers = [statistics.median(seconds), min(seconds), max(seconds)]
            lines.append(f"| {name} | {jobs} | {' | '.join(f'{n:.1f}' for n in numbers)} | {gained:.2f} |")
    text = "\n".join([*lines, "", made])
    print(text)
    if record:
        write_section(record, "launchers", text)


if __name__ == "__main__":
    main(Path(sys.argv[2]) if sys.argv[1:2] == ["--record"] else None)
