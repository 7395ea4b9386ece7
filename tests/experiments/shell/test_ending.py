"""How commands end: with the status that docs/exit-codes.md lists, a line that names the file, and nothing
half-written."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from interrupt import At, wait_for

import experiments.train
from experiments.runs.training import train
from experiments.shell import ending
from experiments.shell.ending import Interrupted, of_writing, status
from experiments.train import main
from lightning_modules.components.errors import NonFiniteError
from tests.faults.harness import TINY, write_pictures

ROOT = Path(__file__).parents[3]
SMALL = [*TINY[:6], "--data.num_workers", "2", "--trainer.accelerator", "cpu", "--trainer.max_epochs", "2"]


def ended(*flags: str) -> int:
    """The exit status of `experiments.train` with these flags."""
    with pytest.raises(SystemExit) as stop:
        main([*TINY, "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", *flags])
    return int(stop.value.code or 0)


def test_the_table_of_exit_codes_is_that_of_the_code() -> None:
    listed = dict(re.findall(r"^\| (\d+) \| ([^|]+) \|$", (ROOT / "docs" / "exit-codes.md").read_text(), re.MULTILINE))
    names = ("DONE", "UNEXPECTED", "USAGE", "IN_PART", "NON_FINITE", "CANNOT_WRITE", "NO_SPACE", "IN_USE")
    codes = [getattr(ending, name) for name in names] + [128 + signum for signum in ending.SIGNALS]
    assert sorted(map(int, listed)) == sorted(codes)
    for error, code in (
        (NonFiniteError(""), 65),
        (of_writing(OSError(errno.EACCES, "denied"), "x"), 73),
        (of_writing(OSError(errno.ENOSPC, "full"), "x"), 74),
        (of_writing(OSError(errno.EDQUOT, "quota"), "x"), 74),
        (of_writing(OSError(errno.EIO, "broken"), "x"), 74),
        (ending.InUseError(), 75),
        (ending.WorkerError(), 1),
        (ValueError(), 2),
        (FileNotFoundError(), 2),
        (TypeError(), None),
    ):
        assert status(error) == code


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_signal_saves_and_ends_with_its_status(
    signum: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    act = At(3, lambda: os.kill(os.getpid(), signum))
    monkeypatch.setattr(experiments.train, "train", lambda *args, **where: train(*args, callbacks=[act], **where))
    out = tmp_path / "run"
    assert ended("--out", str(out)) == code
    printed = capfd.readouterr().err
    assert f"stopped; the same command with --resume --out {out} continues" in printed
    assert "Traceback" not in printed
    stored = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    assert (stored["epoch"], stored["global_step"]) == (0, 2)


def test_a_run_that_was_ended_before_its_first_step_resumes_from_the_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As a scheduler does that always says --resume."""
    out = tmp_path / "run"
    monkeypatch.setattr(
        "experiments.runs.training.PerImage.setup", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM)
    )
    assert ended("--out", str(out), "--trainer.max_epochs", "1") == 143  # in the validation before the first step
    assert "stopped; the same command starts anew, as nothing was saved yet" in capfd.readouterr().err
    monkeypatch.undo()
    flags = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--trainer.max_epochs", "1"]
    main([*TINY, *flags, "--out", str(out), "--resume"])
    assert (out / "result.json").exists()
    assert ended("--out", str(out), "--resume", "--trainer.max_epochs", "2") == 2
    assert "trainer.max_epochs: 1 -> 2" in capfd.readouterr().err


