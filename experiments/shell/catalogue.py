"""The one catalogue of architectures and data sets: what a name stands for, and the module in a checkpoint."""

import difflib
import inspect
from pathlib import Path
from typing import Any, TypeVar

import torch

from datamodules.base import SegmentationDataModule
from datamodules.brain import BrainDataModule
from datamodules.camvid import CamVidDataModule
from datamodules.folder import FolderDataModule
from datamodules.shapes import ShapesDataModule
from lightning_modules import catalogue
from lightning_modules.base import SegmentationModule
from lightning_modules.components.checkpoints import read_checkpoint
from lightning_modules.components.errors import NonFiniteError
from lightning_modules.components.finite import not_finite

Class = TypeVar("Class", bound=type)

ARCHITECTURES: dict[str, type[SegmentationModule]] = {
    name: architecture.module for name, architecture in catalogue.ARCHITECTURES.items()
}
DATAMODULES: dict[str, type[SegmentationDataModule]] = {
    "brain": BrainDataModule,
    "camvid": CamVidDataModule,
    "folder": FolderDataModule,
    "shapes": ShapesDataModule,
}


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


def listed(table: dict[str, Any]) -> str:
    """The classes of a table, each with its short name."""
    return ", ".join(f"{cls.__name__} ({name})" for name, cls in table.items())


def key_of(cls: type, table: dict[str, Any]) -> str:
    """The short name of a class."""
    return next(name for name, entry in table.items() if entry is cls)


def lookup(flag: str, name: str, table: dict[str, Class]) -> Class:
    """The entry of `table` with this short name or class name; `flag` is what an error calls it."""
    by_name = {**table, **{cls.__name__: cls for cls in table.values()}}
    if not isinstance(name, str) or name not in by_name:
        near = difflib.get_close_matches(str(name), by_name, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{flag} must be one of {listed(table)}, got {name!r}{hint}")
    return by_name[name]
