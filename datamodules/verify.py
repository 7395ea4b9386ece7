"""Says everything that is wrong with a folder of images and masks before training starts.

Nothing is dropped, repaired or written: a problem has a code and names the file, what was found and what to do. What
cannot be found is a mask that fits its image in size and labels and yet shows something else, such as a transposed
square one.
"""

import os
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from shlex import quote
from typing import TypeVar

from datamodules.checks.pairs import Check, check_pair, picture_of
from datamodules.checks.problems import Problem, shown, some, told
from datamodules.checks.sets import (
    Files,
    Splits,
    band_problems,
    depth_problems,
    group_warnings,
    label_problems,
    label_warnings,
    leaks,
    manifest_problems,
    narrow_range,
    near_duplicates,
    pairing_problems,
    palette_problems,
    pattern_problems,
    split_problems,
)
from datamodules.files import FOLDER, JUNK, SPLITS, listing, must_exist, readable
from datamodules.fingerprint import file_states, keep_record, make_record, stored_record
from datamodules.layouts.config import FILE
from datamodules.layouts.labels import IGNORED
from datamodules.layouts.source import Source

Read = TypeVar("Read")


def check_layout(source: Source) -> None:
    """Raises a FileNotFoundError that lists what the folder lacks and what is there instead.

    ValueError where the system does not let it be looked into, it is a file, or its layout cannot be used.
    """
    check_parts(source)
    if lacking := [split for split in ("train", "val") if split not in source.stated]:
        stated = source.layout.splits
        listed = [f"{shown(stated)}/{split}.txt" for split in lacking] if isinstance(stated, str) else lacking
        name = shown(str(source.root))
        raise FileNotFoundError(f"{name} has no {', '.join(listed)}; it holds {listing(source.root)}{_way(source)}")


def check_parts(source: Source, *, lists: bool = True) -> None:
    """The same, but for the lists of the splits, which are named with the rest unless `lists` are not needed."""
    root, layout = source.root, source.layout
    stated = layout.splits
    if isinstance(stated, str) and (
        PurePath(stated).is_absolute() or ".." in PurePath(stated).parts or not PurePath(stated).parts
    ):
        raise ValueError(f"splits must be a folder within {shown(str(root))}, such as {FOLDER}, got {shown(stated)!r}")
    expected = ["images/", "masks/"] if layout.plain else []
    expected += [] if layout.classes is not None else ["classes.txt"]
    name = shown(str(root))
    with readable(f"the data folder {name}"):
        if root.is_file():
            raise ValueError(
                f"the data folder {name} is a file; unpack it, and name the folder with images/, or a {FILE}"
            )
        must_exist(root, ", ".join([*expected, *(f"{FOLDER}/{split}.txt" for split in SPLITS)]))
        if missing := [e for e in expected if not ((root / e).is_dir() if e.endswith("/") else (root / e).is_file())]:
            said = ". classes.txt has a class name a line; line 0 is that of label 0" * ("classes.txt" in missing)
            needed = lists and layout.splits == FOLDER and not source.split_files
            absent = [*missing, *(f"{FOLDER}/{split}.txt" for split in SPLITS if needed)]
            other = f". Data in another layout need a {FILE}: python -m experiments.check {shown(quote(source.typed))}"
            raise FileNotFoundError(
                f"{name} has no {', '.join(absent)}; it holds {listing(root)}{said}{_way(source) * needed}"
                f"{other * (layout.plain and missing != ['classes.txt'])}"
            )


def _way(source: Source) -> str:
    """How to get lists of the splits."""
    stated = source.layout.splits
    folder = source.path(stated) if isinstance(stated, str) else None
    if folder and folder.is_dir() and (within := sorted(path.name for path in folder.iterdir() if path.is_dir())):
        return f". {shown(str(stated))} has folders with lists: name one of them, {shown(f'{stated}/{within[0]}')}"
    return f". The lists are made by: python -m experiments.split {shown(quote(source.typed))}"


