"""Equal tuning: every variant is tried with the same values on validation images, and keeps its best.

A baseline with its best learning rate beats a variant with the baseline's. Trials have one seed, which no cell of the
table has, and no trial sees the test split.
"""

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from experiments.grids.ablation import Ablation
from experiments.grids.cells import PlannedCell
from experiments.grids.fairness import size
from experiments.runs.run import Run, setting
from experiments.runs.step import CHOOSING
from experiments.shell.ending import NON_FINITE
from experiments.shell.files import read_json, slug, write_json

SEED = 2**32 - 1  # the last one, which no range of seeds reaches
FOLDER = "tuning"
DIVERGED = "diverged.json"  # of a trial that ended with NaN or infinity, which it will do again


def check_tuned(
    study: str, base: Run, tune: Mapping[str, Sequence[Any]], varied: Sequence[str], *, matched: bool = False
) -> None:
    """Raises ValueError for what no trial may change: what a variant has of its own, the data, the training's length,
    and, where arms are `matched`, their size. So it does for a training that is not validated."""
    every, epochs = (base.trainer.get(key) for key in ("check_val_every_n_epoch", "max_epochs"))
    if tune and ((every or 1) > (epochs or 1) or base.trainer.get("limit_val_batches") == 0):
        raise ValueError(
            f"{study}: a trial must end with a validation, and with trainer.check_val_every_n_epoch {every} and "
            f"limit_val_batches {base.trainer.get('limit_val_batches')} {epochs} epochs have none: set --epochs, which "
            "adapts them"
        )
    for name, values in tune.items():
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise TypeError(f"{study}: tune takes a list of values of {name}, got {values!r}")
        if name in ("module", "datamodule") or setting(name) == name:
            raise ValueError(
                f"{study}: tune takes hyperparameters of the module, got {name!r}: with other data or another length, "
                "trials would not be comparable, or touch the test split"
            )
        if f"hparams.{name}" not in base.resolved():
            raise ValueError(f"{study}: tune names {name!r}, which is no hyperparameter of {base.module.__name__}")
        if name in varied:
            raise ValueError(f"{study}: tune names {name!r}, which the variants differ in: leave it out of one of them")
        if len(values) < 2 or any(value in values[:i] for i, value in enumerate(values)):
            raise ValueError(f"{study}: tune needs at least two values of {name}, all different, got {list(values)}")
        sizes = {size(base.but(**{name: value}), "parameters") for value in values} if matched else {0}
        if len(sizes) > 1:
            raise ValueError(
                f"{study}: tune names {name!r}, which changes a network's size, and arms of this study are matched in "
                "size: leave it out"
            )


def check_scored(ablation: Ablation) -> None:
    """Raises ValueError where trials, or a step of the grid, would choose on the images whose scores are reported."""
    choosing = "--tune chooses settings" if ablation.tune else ""
    for name, run in ablation.every.items():
        if not choosing and run.step and run.step.name in CHOOSING:
            choosing = f"the step {run.step.name} of {name} chooses what it does"
    if not choosing:
        return
    base = ablation.runs[ablation.baseline]
    if base.datamodule(**base.data).scored == "val":
        raise ValueError(
            f"{ablation.name}: {choosing} by validation images, and of these data, which have no test split, the same "
            "images give the scores that are reported: they would flatter whatever was chosen. "
            f"{'Leave --tune out, or make' if ablation.tune else 'Make'} a test split with experiments.split"
        )


def words(values: Mapping[str, Any]) -> str:
    """ "lr 0.001, width 8"."""
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _folder(values: Mapping[str, Any]) -> str:
    """The words as the name of a folder; of those that make none, a part with their digest."""
    named = words(values)
    if len(named.encode()) <= 100 and named.isprintable() and not {os.sep, "/", "\\"} & {*named}:
        return named
    return f"{slug(named)[:60]}-{hashlib.sha256(named.encode()).hexdigest()[:12]}"


def tried(ablation: Ablation) -> list[dict[str, Any]]:
    """Every combination of the values, in the order given."""
    return [dict(zip(ablation.tune, values, strict=True)) for values in product(*ablation.tune.values())]


