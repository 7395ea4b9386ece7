"""Cells as jobs of SLURM: those that can begin at the same time are one array, requeued when they are preempted."""

import math
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from experiments.grids.launchers.base import STOP_SECONDS, Asked, Job
from experiments.grids.launchers.remote import PATIENCE, end, run_cell
from experiments.grids.processes import variables

MOST = 1000  # jobs of an array, which SLURM allows by default
ASKED = 60  # seconds between two questions for jobs that have left no word
SIGNALLED = 600.0  # seconds that a job which was told to end waits for the end: preempted, it is told twice
MINUTES = 24 * 60  # of one cell; one that takes longer is requeued, and goes on


class OnSlurm:
    """See `Launcher`.

    Args:
        folder: for the scripts, pickles and logs of the jobs; on a file system that all nodes see, as the cells are
        options: of sbatch, NAME=VALUE each
        jobs: cells at a time; None for as many as SLURM lets run
        threads: CPU threads of a cell
        devices: devices of a cell, a number or "auto"
        gpus_per_cell: GPUs of a cell, a whole number; None for none
    """

    def __init__(
        self,
        folder: Path,
        options: Sequence[str],
        *,
        jobs: int | None,
        threads: int,
        devices: str,
        gpus_per_cell: float | None,
    ) -> None:
        if find_spec("submitit") is None:
            raise ValueError('--launcher slurm needs a package: pip install -e ".[cluster]"')
        import submitit
        from submitit.slurm.slurm import SlurmInfoWatcher

        if gpus_per_cell is not None and gpus_per_cell != int(gpus_per_cell):
            raise ValueError(
                f"SLURM gives whole GPUs, got --gpus-per-cell {gpus_per_cell:g}: a job of several small cells is a "
                "node with --launcher ray or local on it"
            )
        gpus = int(gpus_per_cell or 0)
        self.devices = str(gpus) if gpus > 1 else devices
        self.threads, self.limit = threads, jobs
        self.jobs = jobs or MOST
        try:
            # Requeued as often as it takes: each time it goes on.
            self._executor = submitit.AutoExecutor(folder.absolute(), cluster="slurm", slurm_max_num_timeout=10_000)
        except RuntimeError as error:
            raise ValueError(
                f"SLURM is not to be found here ({error}): call this on a machine that has sbatch, or use --launcher "
                "local or ray"
            ) from error
        processes = 1 if devices == "auto" else int(devices)
        self._executor.update_parameters(
            **{
                "name": "seglab",
                "timeout_min": MINUTES,
                "cpus_per_task": threads * max(processes, gpus),
                "slurm_array_parallelism": min(self.jobs, MOST),
                "slurm_signal_delay_s": 2 * STOP_SECONDS,
                **({"gpus_per_node": gpus} if gpus else {}),
                **_options(options),
            }
        )
        submitit.SlurmJob.watcher = SlurmInfoWatcher(delay_s=ASKED)
        self._running: list[_Job] = []

    @contextmanager
    def open(self, classes: Sequence[str]) -> Iterator[None]:
        self._running = []
        yield

    def room(self) -> int:
        self._running = [job for job in self._running if job.returncode is None]
        return (MOST if self.limit is None else self.limit) - len(self._running)

    def start(self, asked: Sequence[Asked]) -> list[Job]:
        given, flags = variables(self.threads), ["--devices", self.devices]
        cells = [Cell(str((one.scratch or one.folder).absolute()), [*flags, *one.flags], given) for one in asked]
        try:
            submitted = self._executor.submit_array(cells) if len(cells) > 1 else [self._executor.submit(cells[0])]
        except RuntimeError as error:  # of submitit, what sbatch has said
            said = " ".join(str(error).split())
            raise ValueError(f"SLURM takes no job ({said}): see to --slurm and to the limits of the account") from error
        started = [_Job(job, one.folder / "log.txt") for job, one in zip(submitted, asked, strict=True)]
        self._running += started
        return [*started]

    def now(self) -> float:
        return time.monotonic()

    def pause(self) -> None:
        time.sleep(1.0)


class Cell:
    """What a job of SLURM calls; submitit stores it, and calls `checkpoint` before the job is preempted or times
    out."""

    def __init__(self, folder: str, flags: Sequence[str], variables: Mapping[str, str]) -> None:
        self.folder, self.flags, self.variables = folder, [*flags, "--patience", str(PATIENCE)], dict(variables)
        self._process: Any = None

    def __call__(self) -> dict[str, Any]:
        ended = run_cell(self.folder, self.flags, self.variables, self._started)
        if ended["status"] == 128 + signal.SIGTERM:  # SLURM has told the cell, and is about to tell this one
            time.sleep(SIGNALLED)
        return ended

    def _started(self, process: Any) -> None:
        self._process = process

    def checkpoint(self) -> Any:
        """Has the cell save; the job is queued again, and goes on from there."""
        import submitit

        if self._process is not None:
            end(self._process)
        self._process = None
        return submitit.helpers.DelayedSubmission(self)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_process": None}


class _Job:
    """A job of SLURM: a `Job`."""

    def __init__(self, job: Any, log: Path) -> None:
        self.job, self.log = job, log
        self.returncode: int | None = None
        self.lost = self.place = ""

    def poll(self) -> int | None:
        if self.returncode is None and self.job.done():
            try:
                ended = self.job.result()
                self.returncode = ended["status"]
                again = f"attempt {ended['attempt']}, " if ended["attempt"] > 1 else ""
                self.place = f"{again}on {ended['host']}"
            except Exception as error:  # noqa: BLE001  # whatever submitit has to say of a job without a result
                said = str(error).strip().splitlines() or [""]
                self.returncode, self.lost = 1, f"SLURM ended its job {self.job.job_id} ({said[0]})"
                if not self.log.exists():
                    self.log.write_text(f"see {self.job.paths.stderr}\n", encoding="utf-8")
        return self.returncode

    def wait(self, timeout: float) -> int:
        """As that of `subprocess.Popen`; raises subprocess.TimeoutExpired after so many seconds."""
        until = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired("experiments.grids.cell", timeout)
            time.sleep(0.2)
        return status

    def terminate(self) -> None:
        if self.poll() is None:
            with suppress(Exception):
                self.job.cancel(check=False)

    kill = terminate


def _options(words: Sequence[str]) -> dict[str, Any]:
    """Options of sbatch as submitit takes them; ValueError for what is no NAME=VALUE."""
    options: dict[str, Any] = {}
    for word in words:
        name, separator, value = word.lstrip("-").partition("=")
        if not separator or not name:
            raise ValueError(f"--slurm takes options of sbatch, NAME=VALUE each, got {word!r}")
        options[name.replace("-", "_")] = value
    minutes = {"timeout_min": _minutes(options.pop("time"))} if "time" in options else {}
    return {**minutes, "slurm_additional_parameters": options}


def _minutes(value: str) -> int:
    """A time limit as SLURM reads it, in whole minutes: MINUTES[:SECONDS], HOURS:MINUTES:SECONDS, or
    DAYS-HOURS[:MINUTES[:SECONDS]]."""
    days, dash, clock = value.rpartition("-")
    try:
        parts = [int(part) for part in clock.split(":")]
        if dash:
            hours, minutes, seconds = [*parts, 0, 0][:3]
        else:
            hours, minutes, seconds = parts if len(parts) == 3 else [0, *parts, 0][:3]
        return 1440 * int(days or 0) + 60 * hours + minutes + math.ceil(seconds / 60)
    except ValueError:
        raise ValueError(f"--slurm time must be minutes or DAYS-HOURS:MINUTES:SECONDS, got {value!r}") from None
