"""What was once read, copied or split wrongly without a word, or ended in a traceback, each as small as it can be."""

import json
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forms import SHARES, object_files, save, scene, text
from PIL import Image
from test_layout import CLASSES, make, problems
from test_rewrite import changes, fix
from tiny_data import write_folder

from datamodules.folder import FolderDataModule
from datamodules.layouts.guess import suggest
from datamodules.layouts.source import Source
from experiments import split as split_verb
from experiments.check import main

PLAIN = {"images": "d/{name}.png", "masks": "m/{name}.png", "splits": {"train": 0.5, "val": 0.5}}


def pairs(root: Path, count: int = 6) -> Path:
    return make(root, {f"d/{i:03}.png": f"m/{i:03}.png" for i in range(count)})


def of_classes(root: Path, **organs: Callable[[np.ndarray], np.ndarray]) -> Path:
    """A file for each organ, of pixels by a function of the labels."""
    for i in range(4):
        pixels, labels = scene(i)
        save(pixels, root / f"d/{i}.png")
        for organ, where in organs.items():
            save(where(labels).astype(np.uint8) * 255, root / f"m/{organ}/{i}.png")
    return root


BY_CLASS = {"images": "d/{name}.png", "masks": "m/{class}/{name}.png", "splits": {"train": 0.5, "val": 0.5}}


def test_the_later_class_covers_whatever_its_name(tmp_path: Path) -> None:
    root = of_classes(tmp_path, organ=lambda m: m > 0, lesion=lambda m: m == 2)
    source = Source(root, **BY_CLASS, classes=["background", "organ", "lesion"])
    for i in range(4):
        np.testing.assert_array_equal(source.labels(str(i)), scene(i)[1])


def test_a_folder_that_is_no_class_is_said_and_one_of_other_letters_too(tmp_path: Path) -> None:
    root = of_classes(tmp_path, heart=lambda m: m == 1, kidney=lambda m: m == 2)
    for classes in (["background", "heart"], ["background", "heart", "Kidney"]):
        assert any("kidney is no class" in line for line in problems(root, **BY_CLASS, classes=classes))
    assert not problems(root, **BY_CLASS, classes={"background": None, "heart": None}, ignore=["kidney"])


def test_masks_that_change_their_class_by_their_folder_are_another_run(tmp_path: Path) -> None:
    root = of_classes(tmp_path, heart=lambda m: m > 0)
    layout = {"root": str(root), **BY_CLASS, "classes": ["background", "heart", "lung"]}
    before = FolderDataModule.identify(layout)
    (root / "m/heart").rename(root / "m/lung")
    assert FolderDataModule.identify(layout) != before


def test_the_longest_class_and_the_name_of_an_image_are_found_in_a_files_name(tmp_path: Path) -> None:
    for i in range(4):
        pixels, labels = scene(i)
        save(pixels, tmp_path / f"d/00{i}.png")
        for label, organ in ((1, "lung"), (2, "left_lung")):
            save((labels == label).astype(np.uint8) * 255, tmp_path / f"m/00{i}_{organ}.png")
            save((labels == label).astype(np.uint8) * 255, tmp_path / f"o/00{i}_cell_{label}.png")
    splits = {"train": 0.5, "val": 0.5}
    classes = ["background", "lung", "left_lung"]
    source = Source(tmp_path, images="d/{name}.png", masks="m/{name}_{class}.png", classes=classes, splits=splits)
    objects = Source(tmp_path, images="d/{name}.png", masks="o/{name}_*.png", classes=["bg", "cell"], splits=splits)
    for i in range(4):
        np.testing.assert_array_equal(source.labels(f"00{i}"), scene(i)[1])
        np.testing.assert_array_equal(objects.labels(f"00{i}"), scene(i)[1] > 0)