def test_a_signal_before_training_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    monkeypatch.setattr("experiments.runs.training.build", stopped)
    assert ended("--out", str(tmp_path / "run")) == 143
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("signum", "to"),
    [
        (signal.SIGTERM, "rank 1"),
        pytest.param(signal.SIGTERM, "rank 0", marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, "rank 1", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, "all", marks=pytest.mark.slow),
    ],
)
def test_two_processes_save_and_end_together_whichever_gets_the_signal(signum: int, to: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = ["--model.norm", "group", "--trainer.accelerator", "cpu", "--trainer.devices", "2", "--out", str(out)]
    command = [sys.executable, "-m", "experiments.train", *TINY, *flags, "--trainer.max_epochs", "100000"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509  # ignored in a background shell
        )
    try:
        wait_for(
            lambda: (out / "metrics.csv").exists() and len((out / "metrics.csv").read_text().splitlines()) > 3, 240
        )
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        (second,) = [int(pid) for pid in children if b"experiments.train" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        for pid in {"rank 0": [process.pid], "rank 1": [second], "all": [process.pid, second]}[to]:
            os.kill(pid, signum)
        assert process.wait(60) == 128 + signum, (tmp_path / "log").read_text()
        wait_for(lambda: not Path(f"/proc/{second}").exists(), 15)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    printed = (tmp_path / "log").read_text()
    assert "continues" in printed
    assert "Traceback" not in printed
    rows = (out / "metrics.csv").read_text().splitlines()[1:]
    stored = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    assert stored["global_step"] >= int(rows[-1].split(",")[1])  # nothing that was reported is lost


class Store(dict[str, str]):
    """What torch's store does for `_of_several`; `gone` is one whose process has ended."""

    gone = False

    def check(self, keys: list[str]) -> bool:
        if self.gone:
            raise RuntimeError("Broken pipe")
        return all(key in self for key in keys)

    def compare_set(self, key: str, expected: str, desired: str) -> None:
        self.check([])
        self.setdefault(key, desired)

    get = dict.__getitem__


CLOSED = RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]")


@pytest.mark.parametrize(
    ("second", "code", "says"),
    [
        (ValueError("a.png is damaged"), 2, "^error: process 1: a.png is damaged$"),
        (NonFiniteError("the loss is nan"), 65, "^error: process 1: the loss is nan$"),
        (TypeError("ours"), 1, "TypeError: ours$"),
        (None, 1, "^error: another process of this run is gone, most likely killed"),
    ],
)
def test_the_first_process_of_several_says_last_what_went_wrong_first(
    second: Exception | None,
    code: int,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store, rank = Store(), 1
    monkeypatch.setattr(ending, "_shared_store", lambda: store)
    monkeypatch.setattr(ending, "PATIENCE", 0.1)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "gloo")

    def end(error: Exception) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stop, ending.ending():
            raise error
        return int(stop.value.code or 0), capsys.readouterr().err.rstrip()

    if second is not None:
        assert end(second) == (0, "")  # it has told, and Lightning kills the first for any other status
    rank = 2
    assert end(CLOSED) == (0 if second else 1, "")
    rank = 0
    status, printed = end(CLOSED)
    assert status == code
    assert re.search(says, printed.splitlines()[-1])
    assert end(ending.ElsewhereError("of another"))[0] == (code if second else 65)
    rank, store.gone = 1, True
    assert end(CLOSED) == (1, "")  # the first one has said it, or was killed
    assert end(ValueError("mine")) == (2, "error: mine")


@pytest.mark.parametrize("fault", ["raise RuntimeError('operator torchvision::nms does not exist')", None])
def test_a_torchvision_that_does_not_fit_is_named(fault: str | None, tmp_path: Path) -> None:
    hidden = {"HIDDEN": "torchvision", "PYTHONPATH": str(ROOT / "tests" / "hidden")}
    if fault:
        (tmp_path / "torchvision").mkdir()
        (tmp_path / "torchvision" / "__init__.py").write_text(fault)
        hidden = {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "experiments.explain", "unet"],
        cwd=ROOT,
        env=os.environ | hidden,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert re.search(r"^error: torchvision .* does not fit torch .*: install .*pip install", done.stderr)
    assert len(done.stderr.splitlines()) == 1


def test_non_finite_numbers_are_65(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("--model.lr", "1e30", "--model.norm", "none", "--out", str(tmp_path / "run")) == 65
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert "lower the learning rate" in line


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_file_that_breaks_during_training_is_named_in_a_line(
    workers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*SMALL, *write_pictures(tmp_path / "data")]
    act = At(1, lambda: (tmp_path / "data" / "images" / "val1.png").write_bytes(b"<html>"))
    monkeypatch.setattr(experiments.train, "train", lambda *args, **where: train(*args, callbacks=[act], **where))
    with pytest.raises(SystemExit) as stop:
        main([*flags, "--data.num_workers", workers, "--out", str(tmp_path / "run")])
    printed = capsys.readouterr().err
    assert stop.value.code == 2
    assert re.search(r"^error: images/val1\.png is damaged or not an image", printed, re.MULTILINE)
    assert "Traceback" not in printed


def test_a_killed_worker_is_one_line_with_the_flags_that_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*SMALL, *write_pictures(tmp_path / "data")]
    parent = os.getpid()

    def killed(path: Path, *args: Any) -> Any:
        if os.getpid() != parent and path.stem == "test1":
            os.kill(os.getpid(), signal.SIGKILL)
        return original(path, *args)

    from datamodules.layouts import source

    original = source.read_image
    monkeypatch.setattr(source, "read_image", killed)
    with pytest.raises(SystemExit) as stop:
        main([*flags, "--out", str(tmp_path / "run")])
    printed = capsys.readouterr().err
    assert stop.value.code == 1
    (line,) = [line for line in printed.splitlines() if line.startswith("error:")]
    assert re.search(
        r"a process that loads data \(\d+\) .*(killed|exited).*memory ran out.*--data.num_workers \(now 2\)", line
    )
    assert "Traceback" not in printed


def test_interruptions_are_no_errors() -> None:
    assert not isinstance(Interrupted(signal.SIGTERM), Exception)
    assert Interrupted(signal.SIGINT).code == 130
