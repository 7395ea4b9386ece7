"""What can be wrong with one image and its mask."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from datamodules.checks.problems import Problem, coded
from datamodules.files import IMAGE_ENDINGS, decode, depth, read_bytes, short
from datamodules.layouts.labels import IGNORED, Colour, colours_of
from datamodules.layouts.pixels import bands_of, read_pixels
from datamodules.layouts.source import Source

ORIENTATION = 0x0112  # EXIF tag; 1 is upright, 5 to 8 swap height and width
EXTRA_SAMPLES = 338  # TIFF tag; 1 and 2 are alpha channels
MIN_SIDE = 8  # pixels; less is an icon, or a file that something went wrong with
THUMB = 32  # pixels a side
STRETCH = "state the two values that become 0 and 1, such as value_range: [0, 4095] (--data.value_range '[0,4095]')"
FIX = "save the mask as an 8-bit PNG of class indices"
# To quantise or to convert to a palette gives every file a numbering of its own.
FIX_COLOURS = (
    "a dataset.yaml says which colour is which class: python -m experiments.check DIR --suggest DIR/dataset.yaml"
)


@dataclass
class Check:
    """What is known of an image and its mask."""

    problems: list[Problem] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)  # of the mask
    pixels: list[int] = field(default_factory=list)  # of each of them
    size: tuple[int, int] = (0, 0)  # width and height of the upright image
    moments: np.ndarray | None = None  # (channels, 2), sums of values in [0, 1] and of their squares, where asked for
    ends: tuple[float, float] = (0.0, 1.0)  # the smallest and the largest value, in [0, 1]
    bands: int = 3  # channels that are read
    bits: int = 8  # of each
    colours: dict[int, Colour] = field(default_factory=dict)  # of these, where the mask has a palette of colours
    digests: dict[Path, str] = field(default_factory=dict)  # SHA-256 of the files that can be read
    picture: str = ""  # SHA-256 of the image's upright pixels
    thumb: np.ndarray | None = None  # (THUMB, THUMB) uint8, grey
    constant: bool = False  # whether the image has one colour alone
    turned: list[Path] = field(default_factory=list)  # which of the two their metadata turn


def check_pair(source: Source, name: str, image_path: Path, *, moments: bool = False) -> Check:
    """Reads the image and its mask; every error is a problem of the check."""
    check = Check()
    mask_size = None
    try:
        (_check_image if source.as_read else _check_bands)(image_path, check, source, moments)
    except ValueError as error:
        check.problems.append(Problem.of(error))
    try:
        mask_size = (_check_mask if _of_indices(source, name) else _check_labels)(name, check, source)
    except ValueError as error:
        check.problems.append(Problem.of(error))
    if check.size != (0, 0) and mask_size and mask_size != check.size:
        turned = " once its EXIF orientation is applied" if image_path in check.turned else ""
        check.problems.append(
            Problem(
                "E_SIZE_MISMATCH",
                f"{short(source.masks[name][0])} is {mask_size[0]} x {mask_size[1]} pixels and {short(image_path)} "
                f"{check.size[0]} x {check.size[1]}{turned}; make the mask for the image as it is here",
            )
        )
    return check


def _of_indices(source: Source, name: str) -> bool:
    """Whether the mask is to be an 8-bit PNG of labels; of TIFF and others the layout reads the numbers."""
    return source.strict or (source.indexed and picture_of(source.masks[name]).suffix.lower() == ".png")


def _check_image(path: Path, check: Check, source: Source, moments: bool) -> None:
    """Of 8-bit RGB or grey."""
    data = read_bytes(path)
    image = decode(path, data, source.layout.max_pixels)
    bands, bits = depth(image, data)
    told = short(path)
    extra = image.tag_v2.get(EXTRA_SAMPLES, (0,)) if image.format == "TIFF" else (1,)  # type: ignore[attr-defined]
    if bands > len(image.getbands()) or (image.mode in {"RGBA", "LA"} and not {1, 2} & {*_tuple(extra)}):
        raise coded(
            "E_BANDS",
            f"{told} has {bands} bands, of which {min(bands, 3) if bands > 2 else 1} would be read; channels: all "
            "(--data.channels all) reads them",
        )
    if image.mode not in {"RGB", "L", "P", "1"} or "transparency" in image.info:
        meaning = _meaning(image)
        if "alpha" in meaning or "transparent" in meaning:
            raise coded(
                "E_ALPHA", f"{told} holds {meaning}; channels: rgb (--data.channels rgb) leaves it out, rgba keeps it"
            )
        if image.mode.startswith(("I", "F")):
            raise coded("E_IMAGE_MODE", f"{told} holds {meaning}; {STRETCH}")
        raise coded("E_IMAGE_MODE", f"{told} holds {meaning}; save it as 8-bit RGB or grey")
    if bits > 8:
        raise coded(
            "E_IMAGE_MODE",
            f"{told} holds {bits}-bit numbers, of which 8 bits would be read; {STRETCH}",
        )
    _check_single(image, path)
    _check_size(*image.size, told)
    check.digests[path] = sha256(data).hexdigest()
    upright = _upright(image, path, check)
    check.picture = sha256(f"{upright.size} ".encode() + upright.convert("RGB").tobytes()).hexdigest()
    grey = upright.convert("L").resize((THUMB, THUMB), Image.Resampling.BOX)
    ranges = np.reshape(upright.getextrema(), (-1, 2))
    check.constant = bool((ranges[:, 0] == ranges[:, 1]).all())
    check.thumb, check.size = np.asarray(grey, dtype=np.uint8), upright.size
    if moments:
        counts, values = np.reshape(upright.convert("RGB").histogram(), (3, 256)), np.arange(256) / 255
        check.moments = np.stack([counts @ values, counts @ values**2], axis=1)


def _check_bands(path: Path, check: Check, source: Source, moments: bool) -> None:
    """Of other channels or another depth than 8-bit RGB and grey, which the layout asks for."""
    stated, told = source.layout, short(path)
    data = read_bytes(path)
    bands = bands_of(path)
    if bands.bits > 8 and stated.value_range is None:
        pixels = read_pixels(path, stated.max_pixels)
        low, high = (f"{end:g}" for end in (pixels.min(), pixels.max()))
        raise coded(
            "E_RANGE",
            f"{told} holds {bands.bits}-bit numbers, here {low} to {high}; state which two become 0 and 1, the same "
            f"for all images: value_range: [{low}, {high}] (--data.value_range)",
        )
    check.bits = bands.bits
    if _orientation(data) != 1:
        check.turned.append(path)
    values = source.image(path)  # (C, H, W)
    _check_size(values.shape[2], values.shape[1], told)
    check.digests[path] = sha256(data).hexdigest()
    check.picture = sha256(f"{values.shape} ".encode() + values.tobytes()).hexdigest()
    flat = values.reshape(len(values), -1)
    check.bands, check.ends = len(values), (float(flat.min()), float(flat.max()))
    check.constant = bool((flat.min(axis=1) == flat.max(axis=1)).all())
    grey = Image.fromarray((255 * values.mean(axis=0)).astype(np.uint8)).resize((THUMB, THUMB), Image.Resampling.BOX)
    check.thumb, check.size = np.asarray(grey, dtype=np.uint8), (values.shape[2], values.shape[1])
    if moments:
        exact = flat.astype(np.float64)
        check.moments = np.stack([exact.sum(axis=1), (exact**2).sum(axis=1)], axis=1)


def _orientation(data: bytes) -> int:
    """What the metadata of an image of Pillow's formats say; 1 of all others."""
    try:
        found = Image.open(BytesIO(data)).getexif().get(ORIENTATION, 1)
    except Exception:  # noqa: BLE001  whatever is wrong with it, reading it says
        return 1
    return found if found in range(2, 9) else 1


