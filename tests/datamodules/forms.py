"""Data sets in the forms in which strangers publish them, each with the dataset.yaml that makes them readable."""

import base64
import json
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

COUNT = 12
COLOURS = np.array([[0, 0, 0], [0, 255, 0], [255, 0, 0]], dtype=np.uint8)


def scene(index: int, size: tuple[int, int] = (40, 56)) -> tuple[np.ndarray, np.ndarray]:
    """A picture (H, W, 3) with two bright objects, one of each class, and its labels (H, W) in 0, 1, 2."""
    rng = np.random.default_rng(index)
    x = np.mgrid[: size[0], : size[1]][1]
    labels = np.zeros(size, dtype=np.uint8)
    for label in (1, 2):
        top, left = rng.integers(4, 22), rng.integers(4, 36)
        labels[top : top + 14, left : left + 14] = label
    image = 40 + 60 * labels[..., None] * np.array([1, 0.6, 0.3]) + rng.integers(0, 30, size=(*size, 3)) + x[..., None]
    return np.clip(image, 0, 255).astype(np.uint8), labels


def save(array: np.ndarray, path: Path, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


@dataclass(frozen=True)
class Form:
    """A form: what writes it, its dataset.yaml, and the labels that are to be read of scene i."""

    what: str
    write: Callable[[Path], None]
    layout: dict[str, Any]
    labels: Callable[[np.ndarray], np.ndarray] = lambda labels: labels
    extra: tuple[str, ...] = ()  # an extra that it needs, and its modules
    scored: str = "test"
    name: Callable[[int], str] = lambda i: f"{i:03}"

    def make(self, root: Path) -> Path:
        root.mkdir(parents=True)
        self.write(root)
        (root / "dataset.yaml").write_text(yaml.safe_dump(self.layout, sort_keys=False), encoding="utf-8")
        return root


def suffixed_colours(root: Path) -> None:
    """CWFID: 001_image.png, 001_annotation.png in RGB, a YAML of two lists of numbers."""
    for i in range(COUNT):
        image, labels = scene(i)
        save(image, root / f"images/{i:03}_image.png")
        save(COLOURS[labels], root / f"annotations/{i:03}_annotation.png")
    text(root / "train_test_split.yaml", f"train: {[*range(9)]}", f"test: {[*range(9, COUNT)]}")


def rgba_labels(root: Path) -> None:
    """LabelMeFacade: JPEG and RGBA colour labels, lists of paths, and junk among the images."""
    for i in range(COUNT):
        image, labels = scene(i)
        save(image, root / f"images/{i:03}.jpg", quality=95)
        save(np.dstack([COLOURS[labels], np.full_like(labels, 255)]), root / f"labels/{i:03}.png")
    text(root / "images/filelist.txt~", "junk")
    text(root / "train.txt", *(f"images/{i:03}.jpg" for i in range(9)))
    text(root / "test.txt", *(f"images/{i:03}.jpg" for i in range(9, COUNT)))


def object_files(root: Path) -> None:
    """DSB-2018: a folder an image, one mask file an object, RGBA images, no split."""
    for i in range(COUNT):
        image, labels = scene(i)
        save(np.dstack([image, np.full_like(labels, 255)]), root / f"stage1_train/{i:03}/images/{i:03}.png")
        for label in (1, 2):
            if (labels == label).any():
                save((labels == label).astype(np.uint8) * 255, root / f"stage1_train/{i:03}/masks/object{label}.png")


def tiff_values(root: Path) -> None:
    """Drosophila VNC: TIFF images, labels of other names with the same numbers, values of 0, 128 and 255."""
    for i in range(COUNT):
        image, labels = scene(i)
        save(image[..., 0], root / f"raw/{i:02}.tif")
        save(np.array([0, 128, 255], dtype=np.uint8)[labels], root / f"labels/labels{i:08}.png")


def voc(root: Path) -> None:
    """VOC 2012: palette masks with 255, more images than masks, lists of train and val, no test."""
    for i in range(COUNT + 3):
        image, labels = scene(i)
        save(image, root / f"JPEGImages/{i:03}.jpg", quality=95)
        if i < COUNT:
            labels[0] = 255
            mask = Image.fromarray(labels).convert("P")
            mask.putpalette([*COLOURS.ravel().tolist(), *[224] * 759])
            mask.putdata(labels.ravel().tolist())
            (root / "SegmentationClass").mkdir(exist_ok=True)
            mask.save(root / f"SegmentationClass/{i:03}.png")
    lists = root / "ImageSets/Segmentation"
    text(lists / "train.txt", *(f"{i:03}" for i in range(8)))
    text(lists / "val.txt", *(f"{i:03}" for i in range(8, COUNT)))


def folders(root: Path) -> None:
    """A folder a split, with other names, and a tree below it."""
    for i in range(COUNT):
        image, labels = scene(i)
        split = "training" if i < 8 else "valid" if i < 10 else "testing"
        save(image, root / f"{split}/image/scan{i % 2}/{i:03}.png")
        save(labels, root / f"{split}/label/scan{i % 2}/{i:03}.png")


def pairs(root: Path) -> None:
    """A CSV of pairs with splits and groups."""
    rows = ["image,mask,split,group"]
    for i in range(COUNT):
        image, labels = scene(i)
        save(image, root / f"a/{i:03}.bmp")
        save(labels, root / f"b/m{i:03}.png")
        split = "train" if i < 8 else "val" if i < 10 else "test"
        rows.append(f"a/{i:03}.bmp,b/m{i:03}.png,{split},patient {i // 2}")
    text(root / "pairs.csv", *rows)


def class_files(root: Path) -> None:
    """One mask a class, as of organs."""
    for i in range(COUNT):
        image, labels = scene(i)
        save(image, root / f"cxr/{i:03}.png")
        for label, organ in ((1, "heart"), (2, "left lung")):
            save((labels == label).astype(np.uint8) * 255, root / f"masks/{organ}/{i:03}.png")


def _rectangles(labels: np.ndarray) -> list[tuple[int, list[list[float]]]]:
    """The outline of each object as a polygon: what of it is seen is no rectangle where another one covers it."""
    found = []
    for label in (1, 2):
        for row in np.flatnonzero((labels == label).any(axis=1)):
            columns = np.flatnonzero(labels[row] == label)
            for run in np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1):
                left, right = float(run[0]), float(run[-1] + 1)
                found.append((label, [[left, row], [right, row], [right, row + 1.0], [left, row + 1.0]]))
    return [(label, [[float(x), float(y)] for x, y in polygon]) for label, polygon in found]


