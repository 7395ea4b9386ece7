"""The contrasts that a report judges together: their estimates, intervals, p and stars.

What an interval allows for is fixed before training: other seeds always, and other images wherever these come in
groups enough (`sums.refuse_groups`). Otherwise the claim is of "these images only".
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

from experiments.evidence.blocks import (
    DRAWS,
    LEVEL,
    Blocks,
    Errors,
    Floats,
    Pairs,
    adjusted,
    effective,
    least_p,
    level_of,
)
from experiments.evidence.sums import Counts, addends, evaluate, group_sums, refuse_groups

MIN_SEEDS = 3
MOST_GROUPS = 64  # that are drawn: more hardly change the quantile, and take their time

Name = TypeVar("Name", bound=Hashable)
Place = tuple[str, int]  # variant and seed
Cells = Mapping[str, Mapping[int, NDArray[np.generic] | Counts]]  # variant -> seed -> what is known of the test images


@dataclass(frozen=True)
class Row:
    """A contrast of the variants' scores; numbers that the design cannot give are NaN, and `reason` says why.

    low and high hold together with those of all rows of the family (95 %); own_low and own_high by themselves.
    """

    estimate: float
    seeds: int  # that each of its variants has at least; with separate variances those that all have
    low: float = math.nan
    high: float = math.nan
    own_low: float = math.nan
    own_high: float = math.nan
    p: float = math.nan  # its own
    adjusted: float = math.nan  # within the family
    df: float = math.nan
    chance: float = math.nan  # that it is above 0 for a new seed, on these images
    reason: str = ""

    @property
    def star(self) -> bool:
        """Whether 0 lies outside low and high."""
        return self.low > 0 or self.high < 0

    @property
    def mark(self) -> str:
        return "*" if self.star else ""

    @property
    def excluded(self) -> float:
        """The smallest size, of either sign, that the interval leaves out."""
        return max(abs(self.low), abs(self.high))

    def times(self, factor: float) -> "Row":
        """The same in another unit."""
        names = ("estimate", "low", "high", "own_low", "own_high")
        return replace(self, **{name: factor * getattr(self, name) for name in names})

    def within(self, margin: float) -> bool:
        """Whether it is equivalent to 0 within the margin, in its unit."""
        return self.excluded < margin


@dataclass(frozen=True)
class Family(Generic[Name]):
    """Rows that are judged together, and what they were judged by."""

    rows: dict[Name, Row]
    sd: float  # residual standard deviation over seeds, of a single network; NaN with separate variances
    df: float  # of `sd`
    level: float  # of a row's own p, below which it has a star
    groups: int  # of images; 0 where the claim is of these images only
    reason: str  # why it is of these images only; empty where it is not
    separate: bool = False

    @property
    def judged(self) -> int:
        """How many rows have an interval."""
        return sum(not row.reason for row in self.rows.values())

    @property
    def images_only(self) -> bool:
        return not self.groups


@dataclass(frozen=True)
class Images:
    """What is known of other images: each cell's score without each group of them, and the groups' sizes in pixels.

    Without groups, `reason` says why.
    """

    left_out: Mapping[Place, Floats]  # (G,) each
    sizes: Floats  # (G,)
    reason: str = ""


def judge(
    cells: Cells,
    weights: Mapping[Name, Mapping[str, float]],
    *,
    groups: Sequence[str] | None = None,
    score: str = "miou",
    class_names: Sequence[str] = (),
    **options: Any,
) -> Family[Name]:
    """Judges contrasts of a score of `sums.addends`, as `judge_scores` does with the same options.

    An array of `cells` holds the test images in the same order for all; `groups` names the group of each image, None
    where that was not stored.
    """
    scores, images = score_images(cells, groups, score, class_names)
    return judge_scores(scores, weights, images=images, **options)


def score_images(
    cells: Cells, groups: Sequence[str] | None, score: str, class_names: Sequence[str] = ()
) -> tuple[dict[Place, float], Images]:
    """The score of each cell that has one, and what is known of other images. Arguments as for `judge`."""
    scores, left_out, sums, sizes = dict[Place, float](), dict[Place, Floats](), list[Floats](), np.zeros(0)
    names, places = np.unique(groups or [], return_inverse=True)
    for variant, of_seeds in cells.items():
        for seed, array in of_seeds.items():
            added = addends(array, score)
            value = float(evaluate(added.sum(axis=0), score))
            if math.isnan(value):
                continue
            scores[variant, seed] = value
            if not len(names):
                continue
            of_groups = group_sums(added, places)
            if not sizes.size:
                sizes = group_sums(_pixels(array), places)[:, 0]
            counted = sizes > 0  # a group without a labelled pixel counts nowhere
            sums.append(of_groups[counted])
            left_out[variant, seed] = evaluate(sums[-1].sum(axis=0) - sums[-1], score)
    sizes = sizes[sizes > 0]
    reason = refuse_groups(sums, score, sizes, class_names) if groups else "their groups were not stored"
    return scores, Images(left_out, sizes, reason)


def judge_scores(
    scores: Mapping[Place, float],
    weights: Mapping[Name, Mapping[str, float]],
    *,
    images: Images | None = None,
    separate: bool = False,
    stage: Sequence[int] | None = None,
    bound: float = math.inf,
    draws: int = DRAWS,
    seed: int = 0,
) -> Family[Name]:
    """Judges contrasts, each of which weighs variants by weights that sum up to 0, as one family.

    `scores` are of cells (variant, seed); NaN is none. `stage`: the seeds that measure the residual variance, where
    more were added to narrow intervals (Stein 1945). No interval leaves ±`bound` times half the sum of the absolute
    weights. Separate variances: each row by its own paired t, and Bonferroni's correction. `draws` decide what holds
    together, and nothing that a row has by itself.
    """
    scores = {cell: value for cell, value in scores.items() if not math.isnan(value)}
    design = _lay(scores, weights, separate)
    values = np.array(list(scores.values()), dtype=np.float64)
    estimates = np.array([float(row @ values) for row in design.weights])
    held = {variant: {s for v, s in scores if v == variant} for row in weights.values() for variant in row}
    counts = {
        name: len(set.intersection(*(held[v] for v in row))) if separate else min(len(held[v]) for v in row)
        for name, row in weights.items()
    }
    measured = {cell: value for cell, value in scores.items() if stage is None or cell[1] in stage}
    blocks = _lay_blocks(measured, {})
    df = blocks.df if measured else 0
    rows = {
        name: Row(value, counts[name], reason=_refuse(value, counts[name], df))
        for name, value in zip(weights, map(float, estimates), strict=True)
    }
    kept = {name: weights[name] for name, row in rows.items() if not row.reason}
    sd = math.sqrt(blocks.variance(np.array(list(measured.values())))) if df else math.nan
    sd = sd if sd > 1e-12 * np.abs(values).max(initial=0) else 0.0 * sd  # rounding is no spread
    reason = images.reason if images else "the images stay the same"
    groups = len(images.sizes) if images and not reason else 0
    family = Family(rows, math.nan if separate else sd, df, math.nan, groups, reason, separate)
    if not kept:
        return family
    judged, sizes, covariance = _lay(scores, kept, separate), None, None
    if images and not reason:
        sizes, covariance = images.sizes, judged.images(np.stack([images.left_out[cell] for cell in scores]))
    if isinstance(judged, Pairs):
        errors, level = judged.errors(values, covariance, sizes), LEVEL / len(kept)
        own = errors.p(judged.weights @ values)
        in_family = np.minimum(own * len(kept), 1.0)
    else:
        errors = judged.errors(np.array(sd**2), df, covariance, sizes)
        own = errors.p(judged.weights @ values)
        least = least_p(judged, sd**2, df, covariance, _drawn(sizes), draws=draws, seed=seed)
        level, in_family = level_of(least), adjusted(own, least)
    # A new seed's difference: beside the error of the mean it has the spread of single networks.
    of_one = errors.seeds / (judged.weights**2).sum(axis=1) * (judged.contrasts**2).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        chances = stdtr(errors.df_seeds, judged.weights @ values / np.sqrt(errors.seeds + of_one))
    halves, own_halves, dfs = errors.half_width(level), errors.half_width(LEVEL), np.broadcast_to(errors.df, own.shape)
    for place, name in enumerate(kept):
        row, limit = rows[name], bound * sum(map(abs, kept[name].values())) / 2
        if math.isnan(own[place]):
            rows[name] = replace(row, reason="the seeds do not vary")
            continue
        ends = [
            min(max(row.estimate + sign * half, -limit), limit)
            for half in (halves[place], own_halves[place])
            for sign in (-1, 1)
        ]
        rows[name] = replace(
            row,
            low=float(ends[0]),
            high=float(ends[1]),
            own_low=float(ends[2]),
            own_high=float(ends[3]),
            p=float(own[place]),
            adjusted=float(in_family[place]),
            df=float(dfs[place]),
            chance=float(chances[place]),
        )
    return replace(family, level=level)


def judge_networks(
    scores: Mapping[Place, float], images: Images, weights: Mapping[Name, Mapping[str, float]]
) -> Family[Name] | None:
    """Contrasts of the very networks that were trained, on other images; None without groups enough.

    `scores` and `images` are those of `score_images`. Student's t by the jackknife over groups, Bonferroni's
    correction. Says nothing of other seeds.
    """
    kept = {name: row for name, row in weights.items() if all(any(v == one for v, _ in scores) for one in row)}
    if images.reason or not kept:
        return None
    design = _lay(scores, kept, separate=True)
    estimates = design.weights @ np.array(list(scores.values()))
    moved = design.weights @ np.stack([images.left_out[cell] for cell in scores])
    count = len(images.sizes)
    variance = ((moved - moved.mean(axis=1, keepdims=True)) ** 2).sum(axis=1) * (count - 1) / count
    errors = Errors(variance, np.zeros_like(variance), effective(images.sizes) - 1, 1)
    halves, own = errors.half_width(LEVEL / len(kept)), errors.p(estimates)
    rows = {}
    for place, (name, row) in enumerate(kept.items()):
        value, half, p = float(estimates[place]), float(halves[place]), float(own[place])
        seeds, limit = min(sum(v == one for v, _ in scores) for one in row), sum(map(abs, row.values())) / 2
        low, high = max(value - half, -limit), min(value + half, limit)
        rows[name] = Row(value, seeds, low, high, p=p, adjusted=min(p * len(kept), 1.0))
        if math.isnan(p):
            rows[name] = Row(value, seeds, reason="the images do not differ")
    return Family(rows, math.nan, math.nan, LEVEL / len(kept), count, "")


def _pixels(array: NDArray[np.generic] | Counts) -> Floats:
    """Labelled pixels of each image (n, 1), or 1 for an image with a number of its own."""
    if isinstance(array, Counts):
        return array.true.sum(axis=-1, keepdims=True, dtype=np.float64)
    axes = tuple(range(1, array.ndim))
    scored = array.sum(axis=axes, dtype=np.float64) if axes else 1.0 - np.isnan(array.astype(np.float64))
    return scored[:, None]


def _drawn(sizes: Floats | None) -> Floats | None:
    """The groups that are drawn: of very many, as many equal ones as they count for."""
    if sizes is None or len(sizes) <= MOST_GROUPS:
        return sizes
    return np.ones(round(min(effective(sizes), MOST_GROUPS)))


def _refuse(estimate: float, seeds: int, df: int) -> str:
    """Why a row has no interval; empty where it has one."""
    if seeds < MIN_SEEDS:
        return f"needs {MIN_SEEDS} seeds, got {seeds}"
    if math.isnan(estimate):
        return "no seed connects its variants"
    return "" if df else "too few seeds to measure their spread"


def _lay_blocks(scores: Mapping[Place, float], weights: Mapping[Any, Mapping[str, float]]) -> Blocks:
    return Blocks(*_numbered(scores, weights))


def _lay(scores: Mapping[Place, float], weights: Mapping[Any, Mapping[str, float]], separate: bool) -> Blocks | Pairs:
    return Pairs(*_numbered(scores, weights)) if separate else _lay_blocks(scores, weights)


def _numbered(
    scores: Mapping[Place, float], weights: Mapping[Any, Mapping[str, float]]
) -> tuple[list[tuple[int, int]], Floats]:
    """The cells, and the contrasts (K, V), with the variants counted in their order."""
    variants = list(dict.fromkeys([*(v for v, _ in scores), *(v for row in weights.values() for v in row)]))
    number = {variant: place for place, variant in enumerate(variants)}
    contrasts = np.zeros((len(weights), len(variants)))
    for place, row in enumerate(weights.values()):
        for variant, weight in row.items():
            contrasts[place, number[variant]] = weight
    return [(number[variant], seed) for variant, seed in scores], contrasts
