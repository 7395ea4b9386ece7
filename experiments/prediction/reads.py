"""What the network of a checkpoint takes, and an image made into it; what does not fit is refused by name."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from datamodules.files import MAX_PIXELS
from datamodules.layouts.pixels import CHANNELS, as_channels, bands_of, read_pixels
from experiments.runs.beside import run_folder
from experiments.shell.files import read_json
from lightning_modules.base import SegmentationModule

DARK = 16  # as many times as this is the full range of 16 bits above the largest value: some other range is meant
MODES = ("L", "LA", "RGB", "RGBA", "I;16", "F")  # of Pillow, whose pixels are numbers as they are; others are converted
Picture = str | PathLike[str] | Image.Image | NDArray[Any] | Tensor


@dataclass(frozen=True, kw_only=True)
class Reads:
    """How an image becomes what a network gets.

    Args:
        in_channels: channels of the network
        channels: rgb, grey, rgba or all bands, as `datamodules.layouts.pixels.as_channels` makes them
        value_range: the two values that become 0 and 1; None for 0 to 255 of 8 bits and 0 to 65535 of 16
        bits: of a value in the files that it was trained on, 32 for floats; None where that is not known
        scale: factor of the size of the image
    """

    in_channels: int
    channels: str = "rgb"
    value_range: tuple[float, float] | None = None
    bits: int | None = None
    scale: float = 1.0

    def but(self, *, scale: float | None = None, value_range: tuple[float, float] | None = None) -> "Reads":
        """The same with what is given. Raises ValueError for a scale or a range without meaning."""
        if scale is not None and not 0 < scale <= 64:
            raise ValueError(f"scale must be more than 0 and at most 64, got {scale}")
        if value_range is not None and not _is_range(value_range):
            raise ValueError(f"value_range must be two numbers, the smaller first, got {[*value_range]}")
        return replace(self, scale=scale or self.scale, value_range=value_range or self.value_range)


def reads_of(module: SegmentationModule, checkpoint: Path) -> Reads:
    """What the checkpoint says; of one from before it did, the run.json beside it, and a warning where there is none.

    Raises ValueError for what no version has written.
    """
    stored = module.trained.get("reads")
    if stored is None:
        stored = _of_run(checkpoint)
    if stored is None:
        warnings.warn(
            f"{checkpoint} does not say at which scale its images were: it is of an earlier version, and no run.json "
            "lies beside it; 1 is taken, and --scale says otherwise",
            stacklevel=3,
        )
        stored = {}
    in_channels = module.hparams["in_channels"]
    usual = {1: "grey", 3: "rgb", 4: "rgba"}.get(in_channels, "all")
    channels, values = stored.get("channels") or usual, stored.get("value_range")
    scale, bits = stored.get("scale", 1.0), stored.get("bits")
    sound = (
        channels in CHANNELS and isinstance(scale, int | float) and scale > 0 and (values is None or _is_range(values))
    )
    if not sound:
        raise ValueError(f"{checkpoint} says of its images what no version of this project has written: {stored}")
    given = None if values is None else (float(values[0]), float(values[1]))
    return Reads(in_channels=in_channels, channels=channels, value_range=given, bits=bits, scale=float(scale))


def _is_range(values: Any) -> bool:
    return len(values) == 2 and bool(np.isfinite(values).all()) and values[0] < values[1]


def _of_run(checkpoint: Path) -> Mapping[str, Any] | None:
    if (folder := run_folder(checkpoint)) is None:
        return None
    data = read_json(folder / "run.json").get("data", {})
    return {name: data[name] for name in ("scale", "channels", "value_range") if data.get(name) is not None}


def as_image(
    picture: Picture,
    reads: Reads,
    name: str = "the image",
    *,
    max_pixels: int = MAX_PIXELS,
    alpha: bool | None = None,
    part: bool = False,
) -> Tensor:
    """float32 (in_channels, H, W) in [0, 1], as data modules read it, at its own size.

    A path is read as they read it. A PIL image or an array (H, W) or (H, W, C) has numbers of 8 bits, 16 bits, or
    floats: in [0, 1], or in the range that the checkpoint states. A tensor is (C, H, W), or (1, C, H, W). `alpha` says
    of an array whether its last band is alpha; without it the second of two and the fourth of four are. `part` says
    that it is a part of an image, so that nothing follows from its largest value.

    Raises ValueError, which calls the image `name`, for another range, number of channels, type or shape.
    """
    if isinstance(picture, str | PathLike):
        path = Path(picture)
        if not path.exists():
            raise FileNotFoundError(f"{path} is not there: give an image file")
        name, alpha = (str(path) if name == "the image" else name), bands_of(path).has_alpha
        pixels = read_pixels(path, max_pixels)
        return _checked(torch.from_numpy(_scaled(pixels, reads, name, alpha, part)), reads, name)
    if isinstance(picture, Tensor):
        pixels = _of_tensor(picture, reads, name)
    elif isinstance(picture, Image.Image):
        pixels = _of_pillow(picture)
    elif isinstance(picture, np.ma.MaskedArray):
        raise ValueError(  # noqa: TRY004  # as for any other image that does not fit
            f"{name} is a masked array, and what is masked would be predicted: fill it, array.filled(0)"
        )
    elif isinstance(picture, np.ndarray):
        pixels = picture[:, :, None] if picture.ndim == 2 else picture
    else:
        raise ValueError(  # noqa: TRY004  # as for any other image that does not fit
            f"{name} must be a path, a PIL image, an array (H, W, C) or a tensor (C, H, W), got "
            f"{type(picture).__name__}"
        )
    return _checked(torch.from_numpy(_scaled(pixels, reads, name, alpha, part)), reads, name)


def _of_tensor(tensor: Tensor, reads: Reads, name: str) -> NDArray[Any]:
    shown = tuple(tensor.shape)
    if tensor.dim() == 4 and len(tensor) == 1:
        tensor = tensor[0]
    if tensor.dim() != 3:
        raise ValueError(f"{name} must be a tensor (C, H, W), got the shape {shown}; several images go one by one")
    last = tensor.shape[2] in (1, 3, 4, reads.in_channels) and tensor.shape[0] not in (1, 3, 4, reads.in_channels)
    if last:
        raise ValueError(f"{name} must be a tensor (C, H, W), got the shape {shown}: permute(2, 0, 1) makes it so")
    tensor = tensor.detach().cpu()
    tensor = tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16, torch.float64) else tensor
    return tensor.permute(1, 2, 0).numpy()


def _of_pillow(image: Image.Image) -> NDArray[Any]:
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "P":
        upright = upright.convert("RGBA" if "transparency" in upright.info else "RGB")
    elif upright.mode == "I":  # of a PNG of 16 bits
        array = np.asarray(upright)
        if array.size and 0 <= array.min() and array.max() < 2**16:
            return array.astype(np.uint16)[:, :, None]
    elif upright.mode == "1":
        upright = upright.convert("L")
    elif upright.mode not in MODES and not upright.mode.startswith("I;16"):
        upright = upright.convert("RGB")
    array = np.asarray(upright)
    of_16_bits = upright.mode.startswith("I;16")
    return array.astype(np.uint16)[:, :, None] if of_16_bits else array.reshape(*array.shape[:2], -1)


def _scaled(pixels: NDArray[Any], reads: Reads, name: str, alpha: bool | None, part: bool) -> NDArray[np.float32]:
    """`alpha` says that the last band is alpha; None where nobody does: then the second of two and the fourth of four
    are."""
    if pixels.ndim != 3:
        raise ValueError(f"{name} must be an array (H, W) or (H, W, C), got the shape {pixels.shape}")
    if not pixels.size:
        raise ValueError(f"{name} has no pixels: its shape is {pixels.shape}")
    bands = pixels.shape[2]
    if bands > 8 and pixels.shape[0] <= 4:
        raise ValueError(f"{name} must be (H, W, C), got the shape {pixels.shape}: np.moveaxis(array, 0, -1)")
    values = check_values(pixels, reads, name, part=part)
    if alpha is None:
        alpha = bands in (2, 4) and reads.channels in ("rgb", "grey")
    colours = bands - bool(alpha)
    if reads.channels in ("rgb", "grey") and colours not in (1, 3):
        beside = " beside alpha" if alpha else ""
        raise ValueError(
            f"{name} has {colours} bands{beside}, and the network takes 1 or 3: save those that it was trained on"
        )
    return as_channels(pixels, reads.channels, values, name, alpha=alpha)


def check_values(pixels: NDArray[Any], reads: Reads, name: str, *, part: bool = False) -> tuple[float, float] | None:
    """The two values that become 0 and 1; None for the whole range of the type. ValueError for numbers of another."""
    if pixels.dtype not in (np.uint8, np.uint16) and pixels.dtype.kind != "f":
        raise ValueError(
            f"{name} must hold uint8, uint16 or floats, got {pixels.dtype}: make it one of them, such as "
            "array.astype('uint8') where it holds 0 to 255"
        )
    values = reads.value_range
    if pixels.dtype.kind == "f":
        if values is None:
            _check_floats(pixels, name)
            return 0.0, 1.0
    elif pixels.dtype == np.uint16 and values is None and not part and 0 < int(pixels.max()) * DARK <= 65535:
        raise ValueError(
            f"{name} holds 16 bits a value and none above {pixels.max()}, where 0 to 65535 would become 0 to 1 and "
            "leave it black: state the value that is white, such as "
            f"--value-range 0 {2 ** int(pixels.max()).bit_length() - 1}"
        )
    elif pixels.dtype == np.uint8 and values is not None and values[1] > 255:
        raise ValueError(
            f"{name} holds 8 bits a value, where {values[0]:g} to {values[1]:g} become 0 to 1: give the image as it "
            "was stored, or state --value-range 0 255"
        )
    return values


def _check_floats(pixels: NDArray[Any], name: str) -> None:
    """Refuses floats that are not in [0, 1]: clipped, they would be answered in silence."""
    finite = pixels[np.isfinite(pixels)]
    if not finite.size:  # which is refused with the others that are no numbers
        return
    least, most = float(finite.min()), float(finite.max())
    if not (-1e-3 <= least and most <= 1 + 1e-3):
        if least == most:
            raise ValueError(f"{name} holds {least:.6g} everywhere, where the network takes floats from 0 to 1")
        divided = "divide by 255, or give uint8" if 0 <= least and most <= 255 else "scale it to 0 to 1"
        raise ValueError(
            f"{name} holds floats from {least:.6g} to {most:.6g}, where the network takes 0 to 1: {divided}, or state "
            f"what becomes 0 and 1, --value-range {least:.6g} {most:.6g}"
        )


def _checked(image: Tensor, reads: Reads, name: str) -> Tensor:
    if not image.numel():
        raise ValueError(f"{name} has no pixels: its shape is {tuple(image.shape)}")
    if len(image) != reads.in_channels:
        raise ValueError(
            f"{name} has {len(image)} channels as {reads.channels}, and the network takes {reads.in_channels}"
        )
    return image
