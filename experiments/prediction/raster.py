"""Images that are read and written window by window: GeoTIFF, and whatever is too large for memory; by rasterio."""

import functools
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from datamodules.checks.problems import shown
from experiments.prediction.reads import Reads, as_image
from experiments.prediction.scaled_rows import Axis, combine
from experiments.prediction.stats import Unit
from experiments.shell.ending import CannotWriteError
from experiments.shell.files import temporary_prefix

GEO_TAGS = (33550, 33922, 34264, 34735)  # of TIFF: pixel scale, tie points, transformation, keys of GeoTIFF
ORIENTATION = 0x0112  # of EXIF
BLOCK = 256  # pixels of a side of the blocks of a tiled TIFF
CACHE = 64  # MiB of blocks that GDAL keeps; its own share of the memory grows with the machine
STRETCHED = {"merc", "webmerc"}  # projections in which a pixel is not as large as it seems
TIFFS = {".tif", ".tiff"}
LOOKED_AT = 2048  # pixels of the longer side of the copy that is looked at, by a person and before all is read


def is_georeferenced(path: Path) -> bool:
    """Whether a file is a TIFF that says where on the earth it lies; rasterio is not needed to know."""
    if path.suffix.lower() not in TIFFS:
        return False
    with suppress(Exception), Image.open(path) as image:
        tags: Any = getattr(image, "tag_v2", {})
        return any(tag in tags for tag in GEO_TAGS)
    return _has_tags(path)


def _has_tags(path: Path) -> bool:
    """As `is_georeferenced`, of a TIFF that Pillow does not read: by rasterio, where that is installed."""
    try:
        with opened(path) as dataset:
            return dataset.crs is not None or not dataset.transform.is_identity
    except ValueError:
        return False


def check_upright(path: Path) -> None:
    """Raises ValueError for an image that has to be turned: rasterio reads it as it is stored."""
    most, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # only the header is read
    try:
        with suppress(OSError, SyntaxError), Image.open(path) as image:
            if image.getexif().get(ORIENTATION, 1) not in (0, 1):
                raise ValueError(
                    f"{shown(str(path))} is to be turned by its EXIF orientation, which is not done of so large an "
                    "image: save it upright, or raise --max-pixels"
                )
    finally:
        Image.MAX_IMAGE_PIXELS = most


