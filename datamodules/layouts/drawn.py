"""What the annotation of one image draws, checked as it is read, so that drawing it ends in bounded time and memory.

Coordinates are COCO's: x to the right and y down in pixels, and pixel (0, 0) covers 0 to 1, with its centre at 0.5.
"""

import base64
import binascii
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datamodules.checks.problems import coded, shown
from datamodules.files import MAX_PIXELS, decoded, readable, short

MAX_BYTES = 2**31  # of a file; the annotations of COCO's 118,287 training images have a fifth of it
MAX_COORDINATE = 10_000_000  # pixels; COCO's C code counts fifths of them in 32 bits, and overflows unseen
MAX_EDGES = 2_000_000  # pixels around one polygon, or runs of one mask; COCO's C code takes 120 bytes for each
MAX_ALL_EDGES = 20_000_000  # of all shapes of an image; half a minute where they are small
MAX_COVERED = 10**11  # pixels of the columns that the shapes of an image cover, each shape by itself; ten seconds
DECODING = 100  # times as long as to cover a pixel takes it to read one of a bitmap
LONGEST = 40  # letters of a value that a message repeats


@dataclass(frozen=True, eq=False)
class Polygon:
    """Rings of (N, 2) float64 x and y in pixels with N >= 3: the outline, then its holes."""

    rings: tuple[np.ndarray, ...]


@dataclass(frozen=True, eq=False)
class Runs:
    """(N,) int32: pixels outside and inside by turns, outside first, down the columns of the image; sums to H * W."""

    counts: np.ndarray


@dataclass(frozen=True, eq=False)
class Shape:
    """An area of one class."""

    name: str  # of the class
    geometry: Polygon | Runs


@dataclass(frozen=True, eq=False)
class Drawn:
    """The annotation of one image."""

    size: tuple[int, int]  # height and width as the annotation states them
    shapes: tuple[Shape, ...]  # in drawing order: a later one covers an earlier one


def refused(where: str, expected: str, got: str, way_out: str) -> ValueError:
    """The error of an annotation; `where` names the file and the place in it, fit to be shown."""
    return coded("E_ANNOTATION", f"{where}: expected {expected}, got {got}; {way_out}")


def described(value: object) -> str:
    """A value of a JSON text as a message tells it, however long it is."""
    if value is None:
        return "no value"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, str):
        return shown(repr(value[:LONGEST]))
    return repr(value)[:LONGEST].lower()  # true as JSON spells it; a number has at most 4,300 digits


def parsed(path: Path) -> dict[str, Any]:
    """The object in a JSON file; FileNotFoundError where there is none, and ValueError where it cannot be read."""
    name = short(path)
    with readable(name):
        if path.is_symlink() and not path.exists():
            raise coded("E_BROKEN_LINK", f"{name} is a broken link; restore the file it points to")
        if path.is_file() and (size := path.stat().st_size) > MAX_BYTES:
            raise refused(name, f"at most {MAX_BYTES:,} bytes", f"{size:,}", "split it up")
        text = decoded(path, name)
    if not text.strip():
        raise coded("E_EMPTY_FILE", f"{name} is empty; export it again")
    export = "export it again as JSON, or move it out"
    try:
        content = json.loads(text)
    except RecursionError:
        raise refused(name, "the JSON of an annotation", "lists a thousand deep", export) from None
    except json.JSONDecodeError as error:
        raise refused(name, "JSON", f"{error.msg} in line {error.lineno}", export) from None
    except ValueError:  # Python reads no number of 5,000 digits
        raise refused(name, "the JSON of an annotation", "a number of thousands of digits", export) from None
    if not isinstance(content, dict):
        raise refused(name, "a JSON object", described(content), export)
    return content


def whole(value: object) -> int | None:
    """A whole number, also where it is written 3.0; None for all else."""
    if type(value) is int:
        return value
    return int(value) if isinstance(value, float) and value.is_integer() else None


def size_of(height: object, width: object, where: str, keys: str) -> tuple[int, int]:
    """Height and width of the image, which the annotation states under these keys."""
    high, wide = whole(height), whole(width)
    if high is None or wide is None or high < 1 or wide < 1:
        raise refused(
            where,
            f"the image's size in pixels as {keys}",
            f"{described(height)} and {described(width)}",
            "open the image in the tool and save again, or write them",
        )
    if high * wide > MAX_PIXELS:
        raise refused(
            where,
            f"at most {MAX_PIXELS // 10**6} million pixels as {keys}",
            f"{described(height)} x {described(width)}",
            "correct them, or cut the image up",
        )
    return high, wide


def objects_in(content: dict[str, Any], key: str, where: str) -> list[dict[str, Any]]:
    """The list of objects under a key."""
    listed = content.get(key)
    if not isinstance(listed, list):
        raise refused(where, f"a list {key}", described(listed), "export it again")
    for number, one in enumerate(listed, 1):
        if not isinstance(one, dict):
            raise refused(f"{where} {key} {number}", "an object", described(one), "take it out")
    return listed


def name_in(content: dict[str, Any], key: str, where: str) -> str:
    """The name of a class under a key."""
    name = content.get(key)
    if not isinstance(name, str) or not name.strip():
        raise refused(where, f"the name of a class as {key}", described(name), "give it one")
    return name


def points_of(value: object, where: str) -> np.ndarray:
    """(N, 2) float64, from a list of [x, y]."""
    if not isinstance(value, list):
        raise refused(where, "a list of points [x, y]", described(value), "draw it again")
    for point in value:
        if not isinstance(point, list) or len(point) != 2:
            raise refused(where, "points [x, y]", described(point), "draw it again")
    return numbers_of([number for point in value for number in point], where).reshape(-1, 2)


