"""Kills trainings at random moments and continues them: the end must be bit-equal to that of a run that nobody killed.

A kill is SIGKILL of all processes of the run at a moment drawn from (seed, number of the kill). After each one: every
checkpoint is sound, metrics.csv has its epochs in order, and no process is left.
"""

import argparse
import contextlib
import ctypes
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from datamodules.shapes import ShapesDataModule
from experiments.grids.ablation import Ablation, variants
from experiments.grids.command import add_arguments
from experiments.grids.command import run_ablation as run_grid
from experiments.runs.run import Run
from experiments.runs.training import train
from lightning_modules.components.checkpoints import read_checkpoint
from lightning_modules.segnet import SegNetModule
from tests.faults.harness import GONE, ROOT

sys.path.insert(0, str(ROOT / "tests" / "experiments"))
from interrupt import BASE, QUIET, outcome, unequal

U_NET = BASE.but(
    data={"length": 24, "batch_size": 4, "elastic": 2.0, "size": 32},
    trainer={"max_epochs": 8, "accumulate_grad_batches": 2},
)
SEGNET = Run(
    module=SegNetModule,
    datamodule=ShapesDataModule,
    hparams={"variant": "basic", "width": 4, "class_weights": "median-frequency"},
    data={"size": 32, "length": 18, "batch_size": 4},
    trainer={"max_steps": 31, "check_val_every_n_epoch": 3, "gradient_clip_val": 0.5},
)


@dataclass(frozen=True)
class Case:
    """A run, or a grid of two, and how its processes are started."""

    run: Run
    start: Callable[["Case", Path, int], int]  # returns the process to kill, with all of its session
    finish: Callable[["Case", Path], None]
    workers: tuple[int, ...] = (0,)
    save_every: float = 1e-9  # minutes
    fsync: float = 0.0  # seconds by which every fsync is slowed, so that kills meet it

    def with_workers(self, attempt: int) -> Run:
        return self.run.but(data={"num_workers": self.workers[attempt % len(self.workers)]})


def forked(case: Case, out: Path, attempt: int) -> int:
    """Trains in a child of this process, which has imported the project already."""

    def child() -> None:
        os.setsid()
        if case.fsync:
            fsync = os.fsync
            os.fsync = lambda handle: (time.sleep(case.fsync), fsync(handle))[1]  # type: ignore[assignment,return-value]
        sys.stderr = open(out.with_suffix(".log"), "a", encoding="utf-8")  # noqa: SIM115
        train(case.with_workers(attempt), out, resume=_begun(out), save_every=case.save_every, **QUIET)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    assert process.pid is not None
    return process.pid


def finish_forked(case: Case, out: Path) -> None:
    train(case.run, out, resume=_begun(out), **QUIET)


def two_processes(case: Case, out: Path, attempt: int) -> int:
    return _spawn([*_flags(case.run), "--save-every", str(case.save_every)], out).pid


def finish_two(case: Case, out: Path) -> None:
    process = _spawn(_flags(case.run), out)
    if process.wait(300):
        raise AssertionError(out.with_suffix(".log").read_text()[-2000:])


def _flags(run: Run) -> list[str]:
    settings = {"model": run.hparams, "data": run.data, "trainer": run.trainer}
    flags = [f"--{part}.{key}={value}" for part in settings for key, value in settings[part].items()]
    devices = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.enable_progress_bar=false"]
    return [sys.executable, "-m", "experiments.train", "--model", "unet", "--data", "shapes", *flags, *devices]


def _spawn(command: list[str], out: Path) -> "subprocess.Popen[bytes]":
    resume = ["--resume"] if _begun(out) else []
    with out.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [*command, "--out", str(out), *resume],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )


def grid(case: Case, out: Path, attempt: int) -> int:
    """A grid in a process of its own, whose cells are processes in sessions of their own."""
    with out.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.faults.kills", str(out)],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            start_new_session=True,
        ).pid


def finish_grid(case: Case, out: Path) -> None:
    pid = grid(case, out, 0)
    if os.waitpid(pid, 0)[1]:
        raise AssertionError(out.with_suffix(".log").read_text()[-2000:])


def main_grid(out: Path, *more: str) -> int:
    runs = variants(BASE, {"nearest": {"upsample": "nearest"}, "bilinear": {"upsample": "bilinear"}})
    ablation = Ablation(
        name="kills", question="?", runs=runs, factors={"upsample": ["nearest", "bilinear"]}, baseline="nearest"
    )
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    flags = ["--out", str(out), "--seeds", "0", "--jobs", "2", "--save-every", "1e-9", *more]
    return run_grid(ablation, parser.parse_args(flags))


