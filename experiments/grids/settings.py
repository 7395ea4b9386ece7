"""What the command line of a study sets: the data, what its variants share, and flags of its own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datamodules.base import SegmentationDataModule
from experiments.shell.catalogue import DATAMODULES, lookup


@dataclass(frozen=True, kw_only=True)
class Flag:
    """A flag of one study alone: its name and help, and the study that it makes of this one.

    `read` makes a value of the word behind it; None for a switch, for which `change` gets True.
    """

    name: str
    help: str
    change: Callable[[Any, Any], Any]
    read: Callable[[str], Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the flags of a study's command line set: the data, and what all of its variants share.

    Args:
        data: a data set of the catalogue, the first of it by default
        arguments: of its data module
        hparams: hyperparameters of every variant, instead of the study's
        trainer: arguments of the trainer, instead of the study's
        epochs: passes over the training images
        scale: factor of the sides of images and crop
        full_size: the paper's network and whole images, for a GPU
        quick: a quarter of the epochs, for a first look
        weights: of the encoder
        tune: hyperparameters with the values that every variant is tried with
    """

    data: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    hparams: Mapping[str, Any] = field(default_factory=dict)
    trainer: Mapping[str, Any] = field(default_factory=dict)
    epochs: int | None = None
    scale: float | None = None
    full_size: bool = False
    quick: bool = False
    weights: str | None = None
    tune: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    @property
    def datamodule(self) -> type[SegmentationDataModule]:
        return lookup("--data", self.data, DATAMODULES) if self.data else next(iter(DATAMODULES.values()))
