"""`check --suggest` finds the layout of public sets in their own forms, and says which images it leaves out."""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forms import save, scene, text

from datamodules.folder import FolderDataModule
from datamodules.layouts.guess import suggest

COLOURS = np.array([[0, 0, 0], [0, 255, 0], [255, 0, 0]], dtype=np.uint8)


def each(count: int, write: Callable[[int, np.ndarray, np.ndarray], object]) -> None:
    for i in range(count):
        image, labels = scene(i, (64, 72))  # of many colours, as photographs are
        write(i, image, labels)


def massachusetts(root: Path) -> None:
    def write(i: int, image: np.ndarray, labels: np.ndarray) -> None:
        split = ("train", "val", "test")[i % 3]
        white = np.where(labels[..., None] > 0, np.uint8(255), np.uint8(0)).repeat(3, axis=2)
        save(image, root / f"tiff/{split}/{i:03}.tiff")
        save(white, root / f"tiff/{split}_labels/{i:03}.tif")

    each(9, write)
    text(root / "label_class_dict.csv", "name,r,g,b", "background,0,0,0", "road,255,255,255")


def cityscapes(root: Path) -> None:
    def write(i: int, image: np.ndarray, labels: np.ndarray) -> None:
        split, city = (("train", "aachen"), ("train", "bremen"), ("val", "lindau"), ("test", "berlin"))[i % 4]
        name = f"{split}/{city}/{city}_{i:06}_000019"
        save(image, root / f"leftImg8bit/{name}_leftImg8bit.png")
        if split != "test":
            save(COLOURS[labels], root / f"gtFine/{name}_gtFine_color.png")
            save(labels, root / f"gtFine/{name}_gtFine_labelIds.png")

    each(16, write)


def loveda(root: Path) -> None:
    def write(i: int, image: np.ndarray, labels: np.ndarray) -> None:
        folder = f"{('Train', 'Val')[i % 2]}/{('Rural', 'Urban')[i // 2 % 2]}"
        save(image, root / f"{folder}/images_png/{i}.png")
        save(labels + 1, root / f"{folder}/masks_png/{i}.png")

    each(12, write)


def uavid(root: Path) -> None:
    def write(i: int, image: np.ndarray, labels: np.ndarray) -> None:
        folder = f"uavid_{('train', 'val')[i % 2]}/seq{i // 2 % 3 + 10 * (i % 2)}"
        save(image, root / f"{folder}/Images/{i // 6:06}.png")
        save(COLOURS[labels], root / f"{folder}/Labels/{i // 6:06}.png")

    each(18, write)


def roboflow(root: Path) -> None:
    images: dict[str, list[Any]] = {"train": [], "valid": []}

    def write(i: int, image: np.ndarray, labels: np.ndarray) -> None:
        split = ("train", "valid")[i % 2]
        save(image, root / f"{split}/{i:03}.jpg", quality=95)
        images[split].append({"id": i, "file_name": f"{i:03}.jpg", "height": 64, "width": 72})

    each(8, write)
    for split, of in images.items():
        runs = {"size": [64, 72], "counts": [100, 300, 64 * 72 - 400]}
        shapes = [{"id": n["id"], "image_id": n["id"], "category_id": 1, "area": 300, "segmentation": runs} for n in of]
        content = {"images": of, "annotations": shapes, "categories": [{"id": 1, "name": "box"}]}
        text(root / split / "_annotations.coco.json", json.dumps(content))


def chase(root: Path) -> None:
    def write(i: int, image: np.ndarray, labels: np.ndarray) -> None:
        name = f"Image_{i // 2:02}{'LR'[i % 2]}"
        save(image, root / f"{name}.jpg", quality=95)
        save(labels > 0, root / f"{name}_1stHO.png")
        save(labels > 1, root / f"{name}_2ndHO.png")

    each(10, write)


def cvat(root: Path) -> None:
    def write(i: int, image: np.ndarray, labels: np.ndarray) -> None:
        save(image, root / f"JPEGImages/{i:03}.jpg", quality=95)
        save(COLOURS[labels], root / f"SegmentationClass/{i:03}.png")
        save(COLOURS[labels][..., ::-1].copy(), root / f"SegmentationObject/{i:03}.png")

    each(10, write)
    text(root / "ImageSets/Segmentation/default.txt", *(f"{i:03}" for i in range(10)))
    lines = ["# label:color_rgb:parts:actions", "background:0,0,0::", "car:0,255,0::", "bus:255,0,0::"]
    text(root / "labelmap.txt", *lines)


def pets(root: Path) -> None:
    def write(i: int, image: np.ndarray, labels: np.ndarray) -> None:
        save(image, root / f"images/Abyssinian_{i}.jpg", quality=95)
        save(labels + 1, root / f"annotations/trimaps/Abyssinian_{i}.png")

    each(10, write)
    text(root / "annotations/trainval.txt", *(f"Abyssinian_{i} 1 1 1" for i in range(7)))
    text(root / "annotations/test.txt", *(f"Abyssinian_{i} 1 1 1" for i in range(7, 10)))


