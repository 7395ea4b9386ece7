"""How sure a score and a difference are: intervals that name their uncertainty, tests, effect sizes.

A score of a variant moves for two reasons. Trained again from another seed it is another network ("seeds"); scored on
other images of the same kind it meets easier or harder ones ("images"). `KINDS` names what an interval allows for. One
of the first two kinds says nothing of the other, and only "both" speaks of the design choice itself (Bouthillier et
al. 2021: every source of variance that is left out makes a comparison look surer than it is).

- seeds: Student's t over the seeds' scores.
- images: paired bootstrap of the score of the whole data set: the same images are drawn for every variant and seed.
  Studentised and symmetric: score ± q * standard error, q the 95 % quantile of |score* - score| / standard error* over
  the resamples (Efron & Tibshirani 1993, section 12.5; Hall 1988).
- both: the two levels have independent errors. That over the seeds, s^2 / S, contains the images that move one network
  unlike another; what the images do to all seeds alike is the covariance of two seeds' scores. Their sum is the
  variance by Obuchowski & Rockette (1995) for readers (here seeds) and cases (here images). Student's t with
  Satterthwaite's degrees of freedom (for readers: Hillis 2007) covers 92 % at 3 seeds: where these agree by chance, the
  degrees are taken to be many. In the degrees alone the seeds' variance is therefore counted three times, which gives
  94 to 96 % from 3 seeds on, whatever the shares of the two levels. With 2 seeds nothing of the kind holds.
  Percentiles of a bootstrap over both levels cover 77 to 93 % at 3 seeds, the less the more the seeds matter.

tests/experiments/evidence/test_coverage.py measures the coverage of all three, and how often a test errs.
"""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit
from scipy.stats import rankdata

from experiments.evidence.effect_size import CONFIDENCE, EffectSize, effect_size
from experiments.evidence.resampling import Counts, Floats, addends, bootstrap_roots, influence, refuse_images, swap_p

KINDS = {
    "seeds": "other seeds, the same images",
    "images": "other images, the same trained networks",
    "both": "other seeds and other images",
}
TESTS = {
    "signed-rank": "exact Wilcoxon signed-rank test over seeds, on the same images",
    "swap": "permutation test that swaps the two variants' results on an image, of the same trained networks",
    "both": "paired t test over seeds and images",
}
NEEDED_SEEDS = {"seeds": 2, "images": 1, "both": 3}
SEED_WEIGHT = 3.0  # see above
RESAMPLES = 10_000

Name = TypeVar("Name", bound=Hashable)
Cells = Mapping[str, Mapping[int, NDArray[np.generic] | Counts]]  # variant -> seed -> what is known of the test images


@dataclass(frozen=True)
class Estimate:
    """Mean of n values, one a seed; std is of the sample (n - 1), low and high bound the 95 % interval of the mean.

    `kind` says what the interval allows for. What a design cannot give is NaN, and `reason` says why.
    """

    n: int
    mean: float
    std: float
    low: float
    high: float
    kind: str = "seeds"
    images: int = 0  # 0 where the interval knows nothing of images
    reason: str = ""

    def times(self, factor: float) -> "Estimate":
        """The same in another unit."""
        mean, std, low, high = (factor * value for value in (self.mean, self.std, self.low, self.high))
        return replace(self, mean=mean, std=std, low=low, high=high)

    @property
    def meaning(self) -> str:
        """What the interval allows for and from how many, for a footnote."""
        held = {"seeds": f"{self.n} seeds", "images": f"{self.images} images"}
        held["both"] = f"{held['seeds']} and {held['images']}"
        return f"95 % interval for {KINDS[self.kind]}, from {held[self.kind]}"


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, sample standard deviation and Student's t interval (n - 1 degrees of freedom); NaN values are left out."""
    x = np.array([value for value in values if not math.isnan(value)], dtype=np.float64)
    return WeightedScore(x).estimate("seeds")


def paired_difference(values: Mapping[int, float], reference: Mapping[int, float]) -> Estimate:
    """Estimate of values - reference over the seeds in both.

    Paired, because a seed fixes the order of the images in both arms: what they share cancels in the difference.
    """
    return estimate([values[seed] - reference[seed] for seed in values if seed in reference])