def test_files_of_objects_lie_on_the_class_called_background_and_clear_pixels_are_none(tmp_path: Path) -> None:
    object_files(tmp_path)
    layout = {"images": "stage1_train/{name}/images/{name}.png", "masks": "stage1_train/{name}/masks/*.png"}
    for classes, ignore in ((["cell", "background"], None), (["background", "cell"], "others")):
        source = Source(tmp_path, **layout, classes=classes, ignore=ignore, channels="rgb")
        names = np.array(source.classes.names)
        np.testing.assert_array_equal(names[source.labels("000")] == "cell", scene(0)[1] > 0)
    assert any(
        "and there are 3 classes" in line for line in problems(tmp_path, **layout, classes=CLASSES, splits=SHARES)
    )
    for path in tmp_path.glob("stage1_train/000/masks/*.png"):
        shape = np.array(Image.open(path))
        Image.fromarray(np.dstack([np.full((*shape.shape, 3), 255, np.uint8), shape])).save(path)
    np.testing.assert_array_equal(source.labels("000") == 1, scene(0)[1] > 0)


@pytest.mark.parametrize(
    "classes",
    [
        {"s": None, "c": None, "w": None},  # colours without quotes are comments of YAML
        {"s": "000000", "c": "00ff00", "w": "ff0000"},
        {"s": "soil", "c": "crop", "w": "weed"},
    ],
)
def test_names_without_values_are_no_labels_of_pictures(classes: dict[str, Any], tmp_path: Path) -> None:
    assert any(
        "nothing in the masks stands for s, c, w" in line
        for line in problems(pairs(tmp_path), **PLAIN, classes=classes)
    )


def test_a_number_in_quotes_is_a_value(tmp_path: Path) -> None:
    source = Source(pairs(tmp_path), **PLAIN, classes={"object": "1", "background": "0", "other": "2"})
    np.testing.assert_array_equal(source.labels("000"), np.array([1, 0, 2])[scene(0)[1]])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("classes: [a, b]\nclasses: [b, a]", "stands twice"),
        ("classes: {a: 0, b: 1, a: 2}", "stands twice"),
        ("classes: {a: b, b: c}", "E_LAYOUT"),
        ("classes: {background: road, road: street}\nmasks: 'm/{name}.json'", "the word 'road' stands for two"),
        (
            "note: [&a [x, x, x], &b [*a, *a, *a], &c [*b, *b, *b], &d [*c, *c, *c], &e [*d, *d, *d], [*e, *e, *e]]",
            "note",
        ),
        (f"value_range: [0, {'9' * 400}]", "value_range"),
        (f"splits: {{train: {'9' * 18}, val: 0.1}}", "share"),
        (f"images: '{'a' * 300}/{{name}}.png'", "at most 255 bytes"),
        ("splits: {train: 0.1, val: 0.1}", "must make 1 together, got 0.2"),
        ("splits: {train: [a, 1.10], val: 0.5}", "put it in quotes"),
    ],
)
def test_yaml_that_would_be_taken_otherwise_than_meant_is_refused(content: str, said: str, tmp_path: Path) -> None:
    root = pairs(tmp_path)
    keys = "images: 'd/{name}.png'\nmasks: 'm/{name}.png'\nclasses: [a, b, c]\nsplits: {train: 0.5, val: 0.5}\n"
    own = {line.split(":")[0] for line in content.splitlines()}
    rest = "".join(f"{line}\n" for line in keys.splitlines() if line.split(":")[0] not in own)
    (root / "dataset.yaml").write_text(f"{rest}{content}\n")
    found = problems(root)
    assert any(said in line for line in found), found


def test_names_that_look_like_numbers_stay_what_they_are(tmp_path: Path) -> None:
    root = make(tmp_path, {f"d/{name}.png": f"m/{name}.png" for name in ("008", "009", "010", "011", "12", "1_2")})
    keys = "images: 'd/{name}.png'\nmasks: 'm/{name}.png'\nclasses: [a, b, c]\n"
    (root / "dataset.yaml").write_text(f"{keys}splits: {{train: [010, 011], val: [1_2, 8]}}\n")
    assert Source(root).splits == {"train": ["010", "011"], "val": ["1_2", "008"]}


