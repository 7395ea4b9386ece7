"""What a person looks at: labels in their colours, their outlines over the image, a legend, and how sure they are."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from datamodules.layouts.palette import generated_palette
from experiments.runs.callbacks import to_rgb

OPAQUE = 0.4  # of the labels over an image
LEGEND = 12  # classes that are named; the others are counted
SMALLEST = 320  # pixels of the longer side of an overlay: a smaller image is enlarged, or its legend could not be read
LARGEST = 2048  # pixels of the longer side: a larger one is made smaller to be looked at

Colour = tuple[int, int, int]


def colours(palette: Sequence[Colour], classes: int) -> NDArray[np.uint8]:
    """(C, 3): those of the checkpoint, or generated ones where it has none."""
    known = [tuple(colour) for colour in palette] if len(palette) == classes else generated_palette(classes)
    return np.array(known, np.uint8).reshape(classes, 3)


def label_png(labels: NDArray[Any], palette: NDArray[np.uint8]) -> bytes:
    """An index PNG of 8 bits in the colours of the classes, or a grey one of 16 bits above 255 classes."""
    if labels.dtype == np.uint16:
        return _png(Image.fromarray(labels))
    picture = Image.fromarray(labels)
    picture.putpalette(palette[:256].ravel().tolist())
    return _png(picture)


def share_png(share: NDArray[np.floating[Any]]) -> bytes:
    """0 to 1 as grey levels 0 to 255."""
    return _png(Image.fromarray(np.rint(np.clip(share, 0, 1) * 255).astype(np.uint8)))


def overlay_png(
    image: NDArray[np.uint8], labels: NDArray[Any], palette: NDArray[np.uint8], names: Sequence[str]
) -> bytes:
    """The image (H, W, 3) under its labels, each region in an outline of its colour, with a legend of the classes
    that are there."""
    size = looked_at(*labels.shape)
    if size != labels.shape:
        rows, columns = (np.minimum((np.arange(n) * s) // n, s - 1) for n, s in zip(size, labels.shape, strict=True))
        labels = labels[np.ix_(rows, columns)]
        image = np.asarray(
            Image.fromarray(image).resize(
                size[::-1], Image.Resampling.BOX if size < image.shape[:2] else Image.Resampling.BICUBIC
            )
        )
    tinted = (1 - OPAQUE) * image + OPAQUE * palette[labels]
    tinted[edges(labels)] = palette[labels][edges(labels)]
    picture = Image.fromarray(tinted.round().astype(np.uint8))
    present = np.bincount(labels.ravel(), minlength=len(names))
    order = [int(i) for i in np.argsort(-present, kind="stable") if present[i]]
    return _png(
        _with_legend(picture, [(names[i], tuple(palette[i].tolist())) for i in order[:LEGEND]], len(order) - LEGEND)
    )


def looked_at(height: int, width: int) -> tuple[int, int]:
    """The size at which an overlay is drawn."""
    longer = max(height, width)
    factor = min(LARGEST / longer, 1.0)
    if longer < SMALLEST:
        factor = float(-(-SMALLEST // longer))
    return max(1, round(height * factor)), max(1, round(width * factor))


def edges(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Pixels whose right or lower neighbour has another label."""
    edge = np.zeros(labels.shape, bool)
    edge[:, :-1] |= labels[:, 1:] != labels[:, :-1]
    edge[:-1] |= labels[1:] != labels[:-1]
    return edge


def rgb_of(image: Tensor) -> NDArray[np.uint8]:
    """(C, H, W) in [0, 1] -> (H, W, 3): colours as they are, else the mean of the channels as grey."""
    return to_rgb(image[:3] if len(image) == 4 else image)


def _with_legend(picture: Image.Image, entries: Sequence[tuple[str, Any]], more: int) -> Image.Image:
    font = ImageFont.load_default(size=14)
    rows = [*entries, *([(f"and {more} more", None)] if more > 0 else [])]
    draw = ImageDraw.Draw(picture)
    placed, x, y, line = [], 6, 5, 22
    for name, colour in rows:
        text = name if len(name) <= 28 else f"{name[:27]}…"
        wide = int(draw.textlength(text, font=font)) + 32
        if x > 6 and x + wide > picture.width:
            x, y = 6, y + line
        placed.append((x, y, text, colour))
        x += wide
    below = y + line + 3
    whole = Image.new("RGB", (picture.width, picture.height + below), (255, 255, 255))
    whole.paste(picture, (0, 0))
    draw = ImageDraw.Draw(whole)
    for x, y, text, colour in placed:
        top = picture.height + y
        if colour is not None:
            draw.rectangle((x, top + 2, x + 13, top + 15), fill=colour, outline=(120, 120, 120))
        draw.text((x + 19, top), text, fill=(20, 20, 20), font=font)
    return whole


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
