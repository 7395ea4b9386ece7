"""The command line of every grid: its flags, and from the plan over the cells to the report."""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape

from experiments.grids.ablation import Ablation
from experiments.grids.cells import PlannedCell, run_cells
from experiments.grids.plan import make_plan, show_plan
from experiments.grids.plan_table import show_without_data
from experiments.runs.checkpoints import SAVE_EVERY, SAVE_EVERY_HELP, Signals
from experiments.shell.command import command
from experiments.shell.difference import tell_difference
from experiments.shell.ending import DONE, IN_PART, UNEXPECTED
from experiments.shell.environment import command_line
from experiments.shell.files import locked, write_json
from experiments.shell.flags import minutes, natural, positive
from experiments.tracking.loggers import Logging, add_logging


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of every ablation."""
    parser.add_argument(
        "--seeds", type=natural, nargs="+", default=[0, 1, 2], help="each variant is trained once a seed"
    )
    parser.add_argument("--out", type=Path, help="folder of the results (default: outputs/<experiment>)")
    parser.add_argument("--jobs", type=positive, help="cells at a time (default: one a GPU, or one a CPU core)")
    parser.add_argument(
        "--threads", type=positive, default=1, help="CPU threads of a cell; the last digits of its numbers depend on it"
    )
    parser.add_argument(
        "--devices", type=_devices, default="auto", help="devices of one cell; more than one trains it with DDP"
    )
    add_logging(parser, positive)
    parser.add_argument("--save-every", type=minutes, default=SAVE_EVERY, help=SAVE_EVERY_HELP)
    parser.add_argument("--dry-run", action="store_true", help="measure a few steps, print the plan and stop")


def _devices(text: str) -> str:
    return text if text == "auto" else str(positive(text))


def run_ablation(ablation: Ablation, args: argparse.Namespace) -> int:
    """Plans, runs and reports; the same command continues what was interrupted. Returns the exit status."""
    from experiments.reports.write import write_report  # imports pyplot, which the cells need not

    out = args.out or Path("outputs") / ablation.name

    def work(console: Console, jobs: int) -> list[PlannedCell]:
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
            show_plan(plan, console)
            tell_difference(console)
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
    args: argparse.Namespace, out: Callable[[], Path], work: Callable[[Console, int], Sequence[PlannedCell]]
) -> int:
    """Runs `work(console, jobs)` and turns errors, an interruption and the failed cells it returns into an exit
    status."""
    try:
        goes_on = "" if args.dry_run else f"interrupted; the same command continues: {command_line()}"
        with Signals(), command(goes_on) as console:
            logging = Logging.of(args)
            failed = work(console, args.jobs or torch.cuda.device_count() or os.cpu_count() or 1)
    except SystemExit as stop:
        return int(stop.code or 0)
    if args.dry_run:
        return 0
    for cell in failed:
        console.print(
            f"[red]failed:[/red] {cell.variant} seed {cell.run.seed}: {escape(cell.error)}  (log: "
            f"{cell.folder / 'log.txt'})",
            soft_wrap=True,
        )
    if line := logging.next_step(out()):
        console.print(line, soft_wrap=True, markup=False)
    if not failed:
        return DONE
    if any(out().glob("*/seed*/result.json")):
        return IN_PART
    codes = {cell.process.returncode for cell in failed if cell.process is not None}
    return codes.pop() if len(codes) == 1 and min(codes) > 0 else UNEXPECTED
