"""Full disks, folders that cannot be written to or are in use, and files that are in the way or gone."""

import errno
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from interrupt import BASE, QUIET, At
from test_ending import ended

import experiments.train
from experiments.runs.training import train
from experiments.shell import ending, files
from experiments.shell.ending import NoSpaceError, of_writing
from experiments.shell.files import locked, write_atomic

ROOT = Path(__file__).parents[3]


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
        "import os; from experiments.shell.files import locked; from experiments.shell.ending import ending; from "
        "pathlib import Path\n"
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


def test_a_folder_that_nobody_can_make_is_refused(tmp_path: Path) -> None:
    """As in a working directory that has been deleted, where it was tried for ever."""
    code = (
        f"import os; from pathlib import Path; from experiments.shell.files import locked; os.chdir({str(tmp_path)!r})"
    )
    code += f"\nos.rmdir({str(tmp_path)!r})\nwith locked(Path('run')): pass"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode and "cannot write run (No such file or directory)" in done.stderr


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
