"""Checkpoints: kept in two, checked before use, never of another run; and every moment at which a run may be cut
off."""

import hashlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interrupt import BASE, OFTEN, QUIET, RUNS, At, PowerCut, cut, outcome, terminate, unequal, whole

from experiments.runs.checkpoints import STATES, CheckpointFiles, SafePoints, Signals, checkpoint_to_resume
from experiments.runs.run import Run
from experiments.runs.training import train
from experiments.shell.catalogue import load
from experiments.shell.ending import Interrupted
from experiments.shell.files import locked, write_atomic
from lightning_modules.components.checkpoints import digest, digest_file, read_checkpoint
from lightning_modules.components.errors import NonFiniteError
from lightning_modules.components.finite import not_finite
from lightning_modules.components.schedules import OPTIMIZERS

SHORT = BASE.but(trainer={"max_epochs": 2})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of two epochs."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("finished") / "run"
    train(SHORT, out, **QUIET)
    return out


@pytest.fixture
def half(finished: Path, tmp_path: Path) -> Path:
    """A copy of it as a kill before the result would have left it."""
    out = tmp_path / "run"
    subprocess.run(["cp", "-r", str(finished), str(out)], check=True)
    (out / "result.json").unlink()
    return out


# With every safe point saved and then cut off, and ended by a signal: one of them of each run, or by `make full` every
# moment.
MOMENTS = [(name, act, every) for name in RUNS for act, every in (("cut", OFTEN), ("terminate", 10.0))]


@pytest.mark.parametrize(("name", "act", "every"), [*MOMENTS[::4], *MOMENTS[3::4]], ids=lambda value: str(value))
def test_a_run_that_was_cut_off_anywhere_ends_bit_equal(
    name: str, act: str, every: float, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = RUNS[name]
    expected, moments = whole(run, tmp_path / "whole")
    chosen = random.Random(f"{name} {act}").sample(range(8, moments + 1), 1)
    _cut_and_resume(run, act, every, chosen, expected, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "act", "every"), MOMENTS, ids=lambda value: str(value))
def test_a_run_that_was_cut_off_at_every_moment_ends_bit_equal(
    name: str, act: str, every: float, tmp_path: Path
) -> None:
    expected, moments = whole(RUNS[name], tmp_path / "whole")
    _cut_and_resume(RUNS[name], act, every, range(8, moments + 1), expected, tmp_path)


def _cut_and_resume(run: Run, act: str, every: float, chosen: Any, expected: dict[str, Any], folder: Path) -> None:
    acts: dict[str, tuple[Any, type[BaseException]]] = {"cut": (cut, PowerCut), "terminate": (terminate, Interrupted)}
    do, raised = acts[act]
    for moment in chosen:
        out = folder / f"at{moment}"
        with pytest.raises(raised):
            train(run, out, callbacks=[At(moment, do)], save_every=every, **QUIET)
        train(run, out, resume=True, save_every=every, **QUIET)
        assert not unequal(expected, outcome(out)), moment


def test_several_interruptions_and_changing_workers_end_bit_equal(tmp_path: Path) -> None:
    run = RUNS["validate-accumulate"]
    expected, _ = whole(run, tmp_path / "whole")
    out = tmp_path / "cut"
    for attempt, (workers, moment) in enumerate(((2, 12), (0, 6), (1, 15), (2, 9))):
        with pytest.raises(Interrupted):
            train(
                run.but(data={"num_workers": workers}),
                out,
                resume=attempt > 0,
                callbacks=[At(moment, terminate)],
                **QUIET,
            )
    train(run.but(data={"num_workers": 2}), out, resume=True, **QUIET)
    assert not unequal(expected, outcome(out))


