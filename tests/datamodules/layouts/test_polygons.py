"""Tiny annotations are drawn pixel by pixel, COCO's as pycocotools draws them, and bad ones are refused by name."""

import base64
import io
import json
import os
import random
import re
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodules.layouts.coco import run_lengths
from datamodules.layouts.polygons import (
    Drawn,
    classes_of,
    is_coco,
    rasterise,
    read_annotation,
    read_coco,
)

drawing = pytest.mark.extra("polygons", "pycocotools")
LABELS = {"car": 1, "road": 2, "void": 255}


def file(folder: Path, content: object, name: str = "a.json") -> Path:
    (folder / "annotations").mkdir(exist_ok=True)
    path = folder / "annotations" / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def labelme(*shapes: Mapping[str, Any], size: tuple[Any, Any] = (5, 6)) -> dict[str, Any]:
    return {"version": "5.5.0", "shapes": [*shapes], "imageHeight": size[0], "imageWidth": size[1], "imageData": None}


def traced(points: object, label: object = "car", kind: object = "polygon", **more: object) -> dict[str, Any]:
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, **more}


def supervisely(*objects: Mapping[str, Any], size: tuple[Any, Any] = (5, 6)) -> dict[str, Any]:
    return {"size": {"height": size[0], "width": size[1]}, "objects": [*objects], "tags": []}


def figure(kind: object, exterior: object = None, interior: object = (), **more: object) -> dict[str, Any]:
    points = {"exterior": exterior, "interior": interior}
    return {"classTitle": "car", "geometryType": kind, "points": points, **more}


def coco(*annotations: Mapping[str, Any], size: tuple[Any, Any] = (5, 6)) -> dict[str, Any]:
    images = [{"id": 7, "file_name": "images/a.jpg", "height": size[0], "width": size[1]}]
    categories = [{"id": 3, "name": "car"}, {"id": 9, "name": "road"}]
    return {"images": images, "annotations": [*annotations], "categories": categories}


def segment(segmentation: object, category: object = 3, **more: object) -> dict[str, Any]:
    return {"id": 1, "image_id": 7, "category_id": category, "segmentation": segmentation, **more}


def png(values: object, mode: str = "L", **more: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.array(values, dtype=np.uint8)).convert(mode).save(out, "PNG", **more)
    return out.getvalue()


def packed(data: bytes, *, compress: bool = False) -> str:
    return base64.b64encode(zlib.compress(data) if compress else data).decode()


def rows(mask: np.ndarray) -> list[str]:
    """The label map with . for background and # for 255."""
    return ["".join({0: ".", 255: "#"}.get(value, str(value)) for value in row) for row in mask.tolist()]


def map_of(path: Path) -> list[str]:
    one = read_coco(path)["images/a.jpg"] if is_coco(path) else read_annotation(path)
    return rows(rasterise(one, LABELS, 0, "a.json"))


@drawing
def test_a_polygon_covers_the_pixels_whose_centres_are_inside(tmp_path: Path) -> None:
    triangle = traced([[0, 0], [5, 0], [0, 5]])
    # Row y has its centre at y + 0.5, where the triangle ends at x = 4.5 - y; COCO counts a centre on this edge.
    assert map_of(file(tmp_path, labelme(triangle))) == ["11111.", "1111..", "111...", "11....", "1....."]
    box = traced([[1, 1], [4, 1], [4, 3], [1, 3]])
    assert map_of(file(tmp_path, labelme(box))) == ["......", ".111..", ".111..", "......", "......"]


@drawing
def test_a_later_shape_covers_an_earlier_one_and_255_is_a_label(tmp_path: Path) -> None:
    car, road = traced([[0, 0], [4, 3]], kind="rectangle"), traced([[6, 4], [2, 1]], "road", "rectangle")
    void = traced([[0, 0], [1, 1]], "void", "rectangle")
    drawn = read_annotation(file(tmp_path, labelme(car, road, void)))
    assert classes_of([drawn, drawn]) == ["car", "road", "void"]
    found = rasterise(drawn, LABELS, 7, "a.json")
    assert (found.dtype, found.shape, found.flags["C_CONTIGUOUS"]) == (np.uint8, (5, 6), True)
    assert rows(found) == ["#11177", "112222", "112222", "772222", "777777"]
    assert map_of(file(tmp_path, labelme(road, car))) == ["1111..", "111122", "111122", "..2222", "......"]


