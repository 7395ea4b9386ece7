"""Scores of a whole data set when its images are drawn again or swapped between variants.

A score of a data set is a function of sums over its images. So a resample of images is a row of counts times what each
image adds: one matrix product for thousands of resamples. A cell is one variant trained with one seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MEAN = "mean"  # of a score that each image has by itself
CHUNK = 2**22  # bytes that the largest array of one block of resamples may take
MOST_KEPT = 2**26  # bytes of what all sums together have of the images, laid out for their products
MIN_IMAGES = (
    6  # with fewer, or with a class in fewer, intervals cover too little (tests/experiments/evidence/test_coverage.py)
)
RARE_SHARE = 1 / 20  # of the classes, which weigh too little in their mean to spoil its interval


@dataclass(frozen=True)
class Counts:
    """What the scores need of confusion matrices (n, C, C): a C-th of their size. Each is (n, C), in pixels."""

    right: NDArray[np.generic]
    true: NDArray[np.generic]
    predicted: NDArray[np.generic]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.right.shape

    @staticmethod
    def of(matrices: NDArray[np.generic]) -> "Counts":
        """Of matrices (n, C, C), rows truth."""
        counts = matrices.astype(np.float64)
        return Counts(np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-1), counts.sum(-2))


def addends(cell: NDArray[np.generic] | Counts, score: str) -> Floats:
    """What each image adds to the sums that the score is made of: (n, K).

    `cell` holds confusion matrices (n, C, C), rows truth, or their `Counts`, for the scores of
    `components.scores.reductions.scores`: miou, mdice, macc, fwiou, pixel_acc, and iou/k, dice/k, acc/k of the class
    with index k.
    For the score "mean" it holds a number an image, (n,), NaN for an image without one.
    """
    if score == MEAN and isinstance(cell, np.ndarray):
        scored = ~np.isnan(cell.astype(np.float64))
        return np.stack([np.where(scored, cell, 0).astype(np.float64), scored.astype(np.float64)], axis=-1)
    counts = Counts.of(cell) if isinstance(cell, np.ndarray) else cell
    right, true, predicted = (array.astype(np.float64) for array in (counts.right, counts.true, counts.predicted))
    of_classes = {"iou": (right, true + predicted - right), "dice": (2 * right, true + predicted), "acc": (right, true)}
    parts = {f"m{name}": ratio for name, ratio in of_classes.items()} | {
        "pixel_acc": (right.sum(-1, keepdims=True), true.sum(-1, keepdims=True)),
        "fwiou": (*of_classes["iou"], true),
    }
    name, _, label = score.partition("/")
    if label.isdecimal() and name in of_classes and int(label) < counts.shape[-1]:
        return np.concatenate([part[:, [int(label)]] for part in of_classes[name]], axis=-1)
    if score not in parts:
        of_class = ", ".join(f"{name}/k" for name in of_classes)
        raise ValueError(
            f"score must be one of {', '.join(parts)}, {MEAN}, or {of_class} for a class k below {counts.shape[-1]}, "
            f"got {score!r}"
        )
    return np.concatenate(parts[score], axis=-1)


def evaluate(sums: Floats, score: str) -> tuple[Floats, Floats]:
    """The score of sums (..., K), and its derivative by each of them (..., K). NaN where no class is present."""
    if score == "fwiou":
        right, union, true = np.split(sums, 3, axis=-1)
        inverse, pixels = _inverse(union), true.sum(-1, keepdims=True)
        iou = right * inverse
        with np.errstate(invalid="ignore", divide="ignore"):
            value = (true * iou).sum(-1, keepdims=True) / pixels
            slope = np.concatenate([true * inverse, -true * iou * inverse, iou - value], axis=-1) / pixels
        return value[..., 0], slope
    top, bottom = np.split(sums, 2, axis=-1)
    inverse = _inverse(bottom)
    present = np.count_nonzero(inverse, axis=-1, keepdims=True).astype(np.float64)
    ratio = top * inverse
    with np.errstate(invalid="ignore"):
        value = ratio.sum(-1) / present[..., 0]
    inverse /= np.maximum(present, 1)
    return value, np.concatenate([inverse, -ratio * inverse], axis=-1)


def influence(cells: Floats, score: str) -> tuple[Floats, Floats]:
    """The score of each cell (cells,), and what each image does to it (cells, n); the latter sums to zero.

    The derivative of the score by the weight of an image: the sum of its squares is the variance of the score over
    other images (the infinitesimal jackknife; Efron 1982, chapter 6).
    """
    value, slope = evaluate(cells.sum(axis=1), score)
    return value, np.einsum("cnk,ck->cn", cells, slope)


def bootstrap_roots(cells: Floats, weights: Floats, score: str, *, resamples: int, seed: int) -> Floats:
    """|score* - score| / standard error*, in each resample of images, of sums of the cells' scores: (sums, resamples).

    `cells` is (cells, n, K), `weights` (sums, cells). A resample draws the same n images, with replacement, for every
    cell. A resample without a score, or one whose images leave no standard error, counts as infinitely far.
    """
    count, images, size = cells.shape
    flat = np.ascontiguousarray(cells.transpose(1, 0, 2)).reshape(images, count * size)
    used = [np.flatnonzero(row) for row in weights]
    rows_of = [(index[:, None] * size + np.arange(size)).ravel() for index in used]
    transposed = _transposed(flat)
    # A product of matrices wants its rows side by side. Where those of all sums are too many to keep, they are laid so
    # anew for each block of resamples.
    small = 8 * images * sum(map(len, rows_of)) <= MOST_KEPT
    kept = [transposed[rows].astype(np.float64) for rows in rows_of] if small else None
    observed, _ = evaluate(cells.sum(axis=1), score)
    roots = np.empty((len(weights), resamples))
    generator = np.random.default_rng(seed)
    for rows in _chunks(resamples, max(images, count * size)):
        drawn = generator.integers(0, images, (len(rows), images)) + images * np.arange(len(rows))[:, None]
        times = np.bincount(drawn.ravel(), minlength=len(rows) * images).reshape(len(rows), images).astype(np.float64)
        value, slope = evaluate((times @ flat).reshape(len(rows), count, size), score)
        for cell, index in enumerate(used):
            row = weights[cell, index]
            moved = np.abs((value[:, index] - observed[index]) @ row)
            slopes = (slope[:, index] * row[:, None]).reshape(len(rows), -1)
            by_image = slopes @ kept[cell] if kept else _product(slopes, transposed, rows_of[cell])
            by_image *= by_image
            error = np.sqrt(np.einsum("bn,bn->b", times, by_image))
            tiny = 1e-12 * np.abs(observed[index]) @ np.abs(row)  # rounding: no image moved anything
            with np.errstate(divide="ignore", invalid="ignore"):
                root = np.where(error > tiny, moved / error, np.where(moved > tiny, np.inf, 0.0))
            roots[cell, rows.start : rows.stop] = np.nan_to_num(root, nan=np.inf, posinf=np.inf)
    return roots


def _transposed(flat: Floats) -> NDArray[np.floating[Any]]:
    """(images, K) -> (K, images), in float32 where that holds every number: counts of pixels are whole and small."""
    compact = np.empty(flat.shape[::-1], dtype=np.float32)
    for row in _chunks(len(flat), flat.shape[1]):
        part = flat[row.start : row.stop]
        compact[:, row.start : row.stop] = part.T
        if not np.array_equal(compact[:, row.start : row.stop].T, part):
            return np.ascontiguousarray(flat.T)
    return compact


def _product(slopes: Floats, transposed: NDArray[np.floating[Any]], rows: NDArray[np.intp]) -> Floats:
    """slopes @ transposed[rows], in blocks of images: to the bit the same, as each image is a sum of its own."""
    product = np.empty((len(slopes), transposed.shape[1]))
    step = max(64, MOST_KEPT // 2 // (8 * len(rows)) // 64 * 64)
    for first in range(0, transposed.shape[1], step):
        block = slice(first, first + step)
        product[:, block] = slopes @ transposed[rows, block].astype(np.float64)
    return product


def swap_p(variant: Floats, baseline: Floats, score: str, *, resamples: int, seed: int) -> float:
    """p of a permutation test: both are (seeds, n, K); an image's addends change sides for all seeds at once.

    Two-sided, of the mean over seeds of the difference of the scores. Every swap is tried where there are no more
    than `resamples`, otherwise that many random ones. The data as they are then count as one more, without which the
    test would reject too often (Phipson & Smyth 2010).
    """
    seeds, images, size = variant.shape
    apart = (variant - baseline).transpose(1, 0, 2).reshape(images, seeds * size)
    sums, other = variant.sum(axis=1), baseline.sum(axis=1)
    observed = abs(_mean_difference(sums, other, score))
    exact = images < 63 and 2**images <= resamples
    total, generator = 2**images if exact else resamples, np.random.default_rng(seed)
    far = 0
    for rows in _chunks(total, max(images, 2 * seeds * size)):
        if exact:
            swapped = (np.arange(rows.start, rows.stop)[:, None] >> np.arange(images)) & 1
        else:
            swapped = generator.integers(0, 2, (len(rows), images), dtype=np.int8)
        moved = (swapped.astype(np.float64) @ apart).reshape(len(rows), seeds, size)
        drawn = np.abs(_mean_difference(sums - moved, other + moved, score))
        far += int(np.count_nonzero(~(drawn < observed * (1 - 1e-9))))  # a draw without a score speaks against
    return far / total if exact else (1 + far) / (1 + total)


def refuse_images(cells: Sequence[Floats], score: str, class_names: Sequence[str] = ()) -> str:
    """Why an interval over images would not hold for the score of these cells, (n, K) each; empty where it does.

    With fewer than MIN_IMAGES images, or a class that lies in fewer, the resamples do not show what other images
    would. In a mean over many classes a few such classes weigh too little to matter: up to RARE_SHARE are let pass.
    A class that lies in no image is left out of the score, and the interval is for the score of the other classes.
    """
    images = len(cells[0])
    if images < MIN_IMAGES:
        return f"needs {MIN_IMAGES} images, got {images}"
    if score == "fwiou":  # weighs a class by its pixels: a rare one hardly counts
        return ""
    in_images = np.stack(
        [np.count_nonzero(np.split(cell, 2, axis=-1)[1] > 0, axis=0) for cell in cells]
    )  # (cells, classes)
    fewest = np.where(in_images > 0, in_images, images).min(axis=0)
    present = (in_images > 0).any(axis=0)
    rare = np.flatnonzero(present & (fewest < MIN_IMAGES))
    if len(rare) <= RARE_SHARE * present.sum():
        return ""
    if fewest.size == 1:
        return f"needs {MIN_IMAGES} images, got {fewest[0]}"
    names = [class_names[int(k)] if class_names else f"class {k}" for k in rare]
    listed = ", ".join(f"{name} in {fewest[k]}" for name, k in zip(names[:3], rare[:3], strict=True))
    more = f" and {len(rare) - 3} more" if len(rare) > 3 else ""
    return f"classes in fewer than {MIN_IMAGES} images: {listed}{more}"


def _mean_difference(sums: Floats, other: Floats, score: str) -> Floats:
    """(..., seeds, K) twice -> (...)."""
    difference: Floats = (evaluate(sums, score)[0] - evaluate(other, score)[0]).mean(axis=-1)
    return difference


def _inverse(values: Floats) -> Floats:
    return np.divide(1.0, values, out=np.zeros_like(values), where=values > 0)


def _chunks(total: int, columns: int) -> list[range]:
    step = max(1, CHUNK // (8 * columns))
    return [range(start, min(start + step, total)) for start in range(0, total, step)]