def rasterio() -> Any:
    """The module; ValueError with the way out where it is missing."""
    try:
        import rasterio
    except ImportError as error:
        raise ValueError('needs rasterio: pip install -e ".[geo]"') from error
    return rasterio


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The dataset of a file; ValueError, naming the file, for one that cannot be read."""
    library = rasterio()
    from rasterio.errors import NotGeoreferencedWarning, RasterioIOError

    with warnings.catch_warnings(), library.Env(GDAL_CACHEMAX=CACHE, GDAL_PAM_ENABLED="NO"):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            with library.open(path) as dataset:
                yield dataset
        except RasterioIOError as error:
            raise ValueError(f"{shown(str(path))} cannot be read: {' '.join(str(error).split())[:160]}") from error


@dataclass
class Raster:
    """An image of a file, in rows from the top to the bottom, at the scale of the network.

    Args:
        dataset: of rasterio
        reads: what the network takes
        name: what an error calls it
        geo: that pixels of no opacity are those without data, as in an image that lies somewhere on the earth
    """

    dataset: Any
    reads: Reads
    name: str
    geo: bool = True

    def __post_init__(self) -> None:
        self.size = int(self.dataset.height), int(self.dataset.width)
        self.scaled = tuple(max(1, round(self.reads.scale * side)) for side in self.size)
        self._rows, self._columns = (Axis(out, side) for out, side in zip(self.scaled, self.size, strict=True))
        kind = np.result_type(*self.dataset.dtypes)
        self._first, self._held = 0, np.zeros((self.dataset.count, 0, self.size[1]), kind)  # rows that are kept
        self._known: NDArray[np.bool_] | None = None  # of these, which pixels hold a value

    @functools.cached_property
    def has_nodata(self) -> bool:
        """Whether some pixels may hold no value."""
        flags = {flag.name for of_band in self.dataset.mask_flag_enums for flag in of_band}
        return "nodata" in flags or ("per_dataset" in flags and (self.geo or "alpha" not in flags))

    def look(self) -> Tensor:
        """float32 (C, h, w): a small copy, to be looked at."""
        height, width = self.size
        factor = min(1.0, LOOKED_AT / max(height, width))
        shape = (self.dataset.count, max(1, round(height * factor)), max(1, round(width * factor)))
        known = self.dataset.dataset_mask(out_shape=shape[1:]) > 0 if self.has_nodata else None
        return torch.from_numpy(self._image(self.dataset.read(out_shape=shape), known, part=False))

    def check(self) -> None:
        """Raises ValueError for bands that the network does not take, before anything else is read."""
        self.look()

    def window(self, rows: slice, columns: slice) -> Tensor:
        """float32 (C, h, w) in [0, 1] of a window of the scaled image; rows before those of the last call are gone."""
        top, bottom = self._rows.needs(rows.start, rows.stop)
        left, right = self._columns.needs(columns.start, columns.stop)
        self._hold(top, bottom)
        here = slice(top - self._first, bottom - self._first), slice(left, right)
        known = None if self._known is None else self._known[here]
        part = self._image(self._held[:, *here], known, part=True)
        part = combine(part, 1, self._rows, rows.start, rows.stop, top)
        part = combine(part, 2, self._columns, columns.start, columns.stop, left)
        return torch.from_numpy(np.ascontiguousarray(part)).clamp_(0, 1)

    def known(self, start: int, stop: int) -> NDArray[np.bool_] | None:
        """(stop - start, W) rows of the file: which pixels hold a value; None where all do."""
        if not self.has_nodata:
            return None
        window = ((start, stop), (0, self.size[1]))
        mask: NDArray[np.bool_] = self.dataset.dataset_mask(window=self._window(window)) > 0
        return mask

    def _window(self, window: Any) -> Any:
        from rasterio.windows import Window

        return Window.from_slices(*window)

    def _hold(self, first: int, last: int) -> None:
        """Keeps rows [first, last) of the file as they are stored. None is read twice, or a PNG would be unpacked from
        its start for each band."""
        end = self._first + self._held.shape[1]
        if not self._first <= first <= end:
            self._first, end, self._held = first, first, self._held[:, :0]
            self._known = None if self._known is None else self._known[:0]
        kept = slice(first - self._first, None)
        self._held, self._known = self._held[:, kept], None if self._known is None else self._known[kept]
        if last > end:
            window = self._window(((end, last), (0, self.size[1])))
            self._held = np.concatenate([self._held, self.dataset.read(window=window)], axis=1)
            if self.has_nodata:
                new = self.dataset.dataset_mask(window=window) > 0
                self._known = new if self._known is None else np.concatenate([self._known, new])
        self._first = first

    def _image(self, pixels: NDArray[Any], known: NDArray[np.bool_] | None, *, part: bool) -> NDArray[np.float32]:
        """(bands, H, W) as stored -> (C, H, W) in [0, 1]; what holds no value, and may be no number, is black."""
        low = 0.0 if self.reads.value_range is None else self.reads.value_range[0]
        if known is not None:
            pixels = np.where(known, pixels, np.asarray(low).astype(pixels.dtype))
        if self._few_bits:
            pixels = (pixels * (255 // (2**self._few_bits - 1))).astype(np.uint8)
        if self.dataset.count == 1 and self._colormap is not None:
            pixels = self._colormap[pixels[0]].transpose(2, 0, 1)
        pixels = np.moveaxis(pixels, 0, 2)
        if pixels.dtype == np.float64 or (self.reads.value_range and pixels.dtype not in (np.uint8, np.uint16)):
            pixels = pixels.astype(np.float32)
        if self._has_alpha and self.reads.channels != "all":
            pixels = pixels[:, :, :-1] if self.reads.channels != "rgba" else pixels
        alpha = self._has_alpha and self.reads.channels == "rgba"
        return as_image(pixels, self.reads, self.name, alpha=alpha, part=part).numpy()

    @functools.cached_property
    def _few_bits(self) -> int:
        """Bits of a grey value where they are fewer than 8, which Pillow stretches; 0 otherwise."""
        bits = int(self.dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 8))
        return bits if bits in (1, 2, 4) and self._colormap is None else 0

    @functools.cached_property
    def _has_alpha(self) -> bool:
        return bool(self.dataset.colorinterp[-1].name == "alpha")

    @functools.cached_property
    def _colormap(self) -> NDArray[np.uint8] | None:
        """(256, 3) of a palette; None without one."""
        if self.dataset.colorinterp[0].name != "palette":
            return None
        colours = self.dataset.colormap(1)
        return np.array([colours.get(i, (0, 0, 0, 0))[:3] for i in range(256)], np.uint8)

    @property
    def unit(self) -> Unit | None:
        """What a pixel covers, where the file says it: of a projection in its unit of length."""
        crs, transform = self.dataset.crs, self.dataset.transform
        if crs is None or not crs.is_projected or crs.to_dict().get("proj") in STRETCHED:
            return None
        _, factor = crs.linear_units_factor
        return Unit(abs(transform.a * transform.e - transform.b * transform.d) * factor**2, "m²")


class RasterOut:
    """A GeoTIFF that is written in rows, beside its final name, and takes that name when it is whole."""

    def __init__(
        self, path: Path, like: Any, dtype: str, *, nodata: int | None = None, palette: NDArray[np.uint8] | None = None
    ) -> None:
        self.path, self.temporary = path, path.with_name(f"{temporary_prefix(path)}00000000.tmp")
        path.parent.mkdir(parents=True, exist_ok=True)
        profile = {"driver": "GTiff", "height": like.height, "width": like.width, "count": 1, "dtype": dtype}
        profile |= {
            "compress": "deflate",
            "tiled": True,
            "blockxsize": BLOCK,
            "blockysize": BLOCK,
            "BIGTIFF": "IF_SAFER",
        }
        if like.crs is not None or not like.transform.is_identity:
            profile |= {"crs": like.crs, "transform": like.transform}
        if nodata is not None:
            profile["nodata"] = nodata
        library = rasterio()
        try:
            self.dataset = library.open(self.temporary, "w", **profile)
            points, of_points = like.gcps
            if points:
                self.dataset.gcps = (points, of_points)
        except library.errors.RasterioIOError as error:
            raise CannotWriteError(f"{path} cannot be written: {' '.join(str(error).split())[:160]}") from error
        if palette is not None and dtype == "uint8":
            colours = {i: (*map(int, colour), 255) for i, colour in enumerate(palette)}
            self.dataset.write_colormap(1, colours)

    def write(self, rows: NDArray[Any], top: int) -> None:
        from rasterio.windows import Window

        self.dataset.write(rows, 1, window=Window(0, top, rows.shape[1], rows.shape[0]))

    def finish(self) -> None:
        self.dataset.close()
        os.replace(self.temporary, self.path)

    def discard(self) -> None:
        with suppress(Exception):
            self.dataset.close()
        self.temporary.unlink(missing_ok=True)


def as_png(source: Path, target: Path) -> None:
    """An index PNG of a TIFF with a palette, row by row (GDAL's own writer)."""
    temporary = target.with_name(f"{temporary_prefix(target)}00000000.tmp")
    library = rasterio()
    from rasterio import shutil

    try:
        with library.Env(GDAL_CACHEMAX=CACHE, GDAL_PAM_ENABLED="NO"):
            shutil.copy(source, temporary, driver="PNG")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
