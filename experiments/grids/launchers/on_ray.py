"""Cells on a Ray cluster: each a task that starts the cell's own process, and is started again where its node is lost.

Ray finds the place: CPU cores, shares of a GPU, several GPUs of one node at once. The cell finds what it has saved.
"""

import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from experiments.grids.launchers.base import Asked, Job
from experiments.grids.launchers.remote import PATIENCE, run_cell
from experiments.grids.processes import variables
from experiments.shell.cluster import connect

RETRIES = 20  # lost nodes that one cell survives: on spot machines they are many
# Cells that wait in the queue of Ray beside those that run: a cluster may grow by what waits. Few, as one that was lost
# goes behind them.
QUEUED = 8


class OnRay:
    """See `Launcher`.

    Args:
        address: of the cluster, such as auto; None starts one on this machine
        jobs: cells at a time; None for as many as the cluster has place for
        threads: CPU threads of a cell
        devices: devices of a cell, a number or "auto"
        gpus_per_cell: GPUs of a cell, a share of one or several of one node; None for one where there are any
    """

    def __init__(
        self, address: str | None, *, jobs: int | None, threads: int, devices: str, gpus_per_cell: float | None
    ) -> None:
        self.ray = connect(address, send_code=address is not None)
        has = self.ray.cluster_resources()
        gpus = (1.0 if has.get("GPU") else 0.0) if gpus_per_cell is None else gpus_per_cell
        processes = 1 if devices == "auto" else int(devices)
        self.devices = str(int(gpus)) if gpus > 1 else devices
        self.threads, self.limit = threads, jobs
        self.needs = {"CPU": float(threads * max(processes, int(gpus))), "GPU": gpus}
        self.needs = {kind: amount for kind, amount in self.needs.items() if amount}
        self._check_fits(grows=address is not None)
        self.jobs = jobs or max(int(min(has.get(kind, 0) // amount for kind, amount in self.needs.items())), 1)
        self._running: dict[Any, _Task] = {}

    def _check_fits(self, *, grows: bool) -> None:
        """Raises ValueError where no node has what a cell needs; of a cluster that may grow it is told."""
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        if not any(all(node.get(kind, 0) >= amount for kind, amount in self.needs.items()) for node in nodes):
            most = {kind: max((node.get(kind, 0) for node in nodes), default=0) for kind in self.needs}
            needs, has = (", ".join(f"{kind} {of[kind]:g}" for kind in self.needs) for of in (self.needs, most))
            lacking = f"no node of the cluster has what a cell needs ({needs}; the most of one node: {has})"
            if not grows:
                raise ValueError(f"{lacking}: lower --threads, --devices or --gpus-per-cell")
            sys.stderr.write(
                f"{lacking}: cells wait until one comes. If none will, lower --threads or --gpus-per-cell; one "
                "training over several nodes is started by torchrun\n"
            )

    @contextmanager
    def open(self, classes: Sequence[str]) -> Iterator[None]:
        self._task = self.ray.remote(max_retries=RETRIES)(run_cell)
        self._running = {}
        yield

    def room(self) -> int:
        running = len(self._running)
        return (self.jobs + QUEUED if self.limit is None else self.limit) - running

    def start(self, asked: Sequence[Asked]) -> list[Job]:
        return [self._start(one) for one in asked]

    def _start(self, asked: Asked) -> "_Task":
        options: dict[str, Any] = {"num_cpus": self.needs["CPU"], "num_gpus": self.needs.get("GPU", 0)}
        group = None
        if self.needs.get("GPU", 0) > 1:  # all at once on one node, or none
            from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

            group = self.ray.util.placement_group([self.needs], strategy="STRICT_PACK")
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(group)
        folder = str((asked.scratch or asked.folder).absolute())
        flags = ["--devices", self.devices, *asked.flags, "--patience", str(PATIENCE)]
        task = _Task(self.ray, self._task.options(**options).remote(folder, flags, variables(self.threads)), group)
        self._running[task.reference] = task
        return task

    def now(self) -> float:
        return time.monotonic()

    def pause(self) -> None:
        waiting = [*self._running]
        ready, _ = self.ray.wait(waiting, num_returns=len(waiting), timeout=0.2) if waiting else ([], [])
        for reference in ready:
            self._running.pop(reference).end()


class _Task:
    """A task of Ray: a `Job`."""

    def __init__(self, ray: Any, reference: Any, group: Any) -> None:
        self.ray, self.reference, self.group = ray, reference, group
        self.returncode: int | None = None
        self.lost = self.place = ""

    def end(self) -> None:
        """Takes notice of how it ended."""
        try:
            ended = self.ray.get(self.reference)
            self.returncode = ended["status"]
            again = f"attempt {ended['attempt']}, " if ended["attempt"] > 1 else ""
            self.place = f"{again}on {ended['host']}"
        except self.ray.exceptions.TaskCancelledError:
            self.returncode = 143
        except Exception as error:  # noqa: BLE001  # whatever Ray has to say of a worker or a node
            last = re.sub(r"\x1b\[\d+m", "", str(error).strip()).splitlines()[-1].strip()
            self.returncode, self.lost = 1, f"its worker is gone ({last})"
        if self.group is not None:
            self.ray.util.remove_placement_group(self.group)

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float) -> int:
        """As that of `subprocess.Popen`; raises subprocess.TimeoutExpired after so many seconds."""
        if self.returncode is None:
            ready, _ = self.ray.wait([self.reference], timeout=timeout)
            if not ready:
                raise subprocess.TimeoutExpired("experiments.grids.cell", timeout)
            self.end()
        assert self.returncode is not None
        return self.returncode

    def terminate(self) -> None:
        with suppress(Exception):  # the cluster may be gone
            self.ray.cancel(self.reference, force=False)

    def kill(self) -> None:
        with suppress(Exception):
            self.ray.cancel(self.reference, force=True)
