"""Suggests a dataset.yaml for a folder of images and masks as it lies, each key with its reason."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from datamodules.files import IMAGE_ENDINGS, JUNK
from datamodules.layouts import lists
from datamodules.layouts.meanings import (
    Suggestion,
    looks_like_labels,
    state_classes,
    state_images,
    state_splits,
    state_words,
    values_of,
)

MOST_FILES = 200_000
MOST_GROUPS = 80  # the largest, whose pairs are tried
MASK_WORDS = re.compile(
    r"(?i)mask|label|annot|seg|(?<![a-z])gt|ground.?truth|matte|trimap|class|target|(?<![a-z])ann(?![a-z])|manual"
)
TAIL = re.compile(r"[_\-. ][A-Za-z0-9]*[A-Za-z][A-Za-z0-9]*$")
ALIASES = lists.WORDS
SPLIT_WORD = re.compile(rf"(?i)(?<![a-z])(?:{'|'.join(sorted(ALIASES, key=len, reverse=True))})(?![a-z])")
ENDINGS = {*IMAGE_ENDINGS, ".npy", ".json", ".gif"}
LOSSY = {".jpg", ".jpeg"}
Key = tuple[str, str]  # the split that a folder says, or nothing, and the folders of ** with the name of the image


@dataclass
class _Group:
    """Files of one folder, kind and form of name."""

    pattern: str
    files: dict[Key, list[Path]]

    @property
    def several(self) -> bool:
        return "*" in self.pattern.replace("**/", "")

    @property
    def annotated(self) -> bool:
        return self.pattern.endswith(".json")

    @property
    def first(self) -> Path:
        return next(iter(self.files.values()))[0]


def suggest(root: Path) -> Suggestion | None:
    """A layout by which images and masks in `root` go together; None where no two files do."""
    paths = list(_files(root))
    groups = _groups(root, paths)
    best: tuple[float, _Group, _Group, bool] | None = None
    for images in groups:
        if images.several or images.annotated or images.first.suffix.lower() == ".gif":
            continue
        for masks in groups:
            for numbers in (False, True) if masks is not images else ():
                score = _score(images, masks, numbers)
                if score > 0 and (best is None or score > best[0]):
                    best = (score, images, masks, numbers)
    if best is None:
        return _of_coco(root, groups, paths)
    _, images, masks, numbers = best
    pairs = _matches(images, masks, numbers)
    patterns = [group.pattern.replace("{name}", "{number}") if numbers else group.pattern for group in (images, masks)]
    made = Suggestion({"images": patterns[0], "masks": patterns[1]})
    rest = len(images.files) - len(pairs)
    without = f"; {rest} more images have none" if rest else ""
    made.reasons["images"] = f"{len(pairs)} images have masks by these patterns{without}"
    if kin := [group for group in groups if _kin(group, masks, images, numbers)]:
        _by_class(made, [masks, *kin])
    else:
        state_classes(made, root, paths, masks.pattern, [of[0] for of in masks.files.values()], several=masks.several)
    state_images(made, [images.files[image][0] for image, _ in pairs])
    state_splits(made, root, paths, {"/".join(filter(None, image)): images.files[image] for image, _ in pairs})
    return made


def _kin(group: _Group, masks: _Group, images: _Group, numbers: bool) -> bool:
    """Whether the group is the masks of another class: one folder's name differs, and the images are the same."""
    of_each = [one.pattern.split("/") for one in (group, masks)]
    if group is masks or masks.annotated or len(of_each[0]) != len(of_each[1]) or "**" in of_each[0]:
        return False
    differ = [(a, b) for a, b in zip(*of_each, strict=True) if a != b]
    if len(differ) != 1 or "{" in "".join(differ[0]) or of_each[0][0] != of_each[1][0]:  # in one folder of masks
        return False
    mine, theirs = _matches(images, group, numbers), _matches(images, masks, numbers)
    return len({*mine} & {*theirs}) > 0.8 * len(theirs) and all(
        len(values_of(one.first)) <= 2 for one in (group, masks)
    )


def _by_class(made: Suggestion, groups: Sequence[_Group]) -> None:
    parts = [group.pattern.split("/") for group in groups]
    place = next(i for i in range(len(parts[0])) if len({of[i] for of in parts}) > 1)
    made.layout["masks"] = "/".join([*parts[0][:place], "{class}", *parts[0][place + 1 :]])
    words = sorted(of[place] for of in parts)
    below = [] if any(word.strip("_").casefold() == "background" for word in words) else ["background"]
    made.layout["classes"] = [*below, *words]
    made.reasons["classes"] = "a folder a class; what is not 0 in a file belongs to it, and the rest is background"


