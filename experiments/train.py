"""Trains any architecture on any data set.

python -m experiments.train --model UNetModule --model.upsample nearest --data CamVidDataModule --data.root DIR
"""

import argparse
import difflib
import inspect
import os
import re
import sys
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jsonargparse
import torch
from lightning.pytorch import Trainer

from datamodules.base import SegmentationDataModule
from datamodules.brain import BrainDataModule
from datamodules.camvid import CamVidDataModule
from datamodules.folder import FolderDataModule
from datamodules.shapes import ShapesDataModule
from experiments.runs.checkpoints import LAST, PREVIOUS, SAVE_EVERY, SAVE_EVERY_HELP, not_finite
from experiments.runs.run import Run
from experiments.runs.training import STRATEGIES, train
from experiments.shell.ending import Interrupted, ending, first_process
from experiments.shell.flags import forgiving_output, refuse, with_nearest
from experiments.tracking.client import agent_settings
from experiments.tracking.logger import next_step
from experiments.tracking.loggers import Logging, add_logging
from lightning_modules import catalogue
from lightning_modules.base import SegmentationModule
from lightning_modules.components.checkpoints import read_checkpoint
from lightning_modules.components.errors import NonFiniteError
from lightning_modules.settings import as_function

ARCHITECTURES: dict[str, type[SegmentationModule]] = {
    name: architecture.module for name, architecture in catalogue.ARCHITECTURES.items()
}
DATAMODULES: dict[str, type[SegmentationDataModule]] = {
    "brain": BrainDataModule,
    "camvid": CamVidDataModule,
    "folder": FolderDataModule,
    "shapes": ShapesDataModule,
}

# Arguments of Lightning's Trainer that say where a run computes; the hash of a `Run` leaves them out.
WHERE = {
    *("accelerator", "devices", "num_nodes", "strategy", "enable_progress_bar", "benchmark", "detect_anomaly"),
    *("log_every_n_steps", "num_sanity_val_steps"),
}
# Those that `train` sets itself, or that are objects which a flag cannot name.
NOT_FLAGS = {
    "barebones",
    "callbacks",
    "default_root_dir",
    "enable_autolog_hparams",
    "enable_checkpointing",
    "enable_model_summary",
    "fast_dev_run",
    "inference_mode",
    "limit_predict_batches",
    "limit_test_batches",
    "logger",
    "max_time",
    "model_registry",
    "overfit_batches",
    "plugins",
    "profiler",
    "reload_dataloaders_every_n_epochs",
    "use_distributed_sampler",
}

# Those that may be classes: flags name them, as jsonargparse would import any class that a flag or a file asks for.
NAMED = {
    "accelerator": "what computes: cpu, gpu, mps, tpu or another that Lightning knows",
    "strategy": f"how several devices share the work: {', '.join(STRATEGIES)}",
}

Class = TypeVar("Class", bound=type)
Name = jsonargparse.typing.restricted_string_type("Name", r"^[\w-]+$")  # never one to import