def test_the_two_newest_are_kept_with_their_hashes(finished: Path) -> None:
    folder = finished / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == [
        *("last.ckpt", "last.ckpt.sha256", "previous.ckpt", "previous.ckpt.sha256"),
    ]
    done = subprocess.run(
        ["sha256sum", "-c", "last.ckpt.sha256", "previous.ckpt.sha256"], cwd=folder, check=False, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    steps = [read_checkpoint(folder / name)["global_step"] for name in ("last.ckpt", "previous.ckpt")]
    assert steps == [6, 3]
    assert read_checkpoint(folder / "last.ckpt")["run"] == SHORT.hash


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "garbage", "digest", "folder", "fifo"])
def test_the_older_checkpoint_serves_when_the_newer_is_damaged(
    damage: str, half: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = half / "checkpoints" / "last.ckpt"
    _spoil(last, damage)
    train(SHORT, half, resume=True, **QUIET)
    said = [line for line in capsys.readouterr().err.splitlines() if "last.ckpt" in line]
    assert len(said) == 1
    assert "previous.ckpt, at step 3" in said[0]
    assert "()" not in said[0]  # a reason, never an empty one
    assert not unequal(outcome(finished), outcome(half))


def _spoil(path: Path, damage: str) -> None:
    content = bytearray(path.read_bytes())
    if damage == "flip":  # a bit of a weight, which torch itself reads without a word
        place = content.index(np.float32(read_checkpoint(path)["state_dict"]["std"][0].item()).tobytes())
        content[place] ^= 1
        path.write_bytes(content)
        torch.load(path, weights_only=True)
    elif damage == "digest":
        digest_file(path).write_text("rubbish\n")
    elif damage in ("folder", "fifo"):
        path.unlink()
        path.mkdir() if damage == "folder" else os.mkfifo(path)
    else:
        path.write_bytes({"cut": content[:1000], "empty": b"", "garbage": b"<html>" * 500}[damage])
        if damage == "garbage":
            digest_file(path).unlink()


def test_where_both_are_damaged_the_reasons_are_named(half: Path) -> None:
    for name in ("last.ckpt", "previous.ckpt"):
        (half / "checkpoints" / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"last\.ckpt is damaged: it is empty .*previous\.ckpt.*empty.*delete"):
        train(SHORT, half, resume=True, **QUIET)


@pytest.mark.parametrize("inputs", range(20))
def test_no_flipped_bit_of_a_checkpoint_goes_unseen(inputs: int, half: Path) -> None:
    last = half / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    draw = random.Random(inputs)
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    last.write_bytes(content)
    with pytest.raises(ValueError, match=r"last\.ckpt is damaged: its SHA-256"):
        read_checkpoint(last)
    with pytest.raises(ValueError, match=r"last\.ckpt is damaged: its SHA-256"):
        load(last)


def test_a_checkpoint_of_another_run_is_refused(half: Path, tmp_path: Path) -> None:
    train(SHORT.but(lr=0.5, trainer={"max_epochs": 1}), tmp_path / "other", **QUIET)
    for name in ("last.ckpt", "last.ckpt.sha256"):
        (half / "checkpoints" / name).write_bytes((tmp_path / "other" / "checkpoints" / name).read_bytes())
    with pytest.raises(ValueError, match=r"last\.ckpt is a checkpoint of another run .*put back the one"):
        train(SHORT, half, resume=True, **QUIET)


def test_a_checkpoint_that_was_copied_alone_is_read(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "mine.ckpt"
    copy.write_bytes((finished / "checkpoints" / "last.ckpt").read_bytes())
    assert load(copy).num_classes == 3


@pytest.mark.parametrize("kind", ["code", "tensor", "missing"])
def test_what_is_no_checkpoint_is_named_without_bad_advice(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    if kind == "code":
        torch.save({"segmentation": Path}, path)
    elif kind == "tensor":
        torch.save(torch.zeros(3), path)
    with pytest.raises((ValueError, FileNotFoundError), match=r"x\.ckpt is not a") as raised:
        load(path)
    assert "weights_only" not in str(raised.value)


def test_a_kill_at_any_moment_of_saving_leaves_a_sound_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step of replacing last.ckpt is the last one once: each rename, link and file in turn."""
    base = {"segmentation": {"architecture": "unet"}, "state_dict": {"w": torch.ones(1)}, "hyper_parameters": {}}
    calls = 0
    limit = 10**9

    def counted(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > limit:
                raise KeyboardInterrupt
            return function(*args, **kwargs)

        return call

    for name in ("replace", "link", "fsync"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: None)  # nor does a kill tidy up
    moment = 0
    while True:
        path = tmp_path / str(moment) / "checkpoints" / "last.ckpt"
        limit = 10**9
        for step in (1, 2):
            CheckpointFiles().save_checkpoint({**base, "global_step": step}, path)
        calls, limit = 0, moment
        try:
            CheckpointFiles().save_checkpoint({**base, "global_step": 3}, path)
            break
        except KeyboardInterrupt:
            moment += 1
        found = checkpoint_to_resume(path.parents[1], "")
        assert found is not None
        assert read_checkpoint(found)["global_step"] in (2, 3)
        older = read_checkpoint(path.with_name("previous.ckpt"))["global_step"]
        assert older in (1, 2)
    assert moment > 8  # so many steps there are


def test_what_killed_writers_left_is_removed_by_the_next_run_of_the_folder(half: Path) -> None:
    old = [half / ".run.json.774oh51y.tmp", half / "checkpoints" / ".last.ckpt.774oh51y.tmp"]
    dead = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True, check=True).stdout.strip()
    gone = half / f".metrics.csv.{dead}.abcdefgh.tmp"
    alive, mine = half / f".table.md.{os.getppid()}.abcdefgh.tmp", half / ".my.notes.tmp"
    for path in (*old, gone, alive, mine):
        path.write_text("x")
    with locked(half):
        assert [path.exists() for path in (*old, gone, alive, mine)] == [False, False, False, True, True]


def test_weights_that_overflow_in_the_last_step_are_not_saved(tmp_path: Path) -> None:
    """The loss is from before the step, and finite."""
    run = BASE.but(
        optimizer="sgd",
        lr=3e38,
        weight_decay=1e30,
        norm="none",
        data={"length": 2},
        trainer={"max_epochs": 1, "limit_val_batches": 0},
    )
    with pytest.raises(NonFiniteError, match=r"not finite after step 1: network\..*these weights are not saved"):
        train(run, tmp_path / "run", **QUIET)
    assert not list((tmp_path / "run").glob("checkpoints/*"))
    assert not (tmp_path / "run" / "result.json").exists()
    assert not_finite({"a": torch.tensor([1.0, float("inf")]), "b": torch.tensor(1)}) == "a"


def test_a_loss_that_is_not_a_number_stops_within_a_step_and_names_the_images(tmp_path: Path) -> None:
    class Poison(At):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == 4:
                batch["image"].fill_(float("nan"))

    with pytest.raises(NonFiniteError, match=r"training loss is nan in epoch 1, step 5, on train\d{4}, train\d{4}"):
        train(BASE, tmp_path / "run", callbacks=[Poison(None, None)], **QUIET)
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 3


def test_a_checkpoint_is_due_by_the_clock(tmp_path: Path) -> None:
    points = SafePoints(tmp_path, "", Signals(), minutes=1.0)
    trainer = type("OneProcess", (), {"world_size": 1})()
    assert points._agree(trainer) == (0, False, False)
    points.saved -= 61
    assert points._agree(trainer) == (0, True, False)


@pytest.mark.usefixtures("heard")
def test_signals_wait_for_a_safe_point_and_a_second_one_does_not(capfd: pytest.CaptureFixture[str]) -> None:
    before = [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)]
    with Signals() as signals:
        for signum, status in ((signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)):
            signals.waiting, signals.received = False, 0
            with pytest.raises(Interrupted) as raised:  # nothing has begun
                os.kill(os.getpid(), signum)
                time.sleep(1)
            assert raised.value.code == status
            signals.waiting = True
            os.kill(os.getpid(), signum)
            assert signals.received == signum
            with pytest.raises(Interrupted) as raised:
                os.kill(os.getpid(), signum)
                time.sleep(1)
            assert raised.value.code == status
    assert [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)] == before
    assert "SIGTERM: ending after this step; once more ends at once" in capfd.readouterr().err


def test_an_ignored_signal_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_space_is_known_for_every_optimiser() -> None:
    assert STATES.keys() == OPTIMIZERS.keys()


def test_the_digest_is_that_of_sha256(tmp_path: Path) -> None:
    write_atomic(tmp_path / "x", b"abc")
    assert digest(tmp_path / "x") == hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize("moment", [7, 8, 9, 10])
@pytest.mark.parametrize("name", ["limited", "limited-accumulate"])
def test_an_epoch_that_is_cut_short_and_ends_in_a_validation_goes_on_with_its_next(
    name: str, moment: int, tmp_path: Path
) -> None:
    """The checkpoint of that validation has no batch left to draw, and says nothing of the epoch after it."""
    expected, _ = whole(RUNS[name], tmp_path / "whole")
    _cut_and_resume(RUNS[name], "cut", OFTEN, [moment], expected, tmp_path)


def test_a_signal_to_all_processes_of_a_run_with_workers_saves_first(tmp_path: Path) -> None:
    """As Ctrl-C sends it, and a scheduler."""
    run = BASE.but(data={"num_workers": 2})
    expected, _ = whole(run, tmp_path / "whole")

    def to_all() -> None:
        workers = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
        assert len(workers) >= 2
        for pid in (*map(int, workers), os.getpid()):
            os.kill(pid, signal.SIGTERM)
        time.sleep(0.5)

    with pytest.raises(Interrupted):
        train(run, tmp_path / "cut", callbacks=[At(19, to_all)], **QUIET)
    assert read_checkpoint(tmp_path / "cut" / "checkpoints" / "last.ckpt")["global_step"] == 5
    train(run, tmp_path / "cut", resume=True, **QUIET)
    assert not unequal(expected, outcome(tmp_path / "cut"))


@pytest.mark.parametrize("kind", ["fifo", "folder", "{}", '{"settings": 3}', '{"hash": "x"}', "[]"])
@pytest.mark.parametrize("name", ["run.json", "result.json", "metrics.csv", "checkpoints/last.ckpt.sha256"])
def test_a_strange_file_in_the_folder_of_a_run_is_named_and_nothing_waits(
    name: str, kind: str, half: Path, finished: Path
) -> None:
    if name == "result.json":
        (half / name).write_bytes((finished / name).read_bytes())
    path = half / name
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_text(kind)
    if name.endswith("sha256"):  # the older checkpoint serves
        train(SHORT, half, resume=True, **QUIET)
        return
    with pytest.raises(ValueError, match=path.name):
        train(SHORT, half, resume=True, **QUIET)


def test_a_checkpoint_without_its_hash_is_not_called_damaged(half: Path) -> None:
    (half / "checkpoints" / "last.ckpt.sha256").write_text("")
    with pytest.raises(
        ValueError, match=r"cannot be checked: last.ckpt.sha256 beside it holds no SHA-256. Put it back"
    ):
        read_checkpoint(half / "checkpoints" / "last.ckpt")


def test_a_run_whose_rows_are_lost_is_not_continued(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(BASE, tmp_path / "run", callbacks=[At(25, terminate)], **QUIET)
    (tmp_path / "run" / "metrics.csv").unlink()
    with pytest.raises(ValueError, match=r"metrics.csv is gone: delete its folder"):
        train(BASE, tmp_path / "run", resume=True, **QUIET)
