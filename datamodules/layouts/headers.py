"""What the header of an image file says, before anything is decoded: size, bands, bits, and who reads it."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from PIL import Image

from datamodules.checks.formats import TIFFS, named
from datamodules.checks.problems import coded
from datamodules.files import FORMATS, read_bytes, readable, short

BANDS_OF_MODE = {"1": 1, "L": 1, "P": 3, "RGB": 3, "LA": 2, "PA": 4, "RGBA": 4}  # 8 bits each, as Pillow decodes them
BANDS_OF_PNG = {0: 1, 2: 3, 4: 2, 6: 4}  # by the kind of colour in the header
NUMPY = b"\x93NUMPY"
NUMPY_HEADER = 4096  # bytes; that of an array without named fields has 128
NUMPY_TYPES = ("u1", "u2", "f2", "f4", "f8")
READ = "what is read has 8 or 16 bits a band without a sign, or floats"
SHAPED = "an array is read as (H, W) or (H, W, bands)"

# TIFF, by the numbers of its tags: https://www.itu.int/itudoc/itu-t/com16/tiff-fx/docs/tiff6.pdf
SUBFILE, OLD_SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 254, 255, 256, 257, 258, 259, 262
ORIENTATION, SAMPLES, PLANAR, TILE_WIDTH, TILE_HEIGHT, EXTRA, FORMAT, DEPTH = 274, 277, 284, 322, 323, 338, 339, 32997
TAGS = {SUBFILE, OLD_SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, ORIENTATION, SAMPLES, TILE_WIDTH}
TAGS |= {PLANAR, TILE_HEIGHT, EXTRA, FORMAT, DEPTH}
BIG_ENDIAN_BIG_TIFF = b"MM\0+"  # which Pillow does not know
NUMBERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}  # by the type of a tag
MOST_VALUES = 65536  # of a tag, which is one a band
MOST_TAGS = 4096
MOST_PAGES = 64  # a pyramid has one for each halving
# With these alone, a part of the picture decodes to the size that its directory states, and to no more.
COMPRESSIONS = {1, 5, 8, 32773, 32946, 34925, 50000}  # none, LZW, deflate, PackBits, deflate, LZMA, Zstandard
SMALL_TILE = 2**24  # numbers that a tile may hold whatever the picture
COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 6: 3}  # bands of white-is-zero, black-is-zero, RGB, palette, YCbCr
BLACK_IS_ZERO, RGB, WITH_PALETTE, CMYK = 1, 2, 3, 5

Directory = dict[int, tuple[int, ...]]


@dataclass(frozen=True)
class Bands:
    """What a file holds, by its header.

    Args:
        count: bands, alpha too; a palette has those of its colours
        bits: of the numbers of a band; those of fewer than 8 are read as 8, as Pillow stretches them
        kind: "uint", or "float"
        has_alpha: whether the last band is alpha, or a colour or a palette's entry stands for transparent
        width: pixels as stored, before EXIF turns the picture
        height: of the same
        reader: who decodes it: Pillow, or imagecodecs (png), tifffile (tiff), numpy
        page: the directory of a TIFF that holds the full picture, counted from 0
    """

    count: int
    bits: int
    kind: str
    has_alpha: bool
    width: int
    height: int
    reader: Literal["pillow", "png", "tiff", "numpy"] = "pillow"
    page: int = 0

    @property
    def said(self) -> str:
        """5 bands of 16 bits."""
        alpha = ", the last one alpha" if self.has_alpha else ""
        kind = " as floats" if self.kind == "float" else ""
        return f"{self.count} band{'s'[: self.count - 1]} of {self.bits} bits{kind}{alpha}"


def bands_of(path: Path) -> Bands:
    """What the file holds, from its header alone; ValueError with a code for what `read_pixels` would not take."""
    name = short(path)
    if not path.is_file() or not path.stat().st_size:
        read_bytes(path)  # says what it is instead
    with readable(name), path.open("rb") as file:
        return read_header(file, path)


def read_header(file: BinaryIO, path: Path) -> Bands:
    """The same of an open file that is called `path`."""
    begins = file.read(8)
    file.seek(0)
    if begins.startswith(NUMPY):
        return _numpy_header(file, short(path))
    if begins.startswith(TIFFS):
        return _tiff_header(file, short(path))
    return _pillow_header(file, path)


def numpy_array(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether columns lie together, and type of the array in a .npy file, whose numbers come next."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):  # 3.0 is of named fields
        raise ValueError(f"version {version}")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file, max_header_size=NUMPY_HEADER)


def _numpy_header(file: BinaryIO, name: str) -> Bands:
    try:
        shape, _, dtype = numpy_array(file)
    except Exception as error:  # numpy raises six kinds for what is damaged
        raise coded("E_DECODE", f"{name} is no whole .npy file ({_brief(error)}); save it with numpy.save") from error
    if dtype.str[1:] not in NUMPY_TYPES:
        said = f"{name} holds numbers of type {str(dtype)[:40]}; {READ}: save array.astype('float32')"
        raise coded("E_IMAGE_MODE", said)
    if len(shape) not in (2, 3) or min(shape) < 1:
        said = f"{name} is an array of shape {str(shape)[:60]}, and {SHAPED}; save one picture a file in that order"
        raise coded("E_BANDS", said)
    start = file.tell()
    if file.seek(0, 2) - start != prod(shape) * dtype.itemsize:
        raise coded("E_DECODE", f"{name} is cut off, or longer than its shape {str(shape)[:60]}; copy it again")
    kind = "uint" if dtype.kind == "u" else "float"
    count = shape[2] if len(shape) == 3 else 1
    return Bands(count, 8 * dtype.itemsize, kind, False, shape[1], shape[0], "numpy")


def _pillow_header(file: BinaryIO, path: Path) -> Bands:
    name = short(path)
    try:
        image = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise coded("E_TOO_MANY_PIXELS", f"{name} has too many pixels ({error}); cut it up") from None
    except Exception as error:  # broken files raise six kinds of exception in Pillow
        file.seek(0)
        begins = file.read(512)
        if known := named(begins, path.name):
            said = f"{name} is {known[0]}, and what is read is {', '.join(FORMATS)} and .npy; {known[1]}"
            raise coded("E_FORMAT", said) from error
        # What a link points to may be private.
        shows = "" if path.is_symlink() else f", it begins with {begins[:16].decode('ascii', 'replace')!r}"
        said = f"{name} is damaged or not an image ({', '.join(FORMATS)}, .npy){shows}; replace it or move it out"
        raise coded("E_DECODE", said) from error
    # A phone's JPEG (MPO) has previews behind the picture.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise coded("E_MULTIFRAME", f"{name} holds several pictures; save one picture a file")
    transparent = "transparency" in image.info
    size = image.width, image.height
    if image.format == "PNG":
        file.seek(12)
        header = file.read(14)
        if header[:12] != struct.pack(">4sII", b"IHDR", *size):  # Pillow takes another one from further behind
            raise coded("E_DECODE", f"{name} is a PNG that does not begin with its one header; save it again")
        bits, colour = header[12:]
        if bits == 16:
            count = BANDS_OF_PNG.get(colour, 0) + transparent
            reader: Literal["pillow", "png"] = "pillow" if count == 1 else "png"
            return Bands(count, 16, "uint", count in (2, 4), *size, reader)
    if image.mode not in BANDS_OF_MODE:
        raise coded("E_IMAGE_MODE", f"{name} holds {_colours(image.mode)}; save it as RGB or grey")
    count = BANDS_OF_MODE[image.mode] + transparent
    return Bands(count, 8, "uint", count in (2, 4), *size)


def _tiff_header(file: BinaryIO, name: str) -> Bands:
    try:
        page, tags = _full_page(file, name)
    except (struct.error, OverflowError, OSError) as error:
        raise coded(
            "E_DECODE", f"{name} is a TIFF with a damaged directory ({_brief(error)}); copy it again"
        ) from error
    first = {tag: values[0] for tag, values in tags.items()}
    width, height, count = first.get(WIDTH, 0), first.get(HEIGHT, 0), first.get(SAMPLES, 1)
    colours, kind = first.get(PHOTOMETRIC, 1), first.get(FORMAT, 1)
    bits = tags.get(BITS, (1,))
    if min(width, height, count) < 1 or first.get(DEPTH, 1) > 1:
        said = f"{name} is a TIFF of {width} x {height} pixels and {count} bands, in one plane or more"
        raise coded("E_DECODE", f"{said}; save it again as one picture")
    if colours == CMYK:
        raise coded("E_IMAGE_MODE", f"{name} holds {_colours('CMYK')}; save it as RGB or grey")
    if colours not in COLOURS:
        raise coded("E_IMAGE_MODE", f"{name} holds colours of TIFF's kind {colours}; save it as RGB or grey")
    extra = tags.get(EXTRA, ())
    # A writer of four bands of RGB may have forgotten to say what the fourth is: nobody then knows that it is alpha.
    has_alpha = bool(extra) and extra[-1] in (1, 2) and count > COLOURS[colours]
    file.seek(0)
    by_pillow = file.read(4) != BIG_ENDIAN_BIG_TIFF
    few = by_pillow and kind == 1 and bits[0] in (1, 2, 4, 8) and len({*bits}) == 1
    if few and (count - has_alpha == COLOURS[colours]) and (bits[0] == 8 or count == 1) and len(extra) < 2:
        count += 2 * (colours == WITH_PALETTE)
        return Bands(count, 8, "uint", has_alpha, width, height, "pillow", page)
    if len({*bits}) > 1 or (kind, bits[0]) not in {(1, 8), (1, 16), (3, 16), (3, 32), (3, 64)}:
        which = {1: "", 2: " with a sign", 3: " as floats"}.get(kind, " of an unknown kind")
        said = f"{name} is a TIFF of {count} bands with {', '.join(map(str, sorted({*bits})))} bits{which}; {READ}"
        raise coded("E_IMAGE_MODE", f"{said}: gdal_translate -ot Float32 makes floats of it")
    if colours not in (BLACK_IS_ZERO, RGB):
        said = f"{name} is a TIFF of {count} bands of {bits[0]} bits in a palette, in YCbCr or with white as 0"
        raise coded("E_IMAGE_MODE", f"{said}; save it as RGB, or as grey with black as 0")
    number = "uint" if kind == 1 else "float"
    if by_pillow and count == 1 and (kind, bits[0], colours) in {(1, 16, BLACK_IS_ZERO), (3, 32, BLACK_IS_ZERO)}:
        return Bands(1, bits[0], number, False, width, height, "pillow", page)
    compression = first.get(COMPRESSION, 1)
    if compression not in COMPRESSIONS:
        said = f"{name} is a TIFF of {count} bands with {bits[0]} bits, compressed by method {compression}"
        known = "what is read of such is LZW, deflate, PackBits, LZMA, Zstandard or none"
        raise coded("E_FORMAT", f"{said}; {known}: gdal_translate -co COMPRESS=DEFLATE writes it anew")
    each = 1 if first.get(PLANAR, 1) == 2 else count  # bands that lie together
    if first.get(TILE_WIDTH, 1) * first.get(TILE_HEIGHT, 1) * each > max(4 * width * height * each, SMALL_TILE):
        raise coded("E_DECODE", f"{name} is a TIFF in tiles far larger than its picture; save it in smaller ones")
    return Bands(count, bits[0], number, has_alpha, width, height, "tiff", page)


def _full_page(file: BinaryIO, name: str) -> tuple[int, Directory]:
    """The one page of full size and its place; smaller copies of it, as pyramids and previews are, do not count."""
    pages = []
    for number, tags in enumerate(_directories(file)):
        if not (tags.get(SUBFILE, (0,))[0] & 1 or tags.get(OLD_SUBFILE, (1,))[0] == 2):
            pages.append((number, tags))
        if len(pages) > 1:
            raise coded("E_MULTIFRAME", f"{name} holds several pages; save one picture a file, its bands in one page")
        if number == MOST_PAGES:
            raise coded("E_DECODE", f"{name} is a TIFF of over {MOST_PAGES} pages; save one picture a file")
    if not pages:
        raise coded("E_DECODE", f"{name} is a TIFF without a page of full size; save it again")
    return pages[0]


def _directories(file: BinaryIO) -> Iterator[Directory]:
    """The tags of `TAGS` of each page in turn; struct.error where they do not lie in the file.

    Pillow's and tifffile's would read other tags, which can be as long as the file each.
    """
    header = file.read(16)
    order = "<" if header.startswith(b"II") else ">"
    big = 43 in header[2:4]
    entries, entry, pointer = ("Q", "HHQ8s", "Q") if big else ("H", "HHI4s", "I")
    (place,) = struct.unpack_from(order + pointer, header, 8 if big else 4)
    seen = set()
    while place:
        if place in seen:
            raise OSError("its pages go in a circle")
        seen.add(place)
        file.seek(place)
        (count,) = _unpack(file, order + entries)
        if not 0 < count <= MOST_TAGS:
            raise OSError(f"{count} tags")
        lines = [_unpack(file, order + entry) for _ in range(count)]
        (place,) = _unpack(file, order + pointer)
        tags: Directory = {}
        for tag, kind, length, value in lines:
            if tag in TAGS and tag not in tags:
                tags[tag] = _values(file, order, kind, length, value, pointer)
        yield tags


def _values(file: BinaryIO, order: str, kind: int, length: int, value: bytes, pointer: str) -> tuple[int, ...]:
    if kind not in NUMBERS or not 0 < length <= MOST_VALUES:
        raise OSError("a tag that is no number")
    form = f"{order}{length}{NUMBERS[kind]}"
    if struct.calcsize(form) <= len(value):
        return struct.unpack_from(form, value)
    file.seek(struct.unpack(order + pointer, value)[0])
    return _unpack(file, form)


def _unpack(file: BinaryIO, form: str) -> tuple[Any, ...]:
    return struct.unpack(form, file.read(struct.calcsize(form)))


def _colours(mode: str) -> str:
    return "CMYK colours" if mode == "CMYK" else f"pixels of mode {mode}"


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
