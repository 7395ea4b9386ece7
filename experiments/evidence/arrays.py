"""Arrays in a file of numpy's, and pictures in a zip, read after their headers have been checked against what is
expected.

The memory that reading takes is known before anything is decoded: headers are small, and what they claim is compared
with the schema and with the sizes in the zip's directory. Large arrays are read in blocks of images.
"""

import io
import math
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BLOCK = 2**22  # bytes that are read at once
MOST_BYTES = 2**32  # of arrays of one file that are not read in blocks
MOST_TEXT = 2**28  # bytes of an array of words
# Of numpy's types: in words, and the bytes of an item.
KINDS = {
    "U": ("words of up to 4,096 letters", 4 * 4096),
    "iu": ("whole numbers", 8),
    "u": ("bytes", 1),
    "f": ("floating-point numbers of up to 8 bytes", 8),
}
UNKNOWN_PIXELS = 2**26  # of a picture whose size nothing tells


class DamagedError(ValueError):
    """A file that does not hold what it should; the message names file and field."""


def unreadable(path: Path, error: Exception, way_out: str = "") -> DamagedError:
    """That a file cannot be read, why, and the way out."""
    why = str(error) or type(error).__name__
    way_out = way_out or f"delete {path.parent} and run the experiment again"
    return DamagedError(f"{path} cannot be read ({why[:200]}): {way_out}")


@dataclass(frozen=True)
class Array:
    """What is expected of an array: `kinds` of numpy's types, the shape, and the values.

    A letter in `shape` is a size which is the same wherever it stands.
    """

    kinds: str
    shape: tuple[str | int, ...]
    low: float = 0.0
    high: float = math.inf
    nan: bool = False  # allowed
    any_value: bool = False
    optional: bool = False


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool


class Npz(Mapping[str, NDArray[Any]]):
    """The arrays of an .npz that `expected` names, each read when it is asked for, and checked.

    `sizes` are those that are known; others are found. Arrays that are not expected are left alone. Raises
    DamagedError.
    """

    def __init__(self, path: Path, expected: Mapping[str, Array], sizes: Mapping[str, int], most: int) -> None:
        self.path, self.expected, self.sizes = path, expected, dict(sizes)
        self.headers: dict[str, _Header] = {}
        named = set(sizes)
        with _reading(path), opened(path) as archive:
            names = set(archive.namelist())
            for key, wanted in expected.items():
                if f"{key}.npy" in names:
                    with member(archive, f"{key}.npy") as stream:
                        self.headers[key] = _read_header(stream)
                elif wanted.optional:
                    continue
                self._check(archive, key, wanted, named, most)

    def __getitem__(self, key: str) -> NDArray[Any]:
        if key not in self.headers:
            raise KeyError(key)
        header = self.headers[key]
        rows = [block for _, block in self.blocks(key, whole=True)]
        if len(rows) == 1:
            return rows[0]
        return np.concatenate(rows) if rows else np.empty(header.shape, header.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.headers)

    def __len__(self) -> int:
        return len(self.headers)

    def __contains__(self, key: object) -> bool:
        return key in self.headers

    def texts(self, key: str) -> list[str]:
        """An array (n,) of words."""
        with _reading(self.path):
            return [str(word) for word in self[key].tolist()]

    def blocks(self, key: str, *, whole: bool = False) -> Iterator[tuple[int, NDArray[Any]]]:
        """Rows of the array in their order, with the number of the first of them; `whole`: all at once."""
        header = self.headers[key]
        count, row = header.shape[0], math.prod(header.shape[1:]) * header.dtype.itemsize
        step = count if whole or header.fortran else max(1, BLOCK // max(row, 1))
        with _reading(self.path), opened(self.path) as archive, member(archive, f"{key}.npy") as stream:
            _read_header(stream)
            for first in range(0, count, max(step, 1)):
                rows = min(step, count - first)
                content = bytearray(rows * row)
                _fill(stream, content)
                if header.dtype.kind == "U":
                    codes = np.frombuffer(content, np.dtype("u4").newbyteorder(header.dtype.byteorder))
                    if codes.size and codes.max() > sys.maxunicode:  # numpy makes words of them that crash Python
                        raise ValueError(f"{key} holds no text")
                values = np.frombuffer(content, header.dtype)
                # A Fortran order, which numpy gives to a transposed array, cannot be cut into rows.
                block = (
                    values.reshape(header.shape[::-1]).T if header.fortran else values.reshape(-1, *header.shape[1:])
                )
                self._check_values(key, first, block)
                yield first, block

    def _check(self, archive: zipfile.ZipFile, key: str, wanted: Array, named: set[str], most: int) -> None:
        header = self.headers.get(key)
        shape = None if header is None else header.shape
        fits = header is not None and len(header.shape) == len(wanted.shape)
        for length, name in zip(shape or (), wanted.shape, strict=False) if fits else ():
            size = self.sizes.setdefault(name, length) if isinstance(name, str) else name
            fits = fits and 0 < size == length <= most
        if not fits or header is None:
            told = tuple(self.sizes[name] if name in named and isinstance(name, str) else name for name in wanted.shape)
            self._refuse(f"{key} must have the shape {told} for n images, got {shape}")
            return
        kind, largest = KINDS[wanted.kinds]
        if header.dtype.kind not in wanted.kinds or header.dtype.itemsize > largest:
            self._refuse(f"{key} must hold {kind}, got {header.dtype.str[:40]}")
        stored = archive.getinfo(f"{key}.npy").file_size
        claimed = math.prod(header.shape) * header.dtype.itemsize
        if "U" in wanted.kinds and claimed > MOST_TEXT:
            self._refuse(f"{key} must take up to {MOST_TEXT:,} bytes, got {claimed:,}")
        if not claimed < stored <= claimed + 2**17:
            self._refuse(
                f"{key} must take the {claimed:,} bytes that its header claims, got {stored:,} with the header"
            )

    def check_total(self, prefixes: tuple[str, ...]) -> None:
        """That the arrays of these names together are small enough to be held at once."""
        total = sum(
            math.prod(header.shape) * header.dtype.itemsize
            for key, header in self.headers.items()
            if key.startswith(prefixes)
        )
        if total > MOST_BYTES:
            self._refuse(f"the arrays must take up to {MOST_BYTES:,} bytes together, got {total:,}")

    def _check_values(self, key: str, first: int, block: NDArray[Any]) -> None:
        wanted = self.expected[key]
        if block.dtype.kind == "U" or wanted.any_value or not block.size:
            return
        if block.dtype.kind in "iu" and block.min() >= wanted.low and block.max() <= wanted.high:
            return
        with np.errstate(invalid="ignore"):
            right = (block >= wanted.low) & (block <= wanted.high)
        if wanted.nan:
            right |= np.isnan(block)
        if not right.all():
            place = np.argwhere(~right)[0]
            value = block[tuple(place)]
            place[0] += first
            self._refuse(
                f"{key}[{', '.join(map(str, place))}] must be {wanted.low:g} to {wanted.high:g}"
                f"{' or not a number' if wanted.nan else ''}, got {value}"
            )

    def _refuse(self, reason: str) -> None:
        raise DamagedError(f"{self.path}: {reason}: delete {self.path.parent} and run the experiment again")


def read_picture(path: Path, name: str, size: tuple[int, int] | None, least: int) -> NDArray[np.uint8]:
    """The labels (H, W) in the PNG `name` of the zip at `path`.

    It must have this `size` or, where that is not known, `least` pixels and up to `UNKNOWN_PIXELS`. Raises
    DamagedError.
    """
    most = UNKNOWN_PIXELS if size is None else math.prod(size)
    with _reading(path), opened(path) as archive:
        info = archive.getinfo(name)
        # A byte a pixel and one a row, in the worst case grown by the compression; the rest is colours and text.
        if info.file_size > 3 * most + 2**20:
            raise ValueError(f"{name} takes {info.file_size:,} bytes, too many for a picture of {most:,} pixels")
        with member(archive, name) as stream:
            content = stream.read()
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            width, height = picture.size
            if size is not None and (height, width) != size:
                raise ValueError(
                    f"{name} must have {size[0]} x {size[1]} pixels as its mask has, got {height} x {width}"
                )
            if not least <= height * width <= most:
                raise ValueError(f"{name} must have {least:,} to {most:,} pixels, got {height} x {width}")
            if picture.mode not in ("P", "L"):
                raise ValueError(f"{name} must hold a label a pixel, got the mode {picture.mode}")
            return np.array(picture)


def opened(path: Path) -> zipfile.ZipFile:
    """The zip at `path`; a pipe would be waited for."""
    if path.exists() and not path.is_file():
        raise ValueError("no regular file")
    return zipfile.ZipFile(path)


@contextmanager
def member(archive: zipfile.ZipFile, name: str) -> Iterator[IO[bytes]]:
    """A file in a zip, of the kinds that numpy and this project write."""
    info = archive.getinfo(name)
    if info.flag_bits & 1:
        raise ValueError(f"{name} is encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is compressed by an unknown method, {info.compress_type}")
    with archive.open(info) as stream:
        yield stream


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Names the file in whatever goes wrong while it is read: zlib, struct, zipfile, numpy and Pillow raise a dozen
    kinds."""
    try:
        yield
    except DamagedError:
        raise
    except Exception as error:
        raise unreadable(path, error) from error


def _read_header(stream: IO[bytes]) -> _Header:
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"an array of the format {version}, which holds no plain numbers")
    shape, fortran, dtype = readers[version](stream)
    if not all(type(size) is int for size in shape):
        raise ValueError(f"an array of the shape {shape}")
    return _Header(shape, dtype, fortran and len(shape) > 1)


def _fill(stream: IO[bytes], content: bytearray) -> None:
    view, place = memoryview(content), 0
    while place < len(view):
        part = stream.read(min(len(view) - place, 2**20))
        if not part:
            raise EOFError(f"ends {len(view) - place:,} bytes too early")
        view[place : place + len(part)] = part
        place += len(part)