def _check_size(width: int, height: int, told: str) -> None:
    if min(width, height) < MIN_SIDE:
        raise coded(
            "E_TOO_SMALL",
            f"{told} has {width} x {height} pixels, fewer than {MIN_SIDE} a side; replace it or take the pair out",
        )


def _check_labels(name: str, check: Check, source: Source) -> tuple[int, int]:
    """Of masks that hold something else than labels, which the layout explains. Returns width and height."""
    paths = source.masks[name]
    for path in paths:
        check.digests[path] = source.digest(path)
    labels = source.labels(name)
    _count(labels, check)
    if check.labels == [IGNORED]:
        raise coded(
            "E_ALL_IGNORE", f"{short(paths[0])} has no label, all of it is unlabelled; label it, or take the pair out"
        )
    if source.classes.values and paths[0].suffix.lower() == ".png":
        check.colours = source.mask_colours(paths[0])
    return labels.shape[1], labels.shape[0]


def _count(labels: np.ndarray, check: Check) -> None:
    counts = np.bincount(labels.ravel())
    check.labels = counts.nonzero()[0].tolist()
    check.pixels = counts[check.labels].tolist()


def _check_mask(name: str, check: Check, source: Source) -> tuple[int, int]:
    """Of 8-bit PNGs of labels. Returns width and height."""
    path, num_classes, ignore_index = picture_of(source.masks[name]), len(source.classes.names), IGNORED
    data = read_bytes(path)
    mask = decode(path, data, source.layout.max_pixels)
    told = short(path)
    if mask.format == "JPEG":
        raise coded("E_LOSSY_MASK", f"{told} is a JPEG file, whose compression changes labels; {FIX}")
    if mask.format != "PNG":
        raise coded("E_MASK_FORMAT", f"{told} is a {mask.format} file; {FIX}")
    if mask.mode not in {"P", "L", "1"}:
        fix = FIX_COLOURS if mask.mode in {"RGB", "RGBA"} else FIX
        raise coded("E_MASK_MODE", f"{told} holds {_meaning(mask)}; {fix}")
    if mask.mode == "L" and data[24] < 8:  # the bit depth in the PNG header
        raise coded(
            "E_MASK_MODE", f"{told} is grey with {data[24]} bits a pixel, which readers stretch to 0-255; {FIX}"
        )
    _check_single(mask, path)
    check.digests[path] = sha256(data).hexdigest()
    mask = _upright(mask, path, check)
    _count(np.asarray(mask, dtype=np.uint8), check)
    if check.labels == [ignore_index]:
        raise coded(
            "E_ALL_IGNORE",
            f"{told} has no label, all of it is {ignore_index}; label it, move the "
            "pair out, or add the colour that your table of colours lacks",
        )
    check.colours = palette_colours(mask, [label for label in check.labels if label != ignore_index])
    _check_greys(check.colours, num_classes, told)
    if wrong := [label for label in check.labels if label >= num_classes and label != ignore_index]:
        listed = ", ".join(map(str, wrong[:8])) + (f" and {len(wrong) - 8} more" if len(wrong) > 8 else "")
        # Labels go on without a gap; grey values of a smoothed mask lie all over.
        grey = "; so many are rather grey values: set a threshold" if len(wrong) > 8 and mask.mode == "L" else ""
        raise coded(
            "E_LABEL_RANGE",
            f"{told} has the label{'s'[: len(wrong) - 1]} {listed}; classes.txt has 0 to {num_classes - 1}, and "
            f"{ignore_index} is unlabelled: add the class or correct the mask{grey}",
        )
    return mask.size


