"""Runs whose processes something else has started: torchrun, srun, or a person on each machine."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from test_train import QUIET, TINY
from two_ranks import free_port

from experiments.runs.checkpoints import SafePoints, Signals
from experiments.runs.devices import cluster, placed
from experiments.runs.training import train
from experiments.shell.ending import Interrupted, ending
from experiments.shell.processes import Started, by_lightning, first_process, restarted, started
from experiments.train import main

ROOT = Path(__file__).parents[3]
FLAGS = "--data shapes --data.size 32 --data.length 7 --data.batch_size 2 --model.width 2 --model.depth 2"
# The same weights on any number of processes, so that scores must be equal.
FLAGS += " --model.norm group --model.lr 0.0 --trainer.max_epochs 1 --trainer.accelerator cpu"
SLURM = {"SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "interactive", "SLURM_STEP_ID": "0", "SLURM_NODEID": "0"}
NAMES = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID")


def by_torchrun(*flags: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", *flags, "-m", "experiments.train"]


def commands(by: str) -> list[tuple[list[str], dict[str, str]]]:
    """What is typed on each machine, all of which are this one, and in which environment."""
    alone, port = [sys.executable, "-m", "experiments.train"], str(free_port())
    main = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    if by == "torchrun":
        return [(by_torchrun("2", "--standalone"), {})]
    if by == "torchrun on two machines":
        at = ("--master_addr", "127.0.0.1", "--master_port", port)
        return [(by_torchrun("1", "--nnodes", "2", "--node_rank", str(rank), *at), {}) for rank in range(2)]
    if by == "srun":
        step = {**SLURM, "SLURM_NTASKS": "2", "SLURM_NNODES": "1", "SLURM_STEP_NODELIST": "127.0.0.1"}
        ranks = ({"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(2))
        return [(alone, {**step, **rank, "MASTER_PORT": port}) for rank in ranks]
    if by == "a batch script":  # of a job with one task, which is not started by srun
        task = {
            "SLURM_JOB_ID": "77",
            "SLURM_NTASKS": "1",
            "SLURM_PROCID": "0",
            "SLURM_LOCALID": "0",
            "SLURM_NNODES": "1",
        }
        return [([*alone, "--trainer.devices", "2"], {**task, "SLURM_NTASKS_PER_NODE": "1"})]
    each = [*alone, "--trainer.num_nodes", "2", "--trainer.devices", "1", "--trainer.strategy", "ddp"]
    return [(each, {**main, "NODE_RANK": str(rank)}) for rank in range(2)]


def clean() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in NAMES and not name.startswith("SLURM")}
    return {**kept, "OMP_NUM_THREADS": "1"}


def run_all(typed: list[tuple[list[str], dict[str, str]]], folder: Path, *flags: str) -> list[tuple[int, str]]:
    """The exit status and the log of each of these commands, which run at the same time."""
    running = []
    for number, (command, environ) in enumerate(typed):
        with (folder / f"log{number}").open("w") as log:
            line = [*command, *FLAGS.split(), *flags]
            running.append(subprocess.Popen(line, cwd=ROOT, stdout=log, stderr=log, env={**clean(), **environ}))
    try:
        return [(process.wait(240), (folder / f"log{n}").read_text()) for n, process in enumerate(running)]
    finally:
        for process in running:
            process.kill()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same run in one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    torch.set_num_threads(1)
    main([*FLAGS.split(), "--out", str(out)])
    return out


@pytest.mark.parametrize(
    "by",
    [
        "torchrun on two machines",
        *(pytest.param(by, marks=pytest.mark.slow) for by in ("torchrun", "srun", "a batch script", "NODE_RANK")),
    ],
)
def test_whatever_starts_two_processes_they_store_what_one_does(by: str, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    ended = run_all(commands(by), tmp_path, "--out", str(out))
    assert [status for status, _ in ended] == [0] * len(ended), ended
    printed = "".join(log for _, log in ended)
    assert printed.count(f"{out}: test/miou") == 1  # the first process alone speaks
    assert json.loads((out / "environment.json").read_text())["device"] == "2 x CPU"
    one, two = (json.loads((folder / "result.json").read_text()) for folder in (alone, out))
    assert (one["test"], one["val"], one["steps"]) == (two["test"], two["val"], two["steps"])
    for name in ("per_image.npz", "samples.npz"):
        with np.load(alone / name) as expected, np.load(out / name) as stored:
            for key in expected:
                assert np.array_equal(expected[key], stored[key], equal_nan=expected[key].dtype.kind == "f"), key
    assert (alone / "predictions.zip").read_bytes() == (out / "predictions.zip").read_bytes()
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"run"}  # one folder, and one run in it
    assert {path.name for path in out.iterdir()} == {path.name for path in alone.iterdir()}


@pytest.mark.slow
def test_a_finished_run_and_a_wrong_flag_end_every_process(alone: Path, tmp_path: Path) -> None:
    """None waits for one that has ended already."""
    ((status, log),) = run_all([(by_torchrun("2", "--standalone"), {})], tmp_path, "--resume", "--out", str(alone))
    assert (status, log.count(f"{alone}: test/miou")) == (0, 1), log
    ((status, log),) = run_all([(by_torchrun("2", "--standalone"), {})], tmp_path, "--out", str(alone))
    assert status, log
    assert "already holds this run" in log
    assert log.count("Traceback") == 1  # torchrun's own


TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("environ", "expected", "first", "child"),
    [
        ({}, None, True, False),
        ({"LOCAL_RANK": "0", "NODE_RANK": "0"}, None, True, False),
        ({"LOCAL_RANK": "1", "NODE_RANK": "0"}, None, False, True),
        ({"NODE_RANK": "1"}, None, False, False),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, None, False, False),
        ({**TORCHRUN, "RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}, Started("torchrun", 0, 2, 2), True, False),
        ({**TORCHRUN, "RANK": "1", "LOCAL_RANK": "1", "GROUP_RANK": "0"}, Started("torchrun", 1, 2, 2), False, False),
        ({**TORCHRUN, "RANK": "2", "LOCAL_RANK": "0", "GROUP_RANK": "1"}, Started("torchrun", 2, 2, 2), False, False),
        # Tasks of a step, which may be fewer than those of the job; a batch script; what it starts by itself.
        (
            {**SLURM, "SLURM_NTASKS": "4", "SLURM_NNODES": "2", "SLURM_PROCID": "2"},
            Started("srun", 2, 2, 2),
            False,
            False,
        ),
        ({**SLURM, "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None, True, False),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, None, True, False),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, None, True, False),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "LOCAL_RANK": "1"}, None, False, True),
    ],
)
def test_the_first_process_of_all_is_known_by_what_starts_them(
    environ: dict[str, str],
    expected: Started | None,
    first: bool,
    child: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _set(monkeypatch, environ)
    assert (started(), first_process(), by_lightning()) == (expected, first, child)


def _set(monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]) -> None:
    for name in [*os.environ]:
        if name in NAMES or name.startswith("SLURM"):
            monkeypatch.delenv(name)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)


def test_lightning_counts_the_processes_of_srun_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    step = {"SLURM_STEP_NODELIST": "node[07-08]", "SLURM_NODELIST": "node[01-08]", "SLURM_LOCALID": "1"}
    _set(monkeypatch, {**SLURM, **step, "SLURM_NTASKS": "4", "SLURM_NNODES": "2", "SLURM_PROCID": "3"})
    (srun,) = cluster()
    assert (srun.world_size(), srun.global_rank(), srun.local_rank(), srun.main_address) == (4, 3, 1, "node07")
    monkeypatch.delenv("MASTER_ADDR")
    trainer = Trainer(**placed({"accelerator": "cpu", "logger": False}), plugins=[srun])
    assert (trainer.world_size, trainer.num_nodes, trainer.num_devices, trainer.global_rank) == (4, 2, 2, 3)
    monkeypatch.setenv("SLURM_NTASKS", "5")
    with pytest.raises(
        ValueError, match="as many tasks on each of its 2 machines, got 5 in all: use --ntasks-per-node"
    ):
        started()


@pytest.mark.parametrize(
    ("environ", "where", "message"),
    [
        (
            {**TORCHRUN, "RANK": "0"},
            {"devices": 4},
            r"torchrun has started 2 x 2 .*--trainer\.devices must be 2, got 4",
        ),
        ({**TORCHRUN, "RANK": "0"}, {"num_nodes": 1}, r"--trainer\.num_nodes must be 2, got 1: leave it out"),
        ({}, {"num_nodes": 2}, r"--trainer\.num_nodes 2 needs a process on every machine: .* torchrun or srun"),
        (
            {"NODE_RANK": "1"},
            {},
            r"process 0 of 1 was started in a way that is not known",
        ),  # and no --trainer.num_nodes
    ],
)
def test_numbers_of_processes_that_disagree_are_refused(
    environ: dict[str, str], where: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _set(monkeypatch, environ)
    with pytest.raises(ValueError, match=message):
        train(TINY, tmp_path / "run", **where, **QUIET)
    assert not list((tmp_path / "run").glob("[!.]*"))


def test_machines_that_see_different_folders_are_told_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One goes on from step 6, the other has no checkpoint: their optimisers would drift apart without a word."""

    def gather(every: list[int], mine: int) -> None:
        every[:] = [mine, 0]

    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    trainer: Any = SimpleNamespace(world_size=2, global_step=6)
    points = SafePoints(tmp_path / "run", "", Signals())
    with pytest.raises(ValueError, match=r"begin at different steps \(6, 0\): .*run must be one folder for all"):
        points.on_train_start(trainer, None)  # type: ignore[arg-type]
    trainer.global_step = 0
    points.on_train_start(trainer, None)  # type: ignore[arg-type]


def test_what_was_started_again_goes_on_with_the_first_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _set(monkeypatch, {})
    flags = [*FLAGS.split(), "--out", str(tmp_path / "run")]
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert restarted()
    main(flags)  # before anything was stored
    printed = re.findall("test/miou [0-9.]+", capsys.readouterr().out)
    main(flags)
    assert re.findall("test/miou [0-9.]+", capsys.readouterr().out) == printed
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    with pytest.raises(SystemExit):
        main(flags)


@pytest.mark.parametrize(("environ", "status"), [({}, 143), ({"LOCAL_RANK": "1"}, 0), ({"NODE_RANK": "1"}, 143)])
def test_after_a_signal_only_a_process_that_another_one_watches_ends_with_0(
    environ: dict[str, str], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _set(monkeypatch, environ)
    with pytest.raises(SystemExit) as stop, ending():
        raise Interrupted(15)
    assert stop.value.code == status
