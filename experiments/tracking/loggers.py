"""What can log a run beside metrics.csv, and the flags that say so; imports nothing slow."""

import argparse
import struct
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

# metrics.csv is written whatever is chosen: csv and none, two words for it, add nothing to it.
LOGGERS = ("csv", "tensorboard", "wandb", "none")
LOGGER_HELP = (
    "beside metrics.csv, which is always written (csv, none: nothing else): tensorboard, or wandb for Weights & Biases, "
    "offline without key or network"
)
PROJECT = "seglab"
STEP = "trainer/global_step"  # the x axis of everything that W&B gets, as Lightning names it
STAGED = Path("wandb", "staged")  # below a run's folder: files of tables and artifacts that W&B is to upload
HEADER = struct.pack("<4sHB", b":W&B", 0xBEE1, 0)  # of a record of W&B, and all of an empty one
TAG, NAME = 64, 128  # letters that W&B allows in a tag, and in a name or a group


def short(name: str, letters: int) -> str:
    """The name cut to what W&B allows."""
    return name if len(name) <= letters else f"{name[: letters - 3]}..."


@dataclass(frozen=True)
class Logging:
    """Where a run is logged beside metrics.csv, and what W&B gets of it; no part of a run's hash.

    Raises ValueError for a logger that does not exist or whose package is missing, and for a flag of W&B without W&B.
    """

    logger: str = LOGGERS[0]
    private: bool = False  # nothing of the machine: neither its metrics nor the name of its device
    checkpoints: bool = False  # the last checkpoint as an artifact
    gradients: int = 0  # steps between histograms of the gradients; 0 for none
    agent: bool = False  # whether an agent of W&B that started this command may say which run of its sweep this is

    def __post_init__(self) -> None:
        if self.logger not in LOGGERS:
            raise ValueError(f"--logger must be one of {', '.join(LOGGERS)}, got {self.logger!r}")
        if self.logger == "tensorboard" and find_spec("tensorboard") is None:
            raise ValueError('--logger tensorboard needs a package: pip install -e ".[tensorboard]"')
        if self.logger != "wandb" and (of_wandb := self.flags()[2:]):
            raise ValueError(f"{of_wandb[0]} is for Weights & Biases: add --logger wandb, or leave it out")

    @property
    def lines(self) -> bool:
        """Whether there is something to say of it when the run has ended."""
        return self.logger in ("tensorboard", "wandb")

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
    parser.add_argument("--logger", choices=LOGGERS, default=LOGGERS[0], help=LOGGER_HELP)
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