NAMES = {1: "box", 2: "crate"}


def labelme(root: Path) -> None:
    for i in range(COUNT):
        image, labels = scene(i)
        save(image, root / f"data/{i:03}.png")
        shapes = [{"label": NAMES[k], "shape_type": "polygon", "points": p} for k, p in _rectangles(labels)]
        content = {"version": "5", "imagePath": f"{i:03}.png", "imageHeight": 40, "imageWidth": 56, "shapes": shapes}
        text(root / f"data/{i:03}.json", json.dumps(content))


def supervisely(root: Path) -> None:
    for i in range(COUNT):
        image, labels = scene(i)
        save(image, root / f"ds/img/{i:03}.png")
        objects = []
        for label, name in NAMES.items():
            rows, columns = np.nonzero(labels == label)
            if not len(rows):
                continue
            top, left = int(rows.min()), int(columns.min())
            file = BytesIO()
            Image.fromarray((labels == label)[top : rows.max() + 1, left : columns.max() + 1]).save(file, "PNG")
            data = base64.b64encode(zlib.compress(file.getvalue())).decode()
            bitmap = {"data": data, "origin": [left, top]}
            objects.append({"classTitle": name, "geometryType": "bitmap", "bitmap": bitmap})
        content = {"size": {"height": 40, "width": 56}, "tags": [], "objects": objects}
        text(root / f"ds/ann/{i:03}.png.json", json.dumps(content))


