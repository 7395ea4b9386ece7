"""How commands end: with the status that docs/exit-codes.md lists, a line that names the file, and nothing half-written."""

import errno
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from interrupt import BASE, QUIET, At
from PIL import Image

import experiments.grids.cells
import experiments.runs.checkpoints
import experiments.train
from experiments.grids.ablation import Ablation, variants
from experiments.grids.cell import end_with_parent
from experiments.grids.command import add_arguments
from experiments.grids.command import run_ablation as run_grid
from experiments.runs.training import train
from experiments.shell import ending, files
from experiments.shell.ending import Interrupted, NoSpaceError, of_writing, status
from experiments.shell.files import locked, write_atomic
from experiments.shell.flags import Parser
from experiments.tracking.loggers import Logging
from experiments.train import main
from lightning_modules.components.errors import NonFiniteError
from tests.faults.harness import TINY

ROOT = Path(__file__).parents[2]


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


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.1)


def test_a_disk_that_is_too_full_is_said_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=5_000))
    out = tmp_path / "run"
    assert ended("--out", str(out)) == 74
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert re.search(
        rf"no space left to write {out}/checkpoints/last.ckpt, which takes [\d,]+ bytes where 5,000 are", line
    )
    assert not list(out.rglob("*.tmp"))
    assert not (out / "metrics.csv").exists()


def test_a_disk_that_fills_up_leaves_the_files_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real limit on the size of files, so that torch's own writer meets it."""
    out = tmp_path / "run"
    act = At(
        40, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    )
    monkeypatch.setattr(experiments.train, "train", lambda *args, **where: train(*args, callbacks=[act], **where))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        assert ended("--out", str(out)) == 74
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    printed = capsys.readouterr().err
    (line,) = [line for line in printed.splitlines() if line.startswith("error:")]
    assert re.search(rf"no space left to write {out}/checkpoints/last.ckpt, which takes [\d,]+ bytes", line)
    assert "Traceback" not in printed
    assert not list(out.rglob("*.tmp"))
    from lightning_modules.components.checkpoints import read_checkpoint

    assert read_checkpoint(out / "checkpoints" / "last.ckpt")["global_step"] > 0


@pytest.mark.skipif(os.geteuid() != 0, reason="takes another user's rights, which only root can")
def test_a_folder_that_cannot_be_written_to_is_said_before_training(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o755)
    script = (
        "import os; from experiments.shell.files import locked; from experiments.shell.ending import ending; from pathlib import Path\n"
        f"os.setuid(65534)\nwith ending():\n  with locked(Path({str(folder / 'run')!r})): pass"
    )
    for parent in folder.parents:
        if str(parent).startswith("/tmp/"):
            parent.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 73, done.stderr
    assert done.stderr.startswith(f"error: cannot write {folder / 'run'} (Permission denied)")


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ending.CannotWriteError, match=r"cannot write .*file.*choose another folder"):
        write_atomic(tmp_path / "file" / "x.json", "{}")
    assert (tmp_path / "file").read_text() == "mine"
    assert isinstance(of_writing(OSError(errno.ENOSPC, "full"), "x", 5), NoSpaceError)


def test_a_folder_in_use_is_75_and_names_process_and_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").touch()
    with locked(tmp_path):
        assert ended("--out", str(tmp_path)) == 75
    assert re.search(rf"in use by process {os.getpid()} on \S+: wait for it", capsys.readouterr().err)
    assert (tmp_path / ".lock").read_text() == ""  # the host is nobody's business afterwards


def test_a_lock_that_is_all_there_is_goes_with_the_folders_made_for_it(tmp_path: Path) -> None:
    with locked(tmp_path / "new" / "run"):
        pass
    assert not any(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    with locked(tmp_path / "mine"):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]
    with locked(tmp_path / "new" / "run"):
        (tmp_path / "new" / "run" / "x").touch()
    assert (tmp_path / "new" / "run" / ".lock").read_text() == ""


