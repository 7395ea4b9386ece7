"""The faults: each one brings something about that goes wrong in a training, and judges how the training took it.

A fault is data and a function of a `Bench`, which raises `Wrong` where the fault was not bounded and named, and returns how the
command that met it ended, with a word on what was left.
"""

import contextlib
import functools
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tests.faults.harness import ENDLESS, QUIET, TINY, Bench, Ended, Wrong, check, check_ended, check_files

SHORT = ["--trainer.max_epochs", "8"]
OFTEN = ["--save-every", "0.001"]  # minutes
TWO = ["--trainer.devices", "2", "--model.norm", "group"]


@dataclass(frozen=True)
class Fault:
    """`number` is that of the row in the table of faults; `does` says what it does to whoever meets it."""

    number: int
    name: str
    does: str
    act: Callable[[Bench], tuple[Ended, str]]
    when: str = "push"  # or "test", which comes before, or "full", which comes rarely


# Runs that others start from, made once a process.


@functools.cache
def _store() -> Path:
    place = Path(tempfile.mkdtemp(prefix="seglab-begun-"))
    import atexit

    owner = os.getpid()  # a forked command is not the one that clears up
    atexit.register(lambda: os.getpid() == owner and shutil.rmtree(place))
    return place


@functools.cache
def _begun(*flags: str) -> Path:
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
    shutil.copytree(_begun(*flags), bench.out)
    return bench.out / "checkpoints" / "last.ckpt"


def finished(bench: Bench) -> None:
    shutil.copytree(_finished(), bench.out)


def pictures(bench: Bench, size: int = 32) -> list[str]:
    """The flags of a training on a folder of pictures with two classes."""
    root = bench.here / "data"
    for part in ("images", "masks", "splits"):
        (root / part).mkdir(parents=True)
    (root / "classes.txt").write_text("a\nb\n")
    for split in ("train", "val", "test"):
        names = [f"{split}{i}" for i in range(4)]
        (root / "splits" / f"{split}.txt").write_text("\n".join(names))
        for i, name in enumerate(names):
            Image.effect_noise((size, size), 10 + 5 * i).convert("RGB").save(root / "images" / f"{name}.png")
            Image.new("L", (size, size), i % 2).save(root / "masks" / f"{name}.png")
    return ["--data", "folder", "--data.root", str(root), "--data.crop", "16", "--data.batch_size", "2"]


SMALL = [*TINY[:6], *QUIET]  # a network for `pictures`


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
    """That of the row before it: a row is written just before the checkpoint of its epoch, and a kill may fall between."""
    return int((bench.out / "metrics.csv").read_text().splitlines()[-2].split(",")[1])


# 1 to 6: kills and signals


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


# 7, 8: disks


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


# 9 to 14: checkpoints


def damaged(bench: Bench, damage: Callable[[bytes], bytes]) -> tuple[Ended, str]:
    path = begun(bench)
    path.write_bytes(damage(path.read_bytes()))
    ended = bench.train("--resume", *SHORT)
    check_ended(ended, 0, r"last\.ckpt is damaged.*going on from previous\.ckpt, at step \d+")
    check((bench.out / "result.json").exists(), "no result")
    return ended, "went on from the checkpoint before"


def flip(content: bytes, draw: random.Random) -> bytes:
    bit = draw.randrange(8 * len(content))
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def bit_flipped(bench: Bench) -> tuple[Ended, str]:
    from lightning_modules.components.checkpoints import read_checkpoint

    path, draw, silent = begun(bench), random.Random(12), 0
    content = path.read_bytes()
    for _ in range(400):
        path.write_bytes(flip(content, draw))
        try:
            read_checkpoint(path)
            silent += 1
        except ValueError:
            pass
    check(not silent, f"{silent} of 400 flips were not seen")
    path.write_bytes(content)
    shutil.rmtree(bench.out)
    ended, said = damaged(bench, lambda content: flip(content, draw))
    return ended, f"400 of 400 flips seen; {said}"


def missing(bench: Bench) -> tuple[Ended, str]:
    ended = bench.train("--resume", *SHORT)
    check_ended(ended, 2, r"^error: there is nothing to resume in .*: leave out --resume, or name the folder")
    check(not bench.out.exists(), "a folder was made")
    return ended, "nothing is made"


