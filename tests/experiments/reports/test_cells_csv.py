"""cells.csv: every count of every cell, for a model of one's own, which agrees with the report."""

import csv
import json
import runpy
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from documents import ROOT, blocks
from handmade import CLASSES, change_plan, move, plant, save_npz, write_experiment
from scipy.stats import t

from experiments.evidence.experiment import Experiment, load_experiment
from experiments.report import main
from experiments.reports.cells import MOST_ROWS, count_rows, write_cells
from experiments.shell.files import write_atomic

BASELINE = "transposed-3+concat"


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [*csv.DictReader(file)]


def test_a_row_a_variant_seed_image_and_class_that_is_there(tmp_path: Path) -> None:
    write_experiment(tmp_path)
    path = tmp_path / "nearest+none" / "seed2" / "per_image.npz"
    with np.load(path) as stored:
        arrays = dict(stored)
    arrays["confusion"][1] = [[50, 0, 7], [0, 0, 0], [0, 0, 0]]  # the second class is not there, the third is predicted
    save_npz(path, **arrays, groups=np.array(["left", "right"]))
    experiment = load_experiment(tmp_path)
    write_cells(tmp_path / "cells.csv", [experiment])
    found = read(tmp_path / "cells.csv")
    assert len(found) == count_rows([experiment]) == 4 * 3 * 2 * 2
    assert [[*row.values()] for row in found[-2:]] == [
        ["nearest+none", "2", "b.png", "right", "background", "50", "57", "57", "50"],
        ["nearest+none", "2", "b.png", "right", f"'{CLASSES[2]}", "0", "7", "0", "7"],  # no formula
    ]
    assert found[0]["group"] == "" and found[-4]["group"] == "left"
    sums = [
        [int(row[key]) for row in found if (row["variant"], row["seed"]) == (BASELINE, "1")] for key in row_numbers()
    ]
    cell = experiment.cells[BASELINE][1]
    right, true, predicted = (
        int(array.sum()) for array in (cell.counts.right, cell.counts.true, cell.counts.predicted)
    )
    assert [sum(of_one) for of_one in sums] == [right, true + predicted - right, true, predicted]


def row_numbers() -> tuple[str, ...]:
    return ("intersection", "union", "true", "predicted")


def test_names_that_a_spreadsheet_would_run_are_text(tmp_path: Path) -> None:
    write_experiment(tmp_path, seeds=1)
    plan = json.loads((tmp_path / "plan.json").read_text())
    plan["variants"]["=1+1"] = plan["variants"].pop("nearest+none")
    (tmp_path / "nearest+none").rename(tmp_path / "=1+1")
    change_plan(tmp_path, variants=plan["variants"])
    path = tmp_path / "=1+1" / "seed0" / "per_image.npz"
    with np.load(path) as stored:
        save_npz(path, **{**stored, "names": np.array(["@a", "-b"]), "groups": np.array(["+c", '",=d'])})
    write_cells(tmp_path / "cells.csv", [load_experiment(tmp_path)])
    with (tmp_path / "cells.csv").open(newline="", encoding="utf-8") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert {"'=1+1", "'@a", "'-b", "'+c", '",=d'} <= {*cells}
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]


@pytest.mark.usefixtures("one_figure")
def test_the_report_writes_it_and_leaves_out_what_is_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        write_experiment(tmp_path / name, seeds=1)
        change_plan(tmp_path / name, experiment=f"={name}")
    arguments = ["report", str(tmp_path / "one"), str(tmp_path / "two"), "--out", str(tmp_path)]
    path = tmp_path / "cells.csv"
    monkeypatch.setattr("sys.argv", arguments)
    main()
    assert [row["experiment"] for row in read(path)] == ["'=one"] * 16 + ["'=two"] * 16
    assert "cells.csv" not in capsys.readouterr().out
    monkeypatch.setattr("experiments.reports.write.MOST_ROWS", 31)
    main()
    assert not path.exists()  # the one of before could be of other cells
    assert "not written: cells.csv, of 32 rows; --cells writes it" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", [*arguments, "--cells"])
    main()
    assert len(read(path)) == 32 and "not written" not in capsys.readouterr().out


def test_it_is_never_held_whole(tmp_path: Path) -> None:
    plant(tmp_path, seeds=1, images=4000)
    experiment = load_experiment(tmp_path)
    tracemalloc.start()
    write_cells(tmp_path / "cells.csv", [experiment])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = (tmp_path / "cells.csv").stat().st_size
    assert count_rows([experiment]) == 4 * 4000 * 2 < MOST_ROWS and size > 1_000_000 > peak


def standard_errors(experiment: Experiment) -> dict[str, float]:
    """Of the report's differences, in points, from the interval that each has by itself."""
    return {
        name: 100 * (row.own_high - row.own_low) / 2 / float(t.ppf(0.975, row.df))
        for name, row in experiment.comparisons.items()
    }


@pytest.mark.extra("dev", "statsmodels")
@pytest.mark.parametrize("seeds_differ", [True, False])
@pytest.mark.filterwarnings("ignore::UserWarning")  # statsmodels warns of a variance of 0 in several ways
def test_the_mixed_model_of_the_documentation_agrees_with_the_report(
    seeds_differ: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(tmp_path)
    for variant in load_experiment(tmp_path).cells if seeds_differ else ():
        for seed, per_mille in enumerate((-40, 0, 40)):
            move(tmp_path, variant, seed, per_mille)
    experiment = load_experiment(tmp_path)
    write_cells(tmp_path / "cells.csv", [experiment])
    text = (ROOT / "docs" / "statistics.md").read_text(encoding="utf-8")
    (block,) = [block for block in blocks(text) if "statsmodels" in block.text]
    write_atomic(tmp_path / "block.py", block.text.replace("BASELINE", BASELINE))
    monkeypatch.chdir(tmp_path)
    model = runpy.run_path("block.py")["model"]
    for name, row in experiment.comparisons.items():
        term = next(term for term in model.params.index if term.endswith(f"[T.{name}]"))
        assert model.params[term] == pytest.approx(100 * row.estimate, abs=1e-6)
        ratio = model.bse[term] / standard_errors(experiment)[name]
        if seeds_differ:
            assert ratio == pytest.approx(1, abs=1e-3)
        else:  # the seeds' variance is estimated as 0
            assert model.cov_re.iloc[0, 0] < 1e-3 and 0.8 < ratio < 1
