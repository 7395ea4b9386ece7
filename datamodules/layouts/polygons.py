"""Label maps of polygon annotations by LabelMe, Supervisely and COCO.

All are drawn by one rule, COCO's own: `pycocotools` decides which pixels a polygon covers. About those are covered
whose centre is inside. Where shapes overlap, the later one is seen, and pixels under none are background.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.checks.problems import coded, shown, some
from datamodules.files import short
from datamodules.layouts.coco import has_lists, is_coco, read_coco, run_lengths
from datamodules.layouts.drawn import Drawn, Polygon, Runs, Shape, parsed, refused
from datamodules.layouts.labelme import read_labelme
from datamodules.layouts.supervisely import read_supervisely

__all__ = ["Drawn", "Polygon", "Runs", "Shape", "classes_of", "is_coco", "rasterise", "read_annotation", "read_coco"]

LISTED = 20  # classes that a message names


def read_annotation(path: Path) -> Drawn:
    """The annotation of one image, by LabelMe (with `shapes`) or by Supervisely (with `objects` and `size`).

    Raises ValueError for what cannot be drawn, and FileNotFoundError.
    """
    content, where = parsed(path), short(path)
    if "shapes" in content:
        return read_labelme(content, where)
    if "objects" in content:
        return read_supervisely(content, where)
    expected = "LabelMe's shapes or Supervisely's objects"
    if has_lists(content):
        raise refused(where, expected, "COCO's images and annotations", "name the file as the one of all images")
    # What a link points to may be private.
    got = (
        "other JSON" if path.is_symlink() else f"JSON with {some((key[:40] for key in content), 5) or 'nothing in it'}"
    )
    raise refused(where, expected, got, "export it in one of these formats, or move it out")


def classes_of(drawn: Iterable[Drawn]) -> list[str]:
    """The names of the classes, each once, in the order in which they are first drawn."""
    return list(dict.fromkeys(shape.name for one in drawn for shape in one.shapes))


def rasterise(drawn: Drawn, labels: Mapping[str, int], background: int, where: str) -> np.ndarray:
    """(H, W) uint8: at each pixel the label of the last shape that covers it, or `background`; all are 0 to 255.

    Raises ValueError for a class without a label, for which `where` names the file, and for a polygon where
    pycocotools is not installed.
    """
    for shape in drawn.shapes:
        if shape.name not in labels:
            alike = [name for name in labels if name.casefold() == shape.name.casefold()]
            hint = (
                f"did you mean {shown(alike[0][:80])}?" if alike else "give it a label, or rename it in the annotation"
            )
            has = some((name[:80] for name in labels), LISTED) or "none"
            raise refused(shown(where), f"a class that has a label ({has})", shown(shape.name[:80]), hint)
    height, width = drawn.size
    flat = np.full(height * width, background, dtype=np.uint8)  # down the columns, as runs go
    for shape in drawn.shapes:
        if isinstance(shape.geometry, Runs):
            _fill(flat, shape.geometry.counts, labels[shape.name])
        else:
            _fill_polygon(flat, shape.geometry, drawn.size, labels[shape.name])
    return np.ascontiguousarray(flat.reshape(width, height).T)


def _fill_polygon(flat: np.ndarray, polygon: Polygon, size: tuple[int, int], label: int) -> None:
    outline, *holes = (_ring_runs(ring, size) for ring in polygon.rings)
    edges = np.cumsum(outline)
    if not holes or len(edges) < 2:
        return _fill(flat, outline, label)
    first, last = int(edges[0]), int(edges[-1] if len(edges) % 2 == 0 else edges[-2])
    before = flat[first:last].copy()
    _fill(flat, outline, label)
    for hole in holes:  # what lay there is seen again
        ends = np.clip(np.cumsum(hole), first, last)
        for start, end in zip(ends[:-1:2].tolist(), ends[1::2].tolist(), strict=True):
            flat[start:end] = before[start - first : end - first]
    return None


def _ring_runs(ring: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(N,): the pixels within a ring of (N, 2) points, as runs."""
    rle = coco_masks().frPyObjects([ring.ravel()], *size)[0]
    runs = run_lengths(rle["counts"])
    assert runs is not None  # of a ring that Canvas took
    return runs


def _fill(flat: np.ndarray, runs: np.ndarray, label: int) -> None:
    edges = np.cumsum(runs).tolist()
    for start, end in zip(edges[::2], edges[1::2], strict=False):
        flat[start:end] = label


def coco_masks() -> Any:
    """pycocotools.mask; ValueError with the way out where it is not installed."""
    try:
        from pycocotools import mask
    except ImportError as error:
        raise coded("E_ANNOTATION", 'polygons are drawn by pycocotools: pip install -e ".[polygons]"') from error
    return mask
