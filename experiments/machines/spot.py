"""A grid on spot machines: the real scheduler over simulated machines, and what it comes to."""

import io
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
from rich.console import Console

from datamodules.shapes import ShapesDataModule
from experiments.grids.cells import PlannedCell, run_cells
from experiments.grids.launchers.on_ray import RETRIES
from experiments.grids.launchers.simulated import Machines, Simulated, Spent
from experiments.runs.run import Run
from experiments.tracking.loggers import Logging
from lightning_modules.unet import UNetModule

SEEDS = 5  # of each variant
SPREAD = 0.4  # standard deviation of the logarithm of a cell's hours
SHARED_MEMORY = Path("/dev/shm")
COLUMNS = ["checkpoint every", "losses", "work redone", "starts and checkpoints", "machine-hours", "hours", "price"]
COLUMNS += ["failed"]


@dataclass(frozen=True)
class Ran:
    """What became of a grid: in hours, but for `spent` (seconds) and `failed` (cells)."""

    makespan: float
    spent: Spent
    failed: int
    times: dict[str, int]  # how often a cell wrote its result


def durations(cells: int, hours: float, seed: int = 0) -> list[float]:
    """Seconds of work of each cell: log-normal about a median of so many `hours`, the same for each call."""
    return [float(s) for s in 3600 * hours * np.exp(SPREAD * np.random.default_rng(seed).normal(size=cells))]


def simulate(machines: Machines, seconds: Sequence[float]) -> Ran:
    """Runs a grid of cells that take so many seconds each, by the scheduler that runs real ones.

    Folders, run.json and result.json are real; what lies between is not.
    """
    place = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None  # the files are small, and many
    with tempfile.TemporaryDirectory(dir=place) as root:
        cells = [_planned(Path(root), number) for number in range(len(seconds))]
        takes = {cell.folder: float(s) for cell, s in zip(cells, seconds, strict=True)}
        times = dict.fromkeys((cell.folder.name for cell in cells), 0)

        def finish(folder: Path) -> None:
            times[folder.name] += 1
            run = Run.from_config(json.loads((folder / "run.json").read_text(encoding="utf-8")))
            result = {"hash": run.hash, "status": "done", "test": {"miou": 0.5}}
            (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")

        launcher = Simulated(machines, takes.__getitem__, finish)
        failed = run_cells(
            cells,
            Console(file=io.StringIO()),
            launcher=launcher,
            logging=Logging(),
            save_every=machines.interval / 60,
            command="python -m experiments.plan_cluster",
            seconds=lambda cell: takes[cell.folder],
        )
        return Ran(launcher.now() / 3600, launcher.spent, len(failed), times)


def _planned(root: Path, number: int) -> PlannedCell:
    """A cell whose settings are those of no other: variants differ in their learning rate."""
    hparams = {"lr": 1e-3 * (1 + number // SEEDS)}
    run = Run(module=UNetModule, datamodule=ShapesDataModule, hparams=hparams, seed=number % SEEDS)
    return PlannedCell(f"variant {number // SEEDS}", run, root / f"{number:05}", epochs=1)


def best_interval(saving: float, losses: float) -> float:
    """Seconds between checkpoints by which least is spent (Young, CACM 17(9), 1974): sqrt(2 x saving x MTBF)."""
    return math.sqrt(2 * saving * 3600 / losses) if losses else math.inf


def told(
    machines: Machines, seconds: Sequence[float], minutes: Sequence[float], spot: float, demand: float, draws: int
) -> str:
    """Markdown: a row without a loss, by the price on `demand`, and one for each interval of so many minutes.

    A row is the median of so many `draws` of the losses.
    """
    usual = f"{machines.interval / 60:g} min"
    rows = [(f"{usual}, none lost, on demand", [simulate(replace(machines, losses=0.0), seconds)], demand)]
    kinds = [(f"{m:g} min", replace(machines, interval=60 * m)) for m in minutes]
    for name, of in [*kinds, (f"{usual}, none queued", replace(machines, queued=0))]:
        rows.append((name, [simulate(replace(of, seed=seed), seconds) for seed in range(draws)], spot))
    lines = [f"| {' | '.join(COLUMNS)} |", f"|---|{'---:|' * (len(COLUMNS) - 1)}"]
    for name, ran, price in rows:
        parts = ("losses", "redone", "overhead", "machines", "work")
        losses, redone, overhead, paid, work = (median(getattr(one.spent, part) for one in ran) for part in parts)
        cells = [f"{losses:,.0f}", f"{redone / 3600:,.1f} h, {redone / work:.2%}", f"{overhead / 3600:,.1f} h"]
        cells += [f"{paid / 3600:,.0f}", f"{median(one.makespan for one in ran):.1f}", f"{price * paid / 3600:,.0f}"]
        lines.append(f"| {name} | {' | '.join(cells)} | {sum(one.failed for one in ran)} |")
    prices = f"{spot:g} an hour of a spot machine, {demand:g} of one on demand; only machines with a cell cost."
    return "\n".join(
        [*lines, "", f"{_assumed(machines, seconds, draws)}; {prices}", "", *_known(machines, sum(seconds))]
    )


def _assumed(of: Machines, seconds: Sequence[float], draws: int) -> str:
    said = (
        f"{len(seconds):,} cells of {median(seconds) / 3600:.1f} h (median; W = {sum(seconds) / 3600:,.0f} h in all) "
    )
    said += (
        f"on M = {of.workers} machines. Assumed: L = {of.losses:g} losses an hour of a machine with a cell (Poisson; "
    )
    said += (
        f"medians of {draws} draws), known after {of.notice:g} s, replaced after {of.replaced:g} s; {of.startup:g} s "
    )
    return f"{said}for each start of a cell, s = {of.saving:g} s for each checkpoint"


def _known(of: Machines, work: float) -> list[str]:
    """What formulas say, beside which the simulation is to be read; `work` in seconds."""
    hours, best = work / 3600, best_interval(of.saving, of.losses) / 60
    how = f"sqrt(2 x {of.saving:g} s x 3600 s / {of.losses:g})"
    return [
        f"- At least W / M = {hours / of.workers:.1f} hours; losses about L x W = {of.losses * hours:.0f}.",
        "- Work redone: about losses x interval / 2 where a cell takes many intervals, at most losses x interval.",
        f"- The interval that costs least: about sqrt(2 s / L) = {how} = {best:.1f} min.",
        f"- The launcher keeps {of.queued} cells waiting beside those that run, and a lost one goes behind them.",
        "- In the last row none waits there, so that a lost one is the next.",
        f"- A cell survives {RETRIES} losses in the launcher, and is then started once more.",
    ]
