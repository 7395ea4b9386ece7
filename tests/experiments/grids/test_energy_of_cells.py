"""--energy of an ablation reaches the process of each training, and no name of it changes."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from interrupt import BASE

from experiments.grids import command
from experiments.grids.ablation import Ablation, variants
from experiments.grids.command import add_arguments, run_ablation
from experiments.shell.files import write_json
from experiments.shell.flags import Parser


def grid() -> Ablation:
    runs = variants(BASE.but(trainer={"max_epochs": 1}), {"a": {"dropout": 0.0}, "b": {"dropout": 0.2}})
    return Ablation(name="energies", question="?", runs=runs, factors={"dropout": (0.0, 0.2)}, baseline="a")


def parsed(*words: str) -> argparse.Namespace:
    parser = Parser(description=None)
    add_arguments(parser)
    return parser.parse_args([*words])


@pytest.mark.extra("energy", "codecarbon")
@pytest.mark.usefixtures("one_figure")
def test_each_cell_measures_and_the_console_says_why_there_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = parsed("--out", str(tmp_path / "grid"), "--seeds", "0", "--energy", "--jobs", "1", "--threads", "1")
    assert run_ablation(grid(), args) == 0
    logs = [(tmp_path / "grid" / variant / "seed0" / "log.txt").read_text(encoding="utf-8") for variant in "ab"]
    results = [json.loads((tmp_path / "grid" / v / "seed0" / "result.json").read_text()) for v in "ab"]
    lines = [[line for line in log.splitlines() if "energy: " in line] for log in logs]
    assert [len(of_cell) for of_cell in lines] == [1, 1]
    if not any("energy" in result for result in results):  # a machine with counters has them
        told = f"2 of 2 trainings have no energy: {lines[0][0].removeprefix('no energy: ')}"
        assert told in capsys.readouterr().out


def test_a_grid_hands_the_flag_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, hashes = list[bool](), list[list[str]]()

    def run_cells(cells: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(kwargs["energy"])
        hashes.append([cell.run.hash for cell in cells])
        for cell in cells:
            test = {"miou": 0.5}
            write_json(cell.folder / "result.json", {"hash": cell.run.hash, "status": "done", "test": test})
        return cells

    monkeypatch.setattr(command, "run_cells", run_cells)
    monkeypatch.setattr(command, "check_installed", lambda: None)
    for number, words in enumerate(([], ["--energy"])):
        run_ablation(grid(), parsed("--out", str(tmp_path / str(number)), "--seeds", "0", *words))
    assert asked == [False, True]
    assert hashes[0] == hashes[1]
