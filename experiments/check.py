"""Says what is wrong with a folder of images and masks, what it holds, and what to type next.

    python -m experiments.check DIR
    python -m experiments.check DIR --page check.html     # with pictures: images under their labels, and a legend
    python -m experiments.check DIR --json                # the same for a program

Every file is read, and none is changed. The exit status is 0 where the folder can be trained with, and 2 where not.
A problem begins with the code of its kind, which docs/data.md explains. `experiments.train` checks the same by itself.
"""

import argparse
import base64
import json
import sys
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from shlex import quote
from statistics import median
from typing import Any

import jinja2
import numpy as np
import rich.table
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.text import Text

from datamodules.checks.problems import ERRORS, WARNINGS, shown, told
from datamodules.files import FOLDER, files_by_name, has_groups, read_classes, read_image, read_mask
from datamodules.folder import FolderDataModule, generated_palette, mask_palette
from datamodules.splitting import SERIES, series
from datamodules.verify import Examined, check_parts, examine, picture_of
from experiments.shell.command import command
from experiments.shell.files import write_atomic
from experiments.shell.flags import Parser, positive

IGNORED = 255
TEMPLATES = Path(__file__).parent / "reports" / "templates"
SIDE = 320  # pixels of a picture on the page
OPAQUE = 0.55  # of the labels over an image


def main(argv: Sequence[str] | None = None) -> None:
    with command() as console:
        parser = Parser(description=__doc__)
        parser.add_argument("root", type=Path, metavar="DIR", help="folder with images/, masks/ and classes.txt")
        parser.add_argument("--splits", default=FOLDER, metavar="NAME", help="folder of the lists within DIR")
        parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
        parser.add_argument("--page", type=Path, metavar="FILE", help="HTML file with pictures, to be written")
        parser.add_argument("--pictures", type=positive, default=24, metavar="N", help="pictures on the page")
        args = parser.parse_args(argv)
        check_parts(args.root, args.splits)
        class_names = read_classes(args.root / "classes.txt", IGNORED)
        examined = examine(args.root, class_names, IGNORED, args.splits, histogram=True)
        found = _facts(args, examined, class_names)
        if args.json:
            sys.stdout.write(json.dumps(found, indent=2) + "\n")
        else:
            _tell(found, examined, console)
        if args.page:
            write_atomic(args.page, _page(args, examined, found))
            sys.stderr.write(f"written: {shown(str(args.page))}\n")
    sys.exit(2 if examined.problems else 0)


def _facts(args: argparse.Namespace, examined: Examined, class_names: Sequence[str]) -> dict[str, Any]:
    """What is told of the folder, as --json prints it."""
    checks = examined.checks
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
        "root": str(args.root),
        "usable": not examined.problems,
        "problems": [{"code": p.code, "said": p.said} for p in examined.problems],
        "warnings": [{"code": p.code, "said": p.said} for p in examined.warnings],
        "splits": splits,
        "sizes": [{"width": w, "height": h, "images": count} for (w, h), count in sizes.most_common()],
        "channels": _channels([check.histogram for check in checks.values() if check.histogram]),
        "unlabelled": _unlabelled(examined),
        "next": [],
    }
    return found | {"next": _next(args, examined)}


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


def _channels(histograms: Sequence[Sequence[int]]) -> dict[str, list[float]]:
    """Mean and standard deviation of red, green and blue over all pixels, in [0, 1]."""
    if not histograms:
        return {}
    counts = np.sum(np.array(histograms, dtype=np.int64), axis=0).reshape(3, 256)
    values, total = np.arange(256) / 255, counts.sum(axis=1)
    means = counts @ values / total
    deviations = np.sqrt(np.maximum(counts @ values**2 / total - means**2, 0))
    return {"mean": means.round(4).tolist(), "std": deviations.round(4).tolist()}


def _next(args: argparse.Namespace, examined: Examined) -> list[dict[str, str]]:
    """What to type next, each with its reason."""
    root, said, taken = shown(quote(str(args.root))), list[dict[str, str]](), (args.root / FOLDER).exists()
    if not has_groups(args.root) and (found := series(list(examined.checks))):
        why = f"The names look like {found} series, such as videos, scans or patients, whose images go together."
        into = " --into grouped" * taken
        said.append({"why": why, "type": f"python -m experiments.split {root} --group-by {quote(SERIES)}{into}"})
    if examined.problems:
        return said
    import torch  # slow to import, and the checks need neither of these

    from experiments.runs.chosen import scale_of, word

    arguments = {"root": str(args.root), **({"splits": args.splits} if args.splits != FOLDER else {})}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which are told of already
        scale = scale_of(FolderDataModule, arguments, full_size=torch.cuda.is_available())
    data, chosen = (
        " ".join(f"--data.{name} {shown(word(value))}" for name, value in values.items())
        for values in (arguments, scale.data)
    )
    out = shown(quote(f"outputs/train/{args.root.resolve().name}"))
    train = f"python -m experiments.train --model unet --data folder {data} --out {out}"
    said.append({"why": f"{scale.reason} Training chooses them by itself, and a recipe with them.", "type": train})
    show = f"python -m experiments.show --data folder {data} {chosen}"
    said.append({"why": "The images that are trained on then:", "type": show})
    return said


