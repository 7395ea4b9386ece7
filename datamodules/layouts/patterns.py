"""The files of a pattern such as `raw/{split}/{name}_image.*`, and what its placeholders are in each."""

import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from datamodules.checks.problems import coded, shown
from datamodules.files import IMAGE_ENDINGS, JUNK, readable

PLACEHOLDERS = ("name", "number", "split", "class")
TOKEN = re.compile(r"\{(\w*)\}|\*")
ENDINGS = {*IMAGE_ENDINGS, ".npy"}  # of what `.*` at the end stands for
Bound = dict[str, str]  # by placeholder; "tree" has the folders of `**`, each with its slash


def check_pattern(key: str, pattern: str) -> None:
    """Raises ValueError for a placeholder that is not known, and for one that names no image."""
    for found in TOKEN.finditer(pattern):
        if found[1] is not None and found[1] not in PLACEHOLDERS:
            known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
            raise coded("E_LAYOUT", f"{key}: {found[0]} in {pattern!r} is not known; the placeholders are {known}")
    if key == "images" and "{name}" not in pattern and "{number}" not in pattern:
        raise coded("E_LAYOUT", f"images must have {{name}} or {{number}} where the name of an image is: {pattern!r}")
    if pattern.count("**") > 1 or any("**" in part and part != "**" for part in pattern.split("/")):
        raise coded("E_LAYOUT", f"{key}: '**' stands once, for whole folders, as in raw/**/{{name}}.jpg: {pattern!r}")


def find(root: Path, pattern: str, words: Mapping[str, Sequence[str]]) -> Iterator[tuple[Path, Bound]]:
    """Every file of the pattern in the order of its path; `words` has what {split} and {class} may be.

    Hidden files and those of file managers do not count. ValueError for a folder that cannot be read.
    """
    choices = tuple((key, tuple(sorted(of_key, key=len, reverse=True))) for key, of_key in sorted(words.items()))
    yield from _walk(root, tuple(pattern.split("/")), {}, choices, frozenset())


def _walk(
    folder: Path,
    parts: tuple[str, ...],
    bound: Bound,
    choices: tuple[tuple[str, tuple[str, ...]], ...],
    above: frozenset[str],
) -> Iterator[tuple[Path, Bound]]:
    head, rest = parts[0], parts[1:]
    if rest and not TOKEN.search(head):
        if os.path.isdir(folder / head):
            yield from _walk(folder / head, rest, bound, choices, above)
        return
    if head == "**":
        yield from _walk(folder, rest, bound, choices, above)
    with readable(shown(f"{folder.name}/")):
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    for entry in entries:
        name = unicodedata.normalize("NFC", entry.name)
        if name.startswith(".") or name in JUNK:
            continue
        if head == "**":
            real = os.path.realpath(entry.path)
            if os.path.isdir(entry.path) and real not in above:  # a link to a folder above would be followed for ever
                below = {**bound, "tree": f"{bound.get('tree', '')}{name}/"}
                yield from _walk(folder / entry.name, parts, below, choices, above | {real})
        elif (match := _part(head, tuple(bound.items()), choices).fullmatch(name)) is not None:
            if rest and os.path.isdir(entry.path):
                yield from _walk(folder / entry.name, rest, {**bound, **match.groupdict()}, choices, above)
            elif not rest and (not head.endswith(".*") or os.path.splitext(name)[1].lower() in ENDINGS):
                yield folder / entry.name, {**bound, **match.groupdict()}


@lru_cache(maxsize=4096)
def _part(
    head: str, bound: tuple[tuple[str, str], ...], choices: tuple[tuple[str, tuple[str, ...]], ...]
) -> re.Pattern[str]:
    known, words = dict(bound), dict(choices)
    made, last, seen = "", 0, set[str]()
    for token in TOKEN.finditer(head):
        made += re.escape(head[last : token.start()])
        last, key = token.end(), token[1]
        if key is None:
            made += ".*"
        elif key in known:
            made += re.escape(known[key])
        elif key in seen:
            made += f"(?P={key})"
        else:
            seen.add(key)
            made += f"(?P<{key}>{_form(key, words.get(key, ()))})"
    return re.compile(made + re.escape(head[last:]), re.DOTALL)


def _form(key: str, words: tuple[str, ...]) -> str:
    if key == "number":
        return "[0-9]{1,18}"
    if key == "split":
        return f"(?i:{'|'.join(map(re.escape, words)) or '(?!)'})"
    return "|".join(map(re.escape, words)) or ".+"  # a class in a folder of its own may be any


def matched(head: str, name: str, bound: Bound, words: Mapping[str, Sequence[str]]) -> Bound | None:
    """What the placeholders of the last part of a pattern are in a file's name, where those of `bound` are known."""
    choices = tuple((key, tuple(sorted(of_key, key=len, reverse=True))) for key, of_key in sorted(words.items()))
    found = _part(head, tuple(bound.items()), choices).fullmatch(unicodedata.normalize("NFC", name))
    return found.groupdict() if found else None
