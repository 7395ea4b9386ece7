"""The energy of trainings, where the machine has counted it: a cost of a variant, and never a score."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.evidence.experiment import Experiment

# The parts of a machine that can be counted, in words.
PARTS = {"cpu": "the CPU packages", "dram": "DRAM", "gpu": "the GPUs of the training"}
JOULES = 3600.0  # of a watt-hour


class Energies:
    """The watt-hours of the trainings of an experiment, in the parts that all measured ones have counted."""

    def __init__(self, experiment: Experiment) -> None:
        trained = [cell for cell in experiment.finished() if not _is_step(cell.run)]
        entries = {(c.variant, c.seed): c.result["energy"] for c in trained if c.result.get("energy")}
        every = [entry["joules"].keys() for entry in entries.values()]
        self.parts = [part for part in dict.fromkeys(p for of in every for p in of) if all(part in of for of in every)]
        self.others = sorted({part for of in every for part in of} - {*self.parts})
        self.measured, self.trainings = len(entries), len(trained)
        self.software = sorted({entry["by"] for entry in entries.values()})
        self.watt_hours = {
            cell: math.fsum(entry["joules"][part] for part in self.parts) / JOULES
            for cell, entry in entries.items()
            if self.parts
        }

    def of(self, variant: str) -> list[float]:
        """Watt-hours of the measured trainings of a variant, one a seed."""
        return [value for (name, _), value in self.watt_hours.items() if name == variant]

    def mean(self, variant: str) -> float | None:
        values = self.of(variant)
        return math.fsum(values) / len(values) if values else None

    def notes(self) -> list[str]:
        """What is counted, and what such a number cannot say; nothing where nothing was measured."""
        if not self.measured:
            return []
        if not self.parts:
            return ["No energy is shown: no part of the machine was counted in every measured training."]
        counted = " and ".join(filter(None, (", ".join(self.words[:-1]), self.words[-1])))
        note = (
            f"Energy: of the training without the test, mean over seeds, by the counters of {counted}, which count all "
            "that ran there meanwhile, idle power included: trainings that ran at once on a machine each have the "
            "energy of all. The rest of the machine is not in it."
        )
        notes = [note]
        if self.measured < self.trainings:
            notes.append(f"It was measured in {self.measured} of {self.trainings} trainings.")
        if self.others:
            left = ", ".join(PARTS.get(part, part) for part in self.others)
            notes.append(f"Left out is what only some trainings counted: {left}.")
        return notes

    @property
    def words(self) -> list[str]:
        return [PARTS.get(part, part) for part in self.parts]


def digits(values: Sequence[float]) -> int:
    """Decimals that leave three digits to the largest of these watt-hours."""
    largest = max(values, default=0.0)
    return max(0, 2 - math.floor(math.log10(largest))) if largest > 0 else 2


def _is_step(run: Mapping[str, Any]) -> bool:
    """Whether a run.json is that of a step, which trains nothing."""
    return bool(run.get("step"))
