"""The energy of a training, from counters of the machine that it runs on: a cost, and no score.

Read are the counters of RAPL for CPU packages and DRAM, and those of NVML for the GPUs of the training. Where there is
none, nothing is stored: an estimate from load or a data sheet is no measurement.
"""

import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_modules.base import Batch

ENERGY_HELP = "measure the energy of the training where the machine has counters of it: changes no result"
POWERCAP = Path("/sys/class/powercap")
# Seconds between two readings. At full load the counter of a package begins again after some minutes, and one reading
# must not miss two of its turns.
EVERY = 10.0
NONE = "no energy: "  # begins the line of a training that stores none
PARTS = {"cpu": "CPU package", "dram": "DRAM", "gpu": "GPU"}  # as result.json calls them, and in words


def check_installed() -> None:
    """Raises ValueError where the package that reads the counters is missing."""
    if find_spec("codecarbon") is None:
        raise ValueError('--energy needs a package: pip install -e ".[energy]"')


class Counter(Protocol):
    """What counts the energy of one piece of hardware, from when it is made."""

    def used(self) -> float | None:
        """Joules since the last call; None where it cannot be read, or has begun again at an unknown place."""


class Domain:
    """A domain of RAPL, such as a CPU package, by its folder below /sys/class/powercap."""

    def __init__(self, folder: Path) -> None:
        from codecarbon.core.rapl import RAPLFile

        self.file = RAPLFile(folder.name, str(folder / "energy_uj"), str(folder / "max_energy_range_uj"))

    def used(self) -> float | None:
        from codecarbon.core.units import Energy, Time

        self.file.delta(Time(1.0))  # a duration is for the power alone, which nothing here asks for
        # The package holds kWh by a rounded factor, which is taken back here.
        return None if self.file.sample_skipped else self.file.energy_delta.kWh / Energy.JOULES_TO_KWH


class Gpu:
    """An NVIDIA GPU by its UUID ("GPU-..."); RuntimeError for one whose energy is not counted.

    Only the absolute counter is taken: the difference that the package offers falls back to the power at the moment.
    """

    def __init__(self, uuid: str) -> None:
        gpu_nvidia: Any = import_module("codecarbon.core.gpu_nvidia")  # whose pynvml is not said to be its own
        if gpu_nvidia.pynvml is None:
            raise RuntimeError("NVML, the library of the driver, cannot be loaded")
        try:
            self.device = gpu_nvidia.NvidiaGPUDevice(gpu_nvidia.pynvml.nvmlDeviceGetHandleByUUID(uuid.encode()), 0)
        except gpu_nvidia.pynvml.NVMLError as error:
            raise RuntimeError(f"NVML does not know {uuid} ({error})") from error
        self.name = str(self.device.get_static_details()["name"])
        self.last = self._count()
        if self.last is None:
            raise RuntimeError(f"{self.name} has no counter of energy")

    def used(self) -> float | None:
        last, self.last = self.last, self._count()
        return None if self.last is None or last is None or self.last < last else self.last - last

    def _count(self) -> float | None:
        from codecarbon.core.units import Energy

        self.device.start()
        read = self.device.last_energy
        return None if read is None else float(read.kWh) / Energy.JOULES_TO_KWH


def domains(powercap: Path) -> dict[str, list[Path]]:
    """The folders of all domains that are counted, by part: every CPU package, and the DRAM of each, once.

    Cores lie within a package, and psys has packages in it. Some machines offer a package twice, by its registers and
    by memory ("intel-rapl-mmio"), under the same name.
    """
    found = dict[tuple[str, str], Path]()
    for folder in sorted(powercap.glob("intel-rapl*:*"), key=lambda path: ("mmio" in path.name, path.name)):
        name = _name(folder)
        if name.startswith("package"):
            found.setdefault(("cpu", name), folder)
        elif name == "dram":
            found.setdefault(("dram", _name(folder.with_name(folder.name.rpartition(":")[0]))), folder)
    return {part: [path for (of, _), path in found.items() if of == part] for part in ("cpu", "dram")}


