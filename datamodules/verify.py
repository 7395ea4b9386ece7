"""Says everything that is wrong with a folder of images and masks before training starts.

Nothing is dropped, repaired or written: a problem has a code and names the file, what was found and what to do. What
cannot be found is a mask that fits its image in size and labels and yet shows something else, such as a transposed
square one.
"""

import os
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from shlex import quote

from datamodules.checks.pairs import Check, check_pair
from datamodules.checks.problems import Problem, shown, some, told
from datamodules.checks.sets import (
    Files,
    Splits,
    group_warnings,
    label_problems,
    label_warnings,
    leaks,
    manifest_problems,
    near_duplicates,
    pairing_problems,
    palette_problems,
    split_problems,
)
from datamodules.files import (
    FOLDER,
    IMAGE_ENDINGS,
    JUNK,
    SPLITS,
    files_by_name,
    has_groups,
    read_groups,
    read_split,
    readable,
)
from datamodules.fingerprint import file_states, keep_record, make_record, stored_record


def check_layout(root: Path, folder: str = FOLDER) -> None:
    """Raises a FileNotFoundError that lists what the folder lacks and what is there instead; `folder` has its splits.

    ValueError where the system does not let it be looked into, it is a file, or `folder` lies outside of it.
    """
    check_parts(root, folder, [f"{folder}/{split}.txt" for split in SPLITS])


def check_parts(root: Path, folder: str, lists: Sequence[str] = ()) -> None:
    """The same, but for the `lists` of the splits, of which only these are looked for."""
    if PurePath(folder).is_absolute() or ".." in PurePath(folder).parts or not PurePath(folder).parts:
        raise ValueError(f"splits must be a folder within {shown(str(root))}, such as {FOLDER}, got {shown(folder)!r}")
    expected = ["images/", "masks/", "classes.txt", *lists]
    name = shown(str(root))
    with readable(f"the data folder {name}"):
        if root.is_file():
            raise ValueError(f"the data folder {name} is a file; unpack it, and name the folder with {expected[0]}")
        if not root.is_dir():
            nearest = next(parent for parent in root.absolute().parents if os.path.isdir(parent))
            raise FileNotFoundError(
                f"the data folder {name} does not exist; expected a folder with {', '.join(expected)}. "
                f"{shown(str(nearest))} holds {_listing(nearest)}"
            )
        if missing := [e for e in expected if not ((root / e).is_dir() if e.endswith("/") else (root / e).is_file())]:
            way = _way(root, folder, missing, lists)
            raise FileNotFoundError(f"{name} has no {', '.join(missing)}; it holds {_listing(root)}{way}")


def _way(root: Path, folder: str, missing: Sequence[str], lists: Sequence[str]) -> str:
    """How to get what is missing."""
    said = ". classes.txt has a class name a line; line 0 is that of label 0" if "classes.txt" in missing else ""
    if not lists or not {*lists} <= {*missing}:
        return said
    if (root / folder).is_dir() and (
        within := sorted(path.name for path in (root / folder).iterdir() if path.is_dir())
    ):
        return f"{said}. {shown(folder)} has folders with lists: name one of them, {shown(f'{folder}/{within[0]}')}"
    return f"{said}. The lists are made by: python -m experiments.split {shown(quote(str(root)))}"


def check_folder(root: Path, class_names: Sequence[str], ignore_index: int, folder: str = FOLDER) -> None:
    """Raises a ValueError with every problem of the folder by kind: how many there are, and three of each.

    `folder` has its splits. Every file counts, also one that no split names; one that cannot be read is a problem, too.
    Warns of what may be right. A folder that was found right is not read again until one of its files has another size
    or time.
    """
    wanted, record = [*class_names, str(ignore_index)], stored_record(root, folder)
    if record and record.verified == wanted:
        for line in record.warnings:
            warnings.warn(line, stacklevel=3)
        return
    try:
        states = file_states(root, folder)
    except OSError:  # the reads below meet it again, and say of what
        states = {}
    examined = examine(root, class_names, ignore_index, folder)
    if examined.problems:
        raise ValueError(told(root, examined.problems))
    warned = [f"{problem.code}: {problem.said}" for problem in examined.warnings]
    for line in warned:
        warnings.warn(line, stacklevel=3)
    digests = {path: digest for check in examined.checks.values() for path, digest in check.digests.items()}
    keep_record(root, make_record(root, states, digests, wanted, warned), folder)


@dataclass(frozen=True)
class Examined:
    """What a folder holds, and what is wrong with it."""

    checks: dict[str, Check]  # of each image that has a mask
    splits: dict[str, list[str]]  # those whose list can be read
    problems: list[Problem]
    warnings: list[Problem]  # where there is no problem


