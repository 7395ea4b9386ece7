"""The energy of trainings in a report: a column of the cost, and nothing where none was measured."""

import json
from pathlib import Path
from typing import Any

import pytest
from handmade import MIOU, rows, write_experiment, write_tables

from experiments.evidence.experiment import load_experiment
from experiments.reports import methods
from experiments.reports.citations import CODECARBON
from experiments.reports.tables.paper import paper_table
from experiments.reports.tables.scores import cost_table
from experiments.shell.citation import key_of

BASELINE, OTHER = [*MIOU][:2]
COUNTED = {"cpu": "1 CPU package, whatever else ran", "gpu": "1 x GPU", "dram": "all DRAM"}


def measure(folder: Path, variant: str, seed: int, **joules: float) -> None:
    path = folder / variant / f"seed{seed}" / "result.json"
    counted = {part: COUNTED[part] for part in joules}
    entry = {"joules": joules, "counted": counted, "by": "codecarbon 3.3.2"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"energy": entry}), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_experiment(tmp_path)
    return tmp_path


def column(folder: Path) -> dict[str, str]:
    table = cost_table(load_experiment(folder))
    assert table.columns[-1] == "energy (Wh)"
    return {row[0]: row[-1] for row in table.rows}


def test_a_report_without_energy_has_no_word_of_it(folder: Path) -> None:
    experiment = load_experiment(folder)
    table = cost_table(experiment)
    assert table.columns[-1] == "peak memory (MB)" and table.notes == []
    assert {len(row) for row in table.rows} == {len(table.columns)}
    assert "energy" not in methods.to_markdown([experiment]).lower().replace("checkerboard energy", "")
    write_tables(folder)
    assert "energy_wh_mean" not in rows(folder)[BASELINE]
    assert {row[1] for row in paper_table(experiment, ["energy"]).rows} == {"-"}


def test_the_mean_over_seeds_is_a_cost_with_a_note_on_what_is_counted(folder: Path) -> None:
    for variant, factor in ((BASELINE, 1.0), (OTHER, 2.0)):
        for seed, joules in enumerate((3600.0, 7200.0, 10800.0)):
            measure(folder, variant, seed, cpu=factor * joules, gpu=factor * 3600.0)
    assert column(folder) == {BASELINE: "3.00", OTHER: "6.00", **dict.fromkeys([*MIOU][2:], "-")}
    experiment = load_experiment(folder)
    notes = cost_table(experiment).notes
    assert "the CPU packages and the GPUs of the training" in notes[0] and "all that ran there meanwhile" in notes[0]
    assert notes[1:] == ["It was measured in 6 of 12 trainings."]
    table = paper_table(experiment, ["energy"])
    assert table.rows[0] == [BASELINE, "3.00"] and table.notes == notes
    write_tables(folder)
    assert rows(folder)[OTHER]["energy_wh_mean"] == "6" and rows(folder)[OTHER]["energy_wh_std"] == "2"
    assert "It was measured in 6 of 12 trainings." in (folder / "table.md").read_text(encoding="utf-8")


def test_only_parts_that_all_have_counted_are_added(folder: Path) -> None:
    measure(folder, BASELINE, 0, cpu=36.0, dram=7200.0)
    measure(folder, OTHER, 0, cpu=18.0)
    assert column(folder)[BASELINE] == "0.0100" and column(folder)[OTHER] == "0.0050"
    assert cost_table(load_experiment(folder)).notes[-1] == "Left out is what only some trainings counted: DRAM."
    measure(folder, OTHER, 1, gpu=1.0)
    table = cost_table(load_experiment(folder))
    assert table.columns[-1] == "peak memory (MB)"
    assert table.notes == ["No energy is shown: no part of the machine was counted in every measured training."]


def test_a_step_is_no_training_without_energy(folder: Path) -> None:
    for variant in MIOU:
        for seed in range(3):
            measure(folder, variant, seed, cpu=3600.0)
    path = folder / OTHER / "seed1"
    (path / "result.json").write_text(
        json.dumps({k: v for k, v in json.loads((path / "result.json").read_text()).items() if k != "energy"})
    )
    assert "11 of 12" in cost_table(load_experiment(folder)).notes[-1]
    run: dict[str, Any] = json.loads((path / "run.json").read_text()) | {"step": {"name": "crf", "options": {}}}
    (path / "run.json").write_text(json.dumps(run))
    assert len(cost_table(load_experiment(folder)).notes) == 1


def test_methods_say_and_cite_what_was_measured_with(folder: Path) -> None:
    measure(folder, BASELINE, 0, cpu=1800.0)
    measure(folder, OTHER, 0, cpu=3600.0)
    experiment = load_experiment(folder)
    text = dict(methods.methods(experiment))["Computation"]
    assert "2 of the 12 trainings used 1.50 Wh, by the counters of the CPU packages" in text
    assert f"codecarbon 3.3.2 [@{CODECARBON}]." in text
    assert key_of(CODECARBON) in methods.to_bibtex([experiment])
