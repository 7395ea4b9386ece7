"""Labels from masks as they lie: indices, raw values, colours, a file for each object or class, polygons."""

import csv
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.checks.problems import coded, shown, some
from datamodules.files import FORMATS, decoded, read_classes
from datamodules.layouts.config import OTHERS, Layout
from datamodules.layouts.texts import brief

Colour = tuple[int, int, int]
Labels = NDArray[np.uint8]  # (H, W)

IGNORED = 255
MOST = 65535  # value of a mask
UNKNOWN = -1
HEX = re.compile(r"#([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})")
SPAN = re.compile(r"([0-9]{1,5})\s*-\s*([0-9]{1,5})")
LABELMAP = re.compile(r"(.+?):([0-9]{1,3}),([0-9]{1,3}),([0-9]{1,3}):[^:]*:[^:]*")
COLUMNS = {
    "name": ("name", "class", "class_name", "label"),
    "value": ("value", "pixel value", "id", "index"),
    "r": ("r", "red"),
    "g": ("g", "green"),
    "b": ("b", "blue"),
}
MASK_FORMATS = (*FORMATS, "GIF")  # which has no loss
FIX = "by a class or in ignore"


@dataclass(frozen=True)
class Classes:
    """The classes of a data set, and what stands for each of them in its masks.

    With neither values nor colours the masks hold the labels themselves.
    """

    names: list[str]
    values: dict[int, int] = field(default_factory=dict)  # label or IGNORED, by raw value
    colours: dict[Colour, int] = field(default_factory=dict)  # the same, by colour
    words: dict[str, int] = field(default_factory=dict)  # the same, by the name in annotations and in file names
    shown: dict[int, Colour] = field(default_factory=dict)  # the colour of a label, where one is stated
    others: bool = False  # whether what is none of these is unlabelled
    stated: bool = False  # whether values or colours are, or words, and not names alone in the order of the labels
    unknown: list[str] = field(default_factory=list)  # what `ignore` has and no class is called

    @cached_property
    def by_value(self) -> NDArray[np.int16]:
        """(65536,), the label of each value."""
        table = np.full(MOST + 1, IGNORED if self.others else UNKNOWN, dtype=np.int16)
        for value, label in self.values.items():
            table[value] = label
        return table

    @cached_property
    def by_colour(self) -> tuple[NDArray[np.int64], NDArray[np.int16]]:
        """The colours as numbers, sorted, and the label of each."""
        numbers = np.array([r << 16 | g << 8 | b for r, g, b in self.colours], dtype=np.int64)
        order = np.argsort(numbers)
        return numbers[order], np.array([*self.colours.values()], dtype=np.int16)[order]

    def background(self, layout: Layout) -> int:
        """The label of what no polygon and no mask of a class covers."""
        named = layout.background
        if named is not None:
            return self.names.index(named) if named in self.names else IGNORED
        plain = [name.strip("_").casefold() for name in self.names]
        return plain.index("background") if "background" in plain else IGNORED


def read_layout_classes(layout: Layout, path: Callable[[str], Path], default: Path) -> Classes:
    """The classes that a layout states; without any, those of the file `default`.

    `path` finds a file that the layout names. ValueError for what cannot be used, FileNotFoundError for a file that is
    not there.
    """
    stated = layout.classes
    if stated is None:
        names = read_classes(default, IGNORED)
        return _checked(Classes(names, words={name: i for i, name in enumerate(names)}), layout)
    if isinstance(stated, str):
        if not (file := path(stated)).is_file():
            raise coded(
                "E_LAYOUT", f"classes: {shown(stated)} is not there; name the file, or list the names in brackets"
            )
        stated = _of_file(file)
    if isinstance(stated, Sequence) and not isinstance(stated, Mapping):
        names = [_name(name) for name in stated]
        return _checked(Classes(names, words={name: i for i, name in enumerate(names)}), layout)
    if not isinstance(stated, Mapping):
        raise _error("classes must be a list of names, or names with their values or colours", stated)
    stated, unlabelled, unknown = _without_ignored(stated, layout)
    made = Classes([_name(name) for name in stated], stated=True, unknown=unknown)
    for spec in unlabelled:
        _enter(made, spec, IGNORED, "ignore")
    made.words.update({name: label for label, name in enumerate(made.names)})
    for label, (name, spec) in enumerate(stated.items()):
        if isinstance(spec, Mapping):
            if not spec.keys() <= {"values", "color"}:
                raise _error(f"classes: {name} takes values and color", sorted(map(str, spec)))
            if spec.get("color") is not None:
                made.shown[label] = _colour(spec["color"], f"classes: color of {name}")
            spec = spec.get("values")
        for one in _listed(spec):
            _enter(made, one, label, str(name))
    return _checked(made, layout)


