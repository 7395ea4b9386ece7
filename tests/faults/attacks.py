"""The attacks: files of strangers that try to run code, to write elsewhere, to take the memory, or to say what they should not.

Each gets a folder `here`, in which the commands run, and one `outside`, in which nothing may appear; `canary` is the file that an
attack would make if it ran. What is opened is named, or read as the data that it claims to be.
"""

import csv
import functools
import hashlib
import io
import json
import os
import pickle
import re
import resource
import shutil
import signal
import socket
import struct
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.faults.faults import begun
from tests.faults.harness import QUIET, TINY, Bench, Ended, Skipped, Wrong, check, check_ended

NEVER = r"^error: .*(holds more than data; it is not loaded|objects, not plain data)"


@dataclass(frozen=True)
class Attack:
    """`name` is what a stranger gives, `does` what happens instead of what it wants; `when` as of a fault."""

    name: str
    does: str
    act: Callable[[Bench], tuple[Ended, str]]
    when: str = "test"  # or "push", or "full"


class Payload:
    """Pickled, it runs a command where it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.canary}'",)


# Checkpoints


def poisoned(bench: Bench, path: Path, kind: str) -> Path:
    """A checkpoint with a payload, and a hash beside it that fits."""
    import torch

    content: dict[str, Any] = {
        "segmentation": {"architecture": "unet"},
        "hyper_parameters": {},
        "state_dict": {},
        "x": Payload(bench.canary),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    path.with_name(f"{path.name}.sha256").write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")
    return path


def told(function: Callable[[], object]) -> Callable[[], object]:
    """As a command says an error that a person can mend."""
    from experiments.shell.ending import ending

    def call() -> None:
        with ending():
            function()

    return call


def loaded(bench: Bench, kind: str, **variables: str) -> tuple[Ended, str]:
    from experiments.shell.catalogue import load_experiment

    path = poisoned(bench, bench.here / "x.ckpt", kind)
    ended = bench.call(told(lambda: load_experiment(path)), variables=variables)
    return check_ended(ended, 2, NEVER), "refused"


def resumed(bench: Bench, kind: str, **variables: str) -> tuple[Ended, str]:
    for name in ("last.ckpt", "previous.ckpt"):
        poisoned(
            bench, begun(bench).with_name(name) if not bench.out.exists() else bench.out / "checkpoints" / name, kind
        )
    ended = bench.train("--resume", "--trainer.max_epochs", 8, variables=variables)
    return check_ended(ended, 2, NEVER), "refused"


def from_flag(bench: Bench, kind: str, *flags: str, **variables: str) -> tuple[Ended, str]:
    path = poisoned(bench, bench.here / "x.ckpt", kind)
    data = ["--data", "shapes", "--data.size", "32", "--out", str(bench.out)]
    ended = bench.run("experiments.train", *data, *QUIET, *flags, path, variables=variables)
    check_ended(ended, 2, r"^error: .*x\.ckpt.*(more than data|plain data|is damaged)")
    check(not bench.out.exists(), "a folder was made")
    return ended, "refused"


FCN = (
    *[
        "--model",
        "fcn",
        "--model.encoder",
        "resnet18",
        "--model.stride",
        "16",
        "--model.at_once",
        "false",
        "--model.init_from",
    ],
)
CRF = ("--model", "crf_as_rnn", "--model.network", "unet", "--model.init_from")
WEIGHTS = ("--model", "fcn", "--model.encoder", "resnet18", "--model.weights")
FORCED = {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}


def instantiator(bench: Bench) -> tuple[Ended, str]:
    """Lightning calls what a checkpoint names so, unless the class says otherwise."""
    import torch

    from experiments.shell.catalogue import load_experiment
    from lightning_modules.components.checkpoints import read_checkpoint

    path = begun(bench)
    for name in ("os.system", "builtins.eval", "subprocess.getoutput"):
        content = read_checkpoint(bench.out / "checkpoints" / "previous.ckpt")
        content["hyper_parameters"] = {"_instantiator": name, "command": f"touch '{bench.canary}'"}
        content["hparams_name"] = content["hyper_parameters_name"] = "kwargs"
        torch.save(content, path)
        path.with_name("last.ckpt.sha256").unlink(missing_ok=True)
        ended = check_ended(bench.call(told(lambda: load_experiment(path))), 2, "^error: ")
    return ended, "refused"


def from_the_net(bench: Bench) -> tuple[Ended, str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/x.ckpt"
        ended = bench.run("experiments.train", *TINY[6:], *QUIET, *CRF, address)
        check_ended(ended, 2, r"^error: .*http://.* is not a file")
        try:
            server.accept()
        except TimeoutError:
            return ended, "nobody is asked"
    raise Wrong("the address was asked")


# Settings


def classes(bench: Bench) -> tuple[Ended, str]:
    """A run.json of a stranger, which `experiments.grids.cell` trains."""
    from datamodules.shapes import ShapesDataModule
    from experiments.runs.run import Run
    from lightning_modules.unet import UNetModule

    config = Run(module=UNetModule, datamodule=ShapesDataModule, trainer={"max_epochs": 1}).config()
    (bench.here / "evil.py").write_text(f"open({str(bench.canary)!r}, 'w')\nclass C: pass\n")
    shell = {"args": f"touch '{bench.canary}'", "shell": True}
    others: list[dict[str, Any]] = [
        {"module": "evil.C"},
        {"module": "os.system", "hparams": {"command": f"touch '{bench.canary}'"}},
        {"module": "subprocess.Popen", "hparams": shell},
        {"datamodule": "subprocess.Popen", "data": shell},
        {"module": "lightning_modules.base.np"},
        {"module": "lightning_modules.refinement.native.library", "hparams": {"name": "../../x"}},
        {"module": "lightning_modules.refinement.native.subprocess.Popen", "hparams": shell},
        {"datamodule": "datamodules.folder.Path", "data": {"_": "x"}},
        {"module": "lightning_modules..evil.C"},
        {"module": ["x"]},
    ]
    bench.out.mkdir(parents=True)
    for other in others:
        (bench.out / "run.json").write_text(json.dumps(config | other))
        ended = check_ended(bench.run("experiments.grids.cell", bench.out), 2, r"^error: .*(module|datamodule)")
    return ended, f"{len(others)} of {len(others)} refused"


# Stored experiments and reports

NASTY = {
    "html": "</script><script>window.ran=1</script><img src=x onerror=window.ran=1>",
    "latex": r"\input{/etc/passwd}\write18{touch canary}%&$",
    "formula": "=cmd|' /C calc'!A0",
    "at": "@SUM(1+1)*cmd",
}


def hostile(folder: Path) -> Path:
    """Two seeds of variants with such names."""
    import hostile as experiment

    return experiment.write_hostile(folder)


def renamed(folder: Path) -> Path:
    """The same with variants, classes and question that are markup, programs and formulas."""
    hostile(folder)
    plan = json.loads((folder / "plan.json").read_text())
    name, *others = NASTY.values()
    plan["question"] = name
    plan["class_names"] = [name, *others][:4]
    for old, new in zip(("constructor", "toString"), (NASTY["formula"], NASTY["latex"]), strict=True):
        plan["variants"][new] = plan["variants"].pop(old)
        plan["factors"]["kind"] = [new if level == old else level for level in plan["factors"]["kind"]]
        plan["variants"][new]["levels"] = {"kind": new}
        if (folder / old).exists():
            (folder / new).parent.mkdir(parents=True, exist_ok=True)
            (folder / old).rename(folder / new)
    (folder / "plan.json").write_text(json.dumps(plan))
    return folder


@functools.cache
def _report() -> tuple[Path, Ended]:
    bench = Bench(Path(tempfile.mkdtemp(prefix="seglab-report-")) / "bench")
    import atexit

    owner = os.getpid()
    atexit.register(lambda: os.getpid() == owner and shutil.rmtree(bench.folder.parent))
    folder = renamed(bench.here / "experiment")
    ended = check_ended(bench.run("experiments.report", folder, limit=120), 0, limit=120)
    return folder, ended


def page(bench: Bench) -> tuple[Ended, str]:
    folder, ended = _report()
    text = (folder / "report.html").read_text(encoding="utf-8")
    check("default-src 'none'" in text, "no content security policy")
    for part in ("<script>window.ran", "<img src=x", "</script><script>window"):
        check(part not in text, f"{part} stands in report.html")
    return ended, "escaped, and a policy that loads nothing"


def markdown(bench: Bench) -> tuple[Ended, str]:
    folder, ended = _report()
    text = (folder / "table.md").read_text(encoding="utf-8")
    check(
        "<img" not in text.replace("\\<img", "") and "<script" not in text.replace("\\<script", ""),
        "markup in table.md",
    )
    return ended, "escaped"


def latex(bench: Bench) -> tuple[Ended, str]:
    folder, ended = _report()
    text = (folder / "table.tex").read_text(encoding="utf-8")
    check(r"\input{" not in text and r"\write18" not in text, "a command in table.tex")
    return ended, "escaped"


def formulas(bench: Bench) -> tuple[Ended, str]:
    folder, ended = _report()
    cells = 0
    for row in csv.reader(io.StringIO((folder / "table.csv").read_text(encoding="utf-8"))):
        for cell in row:
            cells += 1
            is_number = re.fullmatch(r"[-+]?[\d.e+-]+", cell)
            check(is_number or cell[:1] not in tuple("=+-@\t\r"), f"a cell of table.csv begins so: {cell[:20]!r}")
    return ended, f"none of {cells} cells begins as one"


def record_name(bench: Bench) -> tuple[Ended, str]:
    folder = hostile(bench.here / "experiment")
    plan = json.loads((folder / "plan.json").read_text())
    plan["experiment"] = "../../outside/../../outside/record"
    (folder / "plan.json").write_text(json.dumps(plan))
    ended = bench.run("experiments.report", folder, "--record", bench.here / "a" / "b", limit=120)
    check_ended(ended, (0, 2), limit=120)
    inside = {folder, bench.here / "a", *folder.parents}
    made = [path for path in bench.here.rglob("*") if not any(path == top or top in path.parents for top in inside)]
    check(not made, f"written elsewhere: {made}")
    return ended, "stays in its folder"


def objects(bench: Bench) -> tuple[Ended, str]:
    folder = hostile(bench.here / "experiment")
    for name in ("per_image.npz", "samples.npz"):
        cell = folder / "base" / "seed0"
        before = (cell / name).read_bytes()
        np.savez(cell / name, names=np.array([Payload(bench.canary)] * 3, dtype=object), confusion=np.zeros((3, 4, 4)))
        ended = bench.run("experiments.report", folder, limit=120)
        check_ended(ended, 2, rf"^error: .*{re.escape(name)}", limit=120)
        (cell / name).write_bytes(before)
    return ended, "refused"


def seeds(bench: Bench) -> tuple[Ended, str]:
    folder = hostile(bench.here / "experiment")
    plan = json.loads((folder / "plan.json").read_text())
    plan["seeds"] = [f"0; touch '{bench.canary}'; echo", 1]
    (folder / "plan.json").write_text(json.dumps(plan))
    ended = check_ended(bench.run("experiments.report", folder, limit=120), 2, r"^error: .*plan\.json.*seed", limit=120)
    check(not (folder / "reproduce.sh").exists(), "a script was written")
    return ended, "refused"


def programs(bench: Bench) -> tuple[Ended, str]:
    """plan.json says what was typed; a script that repeats it must not run anything else than this project."""
    commands = ["touch pwned", 'python -c \'open("pwned", "w")\'', "python -m http.server -d pwned", "python pwned.py"]
    folder = hostile(bench.here / "experiment")
    plan = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps(plan | {"command": "\n".join(commands)}))
    cells = sorted(folder.rglob("environment.json"))
    for number, path in enumerate(cells):
        command = commands[number % len(commands)]
        path.write_text(json.dumps(json.loads(path.read_text()) | {"command": command}))
    ended = check_ended(bench.run("experiments.report", folder, limit=120), (0, 2), limit=120)
    script = folder / "reproduce.sh"
    told = ("#", "printf ", "fail ", "echo ")
    lines = script.read_text().splitlines() if script.exists() else []
    ran = [line for line in lines if "pwned" in line and not line.lstrip().startswith(told)]
    check(not ran, f"reproduce.sh would run: {ran[:1]}")
    return ended, "not part of reproduce.sh"


def png(width: int, height: int) -> bytes:
    """A grey image of zeros, which takes next to nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    pack = zlib.compressobj(9)
    row = bytes(width + 1)
    data = b"".join(pack.compress(row) for _ in range(height)) + pack.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def bombs(bench: Bench) -> tuple[Ended, str]:
    """Pictures and archives that are small on the disk and large in memory, encrypted, or packed in a way nobody knows."""
    from experiments.evidence.experiment import load_experiment

    folder = hostile(bench.here / "experiment")
    path = folder / "base" / "seed0" / "predictions.zip"

    def look() -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (400 << 20),) * 2)
        cell = next(cell for cell in load_experiment(folder).finished() if (cell.variant, cell.seed) == ("base", 0))
        cell.prediction("b")

    slowest = 0.0
    kinds = ("121 MP", "196 MP", "800 MB", "encrypted", "unknown")
    for kind in kinds:
        path.write_bytes(bomb(kind))
        ended = bench.call(told(look))
        check_ended(ended, 2, r"^error: .*predictions\.zip")
        slowest = max(slowest, ended.seconds)
    return ended, f"{len(kinds)} of {len(kinds)} refused within {slowest:.1f} s and 400 MB"


