"""What a data set in files holds, as one short name wherever it lies: of its classes, splits, names, contents.

Hashing reads every file, so what was read is kept in the user's cache, by the size and times of every file, and with
it that the folder was verified. SEGLAB_CACHE names another folder for it. Where none can be written to, nothing is
kept.
"""

import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path

from datamodules.files import files_below, read_bytes, read_lines
from datamodules.layouts.source import Source

VERSION = 3  # of the checks in datamodules/verify.py and of this record: what others have kept is not taken over
FRESH = 2 * 10**9  # ns; a file changed so shortly before may change again without another time: nothing is kept of it


@dataclass(frozen=True)
class Record:
    """What is known of a folder whose files have these sizes and times."""

    files: dict[str, list[int]]  # by path: bytes, and times of change of the content and of the entry in ns
    digests: dict[str, str] = field(default_factory=dict)  # SHA-256 of images and masks, by path
    verified: list[str] = field(default_factory=list)  # for these classes and this ignore_index; empty where not
    warnings: list[str] = field(default_factory=list)  # what verifying it had to say
    version: int = VERSION


def fingerprint(source: Source) -> str:
    """16 hexadecimal digits of the SHA-256 of a data set: equal contents and splits give equal ones, on any machine.

    Counted are the classes, the names in each split in their order, and of these the bytes of image and mask and what
    the layout makes of them. Groups are not, as they change no weight and no score. Raises as
    `datamodules.verify.check_layout` and `datamodules.files` do.
    """
    splits, images, masks = source.splits, source.images, source.masks
    record = stored_record(source)
    digests = dict(record.digests) if record else {}

    def digest(path: Path) -> str:
        place = _relative(source, path)
        if place not in digests:  # a file of annotations has many images
            digests[place] = sha256(read_bytes(path)).hexdigest()
        return digests[place]

    def mark(path: Path) -> str:
        word = source.word(path)  # of a mask that is of the class which its folder says
        return f"{word}:{digest(path)}" if word else digest(path)

    names = list(dict.fromkeys(name for of_split in splits.values() for name in of_split))
    if missing := [name for name in names if name not in images or name not in masks]:
        raise ValueError(
            f"{source.root} has no image or no mask for {', '.join(missing[:5])}; verify() lists every problem"
        )
    listed = source.layout.classes is None
    content = {
        "classes": read_lines(source.root / "classes.txt") if listed else source.classes.names,
        "splits": splits,
        "files": {name: [digest(images[name][0]), *map(mark, masks[name])] for name in names},
    }
    content |= {"reading": source.reading} if source.reading else {}
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def digest_files(root: str | Path | None, pattern: str) -> str:
    """16 hexadecimal digits of the SHA-256 of `files_below`, by their places below `root`: for `identify`.

    Every file is read each time. Raises as `files_below` does, and ValueError for a file that is empty or unreadable.
    """
    files = {path.relative_to(root or "").as_posix(): path for path in files_below(root, pattern)}
    content = {place: sha256(read_bytes(path)).hexdigest() for place, path in files.items()}
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def stored_record(source: Source) -> Record | None:
    """What is kept of the data, if none of their files has changed since."""
    try:
        stored = json.loads(_place(source).read_text(encoding="utf-8"))
        record = Record(**stored)
    except (OSError, ValueError, TypeError, RuntimeError):  # a RuntimeError where the user has no home
        return None
    return record if record.version == VERSION and record.files == file_states(source) else None


def keep_record(source: Source, record: Record) -> None:
    """Keeps it for later processes, unless a file is so new that it may still change unseen."""
    newest = max((max(state[1:]) for state in record.files.values()), default=0)
    if time.time_ns() - newest < FRESH:
        return
    try:
        place = _place(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=place.parent, suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(asdict(record), file)
        os.replace(temporary, place)
    except (OSError, RuntimeError):
        pass  # it is found again each time


def file_states(source: Source) -> dict[str, list[int]]:
    """Size and times of every file that counts; of a link those of what it points to."""
    states = {}
    named = [*source.named_files()]
    if source.layout.plain:  # also files that are no part of the set, as each is a problem or a warning
        for part in ("images", "masks"):
            with os.scandir(source.root / part) as entries:
                for entry in entries:
                    try:
                        state = entry.stat()
                    except OSError:  # a broken link, which is a problem of its own
                        state = entry.stat(follow_symlinks=False)
                    states[f"{part}/{entry.name}"] = [state.st_size, state.st_mtime_ns, state.st_ctime_ns]
    else:
        named += [path for files in (source.images, source.masks) for paths in files.values() for path in paths]
    for path in named:
        try:
            state = path.stat()
        except OSError:
            state = path.lstat()
        states[_relative(source, path)] = [state.st_size, state.st_mtime_ns, state.st_ctime_ns]
    return dict(sorted(states.items()))


def make_record(
    source: Source,
    states: Mapping[str, list[int]],
    digests: Mapping[Path, str],
    verified: Sequence[str],
    warned: Sequence[str],
) -> Record:
    """`states` are those from before anything was read."""
    by_path = {_relative(source, path): digest for path, digest in digests.items()}
    return Record(dict(states), by_path, list(verified), list(warned))


def _relative(source: Source, path: Path) -> str:
    start, text = f"{source.root}{os.sep}", str(path)
    inside = text[len(start) :] if text.startswith(start) else os.path.relpath(path, source.root)
    return inside.replace(os.sep, "/")


def cache_folder() -> Path:
    """Where the project keeps what it can find again: SEGLAB_CACHE, or a folder in the user's cache.

    Raises RuntimeError where the user has no home.
    """
    own = os.environ.get("SEGLAB_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "seglab")


def _place(source: Source) -> Path:
    settings = source.settings()
    where = os.fsencode(os.path.realpath(source.root)) + (b"\0" + settings.encode()) * (settings != "{}")
    name = sha256(where).hexdigest()[:32]
    return cache_folder() / "data" / f"{name}.json"