@drawing
def test_a_circle_ends_at_its_point(tmp_path: Path) -> None:
    # Around (3, 3), centres are 0.5, 1.5 and 2.5 away in x and y: those within 2.2 are (0.5, 1.5) = 1.58 and so on.
    circle = traced([[3, 3], [3, 5.2]], kind="circle")
    expected = ["......", "..11..", ".1111.", ".1111.", "..11..", "......"]
    expected[1], expected[4] = ".1111.", ".1111."  # (1.5, 1.5) is 2.12 away
    assert map_of(file(tmp_path, labelme(circle, size=(6, 6)))) == expected
    small = traced([[3, 3], [4.6, 3]], kind="circle")  # (1.5, 0.5) is 1.58 away
    assert map_of(file(tmp_path, labelme(small, size=(6, 6)))) == [
        "......",
        "..11..",
        ".1111.",
        ".1111.",
        "..11..",
        "......",
    ]


@drawing
def test_a_hole_shows_what_lay_below(tmp_path: Path) -> None:
    square = figure("rectangle", [[0, 0], [2, 4]]) | {"classTitle": "road"}
    outline, hole = [[0, 0], [5, 0], [5, 5], [0, 5]], [[1, 1], [3, 1], [3, 3], [1, 3]]
    # Through the centres of pixels: the edge on the left and above is outside, the one on the right and below inside.
    content = supervisely(square, figure("polygon", outline, [hole]), size=(6, 6))
    assert map_of(file(tmp_path, content)) == ["222...", "211111", "212.11", "212.11", "211111", ".11111"]
    everywhere = [[-9, -9], [9, -9], [9, 9], [-9, 9]]
    content = supervisely(square, figure("polygon", outline, [everywhere]), size=(6, 6))
    assert map_of(file(tmp_path, content)) == ["222..."] * 5 + ["......"]


@drawing
def test_a_rectangle_of_supervisely_includes_both_corners(tmp_path: Path) -> None:
    content = supervisely(figure("rectangle", [[5, 4], [0, 0]]))
    assert map_of(file(tmp_path, content)) == ["111111"] * 5
    content = supervisely(figure("rectangle", [[2, 1], [2, 1]]))
    assert map_of(file(tmp_path, content)) == ["......", "..1...", "......", "......", "......"]


@pytest.mark.parametrize(
    "data",
    [
        png([[0, 255, 255], [255, 0, 0]]),
        png([[0, 255, 255], [255, 0, 0]], "1"),
        png([[[9, 9, 9, 0], [1, 1, 1, 255], [0, 0, 0, 255]], [[0, 0, 0, 200], [0, 0, 0, 0], [8, 8, 8, 0]]], "RGBA"),
        png([[[0, 0, 0], [0, 9, 0], [1, 0, 0]], [[0, 0, 1], [0, 0, 0], [0, 0, 0]]], "RGB"),
        png([[0, 1, 1], [1, 0, 0]], "P", transparency=0),
    ],
    ids=["grey", "bits", "alpha", "colours", "palette"],
)
def test_a_bitmap_lies_at_its_origin(data: bytes, tmp_path: Path) -> None:
    mask = traced([[2, 1], [4, 2]], kind="mask", mask=packed(data))
    assert map_of(file(tmp_path, labelme(mask))) == ["......", "...11.", "..1...", "......", "......"]

    def at(x: int, y: int) -> list[str]:
        bitmap = {"origin": [x, y], "data": packed(data, compress=True)}
        return map_of(file(tmp_path, supervisely(figure("bitmap", bitmap=bitmap))))

    assert at(2, 1) == ["......", "...11.", "..1...", "......", "......"]
    assert at(-1, 4) == ["......", "......", "......", "......", "11...."]
    assert at(4, -1) == ["....1.", "......", "......", "......", "......"]
    assert at(60, 2) == at(2, -60) == ["......"] * 5


def test_run_lengths_go_down_the_columns(tmp_path: Path) -> None:
    listed = {"size": [5, 6], "counts": [6, 3, 2, 3, 16]}
    expected = ["......", ".11...", ".11...", ".11...", "......"]
    assert map_of(file(tmp_path, coco(segment(listed, iscrowd=1)))) == expected
    # 6, 3, 2, then 3 - 3 and 16 - 2, of 5 bits each with a sixth one where the number goes on, after the character 0
    text = {"size": [5, 6], "counts": "6320>"}
    assert run_lengths(b"6320>0") is not None
    assert list(run_lengths(b"6320>0")[:4]) == [6, 3, 2, 3]  # type: ignore[index]
    assert map_of(file(tmp_path, coco(segment(text)))) == expected
    assert map_of(file(tmp_path, coco(segment({"size": [5, 6], "counts": [0, 30]})))) == ["111111"] * 5