@dataclass(frozen=True)
class Test:
    """Two-sided p that a difference is zero; `adjusted` is Holm's over the family of comparisons. NaN with a reason."""

    __test__ = False  # pytest would collect the class by its name

    name: str
    p: float
    reason: str = ""
    adjusted: float = math.nan

    @property
    def mark(self) -> str:
        """A star where the adjusted p is below 5 %."""
        return "*" if self.adjusted < 1 - CONFIDENCE else ""


@dataclass(frozen=True)
class Spread:
    """Variance of a mean, by what moves it, each part with the seeds or images it was measured from (0 variance: none).

    `df`, for Student's t, is Satterthwaite's, with the seeds' variance counted SEED_WEIGHT times.
    """

    over_seeds: float
    seeds: int
    over_images: float
    images: int

    @property
    def error(self) -> float:
        """The standard error of the mean."""
        return math.sqrt(self.over_seeds + self.over_images)

    @property
    def df(self) -> float:
        parts = (SEED_WEIGHT * self.over_seeds, self.seeds - 1), (self.over_images, self.images - 1)
        return sum(part for part, _ in parts) ** 2 / sum(part**2 / df for part, df in parts if part)

    def half_width(self, level: float = 1 - CONFIDENCE) -> float:
        """Of the interval that is missed with the probability `level`."""
        return float(-stdtrit(self.df, level / 2)) * self.error if self.error else 0.0


@dataclass(frozen=True)
class WeightedScore:
    """A weighted sum of variants' scores, seed by seed: one variant's score, a difference, an effect of a factor."""

    values: Floats  # (S,)
    images: int = 0
    over_images: float = math.nan  # variance of the mean over these seeds, scored on other images
    in_common: float = math.nan  # the part of it that all seeds share, also those to come
    reason: str = "no scores of single images"  # why there is no interval over images

    @property
    def mean(self) -> float:
        return float(self.values.mean()) if len(self.values) else math.nan

    @property
    def std(self) -> float:
        return float(self.values.std(ddof=1)) if len(self.values) > 1 else math.nan

    def refuse(self, kind: str) -> str:
        """Why there is no interval of this kind; empty where there is one."""
        seeds, needed = len(self.values), NEEDED_SEEDS[kind]
        if seeds < needed:
            return f"needs {needed} seed{'s' if needed > 1 else ''}, got {seeds}"
        return "" if kind == "seeds" else self.reason

    def spread(self, kind: str) -> Spread:
        """What the interval of this kind is made of, which must not be refused."""
        seeds = len(self.values)
        over_seeds = 0.0 if kind == "images" else self.std**2 / seeds
        over_images = {"seeds": 0.0, "images": self.over_images, "both": self.in_common}[kind]
        return Spread(over_seeds, seeds, over_images, self.images)

    def estimate(self, kind: str) -> Estimate:
        """Mean, deviation over the seeds and the 95 % interval of this kind."""
        reason, images = self.refuse(kind), 0 if kind == "seeds" else self.images
        half = math.nan if reason else self.spread(kind).half_width()
        low, high = self.mean - half, self.mean + half
        return Estimate(len(self.values), self.mean, self.std, low, high, kind, images, reason)

    def test(self, kind: str) -> Test:
        """The t test that belongs to the interval of this kind: p is 5 % where the interval ends at zero."""
        reason = self.refuse(kind)
        spread = None if reason else self.spread(kind)
        if spread is None or spread.error <= 1e-12 * abs(self.mean):
            return Test(kind, math.nan, reason or "the values do not vary")
        return Test(kind, float(2 * stdtr(spread.df, -abs(self.mean) / spread.error)))


def make_contrasts(
    cells: Cells,
    weights: Mapping[Name, Mapping[str, float]],
    score: str = "miou",
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    class_names: Sequence[str] = (),
) -> dict[Name, WeightedScore]:
    """A WeightedScore for every entry of `weights`, which weighs variants, over the seeds that all of them have.

    An array of `cells` holds the test images in the same order for all: confusion matrices (n, C, C), rows truth, for
    a score of `resampling.addends`, or (n,) numbers for the score "mean". All contrasts see the same resamples.
    """
    return _contrasts(_Sums(cells, score), weights, resamples, seed, class_names)


