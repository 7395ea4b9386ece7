"""An exported network beside ours: the same logits at several sizes, or it is refused; and what each takes."""

import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from experiments.exporting.formats import Runner, Size, example
from lightning_modules.base import SegmentationModule
from lightning_modules.components.scores.confusion import predict_labels

MOST = 1e-4  # of the largest logit: float32 in another order of sums stays a hundred times below
SEEDS = (1, 2, 3)  # of the images of a network for one size
ROUNDS, WARM = 9, 2


class DiffersError(ValueError):
    """An exported network that is not ours."""


@dataclass(frozen=True)
class Difference:
    """What an export differs by from ours over all `sizes`.

    Args:
        largest: difference of two logits, as a share of the largest logit of the image
        labels: pixels with another label
        pixels: how many there are
    """

    sizes: tuple[Size, ...]
    largest: float
    labels: int
    pixels: int

    @property
    def sentence(self) -> str:
        places = ", ".join(dict.fromkeys(f"{height} x {width}" for height, width in self.sizes))
        return (
            f"the same as in PyTorch at {places}: logits differ by at most {self.largest:.1e} of the largest, "
            f"{self.labels} of {self.pixels:,} labels"
        )


def other_sizes(size: Size) -> tuple[Size, Size, Size]:
    """Three sizes beside that of the example: odd ones, ones that divide by 32, and larger ones."""
    return (97, 131), (64, 96), (size[0] + 37, size[1] + 58)


def compare(module: SegmentationModule, runner: Runner, size: Size, free: bool, what: str) -> Difference:
    """The logits of `runner` beside those of `module` at four sizes, or on four images where the size is not free.

    `what` is what an error calls the export. Raises DiffersError for another shape, for a logit that is another one by
    more than `MOST` of the largest, and where the export refuses an image.
    """
    images = [(size, 0), *((s, 0) for s in other_sizes(size))] if free else [(size, seed) for seed in (0, *SEEDS)]
    worst, labels, pixels = 0.0, 0, 0
    for place, seed in images:
        at = f"{what} at {place[0]} x {place[1]} pixels"
        x = example(module, place, seed)
        with torch.no_grad():
            ours = module(x)
            try:
                theirs = runner(x).detach()
            except Exception as error:  # of any kind, by the runtime
                cause = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                raise DiffersError(f"{at} fails ({cause}), so that nothing is written{_way_out(free)}") from error
        if theirs.shape != ours.shape:
            raise DiffersError(
                f"{at} returns logits of the shape {tuple(theirs.shape)} in place of {tuple(ours.shape)}, so that "
                f"nothing is written{_way_out(free)}"
            )
        share = float((theirs - ours).abs().max() / ours.abs().max().clamp(min=torch.finfo(ours.dtype).tiny))
        if not share <= MOST:  # NaN fails too
            raise DiffersError(
                f"{at} differs from the network by {share:.1e} of its largest logit, where {MOST:g} is allowed, so "
                f"that nothing is written{_way_out(free)}"
            )
        worst = max(worst, share)
        labels += int((predict_labels(theirs.contiguous()) != predict_labels(ours)).sum())
        pixels += theirs[0, 0].numel()
    return Difference(tuple(place for place, _ in images), worst, labels, pixels)


def _way_out(free: bool) -> str:
    return ": leave out --dynamic to export it for one --size" if free else ": choose another --format"


def seconds(runners: Sequence[Runner], images: Iterable[torch.Tensor]) -> list[float]:
    """The median seconds that each takes for an image, in turns, so that a busy moment meets all of them."""
    taken: list[list[float]] = [[] for _ in runners]
    with torch.inference_mode():
        for x in images:
            for turn in range(WARM + ROUNDS):
                for runner, times in zip(runners, taken, strict=True):
                    started = time.perf_counter()
                    runner(x)
                    if turn >= WARM:
                        times.append(time.perf_counter() - started)
    return [statistics.median(times) for times in taken]