def examine(
    root: Path, class_names: Sequence[str], ignore_index: int, folder: str = FOLDER, *, histogram: bool = False
) -> Examined:
    """Reads every file of the folder; `folder` has its splits, and `histogram` asks for those of the images."""
    unread: list[Problem] = []
    images, masks = (_listed(root / folder, unread) for folder in ("images", "masks"))
    there = [split for split in SPLITS if (root / folder / f"{split}.txt").exists()]
    splits = {split: names for split in there if (names := _named(root, split, folder, unread)) is not None}
    both = [name for name in images if name in masks] if images is not None and masks is not None else []
    pairs = {name: (picture_of(images[name]), picture_of(masks[name])) for name in both} if images and masks else {}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # decoding releases the interpreter lock
        read = partial(check_pair, num_classes=len(class_names), ignore_index=ignore_index, histogram=histogram)
        checks = dict(zip(pairs, pool.map(read, *zip(*pairs.values(), strict=True)) if pairs else (), strict=True))
    palettes = list(palette_problems(checks, masks)) if masks is not None else []
    groups, of_groups = read_groups(root, splits.get("test", []), images) if has_groups(root) else ({}, [])
    problems = [
        *unread,
        *palettes,
        *split_problems(splits, images, folder),
        *label_problems(checks, len(class_names), ignore_index),
        *leaks(splits, checks, folder),
        *of_groups,
        *(pairing_problems(images, masks) if images is not None and masks is not None else []),
        # Labels of palettes that disagree mean nothing, also where they lie outside of the classes.
        *(p for check in checks.values() for p in check.problems if not palettes or p.code != "E_LABEL_RANGE"),
        *manifest_problems(root, checks),
        *_without_lists(root, [f"{folder}/{split}.txt" for split in SPLITS if split not in there]),
    ]
    if problems:
        return Examined(checks, splits, problems, [])
    found = [
        *_turned(checks),
        *_unused(pairs, splits),
        *_alike(splits, checks),
        *group_warnings(splits, groups),
        *_constant(checks),
        *label_warnings(checks, splits, class_names, ignore_index),
        *_odd_names(root, images or {}, masks or {}),
    ]
    return Examined(checks, splits, [], found)


def picture_of(paths: Sequence[Path]) -> Path:
    """The one that is rather the picture, where several files have its name."""
    return min(paths, key=lambda path: path.suffix.lower() not in IMAGE_ENDINGS)


def _turned(checks: dict[str, Check]) -> Iterator[Problem]:
    images = [name for name, check in checks.items() if any(path.parent.name == "images" for path in check.turned)]
    if images:
        yield Problem(
            "W_EXIF_APPLIED",
            f"images turned upright by their EXIF orientation: {some(images)}; right if their masks were drawn on the "
            "upright pictures",
        )
    if masks := [name for name, check in checks.items() if any(path.parent.name == "masks" for path in check.turned)]:
        yield Problem("W_EXIF_APPLIED", f"masks turned by the orientation in their metadata: {some(masks)}")


def _constant(checks: dict[str, Check]) -> Iterator[Problem]:
    if constant := [name for name, check in checks.items() if check.constant]:
        yield Problem(
            "W_CONSTANT_IMAGE",
            f"images of one colour alone: {some(constant)}; right if they are empty, and no conversion cut "
            "their values off",
        )


def _without_lists(root: Path, lists: Sequence[str]) -> Iterator[Problem]:
    if lists:
        made = f"python -m experiments.split {shown(quote(str(root)))} makes the lists once the rest is right"
        yield Problem("E_NO_SPLITS", f"{', '.join(lists)} are not there; {made}")


def _unused(pairs: dict[str, tuple[Path, Path]], splits: Splits) -> Iterator[Problem]:
    if unused := sorted(set(pairs).difference(*splits.values())):
        yield Problem("W_UNUSED", f"images in no split, which stay unused: {some(unused)}")


def _alike(splits: Splits, checks: dict[str, Check]) -> Iterator[Problem]:
    if alike := near_duplicates(splits, checks):
        pairs = [f"{one} and {other}" for one, other in alike]
        yield Problem(
            "W_NEAR_DUPLICATE",
            "images in two splits that look nearly the same, such as frames of one video, so that scores flatter: "
            f"{some(pairs)}",
        )


def _odd_names(root: Path, images: Files, masks: Files) -> Iterator[Problem]:
    paths = [path for files in (images, masks) for of_name in files.values() for path in of_name]
    if odd := [path.name for path in paths if not unicodedata.is_normalized("NFC", path.name)]:
        yield Problem("W_NOT_NFC", f"names that are compared in Unicode's composed form (NFC): {some(odd)}")
    junk = [
        f"{folder}/{path.name}"
        for folder in ("images", "masks")
        for path in sorted((root / folder).iterdir())
        if path.name.startswith(".") or path.name in JUNK
    ]
    inside = root.resolve()
    if links := [f"{p.parent.name}/{p.name}" for p in paths if p.is_symlink() and inside not in p.resolve().parents]:
        yield Problem("W_LINK_OUTSIDE", f"links to files outside {shown(str(root))}: {some(links)}")
    if junk:
        yield Problem("W_JUNK", f"hidden files and those of file managers, which are skipped: {some(junk)}")


def _listed(folder: Path, unread: list[Problem]) -> dict[str, list[Path]] | None:
    """The files of a folder; None, and one more problem in `unread`, where the system does not tell them."""
    try:
        return files_by_name(folder)
    except ValueError as error:
        unread.append(Problem.of(error))
        return None


def _named(root: Path, split: str, folder: str, unread: list[Problem]) -> list[str] | None:
    """The names in a split; None, and one more problem in `unread`, where they cannot be read."""
    try:
        return read_split(root, split, folder)
    except ValueError as error:
        unread.append(Problem.of(error))
        return None


def _listing(folder: Path) -> str:
    try:
        names = sorted(path.name + "/" * os.path.isdir(path) for path in folder.iterdir())
    except OSError:
        return "what cannot be listed"
    return some(names, 10) or "nothing"