def _without_ignored(stated: Mapping[Any, Any], layout: Layout) -> tuple[dict[Any, Any], list[Any], list[str]]:
    """The classes but those that `ignore` has, what stands for these in masks, and words in it of no class."""
    ignored = {_folded(spec) for spec in (_listed(layout.ignore) if layout.ignore != OTHERS else [])}
    kept, dropped, used = dict[Any, Any](), list[Any](), set[Any]()
    for name, spec in stated.items():
        own = {_folded(name)} | ({_folded(spec)} if isinstance(spec, int | str) else set())
        if found := own & ignored:
            used |= found
            dropped += [part for part in _listed(spec) if not isinstance(part, Mapping)]
        else:
            kept[name] = spec
    words = [w for w in ignored - used if isinstance(w, str) and not (HEX.fullmatch(w) or re.fullmatch(r"[0-9 -]+", w))]
    return kept, dropped, sorted(words)


def _folded(spec: Any) -> Any:
    return spec.strip().casefold() if isinstance(spec, str) else spec if isinstance(spec, int) else None


def _enter(made: Classes, spec: Any, label: int, name: str) -> None:
    """Notes that a value, a range, a colour or a word of annotations is this label."""
    where = f"{name!r}" if label != IGNORED else "ignore"
    if isinstance(spec, bool) or not isinstance(spec, int | str):
        raise _error(
            f"classes: of {where} expected a value such as 3, a range such as '0-127', a colour such as '#ff0000' in "
            "quotes, or a word of the annotations",
            spec,
        )
    if isinstance(spec, str) and re.fullmatch(r"[0-9]{1,5}", spec):
        spec = int(spec)  # in quotes
    if isinstance(spec, int) or SPAN.fullmatch(spec):
        low, high = (spec, spec) if isinstance(spec, int) else map(int, SPAN.fullmatch(spec).groups())  # type: ignore[union-attr]
        if not 0 <= low <= high <= MOST:
            raise _error(f"classes: values of {where} must be 0 to {MOST}, the smaller first", spec)
        for value in range(low, high + 1):
            if made.values.setdefault(value, label) != label:
                raise coded("E_LAYOUT", f"classes: the value {value} stands for two classes, one of them {where}")
        return
    if spec.startswith("#"):
        colour = _colour(spec, f"classes: {where}")
        if made.colours.setdefault(colour, label) != label:
            raise coded("E_LAYOUT", f"classes: the colour {spec} stands for two classes, one of them {where}")
        made.shown.setdefault(label, colour)
    elif made.words.setdefault(unicodedata.normalize("NFC", spec), label) != label:
        raise coded("E_LAYOUT", f"classes: the word {shown(spec)!r} stands for two classes, one of them {where}")


def _checked(made: Classes, layout: Layout) -> Classes:
    """With what is ignored; ValueError where classes and values do not go together."""
    if not 2 <= len(made.names) <= IGNORED:
        raise coded("E_LAYOUT", f"classes: expected 2 to {IGNORED} classes, found {len(made.names)}")
    if doubled := sorted({name for name in made.names if made.names.count(name) > 1}):
        raise coded("E_LAYOUT", f"classes: every class needs its own name, found more than once: {some(doubled)}")
    if layout.background not in (None, "ignore", *made.names):
        known = some(made.names, 10)
        raise coded("E_LAYOUT", f"background must be one of {known}, or ignore, got {shown(str(layout.background))!r}")
    for spec in [] if layout.ignore in (None, OTHERS) else _listed(layout.ignore):
        if not made.values and not made.colours and isinstance(spec, int) and 0 <= spec < len(made.names):
            raise coded("E_LAYOUT", f"ignore: {spec} is the label of the class {made.names[spec]!r}")
        _enter(made, spec, IGNORED, "ignore")
    made.shown.pop(IGNORED, None)
    labels = {*made.values.values()} - {IGNORED}
    if made.values and not labels and not made.colours:  # a list of names, and more values that are ignored
        made.values.update({label: label for label in range(len(made.names))})
        made.values.setdefault(IGNORED, IGNORED)
    of_colours = {*made.colours.values()} - {IGNORED}
    if labels and of_colours:
        raise coded("E_LAYOUT", "classes: state values of all classes, or colours of all, as masks hold one of them")
    if (labels or of_colours) and (lacking := sorted({*range(len(made.names))} - (labels | of_colours))):
        names = some([made.names[label] for label in lacking])
        quoted = "; colours need quotes, as YAML takes # for a comment"
        raise coded("E_LAYOUT", f"classes: nothing in the masks stands for {names}{quoted}")
    if layout.ignore == OTHERS:
        if not labels and not of_colours:
            made.values.update({label: label for label in range(len(made.names))})
        return replace(made, others=True)
    return made


