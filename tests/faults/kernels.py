"""Attacks on the cache of compiled kernels."""

import hashlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.harness import Bench, Ended, Skipped, check, check_ended

SOURCE = 'extern "C" int answer() { return 42; }\n'


def planted(bench: Bench) -> bytes:
    """A library of somebody else, with the digest that ours end in; it makes the canary where it is loaded."""
    import subprocess

    source = bench.folder / "planted.cpp"
    source.write_text(
        f'#include <cstdio>\nextern "C" int answer() {{ return 666; }}\n'
        f'__attribute__((constructor)) static void f() {{ fclose(fopen("{bench.canary}", "w")); }}\n'
    )
    subprocess.run(["c++", "-shared", "-fPIC", source, "-o", source.with_suffix(".so")], check=True)
    content = source.with_suffix(".so").read_bytes()
    return content + hashlib.sha256(content).digest()


def answer() -> object:
    """What a fresh process gets from the cache: 42, or None and the reason."""
    from lightning_modules.refinement import native

    found = native.library("probe")
    return native.reason("probe") if found is None else found.answer()


def cache(
    bench: Bench,
    change: Callable[[Bench, Path, Path], object] = lambda bench, folder, path: None,
    wanted: str = "42",
    variables: dict[str, str] | None = None,
    ask: Callable[[], object] = answer,
) -> tuple[Ended, str]:
    """Fills the cache, has `change` do something to its folder or to the library in it, and asks again."""
    from lightning_modules.refinement import native

    if native._compiler() is None:
        raise Skipped("there is no compiler here")
    (bench.here / "probe.cpp").write_text(SOURCE)

    def prepare() -> None:
        native.__file__ = str(bench.here / "native.py")
        native.SECONDS = 3
        tempfile.tempdir = str(bench.folder / "tmp")

    def first() -> None:
        prepare()
        print(answer())

    check_ended(bench.call(first), 0, "^42$")
    (path,) = (bench.folder / "home").rglob("probe-*.so")
    change(bench, path.parent, path)

    def second() -> None:
        prepare()
        print(ask())

    ended = check_ended(bench.call(second, variables=variables), 0, f"^{wanted}")
    check("666" not in ended.printed, "the planted library was loaded")
    return ended, "compiled anew or left out" if wanted == "42" else "left out, with the reason"


def _linked(bench: Bench, folder: Path, path: Path) -> None:
    shutil.rmtree(folder)
    theirs = bench.here / "theirs"
    theirs.mkdir()
    (theirs / path.name).write_bytes(planted(bench))
    os.chmod(theirs, 0o777)
    folder.symlink_to(theirs)


def _open_to(mode: int) -> Callable[[Bench, Path, Path], None]:
    def change(bench: Bench, folder: Path, path: Path) -> None:
        path.unlink()
        path.write_bytes(planted(bench))
        os.chmod(folder, mode)

    return change


def _given(bench: Bench, folder: Path, path: Path) -> None:
    path.unlink()
    path.write_bytes(planted(bench))
    if os.geteuid() == 0:
        os.chown(folder, 65534, 65534)
    else:
        os.chmod(folder, 0o777)


def _file(bench: Bench, folder: Path, path: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("x")


def _planted(bench: Bench, folder: Path, path: Path) -> None:
    path.unlink()
    path.write_bytes(planted(bench)[:-32])


def _damage(change: Callable[[bytes], bytes]) -> Callable[[Bench, Path, Path], None]:
    def act(bench: Bench, folder: Path, path: Path) -> None:
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(change(content))

    return act


def _gone(bench: Bench, folder: Path, path: Path) -> None:
    shutil.rmtree(folder)


def _sleeping(bench: Bench, folder: Path, path: Path) -> None:
    shutil.rmtree(folder)
    (bench.folder / "sleeps").write_text("#!/bin/sh\nexec sleep 1000\n")
    os.chmod(bench.folder / "sleeps", 0o755)


def _race(killed: bool) -> Callable[[], object]:
    def ask() -> object:
        pids = []
        for _ in range(4):
            pids.append(os.fork())
            if pids[-1] == 0:
                os._exit(0 if answer() == 42 else 1)
        if killed:
            time.sleep(0.05)
            os.kill(pids[0], signal.SIGKILL)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        check(statuses[1:] == [0, 0, 0], f"they ended with {statuses}")
        return answer()

    return ask


def _threads() -> object:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda _: answer(), range(4)))
    check(found == {42}, f"they got {found}")
    return 42


CACHE: dict[str, Callable[[Bench], tuple[Ended, str]]] = {
    "the folder is a link to one of everybody": lambda b: cache(b, _linked),
    "the folder may be written by everybody (0777)": lambda b: cache(b, _open_to(0o777)),
    "the folder may be written by a group (0770)": lambda b: cache(b, _open_to(0o770)),
    "the folder belongs to another user": lambda b: cache(b, _given),
    "a file in the place of the folder": lambda b: cache(b, _file),
    "a library that somebody put there": lambda b: cache(b, _planted),
    "a library cut in half": lambda b: cache(b, _damage(lambda content: content[: len(content) // 2])),
    "an empty library": lambda b: cache(b, _damage(lambda content: b"")),
    "a library with another byte": lambda b: cache(b, _damage(lambda c: c[:100] + bytes([c[100] ^ 1]) + c[101:])),
    "CXX is no program": lambda b: cache(b, _gone, "CXX=no-such is no program", {"CXX": "no-such"}),
    "CXX is no command": lambda b: cache(b, _gone, "CXX='c\\+\\+ is no program", {"CXX": "'c++"}),
    "CXX fails": lambda b: cache(b, _gone, "false --version failed", {"CXX": "false"}),
    "CXX never ends": lambda b: cache(b, _sleeping, ".*timed out", {"CXX": str(b.folder / "sleeps")}),
    "4 processes at once": lambda b: cache(b, _gone, ask=_race(False)),
    "4 processes at once, one killed while it compiles": lambda b: cache(b, _gone, ask=_race(True)),
    "4 threads at once": lambda b: cache(b, _gone, ask=_threads),
}