def of_another_run(bench: Bench) -> tuple[Ended, str]:
    path = begun(bench)
    other = _begun("--model.norm", "batch") / "checkpoints"
    for name in ("last.ckpt", "last.ckpt.sha256"):
        shutil.copy(other / name, path.with_name(name))
    before = path.read_bytes()
    ended = bench.train("--resume", *SHORT)
    check_ended(ended, 2, r"^error: .*last\.ckpt is a checkpoint of another run")
    check(path.read_bytes() == before, "it was changed")
    return ended, "nothing is changed"


def other_batch_size(bench: Bench) -> tuple[Ended, str]:
    begun(bench)
    ended = bench.train("--resume", *SHORT, "--data.batch_size", 4)
    return check_ended(ended, 2, r"^error: .*holds another run \(data\.batch_size: 2 -> 4\)"), "nothing is changed"


# 15 to 18: numbers and data


def not_a_number(bench: Bench) -> tuple[Ended, str]:
    ended = bench.train(*SHORT, "--model.lr", "1e30", "--model.norm", "none")
    check_ended(
        ended,
        65,
        r"^error: .*(loss is (nan|inf) in epoch 0, step \d, on train\d+|not finite after step 1).*lower the learning",
    )
    check(not list(bench.out.glob("checkpoints/*.ckpt")), "weights were saved")
    return ended, ended.error.split(":")[1].strip()


def all_ignored(bench: Bench) -> tuple[Ended, str]:
    from lightning_modules.components.losses import LOSSES

    flags = pictures(bench, 64)
    path = bench.here / "data" / "masks" / "train1.png"
    nothing = Image.new("L", (64, 64), 255)
    nothing.save(path)
    ended = bench.run("experiments.train", *SMALL, *flags, "--out", bench.out)
    check_ended(ended, 2, r"masks/train1\.png has no label, all of it is 255")
    nothing.putpixel((0, 0), 1)  # which next to no crop has
    nothing.save(path)
    for loss in LOSSES:
        out = bench.here / loss
        ended = bench.run(
            "experiments.train", *SMALL, *flags, "--data.batch_size", 1, "--model.loss", loss, "--model.norm", "none",
            "--trainer.max_epochs", 1, "--out", out,
        )  # fmt: skip
        check_ended(ended, 0)
        check_files(out)
        check("nan" not in (out / "metrics.csv").read_text(), f"NaN in metrics.csv with {loss}")
    return (
        ended,
        f"a crop without a label: finite with each of {len(LOSSES)} losses; a whole image of that kind is refused",
    )


def worker_killed(bench: Bench) -> tuple[Ended, str]:
    flags = ["--trainer.max_epochs", 2, *OFTEN, "--data.num_workers", 2, "--data.length", 100]
    command = bench.start_train(*flags)
    bench.until(lambda: (bench.out / "checkpoints" / "last.ckpt").exists() and len(command.children()) >= 2, command)
    os.kill(command.children()[-1], signal.SIGKILL)
    says = r"^error: a process that loads data \(\d+\) .*most likely the memory ran out; lower --data.num_workers \(now 2\)"
    ended = check_ended(command.wait(), 1, says)
    check(not bench.left(), "processes are left")
    return ended, resumed(bench, *flags)


def bad_sample(bench: Bench) -> tuple[Ended, str]:
    flags = [*SMALL, *pictures(bench), "--data.num_workers", 2, "--out", bench.out, *ENDLESS]
    command = bench.start("experiments.train", *flags)
    bench.until_epoch(command, 1)
    (bench.here / "data" / "images" / "val1.png").write_bytes(b"<html>")
    ended = check_ended(command.wait(), 2, r"^error: images/val1\.png is damaged or not an image")
    check(not bench.left(), "processes are left")
    check_files(bench.out)
    return ended, "the file is named"


# 19 to 23: several processes, always real ones


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
    flags = [*SMALL, *pictures(bench), *TWO, *ENDLESS, "--out", bench.out]
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


# 24 to 26: W&B

