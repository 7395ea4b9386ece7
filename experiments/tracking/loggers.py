"""What can log a run beside metrics.csv, and the flags that say so; imports nothing slow."""

import argparse
import shlex
import struct
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

PROJECT = "seglab"
STEP = "trainer/global_step"  # the x axis of everything that W&B gets, as Lightning names it
STAGED = Path("wandb", "staged")  # below a run's folder: files of tables and artifacts that W&B is to upload
CUT = ".cut"  # ends the name of the file that says that a record did not arrive whole
HEADER = struct.pack("<4sHB", b":W&B", 0xBEE1, 0)  # of a record of W&B, and all of an empty one
TAG, NAME = 64, 128  # letters that W&B allows in a tag, and in a name or a group


def short(name: str, letters: int) -> str:
    """The name cut to what W&B allows."""
    return name if len(name) <= letters else f"{name[: letters - 3]}..."


@dataclass(frozen=True)
class Kind:
    """One of the loggers: what --help says of it, what it needs, what makes it, and how to see what it has logged."""

    help: str
    package: str | None = None  # and the extra of setup.cfg that has it, of the same name
    make: Callable[["Logging", dict[str, Any], Path], Any] | None = None  # a Tracking, see `tracking.logger.tracking`
    seen: Callable[[Path], str | None] = lambda out: None  # the line for what lies below a folder


def _lazily(name: str) -> Callable[["Logging", dict[str, Any], Path], Any]:
    """A function of experiments.tracking.logger, which takes seconds to import."""
    return lambda *arguments: getattr(import_module("experiments.tracking.logger"), name)(*arguments)


def _curves(out: Path) -> str:
    return f"see the curves with: tensorboard --logdir {shlex.quote(out.as_posix())}"


def _to_upload(out: Path) -> str | None:
    """None where nothing was logged, or the server has it all."""
    offline = any(path.stat().st_size > len(HEADER) for path in out.glob("**/wandb/offline-run-*/*.wandb"))
    if not offline and not any(out.glob(f"**/wandb/run-*/*{CUT}")):
        return None
    how = "logged offline" if offline else "did not get everything"
    return f"W&B {how}; upload with: python -m experiments.sync {shlex.quote(out.as_posix())}"


# metrics.csv is written whatever is chosen: csv and none, two words for it, add nothing to it.
LOGGERS = {
    "csv": Kind("nothing else"),
    "tensorboard": Kind("curves on this machine", package="tensorboard", make=_lazily("tensorboard"), seen=_curves),
    "wandb": Kind("Weights & Biases, offline without key or network", make=_lazily("wandb"), seen=_to_upload),
    "none": Kind("nothing else, as csv"),
}
CSV, WANDB = "csv", "wandb"


@dataclass(frozen=True)
class Logging:
    """Where a run is logged beside metrics.csv, and what W&B gets of it; no part of a run's hash.

    Raises ValueError for a logger that does not exist or whose package is missing, and for a flag of W&B without W&B.
    """

    logger: str = CSV
    private: bool = False  # nothing of the machine: neither its metrics nor the name of its device
    checkpoints: bool = False  # the last checkpoint as an artifact
    gradients: int = 0  # steps between histograms of the gradients; 0 for none
    agent: bool = False  # whether an agent of W&B that started this command may say which run of its sweep this is

    def __post_init__(self) -> None:
        if self.logger not in LOGGERS:
            raise ValueError(f"--logger must be one of {', '.join(LOGGERS)}, got {self.logger!r}")
        package = LOGGERS[self.logger].package
        if package is not None and find_spec(package) is None:
            raise ValueError(f'--logger {self.logger} needs a package: pip install -e ".[{package}]"')
        if self.logger != WANDB and (of_wandb := self.flags()[2:]):
            raise ValueError(f"{of_wandb[0]} is for Weights & Biases: add --logger wandb, or leave it out")

    def next_step(self, out: Path) -> str | None:
        """The line that says how to see what was logged below `out`; None where there is nothing to do."""
        return LOGGERS[self.logger].seen(out)

    def flags(self) -> list[str]:
        """The flags that say the same again."""
        flags = ["--logger", self.logger]
        flags += ["--private"] * self.private + ["--log-checkpoints"] * self.checkpoints
        return flags + (["--log-gradients", str(self.gradients)] if self.gradients else [])

    @classmethod
    def of(cls, args: Any, *, agent: bool = False) -> Self:
        """What the flags of `add_logging` say."""
        return cls(args.logger, args.private, args.log_checkpoints, args.log_gradients or 0, agent)


def add_logging(parser: argparse.ArgumentParser, positive: Callable[[str], int]) -> None:
    """The flags of `Logging`; `positive` reads a whole number of at least 1."""
    kinds = "; ".join(f"{name}: {kind.help}" for name, kind in LOGGERS.items())
    parser.add_argument(
        "--logger", choices=list(LOGGERS), default=CSV, help=f"beside metrics.csv, which is always written. {kinds}"
    )
    parser.add_argument(
        "--private", action="store_true", help="W&B gets nothing of the machine: no hardware metrics, no device"
    )
    parser.add_argument(
        "--log-checkpoints", action="store_true", help="W&B gets the last checkpoint of each run, as an artifact"
    )
    parser.add_argument(
        "--log-gradients",
        type=positive,
        metavar="STEPS",
        help="W&B gets histograms of the gradients, every so many steps",
    )
