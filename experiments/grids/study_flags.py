"""The flags of a study: data and their arguments, the shared hyperparameters, the trainer, and how the grid runs."""

import argparse
import difflib
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import jsonargparse

from datamodules.base import Loading
from experiments.grids.bases import Base
from experiments.grids.command import add_arguments
from experiments.grids.settings import Flag, Settings
from experiments.runs.trainer_flags import add_trainer
from experiments.shell.catalogue import DATAMODULES, documentation, listed, lookup
from experiments.shell.class_flags import Choice, ClassParser, settings_of
from experiments.shell.flags import refuse
from lightning_modules.recipe import Recipe

OF_DATA = {"num_classes", "ignore_index", "in_channels"}  # arguments of a module that follow from the data
QUICK_SEEDS = (0, 1, 2)  # as many as an interval takes
USAGE = "%(prog)s [--data NAME] [--data.FLAG ...] [--base.FLAG ...] [--trainer.FLAG ...] [--seeds SEED ...] [options]"


class Asked(Protocol):
    """What of a study its flags depend on."""

    @property
    def name(self) -> str: ...

    @property
    def seeds(self) -> int: ...
    @property
    def question(self) -> str: ...
    @property
    def base(self) -> Base: ...
    @property
    def full_size(self) -> Base | None: ...
    @property
    def flags(self) -> Sequence[Flag]: ...


Study = TypeVar("Study", bound=Asked)


def parse_study(
    study: Study, description: str | None, argv: Sequence[str]
) -> tuple[Study, Settings, argparse.Namespace]:
    """The study that a command line describes, what it sets in it, and how its grid is run."""
    first = next(iter(DATAMODULES))
    told = f"--data takes one of {listed(DATAMODULES)}"
    chosen, rest = Choice(told, data=first).parse_known_args([*argv])
    try:
        datamodule = lookup("--data", chosen.data, DATAMODULES)
    except ValueError as error:
        refuse(str(error))
    rest = _spelt_out(rest, chosen.data, "root" in inspect.signature(datamodule).parameters)
    base = study.full_size if "--full-size" in rest and study.full_size else study.base
    parser = ClassParser(
        verb=study.name,
        usage=USAGE,
        description=f"{(description or study.question).strip()}\n\ndata sets (--data, {first} by default): "
        f"{listed(DATAMODULES)}\n\nThe flags --base.NAME set what all variants share, those of "
        f"{base.module.__name__}; a default below is that of the class, instead of which the study may have its own, "
        f"as --dry-run shows.\n\n{documentation(base.module, datamodule)}",
        chosen="with the --data you want",
    )
    for flag in study.flags:
        if flag.read is None:
            parser.add_argument(flag.name, action="store_true", help=flag.help)
        else:
            parser.add_argument(flag.name, type=flag.read, help=flag.help)
    parser.add_argument("--root", help="short for --data.root: the folder of the data")
    parser.add_argument(
        "--epochs",
        type=jsonargparse.typing.PositiveInt,
        help="passes over the training images, with as many validations as fit",
    )
    parser.add_argument(
        "--scale",
        type=jsonargparse.typing.PositiveFloat,
        help="factor of the sides of images and crop, beside that of the study (default: 1)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a first look, in a folder of its own: a quarter of the epochs, "
        f"and seeds {' '.join(map(str, QUICK_SEEDS))}",
    )
    parser.add_argument("--full-size", action="store_true", help="the paper's width and whole images, for a GPU")
    parser.add_argument("--weights", help="the encoder's: imagenet (downloaded), package (of pip), a file or a folder")
    add_arguments(parser, study.seeds)
    module = settings_of(base.module, Recipe, base.module.network_class)
    parser.add_class(settings_of(datamodule, Loading), "data", help=f"the data set, {first} by default")
    parser.add_class(module, "base", skip=OF_DATA)
    add_trainer(parser, where=False)
    given = parser.parse_args(rest, defaults=False)
    args = argparse.Namespace(**{**_plain(parser.get_defaults()), **_plain(given)})
    if args.quick and "seeds" not in given:
        args.seeds = [*QUICK_SEEDS]
    parts = {part: _part(given, part) for part in ("data", "base", "trainer")}
    for flag in study.flags:
        value = getattr(args, flag.name.lstrip("-").replace("-", "_"))
        if value not in (None, False):
            study = flag.change(study, value)
    settings = Settings(
        data=chosen.data,
        arguments=parts["data"],
        hparams=parts["base"],
        trainer=parts["trainer"],
        epochs=args.epochs,
        scale=args.scale,
        full_size=args.full_size,
        quick=args.quick,
        weights=args.weights,
        tune=_tuned(study.name, args.tune, module),
    )
    return study, settings, args


def _spelt_out(words: Sequence[str], data: str, has_root: bool) -> list[str]:
    """--root DIR as --data.root DIR."""
    short = [word for word in words if word == "--root" or word.startswith("--root=")]
    if short and not has_root:
        refuse(f"--root is for data in a folder, got --data {data}: leave it out, or choose --data folder")
    if short and any(word.split("=")[0] == "--data.root" for word in words):
        refuse("--root and --data.root are one flag: leave one of them out")
    return [f"--data.{word[2:]}" if word in short else word for word in words]


def _plain(values: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(values).items() if not isinstance(value, jsonargparse.Namespace)}


def _part(given: Any, part: str) -> dict[str, Any]:
    values = getattr(given, part, None)
    return values.as_dict() if isinstance(values, jsonargparse.Namespace) else {}


def _tuned(study: str, words: Sequence[Sequence[str]], module: Callable[..., None]) -> dict[str, list[Any]]:
    """--tune lr 1e-3 1e-2: the values as the flag --base.lr reads them."""
    tuned: dict[str, list[Any]] = {}
    parser = ClassParser(verb=study, usage="", description="", chosen="with the --data you want")
    parser.add_class(module, "tune", skip=OF_DATA)
    known = [action.dest for action in parser._actions]
    for name, *values in words:
        if f"tune.{name}" not in known:
            near = difflib.get_close_matches(f"tune.{name}", known, n=1)
            hint = f"; did you mean {near[0].removeprefix('tune.')}?" if near else ""
            refuse(f"--tune takes a hyperparameter of the module, as --base has them, got {name!r}{hint}")
        if len(values) < 2:
            refuse(f"--tune takes a hyperparameter and at least two values, got {' '.join([name, *values])!r}")
        if name in tuned:
            refuse(f"--tune {name} stands there twice: give all values behind one")
        tuned[name] = [_part(parser.parse_args([f"--tune.{name}", v], defaults=False), "tune")[name] for v in values]
    return tuned
