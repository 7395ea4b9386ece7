"""What a data set in files of its own kind is read and named by."""

from pathlib import Path

import pytest

from datamodules.files import files_below
from datamodules.fingerprint import digest_files


def test_files_are_sorted_and_are_no_folders(tmp_path: Path) -> None:
    for name in ("b/2.npz", "a/1.npz", "a/3.txt", "a/4.npz/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert [path.relative_to(tmp_path).as_posix() for path in files_below(tmp_path, "*/*.npz")] == [
        "a/1.npz",
        "b/2.npz",
    ]


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs root, the folder of its data \(--data\.root\)"):
        files_below(None, "*.npz")
    with pytest.raises(
        FileNotFoundError, match=r"none does not exist; expected a folder with \*\.npz\. .* holds nothing"
    ):
        files_below(tmp_path / "none", "*.npz")
    (tmp_path / "a.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"has no \*\.npz; it holds a\.txt"):
        files_below(str(tmp_path), "*.npz")


def test_a_digest_is_that_of_places_and_bytes_wherever_they_lie(tmp_path: Path) -> None:
    seen = set()
    for folder, place, text in (("x", "a", "1"), ("y", "a", "1"), ("z", "b", "1"), ("w", "a", "2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / place).write_text(text)
        seen.add((folder in "xy", digest_files(str(tmp_path / folder), "*")))
    assert len(seen) == 3
    (tmp_path / "x" / "a").write_text("")
    with pytest.raises(ValueError, match="x/a is empty"):
        digest_files(str(tmp_path / "x"), "*")
