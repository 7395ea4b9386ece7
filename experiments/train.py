"""Trains any architecture on any data set.

python -m experiments.train --model UNetModule --model.upsample nearest --data CamVidDataModule --data.root DIR
"""

import argparse
import inspect
import os
import sys
from pathlib import Path
from typing import Any

import jsonargparse
from lightning.pytorch import Trainer

from datamodules.base import Loading
from experiments.runs.checkpoints import LAST, PREVIOUS, SAVE_EVERY, SAVE_EVERY_HELP
from experiments.runs.run import Run
from experiments.runs.scored import told
from experiments.runs.trainer_flags import WHERE, add_trainer
from experiments.runs.training import train
from experiments.shell.catalogue import ARCHITECTURES, DATAMODULES, documentation, key_of, listed, lookup
from experiments.shell.class_flags import Choice, ClassParser, settings_of
from experiments.shell.command import command, console
from experiments.shell.difference import tell_difference
from experiments.shell.ending import Interrupted, first_process
from experiments.shell.flags import refuse
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
    given = {part: args[part].as_dict() for part in ("model", "data", "trainer")}
    where = {name: given["trainer"].pop(name) for name in WHERE}
    base = {name: value.default for name, value in _signature(Trainer).items()}
    run = Run(
        module=module,
        datamodule=datamodule,
        hparams=given["model"],
        data=given["data"],
        trainer={name: value for name, value in given["trainer"].items() if value != base[name]},
        seed=args.seed,
    )
    try:
        logging = Logging.of(args, agent=True)
    except ValueError as error:
        refuse(str(error))
    trial = agent_settings(os.environ) if logging.logger == "wandb" else {}  # each of a sweep has a folder of its own
    place = ["sweeps", trial["sweep_id"], trial["run_id"]] if trial else ["train"]
    place += [] if trial else [f"{key_of(module, ARCHITECTURES)}-{key_of(datamodule, DATAMODULES)}"]
    out = args.out or Path("outputs", *place, f"seed{args.seed}")
    where = {name: value for name, value in where.items() if value != base[name]}
    return run, argparse.Namespace(
        out=Path(out), resume=args.resume, logging=logging, save_every=args.save_every, where=where
    )


def _signature(function: Any) -> dict[str, Any]:
    return dict(inspect.signature(function).parameters)


@command()
def main(argv: list[str] | None = None) -> None:
    run, args = parse_run(sys.argv[1:] if argv is None else argv)
    begun = [args.out / "run.json", *(args.out / "checkpoints" / name for name in (LAST, PREVIOUS))]
    if args.resume and not any(map(os.path.lexists, begun)):
        refuse(
            f"there is nothing to resume in {args.out}: leave out --resume, or name the folder of the run with --out"
        )
    if first_process():
        tell_difference(console())
    try:
        result = train(
            run,
            args.out,
            resume=args.resume,
            tracker=tracker(args.logging),
            save_every=args.save_every,
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
