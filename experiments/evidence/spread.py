"""How far seeds lie apart: in each arm, whether arms differ in it, and which seed lies far below its arm's others."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from experiments.evidence.blocks import Blocks, Floats

DRAWS = 10_000
FALLEN = 0.1  # of mIoU below the next seed of its arm: what is called diverged, if it is
FAR = 4  # times the residual standard deviation of the other arms, as well


@dataclass(frozen=True)
class Spread:
    """Residual standard deviations of networks over seeds, in the score's unit."""

    arms: dict[str, float]  # NaN of an arm without a second seed
    sd: float  # of all arms together
    df: int
    p: float  # of spreads that lie as far apart or farther by chance, were they equal


def spread(scores: Mapping[tuple[str, int], float], *, seed: int = 0) -> Spread | None:
    """Of the scores of cells (variant, seed); None without residuals.

    Two tests by Bartlett's (1937) statistic, the smaller p of both doubled: of block residuals, and of deviations from
    an arm's mean. The latter see a single noisy arm, which hands its noise to the others' residuals. Distributions are
    drawn without a seed's effect, which would make deviations more alike.
    """
    names, blocks, values = _lay(scores)
    if blocks is None or not blocks.df:
        return None
    arms, whole = np.eye(len(names))[blocks.variants], np.eye(len(values))
    makers = blocks.residuals(whole), whole - arms @ (arms / arms.sum(axis=0)).T
    drawn = np.random.default_rng(seed).standard_normal((DRAWS, len(values)))
    variance, least, deviations = float(blocks.variance(values)), 1.0, np.full(len(names), math.nan)
    for number, maker in enumerate(makers):
        squares, by_chance = (((x @ maker) ** 2) @ arms for x in (values, drawn))
        shares = (maker**2).sum(axis=0) @ arms
        known = shares > 1e-9
        statistic = _bartlett(squares[known], shares[known])
        far = _bartlett(by_chance[:, known], shares[known]) >= statistic * (1 - 1e-9)
        least = min(least, float((1 + np.count_nonzero(far)) / (1 + DRAWS)))
        if not number:
            deviations[known] = np.sqrt(squares[known] / shares[known])
    rounding = 1e-12 * float(np.abs(values).max())
    p = min(2 * least, 1.0) if math.sqrt(variance) > rounding else math.nan
    return Spread(dict(zip(names, map(float, deviations), strict=True)), math.sqrt(variance), blocks.df, p)


def mean_with_interval(values: Floats) -> tuple[float, float, float]:
    """Of independent values (n,), with its 95 % interval by Student's t: NaN of fewer than two."""
    from scipy import stats  # takes a second, and a report needs none of it

    mean = float(values.mean())
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1)) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def ratio_of_deviations(over: Floats, under: Floats) -> tuple[float, float, float]:
    """How many times as far seeds lie apart in `over` as in `under`, (arms, seeds) each, with its 95 % interval.

    Of one standard deviation for all arms, once an arm's mean is taken out. Two arms of the same networks go together,
    which the interval allows for: Pitman 1939, Morgan 1939; exact for normal scores.
    """
    from scipy import stats

    a, b = (scores - scores.mean(axis=1, keepdims=True) for scores in (over, under))
    df = a.size - len(a)
    squares = float((a**2).sum()), float((b**2).sum())
    if df < 2 or min(squares) == 0:
        return math.nan, math.nan, math.nan
    together = float((a * b).sum()) / math.sqrt(squares[0] * squares[1])
    k = 1 + 2 * max(0.0, 1 - together**2) * float(stats.t.ppf(0.975, df - 1)) ** 2 / (df - 1)
    share, far = squares[0] / squares[1], k + math.sqrt(k**2 - 1)
    return math.sqrt(share), math.sqrt(share / far), math.sqrt(share * far)


@dataclass(frozen=True)
class Common:
    """What a seed does to all arms alike, of scores (arms, seeds)."""

    f: float  # of the seeds' block, 1 on average where a seed does nothing to all
    p: float
    share: float  # of the variance over seeds: the intraclass correlation, 0 to 1


def common(scores: Floats) -> Common | None:
    """None of fewer than two arms or seeds, and where nothing varies."""
    arms, seeds = scores.shape
    if min(arms, seeds) < 2:
        return None
    centred = scores - scores.mean(axis=1, keepdims=True)
    of_seed = centred.mean(axis=0)
    between = arms * float((of_seed**2).sum()) / (seeds - 1)
    within = float(((centred - of_seed) ** 2).sum()) / ((arms - 1) * (seeds - 1))
    if within == 0:
        return None
    from scipy import stats

    p = float(stats.f.sf(between / within, seeds - 1, (arms - 1) * (seeds - 1)))
    return Common(between / within, p, max(0.0, (between - within) / (between + (arms - 1) * within)))


def diverged(scores: Mapping[tuple[str, int], float]) -> list[tuple[str, int, float]]:
    """Variant and seed of each cell that lies far below the next seed of its arm, and how far."""
    found = []
    for variant in dict.fromkeys(name for name, _ in scores):
        of_arm = sorted((value, seed) for (name, seed), value in scores.items() if name == variant)
        _, blocks, values = _lay({cell: value for cell, value in scores.items() if cell[0] != variant})
        usual = math.sqrt(blocks.variance(values)) if blocks and blocks.df > 1 else 0.0
        for (value, _), (above, _) in pairwise(of_arm):
            fallen = [(variant, number, above - low) for low, number in of_arm if low <= value]
            if above - value > max(FALLEN, FAR * usual) and 2 * len(fallen) < len(of_arm):
                found += fallen
    return list(dict.fromkeys(found))


def _lay(scores: Mapping[tuple[str, int], float]) -> tuple[list[str], Blocks | None, Floats]:
    """The variants' names, and blocks and scores of the cells that have one; no blocks without any."""
    known = {cell: value for cell, value in scores.items() if not math.isnan(value)}
    names = list(dict.fromkeys(variant for variant, _ in known))
    cells = [(names.index(variant), seed) for variant, seed in known]
    return names, Blocks(cells, np.zeros((0, len(names)))) if cells else None, np.array(list(known.values()))


def _bartlett(squares: Floats, shares: Floats) -> Floats:
    """0 where all arms have the same variance; `shares` are their degrees of freedom."""
    with np.errstate(divide="ignore", invalid="ignore"):
        pooled = np.log(squares.sum(-1) / shares.sum())
        return np.asarray(shares.sum() * pooled - (shares * np.log(squares / shares)).sum(-1))