@pytest.mark.parametrize("line", ["s3.v2", "s1 2", "s2;copy", "s1 -1", "siteB/s1"])
def test_a_line_is_not_cut_down_to_another_image(line: str, tmp_path: Path) -> None:
    root = make(tmp_path, {f"siteA/{name}.png": f"m/{name}.png" for name in ("s1", "s2", "s3")})
    assert Source(root, images="siteA/{name}.png", masks="m/{name}.png", classes=CLASSES).finder(line) is None


def coco(root: Path, *names: str) -> None:
    images = [{"id": i, "file_name": name, "height": 40, "width": 56} for i, name in enumerate(names)]
    runs = {"size": [40, 56], "counts": [100, 300, 1840]}
    annotations = [
        {"id": i, "image_id": i, "category_id": 1, "area": 300, "iscrowd": 1, "segmentation": runs}
        for i in range(len(names))
    ]
    categories = [{"id": 1, "name": "box"}]
    text(root / "coco.json", json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def test_a_path_in_coco_is_that_of_the_image(tmp_path: Path) -> None:
    root = make(tmp_path, {"images/a/000.png": "", "images/b/000.png": "", "images/a/001.png": ""})
    layout = {"images": "images/**/{name}.png", "masks": "coco.json", "classes": ["background", "box"]}
    coco(root, "a/000.png", "b/000.png")
    assert sorted(Source(root, **layout).masks) == ["a/000", "b/000"]
    coco(root, "c/001.png", "001.png")
    assert sorted(Source(root, **layout).masks) == ["a/001"]


def test_masks_are_not_their_own_images(tmp_path: Path) -> None:
    root = make(tmp_path, {f"photos/{i}.png": f"masks/{i}.png" for i in range(4)})
    splits = {"train": 0.5, "val": 0.5}
    source = Source(root, images="**/{name}.png", masks="masks/{name}.png", classes=CLASSES, splits=splits)
    assert {path.parent.name for paths in source.images.values() for path in paths} == {"photos"}
    same = {"images": "masks/{name}.png", "masks": "masks/{name}.png"}
    assert any(line.startswith("E_EMPTY_DATASET") for line in problems(root, **same, classes=CLASSES, splits=splits))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.csv", "name,value\nbackground,x\n"),
        ("c.csv", "name\na\nb\n"),
        ("c.json", '[\n"a",\n"b"]'),
        ("c.yaml", "a: 1\nb: 0"),
    ],
)
def test_classes_of_another_form_are_refused(name: str, content: str, tmp_path: Path) -> None:
    text(tmp_path / name, content)
    with pytest.raises(ValueError, match=r"classes are a text with a name a line|expected a whole number and a name"):
        Source(tmp_path, classes=name).classes  # noqa: B018


def test_pages_few_bits_and_turned_images_of_other_layouts_are_said(tmp_path: Path) -> None:
    root = pairs(tmp_path)
    for path in sorted((root / "m").iterdir()):
        mask = Image.open(path)
        mask.save(path.with_suffix(".tif"), save_all=True, append_images=[mask])
    found = problems(root, **{**PLAIN, "masks": "m/{name}.tif"}, classes=CLASSES)
    assert len(found) == 6 and all(line.startswith("E_MULTIFRAME") for line in found)
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(root / "d/001.png").save(root / "d/001.png", exif=exif)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        FolderDataModule(str(root), **PLAIN, classes=CLASSES, channels="rgb").verify()
    assert any("W_EXIF_APPLIED" in str(warning.message) for warning in caught)


def test_images_of_8_bits_beside_16_are_refused_where_one_range_is_stated(tmp_path: Path) -> None:
    root = pairs(tmp_path)
    for path in sorted((root / "d").iterdir())[:3]:
        Image.fromarray(np.array(Image.open(path).convert("L")).astype(np.uint16) * 16).save(path)
    for path in sorted((root / "d").iterdir())[3:]:
        Image.open(path).convert("L").save(path)
    found = problems(root, **PLAIN, classes=CLASSES, value_range=(0, 4080))
    assert any(line.startswith("E_RANGE: d/003.png has 8 bits and d/000.png 16") for line in found), found


