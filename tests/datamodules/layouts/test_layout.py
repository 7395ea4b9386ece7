"""What a dataset.yaml may state, what its patterns and lists find, and what is said of one that cannot be used."""

import os
import re
import shutil
import time
import unicodedata
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forms import save, scene, text
from kinds import DOCS
from PIL import Image
from tiny_data import write_folder

from datamodules.folder import FolderDataModule
from datamodules.layouts.source import Source
from datamodules.verify import check_layout, check_source, examine


def make(root: Path, files: Mapping[str, str]) -> Path:
    """Images and masks, as "image": "mask" paths; scene i is the i-th pair."""
    for index, (image, mask) in enumerate(files.items()):
        pixels, labels = scene(index)
        save(pixels, root / image)
        if mask:
            save(labels, root / mask)
    return root


CLASSES = ["background", "plane", "bird"]


def problems(root: Path, **layout: Any) -> list[str]:
    """What is wrong, each with its code; also of a layout that cannot be used."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            source = Source(root, **layout)
            check_layout(source)
            return [f"{problem.code}: {problem.said}" for problem in examine(source).problems]
        except (ValueError, FileNotFoundError) as error:
            return [f"{getattr(error, 'code', type(error).__name__)}: {error}"]


BAD: dict[str, tuple[str, str]] = {
    "key": ("imagse: a", "E_LAYOUT: .*'imagse' is no key; did you mean images?"),
    "no YAML": ("images: [", "E_LAYOUT: .* is no YAML"),
    "a list": ("- images", "E_LAYOUT: .* must have keys such as images"),
    "bytes": ("\x00", "E_LAYOUT: .* is no YAML"),
    "above": ("images: ../{name}.png", "E_LAYOUT: .*images must be a path within the data"),
    "absolute": ("masks: /etc/{name}.png", "E_LAYOUT: .*masks must be a path within the data"),
    "no name": ("images: images/*.png", "E_LAYOUT: images must have {name} or {number}"),
    "placeholder": ("images: '{stem}.png'", "E_LAYOUT: images: {stem} .* is not known; the placeholders are {name}"),
    "two trees": ("images: '**/a/**/{name}.png'", "E_LAYOUT: images: '..' stands once"),
    "no quotes": ("classes: {soil: #000000, crop: #00ff00}", "E_LAYOUT: .* is no YAML"),
    "true and false": ("classes: [true, false]", "E_LAYOUT: classes: a name must be a text .*got True"),
    "numbers": ("classes: [1, 2]", "E_LAYOUT: classes: a name must be a text .*got 1"),
    "one class": ("classes: [a]", "E_LAYOUT: classes: expected 2 to 255 classes, found 1"),
    "twice": ("classes: [a, a]", "E_LAYOUT: classes: every class needs its own name"),
    "one value of two": ("classes: {a: 1, b: 1}", "E_LAYOUT: classes: the value 1 stands for two classes"),
    "one colour of two": ("classes: {a: '#aabbcc', b: '#AABBCC'}", "E_LAYOUT: classes: the colour #AABBCC stands"),
    "both": ("classes: {a: 0, b: '#ffffff'}", "E_LAYOUT: classes: state values of all classes, or colours of all"),
    "lacking": ("classes: {a: 0, b: }", "E_LAYOUT: classes: nothing in the masks stands for b"),
    "colour": ("classes: {a: '#12', b: 1}", "E_LAYOUT: .*expected a colour such as '#ff0000' in quotes, got '#12'"),
    "range": ("classes: {a: '9-3', b: 1}", "E_LAYOUT: classes: values of 'a' must be 0 to 65535"),
    "negative": ("classes: {a: -1, b: 1}", "E_LAYOUT: classes: values of 'a' must be 0 to 65535"),
    "a class ignored": ("classes: [a, b]\nignore: [1]", "E_LAYOUT: ignore: 1 is the label of the class 'b'"),
    "background": ("classes: [a, b]\nbackground: c", "E_LAYOUT: background must be one of a, b, or ignore, got 'c'"),
    "no file": ("classes: names.csv", "E_LAYOUT: classes: names.csv is not there"),
    "channels": ("channels: gray", "E_LAYOUT: .*channels must be one of rgb, grey, rgba, all, got 'gray'"),
    "value_range": ("value_range: [5, 1]", "E_LAYOUT: .*value_range must be two numbers, the smaller first"),
    "value_range of three": ("value_range: [0, 1, 2]", "E_LAYOUT: .*value_range must be two numbers"),
    "max_pixels": ("max_pixels: 0", "E_LAYOUT: .*max_pixels must be a whole number above 0"),
    "splits": ("splits: {tests: a.txt}", "E_LAYOUT: .*splits: expected a split, train, val or test, got 'tests'"),
    "no list": ("splits: {train: a.txt, val: 0.1}", "E_NO_SPLITS: splits: a.txt is not there"),
    "shares": (
        "splits: {train: 0.7, val: 1.5}",
        "E_LAYOUT: splits: a share must be more than 0 and at most 1, got val: 1.5",
    ),
    "no train": ("splits: {val: 0.5, test: 0.5}", "FileNotFoundError: .* has no train"),
    "no root": ("root: nowhere", "FileNotFoundError: .*root must be the folder of the data"),
    "pairs": ("pairs: pairs.csv\nclasses: [a, b]", "FileNotFoundError|E_LAYOUT"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_layout_that_cannot_be_used_is_said_with_the_way_out(kind: str, tmp_path: Path) -> None:
    root, (content, said) = write_folder(tmp_path / "data"), BAD[kind]
    (root / "dataset.yaml").write_text(f"{content}\n", encoding="utf-8")
    found = problems(root)
    assert any(re.match(said, line) for line in found), found


def test_names_of_folders_tell_equal_images_apart(tmp_path: Path) -> None:
    pairs = {f"raw/{s}/{i}.png": f"gt/{s}/{i}.png" for s in ("a", "b/c") for i in range(3)}
    root = make(tmp_path, pairs)
    layout = {"images": "raw/**/{name}.png", "masks": "gt/**/{name}.png", "classes": CLASSES}
    source = Source(root, **layout, splits={"train": 0.5, "val": 0.5})
    assert sorted(source.images) == ["a/0", "a/1", "a/2", "b/c/0", "b/c/1", "b/c/2"]
    for index, (image, mask) in enumerate(pairs.items()):
        name = image.removeprefix("raw/").removesuffix(".png")
        assert [path.relative_to(root).as_posix() for path in source.masks[name]] == [mask]
        np.testing.assert_array_equal(source.labels(name), scene(index)[1])


def test_two_images_of_one_mask_are_said(tmp_path: Path) -> None:
    root = make(tmp_path, {"raw/a/1.png": "gt/1.png", "raw/b/1.png": "", "raw/b/2.png": "gt/2.png"})
    splits = {"train": ["a/1"], "val": ["b/2"]}
    layout = {"images": "raw/**/{name}.png", "masks": "gt/{name}.png", "classes": CLASSES, "splits": splits}
    assert any(
        line.startswith("E_DUP_STEM: a/1.png and b/1.png would have one mask") for line in problems(root, **layout)
    )
    numbers = {"images": "raw/{number}.png", "masks": "gt/m{number}.png", "classes": CLASSES, "splits": splits}
    root = make(tmp_path / "n", {"raw/07.png": "gt/m7.png", "raw/7.png": "", "raw/8.png": "gt/m008.png"})
    assert any("07.png and raw/7.png would have one mask" in line for line in problems(root, **numbers))


def test_masks_beside_the_images_are_no_images(tmp_path: Path) -> None:
    root = make(tmp_path, {f"d/{i}.png": f"d/{i}_mask.png" for i in range(6)})
    layout = {"images": "d/{name}.png", "masks": "d/{name}_mask.png", "classes": CLASSES}
    source = Source(root, **layout, splits={"train": 0.5, "val": 0.5})
    assert sorted(source.images) == sorted(source.masks) == [str(i) for i in range(6)]
    assert not problems(root, **layout, splits={"train": 0.5, "val": 0.5})


@pytest.mark.parametrize(
    ("line", "image"),
    [
        ("a1", "a1"), ("a1.jpg", "a1"), ("d/a1.jpg", "a1"), ("./d/a1.png", "a1"), ("/home/me/set/d/a1.jpg", "a1"),
        ("a1 1 2 3", "a1"), ("d/a1.jpg,m/a1.png", "a1"), ("d\\a1.jpg", "a1"), (7, "007"), ("7", "007"), (3, None),
        ("a2", None), ("A1", None), ("", None), ("b/a1.jpg", None), ("x y", "x y"),
        (unicodedata.normalize("NFD", "é"), unicodedata.normalize("NFC", "é")),
    ],
)  # fmt: skip
def test_a_line_of_a_list_is_found_in_other_words_and_never_another_image(
    line: str | int, image: str | None, tmp_path: Path
) -> None:
    root = make(tmp_path, {f"d/{name}.png": f"m/{name}.png" for name in ("a1", "a12", "007", "x y", "é")})
    source = Source(root, images="d/{name}.png", masks="m/{name}.png", classes=CLASSES)
    assert source.finder(line) == image


def test_a_line_with_a_folder_is_no_image_of_another_one(tmp_path: Path) -> None:
    root = make(tmp_path, {"d/a/1.png": "m/a/1.png", "d/b/2.png": "m/b/2.png"})
    source = Source(root, images="d/**/{name}.png", masks="m/**/{name}.png", classes=CLASSES)
    asked = {"a/1": "a/1", "1": "a/1", "d/a/1.jpg": "a/1", "b/1": None, "old/b/2.png": None}
    assert {line: source.finder(line) for line in asked} == asked


def test_black_and_white_masks_of_names_alone_are_refused_by_any_pattern(tmp_path: Path) -> None:
    for i in range(6):
        pixels, labels = scene(i)
        save(pixels, tmp_path / f"d/{i}.png")
        save((labels > 0).astype(np.uint8) * 255, tmp_path / f"d/{i}_mask.png")
    layout = {"images": "d/{name}.png", "masks": "d/{name}_mask.png", "splits": {"train": 0.5, "val": 0.5}}
    assert any(line.startswith("E_BINARY_0_255") for line in problems(tmp_path, **layout, classes=["bg", "cell"]))
    assert not problems(tmp_path, **layout, classes={"bg": 0, "cell": 255})
    assert not problems(tmp_path, **layout, classes={"bg": "0-127", "cell": "128-255"})


def test_palettes_that_disagree_are_refused_by_values_and_read_by_colours(tmp_path: Path) -> None:
    palettes = ([0, 0, 0, 255, 0, 0, 0, 255, 0], [0, 255, 0, 0, 0, 0, 255, 0, 0])
    for i in range(6):
        pixels, labels = scene(i)
        save(pixels, tmp_path / f"d/{i}.png")
        order = np.array([0, 1, 2] if i % 2 == 0 else [1, 2, 0], dtype=np.uint8)
        mask = Image.frombytes("P", labels.shape[::-1], order[labels].tobytes())
        mask.putpalette(palettes[i % 2])
        (tmp_path / "m").mkdir(exist_ok=True)
        mask.save(tmp_path / f"m/{i}.png")
    layout = {"images": "d/{name}.png", "masks": "m/{name}.png", "splits": {"train": 0.5, "val": 0.5}}
    for by_value in (CLASSES, {"a": 0, "b": 1, "c": 2}):
        assert any(line.startswith("E_MASK_PALETTES") for line in problems(tmp_path, **layout, classes=by_value))
    colours = {"a": "#000000", "b": "#ff0000", "c": "#00ff00"}
    assert not problems(tmp_path, **layout, classes=colours)
    source = Source(tmp_path, **layout, classes=colours)
    np.testing.assert_array_equal(source.labels("3"), scene(3)[1])
    assert source.palette == [(0, 0, 0), (255, 0, 0), (0, 255, 0)]


def test_what_no_class_has_is_named_with_its_share_or_left_out(tmp_path: Path) -> None:
    root = make(tmp_path, {f"d/{i}.png": f"m/{i}.png" for i in range(6)})
    layout = {"images": "d/{name}.png", "masks": "m/{name}.png", "splits": {"train": 0.5, "val": 0.5}}
    found = problems(root, **layout, classes={"a": 0, "b": 1})
    assert len(found) == 6 and all("has the value 2 in" in line and "which no class has" in line for line in found)
    for ignore in ([2], "others", ["2-9", 200]):
        source = Source(root, **layout, classes={"a": 0, "b": 1}, ignore=ignore)
        expected = scene(0)[1]
        np.testing.assert_array_equal(source.labels("0"), np.where(expected == 2, 255, expected))
    assert len({FolderDataModule.identify({"root": str(root), **layout, "classes": {"a": 0, "b": 1}, "ignore": ignore})
                for ignore in ([2], [2, 9], "others")}) == 3  # fmt: skip


def test_a_csv_of_names_and_colours_is_classes(tmp_path: Path) -> None:
    text(tmp_path / "class_dict.csv", "name,r,g,b", "Sky, 128,128,128", "Building,128,0,0")
    source = Source(tmp_path, classes="class_dict.csv")
    assert source.classes.names == ["Sky", "Building"] and source.classes.colours == {
        (128, 128, 128): 0,
        (128, 0, 0): 1,
    }
    text(tmp_path / "class_dict.csv", "name,r,g,b", "Sky,128,128", "Building,128,0,0")
    with pytest.raises(ValueError, match=r"class_dict.csv line 2: expected name,r,g,b"):
        Source(tmp_path, classes="class_dict.csv").classes  # noqa: B018


def test_groups_of_a_column_or_of_names_keep_shares_whole_and_reach_the_scores(tmp_path: Path) -> None:
    root = make(tmp_path, {f"d/p{i // 3}_{i}.png": f"m/p{i // 3}_{i}.png" for i in range(18)})
    layout = {"images": "d/{name}.png", "masks": "m/{name}.png", "classes": CLASSES, "group_by": "^(p[0-9]+)_"}
    data = FolderDataModule(str(root), **layout, splits={"train": 0.6, "val": 0.2, "test": 0.2})
    homes: dict[str, set[str]] = {}
    for split, names in data.source.splits.items():
        for group in data.groups(names):
            homes.setdefault(group, set()).add(split)
    assert {*homes} == {f"p{i}" for i in range(6)} and all(len(of) == 1 for of in homes.values())
    assert any(
        "E_GROUPS" in line
        for line in problems(root, **{**layout, "group_by": "^(q)"}, splits={"train": ["p0_0"], "val": ["p1_3"]})
    )


def test_a_share_of_the_training_images_leaves_the_other_lists_alone(tmp_path: Path) -> None:
    root = make(tmp_path, {f"d/{i}.png": f"m/{i}.png" for i in range(10)})
    splits = {"train": list(range(8)), "val": 0.25, "test": [8, 9]}
    source = Source(root, images="d/{name}.png", masks="m/{name}.png", classes=CLASSES, splits=splits)
    assert source.splits["test"] == ["8", "9"]
    assert sorted(source.splits["train"] + source.splits["val"]) == [str(i) for i in range(8)]
    assert len(source.splits["val"]) == 2
    assert (
        source.splits
        == Source(root, images="d/{name}.png", masks="m/{name}.png", classes=CLASSES, splits=splits).splits
    )


def test_a_changed_file_of_any_kind_is_seen_by_fingerprint_and_record(tmp_path: Path) -> None:
    """Images, masks, lists, classes and the layout itself: a stale record would be the worst mistake."""
    root = make(tmp_path / "data", {f"d/{i}.png": f"m/{i}.png" for i in range(6)})
    text(root / "names.txt", *CLASSES)
    text(root / "train.txt", "0", "1", "2")
    text(root / "val.txt", "3", "4")
    text(
        root / "dataset.yaml",
        "images: 'd/{name}.png'\nmasks: 'm/{name}.png'\nclasses: names.txt\nsplits: {train: train.txt, val: val.txt}",
    )
    past = time.time() - 100
    for path in root.rglob("*"):
        os.utime(path, (past, past))
    seen = set()

    def look() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check_source(Source(root))
        seen.add(FolderDataModule.identify({"root": str(root)}))

    look()
    look()
    assert len(seen) == 1
    changes = [
        lambda: text(root / "names.txt", "background", "plane", "fowl"),
        lambda: text(root / "train.txt", "0", "2", "1"),
        lambda: shutil.copy(root / "m/0.png", root / "m/1.png"),
        lambda: shutil.copy(root / "d/5.png", root / "d/1.png"),
        lambda: (root / "dataset.yaml").write_text((root / "dataset.yaml").read_text() + "channels: grey\n"),
    ]
    for number, change in enumerate(changes, 2):
        change()
        look()
        assert len(seen) == number


def test_max_pixels_is_a_setting(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data")
    with pytest.raises(ValueError, match=r"E_TOO_MANY_PIXELS.*\(--data.max_pixels\)"):
        FolderDataModule(str(root), max_pixels=700).verify()
    FolderDataModule(str(root), max_pixels=768).verify()
    FolderDataModule(str(root)).verify()


def test_the_layouts_in_the_docs_can_be_used(tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 5
    for number, block in enumerate(blocks):
        root = tmp_path / str(number)
        text(root / "dataset.yaml", block)
        source = Source(root)
        assert len(source.classes.names) > 1 and source.images == {}
        assert not source.strict or "VOC" in block


@pytest.mark.parametrize(("channels", "count"), [(None, 3), ("rgb", 3), ("grey", 1), ("rgba", 4), ("all", 4)])
def test_as_many_channels_reach_the_network_as_are_chosen(channels: str | None, count: int, tmp_path: Path) -> None:
    for i in range(4):
        pixels, labels = scene(i)
        alpha = np.full((*labels.shape, 1), 128, dtype=np.uint8)
        save(pixels if channels is None else np.dstack([pixels, alpha]), tmp_path / f"images/{i}.png")
        save(labels, tmp_path / f"masks/{i}.png")
    splits = {"train": 0.5, "val": 0.5}
    data = FolderDataModule(str(tmp_path), classes=CLASSES, splits=splits, channels=channels, crop=32, batch_size=2)
    data.verify()
    image = data.dataset("train")[0][0]
    assert data.in_channels == len(image) == count
    assert next(iter(data.train_dataloader()))["image"].shape == (2, count, 32, 32)
    if count == 4:
        np.testing.assert_allclose(image[3], 128 / 255)
    assert any("channels: rgb (--data.channels rgb) leaves it out" in line for line in problems(
        tmp_path, classes=CLASSES, splits=splits)) is (channels is not None)  # fmt: skip
