"""What a report reads of real cells: an experiment of two variants, trained for the test."""

import json
import math
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from datamodules.shapes import ShapesDataModule
from experiments.benchmark_statistics import write_experiment
from experiments.evidence.experiment import load_experiment
from experiments.runs.callbacks import EXTREMES, SAMPLES
from experiments.runs.run import Run
from experiments.runs.training import train
from experiments.shell.files import write_json
from lightning_modules.components.scores.reductions import scores
from lightning_modules.components.scores.table import BOUNDARY, PER_IMAGE, errors
from lightning_modules.unet import UNetModule

LENGTH = 12
RUN = Run(
    module=UNetModule,
    datamodule=ShapesDataModule,
    hparams={"width": 2, "depth": 1, "lr": 0.01},
    data={"size": 24, "length": LENGTH, "batch_size": 2},
    trainer={"max_epochs": 2},
)
LEVELS = ("nearest", "transposed-2")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experiment")
    for level in LEVELS:
        train(RUN.but(upsample=level), folder / level / "seed0", accelerator="cpu", enable_progress_bar=False)
    data = ShapesDataModule(**RUN.data)
    plan = {
        "experiment": "tiny",
        "question": "?",
        "baseline": "nearest",
        "factors": {"upsample": LEVELS},
        "variants": {level: {"levels": {"upsample": level}} for level in LEVELS},
        "seeds": [0, 1],
        "data": "shapes",
        "data_note": "",
        "scale_note": "",
        "common": {},
        "class_names": data.class_names,
        "palette": data.palette,
        "command": "python",
        "device": "CPU",
        "commit": "ab",
    }
    write_json(folder / "plan.json", plan)
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy whose big files are links: tests replace whole files."""
    for path in trained.rglob("*"):
        if path.is_file():
            (tmp_path / path.relative_to(trained)).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path.relative_to(trained)).symlink_to(path)
    return tmp_path


def test_errors_agree_with_the_predictions(folder: Path) -> None:
    experiment = load_experiment(folder)
    cell, test = experiment.cells["nearest"][0], ShapesDataModule(**RUN.data).dataset("test")
    wrong, near, pixels = 0, 0, 0
    for index, name in enumerate(test.names):
        mask, labels = test[index][1].numpy(), cell.prediction(name)
        assert labels is not None and labels.dtype == np.uint8
        labelled = mask != 255
        errors = labelled & (labels != mask)
        wrong, pixels = wrong + errors.sum(), pixels + labelled.sum()
        near += sum(distance(mask, y, x) <= BOUNDARY for y, x in np.argwhere(errors))
    assert cell.scores["wrong"] == pytest.approx(wrong / pixels)
    assert 0 < near < wrong
    assert cell.scores["boundary_errors"] == pytest.approx(near / wrong)
    assert cell.calibration is not None and cell.segments is not None
    assert cell.scores["overconfidence"] == pytest.approx(
        cell.calibration[..., 1].sum() / pixels - (1 - wrong / pixels)
    )
    assert all(0 <= cell.scores[name] <= 1 for name in ("ece", "missed", "hallucinated"))


def distance(mask: np.ndarray, y: int, x: int) -> float:
    others = np.argwhere((mask != mask[y, x]) & (mask != 255))
    return float(np.hypot(*(others - (y, x)).T).min()) if len(others) else math.inf


def test_pictures_are_fixed_ones_then_the_worst_then_the_best_with_every_prediction(folder: Path) -> None:
    experiment = load_experiment(folder)
    pictures = experiment.pictures
    assert [p.kinds[0] for p in pictures[:SAMPLES]] == ["fixed"] * SAMPLES
    test = ShapesDataModule(**RUN.data).dataset("test")
    mean = {}
    for picture in pictures:
        index = test.names.index(picture.name)
        assert np.array_equal(picture.mask, test[index][1].numpy())
        assert picture.image.shape == (24, 24, 3)
        assert set(picture.predictions) == set(picture.mious) == set(LEVELS)
        for level in LEVELS:
            cell = experiment.cells[level][0]
            assert np.array_equal(picture.predictions[level], cell.prediction(picture.name))
            assert picture.mious[level] == cell.image_miou[index]
        mean[picture.name] = np.mean(list(picture.mious.values()))
    after = [p for p in pictures if "fixed" not in p.kinds]
    kinds = [p.kinds[0] for p in after]
    assert kinds == sorted(kinds, reverse=True)  # worst before best
    worst = [mean[p.name] for p in after if p.kinds[0] == "worst"]
    assert worst == sorted(worst)
    assert not any({"worst", "best"} <= {*p.kinds} for p in pictures)
    lowest = sorted(experiment.cells["nearest"][0].image_miou)[:EXTREMES]
    assert min(p.mious["nearest"] for p in pictures if "worst" in p.kinds) == lowest[0]


def test_cells_of_earlier_versions_say_what_they_have_not_stored(folder: Path) -> None:
    image_miou = load_experiment(folder).cells["nearest"][0].scores["image_miou"]
    for level in LEVELS:
        cell = folder / level / "seed0"
        lacking = ("groups", *(name for name, score in PER_IMAGE.items() if score.detailed))
        for name, without in (("per_image", lacking), ("samples", ("kinds",))):
            with np.load(cell / f"{name}.npz") as stored:
                arrays = {key: stored[key] for key in stored if key not in without}
            (cell / f"{name}.npz").unlink()
            np.savez(cell / f"{name}.npz", **arrays)
        (cell / "predictions.zip").unlink()
    experiment = load_experiment(folder)
    cell = experiment.cells["nearest"][0]
    assert cell.groups is None
    assert cell.calibration is None and cell.segments is None and cell.prediction("test0003") is None
    assert not math.isnan(cell.scores["wrong"])
    assert all(math.isnan(cell.scores[name]) for name in errors() if name != "wrong")
    assert math.isnan(cell.scores["boundary_iou"]) and cell.scores["image_miou"] == pytest.approx(image_miou)
    assert {kind for picture in experiment.pictures for kind in picture.kinds} == {"fixed"}
    for picture in experiment.pictures:
        stored_by = [v for v in LEVELS if picture.name in experiment.cells[v][0].samples()["names"]]
        assert list(picture.predictions) == stored_by


@pytest.mark.parametrize("damage", ["torn", "lacking"])
def test_a_damaged_file_of_predictions_is_named(folder: Path, damage: str) -> None:
    path = folder / "nearest" / "seed0" / "predictions.zip"
    content = path.read_bytes()
    path.unlink()
    if damage == "torn":
        path.write_bytes(content[: len(content) // 2])
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("00000.png", b"")
    with pytest.raises(ValueError, match=r"predictions.zip cannot be read.*delete"):
        load_experiment(folder).cells["nearest"][0].prediction("test0005")


def test_arrays_of_another_shape_are_refused(folder: Path) -> None:
    path = folder / "nearest" / "seed0" / "per_image.npz"
    with np.load(path) as stored:
        arrays = dict(stored)
    path.unlink()
    np.savez(path, **{**arrays, "segments": arrays["segments"][..., :3]})
    with pytest.raises(ValueError, match=r"segments must have the shape \('n', 3, 4\)"):
        load_experiment(folder)


def test_a_missing_cell_is_no_obstacle(folder: Path) -> None:
    assert [missing.seed for missing in load_experiment(folder).missing] == [1, 1]
    assert json.loads((folder / "nearest" / "seed0" / "result.json").read_text())["steps"] == LENGTH // 2 * 2


def test_scores_are_those_of_the_whole_matrices_to_the_bit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.evidence.arrays.BLOCK", 2000)  # of several blocks
    cell = load_experiment(folder).cells["nearest"][0]
    with np.load(folder / "nearest" / "seed0" / "per_image.npz") as stored:
        confusion, trimap, segments = (stored[key] for key in ("confusion", "trimap", "segments"))
        calibration = stored["calibration"]
    assert np.array_equal(cell.confusion, confusion.sum(axis=0)) and np.array_equal(cell.trimap, trimap.sum(axis=0))
    assert np.array_equal(cell.segments, segments.sum(axis=0)) and np.array_equal(
        cell.calibration, calibration.sum(axis=0)
    )
    assert cell.groups == cell.image_names == [f"test{i:04}" for i in range(LENGTH)]
    assert np.array_equal(cell.image_miou, scores(confusion)["miou"], equal_nan=True)
    assert cell.scores["miou"] == scores(confusion.sum(axis=0))["miou"]
    assert np.array_equal(cell.counts.predicted, confusion.sum(axis=1))


def test_matrices_are_never_held_at_once(tmp_path: Path) -> None:
    write_experiment(tmp_path, seeds=1, images=400, classes=60)
    size = 8 * 400 * 60 * 60 * 8  # bytes of 8 cells
    tracemalloc.start()
    experiment = load_experiment(tmp_path)
    assert experiment.comparisons and experiment.effects
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(experiment.finished()) == 8 and peak < size * 0.75
