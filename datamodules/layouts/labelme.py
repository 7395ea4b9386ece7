"""LabelMe's annotation of one image: `shapes` with a label, drawn in the order of the file."""

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
)

VERTICES = 360  # of the polygon that a circle is drawn as; it is inside by less than 1/25,000 of the radius
LINES = ("line", "linestrip", "point", "points")


def read_labelme(content: dict[str, Any], where: str) -> Drawn:
    """The shapes of a file; `where` names it in errors.

    Coordinates are those of the picture on the screen, which are COCO's. A rectangle ends at its corners, and a circle
    at its second point. The corners of a mask's box are pixels, and it includes both.
    """
    size = size_of(content.get("imageHeight"), content.get("imageWidth"), where, "imageHeight and imageWidth")
    canvas = Canvas(size)
    return Drawn(
        size,
        tuple(
            _shape(canvas, one, f"{where} shape {n}") for n, one in enumerate(objects_in(content, "shapes", where), 1)
        ),
    )


def _shape(canvas: Canvas, one: dict[str, Any], where: str) -> Shape:
    name = name_in(one, "label", where)
    where = f"{where} ({shown(name[:80])})"
    kind = one.get("shape_type") or "polygon"  # which files of the first versions do not say
    if kind not in ("polygon", "rectangle", "circle", "mask"):
        raise refused(
            where,
            "polygon, rectangle, circle or mask as shape_type",
            described(kind),
            "it has no area: draw a polygon around it, or delete it" if kind in LINES else "draw it as a polygon",
        )
    points = points_of(one.get("points"), where)
    if kind == "rectangle":
        points = box_ring(*corners_of(points, where))
    elif kind == "circle":
        if len(points) != 2:
            raise refused(where, "the centre of a circle and a point on it", f"{len(points)} points", "draw it again")
        angles = np.linspace(0, 2 * np.pi, VERTICES, endpoint=False)
        points = points[0] + np.hypot(*(points[1] - points[0])) * np.stack([np.cos(angles), np.sin(angles)], 1)
    elif kind == "mask":
        corner, opposite = corners_of(points, where)
        left, top = int(corner[0]), int(corner[1])
        box = int(opposite[0]) - left + 1, int(opposite[1]) - top + 1
        return canvas.bitmap(name, unpacked(one.get("mask"), where, compressed=False), (left, top), where, box)
    return canvas.polygon(name, [points], where)