def test_a_lock_that_was_removed_meanwhile_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes would work in the folder: one with the lock that is gone, one with the next."""
    take, calls = files._take, []

    def removed_first(file: Any) -> None:
        take(file)
        calls.append(1)
        if len(calls) == 1:
            (tmp_path / "run" / ".lock").unlink()

    monkeypatch.setattr(files, "_take", removed_first)
    with locked(tmp_path / "run"):
        assert len(calls) == 2
        monkeypatch.undo()
        with pytest.raises(ending.InUseError), locked(tmp_path / "run"):
            pass


def test_rows_that_are_deleted_during_training_are_not_lost_in_silence(tmp_path: Path) -> None:
    act = At(20, lambda: (tmp_path / "run" / "metrics.csv").unlink())
    with pytest.raises(ValueError, match=r"metrics\.csv is gone: delete its folder"):
        train(BASE, tmp_path / "run", callbacks=[act], **QUIET)


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


def folder_of_pictures(root: Path) -> list[str]:
    for part in ("images", "masks", "splits"):
        (root / part).mkdir(parents=True)
    (root / "classes.txt").write_text("a\nb\n")
    for split in ("train", "val", "test"):
        names = [f"{split}{i}" for i in range(4)]
        (root / "splits" / f"{split}.txt").write_text("\n".join(names))
        for i, name in enumerate(names):
            Image.effect_noise((32, 32), 10 + 5 * i).convert("RGB").save(root / "images" / f"{name}.png")
            Image.new("L", (32, 32), i % 2).save(root / "masks" / f"{name}.png")
    flags = f"--model unet --model.width 2 --model.depth 2 --data folder --data.root {root} --data.crop 16 --data.batch_size 2"
    return [*flags.split(), "--data.num_workers", "2", "--trainer.accelerator", "cpu", "--trainer.max_epochs", "2"]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_file_that_breaks_during_training_is_named_in_a_line(
    workers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = folder_of_pictures(tmp_path / "data")
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
    flags = folder_of_pictures(tmp_path / "data")
    parent = os.getpid()

    def killed(path: Path) -> Any:
        if os.getpid() != parent and path.stem == "test1":
            os.kill(os.getpid(), signal.SIGKILL)
        return original(path)

    from datamodules import folder

    original = folder.read_image
    monkeypatch.setattr(folder, "read_image", killed)
    with pytest.raises(SystemExit) as stop:
        main([*flags, "--out", str(tmp_path / "run")])
    printed = capsys.readouterr().err
    assert stop.value.code == 1
    (line,) = [line for line in printed.splitlines() if line.startswith("error:")]
    assert re.search(
        r"a process that loads data \(\d+\) .*(killed|exited).*memory ran out.*--data.num_workers \(now 2\)", line
    )
    assert "Traceback" not in printed


def grid() -> Ablation:
    runs = variants(BASE.but(norm="none"), {"good": {"lr": 0.001}, "bad": {"lr": 1e30}})
    return Ablation(name="ends", question="?", runs=runs, factors={"lr": (0.001, 1e30)}, baseline="good")


@pytest.mark.parametrize(("failing", "code"), [({"bad": "x"}, 3), ({"bad": "x", "good": "y"}, 65)])
def test_a_grid_that_ends_in_part_is_3_and_one_without_a_result_ends_as_its_cells(
    failing: dict[str, str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from experiments.grids import ablation

    class Process:
        returncode = 65

    def run_cells(cells: Any, *args: Any, **kwargs: Any) -> Any:
        failed = [cell for cell in cells if cell.variant in failing]
        for cell in cells:
            cell.process = Process()
            if cell not in failed:
                train(cell.run, cell.folder, **QUIET)
        return failed

    monkeypatch.setattr(ablation, "run_cells", run_cells)
    parser = Parser(description=None)
    add_arguments(parser)
    assert run_grid(grid(), parser.parse_args(["--out", str(tmp_path), "--seeds", "0"])) == code


def test_a_grid_passes_a_signal_on_and_ends_with_its_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments.grids import ablation

    def run_cells(*args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    monkeypatch.setattr(ablation, "run_cells", run_cells)
    parser = Parser(description=None)
    add_arguments(parser)
    assert run_grid(grid(), parser.parse_args(["--out", str(tmp_path), "--seeds", "0"])) == 143


def test_a_cell_that_still_imports_ends_with_its_grid(tmp_path: Path) -> None:
    """The grid is gone as soon as the cell's interpreter runs, long before torch is there."""
    script = (
        "import os, subprocess, sys, time\n"
        "cell = subprocess.Popen([sys.executable, '-X', 'importtime', '-m', 'experiments.grids.cell', sys.argv[1], '--parent', "
        "str(os.getpid())], stderr=open(sys.argv[2], 'w'), start_new_session=True)\n"
        "print(cell.pid, flush=True)\n"
        "while 'argparse' not in open(sys.argv[2]).read(): time.sleep(0.01)\n"
        "time.sleep(0.3)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    log = tmp_path / "log"
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "cell"), str(log)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    pid = int(done.stdout)
    wait_for(lambda: not running(pid), 5)
    assert "experiments.runs.training" not in log.read_text()  # it had not come so far


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


def test_the_processes_of_a_cell_on_several_devices_have_another_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: type("C", (), {"prctl": staticmethod(lambda *_: 0)}))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(SystemExit):
        end_with_parent(os.getpid())
    end_with_parent(os.getppid())
    monkeypatch.setenv("LOCAL_RANK", "1")
    end_with_parent(os.getpid())


def test_a_killed_cell_says_by_what(tmp_path: Path) -> None:
    from rich.console import Console

    cell = experiments.grids.cells.PlannedCell("v", BASE, tmp_path / "v" / "seed0", 3)
    cell.folder.mkdir(parents=True)

    def start(cell: Any, *args: Any) -> None:
        (cell.folder / "log.txt").write_text("importing\n")
        cell.process = subprocess.Popen(["sh", "-c", "kill -9 $$"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiments.grids.cells, "_start", start)
        (failed,) = experiments.grids.cells.run_cells(
            [cell],
            Console(),
            jobs=1,
            threads=1,
            devices="auto",
            logging=Logging(),
            save_every=10.0,
            command="",
            seconds=lambda c: 1.0,
        )
    assert failed.error == "killed by SIGKILL, most likely because the memory ran out; its last line: importing"


def test_interruptions_are_no_errors() -> None:
    assert not isinstance(Interrupted(signal.SIGTERM), Exception)
    assert Interrupted(signal.SIGINT).code == 130
