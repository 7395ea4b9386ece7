"""Where files go: space, writing, renaming, locks and the clock of the file system."""

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO

from experiments.machines.finding import Finding, ok, warning, wrong
from experiments.shell.ending import CANNOT_WRITE, NO_SPACE, USAGE

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

GIB = 2**30
MOUNTS = Path("/proc/self/mounts")
NETWORK = ("nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "beegfs", "ceph", "9p", "fuse.sshfs", "fuse.glusterfs")
LATE = "its disk or file server does not answer: choose another folder with --out, or look after the mount"
ELSEWHERE = "choose another folder with --out"


def existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there: the others will be made."""
    folder = Path(os.path.abspath(folder))
    return next(place for place in (folder, *folder.parents) if os.path.lexists(place))


def space(folder: Path, least: float, mend: str) -> Finding:
    """Whether a folder has room: `least` GiB, below which there is a warning; none at 1 GiB or without inodes."""
    place = existing(folder)
    free = shutil.disk_usage(place).free / GIB
    inodes = os.statvfs(place) if hasattr(os, "statvfs") else None
    said = f"{free:.1f} GiB free for {folder}"
    if inodes is not None and inodes.f_files and not inodes.f_favail:
        return wrong(f"no file can be made in {folder}: its file system has no inodes left", mend, NO_SPACE)
    if free < 1:
        return wrong(said, mend, NO_SPACE)
    return ok(said) if free >= least else warning(said, mend)


def cache(folder: Callable[[], Path]) -> Finding:
    """The space of the project's cache; without one, data are read anew each time."""
    mend = "name another folder with SEGLAB_CACHE"
    try:
        place = folder()
    except RuntimeError as error:
        return warning(f"there is none ({error}): what is known of data is found anew each time", mend)
    above = existing(place)
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        return warning(f"{place} cannot be written to: what is known of data is found anew each time", mend)
    found = space(place, 1, mend)
    return warning(found.said, mend) if found.state == "wrong" else found  # nothing needs it


def probe(folder: Path) -> list[Finding]:
    """Writes, syncs, renames and locks a file as a run does, removes it, and compares the clocks."""
    place = existing(folder)
    if not place.is_dir():
        return [wrong(f"{folder} cannot be made: {place} is no folder", ELSEWHERE, CANNOT_WRITE)]
    written, begun = Path(), time.monotonic()
    try:
        handle, name = tempfile.mkstemp(dir=place, prefix=".seglab-doctor-")
        written = Path(name)
        before = time.time()
        with os.fdopen(handle, "w+b") as file:
            file.write(b"x" * 2**16)
            file.flush()
            os.fsync(file.fileno())
            stamp, after = os.fstat(file.fileno()).st_mtime, time.time()
            moved = written.with_name(f"{written.name}.moved")
            os.replace(written, moved)
            written = moved
            took = time.monotonic() - begun
            locks = locking(file, written)
        ahead = min(stamp - before + 0.1, 0) + max(stamp - after, 0)  # the kernel's own stamps are a tick behind
        return [_writing(folder, took), replace(locks, about="locks"), replace(clock(ahead), about="clock")]
    except OSError as error:
        status = NO_SPACE if error.errno in (errno.ENOSPC, errno.EDQUOT) else CANNOT_WRITE
        return [wrong(f"{folder} cannot be written to: {error.strerror or error}", ELSEWHERE, status)]
    finally:
        if written.name:
            written.unlink(missing_ok=True)


def _writing(folder: Path, took: float) -> Finding:
    said = f"a file was written, synced and renamed in {1000 * took:.0f} ms"
    if took > 1:
        return warning(f"{said}, which a checkpoint and every row of a log pays", f"{ELSEWHERE}, on a local disk")
    return ok(f"{said} for {folder}")


def locking(file: IO[bytes], path: Path, mounts: Path = MOUNTS) -> Finding:
    """Whether a lock on the open `file` keeps a second process from it; two that train into a folder would mix."""
    if fcntl is None:
        return ok("not tried on this system")
    mend = "mount it with locks (NFS: without nolock, with its lock service), or choose another folder with --out"
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return wrong(f"locks do not work there ({error.strerror}): nothing can be trained into it", mend, USAGE)
    with path.open("rb") as second:
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pass
        else:
            return wrong("locks have no effect there: two processes could write to one folder", mend)
    kind, options = mount_of(path, mounts)
    local = {"nolock", "local_lock=flock", "local_lock=all"} & {*options}
    if kind in NETWORK and local:
        said = f"locks hold on this machine alone ({kind} with {local.pop()}): not between two that share the folder"
        return warning(said, "mount it without that option, or give each machine a folder of its own")
    return ok(f"a lock keeps a second process out{f' ({kind})' if kind in NETWORK else ''}")


def mount_of(path: Path, mounts: Path = MOUNTS) -> tuple[str, Sequence[str]]:
    """The kind and the options of the file system that holds `path`; empty where the system does not say."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "", []
    rows = [line.split() for line in lines if len(line.split()) >= 4]
    inside = [row for row in rows if path.resolve().is_relative_to(row[1].replace("\\040", " "))]
    _, _, kind, options, *_ = max(inside, key=lambda row: len(row[1]), default=["", "", "", ""])
    return kind, options.split(",")


def clock(ahead: float) -> Finding:
    """How far the clock of the file system, by which files are compared, is `ahead` of this machine's, in seconds."""
    age = Path(__file__).stat().st_mtime - time.time()
    mend = "set the clock by NTP (timedatectl set-ntp true) on this machine and on the file server"
    if age > 86400:
        return warning(f"this machine's clock is {age / 86400:.0f} days before the files of this code", mend)
    if abs(ahead) > 5:
        return warning(f"the clock of the file system differs by {ahead:+.0f} s from this machine's", mend)
    return ok(f"the file system's and this machine's differ by {abs(ahead):.2f} s")
