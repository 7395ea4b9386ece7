"""A table as text, and how its numbers are written."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.evidence.estimate import Estimate
from experiments.evidence.experiment import Experiment
from experiments.evidence.family import Row
from lightning_modules.components.scores.table import Number


@dataclass(frozen=True)
class Table:
    """Text in rows; the first `texts` columns are words, the others numbers, a significant one with a star behind it.

    `best` holds the places, row and column, of the best value of a column; `notes` are printed below. What a report
    does with a table is said here and nowhere else: `short`, `caption` and, where the notes are too many words for a
    paper, `foot` and `heads`.
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
    foot: Sequence[str] | None = None  # below it in a paper, a sentence each; None: the notes
    heads: Sequence[str] = ()  # of its rows in a paper, where those of the report are too long


GMAC = "GMAC: billions of multiply-accumulates in the forward pass of one test image"


def as_sentence(clauses: Sequence[str]) -> str:
    """One sentence of clauses, such as "boundary F1: agreement of ..."."""
    text = "; ".join(clauses)
    first = text[:1] if text[1:2].isupper() else text[:1].upper()  # mIoU stays as it is
    return f"{first}{text[1:]}." if text else ""


def of_fewer(experiment: Experiment, shown: Mapping[str, Number]) -> list[str]:
    """A note on the scores that not all finished seeds of a variant have."""
    titles = [
        number.title
        for score, number in shown.items()
        if any(0 < experiment.estimate(name, score).n < len(of_one) for name, of_one in experiment.cells.items())
    ]
    return [f"Of fewer seeds than the column says, as not all have it: {', '.join(titles)}."] * bool(titles)


def mean_std(estimate: Estimate, digits: int) -> str:
    return f"{number(estimate.mean, digits)} ± {number(estimate.std, digits)}" if estimate.n else "-"


def interval(low: float, high: float, digits: int) -> str:
    return "-" if math.isnan(low) else f"[{number(low, digits)}, {number(high, digits)}]"


def starred(row: Row, digits: int = 2) -> str:
    """A difference with the interval that its star goes by."""
    if math.isnan(row.estimate):
        return "-"
    bounds = "[-]" if row.reason else interval(row.low, row.high, digits)
    return f"{signed(row.estimate, digits)} {bounds}{row.mark}"


def excluded(row: Row, digits: int = 1) -> str:
    """The size from which on, whatever the sign, the interval of a row without a star leaves differences out; rounded
    up."""
    return "-" if row.reason or row.star else f"{math.ceil(row.excluded * 10**digits - 1e-9) / 10**digits:.{digits}f}"


def p_value(p: float) -> str:
    return "-" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


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
