"""A cell, one variant trained with one seed, and its scores, from the stored matrices of the test images.

The matrices are read once, in blocks of images, and summed: at 150 classes those of one cell take a third of a gigabyte,
and what the scores and the statistics need of them a fiftieth of that.
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
from experiments.evidence.resampling import Counts
from experiments.shell.files import PREDICTION
from lightning_modules.components.scores.calibration import calibration_error
from lightning_modules.components.scores.confusion import scores
from lightning_modules.components.scores.segments import HALLUCINATED, MISSED, PREDICTED, TRUE
from lightning_modules.components.scores.trimap import WIDTH, trimap_curve

PERCENT, PPM = ("%", 100.0), ("ppm", 1e6)
# What a table shows, with the unit it is printed in. A trained network's checkerboard is a few millionths of its power.
SCORES = {
    "miou": ("mIoU", PERCENT),
    "boundary_f1": ("boundary F1", PERCENT),
    "checkerboard": ("checkerboard energy", PPM),
    "pixel_acc": ("pixel accuracy", PERCENT),
}
BOUNDARY = 3  # pixels: as far from a true boundary an error is counted as one at it
# How and where the predictions err. Those of segments and calibration need what cells of earlier versions did not store.
ERRORS = {
    "wrong": ("wrong pixels", PERCENT),
    "boundary_errors": (f"of them within {BOUNDARY} px of a boundary", PERCENT),
    "missed": ("missed segments", PERCENT),
    "hallucinated": ("hallucinated segments", PERCENT),
    "ece": ("calibration error", PERCENT),
    "overconfidence": ("overconfidence", PERCENT),
}


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
    boundary_f1: NDArray[np.float64]  # (n, C), NaN for a class absent from the truth
    checkerboard: NDArray[np.float64]  # (n,)
    # Sums over the images of components.scores.trimap (width, C, C), .calibration (bins, 3) and .segments (C, 4); None where
    # not stored.
    trimap: NDArray[np.int64] | None = None
    calibration: NDArray[np.float64] | None = None
    segments: NDArray[np.int64] | None = None

    @cached_property
    def scores(self) -> dict[str, float]:
        """Scores in [0, 1] by their logged names: miou, pixel_acc, boundary_f1, checkerboard, iou/<class>, those of
        `ERRORS`, and trimap/<w>, the mIoU within w pixels of a true boundary; NaN where it was not stored.

        IoU and accuracy are of the matrix summed over all images. Boundary F1 is the mean over the classes of an
        image, then over images; checkerboard energy the mean over images. An image without a labelled pixel counts
        nowhere.
        """
        of_all = scores(self.confusion)
        labelled = self.counts.true.any(axis=1)
        per_image = [np.nanmean(row) for row in self.boundary_f1[labelled] if not np.isnan(row).all()]
        values = {name: float(of_all[name]) for name in ("miou", "pixel_acc", "macc", "fwiou")}
        values["boundary_f1"] = float(np.mean(per_image)) if per_image else math.nan
        energies = self.checkerboard[labelled & ~np.isnan(self.checkerboard)]  # NaN for an image too small for it
        values["checkerboard"] = float(energies.mean()) if len(energies) else math.nan
        values |= {f"iou/{name}": float(iou) for name, iou in zip(self.class_names, of_all["iou"], strict=True)}
        near = np.full(WIDTH, math.nan) if self.trimap is None else trimap_curve(self.trimap)
        values |= {f"trimap/{width}": float(miou) for width, miou in enumerate(near, start=1)}
        return values | self._errors()

    def _errors(self) -> dict[str, float]:
        """The scores of `ERRORS`: shares of all labelled pixels, of the wrong ones, of the segments of all classes."""
        wrong = int(self.confusion.sum() - self.confusion.trace())
        values = dict.fromkeys(ERRORS, math.nan) | {"wrong": _share(wrong, int(self.confusion.sum()))}
        if self.trimap is not None:
            near = self.trimap[:BOUNDARY].sum(axis=0)
            values["boundary_errors"] = _share(int(near.sum() - near.trace()), wrong)
        if self.segments is not None:
            counts = self.segments.sum(axis=0)
            values["missed"] = _share(counts[MISSED], counts[TRUE])
            values["hallucinated"] = _share(counts[HALLUCINATED], counts[PREDICTED])
        if self.calibration is not None:
            found = calibration_error(self.calibration)
            values["ece"], values["overconfidence"] = (float(value) for value in found)
        return values

    def curve(self, column: str) -> dict[int, float]:
        """A column of metrics.csv by epoch; epochs without a value are left out."""
        return schema.read_curve(self.folder / "metrics.csv", column)

    def samples(self) -> Mapping[str, NDArray[Any]]:
        """The arrays of samples.npz, see `callbacks.sampled`, each read when it is asked for; files of earlier versions
        have no `kinds`, all are fixed."""
        return schema.read_samples(self.folder / "samples.npz", len(self.class_names))

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
    arrays = Npz(path, schema.PER_IMAGE, sizes, schema.MOST_IMAGES)
    names = [schema.printable(name) for name in arrays.texts("names")]
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise DamagedError(
            f"{path}: names must differ, got {twice!r} twice: delete {folder} and run the experiment again"
        )
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
        boundary_f1=arrays["boundary_f1"],
        checkerboard=arrays["checkerboard"],
        trimap=_summed(arrays, "trimap", np.int64),
        calibration=arrays["calibration"].sum(axis=0) if "calibration" in arrays else None,
        segments=_summed(arrays, "segments", np.int64),
    )


def sum_up(
    blocks: Iterable[tuple[int, NDArray[Any]]], images: int, classes: int
) -> tuple[Counts, NDArray[np.float64], NDArray[np.int64]]:
    """The counts of each image, its mIoU, and the sum over the images, of confusion matrices (n, C, C) in blocks of images,
    each with the number of the first.

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


def _summed(arrays: Npz, key: str, dtype: type[np.int64]) -> NDArray[np.int64] | None:
    """Over the images, in blocks of them."""
    if key not in arrays:
        return None
    total: NDArray[np.int64] = np.sum([block.sum(axis=0, dtype=dtype) for _, block in arrays.blocks(key)], axis=0)
    return total


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else math.nan