def _name(folder: Path) -> str:
    try:
        return (folder / "name").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


class Meter:
    """The counters of a machine, by part, and the joules that they have counted since this was made.

    `counted` says of each part what is in it, `missing` what is not counted and why. A part with a counter that cannot
    be read is not counted at all, from the start or from then on: half of it would pass for the whole.
    """

    def __init__(self, gpus: Sequence[str], powercap: Path = POWERCAP) -> None:
        self.counters = dict[str, list[Counter]]()
        self.joules = dict[str, list[float]]()
        self.counted = dict[str, str]()
        self.missing = list[str]()
        self.mirrored = dict[int, int]()  # packages that seem to show the counter of another one
        with quiet():
            self._packages(powercap)
            self._gpus(gpus)
        self.joules = {part: [0.0] * len(of_part) for part, of_part in self.counters.items()}

    def _packages(self, powercap: Path) -> None:
        from codecarbon.core.rapl import SEQUENTIAL_READ_TOLERANCE_KWH, find_mirrored_counters

        for part, folders in domains(powercap).items():
            made = [Domain(folder) for folder in folders]
            closed = [str(folder) for folder, one in zip(folders, made, strict=True) if one.file.last_energy is None]
            if not made or closed:
                told = f"{closed[0]}/energy_uj cannot be read (root reads it)" if closed else f"{powercap} has none"
                self.missing.append(f"{PARTS[part]} ({told})")
                continue
            self.counters[part] = [*made]
            words = f"{len(made)} {PARTS[part]}{'s' * (len(made) > 1)}" if part == "cpu" else "all DRAM"
            self.counted[part] = f"{words}, whatever else ran"
            if part == "cpu":
                energies: list[Any] = [one.file.last_energy for one in made]  # of none that is closed
                read = [(place, float(energy)) for place, energy in enumerate(energies)]
                self.mirrored = find_mirrored_counters(read, SEQUENTIAL_READ_TOLERANCE_KWH)

    def _gpus(self, uuids: Sequence[str]) -> None:
        if not uuids:
            self.missing.append("GPU (trained on no NVIDIA GPU)")
            return
        try:
            made = [Gpu(uuid) for uuid in uuids]
        except RuntimeError as error:
            self.missing.append(f"GPU ({error})")
            return
        self.counters["gpu"] = [*made]
        names = ", ".join(
            f"{sum(one.name == name for one in made)} x {name}" for name in sorted({g.name for g in made})
        )
        self.counted["gpu"] = f"{names}, whatever else ran on {'it' if len(made) == 1 else 'them'}"

    def drop(self, part: str) -> None:
        for of_parts in (self.counters, self.joules, self.counted):
            of_parts.pop(part, None)

    def read(self) -> list[str]:
        """Adds up what was used since the last reading; returns the parts that could not be read, which are dropped."""
        lost = []
        with quiet():
            for part, counters in [*self.counters.items()]:
                used = [joules for counter in counters if (joules := counter.used()) is not None]
                if len(used) < len(counters):
                    lost.append(part)
                    self.drop(part)
                else:
                    self.joules[part] = [sum(pair) for pair in zip(self.joules[part], used, strict=True)]
        return lost

    def total(self) -> dict[str, float]:
        """Joules by part. Of packages whose counters began alike and counted alike, one is a mirror of the other, as
        dies of one socket have them, and counts once."""
        totals = {part: sum(of_part) for part, of_part in self.joules.items()}
        if of_packages := self.joules.get("cpu"):
            alike = [of for of, other in self.mirrored.items() if abs(of_packages[of] - of_packages[other]) <= 1.0]
            totals["cpu"] -= sum(of_packages[of] for of in alike)
        return totals


@contextmanager
def quiet() -> Iterator[None]:
    """Without what the package writes to the terminal: what counts of it, a line here says."""
    log = logging.getLogger("codecarbon")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


