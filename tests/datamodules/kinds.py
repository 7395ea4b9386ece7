"""Folders of data that are bad in one way each, and good ones; called, it writes their messages into docs/data.md.

python tests/datamodules/kinds.py
"""

import json
import os
import re
import shutil
import struct
import sys
import tempfile
import unicodedata
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from tiny_data import write_folder

from datamodules.folder import FolderDataModule, source_of
from datamodules.verify import examine

DOCS = ROOT / "docs" / "data.md"
BEGIN, END = "<!-- begin kinds: python tests/datamodules/kinds.py -->\n", "<!-- end kinds -->\n"

LABELS = np.indices((24, 32)).sum(0).astype(np.uint8) % 3
PIXELS = np.random.default_rng(1).integers(256, size=(24, 32, 3)).astype(np.uint8)
PALETTE = [0, 0, 0, 255, 0, 0, 0, 255, 0]
Change = Callable[[Path], object]


@dataclass(frozen=True)
class Kind:
    """A folder that is bad, or odd, in one way."""

    what: str
    change: Change
    code: str = ""  # of the message or the warning; none of a good folder
    classes: tuple[str, ...] = ("road", "tree", "sky")


def image(pixels: np.ndarray | Image.Image = PIXELS, name: str = "train_1.jpg", **options: object) -> Change:
    made = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    return lambda root: made.save(root / "images" / name, **options)  # type: ignore[arg-type]


def mask(pixels: np.ndarray | Image.Image = LABELS, name: str = "train_1.png", **options: object) -> Change:
    made = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    return lambda root: made.save(root / "masks" / name, **options)  # type: ignore[arg-type]


def data(content: bytes, path: str = "images/train_1.jpg") -> Change:
    return lambda root: (root / path).write_bytes(content)


def instead(change: Callable[[Path], object], path: str = "images/train_1.jpg") -> Change:
    def replace(root: Path) -> None:
        (root / path).unlink()
        change(root / path)

    return replace


def cut(path: str) -> Change:
    return lambda root: (root / path).write_bytes((root / path).read_bytes()[:-40])


def every_mask(change: Callable[[np.ndarray], np.ndarray]) -> Change:
    def apply(root: Path) -> None:
        for path in (root / "masks").iterdir():
            Image.fromarray(change(np.array(Image.open(path)))).save(path)

    return apply