def _of_file(path: Path) -> Any:
    """Classes of a file: lines as of classes.txt, a CSV with name and r,g,b or a value, or CVAT's labelmap.txt."""
    text, name = decoded(path, str(path)), shown(str(path))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found = [LABELMAP.fullmatch(line) for line in lines if not line.startswith("#")]
    if found and all(found):
        return _unique([(m[1], "#" + bytes(int(m[i]) % 256 for i in (2, 3, 4)).hex()) for m in found if m], name)
    rows = list(csv.reader(StringIO(text), skipinitialspace=True))
    head = [word.strip().casefold() for word in rows[0]] if rows else []
    columns = {key: head.index(word) for key, words in COLUMNS.items() for word in reversed(words) if word in head}
    if "name" in columns and ({"r", "g", "b"} <= columns.keys() or "value" in columns):
        made = []
        for number, row in enumerate(rows[1:], 2):
            if any(word.strip() for word in row):
                made.append(_of_row(row, columns, f"{name} line {number}"))
        return _unique(made, name)
    if path.suffix.lower() in (".csv", ".json", ".yaml", ".yml"):
        said = f"{name}: classes are a text with a name a line, or a CSV with the columns name,r,g,b or value,name; got"
        raise coded("E_LAYOUT", f"{said} the first line {brief(lines[0] if lines else '')}")
    return read_classes(path, IGNORED)


def _of_row(row: Sequence[str], columns: Mapping[str, int], where: str) -> tuple[str, int | str]:
    try:
        if "r" in columns:
            colour = bytes(int(row[columns[key]]) for key in "rgb")
            return row[columns["name"]].strip(), f"#{colour.hex()}"
        return row[columns["name"]].strip(), int(row[columns["value"]])
    except (ValueError, IndexError):
        wanted = "name,r,g,b with colours of 0 to 255" if "r" in columns else "a whole number and a name"
        raise _error(f"{where}: expected {wanted}", list(row)) from None


def _unique(made: Sequence[tuple[str, Any]], name: str) -> dict[str, Any]:
    if doubled := [word for word, _ in made if [other for other, _ in made].count(word) > 1]:
        raise coded("E_LAYOUT", f"{name}: {brief(doubled[0])} stands twice; leave one")
    return dict(made)


def _listed(spec: Any) -> list[Any]:
    return [] if spec is None else list(spec) if isinstance(spec, list | tuple) else [spec]


def _name(name: Any) -> str:
    if not isinstance(name, str) or not name.strip() or any(not c.isprintable() for c in name):
        raise _error("classes: a name must be a text (YAML reads yes, no and numbers otherwise: quote them)", name)
    return unicodedata.normalize("NFC", name.strip())


def _colour(spec: Any, where: str) -> Colour:
    found = HEX.fullmatch(spec) if isinstance(spec, str) else None
    if found is None:
        raise _error(f"{where}: expected a colour such as '#ff0000' in quotes", spec)
    return int(found[1], 16), int(found[2], 16), int(found[3], 16)


def _error(expected: str, got: Any) -> ValueError:
    return coded("E_LAYOUT", f"{expected}, got {brief(got)}")