def check_source(source: Source) -> None:
    """Raises a ValueError with every problem of the data by kind: how many there are, and three of each.

    Every file counts, also one that no split names; one that cannot be read is a problem, too. Warns of what may be
    right. Data that were found right are not read again until one of their files has another size or time.
    """
    wanted, record = [*source.classes.names, str(IGNORED)], stored_record(source)
    if record and record.verified == wanted:
        for line in record.warnings:
            warnings.warn(line, stacklevel=3)
        return
    try:
        states = file_states(source)
    except OSError:  # the reads below meet it again, and say of what
        states = {}
    examined = examine(source)
    if examined.problems:
        raise ValueError(told(source.root, examined.problems))
    warned = [f"{problem.code}: {problem.said}" for problem in examined.warnings]
    for line in warned:
        warnings.warn(line, stacklevel=3)
    digests = {path: digest for check in examined.checks.values() for path, digest in check.digests.items()}
    keep_record(source, make_record(source, states, digests, wanted, warned))


@dataclass(frozen=True)
class Examined:
    """What a data set holds, and what is wrong with it."""

    checks: dict[str, Check]  # of each image that has a mask
    splits: dict[str, list[str]]  # those whose list can be read
    problems: list[Problem]
    warnings: list[Problem]  # where there is no problem


def examine(source: Source, *, moments: bool = False, lists: bool = True) -> Examined:
    """Reads every file of the data; `moments` asks for those of the images. Without `lists` none are needed."""
    unread: list[Problem] = []
    images, masks = _of(lambda: source.images, unread), _of(lambda: source.masks, unread)
    splits, bad_lists = (_of(lambda: source.read_splits, unread) if lists else None) or ({}, [])
    unread += bad_lists
    known, images, masks = images is not None and masks is not None, images or {}, masks or {}
    of_images = images if known else None
    num_classes = len(source.classes.names)
    both = [name for name in images if name in masks]
    listed = {name for names in splits.values() for name in names}
    if not source.layout.plain and listed:  # what lies beside them is no part of the set
        both = [name for name in both if name in listed]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # decoding releases the interpreter lock
        read = partial(check_pair, source, moments=moments)
        checks = dict(zip(both, pool.map(read, both, [picture_of(images[name]) for name in both]), strict=True))
    palettes = list(palette_problems(checks, masks))
    strange = [
        Problem(
            "E_LABEL_RANGE",
            f"{shown(source.layout.masks)}: {shown(word)} is no class, and its files would be background; name it in "
            "classes, or in ignore",
        )
        for word in (source.unknown_classes if known else ())
    ]
    groups, of_groups = source.groups(splits.get("test", [])) if known and source.has_groups else ({}, [])
    where = "images/" if source.layout.plain else shown(str(source.layout.pairs or source.layout.images))
    patterns = (source.layout.images, source.layout.masks)
    pairing = (
        pairing_problems(images, masks)
        if source.layout.plain
        else pattern_problems(images, masks, splits, patterns, several=source.several, clashes=source.clashes)
    )
    problems = [
        *dict.fromkeys(unread),
        *palettes,
        *strange,
        *split_problems(splits, of_images, source.listing, where),
        *(label_problems(checks, num_classes, IGNORED) if source.indexed else ()),
        *leaks(splits, checks, source.listing, shared=source.shares),
        *of_groups,
        *(pairing if known else ()),
        # Labels of palettes that disagree mean nothing, also where they lie outside of the classes.
        *(
            p
            for check in checks.values()
            for p in check.problems
            if not (palettes or strange) or p.code != "E_LABEL_RANGE"
        ),
        *band_problems(checks, images),
        *(depth_problems(checks, images) if source.layout.value_range else ()),
        *manifest_problems(source.root, checks),
        *(_without_lists(source, splits) if lists and not unread else ()),
    ]
    if problems:
        return Examined(checks, splits, problems, [])
    found = [
        *_turned(checks, masks),
        *_unused(source, checks, splits),
        *_alike(splits, checks),
        *group_warnings(splits, groups),
        *_constant(checks),
        *narrow_range(checks),
        *(label_warnings(checks, splits, source.classes.names, IGNORED, mixed=source.indexed)),
        *_odd_names(source, images, masks),
        *_without_test(splits),
    ]
    return Examined(checks, splits, [], found)


