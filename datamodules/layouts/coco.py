"""COCO's annotations of many images in one file, and its run lengths."""

from pathlib import Path
from typing import Any

import numpy as np

from datamodules.checks.problems import shown
from datamodules.files import short
from datamodules.layouts.drawn import (
    MAX_EDGES,
    Canvas,
    Drawn,
    Shape,
    described,
    name_in,
    numbers_of,
    objects_in,
    parsed,
    refused,
    size_of,
)

LISTS = ("images", "annotations")
BYTES = 6  # characters of a run in a text, at most
KNOWN = "export the file again, or take it out"


def has_lists(content: dict[str, Any]) -> bool:
    """Whether the content of a JSON file has the lists of COCO's."""
    return all(isinstance(content.get(key), list) for key in LISTS)


def is_coco(path: Path) -> bool:
    """Whether a JSON file lists `images` and `annotations`; raises what `read_coco` raises for no JSON."""
    return has_lists(parsed(path))


def read_coco(path: Path) -> dict[str, Drawn]:
    """The annotations by the file_name of the image as it is written, also of images without an object.

    Objects of an image are drawn from the largest area to the smallest one, so that small ones lie on top. Of two that
    are as large, the later one does. A region that is a crowd belongs to its class. Raises ValueError for what cannot
    be drawn, and FileNotFoundError.
    """
    content, where = parsed(path), short(path)
    names = _categories(content, where)
    canvases, files = _images(content, where)
    objects: dict[int | str, list[tuple[float, list[Shape]]]] = {image: [] for image in canvases}
    for number, one in enumerate(objects_in(content, "annotations", where), 1):
        place = f"{where} annotation {number}"
        image = _id(one, "image_id", place)
        if image not in canvases:
            raise refused(place, "the id of an image as image_id", described(image), KNOWN)
        category = _id(one, "category_id", place)
        if category not in names:
            raise refused(place, "the id of a category as category_id", described(category), KNOWN)
        name = names[category]
        objects[image].append(_object(canvases[image], name, one.get("segmentation"), f"{place} ({shown(name[:80])})"))
    return {
        files[image]: Drawn(
            canvas.size,
            tuple(shape for _, shapes in sorted(objects[image], key=lambda of: -of[0]) for shape in shapes),
        )
        for image, canvas in canvases.items()
    }


def _categories(content: dict[str, Any], where: str) -> dict[int | str, str]:
    names: dict[int | str, str] = {}
    for number, one in enumerate(objects_in(content, "categories", where), 1):
        place = f"{where} category {number}"
        number_of = _id(one, "id", place)
        if number_of in names:
            raise refused(place, "an id of its own", described(number_of), "number the categories anew")
        names[number_of] = name_in(one, "name", place)
    return names


def _images(content: dict[str, Any], where: str) -> tuple[dict[int | str, Canvas], dict[int | str, str]]:
    """Where to draw, and the file_name, by the id of the image."""
    canvases: dict[int | str, Canvas] = {}
    files: dict[int | str, str] = {}
    seen: set[str] = set()
    for number, one in enumerate(objects_in(content, "images", where), 1):
        place = f"{where} image {number}"
        image, file = _id(one, "id", place), one.get("file_name")
        if not isinstance(file, str) or not file:
            raise refused(place, "the path of an image as file_name", described(file), KNOWN)
        place = f"{place} ({shown(file[:80])})"
        if image in canvases:
            raise refused(place, "an id of its own", described(image), "number the images anew")
        if file in seen:
            raise refused(place, "a file_name of its own", "one that was there before", "leave one of them")
        canvases[image] = Canvas(size_of(one.get("height"), one.get("width"), place, "height and width"))
        files[image] = file
        seen.add(file)
    return canvases, files


def _id(content: dict[str, Any], key: str, where: str) -> int | str:
    value = content.get(key)
    if type(value) not in (int, str):
        raise refused(where, f"a number as {key}", described(value), KNOWN)
    return value  # type: ignore[return-value]


def _object(canvas: Canvas, name: str, segmentation: object, where: str) -> tuple[float, list[Shape]]:
    """The area of an object in pixels, and its parts."""
    if isinstance(segmentation, dict):
        counts = _counts(canvas, segmentation, where)
        return float(counts[1::2].sum()), [canvas.runs(name, counts, where)]
    if not isinstance(segmentation, list) or not segmentation:
        got = "an empty list" if segmentation == [] else described(segmentation)
        raise refused(
            where, "polygons or run lengths as segmentation", got, "a box has no outline: draw it, or delete it"
        )
    area, parts = 0.0, []
    for number, flat in enumerate(segmentation, 1):
        place = f"{where} part {number}"
        if not isinstance(flat, list) or len(flat) % 2:
            got = f"{len(flat)} numbers" if isinstance(flat, list) else described(flat)
            raise refused(place, "a polygon [x, y, x, y, ...]", got, "draw it again")
        ring = numbers_of(flat, place).reshape(-1, 2)
        parts.append(canvas.polygon(name, [ring], place))
        after = np.roll(ring, -1, axis=0)
        area += abs(float((ring[:, 0] * after[:, 1] - ring[:, 1] * after[:, 0]).sum())) / 2
    return area, parts


def _counts(canvas: Canvas, segmentation: dict[str, Any], where: str) -> np.ndarray:
    """(N,) int64: run lengths that sum to the pixels of the image."""
    height, width = canvas.size
    if segmentation.get("size") != [height, width]:
        stated = segmentation.get("size")
        got = " x ".join(map(described, stated)) if isinstance(stated, list) and len(stated) == 2 else described(stated)
        export = "export it again for the image as it is here"
        raise refused(where, f"run lengths of the image's size, {height} x {width}", got, export)
    listed = segmentation.get("counts")
    counts: np.ndarray | None = None
    if isinstance(listed, str) and listed.isascii():
        counts = run_lengths(listed.encode())
    elif (
        isinstance(listed, list) and 0 < len(listed) <= MAX_EDGES and all(_fits(run, height * width) for run in listed)
    ):
        counts = np.array(listed, dtype=np.int64)
    if counts is not None and not 0 <= counts.min() <= counts.max() <= height * width:
        counts = None  # before their sum overflows
    if counts is None or counts.sum() != height * width:
        got = described(listed) if counts is None else f"{len(counts)} of them that sum to {counts.sum():,}"
        raise refused(where, f"run lengths that sum to {height * width:,} pixels", got, "export it again")
    return counts


def _fits(run: object, pixels: int) -> bool:
    return type(run) is int and 0 <= run <= pixels  # before an array of them overflows


def run_lengths(text: bytes) -> np.ndarray | None:
    """(N,) int64 from COCO's compressed text; None for one that is damaged, or has more than 2,000,000 runs.

    A character holds 5 bits, and whether the number goes on. Numbers are signed, and from the fourth one on they are
    differences to the last but one. pycocotools does not look for the end of the text, and reads memory beyond it.
    """
    codes = np.frombuffer(text[: BYTES * MAX_EDGES + 1], np.uint8).astype(np.int64) - 48
    if not 0 < len(codes) <= BYTES * MAX_EDGES or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    places = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    if len(ends) > MAX_EDGES or places.max() > BYTES:
        return None
    runs = np.add.reduceat((codes & 31) << 5 * places, starts)
    runs -= np.where(codes[ends] & 16, 1 << 5 * (places[ends] + 1), 0)
    for first in (1, 2):
        runs[first::2] = np.cumsum(runs[first::2])
    return runs
