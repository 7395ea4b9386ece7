"""Grids as jobs of SLURM, whose commands a stand-in has: arrays, preemption, a job that is lost, options."""

import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import slurm
from interrupt import BASE, outcome, unequal, wait_for
from rich.console import Console

from experiments.grids.cells import PlannedCell, run_cells
from experiments.grids.launchers.base import Asked
from experiments.grids.launchers.local import Local
from experiments.grids.launchers.on_slurm import OnSlurm, _minutes
from experiments.tracking.loggers import Logging

pytestmark = [pytest.mark.slow, pytest.mark.extra("cluster", "submitit")]

LONG = BASE.but(data={"length": 40}, trainer={"max_epochs": 6})


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cluster"
    for name, value in slurm.install(folder).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(slurm, "FOLDER", folder)
    return folder


def launcher(folder: Path, *options: str, **where: Any) -> OnSlurm:
    usual: dict[str, Any] = {"jobs": None, "threads": 1, "devices": "auto", "gpus_per_cell": None}
    return OnSlurm(folder, options, **{**usual, **where})


def run(cells: list[PlannedCell], launcher: Any) -> list[PlannedCell]:
    usual: dict[str, Any] = {"logging": Logging(), "save_every": 1e-9, "command": "it"}
    return run_cells(cells, Console(), launcher=launcher, seconds=lambda cell: 1.0, **usual)


def grid(out: Path) -> list[PlannedCell]:
    return [PlannedCell("v", LONG.but(seed=seed), out / "v" / f"seed{seed}", 6) for seed in (0, 1, 2)]


def test_an_array_of_cells_one_of_which_is_preempted_and_goes_on(
    cluster: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    undisturbed, cells = grid(tmp_path / "undisturbed"), grid(tmp_path / "grid")
    assert run(undisturbed, Local(jobs=2, threads=1)) == []
    preempted: list[str] = []

    def preempt() -> None:
        wait_for(lambda: 1 <= cells[0].epochs_done() < 5, 120)
        slurm.preempt("1_0")
        preempted.append("1_0")

    thread = threading.Thread(target=preempt)
    thread.start()
    assert run(cells, launcher(tmp_path / "grid" / "slurm", "partition=long", "time=30", jobs=2)) == []
    thread.join()
    assert preempted and slurm.read("1_0")["starts"] == 2 and slurm.read("1_1")["starts"] == 1
    told = capsys.readouterr().out.replace("\n", "")
    assert "v/seed0: test/miou" in told and "attempt 2, on " in told
    for mine, theirs in zip(cells, undisturbed, strict=True):
        assert unequal(outcome(mine.folder), outcome(theirs.folder)) == []
    script = (cluster / "1.sh").read_text()
    for line in ("--array=0-1%2", "--partition=long", "--time=30", "--cpus-per-task=1", "--job-name=seglab"):
        assert f"#SBATCH {line}\n" in script, script


def test_a_cell_that_fails_says_why_and_one_that_slurm_ends_is_told_of(
    cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.grids.launchers.on_slurm.ASKED", 1)
    bad = PlannedCell("bad", LONG.but(lr=1e30), tmp_path / "bad" / "seed0", 6)
    gone = PlannedCell("gone", LONG, tmp_path / "gone" / "seed0", 6)

    def cancel() -> None:
        for job in ("1_1", "2"):  # it is submitted once more
            wait_for(lambda job=job: (cluster / f"{job}.json").exists() and slurm.read(job)["State"] == "RUNNING", 120)
            slurm.scancel(job)

    thread = threading.Thread(target=cancel)
    thread.start()
    failed = run([bad, gone], launcher(tmp_path / "slurm"))
    thread.join()
    assert [cell.variant for cell in failed] == ["bad", "gone"]
    assert bad.error.startswith("error: the training loss is")
    assert gone.error.startswith("SLURM ended its job 2 (") and "the same command goes on" in gone.error


@pytest.mark.usefixtures("cluster")
def test_a_job_without_a_result_of_a_cell_that_is_kept_elsewhere_is_told_of(tmp_path: Path) -> None:
    """The folder in which it worked is on another machine."""

    class Gone:
        job_id, paths = "1", SimpleNamespace(stderr="1.err")

        def done(self) -> bool:
            return True

        def result(self) -> None:
            raise RuntimeError("NODE_FAIL")

    chosen = launcher(tmp_path / "slurm")
    chosen._executor = SimpleNamespace(submit=lambda cell: Gone())
    (folder := tmp_path / "v" / "seed0").mkdir(parents=True)
    (job,) = chosen.start([Asked(folder, [], tmp_path / "nowhere" / "v" / "seed0")])
    assert job.poll() == 1 and job.lost == "SLURM ended its job 1 (NODE_FAIL)"
    assert (folder / "log.txt").read_text() == "see 1.err\n"


def test_what_sbatch_refuses_is_told_in_its_words(cluster: Path, tmp_path: Path) -> None:
    chosen = launcher(tmp_path / "slurm", "partition=nope")
    (cluster / "bin" / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition' >&2\nexit 1\n")
    with pytest.raises(ValueError, match=r"SLURM takes no job \(sbatch: error: invalid partition\): see to --slurm"):
        chosen.start([Asked(tmp_path, [])])


def test_options_are_those_of_sbatch(cluster: Path, tmp_path: Path) -> None:
    words = ["mail-user=a@b", "--mem=32GB", "time=1-02:30:00", "gres=gpu:a100:2", "account=lab"]
    chosen = launcher(tmp_path / "slurm", *words, threads=4, gpus_per_cell=2.0)
    assert chosen.devices == "2"
    text = chosen._executor._executor._make_submission_file_text("true", "0")
    for line in ("mail-user=a@b", "mem=32GB", "time=1590", "gres=gpu:a100:2", "account=lab", "gpus-per-node=2"):
        assert f"#SBATCH --{line}\n" in text, text
    assert "#SBATCH --cpus-per-task=8\n" in text and "#SBATCH --signal=USR2@60\n" in text


@pytest.mark.parametrize(
    ("words", "how", "said"),
    [
        (["gpu"], {}, "--slurm takes options of sbatch, NAME=VALUE each, got 'gpu'"),
        (["time=soon"], {}, "--slurm time must be minutes or DAYS-HOURS:MINUTES:SECONDS, got 'soon'"),
        ([], {"gpus_per_cell": 0.5}, r"SLURM gives whole GPUs, got --gpus-per-cell 0\.5"),
    ],
)
@pytest.mark.usefixtures("cluster")
def test_what_slurm_cannot_do_is_refused(words: list[str], how: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        launcher(tmp_path / "slurm", *words, **how)


def test_a_machine_without_slurm_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    with pytest.raises(ValueError, match=r"SLURM is not to be found here .*: call this on a machine that has sbatch"):
        launcher(tmp_path / "slurm")


@pytest.mark.parametrize(
    ("text", "minutes"), [("90", 90), ("1:30:00", 90), ("5:30", 6), ("2-0", 2880), ("1-12:00", 2160), ("1-0:0:1", 1441)]
)
def test_times_are_read_as_slurm_reads_them(text: str, minutes: int) -> None:
    assert _minutes(text) == minutes
