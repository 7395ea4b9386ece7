"""The plan of an ablation: its cells, what they cost, and the check that no other grid uses its folder."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from experiments.evidence import schema
from experiments.grids.ablation import Ablation, Measured
from experiments.grids.cells import PlannedCell, clock
from experiments.grids.cost import Cost, gmac
from experiments.grids.decided import Asked, decide
from experiments.grids.fairness import Budget, check_fair, check_matched, differences
from experiments.grids.foresight import foresight
from experiments.grids.graph import build_planned, linked, planned_cells
from experiments.grids.known_costs import costs_of
from experiments.grids.plan_table import cell_seconds, show_content
from experiments.runs.run import Run, identified, setting
from experiments.runs.scored import scored_entry
from experiments.runs.training import build
from experiments.shell.difference import git_commit
from experiments.shell.environment import command_line, slow_precision
from experiments.shell.files import read_json


@dataclass
class Plan:
    """What will be run and what it costs."""

    ablation: Ablation
    unlinked: Ablation  # whose runs do not name their parents' weights yet
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
    measured: Measured = field(default_factory=Measured)
    threads: int = 1  # that the costs were measured with
    decided: dict[str, Any] = field(default_factory=dict)  # fields of plan.json that are fixed before training
    costs_note: str = ""  # that the costs were measured earlier

    def of_seeds(self, seeds: Sequence[int], decided: dict[str, Any]) -> "Plan":
        """The same grid with other seeds."""
        return replace(
            self, seeds=seeds, decided=decided, cells=planned_cells(self.unlinked, self.out, seeds, self.budgets)
        )

    def seconds(self, cell: PlannedCell) -> float:
        """An estimate, from the measured step; of what a step takes beside its test, nothing is known."""
        budget = self.budgets[cell.variant] | ({"steps": 0, "epochs": 0} if cell.planned.step else {})
        step = self.costs[cell.variant].step_seconds
        return cell_seconds(budget, step, self.validation_images, device=self.device, threads=self.threads)

    def finish(self, say: Callable[[str], None]) -> None:
        """Measures what the ablation wants of the finished cells; without their checkpoints what was measured stays."""
        if self.ablation.finish:
            try:
                self.measured = self.ablation.finish(self.cells, say)
            except (FileNotFoundError, ValueError) as error:
                say(f"not measured: {error}")

    def _size(self, name: str) -> dict[str, Any]:
        return {"parameters": self.parameters[name], "gmac": self.gmac[name], **asdict(self.costs[name])}

    def cell_of(self, variant: str) -> PlannedCell:
        """The first cell of a variant."""
        return next(cell for cell in self.cells if cell.variant == variant)

    def content(self) -> dict[str, Any]:
        """What plan.json holds."""
        a, base = self.ablation, self.costs[self.ablation.baseline]
        differing = differences(a)
        levels = a.levels or {
            name: {factor: run.resolved().get(setting(factor)) for factor in a.factors} for name, run in a.runs.items()
        }
        factors = {key: list(values) for key, values in a.factors.items()}
        if a.levels:
            names = dict.fromkeys(key for of_one in levels.values() for key in of_one)
            factors = {key: list(dict.fromkeys(of_one[key] for of_one in levels.values())) for key in names}
        variants = {
            name: {
                "levels": dict(levels[name]),
                "step_ratio": self.costs[name].step_seconds / base.step_seconds,
                "hash": run.hash,
                **self._size(name),
                **self.measured.variants.get(name, {}),
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
            "factors": factors,
            "variants": variants,
            "stages": {name: self._size(name) | {"budget": self.budgets[name]} for name in a.stages},
            "parents": {name: list(a.parents_of(name)) for name in a.parents},
            "seeds": list(self.seeds),
            **self.decided,
            "data": a.data,
            "data_note": a.data_note,
            "scale_note": a.scale_note,
            "notes": list(self.measured.notes),
            "common": common,
            "corrections": sorted({name for run in a.runs.values() for name in run.corrections()}),
            "budget": {name: self.budgets[name] for name in a.runs},
            "validation_images": self.validation_images,
            "differences": differing,
            "matched": {name: self._match(name) for name in a.matched},
            **({"tuning": dict(a.tuning)} if a.tuning else {}),
            "device": self.device,
            "threads": self.threads,
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
    asked: Asked | None = None,
) -> Plan:
    """Builds every variant, verifies the data once and measures the cost, before any cell is trained.

    The seeds of the stored plan stay in it unless `only_seeds`. `costs` are those that are known already.
    """
    parameters, macs = {}, {}
    say("verifying the data")
    verified: list[dict[str, Any]] = []
    for name in ablation.order:
        run = ablation.every[name]
        with torch.device("meta"):
            module, datamodule = build_planned(ablation, name)
        parameters[name] = sum(p.numel() for p in module.parameters())
        if run.data not in verified:
            datamodule.verify()
            verified.append(dict(run.data))
    runs = identified(ablation.every)
    ablation = replace(
        ablation,
        runs={name: runs[name] for name in ablation.runs},
        stages={name: runs[name] for name in ablation.stages},
    )
    say("comparing the budgets")
    budgets = check_fair(ablation)
    for name, run in runs.items():
        if not budgets[name]["steps"]:
            raise ValueError(
                f"{name} would be trained for no step: a batch of {budgets[name]['batch']} images is more than the "
                f"{budgets[name]['train_images']} training images, or trainer.limit_train_batches leaves none"
            )
        macs[name] = gmac(run, *budgets[name]["test_size"])
    _, datamodule = build(runs[ablation.baseline].alone())
    validation_images = len(datamodule.dataset("val"))
    unlinked, runs = ablation, linked(ablation, budgets)
    ablation = replace(ablation, runs={name: runs[name] for name in ablation.runs})
    if not ablation.tune or ablation.tuning:  # before the trials, nothing is known of what the variants will have
        stored = _check_same(ablation, out)
    else:
        stored = read_plan(out).get("seeds", [])
    if not only_seeds:
        if kept := [seed for seed in stored if seed not in seeds]:
            say(f"seeds {' '.join(map(str, kept))} of {out} stay in plan and report (--only-seeds leaves them out)")
        seeds = [*stored, *(seed for seed in seeds if seed not in stored)]
    trained = any(path for name in ablation.runs for path in (out / name).glob("seed*/result.json"))
    decided = decide(asked or Asked(), read_plan(out), seeds, out, trained=trained, only_seeds=only_seeds)
    cells = planned_cells(unlinked, out, seeds, budgets)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    note = ""
    costs = costs or _stored_costs(ablation, out, device, threads)
    if not costs:
        costs, note = _measured(ablation, threads, say)
    return Plan(
        ablation,
        unlinked,
        out,
        seeds,
        cells,
        parameters,
        macs,
        costs,
        {
            "class_names": datamodule.class_names,
            "palette": [list(colour) for colour in datamodule.palette],
            **scored_entry(datamodule),
        },
        budgets,
        check_matched(ablation),
        validation_images,
        jobs,
        device,
        {"command": command_line(), "commit": git_commit()},
        _stored_measured(out),
        threads,
        decided,
        note,
    )


def _measured(ablation: Ablation, threads: int, say: Callable[[str], None]) -> tuple[dict[str, Cost], str]:
    """Of each variant and stage; a step costs in training what its parent does.

    On a training batch where all are trained on the same data, and otherwise on noise.
    """
    trained = {name: run for name, run in ablation.every.items() if not run.step}
    base, images = ablation.runs[ablation.baseline], None
    if all((run.datamodule, run.data) == (base.datamodule, base.data) for run in trained.values()):
        _, datamodule = build(base.from_scratch())
        images = next(iter(datamodule.train_dataloader()))["image"]
    costs, note = costs_of(trained, threads=threads, images=images, say=say)
    return {name: costs[name if name in costs else ablation.parents_of(name)[0]] for name in ablation.order}, note


def _check_same(ablation: Ablation, out: Path) -> list[int]:
    """The seeds that the folder has; refuses to replace the results of a grid with other settings."""
    stored = read_plan(out)
    if stored and not _is_of(stored, ablation):
        raise ValueError(_another(stored, ablation, out))
    seeds = list(stored.get("seeds", []))
    if stored and not ablation.parents:  # those that --only-seeds once left out
        done = {
            int(path.parent.name[4:])
            for name, run in ablation.runs.items()
            for path in (out / name).glob("seed*/result.json")
            if path.parent.name[4:].isdecimal() and _is_result(path, run)
        }
        seeds = [*sorted(done.difference(seeds)), *seeds]
    return seeds


def _is_result(path: Path, run: Run) -> bool:
    try:
        return read_json(path).get("hash") in run.but(seed=int(path.parent.name[4:])).hashes
    except ValueError:  # damaged, or no seed
        return False


def check_tuned_plan(ablation: Ablation, out: Path) -> None:
    """Refuses, before a trial, a folder with the results of a grid that was not tuned so."""
    if not (stored := read_plan(out)):
        return
    tuning = stored.get("tuning")
    asked = json.loads(json.dumps({name: list(values) for name, values in ablation.tune.items()}))
    if tuning is None or tuning["settings"] != asked:
        was = "not tuned" if tuning is None else f"tuned with {tuning['settings']}"
        raise ValueError(
            f"{out} holds the results of a grid that was {was}, and --tune asks for {asked}: choose another folder "
            "with --out. A copy of the folder tuning/ there keeps the trials that are done"
        )
    if tuning["chosen"].keys() == ablation.runs.keys():
        chosen = {name: run.but(**tuning["chosen"][name]) for name, run in ablation.runs.items()}
        ablation = replace(ablation, runs=chosen)
    if not _is_of(stored, ablation):
        raise ValueError(_another(stored, ablation, out))


def read_plan(out: Path) -> dict[str, Any]:
    """plan.json, empty where there is none; a ValueError that says what is wrong with it."""
    if not (out / "plan.json").exists():
        return {}
    try:
        return schema.read(out / "plan.json", schema.StoredPlan)
    except ValueError as error:
        told = str(error).rpartition(": ")[0] or str(error)
        way_out = "delete this file alone and start the experiment again, which keeps its finished cells"
        raise ValueError(f"{told}: {way_out}") from None


def _another(stored: Mapping[str, Any], ablation: Ablation, out: Path) -> str:
    """That a folder holds another grid, and in what it differs."""
    now = {key: json.loads(json.dumps(value)) for key, value in ablation.runs[ablation.baseline].resolved().items()}
    old = stored.get("common", {})
    changed = [f"{key}: {old[key]!r} -> {now[key]!r}" for key in sorted({*old} & {*now}) if old[key] != now[key]]
    corrections = {k: v for run in ablation.runs.values() for k, v in run.corrections().items()}
    changed += [
        f"corrected since: {why}" for name, why in corrections.items() if name not in stored.get("corrections", ())
    ]
    return (
        f"{out} holds the results of another grid ({'; '.join(changed) or 'its variants or defaults differ'}): choose "
        "another folder with --out, or remove it"
    )


def _is_of(stored: Mapping[str, Any], ablation: Ablation) -> bool:
    """Whether a stored plan, perhaps of an earlier version, has the runs of `ablation`."""
    variants, runs = stored.get("variants", {}), ablation.runs
    return variants.keys() == runs.keys() and all(variants[name].get("hash") in runs[name].hashes for name in runs)


def _stored_costs(ablation: Ablation, out: Path, device: str, threads: int) -> dict[str, Cost] | None:
    """The costs in the stored plan of the very same variants on the same device."""
    try:
        stored = json.loads((out / "plan.json").read_text(encoding="utf-8"))
        same = (stored["device"], stored.get("threads", 1)) == (device, threads)
        if same and _is_of(stored, ablation):
            rows = stored.get("stages", {}) | stored["variants"]
            return {name: Cost(float(v["step_seconds"]), float(v["peak_memory_mb"])) for name, v in rows.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, damaged, or of an earlier version
        pass
    return None


def _stored_measured(out: Path) -> Measured:
    """What the stored plan, of the same grid, holds of the finished cells."""
    stored = read_plan(out)
    seconds = {
        name: {"image_seconds": variant["image_seconds"]}
        for name, variant in stored.get("variants", {}).items()
        if variant.get("image_seconds")
    }
    return Measured(seconds, stored.get("notes", []))


def show_plan(plan: Plan, console: Console, pilot: Path | None = None) -> None:
    """The variants with what they differ in, what they cost, the budget, how long the cells take, and what they can
    show."""
    show_content(plan.content(), plan.seeds, console)
    if plan.ablation.scale_note:
        console.print(plan.ablation.scale_note, soft_wrap=True, markup=False)
    precisions = dict.fromkeys(run.trainer.get("precision") for run in plan.ablation.every.values())
    slow = [slow_precision(precision, "cpu" if plan.device == "CPU" else "cuda") for precision in precisions]
    for line in filter(None, [plan.costs_note, *slow]):
        console.print(line, soft_wrap=True, markup=False)
    done = sum(cell.result is not None for cell in plan.cells)
    todo = sum(plan.seconds(cell) for cell in plan.cells if cell.result is None)
    console.print(
        f"{len(plan.cells)} cells, {done} already done; about {clock(todo / plan.jobs)} "
        f"with {plan.jobs} at a time on {plan.device}. Results: {plan.out}",
        soft_wrap=True,
    )
    statistics = plan.decided["statistics"]
    if done < len(plan.cells) or (statistics["until"] is not None and "needed" not in statistics):
        for line in foresight(plan.content(), plan.seeds, plan.out, pilot):
            console.print(line, soft_wrap=True, markup=False)