SERVER = """import signal, sys, wandb_server
with wandb_server.WandbServer(sys.argv[1]) as server:
    signal.signal(signal.SIGUSR1, lambda *_: server.spoil())
    print(server.url, flush=True)
    while True:
        signal.pause()
"""


@contextlib.contextmanager
def wandb_server(state: str = "") -> Iterator[tuple[Any, dict[str, str]]]:
    """A stand-in for W&B's server in a process of its own, and the environment of somebody who is logged in to it."""
    place = Path(__file__).parents[1] / "experiments"
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, state], cwd=place, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            yield server, {"WANDB_BASE_URL": url, "WANDB_API_KEY": "0123456789" * 4}
        finally:
            server.kill()


def logged(bench: Bench, wanted: str, variables: dict[str, str]) -> tuple[Ended, str]:
    ended = bench.train(*SHORT, "--logger", "wandb", variables=variables)
    check_ended(ended, 0, wanted)
    check((bench.out / "result.json").exists(), "no result")
    check_files(bench.out)
    return ended, "trained to its end"


def no_key(bench: Bench) -> tuple[Ended, str]:
    with wandb_server() as (_, variables):
        own = {"WANDB_BASE_URL": variables["WANDB_BASE_URL"], "NETRC": str(bench.folder / "none")}
        ended, said = logged(bench, "python -m experiments.sync", own)
    return ended, f"asks for nothing, logs offline, says how to upload; {said}"


def wandb_states(bench: Bench) -> tuple[Ended, str]:
    """Four at a time, because most of it is waiting."""
    from wandb_server import STATES

    slowest = Ended(0, 0.0, "")
    for first in range(0, len(STATES), 4):
        with contextlib.ExitStack() as stack:
            commands = []
            for state in STATES[first : first + 4]:
                server, variables = stack.enter_context(wandb_server(state))
                out = bench.here / state / "run"
                flags = [*TINY, *QUIET, *SHORT, "--logger", "wandb", "--out", out]
                commands.append((state, out, server, bench.start("experiments.train", *flags, variables=variables)))
            for state, out, server, command in commands:
                if state in ("dies", "hangs"):
                    bench.until(lambda out=out: bench.rows(out), command)  # type: ignore[misc]
                    server.send_signal(signal.SIGUSR1)
            for state, out, _, command in commands:
                try:
                    ended = check_ended(command.wait(90), 0, limit=90)
                except Wrong as wrong:
                    raise Wrong(f"{state}: {wrong}") from wrong
                check((out / "result.json").exists(), f"{state}: no result")
                check_files(out)
                slowest = max(slowest, ended, key=lambda one: one.seconds)
    return slowest, f"{len(STATES)} states of a server ({', '.join(STATES)}): each trained to its end"


def wandb_modes(bench: Bench) -> tuple[Ended, str]:
    ended, said = logged(bench, "python -m experiments.sync", {"WANDB_MODE": "offline"})
    shutil.rmtree(bench.out)
    logged(bench, "test/miou", {"WANDB_MODE": "disabled"})
    return ended, said


# 27 to 30: folders and packages


def cannot_write(bench: Bench) -> tuple[Ended, str]:
    theirs = bench.here / "theirs"
    (theirs / "run").mkdir(parents=True)
    file = bench.here / "file"
    file.write_text("mine")
    os.chmod(theirs / "run", 0o555)
    os.chmod(theirs, 0o555)

    def nobody() -> None:
        if os.geteuid() == 0:  # who may write everywhere
            os.setgid(65534)
            os.setuid(65534)

    for out in (theirs / "run", theirs / "new", file, file / "run"):
        ended = bench.run("experiments.train", *TINY, *QUIET, *ENDLESS, "--out", out, inside=nobody)
        check_ended(ended, 73, rf"^error: cannot write {out}\b.*choose another folder with --out")
    os.chmod(theirs, 0o755)
    check(file.read_text() == "mine", "the file was changed")
    check(not any((theirs / "run").iterdir()), "something was written")
    return ended, "an old one, a new one, a file, below a file: each before the first step"


