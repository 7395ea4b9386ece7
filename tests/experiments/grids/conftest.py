"""Grids that are run, each cell in this process."""

from typing import Any

import pytest
from interrupt import QUIET

from experiments.grids import command
from experiments.grids.cells import PlannedCell
from experiments.runs.training import train


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cells that were trained, by folder and seed."""
    trained: list[str] = []

    def run_cells(cells: Any, *args: Any, **kwargs: Any) -> list[PlannedCell]:
        for cell in cells:
            if cell.result is None:
                train(cell.run, cell.folder, test=cell.tests, **QUIET)
                trained.append(f"{cell.variant} {cell.run.seed}")
        return []

    monkeypatch.setattr(command, "run_cells", run_cells)
    monkeypatch.setattr("experiments.reports.write.write_report", lambda out: None)
    return trained
