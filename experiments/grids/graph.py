"""The graph of a plan: its cells with what they need, and whether each can begin with the weights of its parent."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from datamodules.base import SegmentationDataModule
from experiments.grids.ablation import Ablation
from experiments.grids.cells import PlannedCell, start
from experiments.runs.checkpoints import LAST
from experiments.runs.run import Run, defaults
from experiments.runs.training import build
from lightning_modules.base import SegmentationModule

Budgets = Mapping[str, Mapping[str, Any]]  # see `fairness.budget`, of each variant and stage


def planned_cells(ablation: Ablation, out: Path, seeds: Sequence[int], budgets: Budgets) -> list[PlannedCell]:
    """Each cell behind those that it needs.

    Seeds outermost: an interrupted grid has whole replications of the table rather than half of its rows.
    """
    cells: list[PlannedCell] = []
    for seed in seeds:
        of_seed: dict[str, PlannedCell] = {}
        for name in ablation.order:
            of_seed[name] = PlannedCell(
                name,
                ablation.every[name].but(seed=seed),
                out / name / f"seed{seed}",
                budgets[name]["epochs"],
                budgets[name]["steps"],
                ablation.parents_of(name),
                {need: of_seed[need] for need in ablation.needs(name)},
                name in ablation.stages,
            )
        cells += of_seed.values()
    return cells


def linked(ablation: Ablation, budgets: Budgets) -> dict[str, Run]:
    """The run of each variant and stage, with its parents as they will be: what the hashes of a plan are of."""
    runs: dict[str, Run] = {}
    for name in ablation.order:
        of = {
            parent: start(Path(parent), runs[parent].hash, budgets[parent]["steps"])
            for parent in ablation.parents_of(name)
        }
        run = ablation.every[name]
        runs[name] = run.after(dict(of.values())) if of else run
    return runs


def build_planned(ablation: Ablation, name: str) -> tuple[SegmentationModule, SegmentationDataModule]:
    """The module and the data module of a variant or stage, see `build`, with the weights of its parent.

    Call it on the meta device, where nothing is computed: only names and shapes of weights count. Raises ValueError for
    those of another network, and for a step whose options are not its own.
    """
    run, parents = ablation.every[name], ablation.parents_of(name)
    if run.step:
        run.step.check()
        run = ablation.every[parents[0]]
    elif parents:
        return _build_from(ablation, name, parents[0])
    return build(run.alone())


def _build_from(ablation: Ablation, name: str, parent: str) -> tuple[SegmentationModule, SegmentationDataModule]:
    run, refused = ablation.every[name], f"{ablation.name}: {name!r} cannot begin with {parent!r}"
    if "init_from" not in defaults(run.module):
        raise ValueError(f"{refused}: {run.module.__name__} takes no init_from")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, LAST)
        torch.save(_untrained(json.dumps(ablation.every[parent].from_scratch().config())), path)
        try:
            return build(run.alone().but(init_from=str(path)))
        except ValueError as error:
            said = str(error).replace(f"init_from={str(path)!r}", "its checkpoint")
            raise ValueError(f"{refused}: {said}") from error


@cache  # several begin with the same
def _untrained(config: str) -> dict[str, Any]:
    """A checkpoint of a run as it would be, but for its numbers."""
    module, _ = build(Run.from_config(json.loads(config)))
    return {
        "segmentation": {"architecture": type(module).__name__},
        "hyper_parameters": dict(module.hparams),
        "state_dict": module.state_dict(),
    }
