"""The faults: each one brings something about that goes wrong in a training, and judges how the training took it.

A fault is data and a function of a `Bench`, which raises `Wrong` where the fault was not bounded and named, and returns
how the command that met it ended, with a word on what was left.
"""

import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from tests.faults.harness import ENDLESS, QUIET, TINY, Bench, Ended, check, check_ended, check_files, write_pictures
from tests.faults.ranks import rank_fails, rank_killed, rank_not_a_number, rank_signalled
from tests.faults.starts import OFTEN, SHORT, SMALL, begun, finished, resumed, stopped_run
from tests.faults.stops import disk_full, disk_small, killed, killed_while_writing, signalled
from tests.faults.uploads import no_key, wandb_modes, wandb_states


@dataclass(frozen=True)
class Fault:
    """`number` is that of the row in the table of faults; `does` says what it does to whoever meets it."""

    number: int
    name: str
    does: str
    act: Callable[[Bench], tuple[Ended, str]]
    when: str = "push"  # or "test", which comes before, or "full", which comes rarely


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
    other = stopped_run("--model.norm", "batch") / "checkpoints"
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

    flags = write_pictures(bench.here / "data", 64)
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
    says = r"^error: a process that loads data \(\d+\) .*most likely the memory ran out; "
    says += r"lower --data.num_workers \(now 2\)"
    ended = check_ended(command.wait(), 1, says)
    check(not bench.left(), "processes are left")
    return ended, resumed(bench, *flags)


def bad_sample(bench: Bench) -> tuple[Ended, str]:
    flags = [*SMALL, *write_pictures(bench.here / "data"), "--data.num_workers", 2, "--out", bench.out, *ENDLESS]
    command = bench.start("experiments.train", *flags)
    bench.until_epoch(command, 1)
    (bench.here / "data" / "images" / "val1.png").write_bytes(b"<html>")
    ended = check_ended(command.wait(), 2, r"^error: images/val1\.png is damaged or not an image")
    check(not bench.left(), "processes are left")
    check_files(bench.out)
    return ended, "the file is named"


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
    Fault(
        9,
        "last.ckpt truncated",
        "the one before serves",
        lambda b: damaged(b, lambda content: content[: len(content) // 2]),
        when="test",
    ),
    Fault(10, "last.ckpt empty", "the one before serves", lambda b: damaged(b, lambda content: b""), when="test"),
    Fault(11, "no checkpoint, --resume", "is refused", missing, when="test"),
    Fault(12, "a bit of last.ckpt flipped", "is always seen; the one before serves", bit_flipped),
    Fault(13, "last.ckpt of another run or architecture", "is refused", of_another_run, when="test"),
    Fault(14, "--resume with another batch size", "is refused", other_batch_size, when="test"),
    Fault(
        15,
        "loss is no number",
        "ends within a step, with the images; nothing of it is saved",
        not_a_number,
        when="test",
    ),
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
    Fault(
        34,
        "2 processes, a number of one is none",
        "both end, its error is the last line",
        rank_not_a_number,
        when="full",
    ),
    Fault(35, "a dry run, a refused grid", "leave nothing", grid_without_a_grid),
]  # fmt: skip
