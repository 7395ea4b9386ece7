"""Dilated convolution."""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

from torch import nn

from lightning_modules.analysis.receptive_field import receptive_field


def _seen(rates: Sequence[int]) -> set[int]:
    """The steps from an output to the pixels that reach it, along a line."""
    return {sum(steps) for steps in product(*[(-rate, 0, rate) for rate in rates])}


def _holes(rates: Sequence[int]) -> bool:
    return len(_seen(rates)) < 2 * sum(rates) + 1


def a(answer: Any) -> None:
    """31 + 2 x 16 = 63: every further doubling of the rate doubles the field."""
    assert answer != 32, "A kernel of 3 at rate r reaches r to each side, so it adds 2 r."
    assert answer == 16, "31 pixels, and 2 r more: what is r?"


def b(answer: Callable[[Sequence[int]], Any]) -> None:
    """1 + 2 x the sum of the rates; the library follows it through any network."""
    for rates in ([1], [1, 2, 4, 8], [2, 2, 2], [1, 2, 5], [3, 1]):
        layers = nn.Sequential(*(nn.Conv2d(1, 1, 3, dilation=rate) for rate in rates))
        size = receptive_field(layers, 1).size
        assert size is not None
        got = answer(rates)
        assert got == size[0], f"For rates {rates} it says {got!r}; the library finds {size[0]}."


def c(answer: Any) -> None:
    """(2, 4, 8) has even steps alone, (3, 3) steps of 3; and 6 is more than 1 + 1 can bridge: 3 is never reached."""
    asked = [(1, 2, 3), (2, 4, 8), (1, 2, 4), (3, 3), (1, 1, 6)]
    right = {rates for rates in asked if _holes(rates)}
    given = {tuple(rates) for rates in answer}
    for rates in asked:
        assert (rates in given) == (rates in right), f"Look at {rates} again: list the steps that it can make."
    assert given == right, "Only those of the list."
