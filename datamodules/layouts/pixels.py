"""Reads images of any number of bands, of 8 or 16 bits or floats, and makes of them what a network gets."""

import logging
import math
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image, ImageOps

from datamodules.checks.problems import coded
from datamodules.files import FORMATS, read_bytes, short
from datamodules.layouts.headers import Bands, bands_of, numpy_array, read_header

__all__ = ["CHANNELS", "Bands", "ChannelsName", "as_channels", "bands_of", "read_channels", "read_pixels"]

ChannelsName = Literal["rgb", "grey", "rgba", "all"]
CHANNELS: tuple[ChannelsName, ...] = get_args(ChannelsName)
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # of Pillow, by the bands of 8 bits
MOST_BANDS = 4  # of an image with as many pixels as may be; one of fewer may have more
LUMA = (19595, 38470, 7471)  # of red, green and blue, in parts of 2**16: ITU-R 601-2 as Pillow rounds it
EXIF_ORIENTATION = 0x0112
FULL = {"uint8": 255.0, "uint16": 65535.0}


def read_pixels(path: Path, max_pixels: int) -> np.ndarray:
    """(H, W, C) as stored: uint8, uint16 or float32; every band of the file, alpha too, turned upright by EXIF.

    - 8 bits a band: JPEG, PNG, BMP, TIFF and WebP as Pillow decodes them. A palette becomes its colours, and a
      colour that stands for transparent becomes alpha.
    - 16 bits or floats of one band: PNG and TIFF by Pillow.
    - PNG of 16 bits and more bands, and all other TIFF: by the extra `bands`. Colours that are multiplied by their
      alpha stay so. A file of one page is read with its smaller copies left out; more pages are refused.
    - .npy of uint8, uint16 or floats, without pickles. The last axis is the bands: (C, H, W) cannot be told from it.

    Floats of 64 bits are rounded to 32. The header is checked before memory is taken: at most `max_pixels`, and four
    times as many numbers in all bands. ValueError with a code for what cannot be read.
    """
    return _read(path, max_pixels)[0]


def read_channels(
    path: Path, channels: str, value_range: tuple[float, float] | None, max_pixels: int, *, drop_alpha: bool = False
) -> np.ndarray:
    """`as_channels` of the pixels of a file, which is read once; "rgb" and "grey" drop alpha only if told so."""
    pixels, header = _read(path, max_pixels)
    if header.has_alpha and channels in ("rgb", "grey") and not drop_alpha:
        said = f"{short(path)} has {header.said}, and channels: {channels} has no place for alpha"
        raise coded("E_ALPHA", f"{said}; choose channels: rgba, or save it without transparency")
    return as_channels(pixels, channels, value_range, short(path), alpha=header.has_alpha)


def as_channels(
    pixels: np.ndarray, channels: str, value_range: tuple[float, float] | None, name: str, *, alpha: bool = False
) -> np.ndarray:
    """float32 (C, H, W) in [0, 1], contiguous, of the pixels of the file that is called `name`.

    `alpha` says that the last band is alpha, as `Bands.has_alpha` does: of four bands nobody sees it.

    - "rgb": 3 bands, or 1 three times; alpha beside them is dropped.
    - "grey": 1 band, or the luma of RGB as Pillow's "L" has it (ITU-R 601-2), rounded where the bands are whole
      numbers; alpha beside them is dropped.
    - "rgba": as "rgb", and alpha as a share of its full value; 1 where there is none. Four bands are taken for RGBA.
    - "all": the bands as stored, alpha like any other.

    `value_range` (lo, hi) becomes 0 to 1, and what lies beyond is clipped; None is 0 to 255 of uint8, and 0 to 65535
    of uint16. Floats need one. ValueError with a code for other bands, for NaN and infinity, and for a bad range.
    """
    if channels not in CHANNELS:
        raise ValueError(f"channels must be one of {', '.join(CHANNELS)}, got {channels!r}")
    low, high = _checked_range(pixels, value_range, name)
    count = pixels.shape[2]
    if channels == "all":
        return _scaled(np.moveaxis(pixels, 2, 0), low, high)
    colours = count - (alpha or (channels == "rgba" and count == 4))
    if colours not in (1, 3):
        beside = " beside alpha" if alpha else ""
        said = f"{name} has {colours} band{'s'[: colours - 1]}{beside}, and channels: {channels} takes 1 or 3"
        raise coded("E_BANDS", f"{said}; choose channels: all, or save those that you want")
    picture = pixels[:, :, :colours]
    if channels == "grey":
        return _scaled(picture[None, :, :, 0] if colours == 1 else _luma(picture)[None], low, high)
    coloured = _scaled(np.moveaxis(picture, 2, 0), low, high)
    coloured = np.repeat(coloured, 3, axis=0) if colours == 1 else coloured
    if channels == "rgb":
        return coloured
    last = _scaled(pixels[:, :, -1], 0.0, FULL.get(pixels.dtype.name, 1.0)) if colours < count else 1
    return np.concatenate([coloured, np.broadcast_to(np.float32(last), (1, *pixels.shape[:2]))])


