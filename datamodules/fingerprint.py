"""What a folder of images and masks holds, as one short name wherever it lies: of its classes, splits, names, contents.

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
from typing import Any

from datamodules.files import FOLDER, GROUPS, MANIFEST, SPLITS, files_by_name, read_bytes, read_lines, read_split

VERSION = 2  # of the checks in datamodules/verify.py and of this record: what others have kept is not taken over
FRESH = 2 * 10**9  # ns; a file changed so shortly before may change again without another time: nothing is kept of it


@dataclass(frozen=True)
class Record:
    """What is known of a folder whose files have these sizes and times."""

    files: dict[str, list[int]]  # by path: bytes, and times of change of the content and of the entry in ns
    digests: dict[str, str] = field(default_factory=dict)  # SHA-256 of images and masks, by path
    verified: list[str] = field(default_factory=list)  # for these classes and this ignore_index; empty where not
    warnings: list[str] = field(default_factory=list)  # what verifying it had to say
    version: int = VERSION


def fingerprint(root: Path, folder: str = FOLDER) -> str:
    """16 hexadecimal digits of the SHA-256 of `root`: equal contents and splits give equal ones, on any machine.

    `folder` has the lists of the splits.
    Counted are the classes, the names in each split in their order, and of these the bytes of image and mask; not
    groups.csv, which changes no weight and no score. Raises as
    `datamodules.verify.check_layout` and `datamodules.files` do.
    """
    splits = {split: read_split(root, split, folder) for split in SPLITS}
    images, masks = (files_by_name(root / folder) for folder in ("images", "masks"))
    record = stored_record(root, folder)
    digests = record.digests if record else {}

    def digest(path: Path) -> str:
        return digests.get(_relative(root, path)) or sha256(read_bytes(path)).hexdigest()

    names = list(dict.fromkeys(name for of_split in splits.values() for name in of_split))
    if missing := [name for name in names if name not in images or name not in masks]:
        raise ValueError(f"{root} has no image or no mask for {', '.join(missing[:5])}; verify() lists every problem")
    content = {
        "classes": read_lines(root / "classes.txt"),
        "splits": splits,
        "files": {name: [digest(images[name][0]), digest(masks[name][0])] for name in names},
    }
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def stored_record(root: Path, folder: str = FOLDER) -> Record | None:
    """What is kept of the folder, if none of its files has changed since."""
    try:
        stored = json.loads(_place(root, folder).read_text(encoding="utf-8"))
        record = Record(**stored)
    except (OSError, ValueError, TypeError, RuntimeError):  # a RuntimeError where the user has no home
        return None
    return record if record.version == VERSION and record.files == file_states(root, folder) else None


def keep_record(root: Path, record: Record, folder: str = FOLDER) -> None:
    """Keeps it for later processes, unless a file is so new that it may still change unseen."""
    newest = max((max(state[1:]) for state in record.files.values()), default=0)
    if time.time_ns() - newest < FRESH:
        return
    try:
        place = _place(root, folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=place.parent, suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(asdict(record), file)
        os.replace(temporary, place)
    except (OSError, RuntimeError):
        pass  # it is found again each time


def file_states(root: Path, folder: str = FOLDER) -> dict[str, list[int]]:
    """Size and times of every file that counts; of a link those of what it points to."""
    states = {}
    for part in ("images", "masks", folder, "."):
        with os.scandir(root / part) as entries:
            for entry in entries:
                if part != "." or entry.name in ("classes.txt", GROUPS, MANIFEST):
                    try:
                        state = entry.stat()
                    except OSError:  # a broken link, which is a problem of its own
                        state = entry.stat(follow_symlinks=False)
                    states[f"{part}/{entry.name}"] = [state.st_size, state.st_mtime_ns, state.st_ctime_ns]
    return dict(sorted(states.items()))


def make_record(
    root: Path, states: Mapping[str, list[int]], digests: Mapping[Path, str], verified: Sequence[str], warned: Any
) -> Record:
    """`states` are those from before anything was read."""
    by_path = {_relative(root, path): digest for path, digest in digests.items()}
    return Record(dict(states), by_path, list(verified), list(warned))


def _relative(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def cache_folder() -> Path:
    """Where the project keeps what it can find again: SEGLAB_CACHE, or a folder in the user's cache.

    Raises RuntimeError where the user has no home.
    """
    own = os.environ.get("SEGLAB_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "seglab")


def _place(root: Path, folder: str) -> Path:
    where = os.fsencode(os.path.realpath(root)) + (b"\0" + os.fsencode(folder)) * (folder != FOLDER)
    name = sha256(where).hexdigest()[:32]
    return cache_folder() / "data" / f"{name}.json"
