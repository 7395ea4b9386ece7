"""Is the difference real?"""

from collections.abc import Callable
from typing import Any


def a(answer: Any) -> None:
    """Beyond the upper end, 1.42: a smaller gain is possible, and so is a loss of up to 4.25."""
    assert abs(abs(float(answer)) - 4.25) > 1e-6, "That end is about losses."
    assert abs(float(answer) - 1.42) < 1e-6, "The interval holds what is possible. Where do the possible gains end?"


def b(answer: Any) -> None:
    """1 - 0.95 to the power of 20 = 0.64. Above it was less: those twenty share a baseline, so they err together."""
    assert abs(float(answer) - 0.05) > 1e-9, "That is one comparison."
    assert abs(float(answer) - (1 - 0.95**20)) < 0.006, "The chance that none of them errs is 0.95 x 0.95 x ..."


def c(answer: Callable[[float, float, float], Any]) -> None:
    """An interval can leave out zero and lie within the margin, too: it differs, by an amount that may not matter."""
    cases = {
        (-2.0, 3.0, 1.0): "open",
        (-0.4, 0.7, 1.0): "equivalent",
        (-0.4, 1.2, 1.0): "open",
        (0.5, 3.0, 1.0): "differs",
        (-9.0, -0.1, 1.0): "differs",
        (0.2, 0.6, 1.0): "differs",
    }
    for (low, high, margin), right in cases.items():
        got = answer(low, high, margin)
        assert got == right, f"[{low}, {high}] with a margin of {margin} is {right!r}, not {got!r}."
