"""report.html: one offline file with the tables, figures and interactive views of one or more experiments."""

import base64
import hashlib
import io
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from experiments.evidence.deviations import planned
from experiments.evidence.experiment import Experiment, Picture, flatten
from experiments.evidence.failed import failed_line
from experiments.evidence.scored import as_scored, scored
from experiments.reports.commands import uncommitted
from experiments.reports.figures import FIRST, NARROW
from experiments.reports.figures.looks import Look, label_colours, looks
from experiments.reports.tables import Table
from lightning_modules.components.scores.table import PERCENT

TEMPLATES = Path(__file__).parent / "templates"
SHOWN_WARNINGS = 3  # that are not folded
MOST_SIDE = 640  # pixels of a picture in the image browser
# Of all tiles of the image browsers together. A mask takes 0.02 to 0.1 bytes a pixel, noise 0.3: 5 MB, 18 MB at worst.
MOST_PIXELS = 48_000_000
JPEG_QUALITY = 90
DIGITS = 6  # significant ones of a number in a plot
# Of plotly, by those of matplotlib.
MARKERS = {"s": "square", "^": "triangle-up", "D": "diamond", "v": "triangle-down", "P": "cross", "X": "x"}
MARKERS |= {"<": "triangle-left", ">": "triangle-right", "p": "pentagon", "*": "star", "h": "hexagon"}
MARKERS |= {"d": "diamond-tall"}
DRAWN = ("curves", "confusion")  # figures that a plot shows in another way
BROWSED = ("samples", "extremes")  # figures that the image browser shows in another way
PARTS = {  # of the tables behind the first: title, and their keys
    "details": ("Evidence and effects of the factors", ("factorial", "factors", "evidence", "spread", "networks")),
    "costs": ("All scores, costs and budgets", ("scores", "cost", "speed", "fairness", "tuning")),
    "kinds": ("Errors", ("errors", "confusions", "sizes", "trimap")),
    "each": ("Each class and each seed", ("classes", "seeds")),
}


@dataclass(frozen=True)
class Section:
    """One experiment on the page.

    `answer` are the sentences that answer, the first by itself; `figures` maps a name to the PNG and the caption;
    `warnings` are what a reader must know before the first number.
    """

    experiment: Experiment
    answer: Sequence[str]
    tables: Sequence[Table]
    notes: Sequence[str]
    warnings: Sequence[str]
    figures: Mapping[str, tuple[bytes, str]]

    @property
    def headline(self) -> str:
        """The answer in one paragraph: first which cells failed, if any did."""
        return " ".join(filter(None, (failed_line(self.experiment), self.answer[0])))


def render(sections: Sequence[Section], summary: Table | None = None) -> str:
    """The page; several sections are several experiments, and `summary` is their table at the top.

    The same cells give the same text. Every script of the page is named by its hash in the Content-Security-Policy,
    so nothing else runs, and nothing is requested from anywhere.
    """
    # Escapes every value: names of classes, variants and images come from users' files.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["sentence"] = _sentence
    scripts = [_plotly(), (TEMPLATES / "page.js").read_text(encoding="utf-8")]
    pictures = [section.experiment.pictures for section in sections]
    side = _side([picture for of_one in pictures for picture in of_one])
    return environment.get_template("page.html.j2").render(
        views=[_view(*both, side) for both in zip(sections, pictures, strict=True)],
        summary=summary,
        style=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
        scripts=[Markup(script) for script in scripts],
        hashes=Markup(" ".join(f"'sha256-{_digest(script)}'" for script in scripts)),
    )


def _sentence(text: str, most: int = 280) -> tuple[str, str]:
    """The first sentence, and the others; where it has more letters than that, its beginning, and all of the text."""
    first, stop, rest = text.partition(". ")
    first, rest = (f"{first}.", rest) if stop else (text, "")
    return (first, rest) if len(first) <= most else (f"{textwrap.shorten(first, most, placeholder='')[:most]} …", text)


def _plotly() -> str:
    from plotly.offline import get_plotlyjs  # only a page needs it

    return str(get_plotlyjs()).replace("\r\n", "\n").replace("\r", "\n")  # as a browser reads it before it hashes


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _view(section: Section, pictures: Sequence[Picture], side: int) -> dict[str, Any]:
    """What the template shows of a section."""
    experiment, plan = section.experiment, section.experiment.plan
    encoded = {name: (base64.b64encode(png).decode(), text) for name, (png, text) in section.figures.items()}
    behind = [*DRAWN, *(BROWSED if pictures else ())]
    tables = [table for table in section.tables[1:] if table.rows]
    parts = [(name, title, [t for t in tables if t.key in keys]) for name, (title, keys) in PARTS.items()]
    named = {key for _, keys in PARTS.values() for key in keys}
    parts.append(("others", "Other tables", [t for t in tables if t.key not in named]))
    done = len(experiment.finished())
    shrunk = any(max(picture.mask.shape) > side for picture in pictures)
    return {
        "plan": plan,
        "images": as_scored("test images", plan),
        "split": scored(plan),
        "failed": failed_line(experiment),
        "uncommitted": uncommitted(experiment),
        "answer": section.answer,
        "table": section.tables[0],
        "parts": [part for part in parts if part[2]],
        "notes": section.notes,
        "warnings": section.warnings,
        "shown_warnings": SHOWN_WARNINGS,
        "main": encoded.get(FIRST),
        "narrow": encoded.get(NARROW),
        "figures": {name: figure for name, figure in encoded.items() if name not in (FIRST, NARROW, *behind)},
        "behind": {name: figure for name, figure in encoded.items() if name in behind},
        "missing": experiment.missing,
        "cells": f"{done} of {done + len(experiment.missing)}",
        "common": sorted(flatten(plan["common"]).items()),
        "pictures": len(pictures),
        "shrunk": side if shrunk else 0,
        "data": _json(_data(experiment, pictures, side)),
    }