def png(width: int, height: int, bits: int = 1, colour: int = 0, rows: bytes = b"") -> bytes:
    """A PNG with this header, whether or not the rows (each after a zero) are enough."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(bands: int, bits: int = 8, kind: int = 1, photometric: int = 1) -> bytes:
    """An uncompressed TIFF of 24 x 32 pixels, as geographic programs write it."""
    body = np.random.default_rng(2).integers(200, size=24 * 32 * bands * bits // 8).astype(np.uint8).tobytes()
    depths = struct.pack(f"<{bands}H", *[bits] * bands)
    tags = [(256, 4, 1, 32), (257, 4, 1, 24), (259, 3, 1, 1), (262, 3, 1, photometric), (273, 4, 1, 8)]
    tags += [(277, 3, 1, bands), (278, 4, 1, 24), (279, 4, 1, len(body)), (284, 3, 1, 1), (339, 3, 1, kind)]
    tags.append((258, 3, bands, 8 + len(body) if bands > 2 else struct.unpack("<I", (depths * 2)[:4])[0]))
    if bands > (3 if photometric == 2 else 1):
        tags.append((338, 3, 1, 0))
    tags.sort()
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(body) + len(depths)) + body + depths + directory


def paletted(labels: np.ndarray, palette: list[int]) -> Image.Image:
    out = Image.frombytes("P", labels.shape[::-1], labels.tobytes())
    out.putpalette(palette)
    return out


def palettes(*of_each: list[int]) -> Change:
    """Masks with these palettes in turn."""

    def apply(root: Path) -> None:
        for number, path in enumerate(sorted((root / "masks").iterdir())):
            paletted(LABELS, of_each[number % len(of_each)]).save(path)

    return apply


def oriented(orientation: int, name: str = "train_1.jpg") -> Change:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return image(PIXELS if orientation < 5 else PIXELS.transpose(1, 0, 2), name, exif=exif)


def oriented_mask(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(LABELS[::-1, ::-1].copy()).save(root / "masks/train_1.png", exif=exif)


def encoded(pixels: np.ndarray, form: str) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def listed(path: str, *lines: str) -> Change:
    return lambda root: (root / path).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def renamed(new: str) -> Change:
    """The pair train_1 has another name."""

    def rename(root: Path) -> None:
        (root / "images/train_1.jpg").rename(root / f"images/{new}.jpg")
        (root / "masks/train_1.png").rename(root / f"masks/{new}.png")
        listed("splits/train.txt", "train_0", unicodedata.normalize("NFC", new), "train_2", "train_3")(root)

    return rename


def manifest(root: Path) -> None:
    """SHA256SUMS, and then a JPEG with a changed byte that is decoded all the same."""
    paths = sorted((root / "images").iterdir())
    lines = [f"{sha256(path.read_bytes()).hexdigest()}  images/{path.name}" for path in paths]
    listed("SHA256SUMS", *lines)(root)
    changed = bytearray((root / "images/train_1.jpg").read_bytes())
    changed[-20] ^= 1
    (root / "images/train_1.jpg").write_bytes(changed)


def smooth() -> np.ndarray:
    """A picture as a camera makes them."""
    y, x = np.mgrid[:24, :32]
    return np.stack([(x * 7 + c * y * 3) % 256 for c in range(3)], axis=2).astype(np.uint8)


def frames(root: Path) -> None:
    """Two frames of a video in two splits: the second one has moved a little, and is another format."""
    Image.fromarray(smooth()).save(root / "images/train_1.jpg", quality=95)
    moved = np.clip(smooth().astype(int) + 2, 0, 255).astype(np.uint8)
    (root / "images/test_0.jpg").unlink()
    Image.fromarray(moved).save(root / "images/test_0.png")


def same_in_two_formats(root: Path) -> None:
    (root / "images/test_0.jpg").unlink()
    Image.fromarray(PIXELS).save(root / "images/test_0.bmp")
    Image.fromarray(PIXELS).save(root / "images/train_1.jpg", format="PNG")


def mixed_255(root: Path) -> None:
    for number, path in enumerate(sorted((root / "masks").iterdir())):
        Image.fromarray((LABELS > 1).astype(np.uint8) * (255 if number < 2 else 1)).save(path)


def some_255(root: Path) -> None:
    for number, path in enumerate(sorted((root / "masks").iterdir())):
        Image.fromarray(np.where(LABELS > 1, 255, 0).astype(np.uint8) if number < 2 else LABELS).save(path)


def dicom() -> bytes:
    return bytes(128) + b"DICM" + bytes(40)


GOOD = [
    Kind("as it is", lambda root: None),
    Kind("palette masks of one palette", palettes(PALETTE)),
    Kind("an image named .PNG", lambda r: instead(lambda p: Image.fromarray(PIXELS).save(p.with_suffix(".PNG")))(r)),
    Kind("a grey image", image(LABELS * 80)),
    Kind("PNG, BMP, TIFF and WebP", lambda r: [image(PIXELS, format=form)(r) for form in ("BMP", "TIFF", "WEBP")]),
]

# The forty of the field, in the order of what they are about: files, images, masks, pairs, names, sets.
BAD = [
    Kind("an empty image file", data(b""), "E_EMPTY_FILE"),
    Kind("an empty mask file", data(b"", "masks/train_1.png"), "E_EMPTY_FILE"),
    Kind("a mask that is cut off", cut("masks/train_1.png"), "E_DECODE"),
    Kind("a JPEG that is cut off", cut("images/train_1.jpg"), "E_DECODE"),
    Kind("a PNG with a changed byte", lambda r: _flip(r, "masks/train_1.png"), "E_DECODE"),
    Kind("a web page instead of an image", data(b"<!DOCTYPE html><html>"), "E_DECODE"),
    Kind("a pointer of Git LFS", data(b"version https://git-lfs.github.com/spec/v1\n"), "E_FORMAT"),
    Kind("an image of 169 million pixels", data(png(13000, 13000)), "E_TOO_MANY_PIXELS"),
    Kind("a bomb of 400 million pixels", data(png(20000, 20000)), "E_TOO_MANY_PIXELS"),
    Kind("an image of one pixel", lambda r: [image(PIXELS[:1, :1])(r), mask(LABELS[:1, :1])(r)], "E_TOO_SMALL"),
    Kind("a pipe", instead(os.mkfifo), "E_NOT_REGULAR_FILE"),
    Kind("a folder named like an image", instead(Path.mkdir), "E_NOT_REGULAR_FILE"),
    Kind("a link to nothing", instead(lambda p: p.symlink_to("gone.jpg")), "E_BROKEN_LINK"),
    Kind("a link to itself", instead(lambda p: p.symlink_to(p.name)), "E_BROKEN_LINK"),
    Kind("a link to a file elsewhere", lambda r: _link_outside(r), "W_LINK_OUTSIDE"),
    Kind("16-bit grey", image(LABELS.astype(np.uint16), format="PNG"), "E_IMAGE_MODE"),
    Kind("CMYK colours", image(Image.fromarray(PIXELS).convert("CMYK")), "E_IMAGE_MODE"),
    Kind("floats, with NaN", image(np.full((24, 32), np.nan, np.float32), format="TIFF"), "E_IMAGE_MODE"),
    Kind("an alpha channel", image(np.dstack([PIXELS, LABELS]), format="PNG"), "E_ALPHA"),
    Kind("several pictures in a file", lambda r: _pages(r), "E_MULTIFRAME"),
    Kind("a photograph on its side, the mask upright", lambda r: _sideways(r, upright=True), "W_EXIF_APPLIED"),
    Kind("a photograph upside down", oriented(3), "W_EXIF_APPLIED"),
    Kind("a mask of another size", mask(LABELS[:20]), "E_SIZE_MISMATCH"),
    Kind("a label that is no class", mask(LABELS + 2), "E_LABEL_RANGE"),
    Kind("labels that count from 1", every_mask(lambda m: np.where(m < 3, m + 1, m)), "E_LABEL_RANGE"),
    Kind("0 and 255 for two classes", every_mask(lambda m: (m > 1).astype(np.uint8) * 255), "E_BINARY_0_255"),
    Kind("a mask of RGB colours", mask(PIXELS), "E_MASK_MODE"),
    Kind("a 16-bit mask", mask(LABELS.astype(np.uint16)), "E_MASK_MODE"),
    Kind("a JPEG mask", mask(LABELS, format="JPEG"), "E_LOSSY_MASK"),
    Kind("a mask without a label", mask(np.full_like(LABELS, 255)), "E_ALL_IGNORE"),
    Kind("an image without a mask", lambda r: (r / "masks/train_1.png").unlink(), "E_MISSING_MASK"),
    Kind("a mask without an image", mask(LABELS, "extra.png"), "E_ORPHAN_MASK"),
    Kind("two images of one name", image(PIXELS, "train_1.png"), "E_DUP_STEM"),
    Kind("a text among the images", data(b"todo", "images/notes.txt"), "E_EXT"),
    Kind("a control character in a name", renamed("a\x1b[31mb"), "E_CONTROL_CHAR_IN_NAME"),
    Kind("a name in decomposed Unicode", renamed(unicodedata.normalize("NFD", "Bäume")), "W_NOT_NFC"),
    Kind("files of a file manager", data(b"x", "images/.DS_Store"), "W_JUNK"),
    Kind("a folder without images", lambda r: [p.unlink() for p in (r / "images").iterdir()], "E_EMPTY_DATASET"),
    Kind(
        "one picture in two splits",
        lambda r: shutil.copy(r / "images/train_1.jpg", r / "images/test_0.jpg"),
        "E_SPLIT_LEAK",
    ),
    Kind("a changed JPEG that decodes, with SHA256SUMS", manifest, "E_MANIFEST_HASH"),
]

# What else was once taken without a word, or with a wrong one.
MORE = [
    Kind("palettes that disagree", palettes(PALETTE, [0, 255, 0, 0, 0, 0, 255, 0, 0]), "E_MASK_PALETTES"),
    Kind("index masks that were quantised", palettes([2, 2, 2, 1, 1, 1, 0, 0, 0]), "E_MASK_PALETTES"),
    Kind("16-bit RGB, PNG", data(png(32, 24, 16, 2, (b"\0" + bytes(range(192))) * 24)), "E_IMAGE_MODE"),
    Kind("16-bit RGB, TIFF", data(tiff(3, 16, photometric=2)), "E_IMAGE_MODE"),
    Kind("0 and 255 beside 0 and 1", mixed_255, "E_BINARY_0_255", ("background", "cell")),
    Kind("0 and 255 alone among three classes", some_255, "W_255_AMONG_LABELS"),
    Kind("red, green, blue and infrared", data(tiff(4, photometric=2)), "E_BANDS"),
    Kind("two bands", data(tiff(2)), "E_BANDS"),
    Kind("five bands of 16 bits", data(tiff(5, 16)), "E_FORMAT"),
    Kind("one picture in two formats and splits", same_in_two_formats, "E_SPLIT_LEAK"),
    Kind("frames of a video over splits", frames, "W_NEAR_DUPLICATE"),
    Kind("a class without a training pixel", every_mask(lambda m: np.where(m == 2, 0, m)), "W_NO_TRAINING_PIXEL"),
    Kind("a mask that its metadata turn", oriented_mask, "W_EXIF_APPLIED"),
    Kind("a photograph and its mask on their side", lambda r: _sideways(r, upright=False), "E_SIZE_MISMATCH"),
    Kind("a HEIC photograph", data(b"\0\0\0\x18ftypheic" + bytes(40)), "E_FORMAT"),
    Kind("an AVIF image", data(encoded(PIXELS, "AVIF")), "E_FORMAT"),
    Kind("a JPEG 2000 image", data(b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40)), "E_FORMAT"),
    Kind("a DICOM file", data(dicom()), "E_FORMAT"),
    Kind("a NIfTI volume", data(bytes(344) + b"n+1\0" + bytes(40)), "E_FORMAT"),
    Kind("a NumPy array", data(b"\x93NUMPY\x01\0" + bytes(40)), "E_FORMAT"),
    Kind("a GIF image", image(LABELS, format="GIF"), "E_FORMAT"),
    Kind(
        "a grey mask of 2 bits", data(png(32, 24, 2, 0, (b"\0" + b"\x1b" * 8) * 24), "masks/train_1.png"), "E_MASK_MODE"
    ),
    Kind("a BMP mask", mask(LABELS, format="BMP"), "E_MASK_FORMAT"),
    Kind("an annotation beside its image", data(b"{}", "images/train_1.json"), "E_EXT"),
    Kind("a split line with an extension", listed("splits/val.txt", "val_0.jpg", "val_1"), "E_SPLIT_UNKNOWN"),
    Kind("a split line of no image", listed("splits/val.txt", "val_7", "val_1"), "E_SPLIT_UNKNOWN"),
    Kind("no list of the training images", lambda r: (r / "splits/train.txt").unlink(), "E_NO_SPLITS"),
    Kind("a name twice in a split", listed("splits/val.txt", "val_0", "val_0"), "E_SPLIT_TWICE"),
    Kind("no list of the test images", lambda r: (r / "splits/test.txt").unlink(), "W_NO_TEST"),
    Kind("an empty split", listed("splits/val.txt", ""), "E_SPLIT_EMPTY"),
    Kind("masks that end in _mask", lambda r: _suffixed(r), "E_MISSING_MASK"),
    Kind("an image of one colour", image(PIXELS * 0, format="PNG"), "W_CONSTANT_IMAGE"),
    Kind(
        "a group in two splits",
        listed("groups.csv", "image,group", "test_0,patient 1", "train_0,patient 1"),
        "W_GROUP_LEAK",
    ),
    Kind("an image in no split", listed("splits/val.txt", "val_0"), "W_UNUSED"),
    Kind("a list that is a link to nothing", instead(lambda p: p.symlink_to("gone"), "splits/val.txt"), "E_NO_SPLITS"),
    Kind("a list that is a pipe", instead(os.mkfifo, "splits/val.txt"), "E_NOT_REGULAR_FILE"),
    Kind("a list that is no UTF-8", data(b"\xff\xfev\0", "splits/val.txt"), "E_TEXT"),
    Kind("a dataset.yaml with a key that is none", listed("dataset.yaml", "image: a"), "E_LAYOUT"),
    Kind("16 bits whose range is not stated", lambda r: _deep(r, "channels: grey"), "E_RANGE"),
    Kind("12 bits in a range of 16", lambda r: _deep(r, "value_range: [0, 65535]"), "W_NARROW_RANGE"),
    Kind("polygons that are no JSON", lambda r: _annotated(r, "{"), "E_ANNOTATION"),
    Kind("a group without a name", listed("groups.csv", "image,group", "test_0,"), "E_GROUPS"),
]


def _deep(root: Path, *layout: str) -> None:
    """Images of 12 bits in grey PNG of 16, and this dataset.yaml."""
    listed("dataset.yaml", *layout)(root)
    for path in sorted((root / "images").iterdir()):
        grey = np.array(Image.open(path).convert("L")).astype(np.uint16) * 16
        path.unlink()
        Image.fromarray(grey).save(path.with_suffix(".png"))


def _annotated(root: Path, text: str) -> None:
    listed("dataset.yaml", "masks: 'polygons/{name}.json'", "background: road")(root)
    (root / "polygons").mkdir()
    for path in (root / "masks").iterdir():
        content = {"imageHeight": 24, "imageWidth": 32, "shapes": []}
        (root / f"polygons/{path.stem}.json").write_text(json.dumps(content))
    (root / "polygons/train_1.json").write_text(text)


def _flip(root: Path, path: str) -> None:
    content = bytearray((root / path).read_bytes())
    content[len(content) // 2] ^= 255
    (root / path).write_bytes(content)


def _suffixed(root: Path) -> None:
    for path in [*(root / "masks").iterdir()]:
        path.rename(path.with_name(f"{path.stem}_mask.png"))


def _link_outside(root: Path) -> None:
    moved = shutil.move(root / "images/train_1.jpg", root.parent / "elsewhere.jpg")
    (root / "images/train_1.jpg").symlink_to(moved)


def _pages(root: Path) -> None:
    Image.fromarray(PIXELS).save(
        root / "images/train_1.jpg", format="TIFF", save_all=True, append_images=[Image.fromarray(PIXELS)]
    )


def _sideways(root: Path, *, upright: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = PIXELS if not upright else np.ascontiguousarray(np.rot90(PIXELS))
    Image.fromarray(pixels).save(root / "images/train_1.jpg", exif=exif)


def said(kind: Kind, folder: Path) -> tuple[list[str], bool]:
    """What the folder is told to be, an error or warnings, and whether it is refused."""
    root = write_folder(folder / "data", kind.classes)
    kind.change(root)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            FolderDataModule(str(root)).verify()
        except FileNotFoundError:  # of a part of the layout, which `experiments.check` has a code for
            return [
                f"{p.code}: {p.said}".replace(str(root), "DIR")
                for p in examine(source_of({"root": str(root)})).problems
            ], True
        except ValueError as error:
            code = getattr(error, "code", "")  # of a layout that cannot be used at all
            return [f"{code}: {error}"] if code else [line.strip() for line in str(error).splitlines()[1:]], True
    return [str(warning.message) for warning in caught], False


def table() -> str:
    """Every kind with its code, the exit code of a command, and its message."""
    rows = ["| the folder has | code | exit | message |", "|---|---|---:|---|"]
    for kind in [*BAD, *MORE]:
        with tempfile.TemporaryDirectory() as folder:
            lines, refused = said(kind, Path(folder))
            line = next(line for line in lines if line.startswith(kind.code))
            shown = line.removeprefix(f"{kind.code}: ").replace(folder, "").replace("|", "\\|")
            shown = re.sub(r"(is damaged or cut off) \(.*\);", r"\1 (...);", shown)  # what Pillow says
            rows.append(f"| {kind.what} | `{kind.code}` | {2 if refused else 0} | {shown} |")
    return "\n".join(rows) + "\n"


def in_docs(text: str) -> str:
    """docs/data.md with this table."""
    whole = DOCS.read_text(encoding="utf-8")
    before, rest = whole.split(BEGIN)
    return before + BEGIN + text + END + rest.split(END)[1]


if __name__ == "__main__":
    os.environ["SEGLAB_CACHE"] = tempfile.mkdtemp()
    DOCS.write_text(in_docs(table()), encoding="utf-8", newline="\n")