def test_links_that_lead_nowhere_or_to_themselves_are_problems(tmp_path: Path) -> None:
    root = pairs(tmp_path)
    (root / "d/sub").mkdir()
    (root / "d/sub/x").symlink_to("x")
    (root / "d/loop.png").symlink_to("loop.png")
    (root / "m/loop.png").symlink_to("loop.png")
    layout = {**PLAIN, "images": "d/**/{name}.png", "masks": "m/{name}.png"}
    assert any(line.startswith("E_BROKEN_LINK") for line in problems(root, **layout, classes=CLASSES))


def test_equal_pictures_are_shared_out_together(tmp_path: Path) -> None:
    root = pairs(tmp_path, 12)
    for i in range(6):
        for part in ("d", "m"):
            (root / part / f"{i + 6:03}.png").write_bytes((root / part / f"{i:03}.png").read_bytes())
    layout = {**PLAIN, "splits": {"train": 0.34, "val": 0.33, "test": 0.33}}
    assert not problems(root, **layout, classes=CLASSES)


def test_the_flag_that_split_prints_wins_over_the_file_and_folders_over_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make(tmp_path, {f"{s}/{i}.png": f"m/{s}/{i}.png" for s in ("Train", "Valid") for i in "abcd"})
    (root / "dataset.yaml").write_text(
        "images: '{split}/{name}.png'\nmasks: 'm/{split}/{name}.png'\nclasses: [a, b, c]\n"
    )
    assert sorted(map(len, Source(root).splits.values())) == [4, 4]
    split_verb.main([str(root)])
    assert "Train with: --data.splits splits, or write splits: splits into dataset.yaml" in capsys.readouterr().out
    assert sorted(Source(root).splits["train"]) == [f"Train/{i}" for i in "abcd"]
    made = FolderDataModule(str(root), splits="splits").source.splits
    assert sum(map(len, made.values())) == 8 and [*made] == ["train", "val", "test"]


def test_split_divides_all_images_of_pairs(tmp_path: Path) -> None:
    root = make(tmp_path, {f"d/{i}.png": f"m/{i}.png" for i in range(12)})
    rows = [f"d/{i}.png,m/{i}.png,{'train' if i < 6 else ''}" for i in range(12)]
    text(root / "pairs.csv", "image,mask,split", *rows)
    (root / "dataset.yaml").write_text("pairs: pairs.csv\nclasses: [a, b, c]\n")
    split_verb.main([str(root)])
    assert sum(map(len, Source(root, splits="splits").splits.values())) == 12


@pytest.mark.parametrize("lists", ["train missing", "train in UTF-16"])
def test_a_copy_keeps_the_official_test_images(lists: str, tmp_path: Path) -> None:
    root, out = write_folder(tmp_path / "data"), tmp_path / "fixed"
    official = (root / "splits/test.txt").read_text().split()
    if lists == "train missing":
        (root / "splits/train.txt").unlink()
        assert fix(root, out) == 0
        assert (out / "splits/test.txt").read_text().split() == official
        assert len((out / "splits/val.txt").read_text().split()) == 2
    else:
        (root / "splits/train.txt").write_text("train_0\n", encoding="utf-16")
        assert fix(root, out) == 2 and not out.exists()


def test_a_copy_keeps_unlabelled_pixels(tmp_path: Path) -> None:
    root, out = write_folder(tmp_path / "data", ("background", "cell")), tmp_path / "fixed"
    first = root / "masks/test_0.png"
    Image.fromarray(np.where(np.array(Image.open(first)) == 1, 255, 0).astype(np.uint8)).save(first)
    truth = {path.name: np.array(Image.open(path)) for path in (root / "masks").iterdir()}
    assert fix(root, out) == 0
    for name, labels in truth.items():
        np.testing.assert_array_equal(np.array(Image.open(out / "masks" / name)), labels)