@functools.cache
def bomb(kind: str) -> bytes:
    size = {"121 MP": 11_000, "196 MP": 14_000}.get(kind, 8)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            with archive.open(f"{number:05}.png", "w") as file:
                file.write(png(*(size, size) if number == 1 else (8, 8)))
                for _ in range(800 if kind == "800 MB" and number == 1 else 0):
                    file.write(bytes(1 << 20))
    content = bytearray(packed.getvalue())
    for signature, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = -1
        while (at := content.find(signature, at + 1)) >= 0:
            content[at + place] |= kind == "encrypted"
            if kind == "unknown":
                content[at + place + 2] = 77
    return bytes(content)


def symlinked(bench: Bench) -> tuple[Ended, str]:
    folder = hostile(bench.here / "experiment")
    (folder / "figures").symlink_to(bench.outside)
    for name in ("table.md", "report.html", "reproduce.sh", "environment.json"):
        (bench.outside / "theirs").mkdir(exist_ok=True)
        (bench.outside / "theirs" / name).write_text("mine")
        (folder / name).symlink_to(bench.outside / "theirs" / name)
    ended = check_ended(bench.run("experiments.report", folder, limit=120), (0, 2, 73), limit=120)
    check([p.name for p in bench.outside.iterdir()] == ["theirs"], "figures were written elsewhere")
    for path in (bench.outside / "theirs").iterdir():
        check(path.read_text() == "mine", f"{path.name} was written through a link")
    shutil.rmtree(bench.outside / "theirs")
    return ended, "nothing is written through a link"


