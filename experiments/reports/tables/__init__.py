"""The tables of a report, as text, and the notes that say what each number is."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from experiments.evidence.experiment import Experiment
from experiments.evidence.scored import as_scored
from experiments.reports.tables.errors import confusion_table, error_table
from experiments.reports.tables.evidence import (
    answer_table,
    evidence_table,
    factorial_table,
    networks_table,
    spread_table,
)
from experiments.reports.tables.fairness import fairness_table, tuning_table
from experiments.reports.tables.notes import make_notes
from experiments.reports.tables.scores import (
    class_table,
    comparison_table,
    cost_table,
    score_table,
    seed_table,
    size_table,
    speed_table,
    trimap_table,
)
from experiments.reports.tables.summary import make_summary
from experiments.reports.tables.text import Table

__all__ = ["Table", "make_notes", "make_summary", "make_tables"]

TABLES = (
    *(answer_table, factorial_table, comparison_table, evidence_table, spread_table, networks_table),
    *(score_table, cost_table, fairness_table, tuning_table),
    *(error_table, confusion_table, size_table, trimap_table, speed_table, class_table, seed_table),
)


def make_tables(experiment: Experiment, asked: Sequence[str] = ()) -> list[Table]:
    """The tables of every form of the report, in their order; those without rows are not shown.

    `asked` are further scores, by their names in `ASKED`.
    """
    made = [make(experiment, asked) if make in (score_table, seed_table) else make(experiment) for make in TABLES]
    return [_as_scored(table, experiment.plan) for table in made]


def _as_scored(table: Table, plan: Mapping[str, Any]) -> Table:
    return replace(
        table,
        title=as_scored(table.title, plan),
        short=as_scored(table.short, plan),
        caption=as_scored(table.caption, plan),
        notes=[as_scored(note, plan) for note in table.notes],
        foot=None if table.foot is None else [as_scored(note, plan) for note in table.foot],
    )
