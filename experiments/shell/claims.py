"""Who works in a folder that several machines see: a numbered file that its owner rewrites every few seconds.

The lock of the system (`files.locked`) keeps processes of one machine apart. Between machines it may not: NFS without
locks and some parallel file systems grant it twice. A file that is created only where none was is the same everywhere.
"""

import os
import re
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from experiments.shell.ending import InUseError, of_writing

BEAT, SILENCE = 5.0, 30.0  # seconds between two signs of life, and without one until an owner is taken for gone
NAME = ".claim-{}"


class Claim:
    """The claim of this process to a folder; its number, the `attempt`, grows each time an owner is gone.

    Raises InUseError where another machine has given a sign of life. `check` raises it where this process itself was
    taken for gone, as after it had been suspended: what it then writes would replace the work of the new owner.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.host, self._beats = folder.absolute(), socket.gethostname(), 0
        self._mine = f"process {os.getpid()} on {self.host} "
        before = max(self._numbers(), default=0)
        if before:
            self._wait_for(before)
        self.attempt = before + 1
        self.path = self._named(self.attempt)
        try:
            os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
            self._beat()
        except FileExistsError:
            raise InUseError(self._in_use(self.attempt)) from None
        except OSError as error:
            raise of_writing(error, self.path) from error
        for number in self._numbers():
            if number < self.attempt:
                self._named(number).unlink(missing_ok=True)
        self._ended = threading.Event()
        threading.Thread(target=self._live, daemon=True, name="claim").start()

    def check(self) -> None:
        """Call it before something is written. Looks at two names alone, as a listing may be kept for long.

        The next number is that of who took over. When that has ended, too, this one is gone, or somebody else's.
        """
        theirs = _read(self._named(self.attempt + 1)) or _read(self.path)
        if self._named(self.attempt + 1).exists() or not _read(self.path).startswith(self._mine):
            owner = theirs.rpartition(" ")[0] or "another process"
            raise InUseError(
                f"{self.folder} was taken over by {owner}, as this process had given no sign of life for "
                f"{SILENCE:.0f} seconds: it ends, and has not written what it had since"
            )

    def release(self) -> None:
        self._ended.set()
        with suppress(OSError):  # it is in the way of nobody for long
            self.path.unlink(missing_ok=True)

    def _wait_for(self, number: int) -> None:
        """Returns where the owner of a claim is gone: at once one of this machine, as the system's lock is ours."""
        path = self._named(number)
        first = _read(path)
        if first.partition(" on ")[2].rpartition(" ")[0] == self.host:
            return
        until = time.monotonic() + SILENCE
        while path.exists() and time.monotonic() < until:
            if _read(path) != first:
                raise InUseError(self._in_use(number))
            time.sleep(min(BEAT / 5, 1.0))
        if path.exists():
            owner = first.rpartition(" ")[0] or "somebody"
            sys.stderr.write(f"{self.folder}: {owner} has given no sign of life for {SILENCE:.0f} s; taken over\n")

    def _live(self) -> None:
        while not self._ended.wait(BEAT):
            with suppress(OSError):
                self._beat()

    def _beat(self) -> None:
        """Raises FileNotFoundError where another one is the owner, or it was released: it is not made anew."""
        self._beats += 1
        with self.path.open("r+", encoding="utf-8") as file:
            if (found := file.read()) and not found.startswith(self._mine):
                raise FileNotFoundError(self.path)
            file.seek(0)
            file.write(f"{self._mine}{self._beats}")

    def _in_use(self, number: int) -> str:
        owner = _read(self._named(number)).rpartition(" ")[0] or "another process"
        return f"{self.folder} is in use by {owner}, attempt {number}: wait for it, or choose another folder with --out"

    def _named(self, number: int) -> Path:
        return self.folder / NAME.format(number)

    def _numbers(self) -> list[int]:
        found = (re.fullmatch(NAME.format(r"(\d{1,9})"), name) for name in os.listdir(self.folder))
        return [int(match[1]) for match in found if match]


def _read(path: Path) -> str:
    """The words of a claim, which may be gone or half written."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