def _tell(found: Mapping[str, Any], examined: Examined, console: Console) -> None:
    console.print(_verdict(found), markup=False, soft_wrap=True, style="bold")
    if examined.problems:
        console.print(told(found["root"], examined.problems), markup=False, soft_wrap=True)
    for problem in examined.warnings:
        console.print(f"{problem.code}: {problem.said}", markup=False, soft_wrap=True)
    kinds = Counter(problem.code for problem in [*examined.problems, *examined.warnings])
    if kinds:
        table = rich.table.Table("code", "what", "how many")
        for code, count in kinds.items():
            table.add_row(code, (ERRORS | WARNINGS)[code], str(count))
        console.print(table)
    head, rows = _table(found)
    table = rich.table.Table(*head, title="images, and the share of the labelled pixels that each class has")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)
    for line in _lines(found):
        console.print(line, markup=False, soft_wrap=True)
    for step in found["next"]:
        console.print(f"{step['why']}\n  {step['type']}", markup=False, soft_wrap=True)


def _verdict(found: Mapping[str, Any]) -> str:
    counts = [len(found["problems"]), len(found["warnings"])]
    said = [f"{n} {word}{'s' * (n != 1)}" for n, word in zip(counts, ("problem", "warning"), strict=True)]
    able = "can be trained with" if found["usable"] else "cannot be trained with as it is"
    return f"{shown(found['root'])} {able}: {' and '.join(said)} in {found['splits']['all']['images']} pairs"


def _table(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Images of each split, and the share of the labelled pixels that each class has."""
    splits = found["splits"]
    rows = [["images", *(str(of["images"]) for of in splits.values())]]
    for name in splits["all"]["classes"]:
        rows.append([shown(name), *(_percent(of["classes"][name]) for of in splits.values())])
    return ["", *splits], rows


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def _lines(found: Mapping[str, Any]) -> list[str]:
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
        said.append(f"Red, green and blue, from 0 to 1: mean {mean}; standard deviation {std}.")
    said.append(f"Unlabelled: {_percent(found['unlabelled'])} of the pixels.")
    return said


def _page(args: argparse.Namespace, examined: Examined, found: Mapping[str, Any]) -> str:
    """The page, whose values are all escaped: names come from a stranger's files."""
    class_names = list(found["splits"]["all"]["classes"])
    palette = mask_palette(args.root / "masks", len(class_names)) or generated_palette(len(class_names))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    head, rows = _table(found)
    return environment.get_template("check.html.j2").render(
        root=shown(found["root"]),
        verdict=_verdict(found),
        problems=[f"{p['code']}: {p['said']}" for p in [*found["problems"], *found["warnings"]]],
        head=head,
        rows=rows,
        facts=_lines(found),
        steps=found["next"],
        legend=[(shown(n), f"rgb({r}, {g}, {b})") for n, (r, g, b) in zip(class_names, palette, strict=True)],
        samples=_samples(args, examined, palette),
    )


def _samples(args: argparse.Namespace, examined: Examined, palette: Sequence[tuple[int, int, int]]) -> list[Any]:
    """Images that can be read, evenly spread over the splits, and under their labels."""
    images, masks = (files_by_name(args.root / part) for part in ("images", "masks"))
    good = {name for name, check in examined.checks.items() if not check.problems}
    listed = [(split, name) for split, names in examined.splits.items() for name in names if name in good]
    listed = listed or [("no split", name) for name in sorted(good)]
    places = np.linspace(0, len(listed) - 1, min(args.pictures, len(listed))).round().astype(int)
    colours = np.full((256, 3), 255, dtype=np.uint8)  # white where unlabelled
    colours[: len(palette)] = palette
    samples = []
    for split, name in (listed[place] for place in places):
        image = Image.fromarray(read_image(picture_of(images[name])))
        labels = Image.fromarray(colours[read_mask(picture_of(masks[name]))])
        image.thumbnail((SIDE, SIDE))
        over = Image.blend(image, labels.resize(image.size, Image.Resampling.NEAREST), OPAQUE)
        samples.append({"image": _uri(image), "overlay": _uri(over), "caption": f"{split}: {shown(name)}"})
    return samples


def _uri(image: Image.Image) -> str:
    file = BytesIO()
    image.save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


if __name__ == "__main__":
    main()