def carvana(root: Path) -> None:
    def write(i: int, image: np.ndarray, labels: np.ndarray) -> None:
        save(image, root / f"train/{i:03}.jpg", quality=95)
        save(np.where(labels > 0, np.uint8(255), np.uint8(0)), root / f"train_masks/{i:03}_mask.gif")

    each(10, write)


def kvasir(root: Path) -> None:
    def write(i: int, image: np.ndarray, labels: np.ndarray) -> None:
        save(image, root / f"images/{i:03}.jpg", quality=95)
        save(np.where(labels > 0, np.uint8(255), np.uint8(0)), root / f"masks/{i:03}.jpg", quality=75)

    each(10, write)


@dataclass(frozen=True)
class Set:
    what: str
    write: Callable[[Path], None]
    layout: dict[str, Any]
    images: int  # in its splits
    read: Callable[[np.ndarray], np.ndarray] | None = lambda labels: labels
    close: float = 0.0  # share of pixels that compression may change
    splits: tuple[str, ...] = ("train", "val", "test")


BINARY: Callable[[np.ndarray], np.ndarray] = lambda labels: (labels > 0).astype(np.uint8)
SETS = [
    Set(
        "Massachusetts",
        massachusetts,
        {
            "images": "tiff/{split}/{name}.tiff",
            "masks": "tiff/{split}_labels/{name}.tif",
            "classes": "label_class_dict.csv",
        },
        9,
        BINARY,
    ),
    Set(
        "Cityscapes",
        cityscapes,
        {
            "images": "leftImg8bit/{split}/**/{name}_leftImg8bit.png",
            "masks": "gtFine/{split}/**/{name}_gtFine_labelIds.png",
        },
        12,
        splits=("train", "val"),
    ),
    Set(
        "LoveDA",
        loveda,
        {"images": "{split}/**/images_png/{name}.png", "masks": "{split}/**/masks_png/{name}.png"},
        12,
        splits=("train", "val"),
    ),
    Set(
        "UAVid",
        uavid,
        {"images": "uavid_{split}/**/Images/{name}.png", "masks": "uavid_{split}/**/Labels/{name}.png"},
        18,
        None,
        splits=("train", "val"),
    ),
    Set(
        "COCO by Roboflow",
        roboflow,
        {"images": "{split}/{name}.jpg", "masks": "{split}/_annotations.coco.json", "classes": ["background", "box"]},
        8,
        None,
        splits=("train", "val"),
    ),
    Set("CHASE", chase, {"images": "{name}.jpg", "masks": "{name}_1stHO.png"}, 10, BINARY),
    Set(
        "CVAT",
        cvat,
        {"images": "JPEGImages/{name}.jpg", "masks": "SegmentationClass/{name}.png", "classes": "labelmap.txt"},
        10,
    ),
    Set(
        "Oxford pets",
        pets,
        {"splits": {"train": "annotations/trainval.txt", "val": 0.15, "test": "annotations/test.txt"}},
        10,
    ),
    Set("Carvana", carvana, {"masks": "{split}_masks/{name}_mask.gif"}, 10, BINARY, splits=("train", "val")),
    Set("Kvasir", kvasir, {"classes": {"background": "0-127", "object": "128-255"}}, 10, BINARY, 0.02),
]


@pytest.mark.parametrize("one", SETS, ids=lambda one: one.what)
def test_the_layout_of_a_public_set_is_found_and_reads_its_labels(one: Set, tmp_path: Path) -> None:
    one.write(tmp_path)
    suggestion = suggest(tmp_path)
    assert suggestion is not None
    text(tmp_path / "dataset.yaml", suggestion.text())
    assert suggestion.layout | one.layout == suggestion.layout, suggestion.text()
    data = FolderDataModule(str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.verify()
    found = {name: (split, i) for split in data.source.splits for i, name in enumerate(data.source.splits[split])}
    assert len(found) == one.images and tuple(data.source.splits) == one.splits
    for name, (split, i) in found.items() if one.read else ():
        assert one.read is not None
        number = int("".join(filter(str.isdigit, name.split("_000019")[0].rpartition("/")[2])))
        number = 2 * number + name.endswith("R") if one.what == "CHASE" else number
        expected = one.read(scene(number, (64, 72))[1])
        values = np.unique(data.dataset(split)[i][1].numpy())
        assert values.max() < data.num_classes
        order = [data.class_names.index(c) for c in ("background", "car", "bus")] if one.what == "CVAT" else None
        mask = data.dataset(split)[i][1].numpy()
        assert (mask != (np.array(order)[expected] if order else expected)).mean() <= one.close, name
