"""Which images are in which split, from lists, files of lists, folders, columns or shares; and lists of pairs."""

import csv
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.checks.problems import coded, shown, some
from datamodules.files import IMAGE_ENDINGS, SPLITS, decoded, read_lines
from datamodules.layouts.texts import brief, read_keys
from datamodules.splitting import divide

ALIASES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
WORDS = {alias: split for split, aliases in ALIASES.items() for alias in aliases}
SHARES = {"train": 0.7, "val": 0.15, "test": 0.15}
NEARLY = 1e-3  # shares make 1 as far as this
KEYED = (".yaml", ".yml", ".json")


class Finder:
    """Finds the image that a line of a list means; never one that merely looks like it."""

    def __init__(self, images: Mapping[str, Sequence[Path]], root: Path) -> None:
        self.names, self.root = {*images}, root
        self.places = {name: _composed(paths[0].relative_to(root).as_posix()) for name, paths in images.items()}
        self.above = _composed(Path(os.path.realpath(root)).as_posix()).strip("/").split("/")
        self.others = self._alone((place, _stem(place)) for place in self.places.values())
        last = [place.rpartition("/")[2] for place in self.places.values()]
        self.last = self._alone((word, _stem(word), _composed(name).rpartition("/")[2])
                                for word, name in zip(last, images, strict=True))  # fmt: skip
        digits = [re.fullmatch(r"[0-9]{1,18}", name.rpartition("/")[2]) for name in images]
        self.numbers = self._alone((str(int(found[0])),) if found else () for found in digits)

    def _alone(self, forms: Iterable[tuple[str, ...]]) -> dict[str, str]:
        """The name of the image of each form that only one image has."""
        found: dict[str, set[str]] = {}
        for name, of_name in zip(self.places, forms, strict=True):
            for form in of_name:
                found.setdefault(form, set()).add(name)
        return {form: next(iter(names)) for form, names in found.items() if len(names) == 1}

    def __call__(self, line: Any) -> str | None:
        written = _composed(str(line)).replace("\\", "/").strip()
        for form in (written, *self._first_column(written)):
            form = form.removeprefix("./").lstrip("/")
            for one in (form, _stem(form)):
                if one in self.names:
                    return one
                if one in self.others:
                    return self.others[one]
                folder, _, last = one.rpartition("/")
                found = self.last.get(last)
                if found and (not folder or self._within(folder, found)):
                    return found
        number = re.fullmatch(r"[0-9]{1,18}", written)
        return self.numbers.get(str(int(written))) if number else None

    def _first_column(self, line: str) -> list[str]:
        """The first column of a line that has a mask behind it, or two and more numbers, as some lists do.

        One number is not enough: VOC writes 1 and -1 behind a name for images with and without a class.
        """
        columns = [column.strip() for column in re.split(r"[,;\t]|\s+", line) if column.strip()]
        rest = columns[1:]
        masks = len(rest) == 1 and _stem(rest[0]) != rest[0] and os.path.lexists(self.root / rest[0].lstrip("/"))
        numbers = len(rest) > 1 and all(re.fullmatch(r"-?[0-9]+", column) for column in rest)
        return columns[:1] if masks or numbers else []

    def _within(self, folder: str, name: str) -> bool:
        """Whether a line that names this folder can mean the image: the shorter of both paths ends the longer one."""
        parts = [part for part in folder.split("/") if part != "."]
        own = [*self.above, *self.places[name].split("/")[:-1]]
        inside = own[len(self.above) :]
        return parts == own[-len(parts) :] or (bool(inside) and parts[-len(inside) :] == inside)


def _stem(text: str) -> str:
    """Without the ending of an image."""
    stem, ending = os.path.splitext(text)
    return stem if ending.lower() in IMAGE_ENDINGS or ending.lower() == ".npy" else text


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def keyed_lists(path: Path) -> dict[str, list[Any]]:
    """The lists of a YAML or JSON file by split; ValueError for another file."""
    content = read_keys(path)
    if not isinstance(content, dict):
        raise _error(path, "must have lists under train, val and test")
    found: dict[str, list[Any]] = {}
    for split, aliases in ALIASES.items():
        for key in (key for key in content if str(key).casefold() in aliases):
            if split in found:
                raise _error(path, f"has several lists of {split}; leave one")
            if not isinstance(content[key], list):
                raise _error(path, f"has no list under {brief(key)}, but {brief(content[key])}")
            found[split] = content[key]
    if not found:
        raise _error(path, f"has no list under train, val or test, but {some(map(str, content), 5)}")
    return found


