"""One cell of a grid, in a process of its own that ends with its grid.

python -m experiments.grids.cell FOLDER trains the run.json in FOLDER, or carries out its step, as
experiments/grids/processes.py asks for each cell; a process that is forked for a cell does the same.
"""

import argparse
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.shell.command import forgiving_output
from experiments.shell.flags import positive
from experiments.tracking.loggers import Logging, add_logging

if TYPE_CHECKING:  # they take seconds
    from experiments.runs.run import Run
    from experiments.shell.store import Store


def main() -> None:
    forgiving_output()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    add_logging(parser, positive)
    parser.add_argument("--devices", default="auto")
    parser.add_argument("--save-every", type=float, help="minutes between checkpoints within an epoch")
    parser.add_argument("--command", help="the command that asked for this cell, for environment.json")
    parser.add_argument("--energy", action="store_true", help="measure the energy of the training")
    parser.add_argument("--no-test", action="store_true", help="end with the validation: a trial")
    parser.add_argument("--parent", type=int, help="process to end with")
    parser.add_argument("--store", help="the URL where the folder is kept")
    parser.add_argument("--patience", type=float, default=0.0, help="seconds to wait for the folder while it is in use")
    args = parser.parse_args()
    if args.parent is not None:
        end_with_parent(args.parent)

    # Only now, because it takes seconds, in which the grid may be killed.
    from experiments.runs.checkpoints import SAVE_EVERY
    from experiments.runs.run import Run
    from experiments.runs.scoring import carry_out
    from experiments.runs.training import train
    from experiments.shell.ending import ending
    from experiments.shell.files import read_json
    from experiments.shell.processes import first_process
    from experiments.shell.store import Store
    from experiments.tracking.logger import tracker

    store = None
    with log_kept(lambda: store, args.folder), ending():
        store = Store(args.store) if args.store is not None else None
        if store and first_process():
            take_up(store, args.folder)
        run = Run.from_config(read_json(args.folder / "run.json"))
        if store:
            run = with_parents(run, store, args.folder)
        if run.step:
            carry_out(run, args.folder, command=args.command, patience=args.patience, store=store)
            return
        train(
            run,
            args.folder,
            resume=True,
            tracker=tracker(Logging.of(args)),
            save_every=args.save_every or SAVE_EVERY,
            command=args.command,
            devices=args.devices,
            test=not args.no_test,
            patience=args.patience,
            store=store,
            energy=args.energy,
        )


@contextmanager
def log_kept(store_of: "Callable[[], Store | None]", folder: Path) -> Iterator[None]:
    """Sends the log of a cell that ends with an error, whose line is written after all else was sent."""
    from experiments.shell.ending import IN_USE, CannotWriteError

    try:
        yield
    except SystemExit as end:
        store = store_of()
        if store and end.code != IN_USE and (log := folder / "log.txt").is_file():
            with suppress(CannotWriteError):  # the error is that, most likely
                store.send(log)
        raise


def take_up(store: "Store", folder: Path) -> None:
    """Begins with the run.json that the grid has sent, and sets aside what another run has left in `folder` before."""
    from experiments.grids.cells import make_room
    from experiments.runs.run import Run
    from experiments.shell.files import read_json

    if store.bring("run.json", at := folder / ".run.json"):
        run = Run.from_config(read_json(at))
        at.unlink()
        if said := make_room(folder, run):
            print(said, flush=True)


def with_parents(run: "Run", store: "Store", folder: Path) -> "Run":
    """The run from its parents' checkpoints, brought from the grid's store where they are not on this machine.

    The parents of FOLDER/VARIANT/SEED lie two folders above, here as there.
    """
    parents = {}
    for path, holds in run.parents.items():
        variant, seed = Path(path).parts[-4:-2]
        here = Path(path)
        if not here.is_file():
            here = folder.parents[1] / variant / seed
            store.near(2).at(variant, seed).fetch(here, lambda name: name != "log.txt")
            here /= Path("checkpoints", Path(path).name)
        parents[str(here)] = holds
    return run.after(parents) if parents else run


def end_with_parent(parent: int) -> None:
    """Has the system send SIGTERM to this process when the one that started it ends, however it ends (Linux)."""
    if sys.platform != "linux":
        return
    ctypes.CDLL("libc.so.6").prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    # The other processes of a cell on several devices are started by its first.
    if "LOCAL_RANK" not in os.environ and os.getppid() != parent:
        sys.exit("the process that started this one is gone")


if __name__ == "__main__":
    main()
