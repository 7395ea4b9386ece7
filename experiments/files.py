"""Every file of a run is written whole: a killed process leaves the old file or the new one, never half of one."""

import fcntl
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

PREDICTION = "{:05}.png"  # in predictions.zip, by the position in the test split


def slug(name: str) -> str:
    """A file name for an experiment's name, which is a user's and may hold any character."""
    return re.sub(r"[^\w.-]+", "-", name).strip(".-") or "experiment"


def write_whole(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Calls `write` on a temporary file in the folder of `path`, then renames it to `path`.

    The same folder, because a rename is atomic only inside one file system.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp gives 0600, which a colleague cannot read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_atomic(path: Path, data: str | bytes) -> None:
    """Writes text (UTF-8, a byte of a file's name that is no text as its number) or bytes."""
    write_whole(
        path, lambda file: file.write(data.encode(errors="backslashreplace") if isinstance(data, str) else data)
    )


def write_json(path: Path, obj: Any) -> None:
    """Writes JSON in the order given; NaN becomes null, as JSON has none."""
    write_atomic(path, json.dumps(_plain(obj), indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; a ValueError that names the file where it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        wrong = "" if isinstance(content, dict) else f"expected an object, got {json.dumps(content)[:40]}"
    except (OSError, ValueError) as error:
        wrong = str(error)
    if wrong:
        way_out = f"delete {path.parent} and run the experiment again"
        if path.name == "plan.json":  # whose folder holds every finished cell
            way_out = "delete this file alone and start the experiment again, which keeps its finished cells"
        raise ValueError(f"{path} cannot be read as JSON ({wrong}): {way_out}")
    found: dict[str, Any] = content
    return found


def _plain(obj: Any) -> Any:
    if isinstance(obj, dict):
        return {str(key): _plain(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [_plain(value) for value in obj]
    if isinstance(obj, float) and obj - obj != 0:
        return None
    return obj


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process a folder: a second one would write the same files. The lock goes with the process, however it ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot write to {folder} ({error.strerror}): choose another folder with --out") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise ValueError(
                f"{folder} is in use by process {file.read() or '?'}: wait for it, or choose another folder with --out"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