def numbers_of(values: list[Any], where: str) -> np.ndarray:
    """(N,) float64 of coordinates."""
    for value in values:
        # A comparison with NaN is false, and one with an integer of any length is exact.
        if type(value) not in (int, float) or not -MAX_COORDINATE <= value <= MAX_COORDINATE:
            expected = f"coordinates in pixels, {MAX_COORDINATE:,} at most"
            raise refused(where, expected, described(value), "correct it, or draw the shape again")
    return np.array(values, dtype=np.float64)


def corners_of(points: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
    """(2,) and (2,): the upper left and the lower right corner, of two opposite ones in any order."""
    if len(points) != 2:
        raise refused(where, "two opposite corners", f"{len(points)} points", "draw the rectangle again")
    return points.min(0), points.max(0)


def box_ring(corner: np.ndarray, opposite: np.ndarray) -> np.ndarray:
    """(4, 2): the ring of a rectangle between two corners."""
    (left, top), (right, bottom) = corner, opposite
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])


class Canvas:
    """Takes the shapes of one image, and raises ValueError for one that cannot be drawn or would take too long."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self._edges = 0
        self._covered = 0

    def polygon(self, name: str, rings: Sequence[np.ndarray], where: str) -> Shape:
        """A shape between an outline and its holes, each (N, 2)."""
        for ring in rings:
            if len(ring) < 3:
                raise refused(where, "at least 3 points around an area", f"{len(ring)}", "draw it again, or delete it")
        left, right = np.clip([rings[0][:, 0].min(), rings[0][:, 0].max()], 0, self.size[1])
        for ring in rings:
            steps = np.abs(ring - np.roll(ring, 1, axis=0)).max(1).sum() + 2 * len(ring)  # at least its runs, too
            self._spend(int(steps), (int(right - left) + 2) * self.size[0], where)
        return Shape(name, Polygon(tuple(rings)))

    def runs(self, name: str, counts: np.ndarray, where: str) -> Shape:
        """A shape of runs that sum to the pixels of the image."""
        self._spend(len(counts), int(counts[1::2].sum()), where)
        return Shape(name, Runs(counts.astype(np.int32)))

    def bitmap(
        self, name: str, png: bytes, corner: tuple[int, int], where: str, box: tuple[int, int] | None = None
    ) -> Shape:
        """A shape of the pixels of a PNG that are not 0, or not transparent; its left upper pixel is at (x, y).

        What lies outside the image is cut off. A `box` is the width and height that it must have, give or take 1.
        """
        (height, width), (left, top) = self.size, corner
        try:
            image = Image.open(BytesIO(png), formats=["PNG"])
        except Exception as error:  # broken files raise six kinds of exception in Pillow
            raise refused(where, "a PNG of its mask", f"{len(png)} bytes that are none", "export it again") from error
        if image.width > width or image.height > height:
            raise refused(
                where,
                f"a mask within the image of {width} x {height} pixels",
                f"{image.width} x {image.height}",
                "export it again for the image as it is here",
            )
        if box and max(abs(image.width - box[0]), abs(image.height - box[1])) > 1:
            got = f"one of {image.width} x {image.height}"
            raise refused(where, f"a mask of its box, {box[0]} x {box[1]} pixels", got, "draw it again")
        self._spend(0, DECODING * (image.width * image.height + len(png)), where)
        try:
            inside = _foreground(image)
        except Exception as error:
            raise refused(where, "a PNG of its mask", f"a damaged one ({error})", "export it again") from error
        inside = inside[max(0, -top) : max(0, height - top), max(0, -left) : max(0, width - left)]
        left, top = max(0, left), max(0, top)
        edges = np.diff(np.pad(inside.T.astype(np.int8), ((0, 0), (1, 1))), axis=1)
        self._spend(int(np.count_nonzero(edges)), 0, where)  # before 16 bytes are taken for each
        columns, rows = edges.nonzero()
        places = (columns + left) * height + rows + top
        return self.runs(name, np.diff(np.concatenate([[0], places, [height * width]])), where)

    def _spend(self, edges: int, covered: int, where: str) -> None:
        """Raises ValueError where drawing takes more than a few seconds, or more memory than an image."""
        if edges > MAX_EDGES:
            raise refused(where, f"an outline of at most {MAX_EDGES:,} pixels", f"{edges:,}", "simplify it")
        self._edges += edges
        self._covered += covered
        if self._edges > MAX_ALL_EDGES or self._covered > MAX_COVERED:
            raise refused(
                where,
                f"outlines of {MAX_ALL_EDGES:,} pixels in all, over {MAX_COVERED:,} pixels in all",
                f"{self._edges:,} over {self._covered:,}",
                "simplify the shapes, or cut the image up",
            )


def unpacked(text: object, where: str, *, compressed: bool) -> bytes:
    """The bytes of a base64 text, which zlib may have compressed."""
    if not isinstance(text, str):
        raise refused(where, "its mask as a base64 text", described(text), "export it again")
    try:
        data = base64.b64decode(text, validate=True)
        if not compressed:
            return data
        unpacking = zlib.decompressobj()
        data = unpacking.decompress(data, MAX_PIXELS)
    except (binascii.Error, ValueError, zlib.error) as error:
        raise refused(where, "its mask in base64", f"damaged text ({error})", "export it again") from None
    if not unpacking.eof:
        raise refused(where, "its mask in base64", "a text that is cut off or unpacks without end", "export it again")
    return data


def _foreground(image: Image.Image) -> np.ndarray:
    """(H, W) bool: what is not transparent, or without transparency what is not 0."""
    if "A" in image.getbands() or "transparency" in image.info:
        return np.asarray(image.convert("RGBA"))[..., 3] > 0
    values = np.asarray(image)  # of a palette, the indices
    return values.astype(bool) if values.ndim == 2 else np.asarray(values.any(-1))
