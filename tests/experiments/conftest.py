"""Who is logged in to W&B, and to which server; an experiment to draw; grids that are run in this process."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from drawn import write_experiment
from interrupt import QUIET
from wandb_server import WandbServer

from experiments.evidence.experiment import Experiment
from experiments.grids import command
from experiments.grids.cells import PlannedCell
from experiments.reports import figures
from experiments.runs.training import train


@pytest.fixture
def wandb_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """The stand-in, with the environment of somebody who is logged in to it."""
    with WandbServer() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
        wandb.teardown()  # it reads the environment once a process
        yield server
        wandb.teardown()


@pytest.fixture
def nobody_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The environment of somebody without a key for W&B, whose server does not answer."""
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture
def one_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports draw one figure; all of them take ten seconds, and have tests of their own."""
    monkeypatch.setattr(figures, "FIGURES", {"scores": figures.FIGURES["scores"]})


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Everything is stored; tests only read it."""
    return write_experiment(tmp_path_factory.mktemp("figures") / "x")


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
