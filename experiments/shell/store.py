"""A folder of a run kept in a store, s3://, gs:// or another folder: what a machine leaves, another one goes on from.

Files are sent whole or not at all, and in an order in which any beginning of them is a run that can go on: first what
is small, then checkpoints, and last the result.
"""

import hashlib
import json
import os
import shutil
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from experiments.shell.ending import CannotWriteError, InUseError
from experiments.shell.files import write_json, write_whole

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}  # of setup.cfg, by protocol
OBJECTS = {*EXTRAS, "abfs", "abfss", "az", "adl"}  # stores in which an upload is visible only when it is complete
MARK = ".store.json"  # who sent what is there, and how often: in the store, and where it was sent from or fetched to
TRIES, EVERY = 4, 30.0  # of a transfer; seconds between two transfers of a run that trains
LATE = ("checkpoints/last.ckpt.sha256", "checkpoints/last.ckpt", "result.json")


def opened(url: str, named: str) -> tuple[Any, str]:
    """The file system of a URL, and the place there; ValueError, which begins with `named`, where nothing opens it."""
    import fsspec

    try:
        filesystem, place = fsspec.core.url_to_fs(url)
    except ImportError as error:
        extra = EXTRAS.get(url.partition("://")[0])
        way_out = f'pip install -e ".[{extra}]"' if extra else str(error)
        raise ValueError(f"{named} needs a package: {way_out}") from error
    except ValueError as error:
        raise ValueError(f"{named} names no store: {error}") from error
    return filesystem, place


