"""Folders of one grid, trained with other seeds, say on several machines, as one experiment."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from experiments.evidence.cell import Cell
from experiments.evidence.deviations import deviations
from experiments.evidence.experiment import Experiment, flatten


def join(experiments: Sequence[Experiment]) -> list[Experiment]:
    """One experiment a grid, in the order given: those of equal runs are joined, the others stay.

    Raises ValueError where two folders hold other results of the same cell, or two grids would have the same name.
    """
    joined: list[Experiment] = []
    for experiment in experiments:
        grid = _grid(experiment.plan)
        place = next((i for i, one in enumerate(joined) if grid and _grid(one.plan) == grid), None)
        if place is None:
            joined.append(experiment)
        else:
            joined[place] = _joined(joined[place], experiment)
    return _told_apart(joined)


def _grid(plan: Mapping[str, Any]) -> dict[str, Any]:
    """What makes two grids the same: the hashes of their runs; empty for a plan without them."""
    hashes = {name: variant.get("hash") for name, variant in plan["variants"].items()} | plan.get("hashes", {})
    return {"experiment": plan["experiment"], **hashes} if any(hashes.values()) else {}


def _joined(one: Experiment, other: Experiment) -> Experiment:
    plan = dict(one.plan)
    plan["seeds"] = [*one.plan["seeds"], *(seed for seed in other.plan["seeds"] if seed not in one.plan["seeds"])]
    for key, between in (("command", "\n"), ("commit", ", "), ("device", ", ")):
        values = [*one.plan[key].split(between), *other.plan[key].split(between)]
        plan[key] = between.join(dict.fromkeys(values))
    cells = {}
    for variant, own in one.cells.items():
        for seed in own.keys() & other.cells[variant].keys():
            _refuse_unequal(own[seed], other.cells[variant][seed])
        found = other.cells[variant] | own
        cells[variant] = {seed: found[seed] for seed in plan["seeds"] if seed in found}
    missing = {(m.variant, m.seed): m for m in (*other.missing, *one.missing) if m.seed not in cells[m.variant]}
    whole = replace(one, plan=plan, cells=cells, missing=list(missing.values()))
    # Of the parts they may hold no longer, say that a seed is lacking.
    of_parts = {line for part in (one, other) for line in deviations(part.plan, part.cells)}
    kept = [line for line in (*one.deviations, *other.deviations) if line not in of_parts]
    if not whole.same_images:
        kept.append("The joined folders were scored on different test images: nothing is paired by image.")
    kept.append(f"Of the joined folders, step times and memory were measured in {one.folder.name}.")
    return replace(whole, deviations=list(dict.fromkeys([*kept, *deviations(plan, cells)])))


def _refuse_unequal(one: Cell, other: Cell) -> None:
    ours, theirs = ([c.confusion, c.counts.right, c.counts.true, c.counts.predicted] for c in (one, other))
    if one.image_names == other.image_names and all(map(np.array_equal, ours, theirs)):
        return
    raise ValueError(
        f"{one.folder} and {other.folder} hold other results of the same cell ({one.variant}, seed {one.seed}): "
        f"expected equal ones or seeds that differ, got test mIoU {one.scores['miou']:.6f} and "
        f"{other.scores['miou']:.6f}. Remove one of the two folders"
    )


def _told_apart(experiments: Sequence[Experiment]) -> list[Experiment]:
    """Names that differ: experiments that share one get that of their folder behind it."""
    names = [experiment.plan["experiment"] for experiment in experiments]
    found = []
    for experiment, name in zip(experiments, names, strict=True):
        if names.count(name) > 1:
            name = f"{name} ({experiment.folder.absolute().name})"
        found.append(replace(experiment, plan=experiment.plan | {"experiment": name}))
    new = [experiment.plan["experiment"] for experiment in found]
    twice = next((name for name in new if new.count(name) > 1), None)
    if twice is not None:
        one, other, *_ = (e for e in found if e.plan["experiment"] == twice)
        changed = _changed(one.plan, other.plan)
        raise ValueError(
            f"{one.folder} and {other.folder} hold experiments of the same name with other settings ({changed}): "
            "expected the same grid, or other names. Rename one of the folders"
        )
    return found


def _changed(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The settings by which two plans differ."""
    ours, theirs = (flatten(plan["common"]) for plan in (one, other))
    keys = [key for key in dict.fromkeys([*ours, *theirs]) if ours.get(key) != theirs.get(key)]
    found = [f"{key} {ours.get(key, '-')} against {theirs.get(key, '-')}" for key in keys]
    found += [f"no {name}" for name in set(one["variants"]) ^ set(other["variants"])]
    return "; ".join(found) or "the settings of a variant"
