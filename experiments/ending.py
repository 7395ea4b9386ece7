"""How every command ends: one line for what a person can mend, and the exit status that docs/exit-codes.md lists."""

import errno
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from lightning_modules.components.errors import NonFiniteError

DONE, UNEXPECTED, USAGE, IN_PART = 0, 1, 2, 3
NON_FINITE, CANNOT_WRITE, NO_SPACE, IN_USE = 65, 73, 74, 75
SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)  # 129, 130, 143


class CannotWriteError(ValueError):
    """A file or folder that cannot be written to."""


class NoSpaceError(OSError):
    """A full disk, a quota that is used up, or a disk that answers with an error."""


class InUseError(ValueError):
    """A folder that another process writes to."""


class WorkerError(RuntimeError):
    """A process that loads data was killed."""


class Interrupted(SystemExit):  # not an error: what a signal asked for
    """The end that SIGTERM, SIGHUP or SIGINT asked for; its exit status is 128 and the signal's number."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum


def first_process() -> bool:
    """Whether this is the first of the processes that train one run on this machine; the others find what it has made."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def status(error: BaseException) -> int | None:
    """The exit status of an error that its message explains; None for one that nobody expected."""
    kinds: tuple[tuple[type[BaseException], int], ...] = (
        (NonFiniteError, NON_FINITE),
        (CannotWriteError, CANNOT_WRITE),
        (NoSpaceError, NO_SPACE),
        (InUseError, IN_USE),
        (WorkerError, UNEXPECTED),
        (ValueError, USAGE),
        (FileNotFoundError, USAGE),
    )
    return next((code for kind, code in kinds if isinstance(error, kind)), None)


@contextmanager
def ending(interrupted: str = "") -> Iterator[None]:
    """Ends the process with a line and a status for errors that a person can mend, and for signals; others pass.

    `interrupted` is what to say after Ctrl-C, SIGTERM or SIGHUP, such as how to go on.
    """
    try:
        yield
    except (KeyboardInterrupt, Interrupted) as stop:
        if not first_process():
            sys.exit(0)  # Lightning kills all processes of a run when one that it has started ends with another status
        if interrupted:
            sys.stderr.write(f"\n{interrupted}\n")
        sys.exit(stop.code if isinstance(stop, Interrupted) else 128 + signal.SIGINT)
    except Exception as error:
        code = status(error)
        if code is None:
            raise
        sys.stderr.write(f"error: {error}\n")
        sys.exit(code)


def of_writing(error: OSError, path: os.PathLike[str] | str, needed: int | None = None) -> Exception:
    """What to raise instead of an `OSError` met while writing `path`: it names the file, the bytes and the way out."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        size = f", which takes {needed:,} bytes" if needed else ""
        return NoSpaceError(f"no space left to write {path}{size}: free some, or choose another folder with --out")
    if error.errno == errno.EIO:
        return NoSpaceError(f"the disk answered with an error while {path} was written: look after it")
    return CannotWriteError(f"cannot write {path} ({error.strerror}): choose another folder with --out")
