"""A tiny example of every data set of the catalogue, which the contract is tested on."""

import inspect
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodules.base import SegmentationDataModule
from datamodules.camvid import CLASSES
from experiments.shell.catalogue import DATAMODULES

TREES = Path(__file__).parents[1] / "data"


def write_folder(root: Path, classes: Sequence[str] = ("road", "tree", "sky")) -> Path:
    """A folder with 4 training, 2 validation and 1 test image of 24 x 32 pixels, as `FolderDataModule` reads it."""
    for folder in ("images", "masks", "splits"):
        (root / folder).mkdir(parents=True)
    (root / "classes.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(classes)))
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2), ("test", 1)):
        names = [f"{split}_{i}" for i in range(count)]
        (root / f"splits/{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            mask = rng.integers(len(classes), size=(24, 32)).astype(np.uint8)
            mask[0] = 255
            Image.fromarray(mask).save(root / f"masks/{name}.png")
            image = rng.integers(256, size=(24, 32, 3)).astype(np.uint8)
            Image.fromarray(image).save(root / f"images/{name}.jpg")
    return root


def write_arrays(root: Path) -> Path:
    """Folders train, val and test with 4, 2 and 1 files of `image` and `mask`, uint8, 24 x 32 pixels, two classes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2), ("test", 1)):
        (root / split).mkdir(parents=True)
        for i in range(count):
            image, mask = (rng.integers(most, size=(24, 32)).astype(np.uint8) for most in (256, 2))
            np.savez(root / split / f"{split}_{i}.npz", image=image, mask=mask)
    return root


# By the name in the catalogue: writes into a folder what the data set reads, if it reads any, and returns its
# arguments.
MAKERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "brain": lambda folder: {"scale": 0.25, "batch_size": 4},
    "camvid": lambda folder: {"root": str(write_folder(folder, list(CLASSES))), "batch_size": 2},
    "folder": lambda folder: {"root": str(write_folder(folder)), "batch_size": 2},
    "shapes": lambda folder: {"size": 40, "length": 8},
}


def example(name: str, folder: Path) -> dict[str, Any]:
    """The arguments of the data module `name` for its example, which is written into `folder`, with crops of 40 x 32
    pixels; the test fails where it has none."""
    if name in MAKERS:
        arguments = MAKERS[name](folder)
    elif (TREES / name).is_dir():
        arguments = {"root": str(shutil.copytree(TREES / name, folder)), "batch_size": 2}
    else:
        pytest.fail(
            f"the data set {name} has no tiny example: add a folder tests/data/{name}/ as its data module reads it, "
            f"with two or more training images, or a function to MAKERS in {Path(__file__).name} that writes one"
        )
    return {"crop": (40, 32)} | arguments


def arguments_of(name: str, folder: Path) -> dict[str, Any]:
    """The arguments of the data module `name` for its example in `folder`; the test fails where it has none."""
    if name in MAKERS:
        return MAKERS[name](folder)
    if (TREES / name).is_dir():
        return {"root": str(shutil.copytree(TREES / name, folder)), "batch_size": 2}
    pytest.fail(
        f"the data set {name} has no tiny example: add a folder tests/data/{name}/ as its data module reads it, "
        f"with two or more training images, or a function to MAKERS in {Path(__file__).name} that writes one"
    )


def takes_root(name: str) -> bool:
    """Whether a data set reads what lies at a place."""
    return "root" in inspect.signature(DATAMODULES[name]).parameters


def tiny(name: str, folder: Path) -> SegmentationDataModule:
    """The data module `name` on its example in `folder`, with crops of 40 x 32 pixels."""
    arguments = {"crop": (40, 32)} | arguments_of(name, folder)  # which says where there is no example
    return DATAMODULES[name](**arguments)
