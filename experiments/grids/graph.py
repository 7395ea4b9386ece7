"""The graph of a plan: its cells with what they need, and whether each can begin with the weights of its parent."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from experiments.grids.ablation import Ablation
from experiments.grids.cells import PlannedCell, start
from experiments.runs.run import Run, defaults
from experiments.runs.training import build

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


def build_planned(ablation: Ablation, name: str) -> Any:
    """The module and the data module of a variant or stage, see `build`, with the weights of its parent.

    The weights are on the meta device, where nothing is computed: only their names and shapes count. Raises ValueError
    for those of another network.
    """
    run, parents = ablation.every[name], ablation.parents_of(name)
    if run.step:
        run.step.check()
    if run.step or not parents:
        return build(run.alone())
    if "init_from" not in defaults(run.module):
        raise ValueError(
            f"{ablation.name}: {name!r} cannot begin with {parents[0]!r}: {run.module.__name__} takes no init_from"
        )
    parent, _ = build(ablation.every[parents[0]].from_scratch())
    stored = {
        "segmentation": {"architecture": type(parent).__name__},
        "hyper_parameters": dict(parent.hparams),
        "state_dict": parent.state_dict(),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "last.ckpt")
        torch.save(stored, path)
        try:
            return build(run.alone().but(init_from=str(path)))
        except ValueError as error:
            said = str(error).replace(f"init_from={str(path)!r}", "its checkpoint")
            raise ValueError(f"{ablation.name}: {name!r} cannot begin with {parents[0]!r}: {said}") from error
