"""Trains any architecture on any data set.

python -m experiments.train --model unet --model.upsample nearest --data camvid --data.root DIR
"""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonargparse
import torch

from datamodules.base import Loading
from experiments.runs.checkpoints import LAST, PREVIOUS, SAVE_EVERY, SAVE_EVERY_HELP
from experiments.runs.chosen import Chosen, as_stored, by_data
from experiments.runs.energy import ENERGY_HELP, check_installed
from experiments.runs.run import Run
from experiments.runs.scored import told
from experiments.runs.trainer_flags import WHERE, add_trainer, unlike_default
from experiments.runs.training import train
from experiments.shell.catalogue import ARCHITECTURES, DATAMODULES, documentation, key_of, listed, lookup
from experiments.shell.class_flags import Choice, ClassParser, settings_of
from experiments.shell.command import command, console
from experiments.shell.difference import tell_difference
from experiments.shell.ending import Interrupted
from experiments.shell.files import read_json
from experiments.shell.flags import refuse
from experiments.shell.processes import first_process, restarted
from experiments.shell.store import Store
from experiments.tracking.client import agent_settings
from experiments.tracking.logger import tracker
from experiments.tracking.loggers import Logging, add_logging
from lightning_modules.recipe import Recipe


def parse_run(argv: list[str]) -> tuple[Run, argparse.Namespace]:
    """The `Run` that a command line describes, and the rest: where to run it and what to log."""
    told = f"--model takes one of {listed(ARCHITECTURES)}, --data one of {listed(DATAMODULES)}"
    chosen, rest = Choice(told, model="unet", data="brain").parse_known_args(argv)
    try:
        module = lookup("--model", chosen.model, ARCHITECTURES)
        datamodule = lookup("--data", chosen.data, DATAMODULES)
    except ValueError as error:
        refuse(str(error))

    parser = ClassParser(
        verb="train",
        usage="%(prog)s [--model NAME] [--model.FLAG ...] [--data NAME] [--data.FLAG ...] [--trainer.FLAG ...] "
        "[options]",
        description=f"{__doc__}\narchitectures (--model): {listed(ARCHITECTURES)}\ndata sets (--data): "
        f"{listed(DATAMODULES)}\n\nThe flags below are those of {module.__name__} on {datamodule.__name__}.\n\n"
        f"{documentation(module, datamodule)}",
        chosen="with the --model and --data you want",
    )
    parser.add_argument(
        "--seed",
        type=jsonargparse.typing.NonNegativeInt,
        default=0,
        help="seed of all that is random: initialisation, order, augmentation and dropout",
    )
    parser.add_argument("--out", type=Path | None, default=None, help="folder of the run (default: outputs/train/...)")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.add_argument(
        "--save-every", type=jsonargparse.typing.PositiveFloat, default=SAVE_EVERY, help=SAVE_EVERY_HELP
    )
    parser.add_argument(
        "--settings",
        choices=["data", "paper"],
        help="what is taken where no flag says otherwise: data, and crop, batch, length, class weights and recipe "
        "follow from the images; paper, and they are the defaults listed here (default: data for images of your own, "
        "such as --data folder, and paper for the others)",
    )
    parser.add_argument(
        "--store", help="URL where the run is kept, such as s3://BUCKET/NAME: another machine goes on from there"
    )
    parser.add_argument("--energy", action="store_true", help=ENERGY_HELP)
    add_logging(parser, jsonargparse.typing.PositiveInt)
    listed_above = "one of those listed above"
    parser.add_class(
        settings_of(module, Recipe, module.network_class),
        "model",
        skip={"num_classes", "ignore_index", "in_channels"},
        help=listed_above,
    )
    parser.add_class(settings_of(datamodule, Loading), "data", help=listed_above)
    add_trainer(parser, where=True)
    parser.set_defaults({"trainer.max_epochs": 20})
    args = parser.parse_args(rest, defaults=True)
    parts = {part: args[part].as_dict() for part in ("model", "data", "trainer")}
    where = {name: parts["trainer"].pop(name) for name in WHERE}
    run = Run(
        module=module,
        datamodule=datamodule,
        hparams=parts["model"],
        data=parts["data"],
        trainer=unlike_default(parts["trainer"]),
        seed=args.seed,
    )
    try:
        logging = Logging.of(args, agent=True)
        if args.energy:
            check_installed()
    except ValueError as error:
        refuse(str(error))
    trial = agent_settings(os.environ) if logging.logger == "wandb" else {}  # each of a sweep has a folder of its own
    place = ["sweeps", trial["sweep_id"], trial["run_id"]] if trial else ["train"]
    place += [] if trial else [f"{key_of(module, ARCHITECTURES)}-{key_of(datamodule, DATAMODULES)}"]
    out = args.out or Path("outputs", *place, f"seed{args.seed}")
    return run, argparse.Namespace(
        out=Path(out),
        resume=args.resume,
        logging=logging,
        save_every=args.save_every,
        store=args.store,
        energy=args.energy,
        where=unlike_default(where),
        by_data=args.settings == "data" or (args.settings is None and datamodule.cpu_scale is None),
        given=_given(parser.parse_args(rest, defaults=False)),
    )