class _Sums:
    """What each image adds to the score's sums (cells, n, K), and what that makes of the score.

    `value` is the score of each cell (cells,), `moved` what each image does to it (cells, n).
    """

    def __init__(self, cells: Cells, score: str) -> None:
        order = [(variant, seed) for variant, of_seeds in cells.items() for seed in of_seeds]
        arrays = [cells[variant][seed] for variant, seed in order]
        shapes = {array.shape for array in arrays}
        if len(shapes) > 1:
            raise ValueError(f"cells must be scored on the same images and classes, got the shapes {sorted(shapes)}")
        self.score, self.place = score, {cell: index for index, cell in enumerate(order)}
        self.seeds = {variant: list(of_seeds) for variant, of_seeds in cells.items()}
        of_images = _stack(arrays, score)
        # An image without a label counts nowhere, nor does one without the class of a score of one class.
        counts = of_images.any(axis=(1, 2))
        self.cells = (of_images if counts.all() else of_images[counts]).transpose(1, 0, 2)
        self.value, self.moved = influence(self.cells, score)

    def places(self, variants: Iterable[str]) -> NDArray[np.intp]:
        """Where in `cells` the seeds are that all these variants have a score of: (variants, S)."""
        first, *others = variants
        seeds = [seed for seed in self.seeds[first] if all(seed in self.seeds[other] for other in others)]
        of_seeds = [[self.place[variant, seed] for seed in seeds] for variant in (first, *others)]
        places = np.array(of_seeds, dtype=np.intp)
        return places[:, ~np.isnan(self.value[places]).any(axis=0)]


def _stack(arrays: Sequence[NDArray[np.generic] | Counts], score: str) -> Floats:
    """What each image adds to the sums of each cell, (n, cells, K): one array of it, as it can take hundreds of
    megabytes."""
    stacked = np.empty((0, 0, 2))
    for index, array in enumerate(arrays):
        added = addends(array, score)
        if not index:
            stacked = np.empty((len(added), len(arrays), added.shape[-1]))
        stacked[:, index] = added
    return stacked


def _contrasts(
    sums: _Sums, weights: Mapping[Name, Mapping[str, float]], resamples: int, seed: int, class_names: Sequence[str]
) -> dict[Name, WeightedScore]:
    images, weighted, rows = sums.cells.shape[1], dict[Name, WeightedScore](), dict[Name, Floats]()
    for name, factors in weights.items():
        places, factor = sums.places(factors), np.array(list(factors.values()), dtype=np.float64)
        values = factor @ sums.value[places]
        reason = (
            refuse_images([sums.cells[place] for place in places.flat], sums.score, class_names)
            if places.size
            else "no scores"
        )
        if reason:
            weighted[name] = WeightedScore(values, images, reason=reason)
            continue
        rows[name] = np.zeros(len(sums.cells))
        np.add.at(rows[name], places, factor[:, None] / places.shape[1])
        by_seed = np.einsum("v,vsi->si", factor, sums.moved[places])
        covariance, seeds = by_seed @ by_seed.T, len(by_seed)
        pairs = seeds * (seeds - 1)
        in_common = max(float(covariance.sum() - covariance.trace()) / pairs, 0.0) if pairs else math.nan
        weighted[name] = WeightedScore(values, images, float(covariance.sum()) / seeds**2, in_common, reason="")
    if rows:
        matrix = np.stack(list(rows.values()))
        roots = np.sort(bootstrap_roots(sums.cells, matrix, sums.score, resamples=resamples, seed=seed))
        rank = min(math.ceil(CONFIDENCE * (resamples + 1)), resamples) - 1
        student = -float(stdtrit(images - 1, (1 - CONFIDENCE) / 2))
        for name, quantile in zip(rows, roots[:, rank], strict=True):
            # So that Student's t of these variances gives the bootstrap's interval.
            scale, score = float(quantile / student) ** 2, weighted[name]
            over_images, in_common = scale * score.over_images, scale * score.in_common
            reason = "" if 0 < over_images < math.inf else "too few images differ"
            weighted[name] = replace(score, over_images=over_images, in_common=in_common, reason=reason)
    return {name: weighted[name] for name in weights}


