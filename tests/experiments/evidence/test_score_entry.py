"""A score is one entry of a table: all that stores, reads and prints scores finds it there."""

from pathlib import Path

import numpy as np
import pytest
from handmade import write_tables

from datamodules.shapes import ShapesDataModule
from experiments.evidence.cell import read_cell
from experiments.evidence.experiment import load_experiment
from experiments.reports.tables import make_tables
from experiments.runs.run import Run
from experiments.runs.training import train
from experiments.shell.files import write_json
from lightning_modules.components.scores.table import PER_IMAGE, Number, PerImage
from lightning_modules.unet import UNetModule

RUN = Run(
    module=UNetModule,
    datamodule=ShapesDataModule,
    hparams={"width": 2, "depth": 1},
    data={"size": 24, "length": 4, "batch_size": 2},
    trainer={"max_epochs": 1},
)
# The share of each class in the probabilities; of all images, that of the largest class.
DOMINANCE = PerImage(
    shape=("C",),
    kinds="f",
    compute=lambda batch: batch.logits.softmax(1).mean((2, 3)),
    reduce=lambda shares, confusion: {"dominance": float(shares.max() / shares.sum())},
    numbers={"dominance": Number("dominance", "Dominance: the share of the largest class in all probabilities.")},
    mean=lambda shares: shares.amax(1),
)


def test_a_score_that_is_one_entry_is_stored_read_and_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PER_IMAGE, "dominance", DOMINANCE)
    result = train(RUN, tmp_path / "unet" / "seed0", accelerator="cpu", enable_progress_bar=False)
    data = ShapesDataModule(**RUN.data)
    plan = {"experiment": "tiny", "question": "?", "baseline": "unet", "factors": {"a": ["b"]}, "seeds": [0]}
    plan |= {"variants": {"unet": {"levels": {"a": "b"}}}, "data": "shapes", "data_note": "", "scale_note": ""}
    plan |= {"class_names": data.class_names, "palette": data.palette, "common": {}}
    write_json(tmp_path / "plan.json", plan | {"command": "python", "device": "CPU", "commit": "ab"})

    with np.load(tmp_path / "unet" / "seed0" / "per_image.npz") as stored:
        shares = stored["dominance"]
    assert shares.shape == (len(data.dataset("test")), 3) and shares.sum(1) == pytest.approx(1)
    assert result["test"]["dominance"] == pytest.approx(shares.max(1).mean())
    experiment = load_experiment(tmp_path)
    cell = experiment.cells["unet"][0]
    assert np.array_equal(cell.arrays["dominance"], shares.sum(axis=0))
    expected = shares.sum(0).max() / shares.sum()
    assert cell.scores["dominance"] == pytest.approx(expected)
    table = next(table for table in make_tables(experiment) if table.key == "errors")
    assert table.columns[-1] == "dominance (%)" and table.rows[0][-1] == f"{100 * expected:.2f} ± -"
    assert table.notes[-1] == "Dominance: the share of the largest class in all probabilities."
    write_tables(tmp_path)
    assert "dominance_percent_mean" in (tmp_path / "table.csv").read_text()


def test_cells_without_it_are_read_and_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(RUN, tmp_path / "before", accelerator="cpu", enable_progress_bar=False)
    monkeypatch.setitem(PER_IMAGE, "dominance", DOMINANCE)
    cell = read_cell(tmp_path / "before", "unet", 0, ShapesDataModule(**RUN.data).class_names)
    assert "dominance" not in cell.arrays and np.isnan(cell.scores["dominance"])
