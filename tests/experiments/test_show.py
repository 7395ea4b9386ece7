"""Samples of a data set, drawn: those that are trained on, for every data set of the catalogue."""

import inspect
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.shapes import ShapesDataModule
from experiments.reports.figures.looks import label_colours
from experiments.shell.catalogue import DATAMODULES
from experiments.show import OPAQUE, draw, main, parse

SMALL = ["--data", "shapes", "--data.size", "40", "--data.length", "6", "--data.crop", "32"]


def test_samples_are_written_and_the_same_again(tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        main([*SMALL, "--images", "2", "--epochs", "2", "--out", str(tmp_path / name)])
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert Image.open(tmp_path / "one.png").width > 900


def test_pictures_are_those_that_are_trained_on() -> None:
    data = ShapesDataModule(size=40, length=6, crop=32, batch_size=6)
    data.seed = 3
    figure = draw(data, "train", 2, 2, 3)
    colours = label_colours(data.palette)
    axes = np.array(figure.axes).reshape(2, 4)
    loader = data.train_dataloader()
    loader.sampler.set_epoch(1)  # type: ignore[attr-defined]
    [batch] = list(loader)
    for row, place in zip(axes, (0, 5), strict=True):
        image, _ = data.dataset("train")[place]
        assert np.allclose(row[0].images[0].get_array() / 255, image.permute(1, 2, 0).numpy().clip(0, 1), atol=0.002)
        [drawn] = [at for at, index in enumerate(batch["index"].tolist()) if index == place]
        plain, labels = batch["image"][drawn].permute(1, 2, 0).numpy(), batch["mask"][drawn].numpy().astype(np.uint8)
        over = (1 - OPAQUE) * plain.clip(0, 1) + OPAQUE * colours[labels] / 255
        assert np.allclose(row[3].images[0].get_array(), over, atol=0.002)
    assert [text.get_text() for text in figure.legends[0].get_texts()][: data.num_classes] == data.class_names


def test_test_images_are_not_augmented() -> None:
    data = ShapesDataModule(size=40, length=6)
    assert len(draw(data, "test", 3, 2, 0).axes) == 3 * 2


@pytest.mark.parametrize("name", DATAMODULES)
def test_every_data_set_has_its_flags(name: str) -> None:
    root = ["--data.root", "x"] if "root" in inspect.signature(DATAMODULES[name]).parameters else []
    cls, args = parse(["--data", name, *root, "--split", "val"])
    assert cls is DATAMODULES[name] and args.split == "val"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--data", "shape"], "did you mean shapes"),
        (["--out", "x.txt"], "--out must be a .png or .pdf file, got x.txt"),
        (["--data", "folder", "--data.root", "/nowhere"], "the data folder /nowhere does not exist"),
        (["--images", "0"], "--images"),
    ],
)
def test_what_cannot_be_shown_is_said(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(flags)
    assert said in capsys.readouterr().err
