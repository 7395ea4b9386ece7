"""The groups of test images that a run stores beside their scores."""

from pathlib import Path

import numpy as np
import pytest
from test_train import QUIET, TINY, weights

from datamodules.shapes import ShapesDataModule
from experiments.runs.training import train


def test_groups_that_were_corrected_are_stored_without_training_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ShapesDataModule, "groups", lambda self, names: [f"drive {name[-1:]}" for name in names])
    train(TINY, tmp_path, **QUIET)
    with np.load(tmp_path / "per_image.npz") as stored:
        before = dict(stored)
    assert before["groups"].tolist() == [f"drive {i}" for i in range(7)]
    rows, trained = (tmp_path / "metrics.csv").read_text(), weights(tmp_path)

    monkeypatch.setattr(ShapesDataModule, "groups", lambda self, names: ["drive"] * len(names))
    (tmp_path / "result.json").unlink()
    train(TINY, tmp_path, resume=True, **QUIET)
    with np.load(tmp_path / "per_image.npz") as stored:
        assert stored["groups"].tolist() == ["drive"] * 7
        for key in before.keys() - {"groups"}:
            np.testing.assert_equal(stored[key], before[key])
    assert (tmp_path / "metrics.csv").read_text() == rows
    assert all(value.equal(trained[name]) for name, value in weights(tmp_path).items())
