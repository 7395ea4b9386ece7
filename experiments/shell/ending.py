"""How every command ends: one line for what a person can mend, and the exit status that docs/exit-codes.md lists."""

import errno
import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from experiments.shell.processes import by_lightning, first_process, started
from lightning_modules.components.errors import NonFiniteError

DONE, UNEXPECTED, USAGE, IN_PART = 0, 1, 2, 3
NON_FINITE, CANNOT_WRITE, NO_SPACE, IN_USE = 65, 73, 74, 75
# 129, 130, 143; Windows has no SIGHUP
SIGNALS = tuple(getattr(signal, name) for name in ("SIGHUP", "SIGINT", "SIGTERM") if hasattr(signal, name))
FAILED = "seglab/failed"  # in the store that the processes of a run share: what the first of them to fail said
# What a process of several is told by torch when another one is gone.
ANOTHER = re.compile(r"gloo|NCCL|by peer|remote process|Broken pipe|DistNetwork|store")
PATIENCE = 2.0  # seconds within which the process that is gone has said why: it does so before it goes


class CannotWriteError(ValueError):
    """A file or folder that cannot be written to."""


class NoSpaceError(OSError):
    """A full disk, a quota that is used up, or a disk that answers with an error."""


class InUseError(ValueError):
    """A folder that another process writes to."""


class WorkerError(RuntimeError):
    """A process that loads data was killed."""


class NoMemoryError(RuntimeError):
    """The memory of a device is too small for what it was to do."""


class ElsewhereError(NonFiniteError):
    """A number of another process is none, which that process names."""


class Interrupted(SystemExit):  # not an error: what a signal asked for
    """The end that SIGTERM, SIGHUP or SIGINT asked for; its exit status is 128 and the signal's number."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum


def status(error: BaseException) -> int | None:
    """The exit status of an error that its message explains; None for one that nobody expected."""
    kinds: tuple[tuple[type[BaseException], int], ...] = (
        (NonFiniteError, NON_FINITE),
        (CannotWriteError, CANNOT_WRITE),
        (NoSpaceError, NO_SPACE),
        (InUseError, IN_USE),
        (WorkerError, UNEXPECTED),
        (NoMemoryError, UNEXPECTED),
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
        if not first_process() and (started() or by_lightning()):
            sys.exit(0)  # with another status, torchrun and Lightning kill the first process while it still writes
        if interrupted and first_process():
            sys.stderr.write(f"\n{interrupted}\n")
        sys.exit(stop.code if isinstance(stop, Interrupted) else 128 + signal.SIGINT)
    except Exception as error:
        code, said = status(error), f"error: {error}"
        if (store := _shared_store()) is not None:
            code, said = _of_several(error, code, said, store)
        elif code is None:
            raise
        sys.stderr.write(f"{said}\n")
        sys.exit(code)


def _shared_store() -> Any:
    """What the processes of a run over several devices share, which lives as long as the first of them; else None."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return distributed.distributed_c10d._get_default_store() if distributed.get_world_size() > 1 else None


def _of_several(error: Exception, code: int | None, said: str, store: Any) -> tuple[int, str]:
    """What the first process of several is to say last: what went wrong first, in whichever it was.

    The others tell it through `store` and end here, in silence. They end with 0 where the first one notices by itself
    that they are gone, because Lightning kills it without a word where one ends with another status.
    """
    from torch import distributed

    rank = distributed.get_rank()
    follows = isinstance(error, ElsewhereError) or (code is None and bool(ANOTHER.search(f"{type(error)} {error}")))
    if code is None:
        said = "".join(traceback.format_exception(error)).rstrip()
    first = None
    try:
        if not follows:
            store.compare_set(FAILED, "", json.dumps([rank, code or UNEXPECTED, said]))
        until = time.monotonic() + PATIENCE
        while first is None:
            if store.check([FAILED]):
                first = json.loads(store.get(FAILED))
            elif rank or time.monotonic() > until:
                break
            else:
                time.sleep(0.05)
    except RuntimeError:  # the store has gone with the first process
        pass
    if rank:
        if first is None and not follows:
            sys.stderr.write(f"{said}\n")
        sys.exit(0 if first and distributed.get_backend() == "gloo" else code or UNEXPECTED)
    if first is None:
        gone = (
            "another process of this run is gone, most likely killed because the memory ran out: continue with --resume"
        )
        return code or UNEXPECTED, said if code else f"error: {gone} ({str(error).splitlines()[0][:200]})"
    number, code, said = first
    if number:
        said = re.sub(r"^error: ", f"error: process {number}: ", said)
    return code, said


def of_writing(error: OSError, path: os.PathLike[str] | str, needed: int | None = None) -> Exception:
    """What to raise instead of an `OSError` met while writing `path`: it names the file, the bytes and the way out."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        size = f", which takes {needed:,} bytes" if needed else ""
        return NoSpaceError(f"no space left to write {path}{size}: free some, or choose another folder with --out")
    if error.errno == errno.EIO:
        return NoSpaceError(f"the disk answered with an error while {path} was written: look after it")
    return CannotWriteError(f"cannot write {path} ({error.strerror}): choose another folder with --out")
