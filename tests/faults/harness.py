"""Runs commands of this project as a person would, with a time limit, and looks at what they leave.

A command is a process of its own with its own session, home, temporary folder and log. "forked" ones come from this
process, which has imported the project once, and run the module as `python -m` does; "real" ones start an interpreter.
"""

import contextlib
import json
import os
import re
import runpy
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parents[2]
GONE = 15.0  # seconds within which no process of a command that has ended may be left
TINY = [
    "--model",
    "unet",
    "--model.width",
    "2",
    "--model.depth",
    "2",
    "--data",
    "shapes",
    "--data.size",
    "16",
    "--data.length",
    "8",
    "--data.batch_size",
    "2",
]
QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
ENDLESS = ["--trainer.max_epochs", "100000"]


class Wrong(AssertionError):  # noqa: N818
    """What a command should have done and did not."""


class Skipped(Exception):  # noqa: N818
    """What cannot be brought about on this machine, and why."""


def check(holds: object, said: str) -> None:
    if not holds:
        raise Wrong(said)


def write_pictures(root: Path, size: int = 32) -> list[str]:
    """Four images of two classes in each split; the flags of a training on them."""
    for part in ("images", "masks", "splits"):
        (root / part).mkdir(parents=True)
    (root / "classes.txt").write_text("a\nb\n")
    for split in ("train", "val", "test"):
        names = [f"{split}{i}" for i in range(4)]
        (root / "splits" / f"{split}.txt").write_text("\n".join(names))
        for i, name in enumerate(names):
            Image.effect_noise((size, size), 10 + 5 * i).convert("RGB").save(root / "images" / f"{name}.png")
            Image.new("L", (size, size), i % 2).save(root / "masks" / f"{name}.png")
    flags = ["--data", "folder", "--data.root", str(root), "--data.crop", "16", "--data.batch_size", "2"]
    return [*flags, "--settings", "paper"]  # validated after every epoch, however many there are


@dataclass
class Ended:
    """How a command ended: its status as a shell gives it (None: it was still there at its limit), and what it
    printed."""

    status: int | None
    seconds: float
    printed: str

    @property
    def error(self) -> str:
        """The last line that begins with "error:"."""
        found = [line for line in self.printed.splitlines() if line.startswith("error:")]
        return found[-1] if found else ""


@dataclass
class Command:
    """A command that was started."""

    pid: int
    log: Path
    started: float = field(default_factory=time.monotonic)
    ended: Ended | None = None

    def wait(self, limit: float = 60.0) -> Ended:
        until = time.monotonic() + limit
        while self.ended is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                code = os.waitstatus_to_exitcode(status)
                self._end(code if code >= 0 else 128 - code)
            elif time.monotonic() > until:
                self.kill(signal.SIGKILL, all_of_them=True)
                os.waitpid(self.pid, 0)
                self._end(None)
            else:
                time.sleep(0.02)
        return self.ended

    def _end(self, status: int | None) -> None:
        self.ended = Ended(status, time.monotonic() - self.started, self.printed())

    def printed(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def kill(self, signum: int, *, all_of_them: bool = False) -> None:
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if all_of_them else os.kill)(self.pid, signum)

    def children(self) -> list[int]:
        try:
            return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]
        except OSError:
            return []


