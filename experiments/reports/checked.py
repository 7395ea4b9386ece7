"""What `experiments.check` tells of a data set: facts, tables, the next commands, and a page with pictures."""

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.checks.pairs import Check, picture_of
from datamodules.checks.problems import shown
from datamodules.layouts.labels import IGNORED
from datamodules.layouts.palette import generated_palette
from datamodules.layouts.source import Source
from datamodules.verify import Examined

TEMPLATES = Path(__file__).parent / "templates"
SIDE = 320  # pixels of a picture on the page
OPAQUE = 0.55  # of the labels over an image


def facts(source: Source, examined: Examined) -> dict[str, Any]:
    """What is told of the data, as --json prints it."""
    checks, class_names = examined.checks, source.classes.names
    pixels = {name: _pixels(examined, [name], len(class_names)) for name in checks}
    lists = {**examined.splits, "all": list(checks)}
    splits = {}
    for split, names in lists.items():
        known = [name for name in names if name in checks]
        counts = sum((pixels[name] for name in known), np.zeros(len(class_names), dtype=np.int64))
        shares = counts / max(1, int(counts.sum()))
        splits[split] = {"images": len(names), "classes": dict(zip(class_names, map(float, shares), strict=True))}
    sizes = Counter(check.size for check in checks.values() if check.size != (0, 0))
    found = {
        "root": source.typed,
        "usable": not examined.problems,
        "problems": [{"code": p.code, "said": p.said} for p in examined.problems],
        "warnings": [{"code": p.code, "said": p.said} for p in examined.warnings],
        "splits": splits,
        "sizes": [{"width": w, "height": h, "images": count} for (w, h), count in sizes.most_common()],
        "channels": _channels(list(checks.values())),
        "unlabelled": _unlabelled(examined),
        "next": [],
    }
    return found


def _pixels(examined: Examined, names: Sequence[str], count: int) -> NDArray[np.int64]:
    """How many pixels of each class the masks of these images have."""
    counts = np.zeros(256, dtype=np.int64)
    for check in (examined.checks[name] for name in names):
        if check.labels:
            counts[check.labels] += check.pixels
    return counts[:count]


def _unlabelled(examined: Examined) -> float:
    """The share of all pixels that are."""
    counts = _pixels(examined, list(examined.checks), 256)
    return float(counts[IGNORED] / max(1, int(counts.sum())))


def _channels(checks: Sequence[Check]) -> dict[str, list[float]]:
    """Mean and standard deviation of each channel over all pixels, in [0, 1]."""
    moments = [check.moments for check in checks if check.moments is not None]
    if not moments or len({len(of) for of in moments}) > 1:
        return {}
    total = sum(check.size[0] * check.size[1] for check in checks if check.moments is not None)
    means, squares = (np.sum(moments, axis=0) / total).T
    deviations = np.sqrt(np.maximum(squares - means**2, 0))
    return {"mean": means.round(4).tolist(), "std": deviations.round(4).tolist()}


def verdict(found: Mapping[str, Any]) -> str:
    counts = [len(found["problems"]), len(found["warnings"])]
    said = [f"{n} {word}{'s' * (n != 1)}" for n, word in zip(counts, ("problem", "warning"), strict=True)]
    able = "can be trained with" if found["usable"] else "cannot be trained with as it is"
    return f"{shown(found['root'])} {able}: {' and '.join(said)} in {found['splits']['all']['images']} pairs"


def table(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Images of each split, and the share of the labelled pixels that each class has."""
    splits = found["splits"]
    rows = [["images", *(str(of["images"]) for of in splits.values())]]
    for name in splits["all"]["classes"]:
        rows.append([shown(name), *(_percent(of["classes"][name]) for of in splits.values())])
    return ["", *splits], rows


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def lines(found: Mapping[str, Any]) -> list[str]:
    said = []
    if sizes := found["sizes"]:
        listed = ", ".join(f"{s['width']} x {s['height']} ({s['images']})" for s in sizes[:3])
        more = f" and {len(sizes) - 3} other sizes" if len(sizes) > 3 else ""
        shorter = [min(s["width"], s["height"]) for s in sizes for _ in range(s["images"])]
        said.append(
            f"Sizes in pixels: {listed}{more}; the shorter side is {min(shorter)} to {max(shorter)}, median "
            f"{median(shorter):g}."
        )
    if channels := found["channels"]:
        mean, std = (", ".join(f"{value:.3f}" for value in channels[key]) for key in ("mean", "std"))
        named = "Red, green and blue" if len(channels["mean"]) == 3 else "Each channel"
        said.append(f"{named}, from 0 to 1: mean {mean}; standard deviation {std}.")
    said.append(f"Unlabelled: {_percent(found['unlabelled'])} of the pixels.")
    return said


def page(source: Source, pictures: int, examined: Examined, found: Mapping[str, Any]) -> str:
    """The page, whose values are all escaped: names come from a stranger's files."""
    class_names = list(found["splits"]["all"]["classes"])
    palette = source.palette or generated_palette(len(class_names))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    head, rows = table(found)
    return environment.get_template("check.html.j2").render(
        root=shown(found["root"]),
        verdict=verdict(found),
        problems=[f"{p['code']}: {p['said']}" for p in [*found["problems"], *found["warnings"]]],
        head=head,
        rows=rows,
        facts=lines(found),
        steps=found["next"],
        legend=[(shown(n), f"rgb({r}, {g}, {b})") for n, (r, g, b) in zip(class_names, palette, strict=True)],
        samples=_samples(source, pictures, examined, palette),
    )


def _samples(source: Source, count: int, examined: Examined, palette: Sequence[tuple[int, int, int]]) -> list[Any]:
    """Images that can be read, evenly spread over the splits, and under their labels."""
    good = {name for name, check in examined.checks.items() if not check.problems}
    listed = [(split, name) for split, names in examined.splits.items() for name in names if name in good]
    listed = listed or [("no split", name) for name in sorted(good)]
    places = np.linspace(0, len(listed) - 1, min(count, len(listed))).round().astype(int)
    colours = np.full((256, 3), 255, dtype=np.uint8)  # white where unlabelled
    colours[: len(palette)] = palette
    samples = []
    for split, name in (listed[place] for place in places):
        values = source.image(picture_of(source.images[name]))
        values = values if len(values) == 3 else np.repeat(values.mean(axis=0)[None], 3, axis=0)
        image = Image.fromarray((255 * values).round().astype(np.uint8).transpose(1, 2, 0))
        labels = Image.fromarray(colours[source.labels(name)])
        image.thumbnail((SIDE, SIDE))
        over = Image.blend(image, labels.resize(image.size, Image.Resampling.NEAREST), OPAQUE)
        samples.append({"image": _uri(image), "overlay": _uri(over), "caption": f"{split}: {shown(name)}"})
    return samples


def _uri(image: Image.Image) -> str:
    file = BytesIO()
    image.save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