def _files(root: Path) -> Iterator[Path]:
    found = 0
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = os.path.relpath(folder, root)
        for name in sorted(names):
            odd = any(char in f"{inside}{name}" for char in "{}*")  # which patterns have other uses of
            if not name.startswith(".") and name not in JUNK and not odd:
                yield Path(folder, name)
                found += 1
        if found > MOST_FILES:
            return


Entry = tuple[str, str, str, Path]  # split, folders of **, name without ending, file


def _groups(root: Path, paths: Sequence[Path]) -> list[_Group]:
    by_form: dict[tuple[tuple[str, ...], str], list[Entry]] = {}
    for path in paths:
        if path.suffix.lower() in ENDINGS:
            split, parts = "", list[str]()
            for part in PurePosixPath(path.relative_to(root).as_posix()).parent.parts:
                word = SPLIT_WORD.search(part) if not split else None
                split = ALIASES[word[0].casefold()] if word else split
                parts.append(f"{part[: word.start()]}{{split}}{part[word.end() :]}" if word else part)
            by_form.setdefault((tuple(parts), path.suffix), []).append((split, "", path.stem, path))
    groups = [group for (folder, ending), entries in by_form.items() for group in _named(folder, ending, entries)]
    for (folder, ending), entries in _trees(by_form).items():
        groups += _named(folder, ending, entries)
    groups = [*groups, *_by_folder(by_form)]
    return sorted((g for g in groups if len(g.files) > 1), key=lambda g: -len(g.files))[:MOST_GROUPS]


def _named(folder: tuple[str, ...], ending: str, entries: Sequence[Entry]) -> Iterator[_Group]:
    """A group for each form of name: what stands before and behind the name of the image."""
    chains: Counter[str] = Counter()
    of_stem = {}
    for _, _, stem, _ in entries:
        of_stem[stem] = [""]
        while found := TAIL.search(stem[: len(stem) - len(of_stem[stem][-1])]):
            of_stem[stem].append(found[0] + of_stem[stem][-1])
        chains.update(of_stem[stem][1:])
    common = {tail for tail, count in chains.items() if count >= max(2, len(entries) / 8)}
    parts: dict[str, list[Entry]] = {}
    for entry in entries:
        tail = max((t for t in of_stem[entry[2]] if t in common or not t), key=len)
        parts.setdefault(tail, []).append(entry)
    for tail, members in parts.items():
        stems = [stem.removesuffix(tail) if tail else stem for _, _, stem, _ in members]
        head = os.path.commonprefix(stems) if len(stems) > 1 else ""  # noqa: RUF071  text is meant
        for start in {re.sub(r"[0-9]+$", "", head), ""}:
            files: dict[Key, list[Path]] = {}
            for (split, tree, _, path), stem in zip(members, stems, strict=True):
                name = "/".join(filter(None, [tree, stem.removeprefix(start)]))
                files.setdefault((split, name), []).append(path)
            inside = "".join(f"{part}/" for part in folder)
            yield _Group(f"{inside}{start}{{name}}{tail}{ending}", files)


Forms = dict[tuple[tuple[str, ...], str], list[Entry]]


def _trees(by_form: Forms) -> Forms:
    """Files whose folders differ in one place, or in all behind it, such as raw/**/{name}.jpg."""
    trees: Forms = {}
    differ: dict[tuple[tuple[str, ...], str], set[str]] = {}
    for (parts, ending), entries in by_form.items():
        for place in range(len(parts)):
            for end in {place + 1, len(parts)}:
                between = "/".join(parts[place:end])
                if "{" in between:
                    continue
                key = ((*parts[:place], "**", *parts[end:]), ending)
                differ.setdefault(key, set()).add(between)
                trees.setdefault(key, []).extend((split, between, stem, path) for split, _, stem, path in entries)
    return {key: entries for key, entries in trees.items() if len(differ[key]) > 1}


def _by_folder(by_form: Forms) -> Iterator[_Group]:
    """Files in a folder of each image, such as ID/images/ID.png and ID/masks/*.png."""
    alike: dict[tuple[str, str, str], dict[str, list[Entry]]] = {}
    for (parts, ending), members in by_form.items():
        for place, name in enumerate(parts):
            above, below = "/".join(parts[:place]), "/".join(parts[place + 1 :])
            if "{" not in name:
                alike.setdefault((above, below, ending), {})[name] = members
    for (above, below, ending), of_names in alike.items():
        if len(of_names) < 3:
            continue
        inside = "/".join(filter(None, [above, "{name}", below]))
        files = {(of[0][0], name): [path for *_, path in of] for name, of in of_names.items()}
        stems = {of[0][2] for of in of_names.values()}
        if all(len(of) == 1 and of[0][2] == name for name, of in of_names.items()):
            yield _Group(f"{inside}/{{name}}{ending}", files)
        elif len(stems) == 1 and all(len(of) == 1 for of in of_names.values()):
            yield _Group(f"{inside}/{next(iter(stems))}{ending}", files)
        else:
            yield _Group(f"{inside}/*{ending}", files)
            often = Counter(stem for of in of_names.values() for _, _, stem, _ in of)
            for stem in (stem for stem, count in often.items() if count > 0.8 * len(of_names)):
                named = {(of[0][0], name): [e[3] for e in of if e[2] == stem] for name, of in of_names.items()}
                yield _Group(f"{inside}/{stem}{ending}", {key: paths for key, paths in named.items() if paths})


