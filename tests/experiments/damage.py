"""A stored experiment that is fine, and ways to damage it."""

import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import SIDES, write_experiment

from experiments.evidence.experiment import Experiment, load_experiment

VARIANT = "nearest+none"
Arrays = dict[str, np.ndarray]


def write_folder(folder: Path) -> Path:
    """One seed of 2 x 2 variants, with a prediction of both test images."""
    write_experiment(folder, seeds=1)
    for cell in folder.glob("*/seed0"):
        write_zip(cell / "predictions.zip", [png(*SIDES)] * 2)
    return folder


def png(height: int, width: int, depth: int = 8, colour: int = 0) -> bytes:
    """A picture of zeros, as small as the format has it, made without its pixels in the memory."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    packer, row = zlib.compressobj(9), bytes(1 + (width * depth + 7) // 8)
    packed = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def write_zip(path: Path, pictures: list[bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for i, picture in enumerate(pictures):
            archive.writestr(f"{i:05}.png", picture)


def use(experiment: Experiment) -> None:
    """All that is read after the plan and the matrices."""
    assert experiment.pictures
    for cell in experiment.finished():
        cell.curve("val/miou")
        for name in cell.image_names:
            cell.prediction(name)


def refused(folder: Path, *words: str) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        use(load_experiment(folder))
    said = str(caught.value)
    assert len(said.splitlines()) == 1 and len(said) < 700
    for word in words:
        assert word in said, said
    return said


def change(path: Path, keys: tuple[str, ...], value: Any) -> None:
    content = json.loads(path.read_text())
    place = content
    for key in keys[:-1]:
        place = place.setdefault(key, {})
    if value is ...:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    path.write_text(json.dumps(content))


def rewrite(path: Path, change_arrays: Callable[[Arrays], Any]) -> None:
    with np.load(path) as stored:
        arrays = dict(stored)
    change_arrays(arrays)
    np.savez(path, **arrays)  # type: ignore[arg-type]


def put(key: str, value: Any) -> Callable[[Arrays], Any]:
    return lambda arrays: arrays.__setitem__(key, value(arrays[key]) if callable(value) else value)
