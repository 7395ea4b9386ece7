"""What of a suggested layout the files themselves say: classes and their values, channels, splits."""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from datamodules.files import MAX_PIXELS, SPLITS, decode, read_bytes
from datamodules.layouts import lists
from datamodules.layouts.config import Layout
from datamodules.layouts.labels import IGNORED, MASK_FORMATS, Colour, colours_of, read_layout_classes
from datamodules.layouts.pixels import bands_of, read_pixels
from datamodules.splitting import SERIES, series

LOOKED_AT = 60  # masks whose values are looked at, evenly spread
FEW = 64  # distinct colours or values: more are a picture, or smoothed
END = 20  # from black or white, of a mask that JPEG has changed
ALIASES = lists.WORDS | {"trainval": "train"}
LEGENDS = {"classes.txt", "class_names.txt", "labels.txt", "labelmap.txt", "class_dict.csv", "label_class_dict.csv"}
LEGENDS |= {"_classes.csv", "classes.csv", "label_colors.txt", "label_names.txt", "obj.names", "classes.names"}


@dataclass
class Suggestion:
    """A layout, and why each of its keys."""

    layout: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """The dataset.yaml, with its reasons as comments."""
        lines = []
        for key, value in self.layout.items():
            lines += [f"# {self.reasons[key]}"] if key in self.reasons else []
            text = yaml.safe_dump([value], sort_keys=False, default_flow_style=True, width=10**6, allow_unicode=True)
            lines.append(f"{key}: {text.strip()[1:-1]}")
        return "\n".join(lines) + "\n"

    def state(self, key: str, value: Any, reason: str) -> None:
        self.layout[key], self.reasons[key] = value, reason


def looks_like_labels(path: Path) -> bool:
    """Whether a picture has so few values or colours that it rather is a mask."""
    try:
        values = values_of(path)
    except (ValueError, OSError):
        return False
    return len(values) <= FEW or _black_and_white(values)


def values_of(path: Path) -> Counter[Any]:
    """How many pixels have each value, or colour as '#rrggbb', of a mask; of many colours the commonest."""
    if path.suffix.lower() == ".npy":
        return Counter(range(FEW + 1))
    image = decode(path, read_bytes(path), MAX_PIXELS, MASK_FORMATS)
    if image.mode in ("RGB", "RGBA") or image.format == "GIF":  # whose writer numbers its colours anew
        pixels = np.asarray(image.convert("RGB"), dtype=np.int64)
        numbers, counts = np.unique(pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2], return_counts=True)
        if all(n >> 16 == n & 255 == n >> 8 & 255 for n in numbers[: 4 * FEW].tolist()):
            return Counter(dict(zip((numbers & 255).tolist(), counts.tolist(), strict=True)))
        order = np.argsort(-counts)[: FEW + 1]
        return Counter({f"#{int(numbers[i]):06x}": int(counts[i]) for i in order})
    values, counts = np.unique(np.asarray(image), return_counts=True)
    return Counter(dict(zip(values.astype(int).tolist(), counts.tolist(), strict=True)))


def _black_and_white(values: Mapping[Any, int]) -> bool:
    """Whether most pixels are black or white, and the rest greys between or next to them."""
    if not all(isinstance(value, int) for value in values) or max(values) > 255 or max(values) < 255 - END:
        return False
    ends = sum(count for value, count in values.items() if value <= END or value >= 255 - END)
    low, high = sum(value <= END for value in values), sum(value >= 255 - END for value in values)
    return ends > 0.8 * sum(values.values()) and (min(low, high) > 1 or len(values) > FEW)


def state_words(made: Suggestion, words: Sequence[str]) -> None:
    """The classes of annotations."""
    ignored = [word for word in words if word.strip("_").casefold() in ("ignore", "void", "unlabelled", "unlabeled")]
    words = [word for word in words if word not in ignored]
    plain = [word for word in words if word.strip("_").casefold() != "background"]
    names = ["background", *plain] if len(plain) == len(words) else list(words)
    made.state("classes", names, "the names in the annotations; pixels under no shape are background")
    if ignored:
        made.state("ignore", ignored, "by its name what is unlabelled")


