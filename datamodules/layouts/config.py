"""`Layout`, where a data set keeps its files and what they mean: the keys of dataset.yaml, and flags of their names."""

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

from datamodules.checks.problems import coded, shown
from datamodules.files import MAX_PIXELS, readable
from datamodules.layouts.lists import split_of
from datamodules.layouts.pixels import CHANNELS
from datamodules.layouts.texts import brief, read_keys

FILE = "dataset.yaml"
IMAGES, MASKS = "images/{name}.*", "masks/{name}.*"
LONGEST = 255  # bytes of a name on most disks
OTHERS = "others"  # of `ignore`: every value that no class has


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the files of a data set lie and what they hold; paths are relative to its root, with forward slashes.

    In patterns `{name}` stands for the name of an image within one folder, and `{number}` for one that is compared as
    a number. `{split}` is the folder of a split and `{class}` that of a class; `*` are any letters, `**` any folders.

    Args:
        images: pattern of the image files
        masks: pattern of the masks; several files an image, or a file of polygons (LabelMe, Supervisely, COCO)
        pairs: CSV file "image,mask[,split][,group]" of paths, or such lists by split, instead of the two patterns
        classes: names in the order of their labels, names with their values or colours in the masks, or a file of them
        ignore: values or colours of unlabelled pixels, or "others" for all that no class has
        background: class of pixels that no polygon and no mask of a class covers; the one named background by default
        splits: folder or file of the lists, or by split a list, a folder's name or a share; splits/ without it
        group_by: regular expression that tells the group of an image in its name, instead of groups.csv
        channels: rgb, grey, rgba or all bands; without it 8-bit RGB and grey alone are taken, as rgb
        value_range: the two values that become 0 and 1; needed for images of 16 bits and floats
        max_pixels: the most that an image may have
        note: a sentence on the data for reports
    """

    images: str = IMAGES
    masks: str = MASKS
    pairs: str | Mapping[str, str] | None = None
    classes: Any = None
    ignore: Any = None
    background: str | None = None
    splits: Any = None
    group_by: str | None = None
    channels: str | None = None
    value_range: tuple[float, float] | None = None
    max_pixels: int = MAX_PIXELS
    note: str = ""

    def __post_init__(self) -> None:
        for name in ("images", "masks"):
            _relative(name, getattr(self, name))
        for name in ("background", "group_by"):
            if not isinstance(getattr(self, name), str | None):
                raise _error(name, "a text", getattr(self, name))
        if not isinstance(self.note, str) or len(self.note) > 1000:
            raise _error("note", "a text of at most 1,000 letters", self.note)
        if self.channels is not None and self.channels not in CHANNELS:
            raise _error("channels", f"one of {', '.join(CHANNELS)}", self.channels)
        if isinstance(self.max_pixels, bool) or not isinstance(self.max_pixels, int) or self.max_pixels < 1:
            raise _error("max_pixels", "a whole number above 0", self.max_pixels)
        if self.value_range is not None:
            object.__setattr__(self, "value_range", _range(self.value_range))
        if isinstance(self.splits, Mapping):
            named = {split_of(str(word), "splits"): of for word, of in self.splits.items()}
            object.__setattr__(self, "splits", named)
        if self.pairs is not None:  # which name the files instead of the patterns
            object.__setattr__(self, "images", IMAGES)
            object.__setattr__(self, "masks", MASKS)
        if isinstance(self.pairs, Mapping):
            for path in self.pairs.values():
                _relative("pairs", path)
        elif self.pairs is not None:
            _relative("pairs", self.pairs)

    @property
    def plain(self) -> bool:
        """Whether files lie in images/ and masks/, where each has to be part of the set."""
        return (self.images, self.masks, self.pairs) == (IMAGES, MASKS, None)


KEYS = tuple(field.name for field in fields(Layout))


def read_layout(root: Path, given: Mapping[str, Any]) -> tuple[Path, Path, Layout]:
    """The folder of the data, that of dataset.yaml, and the layout; what is `given`, but None, wins over the file.

    `root` is the folder of the data, or a YAML file elsewhere that names it as `root`. ValueError for a file or a value
    that cannot be used; FileNotFoundError for a folder that is not there.
    """
    with readable(f"the data folder {shown(str(root))}"):
        file = root if root.suffix.lower() in (".yaml", ".yml") and root.is_file() else root / FILE
        stated = file.is_file()
    given = {name: value for name, value in given.items() if value is not None}
    if not stated:
        return root, root, _layout("--data.", given)
    content = _content(file)
    folder = file.parent
    if (named := content.pop("root", None)) is not None:
        if not isinstance(named, str) or not os.path.isdir(file.parent / named):
            raise FileNotFoundError(
                f"{shown(str(file))}: root must be the folder of the data, from here or in full, got {brief(named)}"
            )
        folder = file.parent / named
    elif file == root and file.name != FILE:
        raise _layout_error(f"{shown(str(file))}: state the folder of the data as root")
    if {"images", "masks"} & given.keys() and "pairs" not in given:
        content.pop("pairs", None)
    layout = _layout(f"{shown(str(file))}: ", content)
    try:
        return folder, file.parent, replace(layout, **given)
    except ValueError as error:
        raise _layout_error(f"--data.{error}") from None


def _content(file: Path) -> dict[str, Any]:
    content = read_keys(file)
    if not isinstance(content, dict):
        raise _layout_error(
            f"{shown(str(file))} must have keys such as images, masks and classes, got {brief(content)}"
        )
    if unknown := [key for key in content if key not in (*KEYS, "root")]:
        near = difflib.get_close_matches(str(unknown[0]), KEYS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the keys are root, {', '.join(KEYS)}"
        raise _layout_error(f"{shown(str(file))}: {brief(unknown[0])} is no key; {hint}")
    return {key: value for key, value in content.items() if value is not None}


def _layout(where: str, values: Mapping[str, Any]) -> Layout:
    try:
        return Layout(**values)
    except ValueError as error:
        raise _layout_error(f"{where}{error}") from None


def _range(value: Any) -> tuple[float, float]:
    numbers = [n for n in value if isinstance(n, int | float)] if isinstance(value, list | tuple) else []
    try:
        low, high = map(float, numbers)
    except (ValueError, OverflowError):
        low = high = 0.0
    if not isinstance(value, list | tuple) or len(value) != 2 or not -float("inf") < low < high < float("inf"):
        raise _error("value_range", "two numbers, the smaller first, such as [0, 4095]", value)
    return low, high


def _relative(name: str, path: Any) -> None:
    if not isinstance(path, str) or not path.strip():
        raise _error(name, "a path within the data, such as images/{name}.jpg", path)
    parts = PurePosixPath(path).parts
    if PurePosixPath(path).is_absolute() or ".." in parts or "\\" in path:
        raise _error(name, "a path within the data, with forward slashes and without '..'", path)
    if any(len(part.encode(errors="surrogateescape")) > LONGEST or "\0" in part for part in parts):
        raise _error(name, f"a path whose parts have at most {LONGEST} bytes", path)


def _error(name: str, expected: str, got: Any) -> ValueError:
    return ValueError(f"{name} must be {expected}, got {brief(got)}")


def _layout_error(said: str) -> ValueError:
    return coded("E_LAYOUT", said)
