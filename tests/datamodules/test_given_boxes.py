"""Boxes of a file: what is refused, and that they stay over their objects through scale, crop, zoom and flip."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_data import write_folder

from datamodules.base import EvaluationSamples, TrainingSamples, random_generator
from datamodules.boxes import Box, in_pixels, upright_size
from datamodules.folder import FolderDataModule
from datamodules.transforms import JointTransform
from experiments.runs.run import Run
from lightning_modules.hypercolumn_boxes import HypercolumnBoxesModule

HEADER = "image,left,top,right,bottom,category\n"
EVERY = "".join(f"{name},2,3,20,15,road\n" for name in ("train_0", "val_0", "val_1", "test_0"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data")


def data(root: Path, rows: str, *, header: str = HEADER, **arguments: Any) -> FolderDataModule:
    (root.parent / "boxes.csv").write_text(header + rows, encoding="utf-8")
    arguments = {"batch_size": 2, "crop": (40, 32), **arguments}
    return FolderDataModule(str(root), boxes=str(root.parent / "boxes.csv"), **arguments)


def test_boxes_of_an_image_are_those_of_its_lines_at_its_scale(root: Path) -> None:
    more = "train_1.jpg,0,0,32,24,2\ntrain_1,0.4,0,3,1.2,sky\n"
    module = data(root, EVERY + more, scale=0.5)
    train = module.dataset("train")
    assert train.boxes(0).tolist() == [[1, 2, 10, 8, 0]] and train.most_boxes == 2
    assert train.boxes(1).tolist() == [[0, 0, 16, 12, 2], [0, 0, 2, 1, 2]]
    assert train.boxes(2).shape == (0, 5)
    assert module.box_categories == {0, 2}
    module.verify()


def test_batches_collate_with_rows_of_minus_one(root: Path) -> None:
    module = data(root, EVERY + "train_1,0,0,32,24,2\ntrain_1,0,0,9,9,1\n", flip=False, zoom=(1.0, 1.0))
    batches = [batch["boxes"] for batch in module.train_dataloader()]
    assert all(boxes.shape == (2, 2, 5) and boxes.dtype == torch.int64 for boxes in batches)
    assert sum(int((boxes[..., 4] >= 0).sum()) for boxes in batches) == 3
    (padding, first) = (EvaluationSamples(module.dataset("val"), 255)[i]["boxes"] for i in (-1, 0))
    assert torch.equal(padding, first) and first[0].tolist() == [2, 3, 20, 15, 0]


def test_boxes_follow_the_objects_of_their_image() -> None:
    """A box that fits an object fits it in the crop, but for a pixel of rounding."""
    size, box, seen = (90, 120), torch.tensor([[30, 20, 72, 61, 1]]), 0
    mask = torch.zeros(size, dtype=torch.long)
    mask[20:61, 30:72] = 1
    transform = JointTransform((48, 64), (0.5, 2.0), True, 0.0)
    for index in range(200):
        _, labels = transform(torch.rand(3, *size), mask, random_generator(index))
        boxes = transform.boxes(box, size, random_generator(index))
        rows, columns = (labels == 1).nonzero(as_tuple=True)
        if not len(rows):
            assert not len(boxes) or (boxes[0, 2:4] - boxes[0, :2]).min() <= 1
            continue
        expected = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert len(boxes) == 1 and boxes[0, 4] == 1
        assert (boxes[0, :4] - expected).abs().max() <= 1, index
        seen += int((boxes[0, 2:4] > boxes[0, :2]).all())
    assert seen > 150


def test_the_image_is_augmented_as_without_boxes(root: Path) -> None:
    with_boxes, without = data(root, EVERY), FolderDataModule(str(root), batch_size=2, crop=(40, 32))
    ours, theirs = (
        TrainingSamples(module.dataset("train"), module.transform, 3)[1, 2] for module in (with_boxes, without)
    )
    assert torch.equal(ours["image"], theirs["image"]) and torch.equal(ours["mask"], theirs["mask"])
    assert ours.keys() - theirs.keys() == {"boxes"}


def test_boxes_are_of_the_upright_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(tmp_path / "b.png")
    assert (upright_size(tmp_path / "a.jpg"), upright_size(tmp_path / "b.png")) == ((32, 24), (24, 32))


def test_a_box_is_never_empty() -> None:
    tiny = [Box(2, 99.2, 49.1, 99.3, 49.9, 0), Box(3, 0.0, 0.0, 0.1, 0.1, 1)]
    assert in_pixels(tiny, (50, 100), (5, 10)).tolist() == [[9, 4, 10, 5, 0], [0, 0, 1, 1, 1]]
    assert in_pixels([], (50, 100), (5, 10)).shape == (0, 5)


def test_boxes_are_a_part_of_the_hash(root: Path) -> None:
    def hash_of(**arguments: Any) -> str:
        settings = {"root": str(root), **arguments}
        return Run(module=HypercolumnBoxesModule, datamodule=FolderDataModule, data=settings).identified().hash

    file = root.parent / "boxes.csv"
    file.write_text(HEADER + EVERY)
    plain, first = hash_of(), hash_of(boxes=str(file))
    (root / "given.csv").write_text(HEADER + EVERY)
    assert hash_of(boxes="given.csv") == first != plain  # wherever they lie
    file.write_text(HEADER + EVERY.replace("20", "21"))
    assert hash_of(boxes=str(file)) not in (plain, first)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("cow,2,3,20,15,road", "line 6, image: there is no 'cow': correct or leave it out"),
        ("train_1,2,3,20,15,cow", "line 6, category: expected a class, one of road, tree, sky, .* below 3, got 'cow'"),
        ("train_1,2,3,20,15,3", "line 6, category: .* got '3'"),
        ("train_1,2,three,20,15,road", "line 6, top: expected a number of pixels, got 'three'"),
        ("train_1,nan,3,20,15,road", "line 6, left: expected a number of pixels, got 'nan'"),
        ("train_1,-1,3,20,15,road", "line 6, left: expected at least 0, got -1: cut the box off at the image"),
        (
            "train_1,20,3,20,15,road",
            "line 6, right: the box is empty: expected more than 20, got 20: give the place of that side, no length",
        ),
        ("train_1,2,16,20,15,road", "line 6, bottom: the box is empty: expected more than 16, got 15"),
        ("train_1,2,3,20,15", "line 6: expected image,left,top,right,bottom,category, got 5 values"),
        ("val_0.png, 2.0,3,20,15,0", "line 6: the same box as in line 3: leave one of them out"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(root: Path, row: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"boxes\.csv {message}"):
        data(root, f"{EVERY}{row}\n")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("train_1,2,3,33,15,road", r"line 6, right: expected at most 32, as train_1 has 32 x 24 pixels, got 33"),
        ("train_1,2,3,20,24.5,road", r"line 6, bottom: expected at most 24, as train_1 has 32 x 24 pixels, got 24.5"),
    ],
)
def test_a_box_beyond_its_image_is_found_before_training(root: Path, row: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data(root, f"{EVERY}{row}\n").verify()


def test_what_else_is_refused(root: Path) -> None:
    with pytest.raises(
        ValueError, match=r"line 1: expected the header image,left,top,right,bottom,category, got 'image, x"
    ):
        data(root, EVERY, header="image,x,y\n")
    with pytest.raises(ValueError, match="has no box of an image of the val split"):
        data(root, "train_0,2,3,20,15,road\n")
    with pytest.raises(ValueError, match="has no box: give one a line"):
        data(root, "")
    with pytest.raises(ValueError, match=r"elastic must be 0 where the data have boxes, .* got 4"):
        data(root, EVERY, elastic=4.0)
    with pytest.raises(FileNotFoundError, match=r"the boxes none\.csv are not there: give a CSV file image,left"):
        FolderDataModule(str(root), boxes="none.csv")
