"""A grid of variants x seeds: plan, check that it is fair, run, continue, report.

An experiment is a file `ablate_<factor>.py` that makes an `Ablation` and hands it to `main`.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from experiments.benchmark import Cost, gmac, measure
from experiments.evidence.schema import folder_name
from experiments.grids.cells import Cell, clock, run_cells
from experiments.grids.fairness import Budget, Match, check_fair, check_matched, differences
from experiments.grids.plan import cell_seconds, show_content, show_without_data
from experiments.runs.checkpoints import SAVE_EVERY, SAVE_EVERY_HELP, Signals
from experiments.runs.run import Run, identified, setting
from experiments.runs.training import build
from experiments.shell.ending import DONE, IN_PART, UNEXPECTED, ending
from experiments.shell.environment import command_line, git_commit
from experiments.shell.files import locked, read_json, write_json
from experiments.shell.flags import minutes, natural, positive
from experiments.tracking.logger import next_step
from experiments.tracking.loggers import Logging, add_logging


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """Variants of one run that differ in the declared factors and in nothing else, but for what makes an arm match another.

    A factor is a hyperparameter of the module, or an argument of the data or the trainer: "upsample", "data.crop",
    "trainer.max_epochs". `matched`: the arms that must be as large as another one.
    """

    name: str
    question: str
    runs: Mapping[str, Run]
    factors: Mapping[str, Sequence[Any]]  # with their levels
    baseline: str
    matched: Mapping[str, Match] = field(default_factory=dict)
    data: str = ""  # name of the data, for the report
    data_note: str = ""  # what these data can and cannot show
    scale_note: str = ""  # what was made smaller than a full-size run

    def __post_init__(self) -> None:
        if self.baseline not in self.runs:
            raise ValueError(f"baseline must be one of {', '.join(self.runs)}, got {self.baseline!r}")
        for name in {*self.matched, *(how.like for how in self.matched.values())} - {*self.runs}:
            raise ValueError(f"matched must name variants ({', '.join(self.runs)}), got {name!r}")
        for name in self.runs:
            try:
                folder_name(name)
            except ValueError as error:
                raise ValueError(f"a variant's name {error}, got {name!r}: give it another one") from None


def crossed(**factors: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """Every combination of the levels, named by them: {"nearest+none": {"upsample": "nearest", "skips": "none"}, ...}.

    A factor such as "data.crop" is handed over as `**{"data.crop": (96, 128)}`.
    """
    return {
        "+".join(str(level) for level in levels): dict(zip(factors, levels, strict=True))
        for levels in product(*factors.values())
    }


def variants(base: Run, hparams: Mapping[str, Mapping[str, Any]]) -> dict[str, Run]:
    """The run with each of these sets of settings, see `Run.but`, instead of its own."""
    return {name: base.but(**changed) for name, changed in hparams.items()}


@dataclass
class Plan:
    """What will be run and what it costs."""

    ablation: Ablation
    out: Path
    seeds: Sequence[int]
    cells: list[Cell]
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

    def seconds(self, cell: Cell) -> float:
        """An estimate, from the measured step."""
        return cell_seconds(self.budgets[cell.variant], self.costs[cell.variant].step_seconds, self.validation_images)

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
            "device": self.device,
            **self.classes,
            **self.environment,
        }

    def _match(self, variant: str) -> dict[str, Any]:
        """How an arm was matched; `values` of the setting that was chosen for it: of the arm it matches, and its own."""
        how, runs = self.ablation.matched[variant], self.ablation.runs
        values = [runs[name].resolved()[setting(how.by)] for name in (how.like, variant)] if how.by else None
        return {**asdict(how), "values": values, "ratio": self.ratios[variant]}


def make_plan(
    ablation: Ablation, out: Path, seeds: Sequence[int], jobs: int, threads: int, say: Callable[[str], None]
) -> Plan:
    """Builds every variant, verifies the data once and measures the cost, before any cell is trained."""
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
    _check_same(ablation, out)
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
        Cell(name, run.but(seed=seed), out / name / f"seed{seed}", budgets[name]["epochs"])
        for seed in seeds
        for name, run in ablation.runs.items()
    ]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    costs = _stored_costs(ablation, out, device) or measure(ablation.runs, threads=threads, progress=say)
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


def _check_same(ablation: Ablation, out: Path) -> None:
    """Refuses to replace the results of a grid with other settings; more seeds are welcome."""
    if not (out / "plan.json").exists():
        return
    stored = read_json(out / "plan.json")
    if _is_of(stored, ablation):
        return
    now = {key: json.loads(json.dumps(value)) for key, value in ablation.runs[ablation.baseline].resolved().items()}
    old = stored.get("common", {})
    changed = [f"{key}: {old[key]!r} -> {now[key]!r}" for key in sorted({*old} & {*now}) if old[key] != now[key]]
    corrections = {k: v for run in ablation.runs.values() for k, v in run.corrections().items()}
    changed += [
        f"corrected since: {why}" for name, why in corrections.items() if name not in stored.get("corrections", ())
    ]
    raise ValueError(
        f"{out} holds the results of another grid ({'; '.join(changed) or 'its variants or defaults differ'}): choose another "
        "folder with --out, or remove it"
    )


def _is_of(stored: Mapping[str, Any], ablation: Ablation) -> bool:
    """Whether a stored plan, perhaps of an earlier version, has the runs of `ablation`."""
    variants, runs = stored.get("variants", {}), ablation.runs
    return variants.keys() == runs.keys() and all(variants[name].get("hash") in runs[name].hashes for name in runs)


def _stored_costs(ablation: Ablation, out: Path, device: str) -> dict[str, Cost] | None:
    """The costs of an earlier call for the very same variants on the same device."""
    try:
        stored = json.loads((out / "plan.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not _is_of(stored, ablation) or stored["device"] != device:
        return None
    return {name: Cost(v["step_seconds"], v["peak_memory_mb"]) for name, v in stored["variants"].items()}


def show(plan: Plan, console: Console) -> None:
    """The variants with what they differ in, what they cost, the budget, and how long the cells take."""
    show_content(plan.content(), plan.seeds, console)
    done = sum(cell.result is not None for cell in plan.cells)
    todo = sum(plan.seconds(cell) for cell in plan.cells if cell.result is None)
    console.print(
        f"{len(plan.cells)} cells, {done} already done; about {clock(todo / plan.jobs)} "
        f"with {plan.jobs} at a time on {plan.device}. Results: {plan.out}",
        soft_wrap=True,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of every ablation."""
    parser.add_argument("--seeds", type=natural, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="folder of the results (default: outputs/<experiment>)")
    parser.add_argument("--jobs", type=positive, help="cells at a time (default: one a GPU, or one a CPU core)")
    parser.add_argument("--threads", type=positive, default=1, help="CPU threads of a cell; last digits depend on it")
    parser.add_argument(
        "--devices", type=_devices, default="auto", help="devices of one cell; more than one trains it with DDP"
    )
    add_logging(parser, positive)
    parser.add_argument("--save-every", type=minutes, default=SAVE_EVERY, help=SAVE_EVERY_HELP)
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")


