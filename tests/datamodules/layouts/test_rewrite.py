"""`check --fix` writes a corrected copy of what can be corrected, and changes nothing of the user's."""

import csv
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from forms import COUNT, FORMS, Form, cases, scene
from kinds import BAD, MORE, PALETTE, Kind, palettes
from PIL import Image
from tiny_data import write_folder

from datamodules.folder import FolderDataModule
from experiments.check import main

Contents = dict[Path, bytes]


def contents(root: Path) -> Contents:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def fix(root: Path, out: Path) -> int:
    """The exit status; the data are as before."""
    before = contents(root)
    with pytest.raises(SystemExit) as ended, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main([str(root), "--fix", str(out)])
    assert contents(root) == before
    return int(ended.value.code or 0)


def changes(out: Path) -> set[str]:
    with (out / "changes.csv").open(encoding="utf-8", newline="") as file:
        return {row["change"] for row in csv.DictReader(file)}


@pytest.mark.parametrize("form", cases(FORMS))
def test_every_form_becomes_the_plain_layout(form: Form, tmp_path: Path) -> None:
    root, out = form.make(tmp_path / "data"), tmp_path / "fixed"
    assert fix(root, out) == 0
    assert {path.name for path in out.iterdir()} >= {"images", "masks", "classes.txt", "splits", "changes.csv"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data, original = FolderDataModule(str(out)), FolderDataModule(str(root))
        data.verify()
    assert data.class_names == original.class_names and data.palette == original.palette
    found = {}
    for split in data.source.splits:
        dataset = data.dataset(split)
        found |= {name: dataset[index] for index, name in enumerate(dataset.names)}
    assert len(found) == COUNT
    for i in range(COUNT):
        image, mask = found[form.name(i).replace("/", "_")]
        np.testing.assert_array_equal(mask.numpy(), form.labels(scene(i)[1].copy()))
        shown = original.source.image(original.source.images[form.name(i)][0])
        np.testing.assert_array_equal(image.numpy(), shown)
    assert {s: len(n) for s, n in data.source.splits.items()} == {s: len(n) for s, n in original.source.splits.items()}


@pytest.mark.parametrize("form", cases(f for f in FORMS if "pairs" not in f.layout))
def test_without_a_layout_one_is_found(form: Form, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = form.make(tmp_path / "data")
    (root / "dataset.yaml").unlink()
    with pytest.raises(SystemExit) as ended:
        main([str(root)])
    assert ended.value.code == 2 and "--suggest" in capsys.readouterr().out
    assert fix(root, tmp_path / "fixed") == 0
    main([str(root), "--suggest", str(root / "dataset.yaml")])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = FolderDataModule(str(root))
        data.verify()
    assert sum(map(len, data.source.splits.values())) == COUNT
    with pytest.raises(SystemExit):
        main([str(root), "--suggest", str(root / "dataset.yaml")])
    assert "nothing is replaced" in capsys.readouterr().err


MENDED = {
    "a photograph on its side, the mask upright": "orientation applied",
    "a photograph upside down": "orientation applied",
    "a photograph and its mask on their side": "mask turned as its image",
    "a mask that its metadata turn": "orientation applied",
    "CMYK colours": "CMYK to RGB",
    "an alpha channel": "RGBA to RGB",
    "labels that count from 1": "labels from 0",
    "a 16-bit mask": "8-bit PNG",
    "a BMP mask": "8-bit PNG",
    "0 and 255 beside 0 and 1": "0 and 255 to 0 and 1",
    "palettes that disagree": "one palette",
    "a control character in a name": "name",
    "one picture in two splits": "not in train as it is in test",
    "one picture in two formats and splits": "not in train as it is in test",
    "a split line with an extension": "",
    "a split line of no image": "not in val as it is not there",
    "a name twice in a split": "not in val as it is in val",
    "no list of the training images": "train made by shares",
    "masks that end in _mask": "",
    "an image without a mask": "left out: has no mask",
    "a mask without an image": "left out: has no image",
    "a JPEG that is cut off": "left out: images/train_1.jpg is damaged",
    "a mask of RGB colours": "left out",
    "a JPEG mask": "left out",
}
KINDS = [kind for kind in [*BAD, *MORE] if kind.what in MENDED]


def test_every_kind_is_known() -> None:
    assert {kind.what for kind in KINDS} == {*MENDED}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.what)
def test_what_can_be_mended_is_and_the_rest_is_left_out(kind: Kind, tmp_path: Path) -> None:
    root, out = write_folder(tmp_path / "data", kind.classes), tmp_path / "fixed"
    kind.change(root)
    assert fix(root, out) == 0
    assert any(change.startswith(MENDED[kind.what]) for change in changes(out)) or not MENDED[kind.what]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        FolderDataModule(str(out)).verify()
    assert not [w for w in caught if "EXIF" in str(w.message)]


def test_zero_and_255_of_two_classes_become_zero_and_one(tmp_path: Path) -> None:
    root, out = write_folder(tmp_path / "data", ("background", "cell")), tmp_path / "fixed"
    for path in (root / "masks").iterdir():
        Image.fromarray((np.array(Image.open(path)) == 1).astype(np.uint8) * 255).save(path)
    truth = {path.name: np.array(Image.open(path)) // 255 for path in (root / "masks").iterdir()}
    assert fix(root, out) == 0
    for name, labels in truth.items():
        np.testing.assert_array_equal(np.array(Image.open(out / "masks" / name)), labels)


def test_palettes_that_disagree_become_the_one_of_most_masks(tmp_path: Path) -> None:
    root, out = write_folder(tmp_path / "data"), tmp_path / "fixed"
    palettes(PALETTE, PALETTE, [0, 255, 0, 0, 0, 0, 255, 0, 0])(root)
    colours = {path.name: np.array(Image.open(path).convert("RGB")) for path in (root / "masks").iterdir()}
    assert fix(root, out) == 0
    table = np.array(PALETTE).reshape(3, 3)
    for name, shown in colours.items():
        np.testing.assert_array_equal(table[np.array(Image.open(out / "masks" / name))], shown)


@pytest.mark.parametrize("where", ["", "inside", "there"])
def test_nothing_is_written_into_the_data_or_over_anything(
    where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_folder(tmp_path / "data")
    out = root / where if where != "there" else tmp_path / "there"
    if where == "there":
        out.mkdir()
    assert fix(root, out) == 2
    said = "is there already" if where != "inside" else "lies within the data"
    assert said in capsys.readouterr().err


def test_an_interrupted_copy_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, out = write_folder(tmp_path / "data"), tmp_path / "fixed"
    calls = iter(range(100))
    original: Callable[..., object] = shutil.copyfile

    def stop(*args: object, **kwargs: object) -> object:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr("datamodules.layouts.rewrite.Image.fromarray", stop)
    with pytest.raises(BaseException):  # noqa: B017  whichever ends the command
        main([str(root), "--fix", str(out)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]