def trials(ablation: Ablation, out: Path) -> dict[str, list[PlannedCell]]:
    """The trials of each variant; a trial is a cell that is validated and not tested."""
    planned = {}
    for variant, run in ablation.runs.items():
        cells = []
        for values in tried(ablation):
            folder = out / FOLDER / variant / _folder(values) / f"seed{SEED}"
            of_values = run.but(seed=SEED, **values)
            epochs = of_values.trainer.get("max_epochs") or 1
            cells.append(PlannedCell(f"{variant} with {words(values)}", of_values, folder, epochs, tests=False))
        planned[variant] = cells
    return planned


def mark_diverged(failed: Sequence[PlannedCell]) -> list[PlannedCell]:
    """Notes which of the failed trials ended with NaN or infinity, as too large a rate does; returns the others."""
    others = []
    for cell in failed:
        if cell.process is not None and cell.process.returncode == NON_FINITE:
            write_json(cell.folder / DIVERGED, {"hash": cell.run.hash, "error": cell.error})
        else:
            others.append(cell)
    return others


def to_do(planned: Mapping[str, Sequence[PlannedCell]]) -> list[PlannedCell]:
    """The trials that have neither a score nor diverged, those of one value after another."""
    return [cell for of_value in zip(*planned.values(), strict=True) for cell in of_value if not _is_done(cell)]


def tuned(ablation: Ablation, planned: Mapping[str, Sequence[PlannedCell]]) -> Ablation:
    """The grid whose variants have the values that were best on validation; of equal ones the first.

    Raises ValueError for a variant without a score, and for a trial that has touched the test split.
    """
    combinations, chosen, listed = tried(ablation), dict[str, dict[str, Any]](), dict[str, list[dict[str, Any]]]()
    for variant, cells in planned.items():
        scores = [_score(cell) for cell in cells]
        if not any(math.isfinite(score) for score in scores):
            raise ValueError(
                f"{ablation.name}: every trial of {variant} ended with NaN or infinity: try other values than "
                f"{'; '.join(map(words, combinations))}"
            )
        best = max(range(len(scores)), key=lambda i: scores[i])
        chosen[variant] = combinations[best]
        listed[variant] = [
            {"values": values, "miou": score if math.isfinite(score) else None}
            for values, score in zip(combinations, scores, strict=True)
        ]
    values = "; ".join(f"{name} of {', '.join(map(str, of_one))}" for name, of_one in ablation.tune.items())
    said = f"Each variant has its best {values} on validation."
    return replace(
        ablation,
        scale_note=f"{ablation.scale_note} {said}".strip(),
        runs={variant: run.but(**chosen[variant]) for variant, run in ablation.runs.items()},
        tuning={
            "seed": SEED,
            "settings": {name: list(values) for name, values in ablation.tune.items()},
            "trials": listed,
            "chosen": chosen,
        },
    )


def _is_done(cell: PlannedCell) -> bool:
    return cell.result is not None or _has_diverged(cell)


def _has_diverged(cell: PlannedCell) -> bool:
    stored = cell.folder / DIVERGED
    return stored.exists() and read_json(stored).get("hash") in cell.run.hashes


def _score(cell: PlannedCell) -> float:
    """The validation mIoU in [0, 1] after the last epoch; minus infinity of a trial that diverged."""
    if _has_diverged(cell):
        return -math.inf
    result = cell.result
    if result is None:
        raise ValueError(f"{cell.folder} has no score: start the experiment again, which finishes its trials")
    if result.get("test") or (cell.folder / "per_image.npz").exists():
        raise ValueError(
            f"{cell.folder} holds scores of the test split, which a trial must not touch: remove the folder, and start "
            "the experiment again"
        )
    score = result["val"]["miou"]
    if type(score) not in (int, float) or not 0 <= score <= 1:
        raise ValueError(
            f"{cell.folder / 'result.json'} is damaged: val.miou must be a number from 0 to 1, got {score!r}. Delete "
            f"{cell.folder}, and start the experiment again"
        )
    return float(score)
