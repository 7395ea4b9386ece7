"""The process that the cells of a grid are forked from: it has imported what they import, and read what they share.

    python -m experiments.grids.warm --parent PID --socket FD CLASS ...

is what experiments/grids/processes.py starts. A third of a small cell's time is imports and data, which are the same in
all cells: here they are paid once.
"""

import argparse
import atexit
import gc
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from experiments.grids import cell
from experiments.shell.command import forgiving_output
from experiments.shell.ending import SIGNALS

LONGEST = 2**17  # bytes of a request, which holds the command of a person


def main() -> None:
    forgiving_output()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("classes", nargs="*", help="the modules and data modules of the cells, as run.json names them")
    parser.add_argument("--parent", type=int, required=True, help="process to end with")
    parser.add_argument("--socket", type=int, required=True, help="descriptor over which it asks for cells")
    args = parser.parse_args()
    cell.end_with_parent(args.parent)
    with socket.socket(fileno=args.socket) as grid:
        prepare(args.classes)
        if len(os.listdir("/proc/self/task")) > 1:
            return  # a fork copies one thread, and the locks that the others hold
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # it ends with the grid, which closes the socket
        grid.send(json.dumps({"ready": os.getpid()}).encode())
        asked = serve(grid)
    if asked:  # this is the child: what its interpreter does at its end, it does as in a process of its own
        log, *sys.argv[1:] = asked
        _leave(Path(log))
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        cell.main()


def prepare(classes: Sequence[str]) -> None:
    """Imports what a cell of these classes imports, and reads what their data modules share."""
    for name in ("experiments.runs.scoring", "experiments.runs.training", "experiments.tracking.logger"):
        import_module(name)
    for name in classes:
        path, _, last = name.rpartition(".")
        found = getattr(import_module(path), last)
        if hasattr(found, "read_shared"):
            found.read_shared()
    gc.collect()
    gc.freeze()  # a collection in a child would write to, and so copy, every page


def serve(grid: socket.socket) -> list[str]:
    """Forks a child for every request, a list of its log and its arguments, and reports its number and its end.

    Returns twice: in each child what was asked for, and here nothing, once the grid has gone.
    """
    try:
        while True:
            if select.select([grid], [], [], 0.05)[0]:
                if not (request := grid.recv(LONGEST)):
                    return []
                if (child := os.fork()) == 0:
                    return list(json.loads(request))
                grid.send(json.dumps({"started": child}).encode())
            while (ended := _ended()) is not None:
                grid.send(json.dumps({"ended": ended}).encode())
    except ConnectionError:
        return []


def _ended() -> tuple[int, int] | None:
    """A child that has ended, with its exit status, or the negative number of the signal that killed it."""
    try:
        child, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (child, os.waitstatus_to_exitcode(status)) if child else None


def _leave(log: Path) -> None:
    """Makes a child a session of its own that prints to its log, with random numbers as a new process has.

    Those of `random` are so already, and torch begins each process with the same.
    """
    import numpy as np

    atexit.register(gc.unfreeze)  # for the collection at the end of an interpreter, which some packages watch
    os.setsid()
    with log.open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    np.random.seed()


if __name__ == "__main__":
    main()