def _given(args: Any) -> set[str]:
    """The settings that flags state, by the names that `Run.but` takes."""
    parts = {"": args.get("model"), "data.": args.get("data"), "trainer.": args.get("trainer")}
    return {f"{prefix}{name}" for prefix, of_part in parts.items() if of_part for name in of_part.as_dict()}


def complete(run: Run, args: argparse.Namespace) -> Chosen | None:
    """The run with all that no flag states, of data whose settings follow from them; None where defaults do.

    Reads the data, and raises what is wrong with them. A run that goes on keeps what it was begun with, also where the
    rule, the device or a default has become another one.
    """
    if not args.by_data:
        return None
    full_size = torch.cuda.is_available() and args.where.get("accelerator") != "cpu"
    stored = _stored(args.out / "run.json") if args.resume else None
    if stored and (stored.module, stored.datamodule) == (run.module, run.datamodule):
        chosen = as_stored(run, args.given, stored)
    else:
        chosen = by_data(run, args.given, full_size=full_size)
    return replace(chosen, run=replace(chosen.run, trainer=unlike_default(chosen.run.trainer)))


def _stored(path: Path) -> Run | None:
    try:
        return Run.from_config(read_json(path)) if path.is_file() else None
    except ValueError:  # damaged, which `train` says
        return None


@command()
def main(argv: list[str] | None = None) -> None:
    run, args = parse_run(sys.argv[1:] if argv is None else argv)
    store = Store(args.store) if args.store is not None else None
    if store and args.resume and not (args.out / "run.json").exists():  # begun on another machine
        store.bring("run.json", args.out / "run.json")
    begun = [args.out / "run.json", *(args.out / "checkpoints" / name for name in (LAST, PREVIOUS))]
    if restarted() and (args.out / "run.json").exists():  # by torchrun or SLURM, which repeat the first command
        args.resume = True
    if args.resume and not any(map(os.path.lexists, begun)):
        refuse(
            f"there is nothing to resume in {args.out}: leave out --resume, or name the folder of the run with --out"
        )
    if chosen := complete(run, args):
        run = chosen.run
    if first_process():
        if chosen:
            print(chosen.told, flush=True)
        tell_difference(console())
    try:
        result = train(
            run,
            args.out,
            resume=args.resume,
            tracker=tracker(args.logging),
            save_every=args.save_every,
            store=store,
            energy=args.energy,
            **args.where,
        )
    except Interrupted:
        saved = any((args.out / "checkpoints").glob("*.ckpt"))
        if first_process():
            how = f"with --resume --out {args.out} continues" if saved else "starts anew, as nothing was saved yet"
            sys.stderr.write(f"stopped; the same command {how}\n")
        raise
    if not first_process():
        return
    print(f"{args.out}: {told(result, run.hparams.get('class_weights'))}")
    if line := args.logging.next_step(args.out):
        print(line)


if __name__ == "__main__":
    main()
