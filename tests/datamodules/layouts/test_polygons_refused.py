"""Annotations that cannot be drawn are refused by name, and end neither in a crash nor in a wait."""

import json
import os
import random
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotated import LABELS, coco, drawing, figure, file, labelme, packed, png, segment, supervisely, traced

from datamodules.layouts import drawn as drawn_module
from datamodules.layouts.polygons import Drawn, classes_of, is_coco, rasterise, read_annotation, read_coco


def test_a_class_without_a_label_is_named(tmp_path: Path) -> None:
    drawn = read_annotation(file(tmp_path, labelme(traced([[0, 0], [5, 0], [0, 5]], "Car\x1b"))))
    for labels, said in [
        (LABELS, r"a\.json: expected a class that has a label \(car, road, void\), got Car\\x1b; give it a label, or"),
        ({"car\x1b": 1}, r"did you mean car\\x1b\?$"),
        ({}, r"has a label \(none\)"),
    ]:
        with pytest.raises(ValueError, match=said) as caught:
            rasterise(drawn, labels, 0, "a.json")
        assert caught.value.code == "E_ANNOTATION"  # type: ignore[attr-defined]


TRIANGLE = [[0, 0], [5, 0], [0, 5]]
BOMB = packed(zlib.compress(bytes(10**8)))
WIDE = png(np.zeros((2, 7)))
BAD = {
    "no JSON": ("{'shapes'", ": expected JSON, got .* in line 1; export it again"),
    "deep": ("[" * 100_000, "lists a thousand deep"),
    "a long number": ('{"shapes": [' + "9" * 5000 + "]}", "thousands of digits"),
    "a list": ([1, 2], "expected a JSON object, got a list of 2"),
    "neither": ({"regions\x1b": 1}, r"LabelMe's shapes or Supervisely's objects, got JSON with regions\\x1b; export"),
    "empty object": ({}, "nothing in it"),
    "coco": ({"images": [], "annotations": []}, "got COCO's images and annotations; name the file as"),
    "no size": (
        labelme(size=(None, None)),
        "size in pixels as imageHeight and imageWidth, got no value and no value; open the image",
    ),
    "size of text": (labelme(size=("5", True)), "got '5' and true"),
    "no pixels": (labelme(size=(0, 5)), "got 0 and 5"),
    "a bomb": (labelme(size=(10**5, 10**5)), "at most 64 million pixels as imageHeight and imageWidth"),
    "shapes": ({**labelme(), "shapes": {}}, "expected a list shapes, got an object"),
    "a shape": ({**labelme(), "shapes": ["x"]}, "shapes 1: expected an object, got 'x'"),
    "a label": (labelme(traced(TRIANGLE, None)), "shape 1: expected the name of a class as label, got no value"),
    "a blank label": (labelme(traced(TRIANGLE, "  ")), "the name of a class as label"),
    "two points": (
        labelme(traced(TRIANGLE), traced(TRIANGLE[:2])),
        r"shape 2 \(car\): expected at least 3 points around an area, got 2; draw",
    ),
    "no points": (labelme(traced(None)), "a list of points"),
    "points in 3D": (labelme(traced([[1, 2, 3]] * 3)), "got a list of 3"),
    "a line": (labelme(traced(TRIANGLE[:2], kind="line")), "got 'line'; it has no area: draw a polygon around it"),
    "linestrip": (labelme(traced(TRIANGLE, kind="linestrip")), "got 'linestrip'; it has no area"),
    "point": (labelme(traced([[1, 1]], kind="point")), "got 'point'; it has no area"),
    "points": (labelme(traced(TRIANGLE, kind="points")), "got 'points'; it has no area"),
    "another kind": (labelme(traced(TRIANGLE, kind=["x"])), "got a list of 1; draw it as a polygon"),
    "NaN": (labelme(traced([[0, 0], [5, float("nan")], [0, 5]])), "coordinates in pixels, 10,000,000 at most, got nan"),
    "infinity": (labelme(traced([[0, 0], [5, float("-inf")], [0, 5]])), "got -inf"),
    "huge": (labelme(traced([[0, 0], [5, 10**400], [0, 5]])), "got 1000"),
    "text": (labelme(traced([[0, 0], [5, "7"], [0, 5]])), "got '7'"),
    "true": (labelme(traced([[0, 0], [5, True], [0, 5]])), "got true"),
    "a zigzag": (labelme(traced([[0, 0], [10**6, 1]] * 9)), "an outline of at most 2,000,000 pixels, got 18,"),
    "a corner": (labelme(traced([[1, 1]], kind="rectangle")), "two opposite corners, got 1 points"),
    "a centre": (labelme(traced(TRIANGLE, kind="circle")), "centre of a circle and a point on it, got 3 points"),
    "no mask": (labelme(traced(TRIANGLE[:2], kind="mask", mask=None)), "its mask as a base64 text, got no value"),
    "damaged base64": (labelme(traced(TRIANGLE[:2], kind="mask", mask="%%%")), r"its mask in base64, got damaged text"),
    "no PNG": (labelme(traced(TRIANGLE[:2], kind="mask", mask=packed(b"GIF89a"))), "6 bytes that are none"),
    "a cut PNG": (
        labelme(traced([[0, 0], [1, 1]], kind="mask", mask=packed(png(np.eye(2))[:44]))),
        "expected a PNG of its mask, got a damaged one",
    ),
    "a wide PNG": (
        labelme(traced([[0, 0], [6, 1]], kind="mask", mask=packed(WIDE))),
        "within the image of 6 x 5 pixels, got 7 x 2",
    ),
    "another box": (
        labelme(traced([[0, 0], [1, 1]], kind="mask", mask=packed(png(np.eye(4))))),
        "a mask of its box, 2 x 2 pixels, got one of 4 x 4",
    ),
    "no supervisely size": ({"objects": []}, "as height and width of size, got no value and no value"),
    "supervisely point": (supervisely(figure("point", [[1, 1]])), "got 'point'; convert it to one of these"),
    "supervisely hole": (
        supervisely(figure("polygon", TRIANGLE, [[[1, 1]]])),
        r"object 1 \(car\): expected at least 3 points",
    ),
    "supervisely holes": (supervisely(figure("polygon", TRIANGLE, 3)), "a list of holes as interior, got 3"),
    "no points of supervisely": (supervisely({"classTitle": "a", "geometryType": "polygon"}), "a list of points"),
    "no bitmap": (supervisely(figure("bitmap")), "expected an object bitmap, got no value"),
    "half an origin": (supervisely(figure("bitmap", bitmap={"origin": [1, 0.5], "data": ""})), "as origin, got 1, 0.5"),
    "no zlib": (supervisely(figure("bitmap", bitmap={"origin": [1, 1], "data": packed(b"xyz")})), "damaged text"),
    "a cut bitmap": (
        supervisely(
            figure("bitmap", bitmap={"origin": [1, 1], "data": packed(zlib.compress(png(np.eye(2)))[:-9])}),
        ),
        "cut off or unpacks without end",
    ),
    "a zlib bomb": (supervisely(figure("bitmap", bitmap={"origin": [1, 1], "data": BOMB})), "unpacks without end"),
}
COCO_BAD = {
    "no categories": ({"images": [], "annotations": []}, "a list categories, got no value"),
    "no name": (coco() | {"images": [{"id": 1, "height": 2, "width": 2}]}, "path of an image as file_name"),
    "twice": (
        coco() | {"images": [*coco()["images"], coco()["images"][0] | {"id": 8}]},
        r"image 2 \(images/a\.jpg\): expected a file_name of its own, got one that was there before; leave",
    ),
    "an id twice": (coco() | {"images": [coco()["images"][0], {"id": 7, "file_name": "b"}]}, "an id of its own, got 7"),
    "an id that is none": (coco() | {"images": [{"id": [], "file_name": "b"}]}, "a number as id, got a list of 0"),
    "no size": (coco(size=(None, 4)), "as height and width, got no value and 4"),
    "a category twice": (
        coco() | {"categories": [{"id": 3, "name": "a"}] * 2},
        "category 2: expected an id of its own",
    ),
    "another image": (coco(segment([], image_id=8)), "annotation 1: expected the id of an image as image_id, got 8"),
    "another category": (coco(segment([], 4)), "the id of a category as category_id, got 4; export"),
    "no segmentation": (
        coco(segment([])),
        r"annotation 1 \(car\): .* as segmentation, got an empty list; a box has no",
    ),
    "nothing at all": (coco(segment(None)), "got no value; a box has no outline"),
    "two points": (coco(segment([[1, 1, 2, 2]])), "part 1: expected at least 3 points around an area, got 2"),
    "an odd number": (coco(segment([[1, 1, 2, 2, 3]])), r"a polygon \[x, y, x, y, ...\], got 5 numbers"),
    "no list": (coco(segment([1, 1, 2, 2, 3, 3])), r"a polygon \[x, y, x, y, ...\], got 1"),
    "text": (coco(segment([[1, 1, 2, 2, 3, "3"]])), "coordinates in pixels, 10,000,000 at most, got '3'"),
    "another size": (
        coco(segment({"size": [6, 5], "counts": [30]})),
        "run lengths of the image's size, 5 x 6, got 6 x 5; export it again",
    ),
    "a size of none": (coco(segment({"counts": [30]})), "5 x 6, got no value"),
    "too few runs": (
        coco(segment({"size": [5, 6], "counts": [3, 4]})),
        "sum to 30 pixels, got 2 of them that sum to 7",
    ),
    "negative": (coco(segment({"size": [5, 6], "counts": [-1, 31]})), "sum to 30 pixels, got a list of 2"),
    "overflow": (coco(segment({"size": [5, 6], "counts": [2**64, 30]})), "sum to 30 pixels, got a list of 2"),
    "an open text": (coco(segment({"size": [5, 6], "counts": "63P"})), "sum to 30 pixels, got '63P'"),
    "an odd text": (coco(segment({"size": [5, 6], "counts": "6ä"})), "sum to 30 pixels, got '6ä'"),
    "a blank text": (coco(segment({"size": [5, 6], "counts": ""})), "sum to 30 pixels, got ''"),
    "a negative text": (coco(segment({"size": [5, 6], "counts": "O"})), "sum to 30 pixels, got 'O'"),
    "a wide text": (coco(segment({"size": [5, 6], "counts": "o" * 9 + "0"})), "sum to 30 pixels, got 'oooo"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_annotation_is_refused(kind: str, tmp_path: Path) -> None:
    content, said = BAD[kind]
    with pytest.raises(ValueError, match=f"annotations/a.json.*{said}") as caught:
        read_annotation(file(tmp_path, content))
    assert caught.value.code == "E_ANNOTATION"  # type: ignore[attr-defined]
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("kind", COCO_BAD)
def test_a_bad_file_of_coco_is_refused(kind: str, tmp_path: Path) -> None:
    content, said = COCO_BAD[kind]
    with pytest.raises(ValueError, match=f"annotations/a.json.*{said}") as caught:
        read_coco(file(tmp_path, content))
    assert caught.value.code == "E_ANNOTATION"  # type: ignore[attr-defined]


def test_what_is_no_readable_file_is_told_apart(tmp_path: Path) -> None:
    path = file(tmp_path, "", "empty.json")
    (tmp_path / "annotations" / "folder.json").mkdir()
    (tmp_path / "annotations" / "link.json").symlink_to("nowhere")
    (tmp_path / "annotations" / "latin.json").write_bytes(b'{"a": "\xe4"}')
    os.mkfifo(tmp_path / "annotations" / "pipe.json")
    with (tmp_path / "annotations" / "sparse.json").open("wb") as sparse:
        sparse.truncate(2**40)
    for name, code in {
        "empty": "E_EMPTY_FILE",
        "folder": "E_NOT_REGULAR_FILE",
        "pipe": "E_NOT_REGULAR_FILE",
        "link": "E_BROKEN_LINK",
        "latin": "E_TEXT",
        "sparse": "E_ANNOTATION",
    }.items():
        for read in read_annotation, read_coco, is_coco:
            with pytest.raises(ValueError, match=f"annotations/{name}.json") as caught:
                read(path.with_stem(name))
            assert caught.value.code == code  # type: ignore[attr-defined]
    with pytest.raises(FileNotFoundError):
        read_annotation(path.with_stem("missing"))


def test_what_another_file_holds_is_not_told(tmp_path: Path) -> None:
    file(tmp_path, {"password": "x"}, "private.json")
    (tmp_path / "annotations" / "a.json").symlink_to("private.json")
    with pytest.raises(ValueError, match="got other JSON"):
        read_annotation(tmp_path / "annotations" / "a.json")


def test_a_small_file_is_not_drawn_for_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = labelme(*[traced([[0, 0], [8000, 8000]], kind="rectangle")] * 1700, size=(8000, 8000))
    with pytest.raises(ValueError, match="over 100,000,000,000 pixels in all, got "):
        read_annotation(file(tmp_path, many))
    monkeypatch.setattr(drawn_module, "DECODING", 10**6)
    blank = traced([[0, 0], [99, 99]], kind="mask", mask=packed(png(np.zeros((100, 100)), "1")))
    with pytest.raises(ValueError, match=r"shape 10 \(car\).* pixels in all, got "):
        read_annotation(file(tmp_path, labelme(*[blank] * 12, size=(100, 100))))
    monkeypatch.undo()
    noise = packed(png(np.indices((2200, 2200)).sum(0) % 2 * 255, "1"))
    with pytest.raises(ValueError, match="an outline of at most 2,000,000 pixels, got 4,"):
        read_annotation(
            file(tmp_path, labelme(traced([[0, 0], [2199, 2199]], kind="mask", mask=noise), size=(2200, 2200)))
        )


VALUES = [None, True, -1, 0, 2, 1e308, float("nan"), 10**30, "", "x", "\ud800", [], [[]], {}, [1, 2], [[1, 1], [2, 2]]]


def broken(value: Any, chance: random.Random) -> Any:
    """The value with something in it replaced, taken out or repeated."""
    if chance.random() < 0.15 or not isinstance(value, list | dict) or not value:
        return chance.choice(VALUES)
    if isinstance(value, list):
        place = chance.randrange(len(value))
        inner = [[], [value[place]] * 2, [broken(value[place], chance)]][chance.choice([0, 1, 2, 2, 2, 2])]
        return value[:place] + inner + value[place + 1 :]
    key = chance.choice(list(value))
    return {**value, key: broken(value[key], chance)}


@drawing
def test_whatever_is_broken_ends_in_a_map_or_a_code(tmp_path: Path) -> None:
    bitmap = {"origin": [1, 1], "data": packed(png(np.eye(2)), compress=True)}
    good = [
        labelme(
            traced(TRIANGLE),
            traced(TRIANGLE[:2], kind="circle"),
            traced([[0, 0], [1, 1]], kind="mask", mask=packed(png(np.eye(2)))),
        ),
        supervisely(figure("polygon", TRIANGLE, [TRIANGLE]), figure("bitmap", bitmap=bitmap)),
        coco(
            segment([[0, 0, 5, 0, 0, 5]]),
            segment({"size": [5, 6], "counts": "6320>"}),
            segment({"size": [5, 6], "counts": [6, 24]}),
        ),
    ]
    chance, ends = random.Random(0), {"map": 0, "code": 0}
    for number in range(900):
        path = file(tmp_path, json.dumps(broken(good[number % 3], chance)))
        try:
            drawn: list[Drawn] = [*read_coco(path).values()] if number % 3 == 2 else [read_annotation(path)]
            for one in drawn:
                labels = dict.fromkeys(classes_of([one]), 1)
                assert rasterise(one, labels, 0, "a.json").shape == one.size
            ends["map"] += 1
        except ValueError as error:
            assert error.code == "E_ANNOTATION"  # type: ignore[attr-defined]
            assert re.match(r"annotations/a\.json.*: expected .*, got .*; ", str(error)), str(error)
            assert str(error).isprintable()
            ends["code"] += 1
    assert min(ends.values()) > 100, ends
