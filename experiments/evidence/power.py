"""How many seeds or images an aim takes, from the deviations that an experiment has shown.

The deviations are themselves known from few seeds, so every number comes with what it could as well be.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace

from scipy.stats import chi2

from experiments.evidence.effect_size import CONFIDENCE, noncentral_t
from experiments.evidence.intervals import NEEDED_SEEDS, Spread, WeightedScore
from experiments.evidence.resampling import MIN_IMAGES

LIMIT = 2**20  # seeds or images, beyond which no number is given


@dataclass(frozen=True)
class Needed:
    """The smallest number of seeds or images for an aim; low and high by how well the deviation is known (95 %).

    None is more than LIMIT.
    """

    of: str
    known: int  # seeds or images that the deviation was measured from
    n: int | None
    low: int | None
    high: int | None
    reason: str = ""  # why there is no number

    def __str__(self) -> str:
        if self.reason:
            return self.reason
        n, low, high = (
            f"more than {LIMIT:,}" if value is None else f"{value:,}" for value in (self.n, self.low, self.high)
        )
        return f"{n} {self.of} ({low} to {high}, by what {self.known} {self.of} tell of their deviation)"


def needed_for_width(contrast: WeightedScore, half_width: float, *, kind: str = "seeds", of: str = "") -> Needed:
    """Seeds or images (`of`) until the interval of this kind is the mean plus and minus `half_width` or less.

    By default seeds; for kind "images", images. The others stay as many as they are. What the seeds add to kind "both"
    stays too, though a part of it would fall with more images: that number of images is rather too large.
    """
    return _needed(contrast, kind, of, lambda spread: spread.half_width() <= half_width)


def needed_to_detect(
    contrast: WeightedScore,
    difference: float,
    *,
    kind: str = "seeds",
    of: str = "",
    comparisons: int = 1,
    power: float = 0.8,
) -> Needed:
    """Seeds or images until a true `difference` is found significant with this probability, by the t test of this kind.

    At 5 % over the number of `comparisons`, what Holm asks of the smallest p. By the noncentral t distribution.
    """

    def found(spread: Spread) -> bool:
        if spread.error == 0:
            return True
        critical = spread.half_width((1 - CONFIDENCE) / comparisons) / spread.error
        return 1 - noncentral_t(critical, spread.df, abs(difference) / spread.error) >= power

    return _needed(contrast, kind, of, found)


def _needed(contrast: WeightedScore, kind: str, of: str, enough: Callable[[Spread], bool]) -> Needed:
    of = of or ("images" if kind == "images" else "seeds")
    if kind != "both" and of != kind:
        raise ValueError(f"an interval of kind {kind} does not depend on the number of {of}: of must be {kind}")
    counted = len(contrast.values) if of == "seeds" else contrast.images
    reason = contrast.refuse(kind)
    if reason:
        return Needed(of, counted, None, None, None, reason)
    now, first = contrast.spread(kind), NEEDED_SEEDS[kind] if of == "seeds" else MIN_IMAGES

    def smallest(scale: float) -> int | None:
        """With the variance that falls with their number scaled."""

        def reached(n: int) -> bool:
            if of == "seeds":
                return enough(replace(now, over_seeds=scale * now.over_seeds * now.seeds / n, seeds=n))
            return enough(replace(now, over_images=scale * now.over_images * now.images / n, images=n))

        high = first
        while high < LIMIT and not reached(high):
            high *= 2
        return first + bisect_left(range(first, high), True, key=reached) if reached(high) else None

    ends = [(counted - 1) / float(chi2.isf(tail, counted - 1)) for tail in ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)]
    n, low, high = smallest(1.0), smallest(ends[0]), smallest(ends[1])
    if n is None and kind == "both":
        other = f"{contrast.images} images" if of == "seeds" else f"{len(contrast.values)} seeds"
        reason = f"no number of {of} is enough: it takes more than the {other} as well"
    return Needed(of, counted, n, low, high, reason)