# The cache of compiled kernels

SOURCE = 'extern "C" int answer() { return 42; }\n'


def planted(bench: Bench) -> bytes:
    """A library of somebody else, with the digest that ours end in; it makes the canary where it is loaded."""
    import subprocess

    source = bench.folder / "planted.cpp"
    source.write_text(
        f'#include <cstdio>\nextern "C" int answer() {{ return 666; }}\n'
        f'__attribute__((constructor)) static void f() {{ fclose(fopen("{bench.canary}", "w")); }}\n'
    )
    subprocess.run(["c++", "-shared", "-fPIC", source, "-o", source.with_suffix(".so")], check=True)
    content = source.with_suffix(".so").read_bytes()
    return content + hashlib.sha256(content).digest()


def answer() -> object:
    """What a fresh process gets from the cache: 42, or None and the reason."""
    from lightning_modules.refinement import native

    found = native.library("probe")
    return native.reason("probe") if found is None else found.answer()


def cache(
    bench: Bench,
    change: Callable[[Bench, Path, Path], object] = lambda bench, folder, path: None,
    wanted: str = "42",
    variables: dict[str, str] | None = None,
    ask: Callable[[], object] = answer,
) -> tuple[Ended, str]:
    """Fills the cache, has `change` do something to its folder or to the library in it, and asks again."""
    from lightning_modules.refinement import native

    if native._compiler() is None:
        raise Skipped("there is no compiler here")
    (bench.here / "probe.cpp").write_text(SOURCE)

    def prepare() -> None:
        native.__file__ = str(bench.here / "native.py")
        native.SECONDS = 3
        tempfile.tempdir = str(bench.folder / "tmp")

    def first() -> None:
        prepare()
        print(answer())

    check_ended(bench.call(first), 0, "^42$")
    (path,) = (bench.folder / "home").rglob("probe-*.so")
    change(bench, path.parent, path)

    def second() -> None:
        prepare()
        print(ask())

    ended = check_ended(bench.call(second, variables=variables), 0, f"^{wanted}")
    check("666" not in ended.printed, "the planted library was loaded")
    return ended, "compiled anew or left out" if wanted == "42" else "left out, with the reason"


