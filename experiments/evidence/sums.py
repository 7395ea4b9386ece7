"""Scores of a whole data set as functions of sums over its images, or over groups of them.

Images of a group, say the slices of a volume, err together: only groups can be left out or drawn again. A cell is one
variant trained with one seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from experiments.evidence.blocks import Floats, effective

MEAN = "mean"  # of a score that each image has by itself
MIN_GROUPS = 8  # with 6, intervals miss in up to 5.7 % of simulated reports: docs/statistics.md
MIN_EFFECTIVE = 5  # groups of equal size that unequal ones must count as; fewer were not simulated
CLASS_GROUPS = 6  # that a class must lie in (tests/experiments/test_simulate_designs.py)
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


def evaluate(sums: Floats, score: str) -> Floats:
    """The score of sums (..., K): (...). NaN where no class is present."""
    if score == "fwiou":
        right, union, true = np.split(sums, 3, axis=-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray((true * right * _inverse(union)).sum(-1) / true.sum(-1))
    top, bottom = np.split(sums, 2, axis=-1)
    inverse = _inverse(bottom)
    with np.errstate(invalid="ignore"):
        return np.asarray((top * inverse).sum(-1) / np.count_nonzero(inverse, axis=-1))


def refuse_groups(sums: Sequence[Floats], score: str, sizes: Floats, class_names: Sequence[str] = ()) -> str:
    """Why nothing can be told of other images by the groups' sums (G, K) of these cells; empty where it can.

    Few groups, groups of very unequal `sizes`, or a class that lies in few of them do not show what other images would.
    In a mean over many classes a few such classes weigh too little to matter: up to RARE_SHARE are let pass. A class
    that lies in no image is left out of the score, and the interval is for the score of the other classes.
    """
    groups = len(sizes)
    if groups < MIN_GROUPS:
        s = "s" * (groups != 1)
        return f"{groups} independent image{s} or group{s} of images, and {MIN_GROUPS} are needed to speak of others"
    if effective(sizes) < MIN_EFFECTIVE:
        return (
            f"they form {groups} groups, so unequal that they tell as little as {effective(sizes):.1f} equal ones, and "
            f"{MIN_EFFECTIVE} are needed to speak of others"
        )
    if score == "fwiou":  # weighs a class by its pixels: a rare one hardly counts
        return ""
    in_groups = np.stack([np.count_nonzero(np.split(cell, 2, axis=-1)[1] > 0, axis=0) for cell in sums])
    fewest = np.where(in_groups > 0, in_groups, groups).min(axis=0)
    present = (in_groups > 0).any(axis=0)
    rare = np.flatnonzero(present & (fewest < CLASS_GROUPS))
    if len(rare) <= RARE_SHARE * present.sum():
        return ""
    names = [class_names[int(k)] if class_names else f"class {k}" for k in rare]
    listed = ", ".join(f"{name} in {fewest[k]}" for name, k in zip(names[:3], rare[:3], strict=True))
    more = f" and {len(rare) - 3} more" if len(rare) > 3 else ""
    return f"classes in fewer than {CLASS_GROUPS} groups of images: {listed}{more}"


def group_sums(addends: Floats, groups: NDArray[np.intp]) -> Floats:
    """What each group of images adds to the score's sums: (G, K), of addends (n, K), `groups` (n,) counted from 0."""
    sums = np.zeros((int(groups.max(initial=-1)) + 1, addends.shape[1]))
    np.add.at(sums, groups, addends)
    return sums


def _inverse(values: Floats) -> Floats:
    return np.divide(1.0, values, out=np.zeros_like(values), where=values > 0)
