"""`Found`, the images of a data set and their masks, wherever its layout says that they lie."""

import difflib
import os
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from datamodules.checks.problems import coded, shown, some
from datamodules.files import FOLDER, files_by_name
from datamodules.layouts import lists
from datamodules.layouts.config import MASKS, read_layout
from datamodules.layouts.labels import Classes, read_layout_classes
from datamodules.layouts.patterns import Bound, check_pattern, find, matched
from datamodules.layouts.texts import brief

Files = dict[str, list[Path]]
ANNOTATION = ".json"


class Found:
    """The files of a data set, by its layout. Reads what `root` holds when it is asked for, once.

    Args:
        root: folder of the data, or a dataset.yaml elsewhere that names it
        given: keys of the layout that win over those of dataset.yaml; None leaves one out

    Raises ValueError for a layout that cannot be used, FileNotFoundError for files that it names and are not there.
    """

    def __init__(self, root: str | Path, **given: Any) -> None:
        self.root, self.folder, self.layout = read_layout(Path(root), given)
        for key in ("images", "masks") if self.layout.pairs is None else ():
            check_pattern(key, getattr(self.layout, key))
        if self.layout.splits is None and not self._has_homes():
            self.layout = replace(self.layout, splits=FOLDER)
        self.typed = str(root)  # as a command names it
        self.clashes: list[tuple[str, str]] = []  # images that the patterns give one mask
        self._digests: dict[Path, str] = {}

    @cached_property
    def classes(self) -> Classes:
        classes = read_layout_classes(self.layout, self.path, self.root / "classes.txt")
        pictures = "{class}" not in self.layout.masks and not self.annotated
        if isinstance(self.layout.classes, Mapping) and pictures and not classes.values and not classes.colours:
            raise coded(
                "E_LAYOUT",
                f"classes: nothing in the masks stands for {some(classes.names)}; state values, or colours in "
                "quotes, as YAML takes # for a comment: {a: '#000000', b: '#ff0000'}; or a list of names in the order "
                "of the labels",
            )
        if pictures and classes.unknown:
            near = difflib.get_close_matches(classes.unknown[0], classes.names, n=1)
            hint = f"; did you mean {shown(near[0])}?" if near else ""
            said = f"ignore: {brief(classes.unknown[0])} is no class, value or colour of the masks{hint}"
            raise coded("E_LAYOUT", said)
        listed = self.several and "{class}" not in self.layout.masks and not classes.stated
        if listed and len(classes.names) != 2:
            raise coded(
                "E_LAYOUT",
                f"classes: {self.layout.masks} has a file for each object, of what lies below and one class, and there "
                f"are {len(classes.names)} classes; state the values of each, or {{class}} in the pattern",
            )
        return classes

    def _has_homes(self) -> bool:
        """Whether folders or a column say the split of each image."""
        stated = self.layout.pairs
        if isinstance(stated, str):
            return os.path.isfile(self.path(stated)) and bool(self.table) and "split" in self.table[0]
        return stated is not None or "{split}" in self.layout.images

    @cached_property
    def table(self) -> list[dict[str, str]]:
        """The rows of the CSV of pairs; none where pairs are stated otherwise."""
        stated = self.layout.pairs
        return lists.read_table(self.path(stated)) if isinstance(stated, str) else []

    def path(self, named: str) -> Path:
        """A file or folder that the layout names: beside dataset.yaml, or else within the data."""
        if not isinstance(named, str) or PurePosixPath(named).is_absolute() or ".." in PurePosixPath(named).parts:
            raise coded("E_LAYOUT", f"expected a path within the data or beside dataset.yaml, got {named!r}")
        beside = self.folder / named
        return beside if os.path.lexists(beside) else self.root / named

    @cached_property
    def found(self) -> tuple[Files, Files, dict[str, str]]:
        """The files of patterns or pairs: of the images and of the masks by the name of the image, and `homes`.

        ValueError for a folder that cannot be read.
        """
        layout = self.layout
        if layout.pairs is not None:
            return self._pairs()
        images: Files = {}
        homes: dict[str, str] = {}
        by_key: dict[tuple[str, ...], str] = {}
        common = self._common()
        for path, bound in find(self.root, layout.images, self._words):
            if path in self._mask_files:  # data/{name}.png finds data/a_mask.png, too
                continue
            name = _name(bound)
            images.setdefault(name, []).append(path)
            if (other := by_key.setdefault(_key(bound, common), name)) != name and not self._one_file:
                self.clashes.append((other, name))
            if "split" in bound:
                homes[name] = self._folders[bound["split"].casefold()]
        masks: Files = {}
        if self._one_file:
            return images, self._of_coco(images), homes
        pictures = {path for paths in images.values() for path in paths}
        for path, bound in self._mask_files.items():
            if path not in pictures:
                name = by_key.get(_key(bound, common)) or self._shorter(path, bound, by_key, common) or _name(bound)
                masks.setdefault(name, []).append(path)
        return images, masks, homes

    @cached_property
    def images(self) -> Files:
        return files_by_name(self.root / "images") if self.layout.plain else self.found[0]

    @cached_property
    def masks(self) -> Files:
        return files_by_name(self.root / "masks") if self.layout.plain else self.found[1]

    @cached_property
    def homes(self) -> dict[str, str]:
        """The split of each image of which its folder or its line of pairs says one; none of folders without masks."""
        if self.layout.plain:
            return {}
        _, masks, homes = self.found
        labelled = {split for name, split in homes.items() if name in masks}
        return {name: split for name, split in homes.items() if split in labelled}

    @property
    def several(self) -> bool:
        """Whether an image has a mask for each object or class."""
        masks = self.layout.masks
        if self.layout.pairs is not None or masks.endswith(ANNOTATION):  # of polygons an image has one file
            return False
        return "{class}" in masks or "*" in masks.removesuffix(".*").replace("**/", "")

    @property
    def _one_file(self) -> bool:
        masks = self.layout.masks
        return masks.endswith(ANNOTATION) and "{name}" not in masks and "{number}" not in masks

    @property
    def indexed(self) -> bool:
        """Whether masks hold the labels themselves."""
        classes = self.classes
        return not (self.several or classes.values or classes.colours or classes.others or self.annotated)

    @property
    def annotated(self) -> bool:
        """Whether masks are polygons."""
        if self.layout.pairs is None:
            return self.layout.masks.endswith(ANNOTATION)
        return any(paths[0].suffix.lower() == ANNOTATION for paths in self.masks.values())

    @property
    def strict(self) -> bool:
        """Whether masks are 8-bit PNGs of the labels themselves, and nothing else."""
        return self.indexed and (self.layout.plain or self.layout.masks == MASKS)

    @cached_property
    def _folders(self) -> dict[str, str]:
        """The split of each folder that {split} may be."""
        stated = self.layout.splits
        if isinstance(stated, Mapping):
            return {str(word).casefold(): split for split, word in stated.items() if isinstance(word, str)}
        return lists.WORDS

    @cached_property
    def _words(self) -> dict[str, list[str]]:
        words = [*self.classes.words] if "{class}" in self.layout.masks else []
        # A folder of its own is found whatever its name, so that one that is no class is said.
        return {"split": [*self._folders], "class": [] if "{class}" in self.layout.masks.split("/") else words}

    @property
    def unknown_classes(self) -> dict[str, Path]:
        """Folders of masks whose name is no class, each with one of its files."""
        if "{class}" not in self.layout.masks:
            return {}
        files = dict(self._mask_files)
        last = self.layout.masks.rpartition("/")[2]
        if "{class}" in last and last != "{class}":  # whose files are found by the words of classes alone
            any_class = {**self._words, "class": []}
            pictures = {path for paths in self.images.values() for path in paths}
            names = {PurePosixPath(name).name for name in self.images}
            for path, bound in find(self.root, self.layout.masks, any_class):
                if path not in files and path not in pictures and (stem := _known_start(path.name, names)):
                    match = matched(last, path.name, {"name": stem}, any_class)
                    files |= {path: {**bound, **match}} if match else {}
        return {b["class"]: path for path, b in files.items() if b["class"] not in self.classes.words}

    def _common(self) -> set[str]:
        """The placeholders that tell which mask is of which image."""
        of_each = []
        for pattern in (self.layout.images, self.layout.masks):
            placeholders = {*re.findall(r"\{(\w+)\}", pattern)} - {"class"}
            of_each.append(placeholders | ({"tree"} if "**" in pattern else set()))
        return of_each[0] & of_each[1]

    def _pairs(self) -> tuple[Files, Files, dict[str, str]]:
        """Of a CSV of pairs, or of such lists by split."""
        stated, rows = self.layout.pairs, list[tuple[str, str, str, str]]()
        if isinstance(stated, str):
            path = self.path(stated)
            for number, row in enumerate(self.table, 2):
                if not {"image", "mask"} <= row.keys():
                    raise coded("E_LAYOUT", f"{shown(str(path))}: expected the columns image,mask, got {some(row, 6)}")
                where = f"{shown(str(path))} line {number}"
                rows.append((row["image"], row["mask"], row.get("split", ""), where))
        else:
            for split, name in (stated or {}).items():
                path = self.path(name)
                for number, line in enumerate(lists.list_of(path, split), 1):
                    columns = [column for column in re.split(r"[,;\t]|\s+", str(line)) if column]
                    where = f"{shown(str(path))} line {number}"
                    if len(columns) != 2:
                        raise coded(
                            "E_LAYOUT", f"{where}: expected an image and its mask, got {shown(str(line))[:80]!r}"
                        )
                    rows.append((*columns, split, where))  # type: ignore[arg-type]
        stems = [PurePosixPath(image).stem for image, *_ in rows]
        alone = len({*stems}) == len(stems)
        images: Files = {}
        masks: Files = {}
        homes: dict[str, str] = {}
        for (image, mask, split, where), stem in zip(rows, stems, strict=True):
            name = stem if alone else os.path.splitext(image)[0]
            for files, word in ((images, image), (masks, mask)):
                path = self._within(word, where)
                if path not in files.setdefault(name, []):
                    files[name].append(path)
            if split:
                home = lists.split_of(split, where)
                if homes.setdefault(name, home) != home:
                    raise coded("E_SPLIT_LEAK", f"{where}: {shown(name)} is in {homes[name]} already; leave it in one")
        return images, masks, homes

    def _shorter(self, path: Path, bound: Bound, by_key: Mapping[tuple[str, ...], str], common: set[str]) -> str | None:
        """The image whose name begins that of a mask such as `a_left_lung.png`, where the whole begins no image."""
        last = self.layout.masks.rpartition("/")[2]
        if "{name}" not in last:
            return None
        start = last.index("{name}") if "*" not in last[: last.index("{name}")] else 0
        for end in range(len(path.name), start, -1):
            name = unicodedata.normalize("NFC", path.name[start:end])
            asked = {**bound, "name": name}
            if (found := by_key.get(_key(asked, common))) is None or _goes_on(path.name, end):
                continue
            if (match := matched(last, path.name, {"name": name}, self._words)) is not None:
                bound.update({**match, "name": name})
                return found
        return None

    def _within(self, word: str, where: str) -> Path:
        parts = PurePosixPath(word.replace("\\", "/"))
        if not word or parts.is_absolute() or ".." in parts.parts:
            raise coded("E_LAYOUT", f"{where}: expected a path within the data, got {shown(word)[:80]!r}")
        if not os.path.lexists(path := self.root / parts):
            raise coded("E_LAYOUT", f"{where}: {shown(word)[:200]} is not there; correct or remove the line")
        return path

    @cached_property
    def _coco(self) -> dict[Path, dict[str, Any]]:
        """The drawings of each file of annotations, by the name of the image in it."""
        from datamodules.layouts.polygons import read_coco

        return {path: read_coco(path) for path in self._mask_files}

    @cached_property
    def _mask_files(self) -> dict[Path, Bound]:
        return dict(find(self.root, self.layout.masks, self._words))

    def _of_coco(self, images: Files) -> Files:
        """The file of annotations of each image that it names, by its path or by its last part."""
        places = {path.relative_to(self.root).as_posix(): name for name, paths in images.items() for path in paths}
        last: dict[str, set[str]] = {}
        for place, name in places.items():
            last.setdefault(PurePosixPath(place).name, set()).add(name)
        self._drawn: dict[str, Any] = {}
        masks: Files = {}
        for path, drawings in self._coco.items():
            for word, drawn in drawings.items():
                of_last = [name for name in last.get(PurePosixPath(word).name, ()) if self._near(path, name)]
                ends = [name for name in of_last if places_end_alike(word, images[name][0], self.root)]
                if len(ends) == 1:
                    masks.setdefault(ends[0], []).append(path)
                    self._drawn[ends[0]] = drawn
        return masks

    def _near(self, annotations: Path, name: str) -> bool:
        """Whether the image is of the split of this file, where both say one."""
        home = self._folders.get(name.partition("/")[0].casefold()) if "{split}" in self.layout.images else None
        bound = self._mask_files[annotations]
        return home is None or "split" not in bound or self._folders[bound["split"].casefold()] == home

    @cached_property
    def finder(self) -> lists.Finder:
        return lists.Finder(self.images, self.root)

    @property
    def usable(self) -> list[str]:
        """The images that have a mask."""
        return [name for name in self.images if name in self.masks]