def in_use(bench: Bench) -> tuple[Ended, str]:
    first = bench.start_train(*ENDLESS)
    bench.until_epoch(first, 1)
    ended = check_ended(bench.train(*ENDLESS), 75, rf"^error: .* is in use by process {first.pid} on \S+: wait for it")
    first.kill(signal.SIGTERM)
    check_ended(first.wait(), 143)
    check_files(bench.out)
    return ended, "the first one goes on"


def again(bench: Bench) -> tuple[Ended, str]:
    finished(bench)
    before = (bench.out / "result.json").read_bytes()
    ended = check_ended(
        bench.train("--trainer.max_epochs", 2), 2, "^error: .*already holds this run: continue it with --resume"
    )
    check_ended(bench.train("--trainer.max_epochs", 2, "--resume"), 0, "test/miou")
    check_ended(bench.train("--trainer.max_epochs", 3, "--resume"), 2, r"trainer\.max_epochs: 2 -> 3")
    check((bench.out / "result.json").read_bytes() == before, "the result was changed")
    return ended, "--resume returns the result; more epochs are refused by name"


def wrong_torchvision(bench: Bench) -> tuple[Ended, str]:
    """What torchvision says that was built for another torch."""
    place = bench.here / "packages"
    (place / "torchvision").mkdir(parents=True)
    (place / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')\n"
    )
    variables = {"PYTHONPATH": f"{place}{os.pathsep}{bench.variables['PYTHONPATH']}"}
    ended = bench.train(*SHORT, real=True, variables=variables)
    check_ended(ended, 2, r"^error: torchvision .*does not fit.*pip install")
    return ended, "the command to type is named"


# Beyond the table of 30


def strange_checkpoint(bench: Bench) -> tuple[Ended, str]:
    path = begun(bench)
    path.unlink()
    os.mkfifo(path)
    ended = check_ended(
        bench.train("--resume", *SHORT), 0, r"last\.ckpt .* no regular file.*going on from previous\.ckpt"
    )
    return ended, "nothing waits for a pipe; went on from the checkpoint before"


def rows_gone(bench: Bench) -> tuple[Ended, str]:
    command = bench.start_train(*SHORT)
    bench.until_epoch(command, 7)
    (bench.out / "metrics.csv").unlink()
    ended = check_ended(command.wait(), 2, r"^error: .*metrics\.csv is gone")
    return ended, "named, with the folder to delete"


def spawned(bench: Bench) -> tuple[Ended, str]:
    for strategy in ("ddp_spawn", "ddp_fork", "fsdp", "ddp_notebook"):
        ended = bench.train("--trainer.strategy", strategy, "--trainer.devices", 2)
        check_ended(ended, 2, rf"^error: --trainer\.strategy must be one of auto, ddp.*got '{strategy}'")
        check(not bench.out.exists(), "a folder was made")
    return ended, "refused before anything is made: their processes would train elsewhere than what reports"


def rank_not_a_number(bench: Bench) -> tuple[Ended, str]:
    """Of the validation images of the second process one has the class whose weight overflows."""
    flags = [*SMALL, *pictures(bench), *TWO, *ENDLESS, "--out", bench.out, "--model.class_weights", "[1, 1e38]"]
    for path in (bench.here / "data" / "masks").glob("*.png"):
        Image.new("L", (32, 32), int(path.stem == "val1")).save(path)
    ended = bench.run("experiments.train", *flags, real=True, limit=120)  # half of it is starting two interpreters
    check_ended(ended, 65, r"^error: .*val1", limit=120)
    check(_last_line(ended).startswith("error:"), f"its last line is {_last_line(ended)!r}")
    check("process 1" in _last_line(ended), f"the process is not named: {_last_line(ended)!r}")
    check(not bench.left(), "processes are left")
    return ended, "the last line names the image and the process"


def grid_without_a_grid(bench: Bench) -> tuple[Ended, str]:
    from tests.faults.kills import main_grid

    out = bench.here / "new" / "grid"
    ended = bench.call(lambda: sys.exit(main_grid(out, "--dry-run")))
    check_ended(ended, 0, "2 cells, 0 already done")
    check(not out.parent.exists(), f"the dry run left {sorted(out.parent.rglob('*'))}")
    ended = bench.call(lambda: sys.exit(main_grid(out, "--devices", "3")))
    check_ended(ended, 2, "^error: --devices must divide the batch")
    check(not out.parent.exists(), f"the refused one left {sorted(out.parent.rglob('*'))}")
    return ended, "neither leaves a folder"