def table_lists(path: Path) -> dict[str, list[Any]]:
    """The images of a CSV by its column split; ValueError where it has no columns image and split."""
    rows = read_table(path)
    if rows and not {"image", "split"} <= rows[0].keys():
        raise _error(path, f"must have the columns image and split, got {some(rows[0], 6)}")
    found: dict[str, list[Any]] = {}
    for number, row in enumerate(rows, 2):
        found.setdefault(split_of(row["split"], f"{shown(str(path))} line {number}"), []).append(row["image"])
    return {split: found[split] for split in SPLITS if split in found}


def split_of(word: str, where: str) -> str:
    """train, val or test, of any of their names."""
    for split, aliases in ALIASES.items():
        if word.strip().casefold() in aliases:
            return split
    raise coded("E_LAYOUT", f"{where}: expected a split, train, val or test, got {shown(word)[:80]!r}")


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with a header."""
    try:
        reader = csv.DictReader(StringIO(decoded(path, str(path))), strict=True)
        rows = [{str(key).strip(): (value or "").strip() for key, value in row.items() if key} for row in reader]
    except csv.Error as error:
        raise _error(path, f"line {reader.line_num}: is no CSV ({error})") from None
    return [row for row in rows if any(row.values())]


def list_of(path: Path, split: str) -> list[Any]:
    """The lines of a list, or of the list that a YAML, JSON or CSV file has for a split."""
    if path.suffix.lower() in KEYED:
        of_file = keyed_lists(path)
    elif path.suffix.lower() == ".csv" and "split" in (read_lines(path) or [""])[0]:
        of_file = table_lists(path)
    else:
        return [unicodedata.normalize("NFC", line) for line in read_lines(path)]
    if split not in of_file:
        raise _error(path, f"has no list under {split}")
    return of_file[split]


def lists_in(folder: Path) -> dict[str, Path]:
    """The files of lists in a folder, by split."""
    found: dict[str, Path] = {}
    files = {name: os.path.splitext(name.casefold()) for name in sorted(os.listdir(folder))}
    for split, aliases in ALIASES.items():
        for name in (name for name, (stem, end) in files.items() if stem in aliases and end in (".txt", ".csv")):
            if split in found:
                both = f"{found[split].name} and {name}"
                raise _error(folder, f"has {both}, which are lists of one split; leave one")
            found[split] = folder / name
    return found


def shared_out(
    lists: Mapping[str, list[str]], shares: Mapping[str, float], names: Iterable[str], groups: Mapping[str, str]
) -> dict[str, list[str]]:
    """With the splits that are stated as shares: of the training images where those have a list, else of the `names`
    in no list.

    Groups stay whole. The same names, groups and shares give the same splits.
    """
    given = {split: [*of] for split, of in lists.items()}
    if not shares:
        return given
    if wrong := [f"{split}: {share:g}" for split, share in shares.items() if not 0 < share <= 1]:
        raise coded("E_LAYOUT", f"splits: a share must be more than 0 and at most 1, got {', '.join(wrong)}")
    parts, total = dict(shares), sum(shares.values())
    if "train" in given:
        pool = given.pop("train")
        if total >= 1:
            raise coded("E_LAYOUT", f"splits: shares of the training images leave none to train on: {dict(shares)}")
        parts["train"] = 1 - total
    else:
        if abs(total - 1) > NEARLY:
            said = f"got {total:g}; 0.7, 0.15 and 0.15 do" if len(parts) > 1 else "1 for all that are in no list"
            raise coded("E_LAYOUT", f"splits: shares of the images must make 1 together, {said}")
        listed = {name for of in given.values() for name in of}
        pool = [name for name in names if name not in listed]
    if "train" not in parts:
        raise coded("E_LAYOUT", "splits: train needs a list or a share, too")
    if len(parts) == 1:
        return given | {"train": sorted(pool)}
    holds = dict.fromkeys(pool, np.zeros(0, dtype=bool))
    ordered = [split for split in SPLITS if split in parts]
    divided = divide({name: groups.get(name, name) for name in pool}, holds, [parts[s] for s in ordered], seed=0)
    made = given | dict(zip(ordered, divided, strict=True))
    return {split: made[split] for split in SPLITS if split in made}


def _error(path: Path, said: str) -> ValueError:
    return coded("E_LAYOUT", f"{shown(str(path))} {said}")