def _devices(text: str) -> str:
    return text if text == "auto" else str(positive(text))


def main(ablation: Ablation, args: argparse.Namespace) -> int:
    """Plans, runs and reports; the same command continues what was interrupted. Returns the exit status."""
    from experiments.report import write_report  # imports pyplot, which the cells need not

    out = args.out or Path("outputs") / ablation.name

    def work(console: Console, jobs: int) -> list[Cell]:
        batch = ablation.runs[ablation.baseline].resolved()["data.batch_size"]
        if args.devices != "auto" and batch % int(args.devices):
            raise ValueError(f"--devices must divide the batch of {batch} images, got {args.devices}")
        with locked(out):
            try:
                plan = make_plan(ablation, out, args.seeds, jobs, args.threads, lambda m: console.print(m, style="dim"))
            except FileNotFoundError as error:
                if not args.dry_run:
                    raise
                show_without_data(ablation, out, args.seeds, str(error), console)
                return []
            show(plan, console)
            if args.dry_run:
                return []
            write_json(out / "plan.json", plan.content())
            failed = run_cells(
                plan.cells,
                console,
                jobs=jobs,
                threads=args.threads,
                devices=args.devices,
                logging=Logging.of(args),
                save_every=args.save_every,
                command=command_line(),
                seconds=plan.seconds,
            )
            if len(failed) < len(plan.cells):
                write_report(out)
            return failed

    return run_command(args, lambda: out, work)


def run_command(
    args: argparse.Namespace, out: Callable[[], Path], work: Callable[[Console, int], Sequence[Cell]]
) -> int:
    """What every grid does around its `work`, which gets a console and the number of cells at a time and returns those
    that failed: errors in a line, interruption, the list of failures, where the logs went. Returns the exit status."""
    console = Console(width=None if sys.stdout.isatty() else 160)  # a log file has no width, and a table wants one
    try:
        goes_on = "" if args.dry_run else f"interrupted; the same command continues: {command_line()}"
        with Signals(), ending(goes_on):
            logging = Logging.of(args)
            failed = work(console, args.jobs or torch.cuda.device_count() or os.cpu_count() or 1)
    except SystemExit as stop:
        return int(stop.code or 0)
    if args.dry_run:
        return 0
    for cell in failed:
        console.print(
            f"[red]failed:[/red] {cell.variant} seed {cell.run.seed}: {escape(cell.error)}  (log: {cell.folder / 'log.txt'})",
            soft_wrap=True,
        )
    if line := next_step(logging, out()):
        console.print(line, soft_wrap=True, markup=False)
    if not failed:
        return DONE
    if any(out().glob("*/seed*/result.json")):
        return IN_PART
    codes = {cell.process.returncode for cell in failed if cell.process is not None}
    return codes.pop() if len(codes) == 1 and min(codes) > 0 else UNEXPECTED