FAULTS = [
    Fault(1, "kill -9 within an epoch", "the data workers go, the last save serves", killed),
    Fault(2, "SIGTERM", "the step is finished, saved, and the run ends", lambda b: signalled(b, signal.SIGTERM)),
    Fault(
        3,
        "SIGTERM to all processes, data workers included",
        "as a scheduler sends it: the same",
        lambda b: signalled(b, signal.SIGTERM, "--data.num_workers", 2, all_of_them=True),
    ),
    Fault(4, "SIGINT (Ctrl-C)", "the same", lambda b: signalled(b, signal.SIGINT)),
    Fault(
        5,
        "kill -9 while a checkpoint is written, TMPDIR on another device",
        "the old one or the new one is whole",
        lambda b: killed_while_writing(b, other_device=True),
    ),
    Fault(
        6,
        "the same, TMPDIR on the same device",
        "the same",
        lambda b: killed_while_writing(b, other_device=False),
        when="full",
    ),
    Fault(7, "disk full during training", "ends with file and bytes; what was there stays", disk_full),
    Fault(8, "disk too small", "is refused before the first step", disk_small, when="test"),
    Fault(9, "last.ckpt truncated", "the one before serves", lambda b: damaged(b, lambda content: content[: len(content) // 2]), when="test"),
    Fault(10, "last.ckpt empty", "the one before serves", lambda b: damaged(b, lambda content: b""), when="test"),
    Fault(11, "no checkpoint, --resume", "is refused", missing, when="test"),
    Fault(12, "a bit of last.ckpt flipped", "is always seen; the one before serves", bit_flipped),
    Fault(13, "last.ckpt of another run or architecture", "is refused", of_another_run, when="test"),
    Fault(14, "--resume with another batch size", "is refused", other_batch_size, when="test"),
    Fault(15, "loss is no number", "ends within a step, with the images; nothing of it is saved", not_a_number, when="test"),
    Fault(16, "a batch with every pixel ignored", "changes nothing", all_ignored),
    Fault(17, "data worker killed", "ends with the flags that help", worker_killed),
    Fault(18, "a file breaks during training, in a worker", "ends with its name", bad_sample),
    Fault(19, "2 processes, kill -9 of the second", "both end", lambda b: rank_killed(b, 1), when="full"),
    Fault(20, "2 processes, kill -9 of the first", "both end", lambda b: rank_killed(b, 0), when="full"),
    Fault(21, "2 processes, an error in one", "both end, its error is the last line", rank_fails),
    Fault(22, "2 processes, SIGTERM to the first", "both save and end", lambda b: rank_signalled(b, 0), when="full"),
    Fault(23, "2 processes, SIGTERM to the second", "both save and end", lambda b: rank_signalled(b, 1), when="full"),
    Fault(24, "W&B without a key", "is logged offline", no_key),
    Fault(25, "W&B refuses, hangs, lies or goes away", "changes nothing in a training", wandb_states, when="full"),
    Fault(26, "WANDB_MODE=offline, disabled", "is obeyed", wandb_modes, when="full"),
    Fault(27, "folder cannot be written to", "is refused before the first step", cannot_write, when="test"),
    Fault(28, "two processes, one folder", "the second is refused", in_use, when="test"),
    Fault(29, "the folder holds this very run, finished", "is refused, nothing is lost", again, when="test"),
    Fault(30, "torchvision of another build than torch", "says what to install", wrong_torchvision),
    Fault(31, "last.ckpt is a pipe", "the one before serves", strange_checkpoint, when="test"),
    Fault(32, "metrics.csv deleted during training", "ends with what to do", rows_gone),
    Fault(33, "--trainer.strategy that trains elsewhere than it reports", "is refused", spawned, when="test"),
    Fault(34, "2 processes, a number of one is none", "both end, its error is the last line", rank_not_a_number, when="full"),
    Fault(35, "a dry run, a refused grid", "leave nothing", grid_without_a_grid),
]  # fmt: skip
