"""Faults 1 to 8: kills, signals and disks."""

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.faults.harness import ENDLESS, Bench, Ended, check, check_ended, check_files
from tests.faults.starts import OFTEN, SHORT, last_step, resumed


def killed(bench: Bench) -> tuple[Ended, str]:
    flags = [*SHORT, *OFTEN, "--data.num_workers", 2]
    command = bench.start_train(*flags)
    bench.until_epoch(command)
    command.kill(signal.SIGKILL)
    ended, killed_at = command.wait(), time.monotonic()
    check(ended.status == 137, f"exit status {ended.status}")
    check(not bench.left(), "data workers are left")
    gone = time.monotonic() - killed_at
    check(gone <= 10, f"its workers lived for {gone:.0f} s")
    steps = check_files(bench.out, stale=True)
    check(steps >= last_step(bench), f"step {last_step(bench)} was reported, {steps} is saved")
    return ended, f"workers gone after {gone:.1f} s; " + resumed(bench, *flags)


def signalled(bench: Bench, signum: int, *flags: object, all_of_them: bool = False) -> tuple[Ended, str]:
    command = bench.start_train(*SHORT, *flags)
    bench.until_epoch(command)
    sent = time.monotonic()
    command.kill(signum, all_of_them=all_of_them)
    ended = check_ended(command.wait(), 128 + signum, "^stopped; the same command with --resume --out .* continues")
    took = time.monotonic() - sent
    check(took <= 30, f"it took {took:.0f} s to save and end")
    check(not bench.left(), "processes are left")
    steps = check_files(bench.out)
    check(steps >= last_step(bench), f"step {last_step(bench)} was reported, {steps} is saved")
    return ended, f"saved within {took:.1f} s; " + resumed(bench, *SHORT, *flags)


def killed_while_writing(bench: Bench, other_device: bool) -> tuple[Ended, str]:
    """Many kills of a process that does nothing but save."""
    from experiments.runs.checkpoints import CheckpointFiles, checkpoint_to_resume
    from experiments.shell.files import locked

    variables = {}
    if other_device:
        elsewhere = Path(tempfile.mkdtemp(dir="/dev/shm"))
        check(elsewhere.stat().st_dev != bench.folder.stat().st_dev, "/dev/shm is no other file system here")
        variables["TMPDIR"] = str(elsewhere)
    path, draw, kills = bench.out / "checkpoints" / "last.ckpt", random.Random(5), 60

    def save() -> None:
        import torch

        fsync = os.fsync
        os.fsync = lambda handle: (time.sleep(0.003), fsync(handle))[1]  # type: ignore[assignment,return-value]
        content: dict[str, Any] = {
            "segmentation": {"architecture": "unet"},
            "hyper_parameters": {},
            "state_dict": {"w": torch.rand(50_000)},
        }
        for step in range(1, 1000):
            CheckpointFiles().save_checkpoint({**content, "global_step": step}, path)

    temporary: set[str] = set()
    for _ in range(kills):
        command = bench.call_later(save, variables)
        bench.until(lambda: path.exists(), command)
        time.sleep(draw.uniform(0, 0.06))
        command.kill(signal.SIGKILL)
        ended = command.wait()
        found = checkpoint_to_resume(path.parents[1], "")
        check(found is not None, "no sound checkpoint")
        temporary |= {p.name for p in path.parent.glob(".*.tmp")}
    broken = [p.name for p in path.parent.iterdir() if "damaged" in p.name]
    check(not broken, f"broken: {broken}")
    with locked(bench.out):
        check(not list(path.parent.glob(".*.tmp")), "temporary files are left")
    if other_device:
        check(not list(elsewhere.iterdir()), "files are left in the temporary folder")
        shutil.rmtree(elsewhere)
    return (
        ended,
        f"{kills} kills: 0 broken checkpoints, {len(temporary)} temporary files met and removed by the next run",
    )


@contextlib.contextmanager
def small_disk(bench: Bench, size: str) -> Iterator[bool]:
    """A file system of this size as the folder `here`; False where none may be mounted."""
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", bench.here], capture_output=True, check=False
    )
    try:
        yield done.returncode == 0
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", "-l", bench.here], check=True)


def disk_full(bench: Bench) -> tuple[Ended, str]:
    says = r"^error: no space left to write \S+"
    with small_disk(bench, "4m") as mounted:
        if not mounted:  # the system's limit on the size of a file stands in: torch's own writer meets it
            command = bench.start_train(*ENDLESS, inside=_limit_files)
            ended = check_ended(command.wait(), 74, says)
            check_files(bench.out)
            return ended, "no disk may be mounted here: a limit of 10,000 bytes a file stood in; no partial file"
        command = bench.start_train(*SHORT, "--data.length", 40)
        bench.until_epoch(command, 2)
        with contextlib.suppress(OSError), (bench.here / "others").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1024))
        ended = check_ended(command.wait(), 74, says)
        check_files(bench.out)
        (bench.here / "others").unlink()
        return ended, "a disk of 4 MB, no partial file; " + resumed(bench, *SHORT, "--data.length", 40)


def _limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def disk_small(bench: Bench) -> tuple[Ended, str]:
    with small_disk(bench, "64k") as mounted:
        inside = None
        if not mounted:
            usage = shutil.disk_usage(bench.here)._replace(free=5_000)

            def inside() -> None:
                shutil.disk_usage = lambda path: usage  # type: ignore[assignment]

        ended = bench.train("--model.width", 16, inside=inside)
        says = r"^error: no space left to write \S+last.ckpt, which takes [\d,]+ bytes where [\d,]+ are free"
        check_ended(ended, 74, says)
        check(not (bench.out / "metrics.csv").exists(), "it trained first")
        check_files(bench.out)
    return ended, "a disk of 64 kB" + ("" if mounted else ", by what the system says of it") + "; before the first step"