class Store:
    """The place of one folder in a store, by its URL.

    Raises ValueError for a URL that nothing here opens.
    """

    def __init__(self, url: str) -> None:
        protocol, _, place = url.rpartition("://")
        if not place.strip("/"):
            raise ValueError(f"--store {url!r} names no place: give a folder, or a URL such as s3://BUCKET/NAME")
        self.url, protocol = url.rstrip("/"), protocol or "file"
        self.fs, root = opened(self.url, f"--store {url}")
        self.root = root.rstrip("/")
        if "://" not in url:  # a process of another machine begins in another folder
            self.url = self.root
        self._whole = protocol in OBJECTS
        self._token = uuid.uuid4().hex
        self._sent: dict[str, tuple[int, int]] = {}  # size and time of change, by name
        self._count, self._last = 0, 0.0

    def at(self, *names: str) -> "Store":
        return Store("/".join([self.url, *names]))

    def near(self, levels: int) -> "Store":
        """The place of the folder so many levels above."""
        return Store(self.url.rsplit("/", levels)[0])

    def scratch(self) -> Path:
        """A folder of this machine for what is kept here."""
        return Path(tempfile.gettempdir(), f"seglab-{os.getuid()}", hashlib.sha256(self.url.encode()).hexdigest()[:16])

    def check_apart(self, folder: Path) -> None:
        """Raises ValueError where the store lies in `folder`: it would be sent into itself, and again each time."""
        local = self.url.partition("://")[0] in (self.url, "file", "local")
        if local and Path(self.root).resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"--store {self.url} lies in {folder}, which it is to keep: choose a place beside it")

    def has(self, name: str) -> bool:
        return bool(self._try(f"look for {name} in", lambda: self._is_there(f"{self.root}/{name}")))

    def names(self) -> list[str]:
        """The files that are kept, by their paths in the folder, but for those whose names begin with a point."""

        def found() -> list[str]:
            self.fs.invalidate_cache()
            return [*self.fs.find(self.root)] if self._is_there(self.root) else []

        prefix = f"{self.root.lstrip('/')}/"
        names = [path.lstrip("/").removeprefix(prefix) for path in self._try("list", found)]
        return sorted(name for name in names if not any(part.startswith(".") for part in name.split("/")))

    def send(self, path: Path) -> None:
        """Sends one file, into the folder itself."""
        self._put(path, path.name)

    def bring(self, name: str, path: Path) -> bool:
        """Fetches one file to `path`; False where it is not kept."""
        if not self.has(name):
            return False
        self._get(name, path)
        return True

    def fetch(self, folder: Path, wanted: Callable[[str], bool] | None = None) -> None:
        """Brings what is kept and wanted, each file whole, whatever the folder has; None for all."""
        mark = self._mark()
        for name in _in_order(filter(wanted, self.names())):
            self._get(name, folder / name)
        if wanted is None and mark:
            write_json(folder / MARK, mark)

    def pull(self, folder: Path) -> None:
        """Brings what is kept where another machine has sent it since, and takes the place over.

        Raises ValueError where the folder has a run of its own that was never kept here, or holds the store.
        """
        self.check_apart(folder)
        theirs, mine = self._mark(), _json(folder / MARK)
        if theirs and _behind(mine, theirs):
            if not mine and (folder / "checkpoints").exists():
                raise ValueError(
                    f"{folder} and {self.url} both hold a run that the other does not know: choose another folder with "
                    "--out, or another --store"
                )
            write_json(folder / MARK, {"sent": None})  # known for the beginning of theirs where it is broken off
            self.fetch(folder)
            self._sent = {name: _state(folder / name) for name in self.names()}
        self._put_mark(folder, theirs.get("sent", ""))

    def is_from(self, folder: Path) -> bool:
        """Whether what is kept was last sent from `folder`."""
        token = _json(folder / MARK).get("token")
        return token is not None and self._mark().get("token") == token

    def push(self, folder: Path, *, at_most_every: float = 0.0) -> None:
        """Sends what has changed. Raises InUseError where another machine has taken the place over."""
        if time.monotonic() - self._last < at_most_every:
            return
        self._check_owned(folder)
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        names = [name for name in files if not any(part.startswith(".") for part in name.split("/"))]
        for name in _in_order(names):
            if (state := _state(files[name])) != self._sent.get(name):
                self._put(files[name], name)
                self._sent[name] = state
                self._check_owned(folder)  # a transfer may take minutes
        self._count += 1
        self._put_mark(folder, f"{self._token} {self._count}")
        self._last = time.monotonic()

    def _is_there(self, path: str) -> bool:
        """Not `exists`, which answers False where the network fails: what is kept would be taken for nothing."""
        try:
            self.fs.info(path)
        except FileNotFoundError:
            return False
        return True

    def _check_owned(self, folder: Path) -> None:
        theirs = self._mark()
        if theirs and theirs.get("token") != self._token:
            raise InUseError(
                f"{self.url} was taken over by {theirs.get('host')}: this process ends, and leaves its own in {folder}"
            )

    def _mark(self) -> dict[str, Any]:
        path = f"{self.root}/{MARK}"

        def read() -> dict[str, Any]:
            self.fs.invalidate_cache()
            return dict(json.loads(self.fs.cat_file(path))) if self._is_there(path) else {}

        return dict(self._try("read", read))

    def _put_mark(self, folder: Path, sent: str) -> None:
        """Says that this process has the place, and what it has sent."""
        mark = {"token": self._token, "host": socket.gethostname(), "sent": sent}
        write_json(folder / MARK, mark)
        self._put(folder / MARK, MARK)

    def _put(self, path: Path, name: str) -> None:
        goal = f"{self.root}/{name}"
        begun = goal if self._whole else f"{goal.rpartition('/')[0]}/.{path.name}.{self._token}.tmp"

        def put() -> None:
            self.fs.makedirs(goal.rpartition("/")[0], exist_ok=True)
            self.fs.put_file(str(path), begun)
            if begun != goal:
                self.fs.mv(begun, goal)

        try:
            self._try(f"send {name} to", put)
        except BaseException:
            if begun != goal:
                with suppress(Exception):
                    self.fs.rm_file(begun)
            raise

    def _get(self, name: str, path: Path) -> None:
        def get() -> None:
            with self.fs.open(f"{self.root}/{name}", "rb") as kept:
                write_whole(path, lambda file: shutil.copyfileobj(kept, file, 2**20))

        self._try(f"fetch {name} from", get)

    def _try(self, what: str, act: Callable[[], Any]) -> Any:
        """Again after 1, 2 and 4 seconds, as a network fails for moments; CannotWriteError after that."""
        for attempt in range(TRIES):
            try:
                return act()
            except Exception as error:
                if attempt == TRIES - 1 or isinstance(error, PermissionError | ValueError):
                    raise CannotWriteError(
                        f"cannot {what} {self.url} ({type(error).__name__}: {error}): see to the network and to the "
                        "rights there; what is on this machine stays, and the same command goes on"
                    ) from error
                time.sleep(2**attempt)
        return None


@contextmanager
def kept(store: Store | None, folder: Path, check: Callable[[Path, str], None]) -> Iterator[Callable[[], None]]:
    """Begins with what the store has, gives a function that sends what is new, and sends all at the end.

    `check` gets a run.json that is kept, with the URL, and raises for another run, before its place is taken over. A
    store that cannot be reached while it trains is told on stderr and tried again; at the end it is an error.
    """
    if store is None:
        yield lambda: None
        return
    if store.bring("run.json", stored := folder / ".run.json"):
        try:
            check(stored, store.url)
        finally:
            stored.unlink(missing_ok=True)
    store.pull(folder)

    def send() -> None:
        try:
            store.push(folder, at_most_every=EVERY)
        except CannotWriteError as error:
            store._last = time.monotonic()
            sys.stderr.write(f"{error}\n")

    try:
        yield send
    except BaseException:
        with suppress(CannotWriteError, InUseError):
            store.push(folder)
        raise
    store.push(folder)


def _in_order(names: Any) -> Sequence[str]:
    return sorted(names, key=lambda name: (LATE.index(name) if name in LATE else -1, name))


def _behind(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether a folder lacks what a store has, by their marks; that of the store is older where it was cut off."""
    if (had := mine.get("sent")) is None:
        return True
    (owner, _, count), (known, _, until) = (str(sent).partition(" ") for sent in (theirs.get("sent", ""), had))
    return owner != known or int(count or 0) > int(until or 0)


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
