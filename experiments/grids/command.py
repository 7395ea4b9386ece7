"""The command line of every grid: its flags, and from the plan over the cells to the report."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jsonargparse
from rich.console import Console
from rich.markup import escape

from experiments.grids import tuning
from experiments.grids.ablation import Ablation
from experiments.grids.cells import PlannedCell, clock, collect, run_cells
from experiments.grids.cost import Cost
from experiments.grids.decided import Asked, add_statistics, check_asked
from experiments.grids.fairness import RECIPE
from experiments.grids.foresight import read_pilot
from experiments.grids.launchers.base import Launcher
from experiments.grids.launchers.chosen import add_launcher, launcher_of
from experiments.grids.plan import Plan, check_tuned_plan, make_plan, read_plan, show_plan
from experiments.grids.plan_table import show_without_data
from experiments.grids.until import stage_two
from experiments.runs.checkpoints import SAVE_EVERY, SAVE_EVERY_HELP, Signals
from experiments.runs.energy import ENERGY_HELP, check_installed, why_none
from experiments.runs.run import identified
from experiments.shell.command import command
from experiments.shell.difference import tell_difference
from experiments.shell.ending import DONE, IN_PART, UNEXPECTED
from experiments.shell.environment import command_line
from experiments.shell.files import locked, write_json
from experiments.shell.store import Store
from experiments.tracking.loggers import Logging, add_logging

Seed = jsonargparse.typing.restricted_number_type("Seed", int, [(">=", 0), ("<", 2**32)])


def add_arguments(parser: argparse.ArgumentParser, seeds: int = 5) -> None:
    """The flags of every ablation; without --seeds it trains so many `seeds`."""
    positive = jsonargparse.typing.PositiveInt
    parser.add_argument(
        "--seeds",
        type=Seed,
        nargs="+",
        default=[*range(seeds)],
        help=f"each variant is trained once a seed (default: {' '.join(map(str, range(seeds)))}); those that the "
        "folder has already are kept beside them",
    )
    parser.add_argument(
        "--only-seeds", action="store_true", help="plan and report these --seeds alone, not those of earlier calls, too"
    )
    parser.add_argument(
        "--tune",
        nargs="+",
        action="append",
        default=[],
        metavar="WORD",
        help="a hyperparameter and its values, lr 1e-3 1e-2: each variant takes its best on validation, by one seed of "
        "its own",
    )
    add_statistics(parser)
    parser.add_argument("--out", type=Path, help="folder of the results (default: outputs/<experiment>)")
    add_launcher(parser)
    add_logging(parser, positive)
    parser.add_argument(
        "--save-every", type=jsonargparse.typing.PositiveFloat, default=SAVE_EVERY, help=SAVE_EVERY_HELP
    )
    parser.add_argument("--energy", action="store_true", help=ENERGY_HELP)
    parser.add_argument(
        "--dry-run", action="store_true", help="measure a few steps, print the plan and stop; the run keeps the times"
    )


def run_ablation(ablation: Ablation, args: argparse.Namespace) -> int:
    """Plans, runs and reports; the same command continues what was interrupted. Returns the exit status."""
    return run_grid(lambda: ablation, ablation.name, args)


def run_grid(make: Callable[[], Ablation], name: str, args: argparse.Namespace) -> int:
    """The same for an ablation that is only now made, as its settings may follow from the data."""
    out = args.out or Path("outputs") / name

    def work(console: Console, launcher: Launcher) -> list[PlannedCell]:
        with locked(out):
            grid = None
            store = Store(args.store) if args.store is not None else None
            if store:
                store.check_apart(out)
            if store and not (out / "plan.json").exists():  # begun on another machine
                store.bring("plan.json", out / "plan.json")
            check_asked(Asked.of(args), read_plan(out), args.seeds, out, only_seeds=args.only_seeds)
            if args.pilot is not None:
                read_pilot(args.pilot)
            try:
                grid = _Grid(make(), out, args, console, launcher, store)
                plan, failed = grid.planned()
            except FileNotFoundError as error:
                if not args.dry_run or (grid and grid.has_data()):
                    raise
                ablation = grid.ablation if grid else None
                show_without_data(ablation, read_plan(out), out, args.seeds, args.pilot, str(error), console)
                return []
            return grid.carry_out(plan) if plan else failed

    return run_command(args, lambda: out, work)


@dataclass
class _Grid:
    ablation: Ablation
    out: Path
    args: argparse.Namespace
    console: Console
    launcher: Launcher
    store: Store | None = None

    def planned(self) -> tuple[Plan | None, list[PlannedCell]]:
        """The plan, shown, with what the trials have found; none where some failed, which come with it, or where a dry
        run has shown what they would be."""
        args, ablation, costs = self.args, self.ablation, None
        tuning.check_scored(ablation)
        batch = ablation.runs[ablation.baseline].resolved().get("data.batch_size", 0)
        if (devices := self.launcher.devices) != "auto" and batch % int(devices):
            flag = "--devices" if args.devices != "auto" else "--gpus-per-cell"
            raise ValueError(f"{flag} must divide the batch of {batch} images, got {devices}")
        if ablation.tune:
            if tuning.SEED in args.seeds:
                raise ValueError(f"--seeds must leave {tuning.SEED} out: it is the seed of the trials")
            ablation, costs, failed = self.tune()
            if failed or not ablation.tuning:
                return None, failed
        return self.plan(ablation, costs), []

    def carry_out(self, plan: Plan) -> list[PlannedCell]:
        """Trains and reports, unless it is a dry run; returns the cells that failed."""
        from experiments.reports.write import write_report  # imports pyplot, which the cells need not

        if self.args.dry_run:
            return []
        self.keep(plan)
        failed = self.cells(plan.cells, plan.seconds, Logging.of(self.args), self.args.energy)
        if plan.decided["statistics"]["until"] is not None:
            longer = stage_two(plan, self.args.max_cells, self.say)
            is_longer, plan = len(longer.seeds) > len(plan.seeds), longer
            if is_longer:
                self.keep(plan)
                failed = self.cells(plan.cells, plan.seconds, Logging.of(self.args), self.args.energy)
        if self.args.energy:
            self.tell_energy(plan.cells)
        if len(failed) < len(plan.cells):
            plan.finish(lambda line: self.console.print(line, style="dim"))
            self.keep(plan)
            write_report(self.out)
        return failed

    def keep(self, plan: Plan) -> None:
        write_json(self.out / "plan.json", plan.content())
        if self.store:
            self.store.send(self.out / "plan.json")

    def tell_energy(self, cells: Sequence[PlannedCell]) -> None:
        """Of trainings without energy how many there are, and why, by the log of the first."""
        trained = {cell.folder: cell.result for cell in cells if cell.result and not cell.planned.step}
        if without := [folder for folder, result in trained.items() if "energy" not in result]:
            self.say(f"{len(without)} of {len(trained)} trainings have no energy: {why_none(without[0])}")

    def say(self, line: str) -> None:
        self.console.print(line, soft_wrap=True, markup=False)

    def has_data(self) -> bool:
        """Whether the data are there, so that it is another file which is not found."""
        base = self.ablation.runs[self.ablation.baseline]
        try:
            base.datamodule(**base.data).verify()
        except FileNotFoundError:
            return False
        return True

    def plan(self, ablation: Ablation, costs: dict[str, Cost] | None = None) -> Plan:
        def say(line: str) -> None:
            self.console.print(line, style="dim")

        args = self.args
        plan = make_plan(
            ablation,
            self.out,
            args.seeds,
            self.launcher.jobs,
            args.threads,
            say,
            only_seeds=args.only_seeds,
            costs=costs,
            asked=Asked.of(args),
        )
        if self.store:
            collect(plan.cells, self.store)
        show_plan(plan, self.console, args.pilot)
        tell_difference(self.console)
        return plan

    def tune(self) -> tuple[Ablation, dict[str, Cost] | None, list[PlannedCell]]:
        """The grid with what the trials have found, the costs that were measured for them, and the trials that failed.

        Of a dry run the grid as it is, where trials are to be done.
        """
        ablation = replace(self.ablation, runs=identified(self.ablation.runs))
        check_tuned_plan(ablation, self.out)
        planned = tuning.trials(ablation, self.out)
        costs = None
        if waiting := tuning.to_do(planned):
            plan = self.plan(ablation)
            of_variant = {variant: plan.seconds(plan.cell_of(variant)) for variant in planned}
            of_cell = {id(cell): of_variant[variant] for variant, cells in planned.items() for cell in cells}
            count, names = sum(map(len, planned.values())), " and ".join(ablation.tune)
            values = "; ".join(map(tuning.words, tuning.tried(ablation)))
            left = sum(of_cell[id(cell)] for cell in waiting)
            self.console.print(
                f"Before that {count} trials, {count - len(waiting)} already done: each variant with {values}, with "
                f"a seed of their own on validation images, about {clock(left / self.launcher.jobs)}. Each takes its "
                f"best {names}, and the plan above changes with it.",
                soft_wrap=True,
            )
            if self.args.dry_run:
                return ablation, None, []
            failed = self.cells(waiting, lambda cell: of_cell[id(cell)], Logging())
            if failed := tuning.mark_diverged(failed):
                return ablation, None, failed
            costs = plan.costs
        tuned = tuning.tuned(ablation, planned)
        same = set(tuned.tune) <= {*RECIPE}  # another recipe costs the same step
        return tuned, costs if same else None, []

    def cells(
        self,
        cells: Sequence[PlannedCell],
        seconds: Callable[[PlannedCell], float],
        logging: Logging,
        energy: bool = False,
    ) -> list[PlannedCell]:
        args = self.args
        return run_cells(
            cells,
            self.console,
            launcher=self.launcher,
            store=self.store,
            logging=logging,
            save_every=args.save_every,
            energy=energy,
            command=command_line(),
            seconds=seconds,
        )


def run_command(
    args: argparse.Namespace, out: Callable[[], Path], work: Callable[[Console, Launcher], Sequence[PlannedCell]]
) -> int:
    """Runs `work(console, launcher)` and turns errors, an interruption and the failed cells it returns into an exit
    status."""
    try:
        report = f"python -m experiments.report {out()} shows what is finished"
        goes_on = "" if args.dry_run else f"interrupted; the same command continues: {command_line()}\n{report}"
        with command(goes_on) as console, Signals():
            logging = Logging.of(args)
            if args.energy:
                check_installed()
            failed = work(console, launcher_of(args, out()))
    except SystemExit as stop:
        return int(stop.code or 0)
    if args.dry_run:
        return 0
    for cell in failed:
        log = f"  (log: {cell.folder / 'log.txt'})" if cell.process else ""  # else it was not started
        seed = "" if cell.planned.seed == tuning.SEED else f" seed {cell.planned.seed}"
        console.print(f"[red]failed:[/red] {cell.variant}{seed}: {escape(cell.error)}{log}", soft_wrap=True)
    if line := logging.next_step(out()):
        console.print(line, soft_wrap=True, markup=False)
    if not failed:
        return DONE
    if any(out().glob("*/seed*/result.json")):
        return IN_PART
    codes = {cell.process.returncode or 0 for cell in failed if cell.process is not None}
    return codes.pop() if len(codes) == 1 and min(codes) > 0 else UNEXPECTED
