"""Bad folders: each stops before training with the file, what was found and what to do, and nothing is touched."""

import io
import os
import shutil
import struct
import time
import zlib
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.folder import FolderDataModule

LABELS = np.indices((24, 32)).sum(0).astype(np.uint8) % 3
COLOURS = np.stack([LABELS * 40] * 3, axis=2)


def content(root: Path) -> str:
    """A hash of the names and bytes below `root`; of a pipe only the name."""
    digest = sha256()
    for path in sorted(root.rglob("*")):
        digest.update(str(path).encode() + (path.read_bytes() if path.is_file() else b""))
    return digest.hexdigest()


def saved(pixels: np.ndarray | Image.Image, path: str, **options: object) -> Callable[[Path], None]:
    def save(root: Path) -> None:
        image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
        image.save(root / path, **options)

    return save


def written(path: str, data: bytes) -> Callable[[Path], None]:
    return lambda root: (root / path).write_bytes(data) and None


def cut_off(path: str) -> Callable[[Path], None]:
    def cut(root: Path) -> None:
        data = (root / path).read_bytes()
        (root / path).write_bytes(data[: len(data) * 4 // 5])

    return cut


def replaced(path: str, change: Callable[[Path], object]) -> Callable[[Path], None]:
    def replace(root: Path) -> None:
        (root / path).unlink()
        change(root / path)

    return replace


def png(width: int, height: int, bits: int, pixels: bytes) -> bytes:
    """A grey PNG with this header, whether or not `pixels` (rows, each after a zero) are enough."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def every_mask(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        for path in (root / "masks").iterdir():
            Image.fromarray(change(np.array(Image.open(path)))).save(path)

    return apply


def cmyk() -> Image.Image:
    return Image.fromarray(COLOURS).convert("CMYK")


def sideways(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(COLOURS).save(root / "images/train_1.jpg", exif=exif)


BAD = {
    "no mask": (lambda r: (r / "masks/train_1.png").unlink(), "images/train_1.jpg has no mask", "add masks/train_1"),
    "no image": (saved(LABELS, "masks/extra.png"), "masks/extra.png has no image", "move it out of masks/"),
    "unlisted": (saved(COLOURS, "images/extra.png"), "images/extra.png has no mask", "move it out of images/"),
    "mask size": (
        saved(LABELS[:20], "masks/train_1.png"),
        "masks/train_1.png is 32 x 20 pixels and images/train_1.jpg 32 x 24",
        "make the mask",
    ),
    "sideways": (sideways, "train_1.jpg 24 x 32 once its EXIF orientation is applied", "make the mask"),
    "label": (
        saved(LABELS + 2, "masks/train_1.png"),
        "masks/train_1.png has the labels 3, 4",
        "classes.txt has 0 to 2",
    ),
    "no label": (saved(LABELS * 0 + 255, "masks/train_1.png"), "masks/train_1.png has no label", "label it"),
    "binary": (every_mask(lambda m: (m > 1).astype(np.uint8) * 255), "all masks hold 0 and 255", "write 1 for 255"),
    "one-based": (every_mask(lambda m: np.where(m < 3, m + 1, m)), "the labels of all masks are 1 to 3", "subtract 1"),
    "RGB mask": (
        saved(COLOURS, "masks/train_1.png"),
        "masks/train_1.png holds RGB colours",
        "which colour is which class",
    ),
    "16-bit mask": (saved(LABELS.astype(np.uint16), "masks/train_1.png"), "train_1.png holds 16-bit", "8-bit PNG"),
    "2-bit mask": (
        written("masks/train_1.png", png(32, 24, 2, (b"\0" + b"\x1b" * 8) * 24)),
        "train_1.png is grey with 2 bits",
        "8-bit PNG",
    ),
    "JPEG mask": (saved(LABELS, "masks/train_1.png", format="JPEG"), "train_1.png is a JPEG file", "8-bit PNG"),
    "BMP mask": (saved(LABELS, "masks/train_1.png", format="BMP"), "train_1.png is a BMP file", "8-bit PNG"),
    "cut mask": (cut_off("masks/train_1.png"), "masks/train_1.png is damaged or cut off", "copy it again"),
    "empty mask": (written("masks/train_1.png", b""), "masks/train_1.png is empty (0 bytes)", "copy it again"),
    "cut JPEG": (cut_off("images/train_1.jpg"), "images/train_1.jpg is damaged or cut off", "copy it again"),
    "empty image": (written("images/train_1.jpg", b""), "images/train_1.jpg is empty (0 bytes)", "copy it again"),
    "HTML": (
        written("images/train_1.jpg", b"<!DOCTYPE html>"),
        "images/train_1.jpg is damaged or not an image",
        "replace it",
    ),
    "notes": (written("images/notes.txt", b"todo"), "images/notes.txt has no mask", "move it out of images/"),
    "16-bit image": (
        saved(LABELS.astype(np.uint16), "images/train_1.jpg", format="PNG"),
        "holds 16-bit",
        "value_range",
    ),
    "CMYK": (saved(cmyk(), "images/train_1.jpg"), "images/train_1.jpg holds CMYK", "8-bit RGB"),
    "alpha": (
        saved(np.dstack([COLOURS, LABELS]), "images/train_1.jpg", format="PNG"),
        "images/train_1.jpg holds an alpha channel",
        "channels: rgb",
    ),
    "transparent": (
        saved(COLOURS, "images/train_1.jpg", format="PNG", transparency=(0, 0, 0)),
        "images/train_1.jpg holds transparent pixels",
        "channels: rgb",
    ),
    "pages": (
        saved(COLOURS, "images/train_1.jpg", format="TIFF", save_all=True, append_images=[Image.fromarray(COLOURS)]),
        "images/train_1.jpg holds several pictures",
        "one picture a file",
    ),
    "GIF": (
        saved(LABELS, "images/train_1.jpg", format="GIF"),
        "images/train_1.jpg is a GIF image",
        "JPEG, PNG",
    ),
    "large": (
        written("images/train_1.jpg", png(8001, 8000, 1, b"")),
        "8001 x 8000 pixels, more than 64 million",
        "cut it",
    ),
    "bomb": (
        written("images/train_1.jpg", png(20000, 20000, 1, b"")),
        "train_1.jpg has more than 64 million",
        "cut it",
    ),
    "pipe": (replaced("images/train_1.jpg", os.mkfifo), "images/train_1.jpg is not a regular file", "move it out"),
    "folder": (replaced("images/train_1.jpg", Path.mkdir), "images/train_1.jpg is a folder", "move it out"),
    "broken link": (
        replaced("images/train_1.jpg", lambda p: p.symlink_to("gone.jpg")),
        "images/train_1.jpg is a broken link",
        "restore the file",
    ),
    "one name": (
        saved(COLOURS, "images/train_1.png"),
        "train_1.jpg and train_1.png, which are one name",
        "its own name",
    ),
    "same name in two splits": (
        written("splits/val.txt", b"val_0\ntrain_1\n"),
        "train_1 is in splits/train.txt and in splits/val.txt",
        "remove it from one",
    ),
    "same image in two splits": (
        lambda r: shutil.copy(r / "images/train_1.jpg", r / "images/test_0.jpg"),
        "train_1 in splits/train.txt and test_0 in splits/test.txt are the same image",
        "remove one",
    ),
    "twice": (written("splits/val.txt", b"val_0\nval_0\n"), "splits/val.txt names val_0 2 times", "leave one"),
    "unknown": (written("splits/val.txt", b"val_7\n"), "splits/val.txt names val_7", "correct or remove the line"),
    "extension": (written("splits/val.txt", b"val_1.jpg\n"), "names val_1.jpg", "did you mean val_1?"),
    "empty split": (written("splits/val.txt", b"\n"), "splits/val.txt names no image", "add names"),
    "empty images": (
        lambda r: [p.unlink() for p in (r / "images").iterdir()],
        "images/ is empty",
        "put the images here",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_folder_is_named_before_training_and_left_alone(make_folder: Callable[..., Path], kind: str) -> None:
    root = make_folder()
    change, found, way_out = BAD[kind]
    change(root)
    before = content(root)
    with pytest.raises(ValueError) as error:
        FolderDataModule(str(root)).verify()
    [line] = [line for line in str(error.value).splitlines() if found in line]
    assert way_out in line
    assert content(root) == before


def test_good_folder_passes_with_what_file_managers_leave(make_folder: Callable[..., Path]) -> None:
    root = make_folder()
    for junk in ("images/.DS_Store", "images/._train_0.jpg", "masks/Thumbs.db"):
        (root / junk).write_bytes(b"x")
    before = content(root)
    FolderDataModule(str(root)).verify()
    assert content(root) == before


def test_linked_files_are_read(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    root = make_folder()
    path = (root / "images/train_0.jpg").rename(tmp_path / "elsewhere.jpg")
    (root / "images/train_0.jpg").symlink_to(path)
    FolderDataModule(str(root)).verify()


def test_pair_in_no_split_is_a_warning(make_folder: Callable[..., Path]) -> None:
    root = make_folder()
    (root / "splits/val.txt").write_text("val_0\n")
    with pytest.warns(UserWarning, match="images in no split, which stay unused: val_1"):
        FolderDataModule(str(root)).verify()


def test_all_problems_are_listed_at_once(make_folder: Callable[..., Path]) -> None:
    root = make_folder()
    BAD["cut JPEG"][0](root)
    BAD["label"][0](root)
    with pytest.raises(ValueError, match=r"2 problems in .*\n.*images/train_1.jpg.*\n.*masks/train_1.png"):
        FolderDataModule(str(root)).verify()
    for i in range(30):
        Image.fromarray(LABELS).save(root / f"masks/extra_{i}.png")
    with pytest.raises(ValueError, match=r"32 problems in .*") as error:
        FolderDataModule(str(root)).verify()
    lines = [line.split(":")[0].strip() for line in str(error.value).splitlines()[1:]]
    assert lines == ["E_ORPHAN_MASK"] * 4 + ["E_DECODE", "E_LABEL_RANGE"]
    assert "E_ORPHAN_MASK: ... and 27 more, a mask without an image" in str(error.value)


def test_missing_parts_are_listed_with_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent does not exist; expected .*images/, masks/.* holds nothing"):
        FolderDataModule(str(tmp_path / "absent"))
    (tmp_path / "pictures").mkdir()
    (tmp_path / "masks").mkdir()
    with pytest.raises(
        FileNotFoundError,
        match=r"has no images/, classes.txt, splits/train.txt.*; it holds masks/, pictures/.*experiments.split /",
    ):
        FolderDataModule(str(tmp_path))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_files_raise_nothing_else(make_folder: Callable[..., Path]) -> None:
    """Pillow raises many kinds of exception for them; here it is always a ValueError with the file's name."""
    root = make_folder()
    rng = np.random.default_rng(0)
    datamodule = FolderDataModule(str(root))
    originals = {path: path.read_bytes() for path in (root / "images/train_1.jpg", root / "masks/train_1.png")}
    tiff = io.BytesIO()
    Image.fromarray(COLOURS).save(tiff, "TIFF")
    for path, original in [*originals.items(), (root / "images/train_1.jpg", tiff.getvalue())]:
        for _ in range(60):
            data = bytearray(original)
            for position in rng.integers(len(data), size=4):
                data[position] = rng.integers(256)
            path.write_bytes(data)
            try:
                datamodule.verify()
            except ValueError as error:
                assert "train_1" in str(error)
        path.write_bytes(originals[path])


def test_a_second_directory_of_a_tiff_without_dimensions_is_named(make_folder: Callable[..., Path]) -> None:
    root = make_folder()
    path = root / "images/train_1.jpg"
    Image.fromarray(COLOURS).save(path, format="TIFF")
    data = bytearray(path.read_bytes())
    (first,) = struct.unpack("<I", data[4:8])
    (count,) = struct.unpack("<H", data[first : first + 2])
    struct.pack_into("<I", data, first + 2 + 12 * count, len(data))
    path.write_bytes(bytes(data) + struct.pack("<HHHIII", 1, 254, 4, 1, 0, 0))
    with pytest.raises(ValueError, match=r"1 problem in .*\n.*images/train_1.jpg holds several pictures"):
        FolderDataModule(str(root)).verify()


def test_a_tiff_of_many_directories_is_not_walked_through(make_folder: Callable[..., Path]) -> None:
    root, count = make_folder(), 5000
    path = root / "images/train_1.jpg"
    Image.fromarray(COLOURS).save(path, format="TIFF")
    data = path.read_bytes()
    (first,) = struct.unpack("<I", data[4:8])
    size = 2 + 12 * struct.unpack("<H", data[first : first + 2])[0]
    links = [len(data) + (size + 4) * i for i in range(count)]
    chained = [data[first : first + size] + struct.pack("<I", link) for link in [*links[1:], 0]]
    path.write_bytes(data[: first + size] + struct.pack("<I", links[0]) + data[first + size + 4 :] + b"".join(chained))
    start = time.process_time()
    with pytest.raises(ValueError, match=r"images/train_1.jpg holds several pictures"):
        FolderDataModule(str(root)).verify()
    assert time.process_time() - start < 1  # 5,000 directories take more, each being read twice


def test_an_orientation_that_is_no_number_is_upright(make_folder: Callable[..., Path]) -> None:
    root = make_folder()
    exif = Image.Exif()
    exif[0x0112] = 6
    path = root / "images/train_1.jpg"
    Image.open(path).save(path, format="TIFF", exif=exif)
    data, entry = path.read_bytes(), struct.pack("<HHI", 0x0112, 3, 1)
    assert data.count(entry) == 1
    path.write_bytes(data.replace(entry, struct.pack("<HHI", 0x0112, 2, 1)))  # ASCII
    FolderDataModule(str(root)).verify()
    assert FolderDataModule(str(root)).dataset("train")[1][0].shape == (3, 24, 32)