def _name(bound: Bound) -> str:
    """The name of an image: its split, its folders and its name or number, as far as the pattern has them."""
    split = f"{bound['split']}/" if "split" in bound else ""
    words = [bound[key] for key in ("name", "number") if key in bound]
    return f"{split}{bound.get('tree', '')}{'-'.join(words)}"


def _key(bound: Bound, common: set[str]) -> tuple[str, ...]:
    found = []
    for placeholder in sorted(common):
        word = bound.get(placeholder, "")
        found.append(str(int(word)) if placeholder == "number" and word else word)
    return tuple(found)


def places_end_alike(word: str, path: Path, root: Path) -> bool:
    """Whether a path in a file can mean this image: the shorter of both ends the longer one."""
    own, parts = path.relative_to(root).as_posix().split("/"), word.replace("\\", "/").lstrip("/").split("/")
    common = min(len(own), len(parts))
    return own[-common:] == parts[-common:]


def _goes_on(text: str, end: int) -> bool:
    """Whether a number or a word goes on at this place: `1` is not the name in `10_a.png`."""
    pair = text[end - 1 : end + 1]
    return len(pair) == 2 and (pair.isdigit() or pair.isalpha())


def _known_start(text: str, names: set[str]) -> str | None:
    """The longest of the names that begins a file's name."""
    ends = (end for end in range(len(text), 0, -1) if text[:end] in names and not _goes_on(text, end))
    return next((text[:end] for end in ends), None)
