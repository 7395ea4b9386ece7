"""Compiles the C++ kernels beside this file with the system's compiler: once, in seconds, kept for later processes.

A kernel is one source file with a plain C interface: nothing is built at installation, the wheel stays pure Python.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

from lightning_modules.components.compiler import WAY_OUT
from lightning_modules.components.compiler import compiler as _compiler

# No -ffast-math and no contraction of a * b + c: which simplex a pixel lies in may hang on the last bit. Kernels ask
# for fused multiply-adds where they want them, and `flags` is there for sources without such a part.
FLAGS = (
    "-std=c++17",
    "-O3",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fPIC",
    "-shared",
    "-pthread",
)
NATIVE = "-march=native"
SECONDS = 300  # a kernel takes some five; a compiler that hangs must not hang the caller for ever
DIGEST = hashlib.sha256().digest_size


def library(name: str, flags: Sequence[str] = ()) -> ctypes.CDLL | None:
    """The compiled `<name>.cpp` of this folder, or None, after one warning that says why, where it cannot be had.

    `flags` follow `FLAGS`, so they win. SEGLAB_NO_COMPILER=1 switches compiled kernels off.
    """
    outcome = _outcome(name, tuple(flags))
    if isinstance(outcome, str):
        _warn(outcome)
        return None
    return outcome


def reason(name: str, flags: Sequence[str] = ()) -> str | None:
    """Why `library(name, flags)` is None, with the way out; None where it is not."""
    outcome = _outcome(name, tuple(flags))
    return outcome if isinstance(outcome, str) else None


@functools.cache
def _warn(message: str) -> None:
    warnings.warn(f"compiled kernels are not used, slower ones serve: {message}", stacklevel=3)


@functools.cache
def _outcome(name: str, flags: tuple[str, ...]) -> ctypes.CDLL | str:
    """The library or why there is none; remembered, so that a compiler that fails runs once a process."""
    if os.environ.get("SEGLAB_NO_COMPILER", "0") not in ("", "0"):
        return "SEGLAB_NO_COMPILER is set: unset it to compile them"
    compiler = _compiler()
    if compiler is None:
        wanted = os.environ.get("CXX")
        missing = f"CXX={wanted} is no program" if wanted else "no C++ compiler found (c++, g++, clang++)"
        return f"{missing}: {WAY_OUT}"
    source = Path(__file__).with_name(f"{name}.cpp").read_bytes()
    try:
        version = subprocess.run([*compiler, "--version"], capture_output=True, timeout=SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return f"{shlex.join(compiler)} --version failed ({error}): {WAY_OUT}"
    identity = (source, repr((compiler, FLAGS, NATIVE, flags)).encode(), version, _cpu().encode())
    key = hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in identity)).hexdigest()
    failure = f"no folder for it is ours alone: {_folders()}"
    for folder in _folders():
        path = folder / f"{name}-{key[:24]}.so"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not _ours(folder):
                continue
            if not _intact(path):
                failure = _compile(compiler, flags, name, path)
                if failure:
                    break  # another folder would not help
            return ctypes.CDLL(str(path))
        except OSError as error:  # not writable, full, or mounted noexec: the next folder may do
            failure = str(error)
    return f"{name}.cpp could not be compiled with {shlex.join(compiler)}: {failure}. Mend that, or {WAY_OUT}"


def _cpu() -> str:
    """What -march=native depends on, so that machines that share a home folder do not share a file."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = [platform.processor()]
    wanted = ("vendor_id", "cpu family", "model", "flags", "CPU implementer", "CPU part", "Features")
    return "\n".join([platform.machine(), *sorted({line for line in lines if line.startswith(wanted)})])


def _folders() -> list[Path]:
    """Where libraries are kept: the user's cache folder, else one of the user's own under the temporary folder."""
    cache = os.environ.get("XDG_CACHE_HOME")
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    temporary = Path(tempfile.gettempdir()) / f"seglab-{user}"
    try:
        home = Path(cache) if cache else Path.home() / ".cache"
    except RuntimeError:  # a user without a home, as containers run
        return [temporary]
    return [home / "seglab", temporary]


def _ours(folder: Path) -> bool:
    """Whether nobody else can put a library there for us to load (a temporary folder is everybody's)."""
    state = folder.lstat()
    return not hasattr(os, "getuid") or (state.st_uid == os.getuid() and not state.st_mode & 0o022)


def _intact(path: Path) -> bool:
    """Whether the file ends in the digest of the rest: loading half a library kills the process with a bus error."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return False
    return hashlib.sha256(content[:-DIGEST]).digest() == content[-DIGEST:]


def _compile(compiler: list[str], flags: tuple[str, ...], name: str, path: Path) -> str:
    """Compiles beside `path` and renames, so that several processes may do it at once; returns what went wrong."""
    source = Path(__file__).with_name(f"{name}.cpp")
    handle, temporary = tempfile.mkstemp(prefix=f"{name}-", suffix=".tmp", dir=path.parent)
    os.close(handle)
    failure = ""
    try:
        for native in ([NATIVE], []):  # not every compiler knows -march=native on every machine
            command = [*compiler, *FLAGS, *native, *flags, str(source), "-o", temporary]
            try:
                done = subprocess.run(
                    command, capture_output=True, check=False, encoding="utf-8", errors="replace", timeout=SECONDS
                )
            except (OSError, subprocess.SubprocessError) as error:
                return str(error)
            if done.returncode == 0:
                content = Path(temporary).read_bytes()
                with open(temporary, "ab") as file:
                    file.write(hashlib.sha256(content).digest())  # loaders ignore what follows the sections
                os.chmod(temporary, 0o700)
                os.replace(temporary, path)
                return ""
            failure = failure or (done.stderr.strip() or f"exit status {done.returncode}")[:2000]
        return failure
    finally:
        Path(temporary).unlink(missing_ok=True)
