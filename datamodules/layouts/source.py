"""`Source`, a data set as it lies: its images, masks, splits, classes and groups, and how each of them is read."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ImageOps

from datamodules.checks.problems import Problem, coded, shown
from datamodules.files import (
    SPLITS,
    decode,
    depth,
    files_by_name,
    has_groups,
    read_bytes,
    read_groups,
    read_image,
    read_mask,
    short,
)
from datamodules.layouts import lists
from datamodules.layouts.config import FILE, KEYS, Layout
from datamodules.layouts.found import ANNOTATION, Found
from datamodules.layouts.labels import (
    IGNORED,
    MASK_FORMATS,
    UNKNOWN,
    Classes,
    Colour,
    Labels,
    colours_of,
    labels_of,
    merged,
    object_mask,
)
from datamodules.layouts.pixels import bands_of, read_channels
from datamodules.layouts.texts import brief
from datamodules.splitting import groups_by, joined


class Source(Found):
    """A data set on the disk: its files, and what is read of them.

    Raises as `Found`; each of its methods ValueError for a file that cannot be read.
    """

    @property
    def splits(self) -> dict[str, list[str]]:
        """The names in each split that there is; a line that means no image stays as it is written.

        ValueError for a list that cannot be read.
        """
        found, problems = self.read_splits
        if problems:
            raise coded(problems[0].code, problems[0].said)
        return found

    @cached_property
    def read_splits(self) -> tuple[dict[str, list[str]], list[Problem]]:
        """`splits` whose lists can be read, and what is wrong with the others."""
        problems: list[Problem] = []
        raw: dict[str, list[Any]] = {}
        shares: dict[str, float] = {}
        stated = self.layout.splits
        for split, read in self._lists(shares).items():
            try:
                raw[split] = read()
                if odd := [line for line in raw[split] if not isinstance(line, str | int)]:
                    said = f"{self.listing(split)} has {brief(odd[0])}, and a line is a name: put it in quotes"
                    raise coded("E_LAYOUT", said)
            except ValueError as error:
                problems.append(Problem.of(error))
        raw = {split: lines for split, lines in raw.items() if all(isinstance(line, str | int) for line in lines)}
        strict = self.layout.plain and isinstance(stated, str)
        named = {
            split: [str(line) if strict else self.finder(line) or str(line) for line in raw[split]]
            for split in SPLITS
            if split in raw
        }
        if not shares or problems or not self.usable:
            return named, problems
        try:
            return lists.shared_out(named, shares, self.usable, self._grouped(self.usable)), []
        except ValueError as error:
            return named, [Problem("E_LAYOUT", str(error))]

    def _lists(self, shares: dict[str, float]) -> dict[str, Callable[[], list[Any]]]:
        """What reads the list of each split; those that are stated as `shares` are put there."""
        stated = self.layout.splits
        if isinstance(stated, str) and stated.strip():
            path = self.path(stated)
            if os.path.isdir(path):
                there = {split: of for split, of in self.split_files.items() if of.exists()}
                return {split: partial(lists.list_of, of, split) for split, of in there.items()}
            if os.path.exists(path):
                of_file = (lists.table_lists if path.suffix.lower() == ".csv" else lists.keyed_lists)(path)
                return {split: partial(list, names) for split, names in of_file.items()}
            return {}
        if stated is None:
            return {split: partial(self._at_home, split) for split in SPLITS if split in {*self.homes.values()}}
        if not isinstance(stated, Mapping):
            raise coded("E_LAYOUT", f"splits must be a folder, a file, or lists by split, got {brief(stated)}")
        found: dict[str, Callable[[], list[Any]]] = {}
        for split, spec in stated.items():
            if isinstance(spec, int | float) and not isinstance(spec, bool):
                shares[split] = min(float(min(spec, 10)), 10.0)
            elif isinstance(spec, list):
                found[split] = partial(list, spec)
            elif isinstance(spec, str) and "{split}" in self.layout.images:
                found[split] = partial(self._at_home, split)
            elif isinstance(spec, str):
                found[split] = partial(lists.list_of, self._there(spec), split)
            else:
                raise coded("E_LAYOUT", f"splits: {split} must be a list, a file or a share, got {brief(spec)}")
        return found

    def _at_home(self, split: str) -> list[Any]:
        return [name for name, home in self.homes.items() if home == split]

    @property
    def shares(self) -> bool:
        """Whether a split is a share of the images."""
        stated = self.layout.splits
        return isinstance(stated, Mapping) and any(isinstance(of, int | float) for of in stated.values())

    @property
    def split_files(self) -> dict[str, Path]:
        """The files of the lists, where the layout names a folder of them."""
        stated = self.layout.splits
        if not isinstance(stated, str) or not os.path.isdir(folder := self.path(stated)):
            return {}
        if self.layout.plain:
            return {s: folder / f"{s}.txt" for s in SPLITS if os.path.lexists(folder / f"{s}.txt")}
        return lists.lists_in(folder)

    def _there(self, named: str) -> Path:
        path = self.path(named)
        if not os.path.isfile(path):
            raise coded(
                "E_NO_SPLITS",
                f"splits: {shown(named)} is not there, neither beside dataset.yaml nor in {shown(str(self.root))}",
            )
        return path

    @property
    def scored(self) -> str:
        """The split that final scores are of: val where the data have no test split."""
        return "test" if "test" in self.stated else "val"

    @property
    def stated(self) -> set[str]:
        """The splits that there are, as far as their lists need not be read to know."""
        if isinstance(self.layout.splits, Mapping):
            return {*self.layout.splits}
        if files := self.split_files:
            return {split for split, path in files.items() if path.exists()}
        return {*self.splits}

    def listing(self, split: str) -> str:
        """What a message calls the list of a split."""
        files = self.split_files
        if split in files:
            stated = str(self.layout.splits).strip("/")
            return f"{shown(stated)}/{files[split].name}"
        return f"the {split} split"

    @property
    def has_groups(self) -> bool:
        return self.layout.group_by is not None or has_groups(self.root) or self._group_column

    @property
    def _group_column(self) -> bool:
        return bool(self.table) and "group" in self.table[0]

    def groups(self, needed: Sequence[str], *, verified: bool = False) -> tuple[dict[str, str], list[Problem]]:
        """The group of images by name, and what is wrong with them; the `needed` ones must have one.

        Lines of images that are not there are no problem of data that are `verified`.
        """
        if self.layout.group_by is not None:
            try:
                return groups_by(self.layout.group_by, self.usable), []
            except ValueError as error:
                return {}, [Problem("E_GROUPS", str(error).replace("--group-by", "group_by", 1))]
        if self._group_column:
            named = {self.finder(row["image"]): row["group"] for row in self.table}
            return {str(name): group or str(name) for name, group in named.items() if name}, []
        if not has_groups(self.root):
            return {}, []
        return read_groups(self.root, needed, None if verified else self.images)

    def _grouped(self, names: Sequence[str]) -> dict[str, str]:
        groups, problems = self.groups(())
        if problems:
            raise coded(problems[0].code, problems[0].said)
        return joined({name: groups.get(name, name) for name in names}, self._twins(names))

    def _twins(self, names: Sequence[str]) -> dict[str, str]:
        """The same word for images whose files are equal, for one split; only those of one size are read."""
        sizes: dict[int, list[str]] = {}
        for name in names:
            try:
                sizes.setdefault(os.stat(self.images[name][0]).st_size, []).append(name)
            except OSError:  # which reading it meets again
                continue
        twins = {name: name for name in names}
        for alike in sizes.values():
            for name in alike if len(alike) > 1 else ():
                try:
                    twins[name] = self.digest(self.images[name][0])
                except (ValueError, OSError):
                    continue
        return twins

    @property
    def as_read(self) -> bool:
        """Whether images are 8-bit RGB or grey, as without any choice."""
        return self.layout.channels is None and self.layout.value_range is None

    def image(self, path: Path) -> NDArray[np.float32]:
        """(C, H, W) in [0, 1], turned upright."""
        if self.as_read:
            pixels = read_image(path, self.layout.max_pixels).transpose(2, 0, 1)
            return np.divide(pixels, np.float32(255), dtype=np.float32, order="C")
        stated = self.layout
        return read_channels(
            path,
            stated.channels or "rgb",
            stated.value_range,
            stated.max_pixels,
            drop_alpha=stated.channels is not None,
        )

    def labels(self, name: str) -> Labels:
        """(H, W) of the image `name`, 255 where it is unlabelled; ValueError for what no class has."""
        paths = self.masks[name]
        if self.strict:
            return read_mask(paths[0], self.layout.max_pixels)
        if paths[0].suffix.lower() == ANNOTATION:
            return self._polygons(name, paths[0])
        parts = [self._part(path) for path in paths]
        if any(part.shape != parts[0].shape for part in parts):
            odd = next(path for path, part in zip(paths, parts, strict=True) if part.shape != parts[0].shape)
            raise coded("E_SIZE_MISMATCH", f"{short(odd)} is of another size than {short(paths[0])}, of one image")
        if not self.several:
            return parts[0].astype(np.uint8)
        if self.classes.stated and "{class}" not in self.layout.masks:
            parts = [np.where(part == self._below, np.int16(UNKNOWN), part) for part in parts]
        return merged(parts, self._below)

    def word(self, path: Path) -> str:
        """The class that the place of a mask says; empty where it says none."""
        return self._mask_files[path].get("class", "") if "{class}" in self.layout.masks else ""

    def digest(self, path: Path) -> str:
        """SHA-256 of a file; a file of annotations, which has many images, is read once."""
        if path not in self._digests:
            self._digests[path] = sha256(read_bytes(path)).hexdigest()
        return self._digests[path]

    def mask_colours(self, path: Path) -> dict[int, Colour]:
        """The colour of each value that a mask with a palette holds; none without one."""
        mask = decode(path, read_bytes(path), self.layout.max_pixels)
        return colours_of(mask, np.unique(np.asarray(mask)).tolist()) if mask.mode == "P" else {}

    @cached_property
    def _below(self) -> int:
        """The label of what is not an object: of masks by class the background, else the first class."""
        below = self.classes.background(self.layout)
        stated = "{class}" in self.layout.masks or self.layout.background is not None
        return below if stated or below != IGNORED else 0

    def _part(self, path: Path) -> NDArray[np.int16]:
        """(H, W), the labels of one file."""
        data = read_bytes(path)
        image = decode(path, data, self.layout.max_pixels, MASK_FORMATS)
        if image.format == "JPEG" and not {*range(256)} <= self.classes.values.keys():
            raise coded(
                "E_LOSSY_MASK",
                f"{short(path)} is a JPEG file, whose compression changes labels; take the masks as PNG from where "
                "they were made",
            )
        if getattr(image, "is_animated", False):
            raise coded("E_MULTIFRAME", f"{short(path)} holds several pictures; save one mask a file")
        if image.format == "PNG" and image.mode == "L" and data[24] < 8:
            raise coded(
                "E_MASK_MODE",
                f"{short(path)} is grey with {data[24]} bits a pixel, which readers stretch to 0-255; save it "
                "with 8 bits",
            )
        if image.mode in ("RGB", "RGBA") and depth(image, data)[1] > 8:
            raise coded("E_MASK_MODE", f"{short(path)} holds colours of 16 bits; save it with 8 bits a channel")
        mask = ImageOps.exif_transpose(image)
        if image.format == "GIF" and not self.several:
            mask = mask.convert("RGB")  # a writer numbers its colours anew
        if "{class}" in self.layout.masks:
            label = self.classes.words.get(self.word(path))
            if label is None:
                raise coded("E_LABEL_RANGE", f"{short(path)}: {shown(self.word(path))} is no class")
            return object_mask(mask, label, short(path))
        if self.several and not self.classes.stated:
            label = self._below if self._below in (0, 1) else 0
            return object_mask(mask, 1 - label, short(path))
        if not self.classes.values and not self.classes.colours and not self.classes.others:
            return labels_of(mask, self._indices, short(path)).astype(np.int16)
        return labels_of(mask, self.classes, short(path)).astype(np.int16)

    @cached_property
    def _indices(self) -> Classes:
        """The classes with their labels as values."""
        names = self.classes.names
        return Classes(names, {**{label: label for label in range(len(names))}, 255: 255})

    def _polygons(self, name: str, path: Path) -> Labels:
        from datamodules.layouts.polygons import rasterise, read_annotation

        drawn = self._drawn[name] if self._one_file else read_annotation(path)
        words = self.classes.words
        if self.classes.others:
            words = {shape.name: IGNORED for shape in drawn.shapes} | words
        return rasterise(drawn, words, self.classes.background(self.layout), short(path))

    @cached_property
    def palette(self) -> list[Colour]:
        """The colours that the layout states, or those stored in the first mask; none where neither has them."""
        count = len(self.classes.names)
        if len(self.classes.shown) == count:
            return [self.classes.shown[label] for label in range(count)]
        if not self.strict:
            return []
        try:
            masks = files_by_name(self.root / "masks") if self.layout.plain else self.masks
            for paths in islice(masks.values(), 1):
                flat = decode(paths[0], read_bytes(paths[0]), self.layout.max_pixels).getpalette() or []
                if len(flat) >= 3 * count:
                    return [(flat[3 * i], flat[3 * i + 1], flat[3 * i + 2]) for i in range(count)]
        except ValueError:  # verify() names the file together with all others that cannot be read
            pass
        return []

    @property
    def in_channels(self) -> int:
        """Of the images, 3 unless the layout says otherwise; of all bands as many as the first image has."""
        choice = self.layout.channels
        if choice == "all":
            for paths in islice(self.images.values(), 1):
                return bands_of(paths[0]).count
        return {"grey": 1, "rgba": 4}.get(choice or "rgb", 3)

    @property
    def reads(self) -> dict[str, Any]:
        """How an image becomes numbers: its channels, the values that become 0 and 1, and the bits of one."""
        stated, first = self.layout, next(iter(self.images.values()), None)
        return {
            "channels": stated.channels or "rgb",
            "value_range": None if stated.value_range is None else [float(value) for value in stated.value_range],
            "bits": 8 if self.as_read or first is None else bands_of(first[0]).bits,
        }

    @cached_property
    def reading(self) -> dict[str, Any]:
        """What decides which numbers become of the files, beside their bytes; nothing without a layout."""
        classes, made = self.classes, dict[str, Any]()
        if self.layout.channels not in (None, "rgb") or self.layout.value_range:
            made |= {"channels": self.layout.channels or "rgb", "value_range": self.layout.value_range}
        if not self.strict:
            made["values"] = sorted(classes.values.items())
            made["colours"] = sorted((f"{r:02x}{g:02x}{b:02x}", label) for (r, g, b), label in classes.colours.items())
            made["words"] = sorted(classes.words.items())
            made |= {"others": classes.others, "background": classes.background(self.layout)}
            made["several"] = self.layout.masks if self.several else None
        return made

    def named_files(self) -> Iterator[Path]:
        """The files beside images and masks that decide what is read."""
        stated = self.layout
        places = [self.root / "classes.txt", self.root / "groups.csv", self.root / "SHA256SUMS"]
        places += [self.folder / FILE, Path(self.typed)]
        for named in (stated.pairs, stated.splits, stated.classes if isinstance(stated.classes, str) else None):
            words = named.values() if isinstance(named, Mapping) else [named]
            places += [self.path(word) for word in words if isinstance(word, str)]
        for place in [*places, *self.split_files.values()]:
            if os.path.isfile(place):
                yield place

    def settings(self) -> str:
        """The layout in one text, for what is kept of it."""
        kept = {key: getattr(self.layout, key) for key in KEYS if key != "note"}
        default = Layout()
        return json.dumps({k: v for k, v in kept.items() if v != getattr(default, k)}, sort_keys=True, default=str)
