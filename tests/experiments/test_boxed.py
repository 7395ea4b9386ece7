"""Boxes from the command line: a training on those of a file, its score with what it is told, and predictions."""

import json
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodules.folder import FolderDataModule
from datamodules.shapes import ShapesDataModule
from experiments.grids.ablation import Ablation, variants
from experiments.grids.fairness import check_fair
from experiments.predict import main as predict
from experiments.runs.run import Run
from experiments.runs.training import build
from experiments.train import main as train
from lightning_modules.hypercolumn_boxes import HypercolumnBoxesModule
from lightning_modules.unet import UNetModule

TINY = {"encoder_width": 0.0625, "fc_width": 8, "size": 10, "lr": 1e-5}
ROWS = "image,left,top,right,bottom,category\n"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright squares of class 1 on dark ground, with their boxes."""
    root, rng, rows = tmp_path_factory.mktemp("squares"), np.random.default_rng(0), ROWS
    for folder in ("images", "masks", "splits"):
        (root / folder).mkdir()
    (root / "classes.txt").write_text("ground\nsquare\n")
    for split, count in (("train", 2), ("val", 1), ("test", 1)):
        names = [f"{split}{i}" for i in range(count)]
        (root / f"splits/{split}.txt").write_text("\n".join(names))
        for name in names:
            left, top = (int(place) for place in rng.integers(0, 30, 2))
            mask = np.zeros((48, 56), np.uint8)
            mask[top : top + 16, left : left + 20] = 1
            Image.fromarray(mask).save(root / f"masks/{name}.png")
            noise = rng.integers(0, 60, (48, 56, 3))
            Image.fromarray((noise + 150 * mask[..., None]).astype(np.uint8)).save(root / f"images/{name}.png")
            rows += f"{name},{left},{top},{left + 20},{top + 16},square\n"
    (root / "boxes.csv").write_text(rows)
    return root


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "seed0"
    flags = [f"--model.{name}={value}" for name, value in TINY.items()]
    words = ["--settings", "paper", "--model", "hypercolumn_boxes", *flags, "--model.background", "0"]
    words += ["--data", "folder", "--data.root", str(root), "--data.boxes", "boxes.csv", "--data.crop", "48"]
    train(
        [
            *words,
            "--data.batch_size",
            "2",
            "--trainer.max_epochs",
            "1",
            "--trainer.accelerator",
            "cpu",
            "--out",
            str(out),
        ]
    )
    return out


def ended(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        predict([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return int(stop.value.code or 0), printed.out, printed.err


def test_a_result_says_what_the_network_is_told(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    assert result["given"]["boxes"] == "of the objects" and result["given"]["overlap"] == 0.7
    assert result["test"]["box_iou_whole"] == pytest.approx(1)  # the boxes of the file fit
    assert 0 <= result["test"]["box_iou"] <= 1 and "box_iou" in result["val"]


def test_an_image_is_predicted_within_its_boxes(
    run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    boxes = tmp_path / "own.csv"
    boxes.write_text(f"{ROWS}test0.png,10,8,30,40,square\n")
    words = [root / "images/test0.png", "--checkpoint", run / "checkpoints/last.ckpt", "--device", "cpu"]
    assert ended(capsys, *words, "--boxes", boxes, "--out", tmp_path / "out")[0] == 0
    labels = np.asarray(Image.open(tmp_path / "out/labels/test0.png")).copy()
    labels[8:40, 10:30] = 0
    assert not labels.any()
    code, _, error = ended(capsys, *words, "--out", tmp_path / "out")
    assert code == 2 and "predictions with another --boxes" in error
    code, told, _ = ended(capsys, *words, "--out", tmp_path / "other")
    assert code == 0 and "no boxes: the whole image is the one box of every class" in told


@pytest.mark.parametrize("verb", ["search_crf", "explain", "export"])
def test_what_has_no_boxes_says_that_the_whole_image_is_one(
    verb: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = import_module(f"experiments.{verb}")
    costly = {"search_crf": "default_grid", "explain": "svg", "export": "prepared"}[verb]  # what comes after the line
    monkeypatch.setattr(module, costly, lambda *_: sys.exit(0))
    fast = {"explain": ["--no-fields", "--size", "32", "32"], "export": ["--format", "pt2"]}.get(verb, [])
    with pytest.raises(SystemExit):
        module.main([str(run / "checkpoints/last.ckpt"), "--out", str(tmp_path / "out"), *fast])
    assert "no boxes: the whole image is the one box of every class" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "flags", "message"),
    [
        ("none,1,2,3,4,square", [], r"line 2, image: there is no 'none'"),
        ("test0,1,2,3,99,square", [], r"line 2, bottom: expected at most 48, as test0 has 56 x 48 pixels, got 99"),
        ("test0,1,2,3,4,ground", [], "a box is of class 0, .* that is the background, which has no boxes"),
        ("test0,1,2,3,4,square", ["--tta"], "--tta does not go with --boxes"),
        ("test0,1,2,3,4,square", ["--tile", "64"], "--tile does not go with --boxes"),
        ("test0,1,2,3,4,square", ["--launcher", "ray"], "leave --launcher ray out"),
    ],
)
def test_what_boxes_of_a_prediction_are_refused(
    rows: str, flags: list[str], message: str, run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    boxes = tmp_path / "own.csv"
    boxes.write_text(f"{ROWS}{rows}\n")
    words = [root / "images/test0.png", "--checkpoint", run / "checkpoints/last.ckpt", "--boxes", boxes, *flags]
    code, _, error = ended(capsys, *words, "--out", tmp_path / "out", "--device", "cpu")
    assert code == 2 and re.search(message, error), error
    assert not (tmp_path / "out").exists()


def test_images_without_a_box_are_named(
    run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    boxes = tmp_path / "own.csv"
    boxes.write_text(f"{ROWS}test0,1,2,3,4,1\n")
    words = [
        root / "images",
        "--checkpoint",
        run / "checkpoints/last.ckpt",
        "--boxes",
        boxes,
        "--out",
        tmp_path / "out",
    ]
    code, _, error = ended(capsys, *words)
    assert code == 2 and "has no box of 3 of the 4 images: train0, train1, val0" in error


def test_boxes_are_of_architectures_that_take_them(root: Path) -> None:
    data = {"root": str(root), "boxes": "boxes.csv"}
    with pytest.raises(ValueError, match="predicts in boxes, and UNetModule does not"):
        build(Run(module=UNetModule, datamodule=FolderDataModule, hparams={"width": 2, "depth": 1}, data=data))
    run = Run(module=HypercolumnBoxesModule, datamodule=FolderDataModule, hparams={**TINY, "background": 1}, data=data)
    with pytest.raises(ValueError, match=r"of class 1, .* that is the background"):
        build(run)


@pytest.mark.parametrize(
    "variant", [{"overlap": 0.5}, {"module": UNetModule, "width": 2}], ids=["other boxes", "no boxes"]
)
def test_a_study_of_networks_that_are_told_more_and_less_is_refused(variant: dict[str, Any]) -> None:
    base = Run(
        module=HypercolumnBoxesModule, datamodule=ShapesDataModule, hparams=TINY, data={"size": 24, "length": 6},
        trainer={"max_epochs": 1},
    )  # fmt: skip
    hparams = {} if "module" in variant else TINY
    runs = {"base": base, "other": Run(**{**vars(base), "hparams": hparams}).but(**variant)}
    study = Ablation(name="tiny", question="?", runs=runs, factors={name: [] for name in variant}, baseline="base")
    with pytest.raises(ValueError, match="'other' and of the baseline 'base' do not compare, as the networks are told"):
        check_fair(study)
    same = variants(base, {"base": {}, "wide": {"fc_width": 16}})
    check_fair(Ablation(name="tiny", question="?", runs=same, factors={"fc_width": [8, 16]}, baseline="base"))
