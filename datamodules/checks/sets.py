"""What is wrong only with all files of a folder together: lists, names, leaks between splits, labels, palettes."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path, PurePosixPath

import numpy as np

from datamodules.checks.pairs import Check
from datamodules.checks.problems import Problem, shown, some
from datamodules.files import IMAGE_ENDINGS, MANIFEST, read_lines, short
from datamodules.layouts.labels import Colour

Files = Mapping[str, Sequence[Path]]
Splits = Mapping[str, Sequence[str]]
Checks = Mapping[str, Check]
Called = Callable[[str], str]  # what a message calls the list of a split

ALIKE = 0.995  # correlation of two thumbnails from which on two pictures are called nearly the same
UNSEEN = {"Cc", "Cs", "Zl", "Zp"}  # categories of characters that end a line, steer a terminal or are no text
MOST_PAIRS = 1000  # that look alike: of a camera that does not move each looks like each
NARROW = 1 / 8  # of the values between black and white
FLAT = 4.0  # grey levels: a thumbnail that varies less shows nothing to tell pictures apart by


def split_problems(splits: Splits, images: Files | None, called: Called, where: str) -> Iterator[Problem]:
    """Empty splits, names that stand twice, and those of no image; `where` is what images are called to lie in."""
    for split in splits:
        if not splits[split]:
            yield Problem("E_SPLIT_EMPTY", f"{called(split)} names no image; add names, one a line")
    home: dict[str, str] = {}
    folded = {name.casefold(): name for name in images or ()}
    for split, names in splits.items():
        for name, times in Counter(names).items():
            told = shown(name)
            if times > 1:
                yield Problem("E_SPLIT_TWICE", f"{called(split)} names {told} {times} times; leave one")
            if home.setdefault(name, split) != split:
                yield Problem(
                    "E_SPLIT_LEAK",
                    f"{told} is in {called(home[name])} and in {called(split)}, so that it leaks from one to the "
                    "other; remove it from one",
                )
            if images is not None and name not in images:
                meant = _meant(name, images, folded)
                hint = (
                    f"did you mean {shown(meant)}? A line is the name of a file in {where}, as it is written there, "
                    "without folder and extension"
                    if meant
                    else "correct or remove the line"
                )
                yield Problem("E_SPLIT_UNKNOWN", f"{called(split)} names {told}, and {where} has no such file; {hint}")


def _meant(line: str, images: Files, folded: Mapping[str, str]) -> str | None:
    """The image that a line of a split names in other words; never another one that merely looks like it."""
    columns = [column for column in re.split(r"[,;\t]|\s+", line) if column]
    for written in (line, *columns[:1]):
        without, last = os.path.splitext(written)[0], PurePosixPath(written.replace("\\", "/"))
        for name in (written, without, last.name, last.stem):
            if name in images:
                return name
            if name.casefold() in folded:
                return folded[name.casefold()]
    return None


def pairing_problems(images: Files, masks: Files) -> Iterator[Problem]:
    """Images without a mask and the other way round, files of one name, and names that cannot be seen."""
    if (suffix := _suffix(images, masks)) is not None:
        yield Problem(
            "E_MISSING_MASK",
            f"masks/: the names end in {shown(suffix)!r} behind those of their images; state "
            f"masks: 'masks/{{name}}{shown(suffix)}.png' in a dataset.yaml (--data.masks), or rename them",
        )
        return
    for folder, files, others, other in (("images", images, masks, "mask"), ("masks", masks, images, "image")):
        if not files:
            yield Problem("E_EMPTY_DATASET", f"{folder}/ is empty; put the {folder} here")
        for name, paths in files.items():
            pictures = [path for path in paths if path.suffix.lower() in IMAGE_ENDINGS]
            alone = len(pictures) == 1
            if len(paths) > 1 and not alone:
                alike = " and ".join(shown(path.name) for path in paths)
                yield Problem(
                    "E_DUP_STEM",
                    f"{folder}/ has {alike}, which are one name; give each its own name, or move what is no part of "
                    f"the set out of {folder}/",
                )
            for path in (path for path in paths if alone and path not in pictures):
                yield Problem(
                    "E_EXT",
                    f"{short(path)} lies beside {shown(pictures[0].name)} and is no image; move it out of {folder}/",
                )
            if name not in others:
                path = (pictures or paths)[0]
                code, way = "E_EXT", ""
                if pictures:
                    code = "E_MISSING_MASK" if other == "mask" else "E_ORPHAN_MASK"
                    way = f"add {other}s/{shown(name)}.* or "
                yield Problem(code, f"{short(path)} has no {other}; {way}move it out of {folder}/")
            if name != name.strip() or any(unicodedata.category(c) in UNSEEN for path in paths for c in path.name):
                yield Problem(
                    "E_CONTROL_CHAR_IN_NAME",
                    f"{short(paths[0])} has a control character, or a blank at an end, in its name, which no list can "
                    "hold; rename it",
                )


def pattern_problems(
    images: Files,
    masks: Files,
    splits: Splits,
    patterns: tuple[str, str],
    *,
    several: bool,
    clashes: Sequence[tuple[str, str]],
) -> Iterator[Problem]:
    """The same where files are found by patterns: others may lie beside them, and images without a mask, too.

    `clashes` are images that the patterns give one mask, `several` says that an image has more than one.
    """
    for one, other in clashes:
        yield Problem(
            "E_DUP_STEM",
            f"{short(images[one][0])} and {short(images[other][0])} would have one mask by {patterns[1]}; write into "
            "both patterns what tells them apart, such as ** or {split}",
        )
    if not {*images} & {*masks}:
        of_both = " and ".join(
            f"{pattern} finds {len(files)} {what}{f' such as {some(files, 2)}' if files else ''}"
            for pattern, files, what in zip(patterns, (images, masks), ("images", "masks"), strict=True)
        )
        yield Problem("E_EMPTY_DATASET", f"no image has a mask: {of_both}; correct the patterns")
        return
    for files, single in ((images, True), (masks, not several)):
        for name, paths in files.items():
            if single and len(paths) > 1:
                alike = " and ".join(short(path) for path in paths[:3])
                yield Problem(
                    "E_DUP_STEM", f"{alike} are one name, {shown(name)}; give each its own, or narrow the pattern"
                )
    for name in dict.fromkeys(name for names in splits.values() for name in names):
        if name in images and name not in masks:
            yield Problem(
                "E_MISSING_MASK",
                f"{short(images[name][0])} has no mask by {patterns[1]}; add it, or take it out of its split",
            )
    for name, paths in images.items():
        if name != name.strip() or any(unicodedata.category(c) in UNSEEN for c in name):
            yield Problem(
                "E_CONTROL_CHAR_IN_NAME",
                f"{short(paths[0])} has a control character, or a blank at an end, in its name, which no list can "
                "hold; rename it",
            )


def band_problems(checks: Checks, images: Files) -> Iterator[Problem]:
    """Images of other channels than the first one."""
    known = [name for name, check in checks.items() if check.size != (0, 0)]
    for name in known:
        if checks[name].bands != checks[known[0]].bands:
            yield Problem(
                "E_BANDS",
                f"{short(images[name][0])} has {checks[name].bands} bands and {short(images[known[0]][0])} "
                f"{checks[known[0]].bands}; all images need as many, or choose channels: rgb or grey",
            )


def depth_problems(checks: Checks, images: Files) -> Iterator[Problem]:
    """Images of 8 bits beside others of 16, of which one range of values means two things."""
    known = [name for name, check in checks.items() if check.size != (0, 0)]
    for name in known:
        if checks[name].bits != checks[known[0]].bits:
            yield Problem(
                "E_RANGE",
                f"{short(images[name][0])} has {checks[name].bits} bits and {short(images[known[0]][0])} "
                f"{checks[known[0]].bits}, and value_range is one for all; save all with as many",
            )


def narrow_range(checks: Checks) -> Iterator[Problem]:
    """Images whose values fill but a small part of their range, as 12-bit numbers do in that of 16 bits."""
    ends = [check.ends for check in checks.values() if check.size != (0, 0) and not check.constant]
    if ends and (width := max(high for _, high in ends) - min(low for low, _ in ends)) < NARROW:
        yield Problem(
            "W_NARROW_RANGE",
            f"all images lie in {100 * width:.2g} % of the values between black and white; narrow value_range to what "
            "they hold",
        )


def _suffix(images: Files, masks: Files) -> str | None:
    """What every mask has behind the name of its image; None where that is nothing, or not the same."""
    if not images or not masks or images.keys() & masks.keys():
        return None
    longest = {mask: max((name for name in images if mask.startswith(name)), key=len, default=None) for mask in masks}
    suffixes = {mask[len(name) :] if name is not None else None for mask, name in longest.items()}
    return suffixes.pop() if len(suffixes) == 1 else None


def group_warnings(splits: Splits, groups: Mapping[str, str]) -> Iterator[Problem]:
    """Groups whose images are in two splits, so that what is tested was seen."""
    homes: dict[str, dict[str, str]] = {}  # by group, the first image in each split
    for split, names in splits.items():
        for name in names:
            if name in groups:
                homes.setdefault(groups[name], {}).setdefault(split, name)
    if torn := {group: of for group, of in homes.items() if len(of) > 1}:
        group, of = next(iter(torn.items()))
        where = " and ".join(f"{shown(name)} in {split}" for split, name in of.items())
        yield Problem(
            "W_GROUP_LEAK",
            f"groups of groups.csv that are in two splits, so that scores flatter: {some(torn)}; {shown(group)} has "
            f"{where}. python -m experiments.split keeps each in one",
        )


def label_problems(checks: Checks, num_classes: int, ignore_index: int) -> Iterator[Problem]:
    """What only the labels of all masks together give away."""
    of_masks = {name: {*check.labels} for name, check in checks.items() if check.labels}
    labels = set().union(*of_masks.values())
    if ignore_index == 255 and labels == {0, 255}:
        yield Problem(
            "E_BINARY_0_255",
            "masks/: all masks hold 0 and 255 only, like black and white, but 255 is unlabelled; write 1 for 255, "
            "or state classes with values, {background: 0, object: 255}, in a dataset.yaml",
        )
    if 0 not in labels and max(labels - {ignore_index}, default=0) == num_classes:
        yield Problem(
            "E_LABEL_RANGE",
            f"masks/: the labels of all masks are 1 to {num_classes}, but the first class is 0; subtract 1, "
            "or state classes with values, {a: 1, b: 2}, in a dataset.yaml",
        )
    if num_classes == 2 and len(mixed := _black_and_white(of_masks, ignore_index)) > 1 and not _has_all(of_masks):
        whole = next(name for name, found in of_masks.items() if 1 in found)
        yield Problem(
            "E_BINARY_0_255",
            f"masks/: {some(mixed)} hold 0 and 255 and others, such as {shown(whole)}, hold 0 and 1, so that what is 1 "
            "there would be unlabelled here; write 1 for 255 in those",
        )


def label_warnings(
    checks: Checks, splits: Splits, class_names: Sequence[str], ignore_index: int, *, mixed: bool
) -> Iterator[Problem]:
    """Masks of 0 and 255 that may well be right, where they are `mixed` with others, and classes that are never
    trained."""
    of_masks = {name: {*check.labels} for name, check in checks.items() if check.labels}
    if mixed and (of_two := _black_and_white(of_masks, ignore_index)):  # in two classes more than one are an error
        yield Problem(
            "W_255_AMONG_LABELS",
            f"masks of 0 and 255 alone, whose 255 is unlabelled: {some(of_two)}; right if nothing there belongs to a "
            "class",
        )
    trained = set().union(*(of_masks.get(name, set()) for name in splits.get("train", ())))
    if trained and (missing := [name for label, name in enumerate(class_names) if label not in trained]):
        yield Problem(
            "W_NO_TRAINING_PIXEL",
            f"no pixel of the training split has these classes, which cannot be learnt: {some(missing)}",
        )


def _black_and_white(of_masks: Mapping[str, set[int]], ignore_index: int) -> list[str]:
    """Masks of 0 and 255 alone, where others hold another class."""
    if ignore_index != 255 or not any(found - {0, 255} for found in of_masks.values()):
        return []
    return [name for name, found in of_masks.items() if found == {0, 255}]


def _has_all(of_masks: Mapping[str, set[int]]) -> bool:
    """Whether some mask has a class beside unlabelled pixels, so that 255 is used as it is meant."""
    return any(255 in found and found - {0, 255} for found in of_masks.values())


def palette_problems(checks: Checks, masks: Files) -> Iterator[Problem]:
    """A label that two masks show in two colours: each file then has a numbering of its own."""
    first: dict[int, tuple[str, Colour]] = {}
    for name, check in checks.items():
        for label, colour in check.colours.items():
            other, known = first.setdefault(label, (name, colour))
            if known != colour:
                yield Problem(
                    "E_MASK_PALETTES",
                    f"{short(masks[other][0])} shows label {label} in the colour {known} and {short(masks[name][0])} "
                    f"in {colour}: each file numbers its colours anew, as an image editor does; state the classes' "
                    "colours in a dataset.yaml (docs/data.md), and colours count",
                )
                break  # one line a mask


def leaks(splits: Splits, checks: Checks, called: Called, *, shared: bool) -> Iterator[Problem]:
    """The same picture under two names in two splits, whatever its file format; `shared` out by shares, or listed."""
    way = "give both one group (groups.csv)" if shared else "remove one from its split"
    seen: dict[str, tuple[str, str]] = {}
    for split, names in splits.items():
        for name in names:
            if name in checks and (digest := checks[name].picture) and not checks[name].constant:
                twin, home = seen.setdefault(digest, (name, split))
                if home != split and twin != name:
                    yield Problem(
                        "E_SPLIT_LEAK",
                        f"{shown(twin)} in {called(home)} and {shown(name)} in {called(split)} are the same image; "
                        f"{way}",
                    )


def manifest_problems(root: Path, checks: Checks) -> Iterator[Problem]:
    """Files that are no longer those of SHA256SUMS, the file of `sha256sum images/* masks/*`, where there is one."""
    if not (root / MANIFEST).is_file():
        return
    of_files = (item for check in checks.values() for item in check.digests.items())
    known = {path.relative_to(root).as_posix(): digest for path, digest in of_files}
    try:
        lines = read_lines(root / MANIFEST)
    except ValueError as error:
        yield Problem.of(error)
        return
    for number, line in enumerate(lines, 1):
        found = re.fullmatch(r"([0-9a-fA-F]{64}) [ *](.+)", line)
        path = PurePosixPath(found[2]) if found else PurePosixPath("..")
        if not found or path.is_absolute() or ".." in path.parts:
            said = f"{MANIFEST} line {number}: expected a SHA-256 and a file within the folder, as sha256sum writes it"
            yield Problem("E_MANIFEST_HASH", said)
            continue
        digest = known.get(path.as_posix())
        if digest is None:
            try:
                digest = sha256((root / path).read_bytes() if (root / path).is_file() else b"").hexdigest()
            except OSError:
                digest = ""
        if digest != found[1].lower():
            there = "is not the file that" if os.path.exists(root / path) else "is not there, and"
            yield Problem(
                "E_MANIFEST_HASH",
                f"{shown(str(path))} {there} {MANIFEST} lists; copy it again, or write the list anew if the change was "
                "meant",
            )


def near_duplicates(splits: Splits, checks: Checks) -> list[tuple[str, str]]:
    """Pairs of images over two splits that look nearly the same, such as neighbouring frames of a video.

    By the correlation of grey thumbnails, so that brightness, compression and size do not matter.
    """
    rows, names, homes, pictures = [], [], [], []
    for number, of_split in enumerate(splits.values()):
        for name in of_split:
            check = checks.get(name)
            if check is not None and check.thumb is not None and check.thumb.std() >= FLAT:
                flat = check.thumb.astype(np.float32).ravel()
                flat -= flat.mean()
                rows.append(flat / np.linalg.norm(flat))
                names.append(name)
                homes.append(number)
                pictures.append(check.picture)
    if not rows:
        return []
    vectors, home = np.stack(rows), np.array(homes)
    found = []
    for begin in range(0, len(names), 1024):
        alike = vectors[begin : begin + 1024] @ vectors.T >= ALIKE
        alike &= home[begin : begin + 1024, None] < home[None, :]
        rows_alike, others = (where[:MOST_PAIRS] for where in alike.nonzero())
        found += [(begin + int(i), int(j)) for i, j in zip(rows_alike, others, strict=True)]
        if len(found) > MOST_PAIRS:
            break
    return [(names[i], names[j]) for i, j in found if pictures[i] != pictures[j] and names[i] != names[j]]