class Bench:
    """A folder of its own for one fault or attack, and the commands that run in it."""

    def __init__(self, folder: Path, variables: Mapping[str, str] | None = None) -> None:
        self.folder, self.out, self.outside = folder, folder / "here" / "run", folder / "outside"
        self.here = folder / "here"
        self.commands: list[Command] = []
        for name in ("here", "outside", "home", "tmp"):
            (folder / name).mkdir(parents=True)
        self.canary = self.outside / "canary"
        hidden = {"GIT_DIR", "WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "CUDA_VISIBLE_DEVICES"}
        self.variables = {name: value for name, value in os.environ.items() if name not in hidden} | {
            "HOME": str(folder / "home"),
            "XDG_CACHE_HOME": str(folder / "home" / ".cache"),
            "TMPDIR": str(folder / "tmp"),
            "SEGLAB_CACHE": str(folder / "home" / "seglab"),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            **(variables or {}),
        }
        self.real = 0  # commands that were real processes

    def start(
        self,
        module: str,
        *words: object,
        real: bool = False,
        variables: Mapping[str, str] | None = None,
        inside: Callable[[], object] | None = None,
    ) -> Command:
        """Starts `python -m module words`; `inside` is called in a forked process before, to bring a fault about."""
        argv, own = [str(word) for word in words], self.variables | dict(variables or {})
        log = self.folder / f"log{len(self.commands)}.txt"
        log.touch()
        self.real += real
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.setsid()
                handle = os.open(log, os.O_WRONLY)
                os.dup2(handle, 1)
                os.dup2(handle, 2)
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # ignored in a background shell
                    signal.signal(signum, signal.SIG_DFL if signum != signal.SIGINT else signal.default_int_handler)
                os.chdir(self.here)
                if real:
                    signal.signal(signal.SIGINT, signal.SIG_DFL)
                    os.execve(sys.executable, [sys.executable, "-m", module, *argv], own)
                status = _forked(module, argv, own, inside)
            except BaseException:  # noqa: BLE001  # whatever it is, this child must not go on as its parent
                traceback.print_exc()
            finally:
                with contextlib.suppress(BaseException):
                    sys.stdout.flush()
                    sys.stderr.flush()
                os._exit(status)
        self.commands.append(Command(pid, log))
        return self.commands[-1]

    def run(self, module: str, *words: object, limit: float = 60.0, **how: Any) -> Ended:
        return self.start(module, *words, **how).wait(limit)

    def start_train(self, *words: object, **how: Any) -> Command:
        return self.start("experiments.train", *TINY, *QUIET, "--out", self.out, *words, **how)

    def train(self, *words: object, limit: float = 60.0, **how: Any) -> Ended:
        """A training of a very small U-Net into `out`."""
        return self.start_train(*words, **how).wait(limit)

    def call(self, function: Callable[[], object], limit: float = 60.0, **how: Any) -> Ended:
        """A function in a forked process: what a person does in a notebook."""
        return self.start("", inside=function, **how).wait(limit)

    def call_later(self, function: Callable[[], object], variables: Mapping[str, str] | None = None) -> Command:
        return self.start("", inside=function, variables=variables)

    def until(self, condition: Callable[[], object], command: Command, limit: float = 120.0) -> None:
        """Waits for something that a running command does."""
        until = time.monotonic() + limit
        while not condition():
            if os.waitid(os.P_PID, command.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                raise Wrong(f"it ended before its fault: {command.printed()[-1500:]}")
            check(time.monotonic() < until, "what was to happen did not")
            time.sleep(0.02)

    def rows(self, out: Path | None = None) -> int:
        """Epochs that metrics.csv has."""
        try:
            return len(((out or self.out) / "metrics.csv").read_text().splitlines()) - 1
        except FileNotFoundError:
            return 0

    def until_epoch(self, command: Command, epochs: int = 3, limit: float = 120.0) -> None:
        self.until(lambda: self.rows() >= epochs, command, limit)

    def left(self) -> list[int]:
        """The processes that still work in this folder, once they have had time to go."""
        until = time.monotonic() + GONE
        while (found := list(processes(self.folder))) and time.monotonic() < until:
            time.sleep(0.05)
        return found

    def end(self) -> None:
        """Ends what a fault has left behind."""
        for command in self.commands:
            if command.ended is None:
                command.wait(0)
        for pid in processes(self.folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _forked(module: str, argv: Sequence[str], own: Mapping[str, str], inside: Callable[[], object] | None) -> int:
    """Runs a module, or `inside` alone, in this child; its exit status."""
    os.environ.clear()
    os.environ.update(own)
    try:
        if inside:
            inside()
        if module:
            sys.argv = [module, *argv]
            warnings.filterwarnings("ignore", "'.*' found in sys.modules", RuntimeWarning)  # it is a second copy
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        if isinstance(stop.code, str):
            sys.stderr.write(f"{stop.code}\n")
            return 1
        return int(stop.code or 0)
    except BaseException:  # noqa: BLE001  # as the interpreter itself would say it
        traceback.print_exc()
        return 1
    for thread in threading.enumerate():  # as at the end of an interpreter
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join()
    return 0


def processes(folder: Path) -> Iterator[int]:
    """Those that have `folder` in their command or their environment, or a file of it in their hands, but this one."""
    wanted = os.fsencode(folder)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            state = (entry / "stat").read_text().rpartition(") ")[2][0]
            told = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            files = [os.readlink(link) for link in (entry / "fd").iterdir()]
        except OSError:
            continue
        if state not in "ZX" and (wanted in told or any(file.startswith(str(folder)) for file in files)):
            yield int(entry.name)


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """What lies below a folder, with size and time of change; without what Python and linters keep for themselves."""
    found = {}
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__pycache__"]
        for name in files:
            with contextlib.suppress(OSError):
                state = os.lstat(os.path.join(place, name))
                found[os.path.relpath(os.path.join(place, name), folder)] = (state.st_size, state.st_mtime_ns)
    return found


def check_ended(ended: Ended, status: int | Sequence[int], says: str = "", *, limit: float = 60.0) -> Ended:
    """A status out of docs/exit-codes.md, within the limit, with one line that says `says`, and no traceback."""
    wanted = (status,) if isinstance(status, int) else status
    tail = ended.printed[-1500:]
    check(ended.status is not None, f"it hung: still there after {limit:.0f} s\n{tail}")
    check(ended.status in wanted, f"exit status {ended.status}, not {' or '.join(map(str, wanted))}\n{tail}")
    check("Traceback" not in ended.printed, f"a traceback\n{tail}")
    check(re.search(says, ended.printed, re.MULTILINE), f"it does not say {says!r}\n{tail}")
    check(ended.seconds <= limit, f"{ended.seconds:.0f} s")
    return ended


def check_files(out: Path, *, stale: bool = False) -> int:
    """Refuses anything half-written; the number of steps that the newest checkpoint holds. `stale`: after a kill,
    temporary files are allowed, which the next run of the folder removes."""
    import pandas as pd

    from lightning_modules.components.checkpoints import read_checkpoint

    steps = 0
    for path in out.rglob("*.ckpt"):
        steps = max(steps, int(read_checkpoint(path)["global_step"]))
    for path in out.rglob("metrics.csv"):
        epochs = pd.read_csv(path)["epoch"].tolist()
        check(epochs == list(range(len(epochs))), f"{path.name} has the epochs {epochs}")
    for path in out.rglob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))
    left = [str(path.relative_to(out)) for path in out.rglob(".*.tmp")]
    check(stale or not left, f"left behind: {left}")
    return steps
