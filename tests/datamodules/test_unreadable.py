"""What cannot be opened or listed is named, with why, as the system has it fail."""

import errno
import io
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datamodules.folder import FolderDataModule


def unreadable(monkeypatch: pytest.MonkeyPatch, place: Path, number: int) -> None:
    """Opening or listing `place` fails as the system has it fail."""

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any = ".", *rest: Any, **named: Any) -> Any:
            if isinstance(path, str | os.PathLike) and Path(path) == place:
                raise OSError(number, os.strerror(number), str(path))
            return real(path, *rest, **named)

        return call

    for module, name in ((io, "open"), (os, "listdir"), (os, "scandir")):
        monkeypatch.setattr(module, name, failing(getattr(module, name)))


UNREADABLE = ["images/train_1.jpg", "masks/train_1.png", "splits/val.txt", "images", "masks", "groups.csv"]


KINDS = ["EACCES", "EPERM", "EIO", "ESTALE", "ELOOP", "EISDIR", "ENAMETOOLONG", "EMFILE", "ETIMEDOUT"]


@pytest.mark.parametrize(("name", "kind"), [*((n, "EACCES") for n in UNREADABLE), *((UNREADABLE[0], k) for k in KINDS)])
def test_what_cannot_be_read_is_listed_among_the_rest(
    make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    root = make_folder()
    with (root / "splits/train.txt").open("a") as file:
        file.write("train_0\n")
    (root / "groups.csv").write_text("image,group\ntest_0,a\n")
    datamodule = FolderDataModule(str(root))
    unreadable(monkeypatch, root / name, number := getattr(errno, kind))
    with pytest.raises(ValueError, match=r"2 problems in ") as error:
        datamodule.verify()
    [line] = [line for line in str(error.value).splitlines() if f"{name}" in line and "cannot be read" in line]
    assert f"({os.strerror(number)}); see to its permissions and its disk" in line
    assert "splits/train.txt names train_0 2 times" in str(error.value)


@pytest.mark.parametrize("name", ["classes.txt", "masks", "", "images"])
def test_what_the_constructor_cannot_read_is_a_value_error_or_left_to_verify(
    make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    root = make_folder()
    unreadable(monkeypatch, root / name, errno.EACCES)
    if name == "classes.txt":
        with pytest.raises(ValueError, match=r"classes.txt cannot be read \(Permission denied\)"):
            FolderDataModule(str(root))
    else:
        FolderDataModule(str(root))


def test_a_folder_that_cannot_be_looked_into_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"the data folder .*/x{300} cannot be read \(File name too long\)"):
        FolderDataModule(str(tmp_path / ("x" * 300)))
    unreadable(monkeypatch, tmp_path, errno.EACCES)
    with pytest.raises(FileNotFoundError, match=r"has no images/.*; it holds what cannot be listed"):
        FolderDataModule(str(tmp_path))


def _verify_as_nobody(root: Path, results: Any) -> None:
    os.setgid(65534)
    os.setuid(65534)
    try:
        FolderDataModule(str(root)).verify()
        results.put("verified")
    except Exception as error:  # noqa: BLE001  which one is what is asked for
        results.put(f"{type(error).__name__}: {error}")


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="needs root, who can become someone else")
@pytest.mark.parametrize(
    "mode", [("images/train_1.jpg", 0), ("images", 0), ("images", 0o644), ("splits/val.txt", 0), ("", 0)]
)
def test_files_of_someone_else(make_folder: Callable[..., Path], mode: tuple[str, int]) -> None:
    """Root may read everything, so another user looks."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        root = Path(shutil.copytree(make_folder(), Path(folder, "data")))
        (root / mode[0]).chmod(mode[1])
        context = multiprocessing.get_context("fork")
        results = context.SimpleQueue()
        process = context.Process(target=_verify_as_nobody, args=(root, results))
        process.start()
        process.join(60)
        (root / mode[0]).chmod(0o755)
        message = results.get()
    named = {"": f"the data folder {root}", "images": "images/test_0.jpg" if mode[1] else "images/"}.get(
        mode[0], mode[0]
    )
    assert message.startswith("ValueError: ") and f"{named} cannot be read (Permission denied)" in message
