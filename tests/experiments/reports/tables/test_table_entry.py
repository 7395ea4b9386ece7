"""A table is one entry: what every form of the report does with it is said in its own fields."""

from pathlib import Path

import pytest
from handmade import write_experiment

from experiments.evidence.experiment import Experiment, load_experiment
from experiments.reports import figures, tables
from experiments.reports.tables.text import Table
from experiments.reports.write import write_report


def made_up(experiment: Experiment) -> Table:
    rows = [[name, "7"] for name in experiment.plan["variants"]]
    return Table(
        "made-up",
        "A made-up title",
        ["variant", "sevens"],
        rows,
        short="Made up",
        caption="A made-up caption.",
    )


def test_a_table_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "TABLES", (*tables.TABLES, made_up))
    monkeypatch.setattr(figures, "FIGURES", {})  # they take ten seconds
    write_experiment(tmp_path)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "A made-up title" in (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "\\caption{A made-up caption.}" in (tmp_path / "table.tex").read_text(encoding="utf-8")
    assert '<a href="#e1-made-up">Made up</a>' in page and '<h3 id="e1-made-up">A made-up title' in page
    assert "Other tables" in page


def test_every_table_has_a_title_for_the_contents(tmp_path: Path) -> None:
    write_experiment(tmp_path)
    for table in tables.make_tables(load_experiment(tmp_path)):
        assert table.short and (table.caption or table.key == "seeds"), table.key  # every seed is not for print
