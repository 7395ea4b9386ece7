"""Runs that faults and attacks start from, made once a process, and how one is taken up again."""

import functools
import os
import shutil
import signal
import tempfile
from pathlib import Path

from tests.faults.harness import QUIET, TINY, Bench, check, check_ended, check_files

SHORT = ["--trainer.max_epochs", "8"]
OFTEN = ["--save-every", "0.001"]  # minutes
TWO = ["--trainer.devices", "2", "--model.norm", "group"]


@functools.cache
def _store() -> Path:
    place = Path(tempfile.mkdtemp(prefix="seglab-begun-"))
    import atexit

    owner = os.getpid()  # a forked command is not the one that clears up
    atexit.register(lambda: os.getpid() == owner and shutil.rmtree(place))
    return place


@functools.cache
def stopped_run(*flags: str) -> Path:
    """A run that was stopped after some epochs: two checkpoints, each beside its hash."""
    bench = Bench(_store() / f"begun{len(list(_store().iterdir()))}")
    command = bench.start_train(*SHORT, *flags)
    bench.until_epoch(command)
    command.kill(signal.SIGTERM)
    check_ended(command.wait(), 143)
    return bench.out


@functools.cache
def _finished() -> Path:
    bench = Bench(_store() / "finished")
    check_ended(bench.train("--trainer.max_epochs", 2), 0)
    return bench.out


def begun(bench: Bench, *flags: str) -> Path:
    shutil.copytree(stopped_run(*flags), bench.out)
    return bench.out / "checkpoints" / "last.ckpt"


def finished(bench: Bench) -> None:
    shutil.copytree(_finished(), bench.out)


SMALL = [*TINY[:6], *QUIET]  # a network for `write_pictures`


def resumed(bench: Bench, *flags: object, says: str = "") -> str:
    """Continues to the end with the same flags; what is said of it."""
    before = check_files(bench.out, stale=True)
    check_ended(bench.train("--resume", *flags), 0, says)
    check((bench.out / "result.json").exists(), "no result after --resume")
    after = check_files(bench.out)
    check(after >= before, f"step {before} was held, and then {after}")
    return f"resumed from step {before} to its end"


def last_step(bench: Bench) -> int:
    """The step of the last row of metrics.csv: what was reported must not be lost."""
    return int((bench.out / "metrics.csv").read_text().splitlines()[-1].split(",")[1])


def step_before(bench: Bench) -> int:
    """That of the row before it: a row is written just before the checkpoint of its epoch, and a kill may fall
    between."""
    return int((bench.out / "metrics.csv").read_text().splitlines()[-2].split(",")[1])
