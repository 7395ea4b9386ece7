"""Reads the files of a folder data set: names, images and masks. Every error names the file and the way out."""

import csv
import os
import re
import unicodedata
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO, StringIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from datamodules.checks.formats import named, tiff_bands
from datamodules.checks.problems import Problem, coded, shown, some

SPLITS = ("train", "val", "test")
FOLDER = "splits"  # of their lists, unless another one is named
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
MANIFEST = "SHA256SUMS"
JUNK = {"Thumbs.db", "desktop.ini"}
GROUPS = "groups.csv"
MAX_GROUP = 255  # letters of a group's name
MAX_PIXELS = 64_000_000  # more is rather a bomb: 20 KB of PNG can unpack to a gigabyte
LARGE = "cut it up, or raise max_pixels (--data.max_pixels) if it is what it should be"


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Makes a ValueError of what the system answers instead of what `name` holds; what is missing stays as it is."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise coded(
            "E_UNREADABLE",
            f"{name} cannot be read ({error.strerror or error}); see to its permissions and its disk, or move it out",
        ) from error


def listing(folder: Path) -> str:
    """What a folder holds, for an error: at most ten names."""
    try:
        names = sorted(path.name + "/" * os.path.isdir(path) for path in folder.iterdir())
    except OSError:
        return "what cannot be listed"
    return some(names, 10) or "nothing"


def must_exist(root: Path, expected: str) -> None:
    """Raises a FileNotFoundError unless there is such a folder, with what was `expected` in it and what is near."""
    if not root.is_dir():
        nearest = next(parent for parent in root.absolute().parents if os.path.isdir(parent))
        raise FileNotFoundError(
            f"the data folder {shown(str(root))} does not exist; expected a folder with {expected}. "
            f"{shown(str(nearest))} holds {listing(nearest)}"
        )


def files_below(root: str | Path | None, pattern: str) -> list[Path]:
    """The files of a data set of another kind, such as "*/*.npz" below `root`, sorted by name.

    Raises FileNotFoundError where there is no such folder or file, ValueError where no `root` is given.
    """
    if root is None:
        raise ValueError("this data set needs root, the folder of its data (--data.root)")
    with readable(f"the data folder {shown(str(root))}"):
        must_exist(Path(root), pattern)
        files = sorted(path for path in Path(root).glob(pattern) if not path.is_dir())
    if not files:
        raise FileNotFoundError(f"{shown(str(root))} has no {pattern}; it holds {listing(Path(root))}")
    return files


def decoded(path: Path, name: str) -> str:
    """The text, without the byte order mark that Windows puts in front; `name` is what an error calls the file."""
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise coded("E_NOT_REGULAR_FILE", f"{shown(name)} is not a regular file; put a text in its place")
    try:
        with readable(name):
            return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise coded("E_TEXT", f"{name} is not a UTF-8 text file; save it as UTF-8") from None


def read_lines(path: Path) -> list[str]:
    """The lines that are not blank."""
    return [line.strip() for line in decoded(path, str(path)).splitlines() if line.strip()]


def read_classes(path: Path, ignore_index: int) -> list[str]:
    """Class names in the order of their labels, from lines "index name" or from lines "name"."""
    lines = read_lines(path)
    numbered = [re.match(r"(\d{1,9})[\s:,]+(.+)", line) for line in lines]  # Python reads no number of 5,000 digits
    if any(numbered):
        if odd := [line for line, match in zip(lines, numbered, strict=True) if not match]:
            raise ValueError(
                f"{path}: lines are 'index name', but one is {odd[0][:80]!r}: give every class its index, and nothing "
                "else"
            )
        names = {int(match[1]): match[2].strip() for match in numbered if match}
        if sorted(names) != list(range(len(lines))):
            raise ValueError(
                f"{path}: the indices must be 0 to {len(lines) - 1}, each once, got "
                f"{', '.join(match[1] for match in numbered if match)}; "
                f"unlabelled pixels are {ignore_index} in the masks and have no line here"
            )
        lines = [names[index] for index in range(len(lines))]
    if comment := [line for line in lines if line.startswith("#")]:
        raise ValueError(f"{path}: {comment[0]!r} would be a class; remove the line")
    if not 2 <= len(lines) <= ignore_index:
        raise ValueError(f"{path}: expected 2 to {ignore_index} classes, one a line, found {len(lines)}")
    if doubled := sorted({name for name in lines if lines.count(name) > 1}):
        raise ValueError(f"{path}: every class needs its own name, found more than once: {some(doubled)}")
    return lines


