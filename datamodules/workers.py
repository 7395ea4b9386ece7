"""What the processes that load data do when a signal comes, and when their parent ends."""

import atexit
import functools
import multiprocessing
import os
import signal
import time


def leave_signals_to_the_parent(worker: int) -> None:
    """A signal to all processes of a run, from Ctrl-C or a scheduler, must not end the batch that is to be saved."""
    for name in ("SIGTERM", "SIGHUP", "SIGINT"):
        if hasattr(signal, name):  # Windows has no SIGHUP
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "SIGUSR2"):
        signal.signal(signal.SIGUSR2, lambda *_: os._exit(0))


@functools.cache  # once a process
def end_workers_at_exit() -> None:
    """An error that is shown keeps its loader alive: at exit Python would send its workers SIGTERM, and wait."""

    @atexit.register
    def end_workers() -> None:
        if not hasattr(signal, "SIGUSR2"):
            return
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # that of torch raises for a worker that is killed
        children = [child for child in multiprocessing.active_children() if child.daemon and child.pid is not None]
        for child in children:
            os.kill(child.pid, signal.SIGUSR2)  # type: ignore[arg-type]
        until = time.monotonic() + 1
        for child in children:
            child.join(max(0.0, until - time.monotonic()))
            child.kill()