def _data(experiment: Experiment, pictures: Sequence[Picture], side: int) -> dict[str, Any]:
    """What page.js draws; colours as CSS writes them, images as data URIs, numbers in the units that are shown."""
    plan = experiment.plan
    colours = label_colours(plan["palette"])
    return {
        "baseline": plan["baseline"],
        "classes": plan["class_names"],
        "colours": ["#" + bytes(colour).hex() for colour in colours[[*range(len(plan["class_names"])), 255]]],
        "variants": [_variant(experiment, name, look) for name, look in looks(plan).items()],
        "pictures": [_picture(picture, colours, side) for picture in pictures],
        "settings": _settings(experiment),
    }


def _variant(experiment: Experiment, name: str, look: Look) -> dict[str, Any]:
    cells = experiment.cells[name]
    found = [experiment.estimate(name, f"iou/{one}").times(PERCENT[1]) for one in experiment.plan["class_names"]]
    return {
        "name": name,
        "colour": look.colour,
        # matplotlib measures dashes in line widths
        "dash": "solid" if isinstance(look.line, str) else ",".join(f"{2 * length:g}px" for length in look.line[1]),
        "marker": MARKERS.get(look.marker, "circle"),
        "seeds": list(cells),
        "images": sum(len(cell.image_names) for cell in cells.values()),
        "miou": _curves(experiment, name, "val/miou", PERCENT[1]),
        "loss": _curves(experiment, name, "train/loss", 1.0),
        "iou": [[one.mean, one.std] for one in found],
        "confusion": np.sum([cell.confusion for cell in cells.values()], axis=0).tolist() if cells else [],
    }


def _curves(experiment: Experiment, variant: str, column: str, factor: float) -> dict[str, Any]:
    """Epochs trained, and the values of each seed; null where a seed has none."""
    curves = {seed: cell.curve(column) for seed, cell in experiment.cells[variant].items()}
    epochs = sorted(set[int]().union(*curves.values()))
    values = {seed: [factor * curve.get(epoch, math.nan) for epoch in epochs] for seed, curve in curves.items()}
    return {"epochs": [epoch + 1 for epoch in epochs], "seeds": values}  # metrics.csv counts from 0


def _settings(experiment: Experiment) -> dict[str, dict[str, str]]:
    """All settings of each variant by their full names, from the plan and the run.json of its cells.

    Where the seeds of a variant differ in a setting, say in what a search of each has found, it holds all its values.
    """
    by_variant = {}
    for name, cells in experiment.cells.items():
        settings = flatten(planned(experiment.plan, name))
        # What only the cells hold, each seed its own.
        stored: dict[str, dict[int, str]] = {}
        for seed, cell in cells.items():
            for setting, value in flatten(cell.run).items():
                if setting not in settings and setting not in (
                    "seed",
                    "hash",
                    "data.root",
                ):  # the last is a place, no setting
                    stored.setdefault(setting, {})[seed] = value
        for setting, values in stored.items():
            each = ", ".join(f"{value} (seed {seed})" for seed, value in values.items())
            settings[setting] = each if len(set(values.values())) > 1 else next(iter(values.values()))
        by_variant[name] = settings
    return by_variant


def _side(pictures: Sequence[Picture]) -> int:
    """The longest side of a picture on the page, in pixels, such that all tiles stay below MOST_PIXELS together."""
    tiles = sum(2 + len(picture.predictions) for picture in pictures)
    return min(MOST_SIDE, math.isqrt(MOST_PIXELS // max(tiles, 1)))


def _picture(picture: Picture, colours: NDArray[np.uint8], side: int) -> dict[str, Any]:
    height, width = picture.mask.shape
    scale = min(1.0, side / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))

    def mask(labels: NDArray[np.uint8]) -> str:
        # A palette, never JPEG: no colour between two classes, which would be a third.
        tile = Image.fromarray(labels).resize(size, Image.Resampling.NEAREST)
        tile.putpalette(colours.tobytes())
        return _uri(tile, "png", optimize=True)

    image = Image.fromarray(picture.image).resize(size, Image.Resampling.LANCZOS)
    return {
        "name": picture.name,
        "kinds": picture.kinds,
        "size": size,
        "image": _uri(image, "jpeg", quality=JPEG_QUALITY, subsampling=0),
        "truth": mask(picture.mask),
        "predictions": {name: mask(labels) for name, labels in picture.predictions.items()},
        "mious": {name: PERCENT[1] * miou for name, miou in picture.mious.items()},
    }


def _uri(image: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _json(value: Any) -> Markup:
    """JSON that cannot end the script element it stands in, whatever the names in it."""
    text = json.dumps(_rounded(value), allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _rounded(value: Any) -> Any:
    """Without digits that no plot shows; NaN becomes null, as JSON has none."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value
