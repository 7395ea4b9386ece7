"""Boxes of objects that a CSV file states: read, checked, and in the pixels of an image at another size.

The file has the header image,left,top,right,bottom,category and a line a box. Sides are in pixels of the upright image
as it lies on the disk, right and bottom exclusive; the category is a class by its name or its number.
"""

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from datamodules.checks.problems import shown, some
from datamodules.files import decoded
from datamodules.layouts.pixels import bands_of

COLUMNS = ("image", "left", "top", "right", "bottom", "category")
ORIENTATION = 0x0112  # EXIF tag; 5 to 8 swap height and width


class Box(NamedTuple):
    """A line of the file."""

    line: int
    left: float
    top: float
    right: float
    bottom: float
    category: int


Boxes = Mapping[str, list[Box]]  # by the name of the image


def read_boxes(path: Path, class_names: Sequence[str], find: Callable[[str], str | None]) -> Boxes:
    """The boxes of each image; `find` tells which image a cell means, and None where it means none.

    FileNotFoundError without a file, ValueError for what cannot be used: it names the line, the column and what came.
    """
    if not path.exists():
        raise FileNotFoundError(f"the boxes {shown(str(path))} are not there: give a CSV file {','.join(COLUMNS)}")
    reader = csv.reader(StringIO(decoded(path, str(path))), strict=True)
    name, boxes = shown(str(path)), dict[str, list[Box]]()
    lines = dict[tuple[str, Box], int]()  # of boxes, whatever their line
    try:
        header = [word.strip() for word in next(reader, [])]
        if header != [*COLUMNS]:
            raise ValueError(
                f"{name} line 1: expected the header {','.join(COLUMNS)}, got {some(header, 8)!r}: write it so"
            )
        for row in reader:
            words = [word.strip() for word in row]
            if any(words):
                where = f"{name} line {reader.line_num}"
                if len(words) != len(COLUMNS):
                    raise ValueError(f"{where}: expected {','.join(COLUMNS)}, got {len(words)} values")
                image = find(words[0])
                if image is None:
                    raise ValueError(f"{where}, image: there is no {shown(words[0])[:80]!r}: correct or leave it out")
                box = _box(words, reader.line_num, where, class_names)
                if (first := lines.setdefault((image, box._replace(line=0)), box.line)) != box.line:
                    raise ValueError(f"{where}: the same box as in line {first}: leave one of them out")
                boxes.setdefault(image, []).append(box)
    except csv.Error as error:
        raise ValueError(f"{name} line {reader.line_num}: expected a CSV file ({error}); mend the line") from error
    if not boxes:
        raise ValueError(f"{name} has no box: give one a line, below {','.join(COLUMNS)}")
    return boxes


def _box(words: Sequence[str], line: int, where: str, class_names: Sequence[str]) -> Box:
    sides = []
    for column, word in zip(COLUMNS[1:5], words[1:5], strict=True):
        try:
            number = float(word)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"{where}, {column}: expected a number of pixels, got {shown(word)[:80]!r}")
        sides.append(number)
    left, top, right, bottom = sides
    for low, high, ends in ((left, right, ("left", "right")), (top, bottom, ("top", "bottom"))):
        if low < 0:
            raise ValueError(f"{where}, {ends[0]}: expected at least 0, got {low:g}: cut the box off at the image")
        if low >= high:
            raise ValueError(
                f"{where}, {ends[1]}: the box is empty: expected more than {low:g}, got {high:g}: give the place of "
                f"that side, no length, or leave the box out"
            )
    return Box(line, left, top, right, bottom, _category(words[5], where, class_names))


def _category(word: str, where: str, class_names: Sequence[str]) -> int:
    if word in class_names:
        return class_names.index(word)
    if word.isascii() and word.isdigit() and len(word) < 10 and int(word) < len(class_names):
        return int(word)
    raise ValueError(
        f"{where}, category: expected a class, one of {some(class_names, 12)}, or a number below {len(class_names)}, "
        f"got {shown(word)[:80]!r}"
    )


def check_within(path: Path, boxes: Boxes, size_of: Callable[[str], tuple[int, int]]) -> None:
    """Raises ValueError for a box that reaches beyond its image, of which `size_of` tells height and width."""
    for image, of_image in boxes.items():
        height, width = size_of(image)
        for box in of_image:
            for column, end, most in (("right", box.right, width), ("bottom", box.bottom, height)):
                if end > most:
                    raise ValueError(
                        f"{shown(str(path))} line {box.line}, {column}: expected at most {most}, as {shown(image)} has "
                        f"{width} x {height} pixels, got {end:g}: cut the box off at the image"
                    )


def upright_size(path: Path) -> tuple[int, int]:
    """Height and width of the image in a file, turned upright; of its header alone."""
    header = bands_of(path)
    turned = False
    with suppress(OSError, ValueError, SyntaxError), Image.open(path) as image:  # what Pillow does not read is upright
        turned = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
    return (header.width, header.height) if turned else (header.height, header.width)


def in_pixels(boxes: Sequence[Box], size: tuple[int, int], scaled: tuple[int, int]) -> Tensor:
    """Boxes of an image of `size` (H, W), in whole pixels of the same image `scaled`: (B, 5) int64, at least a pixel.

    Columns are left, top, right, bottom, category; right and bottom are exclusive.
    """
    sides = torch.tensor([box[1:5] for box in boxes], dtype=torch.float64).view(-1, 4)
    factors = torch.tensor([scaled[1] / size[1], scaled[0] / size[0]] * 2, dtype=torch.float64)
    ends = (sides * factors).round().long()
    low = torch.minimum(ends[:, :2], torch.tensor([scaled[1] - 1, scaled[0] - 1]))
    high = torch.maximum(ends[:, 2:], low + 1)
    return torch.cat([low, high, torch.tensor([[box.category] for box in boxes], dtype=torch.int64).view(-1, 1)], dim=1)


def filled_up(boxes: Tensor, most: int) -> Tensor:
    """Boxes (B, 5) -> (most, 5), the rest -1: so that images with more and fewer of them make a batch."""
    return torch.cat([boxes, boxes.new_full((most - len(boxes), 5), -1)])
