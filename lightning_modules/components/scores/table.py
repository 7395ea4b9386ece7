"""The scores of an image: what is stored of it, how that is computed, and which numbers are read from it.

A score is one entry of `PER_IMAGE`. The test split stores its array, a report reads and prints its numbers. This file
needs numpy alone, so that a report does: what computes an array imports torch when it is called.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_modules.components.scores.reductions import (
    BINS,
    HALLUCINATED,
    MISSED,
    PREDICTED,
    TRUE,
    WIDTH,
    boundary_mean,
    calibration_error,
    mean_of_scored,
    scores,
    share,
    trimap_curve,
)

if TYPE_CHECKING:
    from torch import Tensor

BOUNDARY = 3  # pixels: as far from a true boundary an error is counted as one at it
MOST_TRIMAP_CLASSES = 40  # of an image with more, the matrices of all bands would fill 256 kB and more


class Unit(NamedTuple):
    sign: str
    factor: float


PERCENT, PPM = Unit("%", 100.0), Unit("ppm", 1e6)


@dataclass(frozen=True)
class Number:
    """What a table calls a number, the unit it prints it in, and the note that says what it means."""

    title: str
    meaning: str = ""
    unit: Unit = PERCENT

    @property
    def brief(self) -> str:
        """The first clause of its meaning, as a footnote has room for: "boundary F1: agreement of ..."."""
        said = re.split(r"(?<!al)\.(?= |$)|; ", self.meaning.partition(": ")[2])[0]
        return f"{self.title}: {said}{', in millionths (ppm)' * (self.unit.sign == 'ppm')}" if said else ""


class Predicted(NamedTuple):
    """A batch of predictions: logits (N, C, H, W), their labels and the masks (N, H, W)."""

    logits: "Tensor"
    labels: "Tensor"
    masks: "Tensor"
    num_classes: int
    ignore_index: int


@dataclass(frozen=True)
class PerImage:
    """An array that is stored of each image, and the numbers that are read from those of all images.

    `shape` is that of one image, where "C" is the number of classes, and `kinds` are numpy's kinds of its type, "iu" or
    "f". Values are from 0 to `high`, by default the pixels of an image, and NaN where `nan` allows it. `compute` gives
    the arrays (N, *shape) of a batch.

    `reduce` gives the numbers, by their names. It gets the sum over the images or, without `summed`, the rows of the
    images that have a label, and the confusion matrix (C, C) of all images. `numbers` are those that a table prints,
    `others` the names of further ones; all of them are NaN where the array was not stored.

    `mean` gives a number (N,) of each image, whose mean over an epoch is logged. A `detailed` score is of the test
    split alone, and cells of earlier versions may lack it. So may those of more than `most_classes` classes.
    """

    shape: tuple[int | str, ...]
    kinds: str
    compute: Callable[[Predicted], "Tensor"]
    reduce: Callable[[NDArray[Any], NDArray[np.int64]], Mapping[str, float]]
    numbers: Mapping[str, Number] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    high: float | None = None
    nan: bool = False
    summed: bool = True
    mean: Callable[["Tensor"], "Tensor"] | None = None
    detailed: bool = True
    most_classes: int | None = None

    def applies(self, num_classes: int, *, detailed: bool) -> bool:
        """Whether it is computed of images of this many classes."""
        return (detailed or not self.detailed) and (self.most_classes is None or num_classes <= self.most_classes)


def _confusion(batch: Predicted) -> "Tensor":
    from lightning_modules.components.scores.confusion import confusion_matrix

    return confusion_matrix(batch.labels, batch.masks, batch.num_classes, batch.ignore_index)


def _boundary_f1(batch: Predicted) -> "Tensor":
    from lightning_modules.components.scores.boundary import boundary_f1

    return boundary_f1(batch.labels, batch.masks, batch.num_classes, batch.ignore_index)


def _checkerboard(batch: Predicted) -> "Tensor":
    from lightning_modules.components.scores.checkerboard import checkerboard_energy

    return checkerboard_energy(batch.logits)


def _trimap(batch: Predicted) -> "Tensor":
    from lightning_modules.components.scores.trimap import trimap

    return trimap(batch.labels, batch.masks, batch.num_classes, batch.ignore_index)


def _segments(batch: Predicted) -> "Tensor":
    from lightning_modules.components.scores.segments import segments

    return segments(batch.labels, batch.masks, batch.num_classes, batch.ignore_index)


def _calibration(batch: Predicted) -> "Tensor":
    from lightning_modules.components.scores.calibration import calibration

    return calibration(batch.logits, batch.masks, batch.ignore_index)


def _wrong(confusion: NDArray[np.int64]) -> int:
    return int(confusion.sum() - confusion.trace())


def _of_confusion(counts: NDArray[Any], confusion: NDArray[np.int64]) -> dict[str, float]:
    values = scores(confusion)
    means = {name: float(values[name]) for name in ("miou", "pixel_acc", "macc", "fwiou")}
    return means | {"wrong": share(_wrong(confusion), int(confusion.sum()))}


def _of_trimap(bands: NDArray[Any], confusion: NDArray[np.int64]) -> dict[str, float]:
    curve = {f"trimap/{width}": float(miou) for width, miou in enumerate(trimap_curve(bands), start=1)}
    return curve | {"boundary_errors": share(_wrong(bands[:BOUNDARY].sum(axis=0)), _wrong(confusion))}


def _of_segments(counts: NDArray[Any], confusion: NDArray[np.int64]) -> dict[str, float]:
    of_all = counts.sum(axis=0)
    return {
        "missed": share(of_all[MISSED], of_all[TRUE]),
        "hallucinated": share(of_all[HALLUCINATED], of_all[PREDICTED]),
    }


def _of_calibration(counts: NDArray[Any], confusion: NDArray[np.int64]) -> dict[str, float]:
    error, overconfidence = calibration_error(counts)
    return {"ece": float(error), "overconfidence": float(overconfidence)}


# In the order of the columns of a report.
PER_IMAGE: dict[str, PerImage] = {
    "confusion": PerImage(  # rows are the truth
        shape=("C", "C"),
        kinds="iu",
        compute=_confusion,
        reduce=_of_confusion,
        numbers={
            "miou": Number(
                "mIoU",
                "mIoU: the confusion matrices of all images are summed, then the IoU of the classes averaged. A class "
                "absent from both truth and prediction is left out of the mean and shown as -. Ignored pixels count "
                "nowhere.",
            ),
            "pixel_acc": Number("pixel accuracy"),
            "wrong": Number(
                "wrong pixels",
                "Wrong pixels: the share of the labelled pixels of all test images that got another class than the "
                "true one.",
            ),
        },
        others=("macc", "fwiou"),
        detailed=False,
    ),
    "boundary_f1": PerImage(  # NaN for a class absent from the truth
        shape=("C",),
        kinds="f",
        compute=_boundary_f1,
        reduce=lambda f1, confusion: {"boundary_f1": boundary_mean(f1)},
        numbers={
            "boundary_f1": Number(
                "boundary F1",
                "Boundary F1: agreement of the class outlines within 0.75 % of the image diagonal (the tolerance of "
                "SegNet); mean over the classes of an image, then over images.",
            )
        },
        high=1 + 1e-6,
        nan=True,
        summed=False,
        mean=lambda f1: f1.nanmean(1),
        detailed=False,
    ),
    "checkerboard": PerImage(  # NaN for an image too small for it
        shape=(),
        kinds="f",
        compute=_checkerboard,
        reduce=lambda energies, confusion: {"checkerboard": mean_of_scored(energies)},
        numbers={
            "checkerboard": Number(
                "checkerboard energy",
                "Checkerboard energy: share of the spectral power of the logits at the frequencies of the last "
                "upsampling grid (period 2), above that of a smooth neighbourhood; mean over images. Lower is "
                "smoother; sharp edges alone reach up to about 200 ppm.",
                PPM,  # a trained network's is a few millionths of its power
            )
        },
        high=1 + 1e-6,
        nan=True,
        summed=False,
        mean=lambda energies: energies,
        detailed=False,
    ),
    "trimap": PerImage(
        shape=(WIDTH, "C", "C"),
        kinds="iu",
        compute=_trimap,
        reduce=_of_trimap,
        numbers={
            "boundary_errors": Number(
                f"of them within {BOUNDARY} px of a boundary",
                f"Of them within {BOUNDARY} px of a boundary: the share of the wrong pixels that lie at most "
                f"{BOUNDARY} pixels from a pixel of another class, in the truth (a trimap, as of Kohli et al. 2009)",
            )
        },
        others=tuple(f"trimap/{width}" for width in range(1, WIDTH + 1)),
        most_classes=MOST_TRIMAP_CLASSES,
    ),
    "segments": PerImage(
        shape=("C", 4),
        kinds="iu",
        compute=_segments,
        reduce=_of_segments,
        numbers={
            "missed": Number(
                "missed segments",
                "Missed segments: the share of the true segments of which no pixel got their class. A segment is a "
                "connected component of one class, a pixel's neighbours being the eight around it; a small one counts "
                "as much as a large one.",
            ),
            "hallucinated": Number(
                "hallucinated segments",
                "Hallucinated segments: the share of the predicted segments of which no pixel is of their class. Both "
                "kinds are the segments with an IoU of 0 of Rottmann et al. (2020).",
            ),
        },
    ),
    "calibration": PerImage(
        shape=(BINS, 3),
        kinds="f",
        compute=_calibration,
        reduce=_of_calibration,
        numbers={
            "ece": Number(
                "calibration error",
                "Calibration error: the expected calibration error of Guo et al. (2017), with pixels in the place of "
                f"images: {BINS} bins of equal width by the largest probability of a pixel, in each the distance of "
                "the mean probability from the accuracy, averaged over the pixels.",
            ),
            "overconfidence": Number(
                "overconfidence",
                "Overconfidence: the mean of the largest probability less the accuracy; above 0 the network is surer "
                "than it is right.",
            ),
        },
    ),
}


def numbers() -> dict[str, Number]:
    """All that a table prints of a cell, by name."""
    return {name: number for entry in PER_IMAGE.values() for name, number in entry.numbers.items()}


# Columns of the table of scores, in their order; all others are of the table of errors.
SCORES = {name: numbers()[name] for name in ("miou", "boundary_f1", "checkerboard", "pixel_acc")}


def errors() -> dict[str, Number]:
    """How and where the predictions err: the numbers of the table of errors."""
    return {name: number for name, number in numbers().items() if name not in SCORES}
