"""Supervisely's annotation of one image: `size` and `objects` with a class, drawn in the order of the file."""

from typing import Any

import numpy as np

from datamodules.checks.problems import shown
from datamodules.layouts.drawn import (
    Canvas,
    Drawn,
    Shape,
    box_ring,
    corners_of,
    described,
    name_in,
    objects_in,
    points_of,
    refused,
    size_of,
    unpacked,
    whole,
)

CENTRE = 0.5  # from the corner of a pixel, which a point of Supervisely names by its index


def read_supervisely(content: dict[str, Any], where: str) -> Drawn:
    """The objects of a file; `where` names it in errors.

    A point names a pixel, not a place in it. A polygon goes through the centres of its pixels, a rectangle includes
    both of its corners, and a bitmap has its left upper pixel at its origin.
    """
    stated = content.get("size")
    stated = stated if isinstance(stated, dict) else {}
    size = size_of(stated.get("height"), stated.get("width"), where, "height and width of size")
    canvas = Canvas(size)
    listed = objects_in(content, "objects", where)
    return Drawn(size, tuple(_shape(canvas, one, f"{where} object {n}") for n, one in enumerate(listed, 1)))


def _shape(canvas: Canvas, one: dict[str, Any], where: str) -> Shape:
    name = name_in(one, "classTitle", where)
    where = f"{where} ({shown(name[:80])})"
    kind = one.get("geometryType")
    if kind == "bitmap":
        return _bitmap(canvas, name, one.get("bitmap"), where)
    if kind not in ("polygon", "rectangle"):
        raise refused(
            where,
            "polygon, rectangle or bitmap as geometryType",
            described(kind),
            "convert it to one of these in Supervisely, or delete it",
        )
    points = one.get("points")
    points = points if isinstance(points, dict) else {}
    exterior = points_of(points.get("exterior"), where)
    if kind == "rectangle":
        corner, opposite = corners_of(exterior, where)
        return canvas.polygon(name, [box_ring(corner, opposite + 1)], where)
    holes = points.get("interior") or []
    if not isinstance(holes, list):
        raise refused(where, "a list of holes as interior", described(holes), "draw it again")
    rings: list[np.ndarray] = [exterior, *(points_of(hole, f"{where} hole {n}") for n, hole in enumerate(holes, 1))]
    return canvas.polygon(name, [ring + CENTRE for ring in rings], where)


def _bitmap(canvas: Canvas, name: str, bitmap: object, where: str) -> Shape:
    if not isinstance(bitmap, dict):
        raise refused(where, "an object bitmap", described(bitmap), "export it again")
    origin = points_of([bitmap.get("origin")], where)[0]
    left, top = (whole(float(place)) for place in origin)
    if left is None or top is None:
        raise refused(where, "the pixel [x, y] as origin", f"{origin[0]:g}, {origin[1]:g}", "export it again")
    return canvas.bitmap(name, unpacked(bitmap.get("data"), where, compressed=True), (left, top), where)
