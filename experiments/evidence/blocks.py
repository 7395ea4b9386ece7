"""How sure differences between variants are: every seed is a block, and one variance serves all variants.

score = variant + seed + residual. A seed shifts all variants alike, which cancels in a difference; the residuals of all
variants together measure one variance (randomised blocks), by least squares where cells are missing. A difference from
3 seeds of 8 variants then has 14 degrees of freedom; by its own paired t test it would have 2.

Other images move a difference, too. Their share is the covariance of the scores of different seeds, which residuals of
single trainings do not enter (Obuchowski & Rockette 1995). A jackknife that leaves out one group of images at a time
measures it (MacKinnon, Nielsen & Webb 2023, CV3). The two variances add up, with Satterthwaite's degrees of freedom,
for which groups of unequal size count as fewer.

All contrasts of a report are one family (Hothorn, Bretz & Westfall 2008): `least_p` draws how small the smallest p of
the family is by chance, and a row gets a star where its own p is below the 5 % quantile of that. Intervals at the same
level hold together with 95 %, and one leaves out 0 exactly where its row has a star.

All functions take any number of reports at once in the leading axes, which `experiments.simulate_designs` uses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

Floats = NDArray[np.float64]

LEVEL = 0.05  # of a family: the chance of any false star, and of any interval that misses
DRAWS = 20_000  # of a family's smallest p; its quantile moves the ends of intervals by less than 1 %
# In the degrees of freedom the seeds' variance counts 1 + CHANCE / df times: one that is small by chance would hand
# them to the images. Without it 2 variants of 3 seeds have a false star in 6 % of reports (docs/statistics.md).
CHANCE = 4
CHUNK = 2**22  # numbers in the largest array of one block of draws


@dataclass(frozen=True)
class Errors:
    """The variance of K contrasts by what moves them, (..., K), and the degrees of freedom of each part.

    `least`: Student's t has the fewest of them instead of Satterthwaite's.
    """

    seeds: Floats
    images: Floats  # zeros where the images stay the same
    df_seeds: Floats | float
    df_images: float
    least: bool = False

    @property
    def total(self) -> Floats:
        """Standard errors."""
        return np.sqrt(self.seeds + self.images)

    @property
    def df(self) -> Floats:
        if self.least:
            return np.where(self.images > 0, np.minimum(self.df_seeds, self.df_images), self.df_seeds)
        with np.errstate(divide="ignore", invalid="ignore"):
            seeds = (1 + CHANCE / self.df_seeds) * self.seeds
            parts = seeds**2 / self.df_seeds + self.images**2 / self.df_images
            return np.where(seeds + self.images > 0, (seeds + self.images) ** 2 / parts, self.df_seeds)

    def p(self, estimates: Floats) -> Floats:
        """Two-sided p of each contrast by itself; NaN where nothing varies."""
        error = self.total
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.where(error > 0, np.abs(estimates) / error, np.nan)
        return np.asarray(2 * stdtr(self.df, -t))

    def half_width(self, level: float | Floats) -> Floats:
        """Of the interval that misses with the probability `level`."""
        return np.asarray(-stdtrit(self.df, np.asarray(level) / 2) * self.total)


@dataclass(frozen=True)
class Design:
    """The cells of an experiment, (variant, seed) counted from 0, and K contrasts of its V variants."""

    cells: Sequence[tuple[int, int]]
    contrasts: Floats  # (K, V)

    @cached_property
    def variants(self) -> NDArray[np.intp]:
        return np.array([variant for variant, _ in self.cells], dtype=np.intp)

    @cached_property
    def seeds(self) -> NDArray[np.intp]:
        return np.array([seed for _, seed in self.cells], dtype=np.intp)

    def images(self, left_out: Floats) -> Floats:
        """Covariance of the contrasts over groups of images, as all seeds share it: (..., K, K).

        `left_out` (..., N, G) are the cells' scores without each group. Each variant needs two seeds.
        """
        moved = left_out - left_out.mean(-1, keepdims=True)
        groups, count = moved.shape[-1], self.contrasts.shape[1]
        each = np.bincount(self.variants, minlength=count)
        total, pairs = np.zeros((*moved.shape[:-2], count, groups)), np.outer(each, each).astype(np.float64)
        same = np.zeros((*moved.shape[:-2], count, count))
        for seed in np.unique(self.seeds):
            of_seed = np.flatnonzero(self.seeds == seed)
            places, part = self.variants[of_seed], moved[..., of_seed, :]
            total[..., places, :] += part
            same[..., places[:, None], places] += part @ np.swapaxes(part, -1, -2)
            pairs[places[:, None], places] -= 1
        covariance = total @ np.swapaxes(total, -1, -2) - same
        covariance *= (groups - 1) / groups / np.maximum(pairs, 1)
        # What moves all variants alike is in no contrast, and would hide that the rest is no covariance by chance.
        used = (self.contrasts != 0).any(axis=0) * 1.0
        centre = np.diag(used) - np.outer(used, used) / max(used.sum(), 1)
        values, vectors = np.linalg.eigh(centre @ covariance @ centre)
        roots = self.contrasts @ (vectors * np.sqrt(np.maximum(values, 0))[..., None, :])
        return np.asarray(roots @ np.swapaxes(roots, -1, -2))


@dataclass(frozen=True)
class Blocks(Design):
    """Randomised blocks: residuals of all variants and seeds measure one variance."""

    @cached_property
    def _fit(self) -> tuple[Floats, Floats]:
        """The least-squares weights of the cells in each contrast (K, N), NaN where they do not tell it, and what makes
        residuals of the scores (N, N)."""
        count, (_, places) = self.contrasts.shape[1], np.unique(self.seeds, return_inverse=True)
        design, rows = np.zeros((len(self.cells), count + len(set(places.tolist())))), np.arange(len(self.cells))
        design[rows, self.variants] = design[rows, count + places] = 1
        inverse = np.linalg.pinv(design)
        weights = self.contrasts @ inverse[:count]
        wanted = np.hstack([self.contrasts, np.zeros((len(self.contrasts), design.shape[1] - count))])
        weights[np.abs(weights @ design - wanted).max(axis=1) > 1e-8] = np.nan
        return weights, np.eye(len(self.cells)) - design @ inverse

    @property
    def weights(self) -> Floats:
        return self._fit[0]

    @property
    def df(self) -> int:
        """Of the residuals."""
        return round(float(np.trace(self._fit[1])))

    def residuals(self, scores: Floats) -> Floats:
        """Of scores (..., N)."""
        return scores @ self._fit[1]

    def variance(self, scores: Floats) -> Floats:
        """The residual variance of scores (..., N): (...)."""
        return (self.residuals(scores) ** 2).sum(-1) / self.df

    def errors(self, variance: Floats, df: int, images: Floats | None = None, sizes: Floats | None = None) -> Errors:
        """By the residual `variance` (...) with its `df`, and over `images` (..., K, K), from `groups`, if given."""
        seeds = variance[..., None] * (self.weights**2).sum(-1)
        over_images = np.zeros_like(seeds) if images is None else np.diagonal(images, axis1=-2, axis2=-1)
        return Errors(seeds, over_images, df, 1.0 if sizes is None else effective(sizes) - 1)


@dataclass(frozen=True)
class Pairs(Design):
    """Each contrast by itself, from the seeds that all its variants have: no variance is shared."""

    @cached_property
    def weights(self) -> Floats:
        """Of the cells in each contrast (K, N), NaN without a seed that all its variants have."""
        weights = np.zeros((len(self.contrasts), len(self.cells)))
        for row, seeds in enumerate(self._seeds):
            for cell, (variant, seed) in enumerate(self.cells):
                weights[row, cell] = self.contrasts[row, variant] / len(seeds) if seed in seeds else 0.0
            weights[row] = weights[row] if seeds else np.nan
        return weights

    @cached_property
    def _seeds(self) -> list[list[int]]:
        """Of each contrast those that all its variants have."""
        held = {variant: {s for v, s in self.cells if v == variant} for variant in set(self.variants.tolist())}
        needed = [[held.get(int(variant), set()) for variant in np.flatnonzero(row)] for row in self.contrasts]
        return [sorted(set.intersection(*of_row)) if of_row else [] for of_row in needed]

    @property
    def df(self) -> Floats:
        return np.array([len(seeds) - 1.0 for seeds in self._seeds])

    def errors(self, scores: Floats, images: Floats | None = None, sizes: Floats | None = None) -> Errors:
        """Of scores (..., N), and over `images` (..., K, K), from `groups`, if given."""
        variances = []
        for row, seeds in enumerate(self._seeds):
            weights = np.where(np.isin(self.seeds, seeds), self.contrasts[row][self.variants], 0.0)
            values = np.stack([(scores * (weights * (self.seeds == seed))).sum(-1) for seed in seeds], axis=-1)
            variances.append(values.var(-1, ddof=1) / len(seeds))
        of_seeds = np.stack(variances, axis=-1)
        over_images = np.zeros_like(of_seeds) if images is None else np.diagonal(images, axis1=-2, axis2=-1)
        return Errors(of_seeds, over_images, self.df, 1.0 if sizes is None else effective(sizes) - 1, least=True)


def least_p(
    blocks: Blocks,
    variance: float,
    df: int,
    images: Floats | None = None,
    sizes: Floats | None = None,
    *,
    draws: int = DRAWS,
    seed: int | np.random.Generator = 0,
) -> Floats:
    """The smallest p of the family in each of `draws` experiments without any difference, sorted.

    Arguments as for `Blocks.errors`, of one report. Seeds, and groups of these sizes, are drawn anew and give estimates
    and their variances as the report's are found, if the variances at hand are the true ones. Without images this is
    the single-step test of the largest |t|.
    """
    generator = np.random.default_rng(seed)
    of_seeds = _root(blocks.weights @ blocks.weights.T) * np.sqrt(variance)
    # How rows go together is taken from the design: the covariance at hand, of few groups, shows rows more alike than
    # they are, which makes the smallest p too large (docs/statistics.md).
    of_images = np.zeros((len(of_seeds), 0))
    if images is not None:
        alike = blocks.contrasts @ blocks.contrasts.T
        own = np.sqrt(np.diagonal(images) / np.diagonal(alike))
        of_images = _root(own[:, None] * alike * own)
    groups = 1 if sizes is None else len(sizes)
    share = np.ones(1) if sizes is None else sizes / sizes.sum()
    expected = 0.0 if sizes is None else _expected(share)
    squares, least = (of_seeds**2).sum(-1), np.empty(draws)
    step = max(1, CHUNK // (len(of_seeds) * groups))
    for first in range(0, draws, step):
        count = min(step, draws - first)
        estimates = generator.standard_normal((count, of_seeds.shape[1])) @ of_seeds.T
        over_seeds, over_images = squares * generator.chisquare(df, (count, 1)) / df, np.zeros_like(estimates)
        if of_images.size and sizes is not None:
            drawn = generator.standard_normal((groups, count, of_images.shape[1]))
            mean = np.tensordot(share, drawn, 1)
            moved = ((drawn - mean) * (share / (1 - share))[:, None, None]) @ of_images.T
            moved -= moved.mean(0)
            over_images = (moved * moved).sum(0) / expected
            # The variance at hand is the jackknife's, which is larger than the true one by this factor.
            estimates += mean @ of_images.T * np.sqrt(groups / (groups - 1) / expected)
        drawn_errors = Errors(over_seeds, over_images, df, 1.0 if sizes is None else effective(sizes) - 1)
        least[first : first + count] = drawn_errors.p(estimates).min(axis=1)
    return np.sort(least)


def effective(sizes: Floats) -> float:
    """How many groups of equal size tell as much of their variance as groups of these sizes.

    If what a group has in common outweighs what its images have by themselves, a mean has shares of variance that
    are the squares of the sizes (Satterthwaite 1946).
    """
    shares = sizes**2
    return float(shares.sum() ** 2 / (shares**2).sum())


def _expected(share: Floats) -> float:
    """What the squares of `moved` in `least_p` sum up to on average, for groups of these shares of the images."""
    groups = len(share)
    moved = (np.eye(groups) - share) * (share / (1 - share))[:, None]
    moved -= moved.mean(0)
    return float((moved * moved).sum())


def level_of(least: Floats, level: float = LEVEL) -> float:
    """The p below which a row has its star, of the sorted output of `least_p`; never more than `level`, as draws of a
    single row can have it."""
    return min(float(least[max(int(level * (len(least) + 1)) - 1, 0)]), level)


def adjusted(p: Floats, least: Floats) -> Floats:
    """The p of each row within its family: below 5 % exactly where p is below `level_of`."""
    return np.maximum((1 + np.searchsorted(least, p, side="right")) / (len(least) + 1), p)


def _root(covariance: Floats) -> Floats:
    """(K, K) -> (K, rank), whose product with its transpose is the covariance."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > 1e-12 * max(float(values.max(initial=0)), 1e-300)
    return np.ascontiguousarray(vectors[:, kept] * np.sqrt(values[kept]))