def _checked_range(pixels: np.ndarray, value_range: tuple[float, float] | None, name: str) -> tuple[float, float]:
    floats = pixels.dtype.kind == "f"
    if floats and not (finite := np.isfinite(pixels)).all():
        y, x, band = np.unravel_index(finite.argmin(), finite.shape)
        said = f"{name} holds NaN or infinity in {int((~finite).sum())} places, the first in row {y}, column {x}, "
        raise coded("E_RANGE", f"{said}band {band}; give them a number, and label them as unlabelled in the mask")
    if value_range is None:
        if not floats:
            return 0.0, FULL[pixels.dtype.name]
        least, most = float(pixels.min()), float(pixels.max())
        said = f"{name} holds floats from {least:.6g} to {most:.6g}, and nothing says which of them are black and white"
        raise coded("E_RANGE", f"{said}; state value_range for all files, such as [{least:.6g}, {most:.6g}]")
    low, high = map(float, value_range)
    with np.errstate(over="ignore", invalid="ignore"):
        span = float(np.float32(high) - np.float32(low))
    if not (math.isfinite(span) and span > 0):
        raise coded("E_RANGE", f"value_range must be two finite numbers, the smaller first, got [{low:g}, {high:g}]")
    return low, high


def _scaled(bands: np.ndarray, low: float, high: float) -> np.ndarray:
    """float32 in [0, 1], contiguous."""
    out = np.array(bands, dtype=np.float32, order="C")
    with np.errstate(over="ignore"):  # an infinity is clipped
        out -= np.float32(low)
        out /= np.float32(high) - np.float32(low)
    return out.clip(0, 1, out=out)


def _luma(rgb: np.ndarray) -> np.ndarray:
    """(H, W) of (H, W, 3) in the same type."""
    if rgb.dtype.kind == "f":
        return np.asarray(rgb @ (np.array(LUMA) / 2**16).astype(np.float32))
    red, green, blue = (np.uint32(weight) * rgb[:, :, i] for i, weight in enumerate(LUMA))  # below 2**32, just
    return ((red + green + blue + np.uint32(2**15)) >> np.uint32(16)).astype(rgb.dtype)


def _read(path: Path, max_pixels: int) -> tuple[np.ndarray, Bands]:
    data, name = read_bytes(path), short(path)
    header = read_header(BytesIO(data), path)
    size = f"{name} has {header.width} x {header.height} pixels"
    if header.width * header.height > max_pixels:
        raise coded("E_TOO_MANY_PIXELS", f"{size}, more than {_told(max_pixels)}; cut it up")
    if header.width * header.height * header.count > MOST_BANDS * max_pixels:
        said = f"{size} and {header.count} bands, more than {_told(MOST_BANDS * max_pixels)} numbers"
        raise coded("E_TOO_MANY_PIXELS", f"{said}; cut it up, or leave bands out")
    try:
        pixels = READERS[header.reader](data, header, name)
    except MemoryError:
        raise
    except Exception as error:  # Pillow, tifffile and the codecs raise a dozen kinds
        if hasattr(error, "code"):
            raise
        said = " ".join(str(error).split())[:120]
        raise coded("E_DECODE", f"{name} is damaged or cut off ({said}); copy it again") from error
    stored = {header.height, header.width}
    if {*pixels.shape[:2]} != stored or pixels.shape[2:] != (header.count,):
        said = f"{name} decodes to {pixels.shape}, not to {header.height} x {header.width} of {header.said}"
        raise coded("E_DECODE", f"{said}; save it again")
    return pixels, header


