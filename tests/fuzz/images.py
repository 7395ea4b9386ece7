"""The bytes of images and masks, broken, through the verifier and through what reads them in training."""

import io
import random
import struct
import warnings
import zlib
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from datamodules.files import decode, read_image, read_mask
from datamodules.folder import FolderDataModule
from tests.fuzz.mutate import INTERESTING, mutated, refused

NAME = "images"
SIZE = (17, 13)
SUFFIXES = ["png", "jpg", "tif", "bmp", "webp", "gif", "PNG", ""]


def _picture(mode: str, size: tuple[int, int] = SIZE) -> Image.Image:
    rng = random.Random(mode)
    grey = Image.frombytes("L", size, bytes(rng.randrange(2) for _ in range(size[0] * size[1])))
    if mode == "P":
        grey.putpalette([0, 0, 0, 90, 200, 30, 255, 255, 255])
        return grey
    return grey.convert(mode)


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@cache
def seeds() -> list[bytes]:
    """Files that can be read, of every format and mode that Pillow writes."""
    exif = Image.Exif()
    exif[0x0112] = 6
    png = [_saved(_picture(mode), "PNG") for mode in ("1", "L", "P", "RGB", "RGBA", "LA", "I;16")]
    png += [_saved(_picture("P"), "PNG", transparency=0), _saved(_picture("P"), "PNG", bits=2)]
    png += [_saved(_picture("RGB"), "PNG", exif=exif, icc_profile=b"icc", dpi=(72, 72))]
    png += [_saved(_picture("L"), "PNG", save_all=True, append_images=[_picture("L")])]
    jpeg = [_saved(_picture(mode), "JPEG") for mode in ("L", "RGB", "CMYK")]
    jpeg += [_saved(_picture("RGB"), "JPEG", progressive=True, exif=exif)]
    jpeg += [_saved(_picture("RGB"), "MPO", save_all=True, append_images=[_picture("RGB")])]
    tiff = [_saved(_picture(mode), "TIFF") for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "F", "I", "I;16")]
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "group4", "jpeg", "zstd"):
        tiff.append(_saved(_picture("1" if compression == "group4" else "RGB"), "TIFF", compression=compression))
    tiff += [_saved(_picture("L"), "TIFF", save_all=True, append_images=[_picture("RGB"), _picture("1")])]
    tiff += [_saved(_picture("RGB"), "TIFF", exif=exif), _saved(_picture("RGB"), "TIFF", big_tiff=True)]
    bmp = [_saved(_picture(mode), "BMP") for mode in ("1", "L", "P", "RGB", "RGBA")]
    webp = [_saved(_picture("RGB"), "WEBP", lossless=lossless, exif=exif) for lossless in (True, False)]
    webp += [_saved(_picture("RGB"), "WEBP", save_all=True, append_images=[_picture("RGB").rotate(90)])]
    other = [_saved(_picture("P"), kind) for kind in ("GIF", "ICO", "TGA", "PCX")]
    other += [
        _saved(_picture("L"), "PPM"),
        b"<html>",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"\0" * 100,
        b"",
    ]
    # Several times, as these are what a folder may hold
    return [*png, *jpeg, *tiff, *tiff, *bmp, *webp, *other]


def _chunks(rng: random.Random, data: bytes) -> bytes:
    """A PNG with one chunk changed, moved, repeated or left out, its checksum right, so that readers go on."""
    at, chunks = 8, []
    while at + 12 <= len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    index = rng.randrange(len(chunks))
    kind, content = chunks[index]
    way = rng.randrange(5)
    if way == 0 and kind == b"IDAT":
        content = zlib.compress(mutated(rng, zlib.decompress(content)))
    elif way <= 2 and content:
        content = mutated(rng, content)
    elif way == 3:
        kind = rng.choice([b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"acTL", b"fcTL", b"eXIf", b"iCCP", b"zTXt", b"IEND"])
    chunks[index : index + 1] = [(kind, content)] * rng.choice([0, 1, 1, 1, 2])
    made = b"".join(struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    return data[:8] + made


def _directory(rng: random.Random, data: bytes) -> bytes:
    """A TIFF with one more directory of random entries, or with one entry of its first directory changed."""
    order = "<" if data[:2] == b"II" else ">"
    (at,) = struct.unpack(order + "I", data[4:8])
    changed = bytearray(data)
    if at + 2 > len(data):
        return mutated(rng, data)
    (count,) = struct.unpack(order + "H", data[at : at + 2])
    tags = [254, 256, 257, 258, 259, 262, 273, 274, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 338, 339, 34665]

    def entry() -> bytes:
        number = rng.choice([0, 1, 2, 3, 1000, 2**31, 2**32 - 1])
        return struct.pack(order + "HHII", rng.choice(tags), rng.randrange(14), number, rng.choice(INTERESTING) % 2**32)

    link = at + 2 + 12 * count
    if rng.random() < 0.5 and link + 4 <= len(data):
        number = rng.randrange(4)
        there = rng.choice([0, at, len(data)])  # a circle is one of the things to try
        struct.pack_into(order + "I", changed, link, len(data))
        changed += struct.pack(order + "H", number) + b"".join(entry() for _ in range(number))
        changed += struct.pack(order + "I", there)
    elif count:
        place = at + 2 + 12 * rng.randrange(count)
        changed[place : place + 12] = entry()
    return bytes(changed)


def broken(rng: random.Random) -> bytes:
    """The bytes of a file that was an image once; one in 20 still is."""
    data = rng.choice(seeds())
    if rng.random() < 0.05 or not data:
        return data
    if data[:4] == b"\x89PNG" and rng.random() < 0.5:
        return _chunks(rng, data)
    if data[:2] in (b"II", b"MM") and rng.random() < 0.5:
        return _directory(rng, data)
    if rng.random() < 0.05:
        return data[: rng.randrange(len(data))] + rng.choice(seeds())
    return mutated(rng, data)


def one(rng: random.Random, folder: Path) -> str:
    data, part = broken(rng), rng.choice(["images", "masks"])
    good = {"images": _saved(_picture("RGB"), "PNG"), "masks": _saved(_picture("L"), "PNG")}
    name = f"a.{rng.choice(SUFFIXES)}".rstrip(".")
    (folder / "splits").mkdir()
    for other, content in good.items():
        (folder / other).mkdir()
        (folder / other / (name if other == part else "a.png")).write_bytes(data if other == part else content)
    (folder / "classes.txt").write_bytes(b"a\nb\n")
    for split in ("train", "val", "test"):
        (folder / "splits" / f"{split}.txt").write_bytes(b"a\n" if split == "train" else b"")
    path = folder / part / name
    names = (f"{part}/{name}",)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        datamodule = FolderDataModule(str(folder), crop=8)
        problems = ""
        try:
            datamodule.verify()
        except ValueError as error:
            problems = str(error)
        wrong = [line for line in problems.splitlines()[1:] if "names no image" not in line and "masks/: " not in line]
        try:  # a file may be replaced after it was verified
            decode(path, data)
            (read_image if part == "images" else read_mask)(path)
        except ValueError as error:
            refused(error, *names)
            if not wrong:
                raise AssertionError(f"verified, and then refused: {error}") from error
        if not wrong:
            image, mask = datamodule.dataset("train")[0]
            assert image.shape[1:] == mask.shape, (image.shape, mask.shape)
            return "read"
    return refused(ValueError("\n".join(wrong)), *names)