def _of(read: Callable[[], Read], unread: list[Problem]) -> Read | None:
    """What is read; None, and one more problem in `unread`, where it cannot be."""
    try:
        return read()
    except ValueError as error:
        unread.append(Problem.of(error))
        return None


def _without_test(splits: Splits) -> Iterator[Problem]:
    if splits and "test" not in splits:
        yield Problem(
            "W_NO_TEST",
            "there is no test split, so that final scores are of the validation images: right if no setting is chosen "
            "by them",
        )


def _turned(checks: dict[str, Check], masks: Files) -> Iterator[Problem]:
    turned = {name: {*check.turned} & {*masks[name]} for name, check in checks.items() if check.turned}
    if images := [name for name, of_masks in turned.items() if {*checks[name].turned} - of_masks]:
        yield Problem(
            "W_EXIF_APPLIED",
            f"images turned upright by their EXIF orientation: {some(images)}; right if their masks were drawn on the "
            "upright pictures",
        )
    if of_masks := [name for name, found in turned.items() if found]:
        yield Problem("W_EXIF_APPLIED", f"masks turned by the orientation in their metadata: {some(of_masks)}")


def _constant(checks: dict[str, Check]) -> Iterator[Problem]:
    if constant := [name for name, check in checks.items() if check.constant]:
        yield Problem(
            "W_CONSTANT_IMAGE",
            f"images of one colour alone: {some(constant)}; right if they are empty, and no conversion cut "
            "their values off",
        )


def _without_lists(source: Source, splits: Splits) -> Iterator[Problem]:
    stated = source.layout.splits
    there = source.split_files  # also those that are links to nothing
    if lacking := [s for s in SPLITS if s not in splits and (s != "test" or s in there or not {*splits})]:
        listed = [f"{shown(stated)}/{split}.txt" for split in lacking] if isinstance(stated, str) else lacking
        made = f"python -m experiments.split {shown(quote(source.typed))} makes the lists once the rest is right"
        yield Problem("E_NO_SPLITS", f"{', '.join(listed)} are not there; {made}")


def _unused(source: Source, checks: dict[str, Check], splits: Splits) -> Iterator[Problem]:
    if unused := sorted({*source.usable}.difference(*splits.values())) if splits else []:
        yield Problem("W_UNUSED", f"images in no split, which stay unused: {some(unused)}")
    if not source.layout.plain and not source.layout.pairs:
        for said, names in (
            ("images without a mask, which stay unused", {*source.images} - {*source.masks}),
            ("masks without an image, which stay unused", {*source.masks} - {*source.images}),
        ):
            if names:
                yield Problem("W_UNUSED", f"{said}: {some(sorted(names))}")


def _alike(splits: Splits, checks: dict[str, Check]) -> Iterator[Problem]:
    if alike := near_duplicates(splits, checks):
        pairs = [f"{one} and {other}" for one, other in alike]
        yield Problem(
            "W_NEAR_DUPLICATE",
            "images in two splits that look nearly the same, such as frames of one video, so that scores flatter: "
            f"{some(pairs)}",
        )


def _odd_names(source: Source, images: Files, masks: Files) -> Iterator[Problem]:
    root, plain = source.root, source.layout.plain
    paths = [path for files in (images, masks) for of_name in files.values() for path in of_name]
    if odd := [path.name for path in paths if not unicodedata.is_normalized("NFC", path.name)]:
        yield Problem("W_NOT_NFC", f"names that are compared in Unicode's composed form (NFC): {some(odd)}")
    junk = [
        f"{folder}/{path.name}"
        for folder in ("images", "masks")[: 2 * plain]
        for path in sorted((root / folder).iterdir())
        if path.name.startswith(".") or path.name in JUNK
    ]
    inside = Path(os.path.realpath(root))
    links = [path for path in paths if path.is_symlink() and inside not in Path(os.path.realpath(path)).parents]
    if links:
        yield Problem(
            "W_LINK_OUTSIDE",
            f"links to files outside {shown(str(root))}: {some(f'{p.parent.name}/{p.name}' for p in links)}",
        )
    if junk:
        yield Problem("W_JUNK", f"hidden files and those of file managers, which are skipped: {some(junk)}")
