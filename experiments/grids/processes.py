"""The processes of a grid's cells: forked from one that has imported everything, or each an interpreter of its own."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import torch

from experiments.grids.warm import LONGEST


def can_fork(threads: int, devices: str) -> bool:
    """Whether cells are forked: where nothing but one CPU thread is used, on Linux.

    CUDA does not survive a fork. Several devices are processes that Lightning starts by the command of the first. Of
    several threads a fork copies one, and the locks of the others. Elsewhere than on Linux libraries forbid a fork, or
    no signal comes when a parent ends.
    """
    return sys.platform == "linux" and threads == 1 and devices in ("auto", "1") and not torch.cuda.is_available()


def variables(threads: int) -> dict[str, str]:
    """What a cell's process has to have in its environment before an interpreter starts."""
    # A fixed number of threads: the order of a sum, and so the last digit of a loss, depends on it.
    of_threads = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    # Keeps freed memory for the next step instead of giving it back to the system at each.
    return of_threads | {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "4294967296"}


class Processes:
    """Starts the processes of cells, which end when this one does, however it ends. Use it as a context.

    `classes` are the modules and data modules of the cells, by the names that run.json gives them. Results do not
    depend on whether cells are forked. Where the process that they are forked from cannot be started, each cell is an
    interpreter of its own, which says in its log what is wrong. One that was killed is replaced for the next cell.
    """

    def __init__(self, classes: Sequence[str], threads: int, devices: str) -> None:
        self.classes, self.threads, self.devices = classes, threads, devices
        self._forks = can_fork(threads, devices)
        self._warm: _Warm | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._warm:
            self._warm.close()

    def start(self, folder: Path, flags: Sequence[str], gpus: Sequence[str] = ()) -> "Fresh | Forked":
        """The process of the cell in `folder`, with flags of `experiments.grids.cell`; it prints to log.txt there.

        It sees these `gpus` alone, named as in CUDA_VISIBLE_DEVICES; where there is none, it is told nothing of them.
        """
        flags = [str(folder), "--devices", self.devices, *flags]
        for _ in range(2 * self._forks):
            if self._warm is None:
                self._warm = _Warm(self.classes, os.environ | variables(self.threads))
                self._forks = self._warm.is_ready()
            if self._forks:
                try:
                    return self._warm.fork(folder / "log.txt", [*flags, "--parent", str(self._warm.process.pid)])
                except ConnectionError:  # it was killed since the last cell
                    self._warm.close()
                    self._warm = None
        of_gpus = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}
        with (folder / "log.txt").open("ab") as log:
            return Fresh(
                [sys.executable, "-m", "experiments.grids.cell", *flags, "--parent", str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | variables(self.threads) | of_gpus,
                start_new_session=True,
            )


class Fresh(subprocess.Popen[bytes]):
    """A cell in an interpreter of its own: a `Job`."""

    lost = place = ""

    def kill(self) -> None:
        """Ends it and the processes that it has started."""
        if hasattr(os, "killpg"):
            os.killpg(self.pid, signal.SIGKILL)
        else:  # Windows
            super().kill()


class Forked:
    """A forked cell: a `Job`.

    It is `lost` where the process that it was forked from was killed, so that it was told to end; its own status is
    unknown, and `returncode` is that of the other.
    """

    place = ""

    def __init__(self, pid: int, warm: "_Warm") -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.lost = ""
        self._warm = warm

    def poll(self) -> int | None:
        """As that of `subprocess.Popen`: None as long as it runs."""
        if self.returncode is None:
            self._warm.listen()
            self.returncode = self._warm.ended.get(self.pid)
            if self.returncode is None and self._warm.gone() and not _is_running(self.pid):
                self.returncode = self._warm.process.returncode
                self.lost = "the process that it was forked from is gone"
        return self.returncode

    def wait(self, timeout: float = math.inf) -> int:
        """As that of `subprocess.Popen`; raises subprocess.TimeoutExpired after so many seconds."""
        until = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired("experiments.grids.cell", timeout)
            time.sleep(0.05)
        return status

    def terminate(self) -> None:
        """Sends SIGTERM unless it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Ends it and the processes that it has started."""
        os.killpg(self.pid, signal.SIGKILL)


class _Warm:
    """The process that cells are forked from, and what it has said of them."""

    def __init__(self, classes: Sequence[str], environment: dict[str, str]) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # a message is read whole
        self._started: int | None = None
        self.ended: dict[int, int] = {}  # exit statuses by process
        command = [sys.executable, "-m", "experiments.grids.warm", "--parent", str(os.getpid())]
        with theirs:
            self.process = subprocess.Popen(
                [*command, "--socket", str(theirs.fileno()), *classes],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
                pass_fds=[theirs.fileno()],
            )

    def is_ready(self) -> bool:
        """Waits until it has imported everything; False where it cannot, or should not fork."""
        return bool(self._receive())

    def fork(self, log: Path, arguments: Sequence[str]) -> Forked:
        """Raises ConnectionError where it has just been killed."""
        self._socket.send(json.dumps([str(log), *arguments]).encode())
        while (started := self._started) is None:
            self._note(self._receive())
        self._started = None
        return Forked(started, self)

    def listen(self) -> None:
        """Takes notice of what it has said."""
        if self._socket.fileno() < 0:
            return
        self._socket.setblocking(False)
        try:
            while message := self._receive():
                self._note(message)
        except BlockingIOError:
            pass
        finally:
            self._socket.setblocking(True)

    def gone(self) -> bool:
        return self.process.poll() is not None

    def close(self) -> None:
        """Ends it; the system sends SIGTERM to cells that it still has."""
        self.listen()
        self._socket.close()
        self.process.kill()
        self.process.wait()

    def _receive(self) -> dict[str, Any]:
        """A message; empty where it has ended."""
        try:
            return dict(json.loads(self._socket.recv(LONGEST) or b"{}"))
        except ConnectionError:
            return {}

    def _note(self, message: dict[str, Any]) -> None:
        if "ended" in message:
            child, status = message["ended"]
            self.ended[child] = status
        elif "started" in message:
            self._started = message["started"]
        else:
            raise ConnectionResetError("the process that cells are forked from has ended")


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False