@drawing
def test_small_objects_of_coco_lie_on_top(tmp_path: Path) -> None:
    small, large = [1, 1, 3, 1, 3, 3, 1, 3], [0, 0, 5, 0, 5, 4, 0, 4]
    expected = ["11111.", "12211.", "12211.", "11111.", "......"]
    for annotations in [segment([small], 9), segment([large])], [segment([large]), segment([small], 9)]:
        assert map_of(file(tmp_path, coco(*annotations))) == expected
    parts = segment([[0, 0, 2, 0, 2, 1, 0, 1], [4, 3, 6, 3, 6, 5, 4, 5]], 9)
    assert map_of(file(tmp_path, coco(parts))) == ["22....", "......", "......", "....22", "....22"]
    equal = segment([small]), segment([small], 9)
    assert map_of(file(tmp_path, coco(*equal)))[1] == ".22..."


@drawing
def test_polygons_are_those_of_coco(tmp_path: Path) -> None:
    from pycocotools import mask as masks
    from pycocotools.coco import COCO

    rng = np.random.default_rng(0)
    for _ in range(60):
        size = [int(side) for side in rng.integers(8, 70, 2)]
        parts = [rng.uniform(-5, 75, 2 * int(rng.integers(3, 12))).round(2).tolist() for _ in range(rng.integers(1, 4))]
        noise = masks.encode(np.asfortranarray(rng.random(size) < 0.4, dtype=np.uint8))
        text = {"size": size, "counts": noise["counts"].decode()}
        for one in segment(parts), segment(text):
            content = coco(one, size=(size[0], size[1]))
            reference = COCO()
            reference.dataset = content
            reference.createIndex()
            drawn = read_coco(file(tmp_path, content))["images/a.jpg"]
            found = rasterise(drawn, LABELS, 0, "a.json")
            assert np.array_equal(found, reference.annToMask(reference.anns[1])), (size, one)


def test_every_image_of_coco_is_there(tmp_path: Path) -> None:
    content = coco()
    content["images"].append({"id": "b", "file_name": "val/b.jpg", "height": 3, "width": 2.0})
    found = read_coco(file(tmp_path, content))
    assert {name: (one.size, one.shapes) for name, one in found.items()} == {
        "images/a.jpg": ((5, 6), ()),
        "val/b.jpg": ((3, 2), ()),
    }
    assert rasterise(found["val/b.jpg"], {}, 4, "x").tolist() == [[4, 4]] * 3
    assert not is_coco(file(tmp_path, labelme()))


def test_without_pycocotools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)  # what Python does for a package that is not installed
    drawn = read_annotation(file(tmp_path, labelme(traced([[0, 0], [5, 0], [0, 5]]))))
    with pytest.raises(ValueError, match=r'drawn by pycocotools: pip install -e "\.\[polygons\]"$') as caught:
        rasterise(drawn, LABELS, 0, "a.json")
    assert caught.value.code == "E_ANNOTATION"  # type: ignore[attr-defined]


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
    "no JSON": ("{'shapes'", r"annotations/a\.json: expected JSON, got .* in line 1; export it again"),
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
    "a zigzag": (labelme(traced([[0, 0], [10**6, 1]] * 9)), "an outline of at most 2,000,000 pixels, got 17,"),
    "a corner": (labelme(traced([[1, 1]], kind="rectangle")), "two opposite corners, got 1 points"),
    "a centre": (labelme(traced(TRIANGLE, kind="circle")), "centre of a circle and a point on it, got 3 points"),
    "no mask": (labelme(traced(TRIANGLE[:2], kind="mask", mask=None)), "its mask as a base64 text, got no value"),
    "damaged base64": (labelme(traced(TRIANGLE[:2], kind="mask", mask="%%%")), r"its mask in base64, got damaged text"),
    "no PNG": (labelme(traced(TRIANGLE[:2], kind="mask", mask=packed(b"GIF89a"))), "6 bytes that are none"),
    "a cut PNG": (
        labelme(traced([[0, 0], [1, 1]], kind="mask", mask=packed(png(np.eye(2))[:50]))),
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
    "no zlib": (supervisely(figure("bitmap", bitmap={"origin": [1, 1], "data": packed(b"x")})), "damaged text"),
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


def test_a_small_file_is_not_drawn_for_minutes(tmp_path: Path) -> None:
    many = labelme(*[traced([[0, 0], [8000, 8000]], kind="rectangle")] * 1700, size=(8000, 8000))
    with pytest.raises(ValueError, match="over 100,000,000,000 pixels in all, got "):
        read_annotation(file(tmp_path, many))
    blank = packed(png(np.zeros((4000, 4000)), "1"))
    masks = [traced([[0, 0], [3999, 3999]], kind="mask", mask=blank)] * 70
    with pytest.raises(ValueError, match=r"shape 63 \(car\).* pixels in all, got "):
        read_annotation(file(tmp_path, labelme(*masks, size=(4000, 4000))))
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
    for number in range(1500):
        path = file(tmp_path, broken(good[number % 3], chance))
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