def picture_of(paths: Sequence[Path]) -> Path:
    """The one that is rather the picture, where several files have its name."""
    return min(paths, key=lambda path: path.suffix.lower() not in IMAGE_ENDINGS)


def palette_colours(mask: Image.Image, labels: Sequence[int]) -> dict[int, Colour]:
    """The colours of the labels in the palette; none without one, and of a palette that shows label i as grey i."""
    colours = colours_of(mask, labels)
    return {} if all(colour == (i, i, i) for i, colour in colours.items()) else colours


def _check_greys(colours: Mapping[int, Colour], num_classes: int, told: str) -> None:
    """Raises ValueError for a palette whose greys are labels themselves, but others: quantised from an index mask."""
    distinct = len({*colours.values()}) == len(colours) > 1
    if distinct and all(r == g == b < num_classes for r, g, b in colours.values()):
        label, (grey, _, _) = next((i, c) for i, c in colours.items() if c[0] != i)
        raise coded(
            "E_MASK_PALETTES",
            f"{told} shows label {label} as grey {grey}, which is another label: its palette was made from an index "
            "mask and numbers it anew; save the mask without a palette, np.asarray(Image.open(path).convert('L'))",
        )


def _upright(image: Image.Image, path: Path, check: Check) -> Image.Image:
    """The image as its metadata turn it, which is noted."""
    orientation = image.getexif().get(ORIENTATION, 1)
    if orientation == 1 or orientation not in range(1, 9):  # also text and lists are found there
        return image
    check.turned.append(path)
    return ImageOps.exif_transpose(image)


def _check_single(image: Image.Image, path: Path) -> None:
    # Counting them would read every one, also damaged ones. A phone's JPEG (MPO) has previews behind the picture.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise coded("E_MULTIFRAME", f"{short(path)} holds several pictures; save one picture a file")


def _meaning(image: Image.Image) -> str:
    if "transparency" in image.info:
        return "transparent pixels"
    if image.mode.startswith("I;16"):
        return "16-bit numbers"
    meanings = {
        "F": "floating-point numbers",
        "RGB": "RGB colours",
        "RGBA": "an alpha channel",
        "LA": "an alpha channel",
        "CMYK": "CMYK colours",
    }
    return meanings.get(image.mode, f"pixels of mode {image.mode}")


def _tuple(value: object) -> tuple[object, ...]:
    return value if isinstance(value, tuple) else (value,)