def state_classes(
    made: Suggestion, root: Path, there: Sequence[Path], pattern: str, paths: Sequence[Path], *, several: bool
) -> None:
    """What the masks of this pattern hold, as classes to be named; `there` are all files."""
    places = sorted({*np.linspace(0, len(paths) - 1, min(LOOKED_AT, len(paths))).round().astype(int).tolist()})
    looked = [paths[place] for place in places]
    if pattern.endswith(".json"):
        from datamodules.layouts.polygons import classes_of, read_annotation

        return state_words(made, classes_of(read_annotation(path) for path in looked))
    if several:
        reason = "each file of an image is one object: what is not 0 in one of them"
        return made.state("classes", ["background", "object"], reason)
    values: Counter[Any] = Counter()
    for path in looked:
        values += values_of(path)
    if any(isinstance(value, str) for value in values):  # a mask of one grey colour is a mask of colours, too
        values = Counter({f"#{v:02x}{v:02x}{v:02x}" if isinstance(v, int) else v: n for v, n in values.items()})
    if _disagree(looked):
        values = _colours(looked)
    if _of_legend(made, root, there, values):
        return None
    said = f"of {len(looked)} masks: rename these classes"
    colours = any(isinstance(value, str) for value in values)
    if colours and len(values) > FEW:
        often = [value for value, _ in values.most_common(8)]
        made.state("classes", {f"colour_{c[1:]}": c for c in often}, f"the commonest colours {said}")
        return made.state("ignore", "others", "so many colours are smoothed borders, perhaps")
    if colours:
        why = "the palettes of the masks differ, so colours count; those " if _disagree(looked) else "the colours "
        return made.state("classes", {f"colour_{c[1:]}": c for c, _ in values.most_common()}, why + said)
    if _black_and_white(values):
        ranges = {"background": "0-127", "object": "128-255"}
        return made.state("classes", ranges, "masks are black and white, and some pixels grey")
    if {*values} <= {0, 255}:
        return made.state("classes", {"background": 0, "object": 255}, "masks are black and white")
    if len(values) > FEW:
        why = "so many values are numbers of objects: what is not 0 is one class"
        return made.state("classes", {"background": 0, "object": f"1-{max(values)}"}, why)
    numbers = sorted(values)
    ignored = [255] if numbers[-1] == 255 and [*range(len(numbers) - 1)] == numbers[:-1] else []
    made.state("classes", {f"value_{v}": v for v in numbers if v not in ignored}, f"the values {said}")
    if ignored:
        made.state("ignore", ignored, "255 usually is unlabelled; if not, give it a class")
    return None


def _of_legend(made: Suggestion, root: Path, there: Sequence[Path], values: Mapping[Any, int]) -> bool:
    """Whether a file of classes lies there that has every value of the masks, which is then stated."""
    for path in (path for path in there if path.name.lower() in LEGENDS):
        place = path.relative_to(root).as_posix()
        try:
            classes = read_layout_classes(Layout(classes=place), root.joinpath, path)
        except (ValueError, OSError):
            continue
        names = classes.names
        indices = not classes.values and not classes.colours
        if {*values} == {0, 255} and indices and len(names) == 2:
            made.state("classes", {names[0]: 0, names[1]: 255}, f"the names of {place}; masks are black and white")
            return True
        colours = {f"#{r:02x}{g:02x}{b:02x}" for r, g, b in classes.colours}
        known = {*range(len(names)), IGNORED} if indices else {*classes.values} | colours
        of_masks = {f"#{v:02x}{v:02x}{v:02x}" if colours and isinstance(v, int) else v for v in values}
        if of_masks <= known:
            if path != root / "classes.txt":
                made.state("classes", place, "this file names the classes")
            return True
    return False


def _disagree(paths: Sequence[Path]) -> bool:
    """Whether two palettes show one value in two colours."""
    known: dict[int, Colour] = {}
    for path in paths:
        image = decode(path, read_bytes(path), MAX_PIXELS, MASK_FORMATS)
        used = np.unique(np.asarray(image)).tolist() if image.mode == "P" else []
        for value, colour in colours_of(image, used).items():
            if known.setdefault(value, colour) != colour:
                return True
    return False


