"""The scores of an image: what is stored of it, how that is computed, and which numbers are read from it.

A score is one entry of `PER_IMAGE`. The test split stores its array, a report reads and prints its numbers. This file
needs numpy alone, so that a report does: what computes an array imports torch when it is called.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_modules.components.scores.reductions import (
    BINS,
    HALLUCINATED,
    MISSED,
    ODDS,
    PREDICTED,
    TOLERANCES,
    TRUE,
    WIDTH,
    boundary_mean,
    calibration_error,
    image_means,
    mean_iou,
    mean_of_scored,
    risk_area,
    risk_at,
    scores,
    share,
    size_means,
    size_ranges,
    surface_means,
    trimap_curve,
)

if TYPE_CHECKING:
    from torch import Tensor

SUREST = 0.9  # of the pixels: those that a network is surest of
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
    cited: str = ""  # the DOI or address of its paper

    def applies(self, num_classes: int, *, detailed: bool) -> bool:
        """Whether it is computed of images of this many classes."""
        return (detailed or not self.detailed) and (self.most_classes is None or num_classes <= self.most_classes)


def _of_labels(module: str, function: str) -> Callable[[Predicted], "Tensor"]:
    """A function of labels, masks, number of classes and ignored index, of a module beside this one."""

    def compute(batch: Predicted) -> "Tensor":
        return _beside(module, function)(batch.labels, batch.masks, batch.num_classes, batch.ignore_index)

    return compute


def _of_logits(module: str, function: str) -> Callable[[Predicted], "Tensor"]:
    """A function of logits, masks and ignored index."""
    return lambda batch: _beside(module, function)(batch.logits, batch.masks, batch.ignore_index)


def _beside(module: str, function: str) -> Callable[..., "Tensor"]:
    found: Callable[..., Tensor] = getattr(import_module(f"lightning_modules.components.scores.{module}"), function)
    return found


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


def _of_coverage(counts: NDArray[Any], confusion: NDArray[np.int64]) -> dict[str, float]:
    return {"aurc": risk_area(counts), "surest": risk_at(counts, SUREST)}


_SIZES = {f"iou_{size}": size for size in ("small", "medium", "large")}
_OF_SIZE = "mean of the adjusted IoU (Chan et al. 2021) of the true ones, each {} of the image."
_NSD = {f"nsd_{tolerance}": tolerance for tolerance in TOLERANCES}

# In the order of the columns of a report.
PER_IMAGE: dict[str, PerImage] = {
    "confusion": PerImage(  # rows are the truth
        shape=("C", "C"),
        kinds="iu",
        compute=_of_labels("confusion", "confusion_matrix"),
        reduce=_of_confusion,
        numbers={
            "miou": Number(
                "mIoU",
                "mIoU: the confusion matrices of all images are summed, then the IoU of the classes averaged. A class "
                "absent from both truth and prediction is left out of the mean and shown as -. Ignored pixels count "
                "nowhere.",
            ),
            "pixel_acc": Number("pixel accuracy"),
            "fwiou": Number(
                "frequency-weighted IoU",
                "Frequency-weighted IoU: as mIoU, but each class is weighted by the number of its true pixels.",
            ),
            "wrong": Number(
                "wrong pixels",
                "Wrong pixels: the share of the labelled pixels of all test images that got another class than the "
                "true one.",
            ),
        },
        others=("macc",),
        detailed=False,
    ),
    "image_iou": PerImage(  # NaN for a class absent from the truth
        shape=("C",),
        kinds="f",
        compute=_of_labels("confusion", "image_iou"),
        reduce=lambda iou, confusion: dict(zip(("image_miou", "class_miou"), image_means(iou), strict=True)),
        numbers={
            "image_miou": Number(
                "mIoU per image",
                "mIoU per image: the IoU of the classes of each image, averaged over those in its truth, then over the "
                "images; each image counts the same, however large its objects are (mIoU-I of Wang et al. 2023).",
            ),
            "class_miou": Number(
                "mIoU per class and image",
                "mIoU per class and image: the IoU of a class in each image whose truth holds it, averaged over these "
                "images, then over the classes; unlike in mIoU per image, a class of few images counts as much as "
                "others, and where every image holds every class the two are equal (mIoU-C of Wang et al. 2023).",
            ),
        },
        high=1 + 1e-6,
        nan=True,
        summed=False,
        cited="https://arxiv.org/abs/2310.19252",
    ),
    "boundary_f1": PerImage(  # NaN for a class absent from the truth
        shape=("C",),
        kinds="f",
        compute=_of_labels("boundary", "boundary_f1"),
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
        cited="10.5244/C.27.32",
    ),
    "boundary_iou": PerImage(  # intersection and union
        shape=("C", 2),
        kinds="iu",
        compute=_of_labels("boundary_iou", "boundary_iou"),
        reduce=lambda counts, confusion: {"boundary_iou": mean_iou(counts)},
        numbers={
            "boundary_iou": Number(
                "boundary IoU",
                "Boundary IoU: mIoU of the pixels that lie at most 2 % of the image diagonal from the outline of their "
                "class (Cheng et al. 2021); the border of the image is part of the outline.",
            )
        },
        cited="https://arxiv.org/abs/2103.16562",
    ),
    "surface": PerImage(  # NaN for a class that neither side holds
        shape=(len(TOLERANCES), "C"),
        kinds="f",
        compute=_of_labels("surface", "surface_distance"),
        reduce=lambda shares, confusion: dict(zip(_NSD, map(float, surface_means(shares)), strict=True)),
        numbers={
            name: Number(
                f"NSD at {tolerance} px",
                f"NSD at {tolerance} px: normalised surface distance, or surface Dice (Nikolov et al. 2021), the share "
                f"of the pixels of true and predicted outlines that lie at most {tolerance} px from the other outline, "
                "higher is better; mean over the classes of an image, then over images; 0 for a class that only one "
                "side has.",
            )
            for name, tolerance in _NSD.items()
        },
        high=1 + 1e-6,
        nan=True,
        summed=False,
        cited="10.2196/26151",
    ),
    "checkerboard": PerImage(  # NaN for an image too small for it
        shape=(),
        kinds="f",
        compute=lambda batch: _beside("checkerboard", "checkerboard_energy")(batch.logits),
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
        compute=_of_labels("trimap", "trimap"),
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
        cited="10.1007/s11263-008-0202-0",
    ),
    "segments": PerImage(
        shape=("C", 4),
        kinds="iu",
        compute=_of_labels("segments", "segments"),
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
        cited="https://arxiv.org/abs/1811.00648",
    ),
    "sizes": PerImage(  # the number of segments, and the sum of their IoU
        shape=("C", len(_SIZES), 2),
        kinds="f",
        compute=_of_labels("segments", "iou_by_size"),
        reduce=lambda sums, confusion: dict(zip(_SIZES, size_means(sums), strict=True)),
        numbers={
            name: Number(of := f"IoU of {size} segments", f"{of}: {_OF_SIZE.format(part)}")
            for (name, size), part in zip(_SIZES.items(), size_ranges(), strict=True)
        },
        cited="https://arxiv.org/abs/2104.14812",
    ),
    "calibration": PerImage(
        shape=(BINS, 3),
        kinds="f",
        compute=_of_logits("calibration", "calibration"),
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
        cited="https://arxiv.org/abs/1706.04599",
    ),
    "coverage": PerImage(
        shape=(ODDS, 2),
        kinds="iu",
        compute=_of_logits("calibration", "coverage"),
        reduce=_of_coverage,
        numbers={
            "surest": Number(
                f"wrong of the surest {100 * SUREST:.0f} %",
                f"Wrong of the surest {100 * SUREST:.0f} %: the share of wrong pixels among the {100 * SUREST:.0f} % "
                "of the pixels whose label has the largest probability; the others can be given to a person.",
            ),
            "aurc": Number(
                "risk over coverage",
                "Risk over coverage (AURC): the area under the risk-coverage curve, the share of wrong pixels among "
                "the surest x % averaged over all x, lower is better (Geifman & El-Yaniv 2017).",
            ),
        },
        cited="https://arxiv.org/abs/1705.08500",
    ),
}


def numbers() -> dict[str, Number]:
    """All that a table prints of a cell, by name."""
    return {name: number for entry in PER_IMAGE.values() for name, number in entry.numbers.items()}


# Columns of the table of scores, and what a report adds to them by flag; those of the table of sizes. All others are of
# the table of errors.
SCORES = {
    name: numbers()[name] for name in ("miou", "boundary_f1", "boundary_iou", "nsd_2", "checkerboard", "pixel_acc")
}
ASKED = {name: numbers()[name] for name in ("fwiou", "image_miou", "class_miou", *_NSD) if name not in SCORES}
SIZES = {name: numbers()[name] for name in _SIZES}


def errors() -> dict[str, Number]:
    """How and where the predictions err: the numbers of the table of errors."""
    return {name: number for name, number in numbers().items() if name not in SCORES | ASKED | SIZES}
