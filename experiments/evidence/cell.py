"""A cell, one variant trained with one seed, and its scores, from the stored matrices of the test images.

The matrices are read once, in blocks of images, and summed. At 150 classes those of one cell take a third of a
gigabyte, and what the scores and the statistics need of them a fiftieth of that.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.evidence import schema
from experiments.evidence.arrays import DamagedError, Npz, read_picture
from experiments.evidence.sums import Counts
from experiments.shell.difference import PATCH
from experiments.shell.files import PREDICTION
from lightning_modules.components.scores.reductions import at_chance, constant_class, scores
from lightning_modules.components.scores.table import PER_IMAGE


@dataclass(frozen=True)
class Cell:
    """One variant trained with one seed, scored on n test images of C classes."""

    variant: str
    seed: int
    folder: Path
    run: dict[str, Any]
    result: dict[str, Any]
    environment: dict[str, Any]
    class_names: list[str]
    image_names: list[str]
    counts: Counts  # of each image, (n, C) each
    image_miou: NDArray[np.float64]  # (n,), of each image alone, in [0, 1]; NaN for one without a labelled pixel
    confusion: NDArray[np.int64]  # (C, C), the sum over the images, rows are the truth
    arrays: Mapping[str, NDArray[Any]]  # what else is stored, by the names of `PER_IMAGE`: its sum, or a row an image
    groups: list[str] | None = None  # of each image, see `SegmentationDataModule.groups`; None where not stored

    @property
    def trimap(self) -> NDArray[np.int64] | None:
        """Sum over the images (width, C, C); None where not stored, as the next two."""
        return self.arrays.get("trimap")

    @property
    def calibration(self) -> NDArray[np.float64] | None:
        """Sum over the images (bins, 3)."""
        return self.arrays.get("calibration")

    @property
    def segments(self) -> NDArray[np.int64] | None:
        """Sum over the images (C, 4)."""
        return self.arrays.get("segments")

    @cached_property
    def scores(self) -> dict[str, float]:
        """The numbers of `PER_IMAGE` by their names, and iou/<class>; NaN where it was not stored.

        IoU and accuracy are of the matrix summed over all images. An image without a labelled pixel counts nowhere.
        """
        labelled, stored = self.counts.true.any(axis=1), {"confusion": self.confusion, **self.arrays}
        of_classes = zip(self.class_names, scores(self.confusion)["iou"], strict=True)
        values = {f"iou/{name}": float(iou) for name, iou in of_classes}
        for name, score in PER_IMAGE.items():
            values |= dict.fromkeys((*score.numbers, *score.others), math.nan)
            if name in stored:
                array = stored[name] if score.summed else stored[name][labelled]
                values |= score.reduce(array, self.confusion)
        return values

    @property
    def constant(self) -> str:
        """The one class that it predicts at every labelled pixel, though there are more; empty where it does not."""
        constant = constant_class(self.confusion)
        return "" if constant is None else self.class_names[constant]

    @property
    def at_chance(self) -> bool:
        """Whether it is no better than guessing, by its class accuracy; so is one that predicts one class alone."""
        return at_chance(self.confusion)

    def curve(self, column: str) -> dict[int, float]:
        """A column of metrics.csv by epoch; epochs without a value are left out."""
        return schema.read_curve(self.folder / "metrics.csv", column)

    def samples(self) -> Mapping[str, NDArray[Any]]:
        """The arrays of samples.npz, see `callbacks.sampled`, each read when it is asked for; files of earlier versions
        have no `kinds`, all are fixed."""
        return schema.read_samples(self.folder / "samples.npz", len(self.class_names))

    def patch(self) -> bytes:
        """What the code that trained it differs in from the commit, as `git apply` takes it; empty where nothing was
        kept."""
        wanted = self.environment.get("patch")
        return schema.read_patch(self.folder / PATCH, wanted) if wanted else b""

    def prediction(self, name: str, size: tuple[int, int] | None = None) -> NDArray[np.uint8] | None:
        """The predicted labels (H, W) of the test image `name`; None where they were not stored.

        Raises ValueError, before it decodes them, where they do not have this size.
        """
        path = self.folder / "predictions.zip"
        if name not in self.image_names or not path.is_file():
            return None
        index = self.image_names.index(name)
        return read_picture(path, PREDICTION.format(index), size, int(self.counts.true[index].sum(dtype=np.int64)))


def read_cell(folder: Path, variant: str, seed: int, class_names: list[str]) -> Cell:
    """The finished cell in `folder`; ValueError, which names file and field, for what does not hold what it should."""
    path, sizes = folder / "per_image.npz", {"C": len(class_names)}
    arrays = Npz(path, schema.per_image(), sizes, schema.MOST_IMAGES)
    names = [schema.printable(name) for name in arrays.texts("names")]
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise DamagedError(
            f"{path}: names must differ, got {twice!r} twice: delete {folder} and run the experiment again"
        )
    groups = [schema.printable(group) for group in arrays.texts("groups")] if "groups" in arrays else None
    stored = {name: _read(arrays, name) for name in PER_IMAGE if name in arrays and name != "confusion"}
    try:
        counts, image_miou, confusion = sum_up(arrays.blocks("confusion"), len(names), len(class_names))
    except OverflowError as error:
        raise DamagedError(f"{path}: {error}: delete {folder} and run the experiment again") from None
    return Cell(
        variant=variant,
        seed=seed,
        folder=folder,
        run=schema.read(folder / "run.json", schema.RunRecord),
        result=schema.read(folder / "result.json", schema.Result),
        environment=schema.read(folder / "environment.json", schema.Environment),
        class_names=class_names,
        image_names=names,
        counts=counts,
        image_miou=image_miou,
        confusion=confusion,
        arrays={"image_iou": _image_iou(counts), **stored},  # which earlier versions did not store
        groups=groups,
    )


def sum_up(
    blocks: Iterable[tuple[int, NDArray[Any]]], images: int, classes: int
) -> tuple[Counts, NDArray[np.float64], NDArray[np.int64]]:
    """The counts of each image, its mIoU, and the sum over the images, of confusion matrices (n, C, C) in blocks of
    images, each with the number of the first.

    Raises OverflowError for an image of more than `MOST_PIXELS` pixels.
    """
    right, true, predicted = (np.empty((images, classes), dtype=np.uint32) for _ in range(3))
    image_miou, confusion = np.empty(images), np.zeros((classes, classes), dtype=np.int64)
    for first, block in blocks:
        rows, counts = slice(first, first + len(block)), block.astype(np.int64, copy=False)
        pixels = counts.sum(axis=(1, 2))
        if pixels.max() > schema.MOST_PIXELS:
            place = first + int(pixels.argmax())
            raise OverflowError(
                f"confusion[{place}] must count up to {schema.MOST_PIXELS:,} pixels, got {pixels.max():,}"
            )
        right[rows], true[rows] = np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(axis=2)
        predicted[rows] = counts.sum(axis=1)
        image_miou[rows] = scores(counts)["miou"]
        confusion += counts.sum(axis=0)
    return Counts(right, true, predicted), image_miou, confusion


def _image_iou(counts: Counts) -> NDArray[np.float64]:
    """As `confusion.image_iou`, (n, C)."""
    right, true, predicted = (array.astype(np.float64) for array in (counts.right, counts.true, counts.predicted))
    return np.divide(right, true + predicted - right, out=np.full_like(right, math.nan), where=true > 0)


def _read(arrays: Npz, name: str) -> NDArray[Any]:
    """What a cell holds of an array: its sum over the images, of whole numbers in blocks of them, or all of it."""
    score = PER_IMAGE[name]
    if score.summed and score.kinds == "iu":
        total: NDArray[Any] = np.sum([block.sum(axis=0, dtype=np.int64) for _, block in arrays.blocks(name)], axis=0)
        return total
    return arrays[name].sum(axis=0) if score.summed else arrays[name]
