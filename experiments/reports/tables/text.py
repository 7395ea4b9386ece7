"""A table as text, and how its numbers are written."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.evidence.experiment import Experiment
from experiments.evidence.intervals import Estimate, Test


@dataclass(frozen=True)
class Table:
    """Text in rows; the first `texts` columns are words, the others numbers, a significant one with a star behind it.

    `best` holds the places, row and column, of the best value of a column; `notes` are printed below. What a report
    does with a table is said here and nowhere else: `short`, `caption`, `before_plots` and `on_terminal`.
    """

    key: str
    title: str
    columns: list[str]
    rows: list[list[str]]
    texts: int = 1
    best: Sequence[tuple[int, int]] = ()
    notes: Sequence[str] = ()
    short: str = ""  # its title in the table of contents
    caption: str = ""  # in print; a table without one is not for print
    before_plots: bool = False  # on the page: above the plots rather than below them
    on_terminal: bool = False  # printed when the report is written


def mean_std(estimate: Estimate, digits: int) -> str:
    return f"{number(estimate.mean, digits)} ± {number(estimate.std, digits)}" if estimate.n else "-"


def seeds_interval(estimate: Estimate, digits: int) -> str:
    return "-" if estimate.n < 2 else interval_of(estimate, digits)


def interval_of(estimate: Estimate, digits: int) -> str:
    return f"[{number(estimate.low, digits)}, {number(estimate.high, digits)}]"


def p_value(test: Test) -> str:
    if math.isnan(test.adjusted):
        return "-"
    return "< 0.001" if test.adjusted < 0.001 else f"{test.adjusted:.3f}"


def signed(value: float, digits: int) -> str:
    text = number(value, digits)
    return text if text.startswith("-") or float(text) == 0 else f"+{text}"


def number(value: float | None, digits: int) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{value:z.{digits}f}"  # z: what rounds to zero has no sign


def millions(variant: Mapping[str, Any]) -> float | None:
    """Of a variant's parameters, where they were counted."""
    return None if variant["parameters"] is None else variant["parameters"] / 1e6


def seeds_listed(experiment: Experiment) -> str:
    """The planned seeds, for a caption."""
    return ", ".join(str(seed) for seed in experiment.plan["seeds"])


def seeds_done(experiment: Experiment, variant: str) -> str:
    done, planned = len(experiment.cells[variant]), len(experiment.plan["seeds"])
    return str(done) if done == planned else f"{done} of {planned}"