def coco(root: Path) -> None:
    images, annotations = [], []
    for i in range(COUNT):
        image, labels = scene(i)
        save(image, root / f"train2017/{i:03}.png")
        images.append({"id": i, "file_name": f"{i:03}.png", "height": 40, "width": 56})
        for label in NAMES:
            flat = (labels == label).T.ravel()
            edges = np.flatnonzero(np.diff(np.concatenate([[False], flat, [False]]).astype(int)))
            counts = np.diff([0, *edges, *([flat.size] if not len(edges) or edges[-1] != flat.size else [])]).tolist()
            annotations.append(
                {"id": len(annotations), "image_id": i, "category_id": label, "iscrowd": 1, "area": int(flat.sum()),
                 "segmentation": {"size": [40, 56], "counts": counts}}
            )  # fmt: skip
    categories = [{"id": label, "name": name} for label, name in NAMES.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    text(root / "annotations/instances.json", json.dumps(content))


def sixteen_bits(root: Path) -> None:
    """A microscope: 12-bit numbers in 16-bit grey PNG, label images of instances."""
    for i in range(COUNT):
        image, labels = scene(i)
        save(image[..., 0].astype(np.uint16) * 16, root / f"img/{i:03}.png")
        save(labels.astype(np.uint16) * 300, root / f"inst/{i:03}.png")


def arrays(root: Path) -> None:
    """Five bands of floats, as NumPy arrays."""
    for i in range(COUNT):
        image, labels = scene(i)
        (root / "bands").mkdir(exist_ok=True)
        np.save(root / f"bands/{i:03}.npy", np.dstack([image, image[..., :2]]).astype(np.float32) / 100)
        save(labels, root / f"gt/{i:03}.png")


SHARES = {"train": 0.7, "val": 0.15, "test": 0.15}
THREE = {"soil": "#000000", "crop": "#00ff00", "weed": "#ff0000"}

FORMS = [
    Form(
        "colour masks with a suffix and a YAML split",
        suffixed_colours,
        {
            "images": "images/{name}_image.png",
            "masks": "annotations/{name}_annotation.png",
            "classes": THREE,
            "splits": {"train": "train_test_split.yaml", "val": 0.2, "test": "train_test_split.yaml"},
        },
    ),
    Form(
        "RGBA labels with odd lists",
        rgba_labels,
        {
            "images": "images/{name}.jpg",
            "masks": "labels/{name}.png",
            "classes": THREE,
            "splits": {"train": "train.txt", "val": 0.2, "test": "test.txt"},
        },
    ),
    Form(
        "one mask file an object",
        object_files,
        {
            "images": "stage1_train/{name}/images/{name}.png",
            "masks": "stage1_train/{name}/masks/*.png",
            "classes": ["background", "nucleus"],
            "channels": "rgb",
            "splits": SHARES,
        },
        labels=lambda labels: (labels > 0).astype(np.uint8),
    ),
    Form(
        "TIFF with other names and values to 255",
        tiff_values,
        {
            "images": "raw/{number}.tif",
            "masks": "labels/labels{number}.png",
            "classes": {"membrane": 0, "cell": 128, "synapse": 255},
            "splits": SHARES,
        },
        name=lambda i: f"{i:02}",
    ),
    Form(
        "VOC lists without a test split",
        voc,
        {
            "images": "JPEGImages/{name}.jpg",
            "masks": "SegmentationClass/{name}.png",
            "classes": ["background", "plane", "bird"],
            "splits": "ImageSets/Segmentation",
        },
        labels=lambda labels: np.vstack([np.full_like(labels[:1], 255), labels[1:]]),
        scored="val",
    ),
    Form(
        "a folder a split, and a tree",
        folders,
        {
            "images": "{split}/image/**/{name}.png",
            "masks": "{split}/label/**/{name}.png",
            "classes": ["background", "plane", "bird"],
        },
        name=lambda i: f"{'training' if i < 8 else 'valid' if i < 10 else 'testing'}/scan{i % 2}/{i:03}",
    ),
    Form("a CSV of pairs", pairs, {"pairs": "pairs.csv", "classes": ["background", "plane", "bird"]}),
    Form(
        "one mask file a class",
        class_files,
        {
            "images": "cxr/{name}.png",
            "masks": "masks/{class}/{name}.png",
            "classes": {"background": None, "heart": None, "lungs": ["left lung", "right lung"]},
            "splits": SHARES,
        },
    ),
    Form(
        "LabelMe",
        labelme,
        {
            "images": "data/{name}.png",
            "masks": "data/{name}.json",
            "classes": {"background": None, "a box": "box", "a crate": "crate"},
            "splits": SHARES,
        },
        extra=("polygons", "pycocotools"),
    ),
    Form(
        "Supervisely",
        supervisely,
        {
            "images": "ds/img/{name}.png",
            "masks": "ds/ann/{name}.png.json",
            "classes": ["background", "box", "crate"],
            "splits": SHARES,
        },
    ),
    Form(
        "COCO",
        coco,
        {
            "images": "train2017/{name}.png",
            "masks": "annotations/instances.json",
            "classes": ["background", "box", "crate"],
            "splits": SHARES,
        },
    ),
    Form(
        "16-bit grey and instances",
        sixteen_bits,
        {
            "images": "img/{name}.png",
            "masks": "inst/{name}.png",
            "classes": {"background": 0, "cell": "1-65535"},
            "channels": "grey",
            "value_range": [0, 4080],
            "splits": SHARES,
        },
        labels=lambda labels: (labels > 0).astype(np.uint8),
    ),
    Form(
        "five bands of floats",
        arrays,
        {
            "images": "bands/{name}.npy",
            "masks": "gt/{name}.png",
            "classes": ["background", "plane", "bird"],
            "channels": "all",
            "value_range": [0, 2.55],
            "splits": SHARES,
        },
    ),
]


def cases(forms: Iterable[Form]) -> list[Any]:
    """For `parametrize`, each with the mark of the extra that it needs."""
    return [pytest.param(f, id=f.what, marks=pytest.mark.extra(*f.extra) if f.extra else ()) for f in forms]


FIVE = FORMS[:5]  # of own_data.md F8