def _by_pillow(data: bytes, header: Bands, name: str) -> np.ndarray:
    image: Any = Image.open(BytesIO(data), formats=FORMATS)
    if header.page:
        image.seek(header.page)
    upright = ImageOps.exif_transpose(image)  # which reads it
    if header.bits == 8:
        mode = MODES[header.count]
        pixels = np.asarray(upright if upright.mode == mode else upright.convert(mode))
    else:
        pixels = np.asarray(upright).astype(np.uint16 if header.kind == "uint" else np.float32)
    return pixels.reshape(*pixels.shape[:2], -1)


def _by_imagecodecs(data: bytes, header: Bands, name: str) -> np.ndarray:
    codecs = _extra("imagecodecs", name, header)
    with Image.open(BytesIO(data), formats=["PNG"]) as image:
        image.load()  # as its orientation may come behind the pixels
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    return _upright(np.asarray(codecs.png_decode(data), dtype=np.uint16), orientation)


def _by_tifffile(data: bytes, header: Bands, name: str) -> np.ndarray:
    tifffile: Any = _extra("tifffile", name, header)
    _extra("imagecodecs", name, header)
    log = logging.getLogger("tifffile")
    before, log.disabled = log.disabled, True  # what it warns of is an error here
    try:
        with tifffile.TiffFile(BytesIO(data)) as tiff:
            page = tiff.pages[header.page]
            if (page.imagewidth, page.imagelength, page.samplesperpixel) != (header.width, header.height, header.count):
                raise ValueError("two sizes")
            parts = [*zip(page.dataoffsets, page.databytecounts, strict=True)]
            # A part that is left out would be read as zeros.
            if len(parts) != math.prod(page.chunked) or not all(n and at + n <= len(data) for at, n in parts):
                raise ValueError("a part of the picture is missing")
            pixels = page.asarray(maxworkers=1, squeeze=False)
            orientation = page.tags.valueof(274, default=1)
    finally:
        log.disabled = before
    planes, _, height, width, bands = pixels.shape  # planes are bands that lie one after the other
    pixels = np.moveaxis(pixels[:, 0], 0, 2).reshape(height, width, planes * bands)
    return _upright(pixels.astype(np.float32 if header.kind == "float" else f"u{header.bits // 8}"), orientation)


def _by_numpy(data: bytes, header: Bands, name: str) -> np.ndarray:
    file = BytesIO(data)
    shape, fortran, dtype = numpy_array(file)
    flat = np.frombuffer(data, dtype, offset=file.tell())
    pixels = flat.reshape(shape, order="F" if fortran else "C").reshape(*shape[:2], -1)
    with np.errstate(over="ignore"):  # what float32 cannot hold is an infinity, which is refused later
        return pixels.astype(np.float32 if header.kind == "float" else f"u{header.bits // 8}", order="C")


READERS: dict[str, Callable[[bytes, Bands, str], np.ndarray]] = {
    "pillow": _by_pillow,
    "png": _by_imagecodecs,
    "tiff": _by_tifffile,
    "numpy": _by_numpy,
}


def _extra(module: str, name: str, header: Bands) -> Any:
    try:
        return __import__(module)
    except ImportError as error:
        said = f"{name} has {header.said}, for which {module} is needed"
        raise coded("E_FORMAT", f'{said}: pip install -e ".[bands]"') from error


def _upright(pixels: np.ndarray, orientation: object) -> np.ndarray:
    """(H, W, ...) turned as EXIF's number says; as it is for 1 and for what is no such number."""
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _told(count: int) -> str:
    return f"{count / 10**6:g} million"