def _matches(images: _Group, masks: _Group, numbers: bool) -> list[tuple[Key, Key]]:
    """The files of both that belong together, by split where both have one, and by name or number."""
    both = all("{split}" in group.pattern for group in (images, masks))
    keys = [{(key[0] if both else "", key[1]): key for key in group.files} for group in (images, masks)]
    if any(len(of) < len(group.files) for of, group in zip(keys, (images, masks), strict=True)):
        return []
    if numbers:
        if any(not re.fullmatch(r"\d{1,18}", name) for of in keys for _, name in of):
            return []
        keys = [{(split, str(int(name))): key for (split, name), key in of.items()} for of in keys]
    return [(key, keys[1][short]) for short, key in keys[0].items() if short in keys[1]]


def _score(images: _Group, masks: _Group, numbers: bool) -> float:
    """How well the two go together as images and masks; 0 where they do not."""
    pairs = _matches(images, masks, numbers)
    if len(pairs) < 2 or len(pairs) < 0.5 * len(masks.files) or any(i == m for i, m in _paths(images, masks, pairs)):
        return 0.0
    first = masks.files[pairs[0][1]][0]
    if masks.annotated:
        if not _is_annotation(first):
            return 0.0
    elif not looks_like_labels(first):
        return 0.0
    named = bool(MASK_WORDS.search(masks.pattern)) - bool(MASK_WORDS.search(images.pattern))
    # A picture beside a mask first, then more pairs; what is called a mask; text before numbers; short patterns.
    pictures = 1.0 if not looks_like_labels(images.files[pairs[0][0]][0]) else 0.01
    lossy = 0.3 * (first.suffix.lower() in LOSSY)
    lossy += 0.05 if masks.annotated else 0.1 * any(isinstance(value, str) for value in values_of(first))
    score = len(pairs) + 0.5 * named - 0.2 * numbers - 0.1 * masks.several - lossy
    return pictures * score - 0.0001 * len(masks.pattern + images.pattern)


def _paths(images: _Group, masks: _Group, pairs: Sequence[tuple[Key, Key]]) -> Iterator[tuple[Path, Path]]:
    return ((images.files[image][0], masks.files[mask][0]) for image, mask in pairs)


def _is_annotation(path: Path) -> bool:
    from datamodules.layouts.polygons import read_annotation

    try:
        read_annotation(path)
    except (ValueError, OSError):
        return False
    return True


def _of_coco(root: Path, groups: Sequence[_Group], paths: Sequence[Path]) -> Suggestion | None:
    """Of images and a file of annotations, or one for each split."""
    from datamodules.layouts.polygons import classes_of, is_coco, read_coco

    drawn: dict[Path, Mapping[str, object]] = {}
    for path in (path for path in paths if path.suffix.lower() == ".json"):
        try:
            drawn |= {path: read_coco(path)} if is_coco(path) else {}
        except (ValueError, OSError):
            continue
    forms: dict[str, list[Path]] = {}
    for path in drawn:
        place = path.relative_to(root).as_posix()
        for form in {place, SPLIT_WORD.sub("{split}", place, count=1)}:
            forms.setdefault(form, []).append(path)
    best: tuple[int, str, _Group] | None = None
    for form, files in forms.items():
        last = {PurePosixPath(name).stem for path in files for name in drawn[path]}
        for group in groups:
            fits = group.pattern.count("{name}") == 1 and not group.annotated
            known = sum(name.rpartition("/")[2] in last for _, name in group.files)
            by_split = "{split}" in group.pattern or "{split}" not in form
            if fits and by_split and known > max(1, best[0] if best else 0):
                best = (known, form, group)
    if best is None:
        return None
    known, form, group = best
    made = Suggestion({"images": group.pattern, "masks": form})
    made.reasons["images"] = f"{known} images are named in annotations of COCO"
    state_words(made, classes_of(one for path in forms[form] for one in drawn[path].values()))  # type: ignore[misc]
    state_images(made, [of[0] for of in group.files.values()])
    state_splits(made, root, paths, {"/".join(filter(None, key)): of for key, of in group.files.items()})
    return made
