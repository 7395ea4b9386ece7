"""What was once wrong of settings together: lists in other letters, objects with values, palettes, flags."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forms import save, scene, text
from PIL import Image
from test_layout import CLASSES, make, problems
from test_once_wrong import BY_CLASS, PLAIN, coco, of_classes, pairs

from datamodules.layouts.source import Source


@pytest.mark.parametrize("form", ["s.json", "lists", "no list"])
def test_a_test_list_is_found_in_any_case_or_refused(form: str, tmp_path: Path) -> None:
    root = pairs(tmp_path)
    lists: dict[str, Any] = {"Train": ["000", "001"], "val": ["002"], "Test": ["003"]}
    if form == "lists":
        for split, names in lists.items():
            text(root / f"lists/{split}.txt", *names)
    else:
        text(root / "s.json", json.dumps(lists if form == "s.json" else {**lists, "Test": "t.txt"}))
    layout = {**PLAIN, "classes": CLASSES, "splits": "lists" if form == "lists" else "s.json"}
    if form == "no list":
        assert any("has no list under 'Test'" in line for line in problems(root, **layout))
    else:
        assert Source(root, **layout).splits == {"train": ["000", "001"], "val": ["002"], "test": ["003"]}


def of_objects(root: Path, value: Callable[[int, np.ndarray], np.ndarray], ending: str = "png") -> Path:
    for i in range(4):
        pixels, labels = scene(i)
        save(pixels, root / f"d/{i}.png")
        for label in (1, 2):
            save(value(label, labels == label), root / f"m/{i}/{'zy'[label - 1]}.{ending}")
    return root


OBJECTS = {"images": "d/{name}.png", "masks": "m/{name}/*.png", "splits": {"train": 0.5, "val": 0.5}}


def test_files_of_objects_with_values_lie_on_the_background_wherever_it_stands(tmp_path: Path) -> None:
    root = of_objects(tmp_path, lambda label, inside: inside.astype(np.uint8) * 255)
    text(root / "c.csv", "value,name", "255,cell", "0,background")
    for classes in ({"cell": 255, "background": 0}, {"background": 0, "cell": 255}, "c.csv"):
        source = Source(root, **OBJECTS, classes=classes)
        cell = source.classes.names.index("cell")
        np.testing.assert_array_equal(source.labels("0") == cell, scene(0)[1] > 0)


def test_files_of_objects_cover_one_another_by_class_and_not_by_name(tmp_path: Path) -> None:
    root = of_objects(tmp_path, lambda label, inside: np.full(inside.shape, label, dtype=np.uint8))
    source = Source(root, **OBJECTS, classes={"background": 0, "a": 1, "b": 2})
    assert (source.labels("0") == 2).all()  # y.png is b, and z.png is a


def test_the_mask_of_an_image_that_is_not_there_goes_to_no_other(tmp_path: Path) -> None:
    root = make(tmp_path, {f"d/{i}.png": f"m/{i}_a.png" for i in (1, 2, 3, 4)})
    save(np.full((40, 56), 255, dtype=np.uint8), root / "m/10_a.png")
    masks = Source(root, images="d/{name}.png", masks="m/{name}*.png", classes=["bg", "cell"]).masks
    assert [path.name for path in masks["1"]] == ["1_a.png"]


def test_two_files_of_annotations_of_one_image_are_refused(tmp_path: Path) -> None:
    root = pairs(tmp_path)
    for name in ("a", "b"):
        (root / "an").mkdir(exist_ok=True)
        coco(root, "000.png", "001.png")
        (root / "coco.json").rename(root / f"an/{name}.json")
    layout = {"images": "d/{name}.png", "masks": "an/*.json", "classes": ["background", "box"]}
    found = problems(root, **layout, splits={"train": ["000"], "val": ["001"]})
    assert any(line.startswith("E_DUP_STEM") for line in found), found


def test_jpeg_masks_are_refused_unless_ranges_leave_no_value_over(tmp_path: Path) -> None:
    for i in range(4):
        pixels, labels = scene(i)
        save(pixels, tmp_path / f"d/{i}.png")
        save(labels * 100, tmp_path / f"m/{i}.jpg", quality=95)
    layout = {**PLAIN, "masks": "m/{name}.jpg"}
    assert any(
        "E_LOSSY_MASK" in line for line in problems(tmp_path, **layout, classes=["a", "b", "c"], ignore="others")
    )
    assert not problems(tmp_path, **layout, classes={"a": "0-49", "b": "50-149", "c": "150-255"})


def test_a_class_is_ignored_by_its_name_in_any_letters_and_another_word_is_refused(tmp_path: Path) -> None:
    root = pairs(tmp_path)
    for ignore in (["Bird"], [" bird "], [2]):
        source = Source(root, **PLAIN, classes={"ground": 0, "plane": 1, "bird": 2}, ignore=ignore)
        np.testing.assert_array_equal(source.labels("000"), np.where(scene(0)[1] == 2, 255, scene(0)[1]))
    found = problems(root, **PLAIN, classes={"ground": 0, "plane": 1, "bird": 2}, ignore=["birds"])
    assert any("did you mean bird?" in line for line in found)


def test_a_class_in_a_files_name_that_is_not_stated_is_said(tmp_path: Path) -> None:
    for i in range(4):
        pixels, labels = scene(i)
        save(pixels, tmp_path / f"d/00{i}.png")
        for label, name in ((1, "cell"), (2, "nucleus")):
            save((labels == label).astype(np.uint8) * 255, tmp_path / f"k/00{i}_{name}.png")
    layout = {**PLAIN, "masks": "k/{name}_{class}.png"}
    assert any("nucleus is no class" in line for line in problems(tmp_path, **layout, classes=["background", "cell"]))
    assert not problems(tmp_path, **layout, classes=["background", "cell", "nucleus"])


def test_the_colours_of_a_palette_count_where_a_writer_numbers_them(tmp_path: Path) -> None:
    for i in range(4):
        pixels, labels = scene(i)
        save(pixels, tmp_path / f"d/{i}.png")
        white_first = Image.fromarray((labels == 0).astype(np.uint8)).convert("P")
        white_first.putpalette([255, 255, 255, 0, 0, 0])
        white_first.putdata((labels == 0).astype(int).ravel().tolist())
        (tmp_path / "m").mkdir(exist_ok=True)
        white_first.save(tmp_path / f"m/{i}_1.png")
        save(np.where(labels == 1, 0, labels) if i == 0 else labels, tmp_path / f"g/{i}.gif")
    objects = Source(tmp_path, **{**PLAIN, "masks": "m/{name}_*.png"}, classes=["background", "cell"])
    np.testing.assert_array_equal(objects.labels("1"), scene(1)[1] > 0)
    gifs = Source(tmp_path, **{**PLAIN, "masks": "g/{name}.gif"}, classes=["a", "b", "c"])
    np.testing.assert_array_equal(gifs.labels("0"), np.where(scene(0)[1] == 1, 0, scene(0)[1]))


def test_an_ignored_class_covers_the_others(tmp_path: Path) -> None:
    root = of_classes(tmp_path, heart=lambda m: m == 1, void=lambda m: m > 0, rest=lambda m: m == 9)
    source = Source(root, **BY_CLASS, classes={"rest": None, "heart": None}, ignore=["void"])
    assert (source.labels("0") == 255).all()
    source = Source(root, **BY_CLASS, classes={"rest": None, "heart": None}, ignore=["void"], background="rest")
    np.testing.assert_array_equal(source.labels("0"), np.where(scene(0)[1] > 0, 255, 0))


def test_patterns_by_flag_win_over_pairs_of_the_file_and_the_other_way_round(tmp_path: Path) -> None:
    root = make(tmp_path, {f"d/{i}.png": f"m/{i}.png" for i in range(4)})
    for i in range(4):
        save(2 - scene(i)[1], root / f"m2/{i}.png")
    text(root / "p.csv", "image,mask", *(f"d/{i}.png,m/{i}.png" for i in range(4)))
    text(root / "dataset.yaml", "pairs: p.csv", "classes: [a, b, c]")
    assert Source(root, images="d/{name}.png", masks="m2/{name}.png").masks["0"][0].parent.name == "m2"
    text(root / "dataset.yaml", "images: 'd/{name}.png'", "masks: 'k/{class}/{name}.png'", "classes: [a, b, c]")
    np.testing.assert_array_equal(Source(root, pairs="p.csv").labels("0"), scene(0)[1])


def test_the_first_column_that_can_be_meant_is(tmp_path: Path) -> None:
    text(tmp_path / "c.csv", "index,value,name", "0,2,a", "1,0,b", "2,1,c")
    assert Source(tmp_path, classes="c.csv").classes.values == {2: 0, 0: 1, 1: 2}
    text(tmp_path / "c.csv", "label,name,value", "x,a,0", "y,b,1")
    assert Source(tmp_path, classes="c.csv").classes.names == ["a", "b"]