def test_a_copy_has_the_same_classes_whatever_their_names(tmp_path: Path) -> None:
    root, out = pairs(tmp_path / "data"), tmp_path / "fixed"
    (root / "dataset.yaml").write_text(
        "images: 'd/{name}.png'\nmasks: 'm/{name}.png'\nclasses: {'1 car': 0, '0 none': 1, x: 2}\n"
        "splits: {train: 0.5, val: 0.5}\n"
    )
    assert fix(root, out) == 0
    assert Source(out).classes.names == ["1 car", "0 none", "x"]


def test_a_copy_takes_none_of_two_files_of_one_name(tmp_path: Path) -> None:
    root, out = write_folder(tmp_path / "data"), tmp_path / "fixed"
    Image.open(root / "masks/train_1.png").save(root / "masks/train_1.bmp")
    assert fix(root, out) == 0
    assert not (out / "masks/train_1.png").exists() and any("are one name" in change for change in changes(out))


def test_a_copy_touches_no_folder_of_the_users(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = pairs(tmp_path / "data")
    (tmp_path / ".out.part").mkdir()
    (tmp_path / ".out.part/thesis.txt").write_text("mine")
    originals = tmp_path / "originals"
    (root / "d").rename(originals)
    (root / "d").symlink_to(originals)
    (root / "dataset.yaml").write_text(
        "images: 'd/{name}.png'\nmasks: 'm/{name}.png'\nclasses: [a, b, c]\nsplits: {train: 0.5, val: 0.5}\n"
    )
    assert fix(root, originals / "copy") == 2 and "lies within the data" in capsys.readouterr().err
    assert fix(root, tmp_path / "out") == 0 and (tmp_path / ".out.part/thesis.txt").exists()


def test_a_name_of_other_bytes_is_copied_under_another(tmp_path: Path) -> None:
    root, out = write_folder(tmp_path / "data"), tmp_path / "fixed"
    for part, ending in (("images", b".jpg"), ("masks", b".png")):
        os.rename(os.fsencode(root / part / "train_1") + ending, os.fsencode(root / part) + b"/\xff1" + ending)
    assert fix(root, out) == 0
    assert len(list((out / "images").iterdir())) == 7


def test_two_folders_of_masks_are_no_two_classes(tmp_path: Path) -> None:
    for i in range(5):
        pixels, labels = scene(i)
        save(pixels, tmp_path / f"images/{i}.png")
        for folder in ("masks", "masks_old"):
            save((labels > 0).astype(np.uint8) * 255, tmp_path / f"{folder}/{i}.png")
    suggestion = suggest(tmp_path)
    assert suggestion and "{class}" not in suggestion.layout["masks"]


def test_colour_masks_of_which_one_is_black_are_suggested_by_colour(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(6):
        pixels, labels = scene(i)
        save(pixels, tmp_path / f"images/{i}.png")
        colours = np.array([[0, 0, 0], [0, 255, 0], [255, 0, 0]], dtype=np.uint8)
        save(colours[labels * (i > 0)], tmp_path / f"masks/{i}.png")
    suggestion = suggest(tmp_path)
    assert suggestion and sorted(suggestion.layout["classes"].values()) == ["#000000", "#00ff00", "#ff0000"]
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert "colour_00ff00" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
def test_an_unchanged_set_of_many_files_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = pairs(tmp_path / "data")
    past = time.time() - 100
    for path in [root, *root.rglob("*")]:
        os.utime(path, (past, past))
    monkeypatch.setenv("SEGLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datamodules.fingerprint.FRESH", 0)
    data = FolderDataModule(str(root), **PLAIN, classes=CLASSES)
    data.verify()
    monkeypatch.setattr("datamodules.verify.check_pair", lambda *a, **k: pytest.fail("read again"))
    monkeypatch.setattr("datamodules.fingerprint.read_bytes", lambda *a: pytest.fail("read again"))
    FolderDataModule(str(root), **PLAIN, classes=CLASSES).verify()
    FolderDataModule.identify({"root": str(root), **PLAIN, "classes": CLASSES})
