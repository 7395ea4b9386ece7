"""Every file of a run is written whole: a killed process leaves the old file or the new one, never half of one."""

import json
import os
import re
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from experiments.shell.claims import NAME, Claim
from experiments.shell.ending import InUseError, NoSpaceError, of_writing

if sys.platform == "win32":
    import msvcrt

    def _take(file: IO[str]) -> None:
        """Locks far behind its content, which others must be able to read; OSError where another process has it."""
        file.seek(1 << 30)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _take(file: IO[str]) -> None:
        """OSError where another process has it."""
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


PREDICTION = "{:05}.png"  # in predictions.zip, by the position in the test split
VANISHED = 1000  # times that a folder may be removed between its making and its lock


def slug(name: str) -> str:
    """A file name for an experiment's name, which is a user's and may hold any character."""
    return re.sub(r"[^\w.-]+", "-", name).strip(".-") or "experiment"


def write_whole(
    path: Path,
    write: Callable[[IO[bytes]], Any],
    needed: int | None = None,
    before: Callable[[Path], Any] = lambda temporary: None,
) -> None:
    """Calls `write` on a temporary file in the folder of `path`, then renames it to `path`.

    The same folder, because a rename is atomic only inside one file system. `needed` are the bytes it takes, where they
    are known; `before` gets the temporary file, written whole, before it is renamed. Raises NoSpaceError or
    CannotWriteError, which name `path`, and leaves nothing behind.
    """
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if needed is not None:
            check_space(path, needed)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=temporary_prefix(path), suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp gives 0600, which a colleague cannot read
        before(Path(temporary))
        for claim in _claims:
            if path.absolute().is_relative_to(claim.folder):
                claim.check()
        os.replace(temporary, path)
    except BaseException as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        if cause := _of_system(error):
            raise of_writing(cause, path, needed) from error
        raise


def temporary_prefix(path: Path) -> str:
    """Of what will become `path`, with the number of this process: when that is gone, `remove_stale` removes it."""
    return f".{path.name}.{os.getpid()}."


def check_space(path: Path, needed: int) -> None:
    """Raises NoSpaceError where the file system of `path` has fewer than `needed` bytes left."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise NoSpaceError(
            f"no space left to write {path}, which takes {needed:,} bytes where {free:,} are free: free some, or "
            "choose another folder with --out"
        )


def _of_system(error: BaseException) -> OSError | None:
    """The system's error that stopped the writing; torch hides that of a full disk behind one of its own."""
    if isinstance(error, OSError):
        return error if error.errno else None
    hidden = error.__context__ if isinstance(error, RuntimeError) else None
    return hidden if isinstance(hidden, OSError) and hidden.errno else None


def remove_stale(folder: Path) -> None:
    """Removes what killed processes had begun to write into `folder`; call it while the folder is `locked`."""
    for path in folder.glob(".*.tmp"):
        # Of earlier versions the name has no process; theirs are gone, as the folder is locked.
        writer = re.fullmatch(r"\..+?\.(?:(\d+)\.)?[a-z0-9_]{8}\.tmp", path.name)
        if writer and not (writer[1] and _is_alive(int(writer[1]))):
            path.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    if sys.platform == "win32":  # where os.kill would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


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
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise ValueError("no regular file")
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
        wrong = "" if isinstance(content, dict) else f"expected an object, got {json.dumps(content)[:40]}"
    except (OSError, ValueError, RecursionError) as error:
        wrong = str(error)
    if wrong:
        way_out = f"delete {path.parent} and run the experiment again"
        if path.name == "plan.json":  # whose folder holds every finished cell
            way_out = "delete this file alone and start the experiment again, which keeps its finished cells"
        raise ValueError(f"{path} cannot be read as JSON ({wrong}): {way_out}")
    settings: dict[str, Any] = content
    return settings


def _no_number(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _plain(obj: Any) -> Any:
    if isinstance(obj, dict):
        return {str(key): _plain(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [_plain(value) for value in obj]
    if isinstance(obj, float) and obj - obj != 0:
        return None
    return obj


@contextmanager
def locked(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """One process a folder: a second one would write the same files. The lock goes with the process, however it ends.

    Between machines `claims.Claim` keeps them apart. Raises CannotWriteError or NoSpaceError for a folder that cannot
    be written to, InUseError for one that is still in use after `patience` seconds. What killed processes had begun to
    write is removed; so is the lock where it is all that is there, and a folder made for it.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    file, claim = _own(folder, patience)
    with file:
        # The host is known to who shares the folder while it is in use, and to nobody after.
        file.write(f"{os.getpid()} on {socket.gethostname()}")
        file.flush()
        _held.add(file.fileno())
        _claims.append(claim)
        for place in (folder, folder / "checkpoints"):
            if not place.is_symlink() or place == folder:
                remove_stale(place)
        try:
            yield
        finally:
            _held.discard(file.fileno())
            _claims.remove(claim)
            claim.release()
            file.truncate(0)
            _remove_empty(folder, made)


def is_of_lock(name: str) -> bool:
    """Whether a file is one that `locked` keeps in the folder."""
    return name == ".lock" or name.startswith(NAME.format(""))


def _own(folder: Path, patience: float) -> tuple[IO[str], Claim]:
    until = time.monotonic() + patience
    while True:
        file: IO[str] | None = None
        try:
            file = _lock(folder)
            return file, Claim(folder)
        except BaseException as error:
            if file is not None:
                file.close()
            if not isinstance(error, InUseError) or time.monotonic() > until:
                raise
        time.sleep(0.5)


def _lock(folder: Path) -> IO[str]:
    """The lock of a folder, held until it is closed."""
    vanished = 0
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Not through a link, which would have this empty the file it leads to.
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
            file = os.fdopen(os.open(folder / ".lock", flags, 0o644), "a+", encoding="utf-8")
        except FileNotFoundError as error:  # the process before this one has just removed it
            vanished += 1
            if vanished > VANISHED:  # or no folder can be made there: in /proc, or in one that has been deleted
                raise of_writing(error, folder) from error
            continue
        except OSError as error:
            raise of_writing(error, folder) from error
        try:
            _take(file)
        except OSError:
            file.seek(0)
            holder = file.read() or "?"
            file.close()
            raise InUseError(
                f"{folder} is in use by process {holder}: wait for it, or choose another folder with --out"
            ) from None
        try:
            if os.path.samestat(os.fstat(file.fileno()), os.lstat(folder / ".lock")):
                file.truncate(0)
                return file
        except FileNotFoundError:
            pass
        file.close()  # of a file that has been removed since


def _remove_empty(folder: Path, made: Sequence[Path]) -> None:
    """Removes a lock that is all there is, as after a dry run or a refusal, and the folders that were `made` for it."""
    with suppress(OSError):  # it is in the way of nobody
        if [path.name for path in folder.iterdir()] == [".lock"]:
            (folder / ".lock").unlink()
            for place in made:
                place.rmdir()


_held: set[int] = set()  # descriptors of the locks of this process
_claims: list[Claim] = []  # of this process


def _let_go() -> None:
    """A process that loads data inherits a lock, and would hold it for seconds after the end of the one that trains."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()
    _claims.clear()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_let_go)