def _linked(bench: Bench, folder: Path, path: Path) -> None:
    shutil.rmtree(folder)
    theirs = bench.here / "theirs"
    theirs.mkdir()
    (theirs / path.name).write_bytes(planted(bench))
    os.chmod(theirs, 0o777)
    folder.symlink_to(theirs)


def _open_to(mode: int) -> Callable[[Bench, Path, Path], None]:
    def change(bench: Bench, folder: Path, path: Path) -> None:
        path.unlink()
        path.write_bytes(planted(bench))
        os.chmod(folder, mode)

    return change


def _given(bench: Bench, folder: Path, path: Path) -> None:
    path.unlink()
    path.write_bytes(planted(bench))
    if os.geteuid() == 0:
        os.chown(folder, 65534, 65534)
    else:
        os.chmod(folder, 0o777)


def _file(bench: Bench, folder: Path, path: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("x")


def _planted(bench: Bench, folder: Path, path: Path) -> None:
    path.unlink()
    path.write_bytes(planted(bench)[:-32])


def _damage(change: Callable[[bytes], bytes]) -> Callable[[Bench, Path, Path], None]:
    def act(bench: Bench, folder: Path, path: Path) -> None:
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(change(content))

    return act


def _gone(bench: Bench, folder: Path, path: Path) -> None:
    shutil.rmtree(folder)


def _sleeping(bench: Bench, folder: Path, path: Path) -> None:
    shutil.rmtree(folder)
    (bench.folder / "sleeps").write_text("#!/bin/sh\nexec sleep 1000\n")
    os.chmod(bench.folder / "sleeps", 0o755)


def _race(killed: bool) -> Callable[[], object]:
    def ask() -> object:
        pids = []
        for _ in range(4):
            pids.append(os.fork())
            if pids[-1] == 0:
                os._exit(0 if answer() == 42 else 1)
        if killed:
            time.sleep(0.05)
            os.kill(pids[0], signal.SIGKILL)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        check(statuses[1:] == [0, 0, 0], f"they ended with {statuses}")
        return answer()

    return ask


def _threads() -> object:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda _: answer(), range(4)))
    check(found == {42}, f"they got {found}")
    return 42


