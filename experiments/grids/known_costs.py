"""Costs of training steps, each distinct network measured once and kept for all folders in the user's cache.

Times of different hours cannot be compared, so they are kept in tables whose networks were measured side by side. A
network that a table lacks is measured beside one that it has, and takes its place by their ratio. What decides a cost
names it: what the network is, what it is fed with, the code, the versions and the machine.
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

import lightning_modules
from datamodules.fingerprint import cache_folder
from experiments.grids import cost
from experiments.grids.cost import Cost, measure
from experiments.grids.fairness import RECIPE
from experiments.runs.run import Run, defaults
from experiments.shell.environment import PACKAGES, blas, package_version, processor
from experiments.shell.files import write_json

NAME, MOST = "costs.json", 50  # tables that are kept, the latest
# A step is timed with one optimiser whatever the recipe, and subtracts a mean whatever it is.
INDIFFERENT = {*RECIPE, "mean", "std"} - {"loss", "class_weights"}


@dataclass(frozen=True)
class _Table:
    """Costs by `key` that were measured side by side, or by ratio to one of them, `on` one machine and code."""

    on: dict[str, Any]
    costs: dict[str, Cost]


def costs_of(
    runs: Mapping[str, Run],
    *,
    threads: int,
    images: torch.Tensor | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> tuple[dict[str, Cost], str]:
    """The cost of every run, on a batch `images` (N, in_channels, H, W) or on noise; measured is what is not known.

    Returns with them what a person should know of those that were measured earlier, or nothing.
    """
    keys = {name: key(run, real=images is not None) for name, run in runs.items()}
    wanted = {keys[name]: name for name in reversed([*runs])}
    on = machine(threads)
    tables = [table.costs for table in _read() if table.on == on]
    known = max(reversed(tables), key=lambda costs: len(costs.keys() & wanted.keys()), default={})
    reference = next((of for of in keys.values() if of in known), None)
    missing = {name: run for name, run in runs.items() if keys[name] not in known and wanted[keys[name]] == name}
    if not missing:
        return {name: known[of] for name, of in keys.items()}, _note("Times of a step are of an earlier measurement")
    beside = {wanted[reference]: runs[wanted[reference]]} if reference else {}
    measured = measure({**beside, **missing}, threads=threads, images=images, progress=say)
    found = {keys[name]: of_one for name, of_one in measured.items()}
    note = ""
    if reference:
        ratio = known[reference].step_seconds / found[reference].step_seconds
        found = {of: Cost(ratio * new.step_seconds, new.peak_memory_mb) for of, new in found.items()} | known
        count = len(wanted) - len(missing)
        note = _note(
            f"Times of a step are of an earlier measurement for {count} of {len(wanted)} networks; the others were "
            f"measured beside {wanted[reference]} and are scaled as it was"
        )
    _keep(_Table(on, found))
    return {name: found[of] for name, of in keys.items()}, note


def key(run: Run, *, real: bool) -> str:
    """A name for what decides the cost of a step: equal for runs that differ in their recipe, seed or length.

    `real`: it is measured on images of the data, not on noise.
    """
    run = run.from_scratch()
    datamodule = run.datamodule(**run.data)
    settings = {name: value for name, value in {**defaults(run.module), **run.hparams}.items()}
    decides = {
        "module": f"{run.module.__module__}.{run.module.__name__}",
        **{name: value for name, value in settings.items() if name not in INDIFFERENT},
        "class_weights": settings.get("class_weights") is not None,
        "channels": [datamodule.in_channels, datamodule.num_classes],
        "batch": [datamodule.batch_size, *datamodule.transform.crop],
        "images": [run.datamodule.__name__, run.fingerprint] if real else "noise",
    }
    return sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def machine(threads: int) -> dict[str, Any]:
    """What decides the cost of a step beside its run."""
    folder = Path(next(iter(lightning_modules.__path__)))
    code = sha256(Path(cost.__file__).read_bytes())
    for path in sorted(folder.rglob("*.py")):
        code.update(path.read_bytes())
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "processor": processor(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "blas": blas(),
        "cpus": os.cpu_count(),
        "threads": threads,
        "versions": {name: package_version(name, module) for name, module in PACKAGES.items()},
        "code": code.hexdigest()[:16],
    }


def _note(said: str) -> str:
    return f"{said}: delete {cache_folder() / NAME} to measure anew."


def _read() -> list[_Table]:
    """The tables that are kept; none where the file is not there or damaged."""
    try:
        stored = json.loads((cache_folder() / NAME).read_text(encoding="utf-8"))
        return [
            _Table(table["on"], {of: _cost(**numbers) for of, numbers in table["costs"].items()})
            for table in stored["tables"]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, RecursionError):
        return []


def _cost(step_seconds: float, peak_memory_mb: float | None) -> Cost:
    memory = math.nan if peak_memory_mb is None else float(peak_memory_mb)  # not Linux
    if not 0 < float(step_seconds) < math.inf:
        raise ValueError(f"step_seconds must be more than 0, got {step_seconds}")
    return Cost(float(step_seconds), memory)


def _keep(made: _Table) -> None:
    """Beside the tables of other processes, without those that hold nothing more."""
    others = [table for table in _read() if table.on != made.on or table.costs.keys() - made.costs.keys()]
    tables = [
        {"on": table.on, "costs": {of: asdict(one) for of, one in table.costs.items()}}
        for table in [*others, made][-MOST:]
    ]
    with suppress(OSError, ValueError, RuntimeError):  # they are measured again the next time
        write_json(cache_folder() / NAME, {"tables": tables})
