"""Faults of several processes, which are always real ones."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from PIL import Image

from tests.faults.harness import ENDLESS, Bench, Ended, check, check_ended, check_files, write_pictures
from tests.faults.starts import SMALL, TWO, last_step, step_before


def ranks(bench: Bench, *flags: object, **how: Any) -> tuple[Any, int]:
    """Starts a training over two processes; the second one's id."""
    command = bench.start_train(*TWO, *ENDLESS, *flags, real=True, **how)
    bench.until_epoch(command, 2)

    def second() -> list[int]:
        return [pid for pid in command.children() if b"experiments.train" in _command_of(pid)]

    bench.until(second, command)
    return command, second()[0]


def _command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def rank_killed(bench: Bench, which: int) -> tuple[Ended, str]:
    command, second = ranks(bench)
    at = time.monotonic()
    os.kill((command.pid, second)[which], signal.SIGKILL)
    ended = command.wait(60)
    check(ended.status not in (None, 0), f"exit status {ended.status}")
    took = time.monotonic() - at
    check(not bench.left(), "processes are left after 15 s")
    steps = check_files(bench.out, stale=True)
    check(steps >= step_before(bench), f"more than an epoch is lost: step {steps} is saved")
    return (
        ended,
        f"ended {took:.0f} s after the kill, the last one {time.monotonic() - at:.0f} s; step {steps} is saved",
    )


def rank_fails(bench: Bench) -> tuple[Ended, str]:
    flags = [*SMALL, *write_pictures(bench.here / "data"), *TWO, *ENDLESS, "--out", bench.out]
    command = bench.start("experiments.train", *flags, real=True)
    bench.until_epoch(command, 1)
    at = time.monotonic()
    (bench.here / "data" / "images" / "val1.png").write_bytes(b"<html>")  # read by the second process alone
    ended = check_ended(command.wait(60), 2, r"^error: .*images/val1\.png is damaged or not an image", limit=300)
    took = time.monotonic() - at
    check(_last_line(ended).startswith("error:"), f"its last line is {_last_line(ended)!r}")
    check("process 1" in _last_line(ended), f"the process is not named: {_last_line(ended)!r}")
    check(not bench.left(), "processes are left")
    return ended, f"{took:.0f} s after the file broke; the last line names the file and the process"


def _last_line(ended: Ended) -> str:
    lines = [line for line in ended.printed.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def rank_signalled(bench: Bench, which: int) -> tuple[Ended, str]:
    command, second = ranks(bench)
    at = time.monotonic()
    os.kill((command.pid, second)[which], signal.SIGTERM)
    ended = check_ended(command.wait(60), 143, "^stopped; the same command with --resume", limit=120)
    took = time.monotonic() - at
    check(not bench.left(), "processes are left")
    steps = check_files(bench.out)
    check(steps >= last_step(bench), f"step {last_step(bench)} was reported, {steps} is saved")
    return ended, f"both saved and ended {took:.0f} s after the signal"


def rank_not_a_number(bench: Bench) -> tuple[Ended, str]:
    """Of the validation images of the second process one has the class whose weight overflows."""
    flags = [
        *SMALL,
        *write_pictures(bench.here / "data"),
        *TWO,
        *ENDLESS,
        "--out",
        bench.out,
        "--model.class_weights",
        "[1, 1e38]",
    ]
    for path in (bench.here / "data" / "masks").glob("*.png"):
        Image.new("L", (32, 32), int(path.stem == "val1")).save(path)
    ended = bench.run("experiments.train", *flags, real=True, limit=120)  # half of it is starting two interpreters
    check_ended(ended, 65, r"^error: .*val1", limit=120)
    check(_last_line(ended).startswith("error:"), f"its last line is {_last_line(ended)!r}")
    check("process 1" in _last_line(ended), f"the process is not named: {_last_line(ended)!r}")
    check(not bench.left(), "processes are left")
    return ended, "the last line names the image and the process"