class Formatter(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows type and default of every flag, and the description as it is written."""


class Parser(jsonargparse.ArgumentParser):
    """Names the nearest right flag beside a misspelt one, and says how to write a pair."""

    chosen = "with the --model and --data you want"  # before the flags that belong to them are known

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        known = [flag for action in self._actions for flag in action.option_strings]
        near = with_nearest(self._in_one_line(message), known)
        refuse(f"{near} (every flag: {self.prog} --help, {self.chosen})")

    def _in_one_line(self, message: str) -> str:
        """jsonargparse's report on a value, which goes through every type that the flag takes, in our words."""
        message = re.sub(r"invalid literal for int\(\) with base 10: '([^']*)'", r"\1", message)
        key = re.match(r'Parser key "([^"]+)":\s*', message)
        if key and "Not of type Name" in message:
            return f"--{key[1]}: expected a name of Lightning's, in letters: {message.split('Name: ')[1]}"
        given = re.search(
            r"(?:[Vv]alue|type PositiveInt|type NonNegativeInt): ([^\n]*?)(?: does not conform.*)?$", message
        )
        if key is None or given is None:
            return " ".join(message.split())
        flag = next(
            (a.option_strings[0] for a in self._actions if a.dest == key[1] and a.option_strings), f"--{key[1]}"
        )
        kinds = []
        if "Sequence" in message or "tuple" in message:
            kinds.append('a list such as "[2, 4]"')
        if "dict" in message:
            kinds.append('a dictionary such as {"width": 4}')
        choices = [v.strip(" '") for values in re.findall(r"Literal\[([^\]]*)\]", message) for v in values.split(",")]
        kinds += choices
        names = {"int": "a whole number", "float": "a number", "bool": "true or false", "NoneType": "null"}
        names |= {"PositiveInt": "a whole number of at least 1", "NonNegativeInt": "a whole number of at least 0"}
        kinds += [words for name, words in names.items() if re.search(rf"\b{name}\b", message.split("Given")[0])]
        if kinds and kinds == choices:
            near = difflib.get_close_matches(given[1], choices, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            return f"{flag} must be one of {', '.join(choices)}, got {given[1]!r}{hint}"
        return f"{flag} expects {', '.join(dict.fromkeys(kinds)) or 'another value'}, got {given[1]!r}"


class Choice(argparse.ArgumentParser):
    """Takes --model and --data, which decide on the other flags."""

    def error(self, message: str) -> NoReturn:
        refuse(f"{message}: --model takes one of {listed(ARCHITECTURES)}, --data one of {listed(DATAMODULES)}")


def documentation(module: type[SegmentationModule], *others: type) -> str:
    """The first paragraph of the docstrings of a module, of its network and of `others`, for the help."""
    classes = [module, *([module.network_class] if module.network_class is not torch.nn.Module else []), *others]
    paragraphs = [" ".join((inspect.getdoc(cls) or "").partition("\n\n")[0].split()) for cls in classes]
    return "\n".join(f"{cls.__name__}: {text}" for cls, text in zip(classes, paragraphs, strict=True))


def load(checkpoint: Path) -> SegmentationModule:
    """The trained module of a checkpoint, which alone is enough: architecture, weights, classes, normalisation.

    Raises FileNotFoundError where there is none, NonFiniteError for weights that are NaN or infinite, ValueError for a
    damaged file and for one whose settings and weights are no module of this version.
    """
    stored = read_checkpoint(checkpoint)
    try:
        architecture = lookup("architecture", stored["segmentation"].get("architecture"), ARCHITECTURES)
        module = architecture.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # of any kind: the settings are a stranger's
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{checkpoint} holds no module of this version: {cause[:300]}") from error
    if wrong := not_finite(module.state_dict()):
        raise NonFiniteError(f"{checkpoint} holds NaN or infinity in {wrong}: take an earlier checkpoint")
    return module.eval()


def parse(argv: list[str]) -> tuple[Run, argparse.Namespace]:
    """The `Run` that a command line describes, and the rest: where to run it and what to log."""
    choice = Choice(add_help=False, allow_abbrev=False)
    choice.add_argument("--model", default="unet")
    choice.add_argument("--data", default="brain")
    chosen, rest = choice.parse_known_args(argv)
    try:
        module = lookup("--model", chosen.model, ARCHITECTURES)
        datamodule = lookup("--data", chosen.data, DATAMODULES)
    except ValueError as error:
        refuse(str(error))

    parser = Parser(
        prog="python -m experiments.train",
        usage="%(prog)s [--model NAME] [--model.FLAG ...] [--data NAME] [--data.FLAG ...] [--trainer.FLAG ...] [options]",
        description=f"{__doc__}\narchitectures (--model): {listed(ARCHITECTURES)}\ndata sets (--data): "
        f"{listed(DATAMODULES)}\n\nThe flags below are those of {module.__name__} on {datamodule.__name__}.\n\n"
        f"{documentation(module, datamodule)}",
        formatter_class=Formatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--seed",
        type=jsonargparse.typing.NonNegativeInt,
        default=0,
        help="of initialisation, order, augmentation and dropout",
    )
    parser.add_argument("--out", type=Path | None, default=None, help="folder of the run (default: outputs/train/...)")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.add_argument(
        "--save-every", type=jsonargparse.typing.PositiveFloat, default=SAVE_EVERY, help=SAVE_EVERY_HELP
    )
    add_logging(parser, jsonargparse.typing.PositiveInt)
    parser.add_function_arguments(as_function(module), "model", skip={"num_classes", "ignore_index", "in_channels"})
    parser.add_class_arguments(datamodule, "data")
    parser.add_class_arguments(Trainer, "trainer", skip={*NOT_FLAGS, *NAMED})
    for name, help_text in NAMED.items():
        parser.add_argument(f"--trainer.{name}", type=Name, default="auto", help=help_text)
    parser.set_defaults({"trainer.max_epochs": 20})
    for action in parser._actions:  # jsonargparse reads a file here; `choice` has taken the names before it
        if action.option_strings in (["--model"], ["--data"]):
            action.metavar, action.help = "NAME", "one of those listed above"
        elif action.option_strings == ["--trainer"]:
            action.help = argparse.SUPPRESS
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
    place += [] if trial else [f"{_key(module, ARCHITECTURES)}-{_key(datamodule, DATAMODULES)}"]
    out = args.out or Path("outputs", *place, f"seed{args.seed}")
    where = {name: value for name, value in where.items() if value != base[name]}
    return run, argparse.Namespace(
        out=Path(out), resume=args.resume, logger=logging, save_every=args.save_every, where=where
    )


def _signature(function: Any) -> dict[str, Any]:
    return dict(inspect.signature(function).parameters)


def listed(table: dict[str, Any]) -> str:
    """The classes of a table, each with its short name."""
    return ", ".join(f"{cls.__name__} ({name})" for name, cls in table.items())


def _key(cls: type, table: dict[str, Any]) -> str:
    return next(name for name, entry in table.items() if entry is cls)


def lookup(flag: str, name: str, table: dict[str, Class]) -> Class:
    """The entry of `table` with this short name or class name; `flag` is what an error calls it."""
    by_name = {**table, **{cls.__name__: cls for cls in table.values()}}
    if not isinstance(name, str) or name not in by_name:
        near = difflib.get_close_matches(str(name), by_name, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{flag} must be one of {listed(table)}, got {name!r}{hint}")
    return by_name[name]


def main(argv: list[str] | None = None) -> None:
    forgiving_output()
    run, args = parse(sys.argv[1:] if argv is None else argv)
    begun = [args.out / "run.json", *(args.out / "checkpoints" / name for name in (LAST, PREVIOUS))]
    if args.resume and not any(map(os.path.lexists, begun)):
        refuse(
            f"there is nothing to resume in {args.out}: leave out --resume, or name the folder of the run with --out"
        )
    with ending():
        try:
            result = train(
                run, args.out, resume=args.resume, logger=args.logger, save_every=args.save_every, **args.where
            )
        except Interrupted:
            saved = any((args.out / "checkpoints").glob("*.ckpt"))
            if first_process():
                how = f"with --resume --out {args.out} continues" if saved else "starts anew, as nothing was saved yet"
                sys.stderr.write(f"stopped; the same command {how}\n")
            raise
    if not first_process():
        return
    print(f"{args.out}: test/miou {result['test']['miou']:.4f}, {result['seconds']:.0f} s")
    if line := next_step(args.logger, args.out):
        print(line)


if __name__ == "__main__":
    main()
