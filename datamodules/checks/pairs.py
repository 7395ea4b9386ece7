"""What can be wrong with one image and its mask."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from datamodules.checks.problems import Problem, coded
from datamodules.files import decode, depth, read_bytes, short

ORIENTATION = 0x0112  # EXIF tag; 1 is upright, 5 to 8 swap height and width
EXTRA_SAMPLES = 338  # TIFF tag; 1 and 2 are alpha channels
MIN_SIDE = 8  # pixels; less is an icon, or a file that something went wrong with
THUMB = 32  # pixels a side
STRETCH = "stretch its values to 0 to 255, as docs/data.md does: to convert it as it is cuts them off"
FIX = "save the mask as an 8-bit PNG of class indices"
# To quantise or to convert to a palette gives every file a numbering of its own.
FIX_COLOURS = "save it as an 8-bit PNG of class indices, by one table of colours for all (docs/data.md has the lines)"

Colour = tuple[int, int, int]


@dataclass
class Check:
    """What is known of an image and its mask."""

    problems: list[Problem] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)  # values in the mask
    pixels: list[int] = field(default_factory=list)  # of each of them
    size: tuple[int, int] = (0, 0)  # width and height of the upright image
    histogram: list[int] = field(default_factory=list)  # of red, green and blue, 256 each, where it was asked for
    colours: dict[int, Colour] = field(default_factory=dict)  # of these, where the mask has a palette of colours
    digests: dict[Path, str] = field(default_factory=dict)  # SHA-256 of the files that can be read
    picture: str = ""  # SHA-256 of the image's upright pixels
    thumb: np.ndarray | None = None  # (THUMB, THUMB) uint8, grey
    constant: bool = False  # whether the image has one colour alone
    turned: list[Path] = field(default_factory=list)  # which of the two their metadata turn


def check_pair(
    image_path: Path, mask_path: Path, num_classes: int, ignore_index: int, *, histogram: bool = False
) -> Check:
    """Reads both; every error is a problem of the check."""
    check = Check()
    image = mask = None
    try:
        image = _check_image(image_path, check)
        check.histogram = image.convert("RGB").histogram() if histogram else []
    except ValueError as error:
        check.problems.append(Problem.of(error))
    try:
        mask = _check_mask(mask_path, check, num_classes, ignore_index)
    except ValueError as error:
        check.problems.append(Problem.of(error))
    if image and mask and mask.size != image.size:
        turned = " once its EXIF orientation is applied" if image_path in check.turned else ""
        check.problems.append(
            Problem(
                "E_SIZE_MISMATCH",
                f"{short(mask_path)} is {mask.width} x {mask.height} pixels and {short(image_path)} {image.width} x "
                f"{image.height}{turned}; make the mask for the image as it is here",
            )
        )
    return check


def _check_image(path: Path, check: Check) -> Image.Image:
    data = read_bytes(path)
    image = decode(path, data)
    bands, bits = depth(image, data)
    told = short(path)
    extra = image.tag_v2.get(EXTRA_SAMPLES, (0,)) if image.format == "TIFF" else (1,)  # type: ignore[attr-defined]
    if bands > len(image.getbands()) or (image.mode in {"RGBA", "LA"} and not {1, 2} & {*_tuple(extra)}):
        raise coded(
            "E_BANDS",
            f"{told} has {bands} bands, of which {min(bands, 3) if bands > 2 else 1} would be read; save those "
            "that you want as 8-bit RGB or grey",
        )
    if image.mode not in {"RGB", "L", "P", "1"} or "transparency" in image.info:
        meaning = _meaning(image)
        if "alpha" in meaning or "transparent" in meaning:
            raise coded("E_ALPHA", f"{told} holds {meaning}; save it as 8-bit RGB or grey without transparency")
        if image.mode.startswith(("I", "F")):
            raise coded("E_IMAGE_MODE", f"{told} holds {meaning}; {STRETCH}")
        raise coded("E_IMAGE_MODE", f"{told} holds {meaning}; save it as 8-bit RGB or grey")
    if bits > 8:
        raise coded(
            "E_IMAGE_MODE",
            f"{told} holds {bits}-bit numbers, of which 8 bits would be read; {STRETCH}",
        )
    _check_single(image, path)
    if min(image.size) < MIN_SIDE:
        raise coded(
            "E_TOO_SMALL",
            f"{told} has {image.width} x {image.height} pixels, fewer than {MIN_SIDE} a side; replace it or take the "
            "pair out",
        )
    check.digests[path] = sha256(data).hexdigest()
    upright = _upright(image, path, check)
    check.picture = sha256(f"{upright.size} ".encode() + upright.convert("RGB").tobytes()).hexdigest()
    grey = upright.convert("L").resize((THUMB, THUMB), Image.Resampling.BOX)
    ranges = np.reshape(upright.getextrema(), (-1, 2))
    check.constant = bool((ranges[:, 0] == ranges[:, 1]).all())
    check.thumb, check.size = np.asarray(grey, dtype=np.uint8), upright.size
    return upright


def _check_mask(path: Path, check: Check, num_classes: int, ignore_index: int) -> Image.Image:
    data = read_bytes(path)
    mask = decode(path, data)
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
    counts = np.bincount(np.asarray(mask, dtype=np.uint8).ravel())
    check.labels = counts.nonzero()[0].tolist()
    check.pixels = counts[check.labels].tolist()
    if check.labels == [ignore_index]:
        raise coded(
            "E_ALL_IGNORE",
            f"{told} has no label, all of it is {ignore_index}; label it, move the "
            "pair out, or add the colour that your table of colours lacks",
        )
    check.colours = _colours(mask, [label for label in check.labels if label != ignore_index])
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
    return mask


def _colours(mask: Image.Image, labels: Sequence[int]) -> dict[int, Colour]:
    """The colours of the labels in the palette; none without one, and of a palette that shows label i as grey i."""
    flat = mask.getpalette() or [] if mask.mode == "P" else []
    colours = {i: (flat[3 * i], flat[3 * i + 1], flat[3 * i + 2]) for i in labels if len(flat) >= 3 * i + 3}
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
