"""Images a second of a training on 1 to N processes, how much of each process that is, and what the rest goes to.

    python -m experiments.benchmark_scaling --processes 1 2 --model unet --model.width 16
    python -m experiments.benchmark_scaling --processes 1 2 4 8 --model deeplabv3plus --data.size 513 \\
        --data.batch_size 16 --trainer.precision bf16-mixed       # on eight GPUs

Weak scaling: each process has --data.batch_size images a step. Strong scaling: all together have. A measurement trains
by the code of experiments.train, in processes of its own (torchrun), and rounds alternate. On a CPU each process has
one thread, so that two have twice the cores of one. Images/s count from the end of a step to the end of the next.
Shares are of other steps, which begin together: the wait for the loader; the step without an exchange of gradients; and
what it takes longer with one.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from inspect import signature
from pathlib import Path

import jsonargparse
from lightning.pytorch import Trainer

from experiments.grids.processes import variables
from experiments.machines.record import made_by, write_section
from experiments.machines.steps import Asked, Measured
from experiments.runs.run import Run
from experiments.runs.trainer_flags import unlike_default
from experiments.runs.training import build
from experiments.shell.catalogue import ARCHITECTURES, DATAMODULES, listed, lookup
from experiments.shell.class_flags import Choice, ClassParser, settings_of
from experiments.shell.command import command, console
from experiments.shell.flags import refuse
from lightning_modules.recipe import Recipe

RECORD = Path("experiments/results/scaling.md")


@dataclass(frozen=True)
class Way:
    """A number of processes and what they share."""

    kind: str  # weak, strong, or both for one process
    processes: int
    images: int  # of a step, in all


def ways(processes: Sequence[int], batch_size: int) -> list[Way]:
    """One process first, by which the others are judged. Raises ValueError where the images cannot be shared."""
    several = sorted({*processes} - {1})
    for count in several:
        if batch_size % count:
            raise ValueError(
                f"--data.batch_size must be a multiple of each of --processes, as strong scaling shares it: got "
                f"{batch_size} and {count}"
            )
    found = [Way("both", 1, batch_size)]
    return (
        found
        + [Way("weak", count, count * batch_size) for count in several]
        + [Way("strong", count, batch_size) for count in several]
    )


def parse(argv: list[str]) -> tuple[Run, Namespace]:
    """The run that is measured, and the rest."""
    told = f"--model takes one of {listed(ARCHITECTURES)}, --data one of {listed(DATAMODULES)}"
    chosen, rest = Choice(told, model="unet", data="shapes").parse_known_args(argv)
    try:
        module = lookup("--model", chosen.model, ARCHITECTURES)
        datamodule = lookup("--data", chosen.data, DATAMODULES)
    except ValueError as error:
        refuse(str(error))
    parser = ClassParser(
        verb="benchmark_scaling",
        usage="%(prog)s [--processes N ...] [--model NAME] [--model.FLAG ...] [--data NAME] [--data.FLAG ...] ...",
        description=f"{__doc__}\nThe flags below are those of {module.__name__} on {datamodule.__name__}.",
        chosen="with the --model and --data you want",
    )
    parser.add_argument(
        "--processes",
        type=jsonargparse.typing.PositiveInt,
        nargs="+",
        default=[1, 2],
        help="how many processes are tried",
    )
    parser.add_argument(
        "--rounds", type=jsonargparse.typing.PositiveInt, default=3, help="how often each number of them is measured"
    )
    parser.add_argument(
        "--steps",
        type=jsonargparse.typing.PositiveInt,
        default=10,
        help="steps of a training that are timed, and as many pairs",
    )
    parser.add_argument(
        "--warmup", type=jsonargparse.typing.PositiveInt, default=3, help="steps before them, which are not timed"
    )
    parser.add_argument("--accelerator", choices=["auto", "cpu", "gpu"], default="auto", help="where it is trained")
    parser.add_argument(
        "--threads", type=jsonargparse.typing.PositiveInt, default=1, help="CPU threads of each process"
    )
    parser.add_argument("--record", type=Path | None, default=None, help="Markdown file whose section is replaced")
    parser.add_class(
        settings_of(module, Recipe, module.network_class), "model", skip={"num_classes", "ignore_index", "in_channels"}
    )
    parser.add_class(settings_of(datamodule), "data")
    parser.add_class(Trainer, "trainer", skip={*signature(Trainer).parameters} - {"precision"})
    args = parser.parse_args(rest, defaults=True)
    parts = {part: args[part].as_dict() for part in ("model", "data", "trainer")}
    run = Run(
        module=module,
        datamodule=datamodule,
        hparams=parts["model"],
        data=parts["data"],
        trainer=unlike_default(parts["trainer"]),
    )
    names = ("processes", "rounds", "steps", "warmup", "accelerator", "threads", "record")
    return run, Namespace(**{name: args[name] for name in names})


def measure(run: Run, way: Way, args: Namespace) -> list[Measured]:
    """Trains in so many processes; what each of them has measured."""
    asked = Asked({}, way.processes, args.warmup, args.steps, args.accelerator)
    data = {"batch_size": way.images}
    if "length" in signature(run.datamodule).parameters:  # data that code makes: one epoch, without its end in between
        data["length"] = max(run.data.get("length", 0), (asked.total + 1) * way.images)
    trainer = {"max_steps": asked.total, "limit_val_batches": 1}
    asked = Asked(**asdict(asked) | {"run": run.but(data=data, trainer=trainer).config()})
    with tempfile.TemporaryDirectory() as place:
        file = Path(place, "asked.json")
        file.write_text(json.dumps(asdict(asked)), encoding="utf-8")
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={way.processes}"]
        done = subprocess.run(
            [*torchrun, "-m", "experiments.machines.steps", str(file), place],
            env=os.environ | variables(args.threads),
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        found = [Path(place, f"{rank}.json") for rank in range(way.processes)]
        if done.returncode or not all(path.exists() for path in found):
            said = [line for line in done.stderr.splitlines() if line.startswith("error: ") or "Error: " in line]
            raise ValueError(f"{way.processes} processes failed: {' '.join(said[:1]) or done.stderr.strip()[-400:]}")
        return [Measured(**json.loads(path.read_text(encoding="utf-8"))) for path in found]


def table(found: dict[Way, list[list[Measured]]]) -> str:
    """A row a way, of its rounds: the median over them, and the range of images/s."""
    first = next(iter(found))
    rates = {way: [way.images / of[0].period for of in rounds] for way, rounds in found.items()}
    alone = statistics.median(rates[first])
    lines = ["| scaling | processes | images a step | images/s | from to | efficiency | data | compute | exchange |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for way, rounds in found.items():
        every = [one for of in rounds for one in of]
        parts = {
            name: statistics.median(getattr(one, name) for one in every) for name in ("data", "compute", "exchange")
        }
        whole, rate = sum(parts.values()), statistics.median(rates[way])
        cells = [f"{rate:.2f}", f"{min(rates[way]):.2f} {max(rates[way]):.2f}", f"{rate / alone / way.processes:.0%}"]
        cells += [f"{1000 * seconds:.1f} ms, {seconds / whole:.0%}" for seconds in parts.values()]
        lines.append(f"| {way.kind} | {way.processes} | {way.images} | {' | '.join(cells)} |")
    return "\n".join(lines)


def exchanged(found: dict[Way, list[list[Measured]]]) -> str:
    """What the exchange of gradients comes to, where there is one: bytes, seconds and the bandwidth that they imply."""
    several = [way for way in found if way.processes > 1]
    count = next(iter(found.values()))[0][0].gradient_bytes
    lines = [f"Gradients: {count:,} bytes a step."]
    for way in several:
        seconds = statistics.median(one.exchange for of in found[way] for one in of)
        moved = 2 * (way.processes - 1) / way.processes * count
        implied = f"{moved / seconds / 1e9:.3g} GB/s" if seconds else "less than the noise of a step"
        lines.append(
            f"{way.kind}, {way.processes} processes: 2 (n - 1) / n x bytes = {moved:,.0f} bytes each in "
            f"{1000 * seconds:.2f} ms that are not hidden behind the backward pass: {implied}."
        )
    return "\n".join(f"- {line}" for line in lines)


@command()
def main(argv: list[str] | None = None) -> None:
    run, args = parse(sys.argv[1:] if argv is None else argv)
    datamodule = build(run)[1]  # what is wrong with them is said before minutes of measurement
    every = ways(args.processes, datamodule.batch_size)
    import torch

    on_gpu = args.accelerator != "cpu" and torch.cuda.is_available()
    if on_gpu and torch.cuda.device_count() < max(way.processes for way in every):
        raise ValueError(f"--processes must be at most {torch.cuda.device_count()}, the GPUs of this machine")
    device = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}" if on_gpu else ""
    made = made_by(device)  # before it works itself
    found: dict[Way, list[list[Measured]]] = {way: [] for way in every}
    for number in range(args.rounds):
        for way in every:
            console().print(
                f"round {number + 1} of {args.rounds}: {way.processes} processes, {way.images} images a step",
                highlight=False,
            )
            found[way].append(measure(run, way, args))
    how = (
        f"{run.module.__name__} on {run.datamodule.__name__}; {args.rounds} rounds in turn, medians of {args.steps} "
        f"steps after {args.warmup}; {'GPUs, NCCL' if on_gpu else f'CPU processes of {args.threads} threads, gloo'}. "
        "Shares are of steps that begin together. Efficiency: images/s a process over those of one."
    )
    text = "\n\n".join([table(found), exchanged(found), how, made])
    print(text)
    if args.record:
        write_section(args.record, "measured", text)


if __name__ == "__main__":
    main()
