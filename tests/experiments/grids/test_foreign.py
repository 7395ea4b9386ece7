"""Data sets of strangers' forms train, and are asked an ablation by name, by a dataset.yaml alone."""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from studied import STUDY

from experiments.grids.command import run_grid
from experiments.grids.study_flags import parse_study
from experiments.reports.write import write_report
from experiments.train import main

sys.path.append(str(Path(__file__).parents[2] / "datamodules"))

from forms import FIVE, Form

pytestmark = pytest.mark.filterwarnings("ignore:W_")


# One of them by default: what lies otherwise is read by tests/datamodules/layouts, and trains alike.
SOME = [pytest.param(f, id=f.what, marks=() if i == 4 else pytest.mark.slow) for i, f in enumerate(FIVE)]


@pytest.mark.parametrize("form", SOME)
def test_a_form_trains_and_is_asked_an_ablation_by_name(
    form: Form, tmp_path: Path, in_process: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = form.make(tmp_path / "data"), tmp_path / "run"
    with (root / "dataset.yaml").open("a") as file:
        file.write("note: From a stranger.\n")
    words = ["--data", "folder", "--data.root", str(root)]
    main([*words, "--model.width", "4", "--model.depth", "1", "--trainer.max_epochs", "1", "--out", str(out)])
    result = json.loads((out / "result.json").read_text())
    assert 0 <= result["test"]["miou"] <= 1 and result.get("scored", "test") == form.scored
    assert f"{form.scored}/miou" in capsys.readouterr().out
    with np.load(out / "per_image.npz") as stored:
        assert stored["confusion"].shape[1:] == (len(form.layout["classes"]),) * 2

    grid = tmp_path / "grid"
    words += ["--epochs", "1", "--seeds", "0", "1", "2", "--out", str(grid)]
    study, settings, args = parse_study(STUDY, None, words)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert run_grid(lambda: study.asked(settings), study.experiment(settings), args) == 0
    assert len(in_process) == 6
    plan = json.loads((grid / "plan.json").read_text())
    assert plan.get("scored", "test") == form.scored
    text = write_report(grid).read_text(encoding="utf-8")
    assert "From a stranger." in text
    assert ("no test split" in text) is (form.scored == "val")