CACHE: dict[str, Callable[[Bench], tuple[Ended, str]]] = {
    "the folder is a link to one of everybody": lambda b: cache(b, _linked),
    "the folder may be written by everybody (0777)": lambda b: cache(b, _open_to(0o777)),
    "the folder may be written by a group (0770)": lambda b: cache(b, _open_to(0o770)),
    "the folder belongs to another user": lambda b: cache(b, _given),
    "a file in the place of the folder": lambda b: cache(b, _file),
    "a library that somebody put there": lambda b: cache(b, _planted),
    "a library cut in half": lambda b: cache(b, _damage(lambda content: content[: len(content) // 2])),
    "an empty library": lambda b: cache(b, _damage(lambda content: b"")),
    "a library with another byte": lambda b: cache(b, _damage(lambda c: c[:100] + bytes([c[100] ^ 1]) + c[101:])),
    "CXX is no program": lambda b: cache(b, _gone, "CXX=no-such is no program", {"CXX": "no-such"}),
    "CXX is no command": lambda b: cache(b, _gone, "CXX='c\\+\\+ is no program", {"CXX": "'c++"}),
    "CXX fails": lambda b: cache(b, _gone, "false --version failed", {"CXX": "false"}),
    "CXX never ends": lambda b: cache(b, _sleeping, ".*timed out", {"CXX": str(b.folder / "sleeps")}),
    "4 processes at once": lambda b: cache(b, _gone, ask=_race(False)),
    "4 processes at once, one killed while it compiles": lambda b: cache(b, _gone, ask=_race(True)),
    "4 threads at once": lambda b: cache(b, _gone, ask=_threads),
}


# What is logged


def secrets(bench: Bench) -> tuple[Ended, str]:
    key = "5ec2e7" * 6 + "0123"
    variables = {"WANDB_API_KEY": key, "WANDB_MODE": "offline", "AWS_SECRET_ACCESS_KEY": "hunter2hunter2"}
    ended = bench.train("--trainer.max_epochs", 1, "--logger", "wandb", variables=variables, limit=120)
    check_ended(ended, 0, limit=120)
    # What is uploaded; the logs of the client beside it stay on this machine.
    logged = bench.out / "wandb"
    files = [
        path for path in logged.rglob("*") if path.is_file() and (path.suffix == ".wandb" or "files" in path.parts)
    ]
    check(files, "nothing was logged")
    host = socket.gethostname()
    words = {"the key": key, "another key": "hunter2hunter2", "a folder": str(bench.folder)}
    words |= {"the host": host} if len(host) > 5 else {}
    for path in files:
        found = [what for what, word in words.items() if word.encode() in path.read_bytes()]
        check(not found, f"{path.name} holds {found}")
    return ended, f"in none of {len(files)} files of W&B"


KINDS = {"zip": "as torch.save writes it", "legacy": "of the older form"}
ATTACKS: list[Attack] = [
    *(
        attack
        for kind, words in KINDS.items()
        for attack in (
            Attack(f"code in a checkpoint {words}: load_experiment", "is not run", lambda b, k=kind: loaded(b, k)),
            Attack(f"code in a checkpoint {words}: --resume", "is not run", lambda b, k=kind: resumed(b, k)),
            Attack(f"code in a checkpoint {words}: fcn init_from", "is not run", lambda b, k=kind: from_flag(b, k, *FCN)),
            Attack(f"code in a checkpoint {words}: crf_as_rnn init_from", "is not run", lambda b, k=kind: from_flag(b, k, *CRF)),
            Attack(f"code in a checkpoint {words}: weights", "is not run", lambda b, k=kind: from_flag(b, k, *WEIGHTS)),
        )
    ),
    Attack("a pickle as checkpoint", "is not run", lambda b: loaded(b, "pickle")),
    Attack("the same where TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set: load_experiment", "is not run", lambda b: loaded(b, "zip", **FORCED)),
    Attack("the same: --resume", "is not run", lambda b: resumed(b, "zip", **FORCED)),
    Attack("the same: init_from", "is not run", lambda b: from_flag(b, "zip", *CRF, **FORCED)),
    Attack("a program named as _instantiator of a checkpoint", "is not run", instantiator),
    Attack("a checkpoint from http://", "is refused, nobody is asked", from_the_net),
    Attack("a run.json that names other classes", "are refused", classes),
    Attack("objects in an array of a result folder", "are not loaded", objects),
    Attack("markup and scripts as names: report.html", "are text", page, when="push"),
    Attack("markup as names: table.md", "is text", markdown, when="push"),
    Attack("commands as names: table.tex", "are text", latex, when="push"),
    Attack("formulas as names: table.csv", "are text", formulas, when="push"),
    Attack("an experiment named ../../x: --record", "stays in its folder", record_name, when="push"),
    *(Attack(f"compiled kernels: {name}", "is not loaded, nothing waits", act) for name, act in CACHE.items()),
    Attack("keys, folders and the host: what W&B is given", "are not in it", secrets, when="full"),
    Attack("a shell command as seed of a plan.json: reproduce.sh", "is refused", seeds),
    Attack("a program as command of a plan.json: reproduce.sh", "is not run", programs, when="push"),
    Attack("bombs in predictions.zip", "take no memory", bombs, when="push"),
    Attack("links to other folders in a result folder", "are not followed in writing", symlinked),
]  # fmt: skip