def labels_of(mask: Image.Image, classes: Classes, name: str) -> Labels:
    """(H, W), by the values or the colours of the classes; ValueError for one that no class has."""
    if classes.colours:
        pixels = np.asarray(mask.convert("RGB"), dtype=np.int64)
        numbers = pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]
        known, labels = classes.by_colour
        place = np.searchsorted(known, numbers).clip(max=len(known) - 1)
        missing = IGNORED if classes.others else UNKNOWN
        found = np.where(known[place] == numbers, labels[place], np.int16(missing))
        if (found < 0).any():
            raise _unknown(name, numbers[found < 0], "colour", lambda number: f"#{number:06x}", found.size)
        return found.astype(np.uint8)
    values = raw_values(mask, name)
    if int(values.max(initial=0)) > MOST or int(values.min(initial=0)) < 0:
        raise coded("E_MASK_MODE", f"{name} holds values outside of 0 to {MOST}; save it with 16 bits")
    found = classes.by_value[values]
    if (found < 0).any():
        raise _unknown(name, values[found < 0].astype(np.int64), "value", str, found.size)
    return found.astype(np.uint8)


def raw_values(mask: Image.Image, name: str) -> NDArray[Any]:
    """(H, W), the numbers in a mask; those of RGB are its grey."""
    if mask.mode in ("P", "L", "1"):
        return np.asarray(mask, dtype=np.uint8)
    if mask.mode in ("I", "I;16", "I;16B", "I;16L"):
        return np.asarray(mask)
    if mask.mode in ("RGB", "RGBA", "LA"):
        pixels = np.asarray(mask.convert("RGB"))
        if (pixels == pixels[..., :1]).all():
            return pixels[..., 0]
        colours, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
        listed = [f"'#{bytes(colours[i].tolist()).hex()}'" for i in np.argsort(-counts)]
        raise coded(
            "E_MASK_MODE",
            f"{name} holds RGB colours; state for each class its colour in dataset.yaml: there are {some(listed, 12)}",
        )
    raise coded("E_MASK_MODE", f"{name} holds pixels of mode {mask.mode}; save it as 8-bit or 16-bit PNG")


def _unknown(name: str, found: NDArray[np.int64], what: str, told: Callable[[int], str], pixels: int) -> ValueError:
    values, counts = np.unique(found, return_counts=True)
    listed = some([told(int(values[i])) for i in np.argsort(-counts, kind="stable")], 8)
    share = 100 * counts.sum() / pixels
    few = "; so many in few pixels are smoothed borders: ignore: others leaves them out" if len(values) > 8 else ""
    return coded(
        "E_LABEL_RANGE",
        f"{name} has the {what}{'s'[: len(values) - 1]} {listed} in {share:.2g} % of its pixels, which no class "
        f"has; name each {what} {FIX}{few}",
    )


def colours_of(mask: Image.Image, values: Sequence[int]) -> dict[int, Colour]:
    """The colour of each of these values in the palette of a mask; none without one."""
    flat = (mask.getpalette() or []) if mask.mode == "P" else []
    return {i: (flat[3 * i], flat[3 * i + 1], flat[3 * i + 2]) for i in values if len(flat) >= 3 * i + 3}


def merged(parts: Sequence[NDArray[np.int16]], below: int) -> Labels:
    """(H, W) of masks of one size, a file each, UNKNOWN where they have nothing: the class that is later is seen."""
    whole = np.maximum.reduce(parts)
    return np.where(whole == UNKNOWN, below, whole).astype(np.uint8)


def object_mask(mask: Image.Image, label: int, name: str) -> NDArray[np.int16]:
    """(H, W), `label` where a mask of one object or class is neither black nor transparent, UNKNOWN elsewhere.

    ValueError for one of more than two values.
    """
    clear: NDArray[np.bool_] | None = None
    if mask.mode == "P":  # its colours count: a writer may give white the index 0
        clear = np.asarray(mask.convert("RGBA").getchannel("A")) == 0
        values = np.asarray(mask.convert("RGB")).max(axis=2)
    else:
        clear = np.asarray(mask.getchannel("A")) == 0 if mask.mode in ("RGBA", "LA") else None
        values = raw_values(mask, name)
    values = values if clear is None else np.where(clear, 0, values)
    found = np.unique(values)
    if len(found) > 2 or (len(found) == 2 and found[0] != 0):
        raise coded(
            "E_MASK_MODE",
            f"{name} holds {len(found)} values, {some(map(str, found.tolist()), 5)}; a mask of one object or class "
            "holds 0 and one other: save it as np.where(mask > 127, 255, 0)",
        )
    return np.where(values > 0, label, UNKNOWN).astype(np.int16)
