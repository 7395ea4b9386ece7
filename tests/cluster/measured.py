"""What Ray costs a cell, and what two workers gain: the numbers of experiments/results/scaling.md.

    python tests/cluster/measured.py

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


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        one, two = (OnRay(None, jobs=jobs, threads=1, devices="auto", gpus_per_cell=None) for jobs in (1, 2))
        extra = overheads(out / "overhead", one)
        print(f"overhead of a cell on Ray: first {extra[0]:.2f} s, then median {statistics.median(extra[1:]):.2f} s")
        rows: dict[str, list[float]] = {"ray 1": [], "ray 2": [], "local 1": [], "local 2": []}
        for number in range(ROUNDS):
            for name, launcher in (("ray 1", one), ("ray 2", two)):
                rows[name].append(grid(out / f"{name} {number}", launcher))
            for jobs in (1, 2):
                rows[f"local {jobs}"].append(grid(out / f"local {jobs} {number}", Local(jobs=jobs, threads=1)))
        for name, seconds in rows.items():
            of = rows[name.split()[0] + " 1"]
            ratios = [a / b for a, b in zip(of, seconds, strict=True)]
            print(
                f"{CELLS} cells, {name} at a time: median {statistics.median(seconds):.1f} s "
                f"({min(seconds):.1f} to {max(seconds):.1f}), speed-up {statistics.median(ratios):.2f}"
            )


if __name__ == "__main__":
    main()