def signed_rank_test(differences: Sequence[float], comparisons: int = 1) -> Test:
    """Wilcoxon's signed-rank test, two-sided, its p counted out over all signs, ties included; zeros are left out.

    Refused where no outcome could be significant: n seeds give p = 2^(1 - n) at best, 0.0625 with 5. With more
    `comparisons` that smallest p is Holm's, p times their number.
    """
    d = np.array([value for value in differences if value and not math.isnan(value)], dtype=np.float64)
    best, level = 2.0 ** (1 - len(d)) * comparisons, 1 - CONFIDENCE
    if best >= level:
        needed = math.floor(1 + math.log2(comparisons / level)) + 1
        of_all = f" over {comparisons} comparisons" if comparisons > 1 else ""
        reason = f"not enough seeds: {len(d)} give p = {min(best, 1):.2g} at best{of_all}, {needed} are needed"
        return Test("signed-rank", math.nan, reason)
    ranks = np.rint(2 * rankdata(np.abs(d))).astype(np.int64)  # doubled: the mean rank of a tie may end in a half
    ways = np.ones(1)  # of each sum of positive ranks
    for rank in ranks:
        ways = np.append(ways, np.zeros(rank)) + np.append(np.zeros(rank), ways)
    centre = ranks.sum() / 2
    distance = np.abs(np.arange(len(ways)) - centre)
    far = distance >= abs(ranks[d > 0].sum() - centre)
    return Test("signed-rank", float(ways[far].sum() / ways.sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p of a family of comparisons: below 5 % holds, with 95 % for all of them together.

    NaN, a test that was refused, stays NaN and is not of the family.
    """
    p = np.array(p_values, dtype=np.float64)
    adjusted = np.full(len(p), math.nan)
    order = [index for index in np.argsort(p) if not math.isnan(p[index])]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * p[order]), 1)
    return [float(value) for value in adjusted]


@dataclass(frozen=True)
class Difference:
    """A variant against the baseline, paired by seed and image; `tests` by their names in TESTS."""

    contrast: WeightedScore
    tests: dict[str, Test]
    effect: EffectSize


@dataclass(frozen=True)
class AgainstBaseline:
    """Every variant's score, and the difference to the baseline of every other; both in the order of the cells."""

    score: str
    baseline: str
    scores: dict[str, WeightedScore]
    differences: dict[str, Difference]


def compare(
    cells: Cells,
    baseline: str,
    score: str = "miou",
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    class_names: Sequence[str] = (),
) -> AgainstBaseline:
    """All variants against the baseline. For each test the differences are the family that Holm's p is adjusted for.

    Arguments as for `make_contrasts`; the same seed gives the same numbers.
    """
    if baseline not in cells:
        raise ValueError(f"the baseline must be one of the variants {', '.join(cells)}, got {baseline!r}")
    sums, others = _Sums(cells, score), [variant for variant in cells if variant != baseline]
    weights = {("score", variant): {variant: 1.0} for variant in cells}
    weights |= {("difference", variant): {variant: 1.0, baseline: -1.0} for variant in others}
    contrasts = _contrasts(sums, weights, resamples, seed, class_names)
    tests = dict[str, list[Test]]()
    family = sum(bool(len(contrasts["difference", variant].values)) for variant in others)  # those with a common seed
    for variant in others:
        contrast = contrasts["difference", variant]
        signed_rank = signed_rank_test(contrast.values.tolist(), max(family, 1))
        swapped = _swap_test(sums, variant, baseline, contrast, resamples, seed)
        for test in (signed_rank, swapped, contrast.test("both")):
            tests.setdefault(test.name, []).append(test)
    adjusted = {name: adjust(of_name) for name, of_name in tests.items()}
    differences = {}
    for index, variant in enumerate(others):
        contrast = contrasts["difference", variant]
        of_variant = {name: of_name[index] for name, of_name in adjusted.items()}
        differences[variant] = Difference(contrast, of_variant, effect_size(contrast.values.tolist()))
    return AgainstBaseline(score, baseline, {variant: contrasts["score", variant] for variant in cells}, differences)


def adjust(tests: Sequence[Test]) -> list[Test]:
    """The tests of a family with Holm's adjusted p."""
    return [replace(test, adjusted=p) for test, p in zip(tests, holm([test.p for test in tests]), strict=True)]


def _swap_test(sums: _Sums, variant: str, baseline: str, contrast: WeightedScore, resamples: int, seed: int) -> Test:
    reason = contrast.refuse("images")
    if reason:
        return Test("swap", math.nan, reason)
    ours, theirs = (sums.cells[places] for places in sums.places((variant, baseline)))
    return Test("swap", swap_p(ours, theirs, sums.score, resamples=resamples, seed=seed))
