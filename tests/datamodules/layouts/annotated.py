"""Tiny annotations of 5 x 6 pixels by LabelMe, Supervisely and COCO."""

import base64
import io
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

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
