"""The numbers that are read from what was counted, in numpy alone."""

import math

import numpy as np
from numpy.typing import NDArray

BINS = 15  # of confidence, as in the tables of Guo et al. 2017
WIDTH = 20  # of the widest trimap, in pixels
CHANCE = 0.02  # of class accuracy above that of guessing, within which nothing has been learnt
TOLERANCES = (1, 2, 3, 4, 5)  # pixels that an outline may be off
LARGER = (32**2 / (640 * 480), 96**2 / (640 * 480))  # shares of the image from which on a segment is medium, and large
ODDS, FINEST = 240, 8  # bins of the odds of a label, four to a power of two, from 2^-FINEST on
TRUE, MISSED, PREDICTED, HALLUCINATED = range(4)  # what is counted of segments


def size_ranges() -> list[str]:
    """Of small, medium and large segments the share of the image, in words: "below 0.33 %"."""
    medium, large = (f"{100 * share:.2g} %" for share in LARGER)
    return [f"below {medium}", f"{medium} to {large}", f"{large} and more"]


def scores(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Scores in [0, 1] of confusion matrices (..., C, C), rows truth and columns prediction, as float64.

    Per class (..., C), with t true pixels, p predicted and h right: `iou` h / (t + p - h), `dice` 2h / (t + p), `acc`
    h / t. Their means (...): `miou`, `mdice`, `macc`. Over pixels (...): `pixel_acc` and `fwiou`, the IoU weighted by
    t.

    A class absent from both truth and prediction is NaN and left out of the mean; one that is only predicted has IoU
    and Dice 0 and no accuracy. Without a labelled pixel everything is NaN.
    """
    counts = confusion.astype(np.float64)  # exact up to 2^53 pixels
    right = np.diagonal(counts, axis1=-2, axis2=-1)
    true, predicted = counts.sum(-1), counts.sum(-2)
    pixels = true.sum(-1)
    iou = _ratio(right, true + predicted - right)
    dice = _ratio(2 * right, true + predicted)
    acc = _ratio(right, true)
    return {
        "iou": iou,
        "dice": dice,
        "acc": acc,
        "miou": _mean_of_present(iou),
        "mdice": _mean_of_present(dice),
        "macc": _mean_of_present(acc),
        "pixel_acc": _ratio(right.sum(-1), pixels),
        "fwiou": _ratio(np.nansum(true * iou, -1), pixels),
    }


def constant_class(confusion: np.ndarray) -> int | None:
    """The one class that every labelled pixel got, of a confusion matrix (C, C) with at least two true classes; None
    where several were predicted, or the truth has but one."""
    predicted = np.flatnonzero(confusion.sum(0))
    return int(predicted[0]) if len(predicted) == 1 and np.count_nonzero(confusion.sum(1)) > 1 else None


def at_chance(confusion: np.ndarray) -> bool:
    """Whether the accuracy of the C true classes of a confusion matrix, on average, is at most 1/C + `CHANCE`.

    1/C is what guessing gets, and one class everywhere. False with fewer than two true classes.
    """
    classes = np.count_nonzero(confusion.sum(1))
    return bool(classes > 1 and scores(confusion)["macc"] <= 1 / classes + CHANCE)


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.full_like(a, np.nan), where=b > 0)


def _mean_of_present(values: np.ndarray) -> np.ndarray:
    return _ratio(np.nansum(values, -1), (~np.isnan(values)).sum(-1).astype(np.float64))


def trimap_curve(bands: np.ndarray) -> np.ndarray:
    """Mean IoU, as `scores` has it, within 1 to `width` pixels of a boundary.

    Bands (..., width, C, C) -> (..., width).
    Sum over the images first: the IoU of a class is one number for a data set.
    """
    return scores(np.cumsum(bands, axis=-3))["miou"]


def calibration_error(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of counts (..., bins, 3): the expected calibration error (Guo et al. 2017, Eq. 3) and the overconfidence.

    The first, in [0, 1], is the mean over pixels of |accuracy - confidence| of their bin. The second, in [-1, 1], is
    the mean confidence less the accuracy of all. NaN without a pixel.
    """
    pixels, confidence, right = np.moveaxis(np.asarray(counts, dtype=np.float64), -1, 0)
    total = pixels.sum(-1)
    with np.errstate(invalid="ignore"):
        return np.abs(right - confidence).sum(-1) / total, (confidence - right).sum(-1) / total


def boundary_mean(f1: NDArray[np.floating]) -> float:
    """Boundary F1 of images (n, C): the mean over the classes of an image, then over images; NaN of nothing."""
    of_images = [np.nanmean(row) for row in f1 if not np.isnan(row).all()]
    return float(np.mean(of_images)) if of_images else math.nan


def mean_of_scored(values: NDArray[np.floating]) -> float:
    """The mean of what is not NaN of (n,); NaN of nothing."""
    scored = values[~np.isnan(values)]
    return float(scored.mean()) if len(scored) else math.nan


def grid_share(logits: NDArray[np.floating], period: int = 2) -> float:
    """`checkerboard.checkerboard_energy` of stored logits (C, H, W), which says what it is: a report has no torch."""
    height, width = (size // period * period for size in logits.shape[-2:])
    if min(height, width) < 9 * period:
        return math.nan
    x = logits[:, :height, :width].astype(np.float32)
    x -= x.mean(axis=0)
    window = np.outer(*(np.sin(np.pi / side * np.arange(side)) ** 2 for side in (height, width))).astype(np.float32)
    x -= (x * window).sum(axis=(1, 2), keepdims=True) / window.sum()
    power = np.square(np.abs(np.fft.fft2(x * window))).sum(axis=0, dtype=np.float64)
    grid, near = np.arange(period)[:, None], np.arange(-4, 5)
    rows, columns = ((grid * (size // period) + near).ravel() % size for size in (height, width))
    around = power[rows[:, None], columns].reshape(period, 3, 3, period, 3, 3)
    sums = around.sum(axis=(2, 5)).swapaxes(1, 2).reshape(-1, 9)[1:]
    pairs = (sums + sums[:, ::-1]) / 2
    excess = (pairs[:, 4] - pairs[:, :4].max(axis=1)).clip(min=0).sum()
    return min(1.0, float(excess / max(power.sum(), np.finfo(np.float64).tiny)))


def share(part: float, whole: float) -> float:
    """NaN of nothing."""
    return float(part / whole) if whole else math.nan


def mean_iou(counts: NDArray[np.integer]) -> float:
    """The mean over classes of intersection over union, of counts (C, 2); a class without either is left out."""
    return float(_mean_of_present(_ratio(*np.moveaxis(counts.astype(np.float64), -1, 0))))


def surface_means(shares: NDArray[np.floating]) -> NDArray[np.float64]:
    """(T,) of normalised surface distances (n, T, C): the mean over the classes of an image, then over images."""
    return np.array([boundary_mean(of_tolerance) for of_tolerance in np.moveaxis(shares, 1, 0)])


def image_means(iou: NDArray[np.floating]) -> tuple[float, float]:
    """Of the IoU (n, C) of each image and class, NaN where there is none: mean over classes, then images; and reverse.

    mIoU^I and mIoU^C of Wang et al. 2023 (arXiv:2310.19252).
    """
    return boundary_mean(iou), boundary_mean(iou.T)


def size_means(sums: NDArray[np.floating]) -> list[float]:
    """The mean IoU of the segments of each size, of sums (C, sizes, 2); NaN without one."""
    return [share(total, count) for count, total in sums.sum(axis=0)]


def risk_curve(counts: NDArray[np.integer]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coverage and risk of counts (ODDS, 2), in [0, 1]: of the surest pixels, which share is wrong.

    Geifman & El-Yaniv 2017 (arXiv:1705.08500). A point for each bin that holds pixels, from the surest one on.
    """
    held = counts[::-1][counts[::-1, 0] > 0].astype(np.float64)
    pixels, wrong = held.cumsum(axis=0).T
    return pixels / max(pixels[-1:].sum(), 1), wrong / pixels


def risk_at(counts: NDArray[np.integer], covered: float) -> float:
    """The share of wrong pixels among the surest `covered` share; NaN without a pixel.

    Within a bin, errors are taken as spread evenly.
    """
    coverage, risk = risk_curve(counts)
    if not len(coverage):
        return math.nan
    return float(np.interp(covered, [0.0, *coverage], [0.0, *(coverage * risk)]) / covered)


def risk_area(counts: NDArray[np.integer]) -> float:
    """The area under the risk-coverage curve, the mean risk over all coverages; NaN without a pixel.

    Exact for errors that are spread evenly within each bin: the share of errors is then linear in coverage.
    """
    coverage, risk = risk_curve(counts)
    if not len(coverage):
        return math.nan
    begin, errors = np.array([0.0, *coverage[:-1]]), coverage * risk
    slope = np.diff(errors, prepend=0.0) / (coverage - begin)
    rest = errors - slope * coverage  # of the line through a bin, where it meets 0
    with np.errstate(divide="ignore", invalid="ignore"):
        bent = np.where(begin > 0, rest * np.log(coverage / begin), 0.0)
    return float((bent + slope * (coverage - begin)).sum())
