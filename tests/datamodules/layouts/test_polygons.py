"""Tiny annotations are drawn pixel by pixel, and COCO's as pycocotools draws them."""

import sys
from pathlib import Path

import numpy as np
import pytest
from annotated import LABELS, coco, drawing, figure, file, labelme, packed, png, rows, segment, supervisely, traced

from datamodules.layouts.coco import run_lengths
from datamodules.layouts.polygons import classes_of, is_coco, rasterise, read_annotation, read_coco


def map_of(path: Path) -> list[str]:
    one = read_coco(path)["images/a.jpg"] if is_coco(path) else read_annotation(path)
    return rows(rasterise(one, LABELS, 0, "a.json"))


@drawing
def test_a_polygon_covers_the_pixels_whose_centres_are_inside(tmp_path: Path) -> None:
    triangle = traced([[0, 0], [5.2, 0], [0, 5.2]])
    # Row y has its centres at y + 0.5, where the triangle ends at x = 4.7 - y.
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
    # Centres are 0.5, 1.5 and 2.5 from (3, 3) in x and in y: (1.5, 1.5) is 2.1 away, (2.5, 0.5) is 2.5.
    circle = traced([[3, 3], [3, 5.3]], kind="circle")
    expected = ["......", ".1111.", ".1111.", ".1111.", ".1111.", "......"]
    assert map_of(file(tmp_path, labelme(circle, size=(6, 6)))) == expected
    small = traced([[3, 3], [4.8, 3]], kind="circle")  # (1.5, 0.5) is 1.6 away
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
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
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
