"""How cells are dealt to GPUs and CPU cores, and in which order they are started."""

import os
from pathlib import Path

import pytest
import torch
from test_graph import BASE, STARTED, run

from experiments.grids.cells import PlannedCell
from experiments.grids.launchers.chosen import add_launcher, launcher_of
from experiments.grids.launchers.local import Gpus, Local, visible_gpus
from experiments.shell.flags import Parser


@pytest.fixture
def started() -> list[str]:
    STARTED.clear()
    return STARTED


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def launcher(*flags: str) -> Local:
    parser = Parser(description=None)
    add_launcher(parser)
    chosen = launcher_of(parser.parse_args([*flags]), Path("grid"))
    assert isinstance(chosen, Local)
    return chosen


@pytest.mark.parametrize(
    ("flags", "jobs", "devices", "dealt"),
    [
        ([], 2, "auto", [["0"], ["1"]]),
        (["--jobs", "1"], 1, "auto", [["0"]]),
        (["--gpus-per-cell", "0.5"], 4, "auto", [["0"], ["1"], ["0"], ["1"]]),
        (["--gpus-per-cell", "0.3"], 6, "auto", [["0"], ["1"], ["0"], ["1"], ["0"], ["1"]]),
        (["--jobs", "5"], 5, "auto", [["0"], ["1"], ["0"], ["1"], ["0"]]),  # a third of one each
        (["--gpus-per-cell", "2"], 1, "2", [["0", "1"]]),
        (["--devices", "2"], 1, "2", [["0", "1"]]),
    ],
)
@pytest.mark.usefixtures("two_gpus")
def test_gpus_are_dealt_in_shares_or_whole(flags: list[str], jobs: int, devices: str, dealt: list[list[str]]) -> None:
    chosen = launcher(*flags)
    assert (chosen.jobs, chosen.devices) == (jobs, devices)
    assert [chosen.gpus.take() for _ in range(jobs)] == dealt
    assert chosen.gpus.room() == (1 if jobs in (1, 5) and len(dealt[0]) == 1 else 0)
    chosen.gpus.give(dealt[0])
    assert chosen.gpus.take() == dealt[0]


def test_a_gpu_that_is_free_again_is_the_next_one() -> None:
    gpus = Gpus(["a", "b", "c"], 1)
    assert [gpus.take() for _ in range(3)] == [["a"], ["b"], ["c"]]
    gpus.give(["b"])
    assert gpus.room() == 1 and gpus.take() == ["b"] and gpus.room() == 0


def test_gpus_keep_the_names_that_this_process_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5e2a")
    assert visible_gpus() == ["3", "GPU-5e2a"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--gpus-per-cell", "1.5"], "a share of one GPU or a whole number, got 1.5"),
        (["--gpus-per-cell", "2", "--devices", "4"], "--devices 4 and --gpus-per-cell 2 disagree"),
        (["--gpus-per-cell", "0.004"], "--gpus-per-cell must be at least 0.01, got 0.004"),
        (["--gpus-per-cell", "3"], "a cell on 3 GPUs does not fit on this machine, which has 2"),
    ],
)
@pytest.mark.usefixtures("two_gpus")
def test_gpus_that_a_cell_cannot_have_are_refused(flags: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        launcher(*flags)


def test_without_a_gpu_cells_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert launcher().jobs == 8 and launcher("--threads", "4").jobs == 2 and launcher("--devices", "2").jobs == 4
    assert launcher("--threads", "16").jobs == 1
    with pytest.raises(ValueError, match=r"--gpus-per-cell 0\.5 needs a GPU, and this machine has none"):
        launcher("--gpus-per-cell", "0.5")


def test_of_one_seed_the_longest_begins_counting_what_waits_for_it(tmp_path: Path, started: list[str]) -> None:
    def cell(name: str, seed: int, **needs: PlannedCell) -> PlannedCell:
        return PlannedCell(name, BASE.but(seed=seed), tmp_path / name / f"seed{seed}", 2, needs=needs)

    long = {"short": 1.0, "long": 5.0, "parent": 2.0, "child": 4.0}
    planned = {}
    for seed in (1, 0):
        for one in (cell("short", seed), cell("long", seed), parent := cell("parent", seed)):
            planned[f"{one.variant} {seed}"] = one
        planned[f"child {seed}"] = cell("child", seed, parent=parent)
    run(planned, jobs=1, seconds=lambda cell: long[cell.variant])
    assert started == [f"{name} {seed}" for seed in (1, 0) for name in ("parent", "long", "child", "short")]
