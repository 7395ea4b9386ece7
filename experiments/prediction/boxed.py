"""Boxes of objects for images that are predicted, of a file: read and checked before the first of them is."""

from collections.abc import Sequence
from pathlib import Path

from datamodules.boxes import Boxes, check_within, read_boxes, upright_size
from datamodules.checks.problems import shown, some
from experiments.prediction.raster import is_georeferenced
from experiments.prediction.segmenter import Segmenter
from experiments.prediction.sources import Item


def boxes_of(path: Path, items: Sequence[Item], segmenter: Segmenter) -> Boxes:
    """The boxes of each image by its name, of a CSV file as `datamodules.boxes` has it.

    A cell means an image by its name, with or without ending, or by the last part of that where one image has it.
    Raises ValueError for a network that does not predict in boxes, an image that is read in parts, and one without a
    box; FileNotFoundError without the file.
    """
    names: dict[str, set[str]] = {}
    for item in items:
        if item.url or item.volume or is_georeferenced(item.path):
            raise ValueError(
                f"--boxes are of images that are read at once from here, and {shown(str(item.path))} is not"
            )
        last = item.name.rpartition("/")[2]
        for form in {item.name, f"{item.name}{item.path.suffix}", last, item.path.name}:
            names.setdefault(form, set()).add(item.name)
    found = {form: next(iter(of)) for form, of in names.items() if len(of) == 1}
    boxes = read_boxes(path, segmenter.class_names, found.get)
    categories = {box.category for of_image in boxes.values() for box in of_image}
    for module in segmenter.modules:
        module.check_boxes(categories)
    paths = {item.name: item.path for item in items}
    check_within(path, boxes, lambda name: upright_size(paths[name]))
    if missing := [item.name for item in items if item.name not in boxes]:
        raise ValueError(
            f"{shown(str(path))} has no box of {len(missing)} of the {len(items)} images: {some(missing, 5)}; add "
            "them, or leave these images out"
        )
    return boxes