# The first five are those of continuous integration, a kill each.
CASES = {
    "U-Net, dropout, elastic, accumulated, workers 0, 2, 1": Case(U_NET, forked, finish_forked, workers=(0, 2, 1)),
    "slow writes": Case(BASE.but(trainer={"max_epochs": 6}), forked, finish_forked, fsync=0.06),
    "SegNet, counted weights, max_steps": Case(SEGNET, forked, finish_forked, workers=(0, 1)),
    "max_steps, validation within": Case(
        BASE.but(data={"length": 15}, trainer={"max_epochs": None, "max_steps": 40, "val_check_interval": 3}),
        forked,
        finish_forked,
    ),
    "2 processes": Case(BASE.but(norm="group", trainer={"max_epochs": 60}), two_processes, finish_two),
    "the same without workers": Case(U_NET, forked, finish_forked),
    "grid": Case(BASE, grid, finish_grid),
}


def _begun(out: Path) -> bool:
    return any((out / "checkpoints").glob("*.ckpt"))


def _outcomes(case: Case, out: Path) -> dict[str, Any]:
    return {p.parent.relative_to(out).as_posix(): outcome(p.parent) for p in sorted(out.rglob("result.json"))}


def check_left(out: Path) -> int:
    """Refuses anything half-written; the number of steps that a checkpoint holds."""
    steps = [0]
    for path in out.rglob("last.ckpt"):
        steps.append(int(read_checkpoint(path)["global_step"]))
    for path in out.rglob("metrics.csv"):
        epochs = pd.read_csv(path)["epoch"].tolist()
        assert epochs == list(range(len(epochs))), f"{path}: {epochs}"
    for path in out.rglob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))
    return max(steps)


def processes(out: Path) -> Iterator[int]:
    """Those that have the folder of a run in their command, or a file of it in their hands, such as a cell its log."""
    inside = os.path.join(os.path.realpath(out), "")
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            state = (entry / "stat").read_text().rpartition(") ")[2][0]
            command = (entry / "cmdline").read_bytes()
            files = [os.readlink(link) for link in (entry / "fd").iterdir()]
        except OSError:
            continue
        if state not in "ZX" and (os.fsencode(out) in command or any(file.startswith(inside) for file in files)):
            yield int(entry.name)


def one_case(name: str, case: Case, kills: int, draw: random.Random, folder: Path) -> tuple[int, list[int], list[str]]:
    """How many kills met a running training, the steps that the checkpoints then held, and what was wrong."""
    whole, out = folder / "whole", folder / "killed"
    started = time.monotonic()
    case.finish(case, whole)
    took = time.monotonic() - started
    expected, total = _outcomes(case, whole), check_left(whole)
    met = 0
    steps: list[int] = []
    for attempt in range(kills):
        pid = case.start(case, out, attempt)
        to_do = 1 - steps[-1] / total if steps else 1.0  # so that also a later kill meets a training
        moment = draw.uniform(0.1, 0.9) * took * to_do
        time.sleep(moment)
        running = os.waitpid(pid, os.WNOHANG)[0] == 0
        met += running
        if running:
            with contextlib.suppress(ProcessLookupError):  # it has not yet a session of its own
                os.killpg(pid, signal.SIGKILL)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        until = time.monotonic() + GONE
        while (left := list(processes(out))) and time.monotonic() < until:
            time.sleep(0.1)
        if left:
            return met, steps, [f"processes {left} were left {GONE:.0f} s after the kill"]
        steps.append(check_left(out))
        print(
            f"{name}: {'killed' if running else 'it had ended'} after {moment:.1f} s, at step {steps[-1]}", flush=True
        )
    case.finish(case, out)
    wrong = unequal(expected, _outcomes(case, out))
    stale = [str(path.relative_to(out)) for path in out.rglob(".*.tmp")]
    return met, steps, wrong + [f"left behind: {path}" for path in stale]


def run(kills: int, seed: int, only: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Kills the trainings in turn, `kills` times over all of them; what became of each of them, for the page."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    ctypes.CDLL("libc.so.6").prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: what a killed grid leaves is waited for here
    names = [name for name in CASES if not only or any(part in name for part in only)]
    shares = [kills // len(names) + (i < kills % len(names)) for i in range(len(names))]
    found = []
    for name, share in zip(names, shares, strict=True):
        if not share:
            continue
        folder = Path(tempfile.mkdtemp(prefix="seglab-kills-"))
        draw = random.Random(seed * 1000 + list(CASES).index(name))
        met, steps, wrong = one_case(name, CASES[name], share, draw, folder)
        found.append({"name": name, "kills": share, "met": met, "steps": steps, "wrong": "; ".join(wrong)})
        for line in wrong:
            print(f"WRONG, {name}: {line}")
        if wrong:
            print(f"kept: {folder}")
        else:
            shutil.rmtree(folder)
            print(f"{name}: {share} kills, bit-equal", flush=True)
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(main_grid(Path(sys.argv[1])))
