"""A grid of variants x seeds: plan, check that it is fair, run, continue, report.

An experiment is a file `ablate_<factor>.py` that makes an `Ablation` and hands it to `main`.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments.benchmark import Cost, gmac, measure
from experiments.cells import Cell, clock, run_cells
from experiments.environment import command_line, git_commit
from experiments.files import locked, read_json, write_json
from experiments.flags import natural, positive
from experiments.run import LOGGER_HELP, LOGGERS, Run, build, check_logger

START_SECONDS = 12.0  # of a cell, for imports, data and the test; only the estimate uses it
EVALUATION_STEPS = 0.4  # a validation image costs about this share of a training step of one image: forward only


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """Variants of one run that differ in the declared factors and in nothing else."""

    name: str
    question: str
    runs: Mapping[str, Run]
    factors: Mapping[str, Sequence[Any]]  # a hyperparameter of the module, and its levels
    baseline: str
    data: str = ""  # name of the data, for the report
    data_note: str = ""  # what these data can and cannot show
    scale_note: str = ""  # what was made smaller than a full-size run


def crossed(**factors: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """Every combination of the levels, named by them: {"nearest+none": {"upsample": "nearest", "skips": "none"}, ...}."""
    return {
        "+".join(str(level) for level in levels): dict(zip(factors, levels, strict=True))
        for levels in product(*factors.values())
    }


def variants(base: Run, hparams: Mapping[str, Mapping[str, Any]]) -> dict[str, Run]:
    """The run with each of these sets of hyperparameters instead of its own."""
    return {name: base.but(**changed) for name, changed in hparams.items()}


def check_fair(ablation: Ablation) -> None:
    """Refuses variants that differ in anything but the declared factors: such a table would answer another question."""
    if ablation.baseline not in ablation.runs:
        raise ValueError(f"baseline must be one of {', '.join(ablation.runs)}, got {ablation.baseline!r}")
    base = ablation.runs[ablation.baseline].resolved()
    declared = {f"hparams.{name}" for name in ablation.factors}
    for name, run in ablation.runs.items():
        other = run.resolved()
        differing = {key for key in {*base, *other} if base.get(key) != other.get(key)}
        if differing - declared:
            found = "; ".join(f"{k}: {base.get(k)!r} against {other.get(k)!r}" for k in sorted(differing - declared))
            raise ValueError(
                f"{ablation.name}: {name!r} differs from the baseline {ablation.baseline!r} in more than the declared "
                f"factors ({', '.join(ablation.factors)}): {found}. Make it equal, or declare it as a factor"
            )
        for factor, levels in ablation.factors.items():
            if other[f"hparams.{factor}"] not in levels:
                raise ValueError(
                    f"{ablation.name}: {name!r} has {factor}={other[f'hparams.{factor}']!r}, which is none of the declared "
                    f"levels {list(levels)}"
                )
    hashes: dict[str, str] = {}
    for name, run in ablation.runs.items():
        if run.hash in hashes:
            raise ValueError(f"{ablation.name}: {name!r} and {hashes[run.hash]!r} are the same run")
        hashes[run.hash] = name


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
    steps: int
    validation_images: int
    jobs: int
    device: str
    environment: dict[str, Any] = field(default_factory=dict)

    def seconds(self, cell: Cell) -> float:
        """An estimate, from the measured step."""
        batch = self.ablation.runs[cell.variant].resolved()["data.batch_size"]
        steps = self.steps + EVALUATION_STEPS * self.validation_images * cell.epochs / batch
        return START_SECONDS + steps * self.costs[cell.variant].step_seconds

    def write(self) -> None:
        a, base = self.ablation, self.costs[self.ablation.baseline]
        variants = {
            name: {
                "levels": {factor: run.resolved()[f"hparams.{factor}"] for factor in a.factors},
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
        for factor in (*(f"hparams.{name}" for name in a.factors), "seed"):
            common.pop(factor)
        write_json(
            self.out / "plan.json",
            {
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
                "device": self.device,
                **self.classes,
                **self.environment,
            },
        )


def make_plan(
    ablation: Ablation, out: Path, seeds: Sequence[int], jobs: int, threads: int, say: Callable[[str], None]
) -> Plan:
    """Builds every variant, verifies the data once and measures the cost, before any cell is trained."""
    check_fair(ablation)
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"--seeds must differ from one another, got {list(seeds)}")
    _check_same(ablation, out)
    parameters, macs = {}, {}
    _, datamodule = build(ablation.runs[ablation.baseline])
    say("verifying the data")
    datamodule.verify()
    image, _ = datamodule.dataset("test")[0]
    validation_images = len(datamodule.dataset("val"))
    for name, run in ablation.runs.items():
        with torch.device("meta"):
            parameters[name] = sum(p.numel() for p in build(run)[0].parameters())
        macs[name] = gmac(run, *image.shape[-2:])
    base = ablation.runs[ablation.baseline]
    epochs = int(base.trainer["max_epochs"])
    steps = epochs * (len(datamodule.dataset("train")) // datamodule.batch_size)
    cells = [
        # Seeds outermost: an interrupted grid has whole replications of the table rather than half of its rows.
        Cell(name, run.but(seed=seed), out / name / f"seed{seed}", epochs)
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
        steps,
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
    hashes = {name: variant.get("hash") for name, variant in stored.get("variants", {}).items()}
    if hashes == {name: run.hash for name, run in ablation.runs.items()}:
        return
    now = {key: json.loads(json.dumps(value)) for key, value in ablation.runs[ablation.baseline].resolved().items()}
    old = stored.get("common", {})
    changed = [f"{key}: {old[key]!r} -> {now[key]!r}" for key in sorted({*old} & {*now}) if old[key] != now[key]]
    what = "; ".join(c for c in changed if not c.startswith("data.root")) or "its variants or defaults differ"
    raise ValueError(
        f"{out} holds the results of another grid ({what}): choose another folder with --out, or remove it"
    )


def _stored_costs(ablation: Ablation, out: Path, device: str) -> dict[str, Cost] | None:
    """The costs of an earlier call for the very same variants on the same device."""
    try:
        stored = json.loads((out / "plan.json").read_text())
    except (OSError, ValueError):
        return None
    variants = stored["variants"]
    same = {name: variant["hash"] for name, variant in variants.items()} == {
        n: r.hash for n, r in ablation.runs.items()
    }
    if not same or stored["device"] != device:
        return None
    return {name: Cost(v["step_seconds"], v["peak_memory_mb"]) for name, v in variants.items()}


def show(plan: Plan, console: Console) -> None:
    done = sum(cell.result is not None for cell in plan.cells)
    table = Table(
        "variant", title=f"{plan.ablation.name}: {len(plan.ablation.runs)} variants x {len(plan.seeds)} seeds"
    )
    for column in ("parameters", "GMAC", "ms/step", "peak MB", "est. time"):
        table.add_column(column, justify="right")
    for name in plan.ablation.runs:
        cost = plan.costs[name]
        seconds = sum(plan.seconds(cell) for cell in plan.cells if cell.variant == name)
        table.add_row(
            name + (" (baseline)" if name == plan.ablation.baseline else ""),
            f"{plan.parameters[name]:,}",
            f"{plan.gmac[name]:.3g}",
            f"{1000 * cost.step_seconds:.0f}",
            f"{cost.peak_memory_mb:.0f}",
            clock(seconds),
        )
    console.print(table)
    todo = sum(plan.seconds(cell) for cell in plan.cells if cell.result is None)
    console.print(
        f"{plan.steps} steps a cell, {len(plan.cells)} cells, {done} already done; about {clock(todo / plan.jobs)} "
        f"with {plan.jobs} at a time on {plan.device}. Results: {plan.out}"
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
    parser.add_argument("--logger", choices=LOGGERS, default=LOGGERS[0], help=LOGGER_HELP)
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
            plan = make_plan(ablation, out, args.seeds, jobs, args.threads, lambda m: console.print(m, style="dim"))
            show(plan, console)
            if args.dry_run:
                return []
            plan.write()
            failed = run_cells(
                plan.cells,
                console,
                jobs=jobs,
                threads=args.threads,
                devices=args.devices,
                logger=args.logger,
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
        check_logger(args.logger)
        failed = work(console, args.jobs or torch.cuda.device_count() or os.cpu_count() or 1)
    except (ValueError, FileNotFoundError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        console.print(f"\ninterrupted; the same command continues: {command_line()}", soft_wrap=True)
        return 130
    if args.dry_run:
        return 0
    for cell in failed:
        console.print(
            f"[red]failed:[/red] {cell.variant} seed {cell.run.seed}: {escape(cell.error)}  (log: {cell.folder / 'log.txt'})",
            soft_wrap=True,
        )
    if args.logger in ("tensorboard", "wandb"):
        from experiments.tracking import next_step  # slow to import, and a grid may do without

        if line := next_step(args.logger, out()):
            console.print(line, soft_wrap=True, markup=False)
    return 1 if failed else 0
