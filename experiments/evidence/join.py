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
        place = next((i for i, other in enumerate(joined) if grid and _grid(other.plan) == grid), None)
        if place is None:
            joined.append(experiment)
        else:
            joined[place] = _joined(joined[place], experiment)
    return _told_apart(joined)


def _grid(plan: Mapping[str, Any]) -> dict[str, Any]:
    """What makes two grids the same: the hashes of their runs; empty for a plan without them."""
    hashes = {name: variant.get("hash") for name, variant in plan["variants"].items()} | plan.get("hashes", {})
    return {"experiment": plan["experiment"], **hashes} if any(hashes.values()) else {}


def _joined(first: Experiment, second: Experiment) -> Experiment:
    plan = dict(first.plan)
    plan["seeds"] = [*first.plan["seeds"], *(seed for seed in second.plan["seeds"] if seed not in first.plan["seeds"])]
    for key, between in (("command", "\n"), ("commit", ", "), ("device", ", ")):
        values = [*first.plan[key].split(between), *second.plan[key].split(between)]
        plan[key] = between.join(dict.fromkeys(values))
    plan |= _decided(first, second)
    if not all("seeds_planned" in part.plan for part in (first, second)):
        plan.pop("seeds_planned", None)  # of an earlier version: how many were planned is not known
    plan["notes"] = first.plan.get("notes") or second.plan.get("notes", [])
    plan["variants"] = {name: _measured(v, second.plan["variants"][name]) for name, v in plan["variants"].items()}
    cells = {}
    for variant, by_seed in first.cells.items():
        for seed in by_seed.keys() & second.cells[variant].keys():
            _refuse_unequal(by_seed[seed], second.cells[variant][seed])
        both = second.cells[variant] | by_seed
        cells[variant] = {seed: both[seed] for seed in plan["seeds"] if seed in both}
    missing = {(m.variant, m.seed): m for m in (*second.missing, *first.missing) if m.seed not in cells[m.variant]}
    whole = replace(first, plan=plan, cells=cells, missing=list(missing.values()))
    # Of the parts they may hold no longer, say that a seed is lacking.
    of_parts = {line for part in (first, second) for line in deviations(part.plan, part.cells)}
    kept = [line for line in (*first.deviations, *second.deviations) if line not in of_parts]
    if not whole.same_images:
        kept.append("The joined folders were scored on different test images: nothing is paired by image.")
    kept.append(f"Of the joined folders, step times and memory were measured in {first.folder.name}.")
    return replace(whole, deviations=list(dict.fromkeys([*kept, *deviations(plan, cells)])))


def _decided(first: Experiment, second: Experiment) -> dict[str, Any]:
    """What was fixed before training, of both."""
    ours, theirs = (part.plan.get("statistics", {}) for part in (first, second))
    for key, default in (("variances", "pooled"), ("until", None)):
        values = [stored.get(key, default) for stored in (ours, theirs)]
        if values[0] != values[1]:
            raise ValueError(
                f"{first.folder} and {second.folder} hold seeds of one grid that were planned with other statistics "
                f"({key}: {values[0]} against {values[1]}): expected the same, as no report can judge by both. Report "
                "the folders one at a time"
            )
    statistics = {**theirs, **ours, "margin": ours.get("margin") or theirs.get("margin")}
    if ours.get("margin") != theirs.get("margin") or theirs.get("margin_after"):
        statistics["margin_after"] = True
    if ours.get("until"):
        statistics["stage"] = [*dict.fromkeys([*ours["stage"], *theirs["stage"]])]
        needed = [stored["needed"] for stored in (ours, theirs) if "needed" in stored]
        if needed:
            statistics["needed"] = max(needed) if {*ours["stage"]} == {*theirs["stage"]} else sum(needed)
    planned, looks = (
        ([*part.plan.get("seeds_planned", [])] for part in (first, second)),
        [look for part in (first, second) for look in part.plan.get("looks", [])],
    )
    return {
        **({"statistics": statistics} if ours or theirs else {}),
        "seeds_planned": [*dict.fromkeys(seed for seeds in planned for seed in seeds)],
        "looks": [look for place, look in enumerate(looks) if look not in looks[:place]],
    }


def _measured(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """A variant with the seconds of an image, which only one of the folders may hold."""
    return first | {"image_seconds": first.get("image_seconds") or second.get("image_seconds", {})}


def _refuse_unequal(first: Cell, second: Cell) -> None:
    ours, theirs = ([c.confusion, c.counts.right, c.counts.true, c.counts.predicted] for c in (first, second))
    if first.image_names == second.image_names and all(map(np.array_equal, ours, theirs)):
        return
    raise ValueError(
        f"{first.folder} and {second.folder} hold other results of the same cell ({first.variant}, seed {first.seed}): "
        f"expected equal ones or seeds that differ, got test mIoU {first.scores['miou']:.6f} and "
        f"{second.scores['miou']:.6f}. Remove one of the two folders"
    )


def _told_apart(experiments: Sequence[Experiment]) -> list[Experiment]:
    """Names that differ: experiments that share one get that of their folder behind it."""
    names = [experiment.plan["experiment"] for experiment in experiments]
    named = []
    for experiment, name in zip(experiments, names, strict=True):
        if names.count(name) > 1:
            name = f"{name} ({experiment.folder.absolute().name})"
        named.append(replace(experiment, plan=experiment.plan | {"experiment": name}))
    new = [experiment.plan["experiment"] for experiment in named]
    twice = next((name for name in new if new.count(name) > 1), None)
    if twice is not None:
        first, second, *_ = (e for e in named if e.plan["experiment"] == twice)
        changed = _changed(first.plan, second.plan)
        raise ValueError(
            f"{first.folder} and {second.folder} hold experiments of the same name with other settings ({changed}): "
            "expected the same grid, or other names. Rename one of the folders"
        )
    return named


def _changed(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """The settings by which two plans differ."""
    ours, theirs = (flatten(plan["common"]) for plan in (first, second))
    keys = [key for key in dict.fromkeys([*ours, *theirs]) if ours.get(key) != theirs.get(key)]
    changed = [f"{key} {ours.get(key, '-')} against {theirs.get(key, '-')}" for key in keys]
    changed += [f"no {name}" for name in set(first["variants"]) ^ set(second["variants"])]
    return "; ".join(changed) or "the settings of a variant"