def read_split(root: Path, split: str, folder: str = FOLDER) -> list[str]:
    """The names in <folder>/<split>.txt, one a line, without extension."""
    return [unicodedata.normalize("NFC", line) for line in read_lines(root / folder / f"{split}.txt")]


def has_groups(root: Path) -> bool:
    """Whether there is a groups.csv, readable or not."""
    return os.path.lexists(root / GROUPS)


def read_groups(root: Path, test: Sequence[str], images: Container[str] | None) -> tuple[dict[str, str], list[Problem]]:
    """The groups in groups.csv by the name of the image, and the problems of the file.

    It must name the images of the `test` split, and may name other `images`; None where those are not known.
    """
    if not (root / GROUPS).is_file():  # a pipe would be waited for
        said = f"{GROUPS} is not a regular file; put one with the lines image,group in its place"
        return {}, [Problem("E_NOT_REGULAR_FILE", said)]
    try:
        reader = csv.reader(StringIO(decoded(root / GROUPS, GROUPS)), strict=True)
    except ValueError as error:
        return {}, [Problem.of(error)]
    groups: dict[str, str] = {}
    lines: dict[str, int] = {}
    problems = []
    try:
        header = next(reader, [])
        if [word.strip() for word in header] != ["image", "group"]:
            got = ",".join(header)[:80]
            said = f"{GROUPS} line 1: expected the header image,group, got {got!r}; separate by commas"
            return {}, [Problem("E_GROUPS", said)]
        for row in reader:
            words = [unicodedata.normalize("NFC", word.strip()) for word in row]
            if any(words):
                if problem := _group_problem(words, lines, images):
                    problems.append(Problem("E_GROUPS", f"{GROUPS} line {reader.line_num}: {problem}"))
                lines.setdefault(words[0], reader.line_num)
                groups[words[0]] = words[-1]
    except csv.Error as error:
        said = f"{GROUPS} line {reader.line_num}: expected image,group, got what is no CSV ({error}); mend it"
        problems.append(Problem("E_GROUPS", said))
    else:
        if missing := [name for name in test if name not in groups]:
            said = (
                f"{GROUPS} names {len(groups)} images, but of the test split not {some(missing, 5)}; add them, each "
                "with its own name as the group where it stands alone"
            )
            problems.append(Problem("E_GROUPS", said))
    return groups, problems


def _group_problem(words: list[str], lines: dict[str, int], images: Container[str] | None) -> str:
    """What is wrong with a line of groups.csv, below `lines` of the images before; empty where nothing is."""
    if len(words) != 2:
        return f"expected image,group, got {len(words)} values, {','.join(words)[:80]!r}; quote a name with a comma"
    image, group = words
    if image in lines:
        return f"{image[:80]!r} has a group in line {lines[image]} already; leave one"
    if images is not None and image not in images:
        stem = Path(image).stem
        hint = f"did you mean {stem}? (names have no extension)" if stem in images else "correct or remove the line"
        return f"images/ has no {image[:80]!r}; {hint}"
    if not group or len(group) > MAX_GROUP or any(unicodedata.category(char) == "Cc" for char in group):
        return (
            f"expected a group of 1 to {MAX_GROUP} letters for {image[:80]!r}, got {group[:80]!r}; an image that "
            "stands alone has its own name as its group"
        )
    return ""


