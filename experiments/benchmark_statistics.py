"""What 10,000 resamples of images cost: intervals and tests of two variants, against a loop over the resamples.

python -m experiments.benchmark_statistics
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.flags import forgiving_output
from experiments.statistics import RESAMPLES, compare, make_contrasts
from lightning_modules.components.metrics import scores

VARIANTS, SEEDS, IMAGES, CLASSES = "ab", 3, 500, 21
ROUNDS, LOOPED = 5, 100  # resamples of the loop, whose time is scaled to RESAMPLES


def main() -> None:
    forgiving_output()
    generator = np.random.default_rng(0)
    shape = (len(VARIANTS), SEEDS, IMAGES, CLASSES, CLASSES)
    matrices = generator.poisson(generator.exponential(50, shape) * (1 + 20 * np.eye(CLASSES)))
    cells = {variant: dict(enumerate(of_variant)) for variant, of_variant in zip(VARIANTS, matrices, strict=True)}

    def loop() -> None:
        for _ in range(LOOPED):
            drawn = generator.integers(0, IMAGES, IMAGES)
            scores(matrices[:, :, drawn].sum(axis=2))["miou"].mean(axis=1)

    difference = {"difference": {"b": 1.0, "a": -1.0}}
    interval = _median(lambda: make_contrasts(cells, difference))
    everything = _median(lambda: compare(cells, "a"))
    naive = _median(loop) * RESAMPLES / LOOPED
    print(f"{RESAMPLES:,} resamples of {IMAGES} images x {CLASSES} classes, {SEEDS} seeds x {len(VARIANTS)} variants")
    print(f"interval of the difference    {interval:7.2f} s")
    print(f"all intervals and all tests   {everything:7.2f} s")
    print(f"loop over resamples           {naive:7.2f} s, {naive / interval:.0f} times the interval")


def _median(call: Callable[[], Any]) -> float:
    """Seconds."""
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
