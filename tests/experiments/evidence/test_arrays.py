"""Files that would take too much memory or time are refused before they are decoded."""

import io
import os
import struct
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from damage import VARIANT, png, refused, write_folder, write_zip
from handmade import SIDES

from experiments.evidence.experiment import load_experiment


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path)


def zeros_in(path: Path, name: str, shape: tuple[int, ...], dtype: str, bytes_of_content: int) -> None:
    """Puts into the zip an array that claims this shape and holds so many zeros, packed a thousand to one."""
    with zipfile.ZipFile(path) as archive:
        kept = {one: archive.read(one) for one in archive.namelist() if one != f"{name}.npy"}
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype, "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for one_name, content in kept.items():
            archive.writestr(one_name, content)
        with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
            file.write(header.getvalue())
            for _ in range(bytes_of_content // 2**20):
                file.write(bytes(2**20))


@pytest.mark.parametrize(
    ("file", "name", "shape", "dtype", "size", "said"),
    [
        ("per_image.npz", "boundary_f1", (2, 3), "<f8", 2**28, "must take the 48 bytes that its header claims"),
        ("per_image.npz", "boundary_f1", (2, 3, 2**25), "<f8", 0, "boundary_f1 must have the shape"),
        ("per_image.npz", "confusion", (10**15, 3, 3), "<i8", 0, "confusion must have the shape"),
        ("per_image.npz", "names", (2,), "<U4097", 2**20, "names must hold words of up to 4,096 letters"),
        ("samples.npz", "image_0", (2**14, 2**14, 3), "|u1", 2**28, "image_0 must take the 805,306,368 bytes"),
        ("samples.npz", "image_0", (2**16, 2**15, 3), "|u1", 0, "image_0 must take the"),
    ],
)  # fmt: skip
def test_sizes_are_checked_before_anything_is_decoded(
    folder: Path, file: str, name: str, shape: tuple[int, ...], dtype: str, size: int, said: str
) -> None:
    zeros_in(folder / VARIANT / "seed0" / file, name, shape, dtype, size)
    tracemalloc.start()
    refused(folder, file, said)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


def set_in_zip(path: Path, offset: int, value: int) -> None:
    """Sets two bytes of each local header, `offset` from its start, and of the directory, where they lie 2 later."""
    content = bytearray(path.read_bytes())
    for mark, at in ((b"PK\x03\x04", offset), (b"PK\x01\x02", offset + 2)):
        place = content.find(mark)
        while place >= 0:
            content[place + at : place + at + 2] = struct.pack("<H", value)
            place = content.find(mark, place + 4)
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["predictions.zip", "per_image.npz", "samples.npz"])
@pytest.mark.parametrize(("offset", "value", "said"), [(6, 1, "is encrypted"), (8, 99, "by an unknown method, 99")])
def test_a_zip_of_another_kind_is_named(folder: Path, name: str, offset: int, value: int, said: str) -> None:
    set_in_zip(folder / VARIANT / "seed0" / name, offset, value)
    refused(folder, name, said)


@pytest.mark.parametrize(
    ("height", "width", "said"),
    [
        (14_000, 14_000, "must have"),  # 196 million pixels in 185 kB
        (11_000, 11_000, "must have"),  # below the number of pixels that Pillow refuses
        (1, 1, "must have"),  # fewer than were scored
    ],
)
def test_a_picture_of_another_size_is_refused_before_it_is_decoded(
    folder: Path, height: int, width: int, said: str
) -> None:
    picture = png(height, width, depth=1)
    write_zip(folder / VARIANT / "seed0" / "predictions.zip", [picture] * 2)
    cell = load_experiment(folder).cells[VARIANT][0]
    for size in (None, SIDES):
        tracemalloc.start()
        with warnings.catch_warnings(), pytest.raises(ValueError, match=r"predictions\.zip cannot be read") as caught:
            warnings.simplefilter("ignore")
            cell.prediction("a.png", size)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (peak < 2**24 and "00000.png" in str(caught.value)) or "pixels" in str(caught.value)


def test_an_entry_too_large_for_its_picture_is_not_read(folder: Path) -> None:
    path = folder / VARIANT / "seed0" / "predictions.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("00000.png", "w") as file:
        for _ in range(800):
            file.write(bytes(2**20))
    assert path.stat().st_size < 2**20
    cell = load_experiment(folder).cells[VARIANT][0]
    for size in (None, SIDES):
        tracemalloc.start()
        with pytest.raises(ValueError, match=r"predictions\.zip.*00000\.png takes 838,860,800 bytes, too many"):
            cell.prediction("a.png", size)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**20


@pytest.mark.parametrize("name", ["metrics.csv", "per_image.npz", "samples.npz", "predictions.zip", "run.json"])
def test_a_pipe_is_not_waited_for(folder: Path, name: str) -> None:
    path = folder / VARIANT / "seed0" / name
    path.unlink()
    os.mkfifo(path)
    if name == "predictions.zip":  # as one that was not stored
        assert load_experiment(folder).cells[VARIANT][0].prediction("a.png") is None
    else:
        refused(folder, name, "no regular file")


def test_of_a_huge_log_only_the_end_is_read(folder: Path) -> None:
    cell = folder / VARIANT / "seed0"
    (cell / "result.json").unlink()
    with (cell / "log.txt").open("wb") as file:
        file.truncate(2**32)
        file.seek(2**32)
        file.write(b"\nthe \x1b[2Jend\n")
    (missing,) = load_experiment(folder).missing
    assert missing.state.endswith("log.txt ends: the \\x1b[2Jend")
