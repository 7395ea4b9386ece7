"""Cells of a grid in a store: a place for each, and what comes from there."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from interrupt import QUIET
from test_graph import ALONE, BASE

from experiments.grids import cells, tuning
from experiments.grids.cell import log_kept, take_up, with_parents
from experiments.grids.cells import PlannedCell, collect
from experiments.grids.launchers.base import Asked
from experiments.runs.run import Run
from experiments.runs.training import train
from experiments.shell.ending import IN_USE
from experiments.shell.files import read_json, write_json
from experiments.shell.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "kept"))


def asked(cell: PlannedCell, store: Store) -> tuple[str, Asked]:
    write_json(cell.folder / "run.json", cell.run.record())
    one = cells._asked(cell, [], store)
    return one.flags[one.flags.index("--store") + 1], one


def test_trials_of_two_variants_with_the_same_values_have_places_of_their_own(tmp_path: Path, store: Store) -> None:
    out = tmp_path / "grid" / tuning.FOLDER
    trials = [
        PlannedCell(name, BASE.but(width=width), out / name / "lr-1" / "seed99", 2, tests=False)
        for name, width in (("narrow", 2), ("wide", 4))
    ]
    (one, first), (two, second) = (asked(trial, store) for trial in trials)
    assert one != two and first.scratch != second.scratch
    for place, miou, trial in ((one, 0.25, trials[0]), (two, 0.5, trials[1])):
        write_json(result := tmp_path / "result.json", {"hash": trial.run.hash, "val": {"miou": miou}})
        Store(place).send(result)
    collect(trials, store)
    assert [trial.result and trial.result["val"]["miou"] for trial in trials] == [0.25, 0.5]


def test_a_cell_that_ran_here_keeps_its_log(tmp_path: Path, store: Store) -> None:
    cell = PlannedCell("v", BASE, tmp_path / "grid" / "v" / "seed0", 2)
    place = Store(asked(cell, store)[0])
    (cell.folder / "log.txt").write_text("epoch 1\n")
    place.pull(cell.folder)
    place.push(cell.folder)
    (cell.folder / "log.txt").write_text("epoch 1\nerror: the loss is NaN\n")
    cells._collect(cell, store)
    assert cells._why(cell) == "error: the loss is NaN"


@pytest.mark.parametrize(("code", "last"), [(2, "error: why"), (IN_USE, "epoch 1")])
def test_the_line_that_a_cell_ends_with_comes_to_the_store(code: int, last: str, tmp_path: Path, store: Store) -> None:
    for text in ("epoch 1", "error: why"):
        (tmp_path / "log.txt").write_text(text)
        if text == "epoch 1":
            store.send(tmp_path / "log.txt")
    with pytest.raises(SystemExit), log_kept(lambda: store, tmp_path):
        sys.exit(code)
    assert (tmp_path / "kept" / "log.txt").read_text() == last


def test_what_another_run_has_left_on_a_machine_is_not_taken_for_this_one(tmp_path: Path, store: Store) -> None:
    scratch = tmp_path / "scratch" / "v" / "seed0"
    write_json(scratch / "run.json", BASE.but(width=8).record())
    write_json(scratch / "checkpoints" / "last.ckpt", {})
    write_json(run := tmp_path / "run.json", BASE.record())
    store.send(run)
    for _ in range(2):
        take_up(store, scratch)
        assert Run.from_config(read_json(scratch / "run.json")).hash == BASE.hash
        assert [path.name for path in scratch.iterdir()] == ["run.json"]
    assert (scratch.with_name("seed0.old1") / "checkpoints" / "last.ckpt").exists()


def test_cells_that_do_not_end_keep_no_other_from_being_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "STOP_SECONDS", 0.1)
    killed: list[str] = []

    class Slow:
        returncode, lost, place = None, "", ""

        def __init__(self, name: str) -> None:
            self.name = name

        def poll(self) -> None:
            return None

        def terminate(self) -> None: ...

        def kill(self) -> None:
            killed.append(self.name)

        def wait(self, timeout: float) -> int:
            raise subprocess.TimeoutExpired("cell", timeout)

    planned = [PlannedCell(name, BASE, tmp_path / name, 2, process=Slow(name)) for name in "ab"]
    cells._stop(planned)
    assert killed == ["a", "b"]


def test_a_child_begins_with_the_weights_of_a_parent_that_was_trained_elsewhere(tmp_path: Path, store: Store) -> None:
    parent = tmp_path / "there" / "base" / "seed0"
    steps = train(BASE, parent, store=store.at("base", "seed0"), **QUIET)["steps"]
    child = ALONE.after({str(parent / "checkpoints" / "last.ckpt"): f"run:{BASE.hash}@{steps}"})
    shutil.rmtree(tmp_path / "there")
    with pytest.raises(FileNotFoundError, match="is not there"):
        child.check_parents()
    here = tmp_path / "scratch" / "none" / "seed0"
    found = with_parents(child, store.at("none", "seed0"), here)
    found.check_parents()
    assert found.hash == child.hash
    (path,) = found.parents
    assert Path(path) == tmp_path / "scratch" / "base" / "seed0" / "checkpoints" / "last.ckpt"
    assert train(found, here, **QUIET)["status"] == "done"