def _colours(paths: Sequence[Path]) -> Counter[Any]:
    found: Counter[Any] = Counter()
    for path in paths:
        image = decode(path, read_bytes(path), MAX_PIXELS, MASK_FORMATS).convert("RGB")
        found += Counter({f"#{r:02x}{g:02x}{b:02x}": n for n, (r, g, b) in image.getcolors(1 << 24) or []})  # type: ignore[misc]
    return found


def state_images(made: Suggestion, paths: Sequence[Path]) -> None:
    """What of the images is no 8-bit RGB or grey."""
    first = bands_of(paths[0])
    if first.has_alpha and first.count in (2, 4):
        made.state("channels", "rgb", "images have an alpha channel, which is left out; rgba keeps it")
    elif first.count not in (1, 3):
        made.state("channels", "all", f"images have {first.count} bands")
    if first.bits > 8:
        ends = [(float(p.min()), float(p.max())) for p in (read_pixels(path, MAX_PIXELS) for path in paths[:20])]
        widest = [min(low for low, _ in ends), max(high for _, high in ends)]
        made.state(
            "value_range", widest, f"images have {first.bits} bits; the ends of the first {len(ends)}: widen them"
        )


def state_splits(made: Suggestion, root: Path, paths: Sequence[Path], images: Mapping[str, list[Path]]) -> None:
    """Where the lists are, or shares; `images` that have a mask, by their names."""
    if "{split}" in made.layout["images"]:
        return _of_folders(made, root, images)
    finder = lists.Finder(images, root)
    found: dict[str, str] = {}
    for path in paths:
        word = re.split(r"[_\-. ]", path.stem.casefold())[0]
        place = path.relative_to(root).as_posix()
        try:
            if path.suffix in (".txt", ".csv") and word in ALIASES and ALIASES[word] not in found:
                lines = lists.list_of(path, ALIASES[word])
                if lines and sum(finder(line) is not None for line in lines) > 0.8 * len(lines):
                    found[ALIASES[word]] = place
            elif path.suffix in (".yaml", ".yml", ".json") and path.stat().st_size < 10**7 and not found:
                of_file = lists.keyed_lists(path)
                if all(finder(line) is not None for lines in of_file.values() for line in lines[:20]):
                    found |= dict.fromkeys(of_file, place)
        except (ValueError, OSError):
            continue
    if "train" in found:
        rest = " and a share of the training images" if "val" not in found else ""
        stated = {s: found.get(s, 0.15) for s in SPLITS if s in found or s == "val"}
        return made.state("splits", stated, f"from the lists that are there{rest}")
    if not all(os.path.lexists(root / "splits" / f"{split}.txt") for split in ("train", "val")):
        why = "no lists were found: shares of the images; experiments.split writes lists to be cited"
        made.state("splits", dict(lists.SHARES), why)
        if (count := series([*images])) >= 2 * len(lists.SHARES):
            why = (
                f"the names look like {count} series, such as videos or scans, each whole in one split; else remove it"
            )
            made.state("group_by", SERIES, why)
    return None


def _of_folders(made: Suggestion, root: Path, images: Mapping[str, list[Path]]) -> None:
    """Shares of the training images where no folder is that of validation."""
    words: dict[str, str] = {}
    place = next(i for i, part in enumerate(made.layout["images"].split("/")) if "{split}" in part)
    before, _, behind = made.layout["images"].split("/")[place].partition("{split}")
    for of_name in images.values():
        part = of_name[0].relative_to(root).as_posix().split("/")[place]
        word = part[len(before) : len(part) - len(behind)]
        words.setdefault(ALIASES[word.casefold()], word)
    if "train" in words and "val" not in words:
        stated = {s: words.get(s, 0.15) for s in SPLITS if s in words or s == "val"}
        made.state("splits", stated, "by folder; no folder is that of validation, so a share of the training images")