class Energy(Callback):
    """The joules of a training, from its first step to its last, with validations and checkpoints, without the test.

    A checkpoint keeps what was counted up to it, so that a resumed run has the sum. A part that one of the attempts did
    not count is not stored. The first process of a machine reads for all; several machines are not measured.
    """

    def __init__(self, powercap: Path = POWERCAP) -> None:
        self.powercap = powercap
        self.meter: Meter | None = None
        self.before: dict[str, float] | None = None  # joules of earlier processes; None where there was none
        self.counted = dict[str, str]()
        self.read = 0.0

    def state_dict(self) -> dict[str, Any]:
        self._read()
        return {"joules": self.joules(), "counted": {part: self.counted[part] for part in self.joules()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.before, self.counted = dict(state_dict["joules"]), dict(state_dict["counted"])

    def joules(self) -> dict[str, float]:
        before = self.before or {}
        if self.meter is None:
            return before
        return {part: before.get(part, 0.0) + joules for part, joules in self.meter.total().items()}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        uuids = gpus_of(trainer)  # of all processes, so all of them ask
        if not trainer.is_global_zero:
            return
        if self.before is None and trainer.global_step:
            self.before = {}
            sys.stderr.write(f"{NONE}the {trainer.global_step} steps before were trained without --energy\n")
            return
        if trainer.num_nodes > 1:
            self.before = {}
            sys.stderr.write(f"{NONE}of several machines each reads its own counters alone\n")
            return
        self.meter = Meter(uuids, self.powercap)
        for part in [*self.meter.counters] if self.before is not None else ():
            if part not in (self.before or {}):
                self.meter.drop(part)
                self.meter.missing.append(f"{PARTS[part]} (not counted before this process)")
        was, now = self.counted, self.meter.counted
        self.counted = {
            part: was[part] if was.get(part, "").endswith(told) else "; then ".join(filter(None, (was.get(part), told)))
            for part, told in now.items()
        }
        self.read = time.monotonic()
        lacks = f"no counter of {', '.join(self.meter.missing)}"
        counted = "; ".join(now.values())
        sys.stderr.write(f"energy: {counted}; {lacks}\n" if counted else f"{NONE}{lacks}\n")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._read(EVERY)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._read(EVERY)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._read()
        if self.meter is not None:
            self.before, self.meter = self.joules(), None

    def _read(self, after: float = 0.0) -> None:
        """Reads the counters, if the last time is so many seconds ago."""
        if self.meter is None or time.monotonic() - self.read < after:
            return
        self.read = time.monotonic()
        for part in self.meter.read():
            sys.stderr.write(f"no energy of {PARTS[part]}: its counter could not be read any more\n")


def gpus_of(trainer: Trainer) -> list[str]:
    """The UUIDs of the NVIDIA GPUs that a training computes on, in all its processes, each of which must call it."""
    device, mine = trainer.strategy.root_device, list[str]()
    if device.type == "cuda" and torch.version.hip is None:
        mine = [f"GPU-{torch.cuda.get_device_properties(device).uuid}"]
    every: list[list[str]] = [mine]
    if trainer.world_size > 1:
        every = [[] for _ in range(trainer.world_size)]
        torch.distributed.all_gather_object(every, mine)
    return list(dict.fromkeys(uuid for of_process in every for uuid in of_process))


def entry(trainer: Trainer) -> Mapping[str, Any]:
    """What result.json holds of the energy of a finished training; nothing where none was measured."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Energy) and (joules := callback.joules()):
            counted = {part: callback.counted[part] for part in joules}
            return {"energy": {"joules": joules, "counted": counted, "by": f"codecarbon {version('codecarbon')}"}}
    return {}


def why_none(folder: Path) -> str:
    """What the log of a cell says of the energy that it did not count."""
    try:
        lines = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    told = [line.removeprefix(NONE) for line in lines if line.startswith(NONE)]
    return told[-1] if told else "trained without --energy"