def files_by_name(folder: Path) -> dict[str, list[Path]]:
    """The files of a folder by name without extension; hidden files and those of file managers do not count.

    Names are compared in Unicode's composed form (NFC): an umlaut may be two characters on macOS, and one in a text.
    """
    files: dict[str, list[Path]] = {}
    with readable(f"{folder.name}/"):
        paths = sorted(folder.iterdir())
    for path in paths:
        if not path.name.startswith(".") and path.name not in JUNK:
            files.setdefault(unicodedata.normalize("NFC", path.stem), []).append(path)
    return files


def read_image(path: Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """(H, W, 3) uint8, turned upright: a camera held on its side says so in the EXIF orientation."""
    return np.asarray(ImageOps.exif_transpose(decode(path, read_bytes(path), max_pixels)).convert("RGB"))


def read_mask(path: Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """(H, W) uint8, the indices as they are: converting a palette mask to grey would turn them into other labels.

    Turned as its metadata say, as its image is.
    """
    return np.asarray(ImageOps.exif_transpose(decode(path, read_bytes(path), max_pixels)), dtype=np.uint8)


def read_bytes(path: Path) -> bytes:
    """The content of a regular file; a pipe is not opened, because reading it would wait for ever."""
    name = short(path)
    with readable(name):
        if path.is_symlink() and not path.exists():
            raise coded("E_BROKEN_LINK", f"{name} is a broken link; restore the file it points to")
        if path.is_dir():
            within = f"; {path.parent.name}/ is read without its folders: move its files up, or move it out"
            raise coded("E_NOT_REGULAR_FILE", f"{name} is a folder{within}")
        if not path.is_file():
            raise coded(
                "E_NOT_REGULAR_FILE",
                f"{name} is not a regular file; move it out, {path.parent.name}/ holds image files only",
            )
        data = path.read_bytes()
    if not data:
        raise coded("E_EMPTY_FILE", f"{name} is empty (0 bytes); copy it again")
    return data


def decode(path: Path, data: bytes, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """The image in the file `path` with the content `data`; its size is read from the header before it is decoded."""
    name = short(path)
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels  # Pillow's own cap, which would refuse what was allowed
    try:
        image = Image.open(BytesIO(data), formats=formats)
    except Image.DecompressionBombError:
        raise coded("E_TOO_MANY_PIXELS", f"{name} has more than {max_pixels / 1e6:g} million pixels; {LARGE}") from None
    except Exception as error:  # broken files raise six kinds of exception in Pillow
        if known := named(data, path.name):
            raise coded(
                "E_FORMAT",
                f"{name} is {known[0]}, and what is read is {', '.join(FORMATS)} with 8 bits a channel; "
                f"{shown(known[1])}",
            ) from error
        # What a link points to may be private.
        begins = "" if path.is_symlink() else f", it begins with {data[:16].decode('ascii', 'replace')!r}"
        raise coded(
            "E_DECODE",
            f"{name} is damaged or not an image ({', '.join(FORMATS)}){begins}; replace it or move it out",
        ) from error
    if image.width * image.height > max_pixels:
        raise coded(
            "E_TOO_MANY_PIXELS",
            f"{name} has {image.width} x {image.height} pixels, more than {max_pixels / 1e6:g} million; {LARGE}",
        )
    try:
        image.load()
        image.getexif()
    except Exception as error:
        raise coded("E_DECODE", f"{name} is damaged or cut off ({error}); copy it again") from error
    return image


def depth(image: Image.Image, data: bytes) -> tuple[int, int]:
    """Bands and bits a channel of the file, which Pillow may have dropped when it decoded the image."""
    if image.format == "TIFF" and (bands := tiff_bands(data)):
        return bands[0], bands[1]
    return len(image.getbands()), data[24] if image.format == "PNG" else 8


def quoted(word: str) -> str:
    """A value of a CSV file."""
    return '"' + word.replace('"', '""') + '"' if any(char in word for char in ',"\n\r') else word


def short(path: Path) -> str:
    """images/a.jpg, as a message calls a file of the data set."""
    return shown(f"{path.parent.name}/{path.name}")
