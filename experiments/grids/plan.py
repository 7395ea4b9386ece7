"""The plan of an ablation: its cells, what they cost, and the check that no other grid uses its folder."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from experiments.grids.ablation import Ablation
from experiments.grids.cells import PlannedCell, clock
from experiments.grids.cost import Cost, gmac, measure
from experiments.grids.fairness import Budget, check_fair, check_matched, differences
from experiments.grids.plan_table import cell_seconds, show_content
from experiments.runs.run import identified, setting
from experiments.runs.training import build
from experiments.shell.difference import git_commit
from experiments.shell.environment import command_line
from experiments.shell.files import read_json, write_json

COSTS = "costs.json"  # of a dry run


@dataclass
class Plan:
    """What will be run and what it costs."""

    ablation: Ablation
    out: Path
    seeds: Sequence[int]
    cells: list[PlannedCell]
    parameters: dict[str, int]
    gmac: dict[str, float]
    costs: dict[str, Cost]
    classes: dict[str, Any]
    budgets: dict[str, Budget]
    ratios: dict[str, float]  # of the matched arms' sizes
    validation_images: int
    jobs: int
    device: str
    environment: dict[str, Any] = field(default_factory=dict)

    def seconds(self, cell: PlannedCell) -> float:
        """An estimate, from the measured step."""
        return cell_seconds(self.budgets[cell.variant], self.costs[cell.variant].step_seconds, self.validation_images)

    def cell_of(self, variant: str) -> PlannedCell:
        """The first cell of a variant."""
        return next(cell for cell in self.cells if cell.variant == variant)

    def content(self) -> dict[str, Any]:
        """What plan.json holds."""
        a, base = self.ablation, self.costs[self.ablation.baseline]
        differing = differences(a)
        variants = {
            name: {
                "levels": {factor: run.resolved().get(setting(factor)) for factor in a.factors},
                "parameters": self.parameters[name],
                "gmac": self.gmac[name],
                "step_ratio": self.costs[name].step_seconds / base.step_seconds,
                "hash": run.hash,
                **asdict(self.costs[name]),
            }
            for name, run in a.runs.items()
        }
        common = a.runs[a.baseline].resolved()
        if "root" in a.runs[a.baseline].data:
            common["data.root"] = a.runs[a.baseline].data["root"]  # as it was typed
        for key in {
            "seed",
            "corrections",
            *map(setting, a.factors),
            *(key for of_one in differing.values() for key in of_one),
        }:
            common.pop(key, None)
        return {
            "experiment": a.name,
            "question": a.question,
            "baseline": a.baseline,
            "factors": {name: list(levels) for name, levels in a.factors.items()},
            "variants": variants,
            "seeds": list(self.seeds),
            "data": a.data,
            "data_note": a.data_note,
            "scale_note": a.scale_note,
            "common": common,
            "corrections": sorted({name for run in a.runs.values() for name in run.corrections()}),
            "budget": self.budgets,
            "validation_images": self.validation_images,
            "differences": differing,
            "matched": {name: self._match(name) for name in a.matched},
            **({"tuning": dict(a.tuning)} if a.tuning else {}),
            "device": self.device,
            **self.classes,
            **self.environment,
        }

    def _match(self, variant: str) -> dict[str, Any]:
        """How an arm was matched; `values` of the setting that was chosen for it: of the arm it matches, and its
        own."""
        how, runs = self.ablation.matched[variant], self.ablation.runs
        values = [runs[name].resolved()[setting(how.by)] for name in (how.like, variant)] if how.by else None
        return {**asdict(how), "values": values, "ratio": self.ratios[variant]}


def make_plan(
    ablation: Ablation,
    out: Path,
    seeds: Sequence[int],
    jobs: int,
    threads: int,
    say: Callable[[str], None],
    *,
    only_seeds: bool = False,
    costs: dict[str, Cost] | None = None,
) -> Plan:
    """Builds every variant, verifies the data once and measures the cost, before any cell is trained.

    The seeds of the stored plan stay in it unless `only_seeds`. `costs` are those that are known already.
    """
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"--seeds must differ from one another, got {list(seeds)}")
    parameters, macs = {}, {}
    say("verifying the data")
    verified: list[dict[str, Any]] = []
    for name, run in ablation.runs.items():
        with torch.device("meta"):
            module, datamodule = build(run)
        parameters[name] = sum(p.numel() for p in module.parameters())
        if run.data not in verified:
            datamodule.verify()
            verified.append(dict(run.data))
    ablation = replace(ablation, runs=identified(ablation.runs))
    if not ablation.tune or ablation.tuning:  # before the trials, nothing is known of what the variants will have
        stored = _check_same(ablation, out)
        if not only_seeds and (kept := [seed for seed in stored if seed not in seeds]):
            say(f"seeds {' '.join(map(str, kept))} of {out} stay in plan and report (--only-seeds leaves them out)")
            seeds = [*kept, *seeds]
    say("comparing the budgets")
    budgets = check_fair(ablation)
    for name, run in ablation.runs.items():
        if not budgets[name]["steps"]:
            raise ValueError(
                f"{name} would be trained for no step: a batch of {budgets[name]['batch']} images is more than the "
                f"{budgets[name]['train_images']} training images, or trainer.limit_train_batches leaves none"
            )
        macs[name] = gmac(run, *budgets[name]["test_size"])
    _, datamodule = build(ablation.runs[ablation.baseline])
    validation_images = len(datamodule.dataset("val"))
    cells = [
        # Seeds outermost: an interrupted grid has whole replications of the table rather than half of its rows.
        PlannedCell(name, run.but(seed=seed), out / name / f"seed{seed}", budgets[name]["epochs"])
        for seed in seeds
        for name, run in ablation.runs.items()
    ]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    known = costs or _stored_costs(ablation, out, device, threads)
    costs = known or measure(ablation.runs, threads=threads, progress=say)
    return Plan(
        ablation,
        out,
        seeds,
        cells,
        parameters,
        macs,
        costs,
        {"class_names": datamodule.class_names, "palette": [list(colour) for colour in datamodule.palette]},
        budgets,
        check_matched(ablation),
        validation_images,
        jobs,
        device,
        {"command": command_line(), "commit": git_commit()},
    )


def _check_same(ablation: Ablation, out: Path) -> list[int]:
    """The seeds that the folder has; refuses to replace the results of a grid with other settings."""
    if not (out / "plan.json").exists():
        return []
    stored = read_json(out / "plan.json")
    if _is_of(stored, ablation):
        return [seed for seed in stored.get("seeds", ()) if type(seed) is int and 0 <= seed < 2**32]
    now = {key: json.loads(json.dumps(value)) for key, value in ablation.runs[ablation.baseline].resolved().items()}
    old = stored.get("common", {})
    changed = [f"{key}: {old[key]!r} -> {now[key]!r}" for key in sorted({*old} & {*now}) if old[key] != now[key]]
    corrections = {k: v for run in ablation.runs.values() for k, v in run.corrections().items()}
    changed += [
        f"corrected since: {why}" for name, why in corrections.items() if name not in stored.get("corrections", ())
    ]
    raise ValueError(
        f"{out} holds the results of another grid ({'; '.join(changed) or 'its variants or defaults differ'}): choose "
        "another folder with --out, or remove it"
    )


def _is_of(stored: Mapping[str, Any], ablation: Ablation) -> bool:
    """Whether a stored plan, perhaps of an earlier version, has the runs of `ablation`."""
    variants, runs = stored.get("variants", {}), ablation.runs
    return variants.keys() == runs.keys() and all(variants[name].get("hash") in runs[name].hashes for name in runs)


def _stored_costs(ablation: Ablation, out: Path, device: str, threads: int) -> dict[str, Cost] | None:
    """The costs that an earlier call or a dry run measured of the very same variants on the same device."""
    for name in ("plan.json", COSTS):
        try:
            stored = json.loads((out / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        same_threads = stored.get("threads", threads) == threads
        if _is_of(stored, ablation) and stored["device"] == device and same_threads:
            return {name: Cost(v["step_seconds"], v["peak_memory_mb"]) for name, v in stored["variants"].items()}
    return None


def keep_costs(plan: Plan, threads: int) -> None:
    """For the run that follows a dry run."""
    variants = {name: {"hash": run.hash, **asdict(plan.costs[name])} for name, run in plan.ablation.runs.items()}
    write_json(plan.out / COSTS, {"device": plan.device, "threads": threads, "variants": variants})


def show_plan(plan: Plan, console: Console) -> None:
    """The variants with what they differ in, what they cost, the budget, and how long the cells take."""
    show_content(plan.content(), plan.seeds, console)
    if plan.ablation.scale_note:
        console.print(plan.ablation.scale_note, soft_wrap=True, markup=False)
    done = sum(cell.result is not None for cell in plan.cells)
    todo = sum(plan.seconds(cell) for cell in plan.cells if cell.result is None)
    console.print(
        f"{len(plan.cells)} cells, {done} already done; about {clock(todo / plan.jobs)} "
        f"with {plan.jobs} at a time on {plan.device}. Results: {plan.out}",
        soft_wrap=True,
    )
