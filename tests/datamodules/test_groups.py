"""groups.csv of a folder: what it may hold, and that what is wrong is named before training."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from datamodules.fingerprint import stored_record
from datamodules.folder import FolderDataModule

NAMES = ["test_0", "train_0", "val_1"]


def opened(root: Path, content: str | bytes) -> FolderDataModule:
    """The folder with this groups.csv and `NAMES` as its test split."""
    (root / "splits/test.txt").write_text("\n".join(NAMES))
    (root / "splits/train.txt").write_text("train_1\ntrain_2\ntrain_3\n")
    (root / "splits/val.txt").write_text("val_0\n")
    (root / "groups.csv").write_bytes(content.encode() if isinstance(content, str) else content)
    return FolderDataModule(str(root))


def test_without_the_file_every_image_is_its_own_group(make_folder: Callable[..., Path]) -> None:
    assert FolderDataModule(str(make_folder())).groups(NAMES) == NAMES


@pytest.mark.parametrize(
    "content",
    [
        "image,group\ntest_0,patient 7\ntrain_0,patient 7\nval_1,val_1\n",
        "\ufeffimage,group\r\n val_1 , val_1 \r\n\r\ntrain_0,patient 7\r\ntest_0,patient 7",
        'image,group\n"test_0","patient 7"\ntrain_0,patient 7\nval_1,val_1\ntrain_2,of another split\n,\n',
    ],
    ids=["plain", "of Windows", "quoted"],
)
def test_groups_follow_the_names(make_folder: Callable[..., Path], content: str) -> None:
    datamodule = opened(make_folder(), content)
    datamodule.verify()
    assert datamodule.groups(NAMES) == ["patient 7", "patient 7", "val_1"]
    assert datamodule.groups(NAMES[::-1]) == ["val_1", "patient 7", "patient 7"]


def test_names_and_groups_match_in_either_unicode_form(make_folder: Callable[..., Path]) -> None:
    root = make_folder()
    for path in (root / "images/test_0.jpg", root / "masks/test_0.png"):
        path.rename(path.with_stem("stra\u00dfe_\u00e4"))
    (root / "splits/test.txt").write_text("stra\u00dfe_\u00e4\nval_1\n", encoding="utf-8")
    (root / "splits/val.txt").write_text("val_0\n")
    lines = "image,group\nstra\u00dfe_a\u0308,a\u0308\nval_1,\u00e4\n"
    (root / "groups.csv").write_text(lines, encoding="utf-8")
    datamodule = FolderDataModule(str(root))
    datamodule.verify()
    assert datamodule.groups(datamodule.dataset("test").names) == ["\u00e4", "\u00e4"]


GOOD = "image,group\ntest_0,a\ntrain_0,a\nval_1,b\n"
BAD: dict[str, tuple[str | bytes, str, str]] = {
    "no header": ("test_0,a\n", "line 1: expected the header image,group, got 'test_0,a'", "separate by commas"),
    "empty": ("", "line 1: expected the header image,group, got ''", "separate by commas"),
    "semicolons": (GOOD.replace(",", ";"), "expected the header image,group, got 'image;group'", "by commas"),
    "twice": (GOOD + "test_0,b\n", "line 5: 'test_0' has a group in line 2 already", "leave one"),
    "unknown": (GOOD + "other,b\n", "line 5: images/ has no 'other'", "correct or remove the line"),
    "extension": (GOOD.replace("val_1", "val_1.jpg"), "line 4: images/ has no 'val_1.jpg'", "did you mean val_1?"),
    "no group": (
        GOOD.replace("train_0,a", "train_0, "),
        "line 3: expected a group of 1 to 255 letters",
        "its own name",
    ),
    "one value": (GOOD + "\nval_0\n", "line 6: expected image,group, got 1 values, 'val_0'", "quote a name"),
    "three values": (GOOD + "val_0,a,b\n", "line 5: expected image,group, got 3 values, 'val_0,a,b'", "quote a name"),
    "long": (GOOD + f"val_0,{'x' * 256}\n", "line 5: expected a group of 1 to 255 letters for 'val_0'", "its own"),
    "control": (
        GOOD + "val_0,\x1b[2J\n",
        r"line 5: expected a group of 1 to 255 letters for 'val_0', got '\x1b[2J'",
        "",
    ),
    "NUL": (GOOD + "val_0,a\0b\n", "groups.csv line 5: expected", ""),
    "two lines": (GOOD + 'val_0,"a\nb"\n', r"line 6: expected a group of 1 to 255 letters for 'val_0', got 'a\nb'", ""),
    "quote": (GOOD + 'val_0,"a\n', "line 5: expected image,group, got what is no CSV", "mend it"),
    "missing": (
        "image,group\nval_1,b\n",
        "names 1 images, but of the test split not test_0, train_0;",
        "its own name",
    ),
    "UTF-16": (GOOD.encode("utf-16"), "groups.csv is not a UTF-8 text file", "save it as UTF-8"),
    "Latin-1": ((GOOD + "val_0,\u00e4\n").encode("latin-1"), "groups.csv is not a UTF-8 text file", "save it as UTF-8"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_groups_are_named_before_training(make_folder: Callable[..., Path], kind: str) -> None:
    content, found, way_out = BAD[kind]
    datamodule = opened(make_folder(), content)
    with pytest.raises(ValueError, match=r"^[12] problems? in ") as error:
        datamodule.verify()
    [line] = [line for line in str(error.value).splitlines() if found in line]
    assert way_out in line and "groups.csv" in line


@pytest.mark.parametrize("change", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("gone.csv")])
def test_groups_that_are_no_file_are_named(make_folder: Callable[..., Path], change: Callable[[Path], object]) -> None:
    root = make_folder()
    change(root / "groups.csv")
    for read in (lambda: FolderDataModule(str(root)).verify(), lambda: FolderDataModule(str(root)).groups(["test_0"])):
        with pytest.raises(ValueError, match=r"groups\.csv is not a regular file; put one"):
            read()


def test_a_folder_that_was_found_right_is_read_again_for_new_groups(
    make_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datamodules.fingerprint.FRESH", 0)
    datamodule = opened(make_folder(), GOOD)
    datamodule.verify()
    assert stored_record(datamodule.source) is not None
    (datamodule.root / "groups.csv").write_text(GOOD.replace("val_1", "val_2"))
    with pytest.raises(ValueError, match="images/ has no 'val_2'"):
        datamodule.verify()
    with pytest.raises(ValueError, match=r"in .*: groups\.csv names 3 images, but of the test split not val_1"):
        datamodule.groups(NAMES)


def test_groups_change_no_hash(make_folder: Callable[..., Path]) -> None:
    datamodule = opened(make_folder(), GOOD)
    before = datamodule.identify({"root": str(datamodule.root)})
    (datamodule.root / "groups.csv").unlink()
    assert datamodule.identify({"root": str(datamodule.root)}) == before
