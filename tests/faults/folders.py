"""Attacks by stored experiments and by what a report makes of them."""

import csv
import functools
import io
import json
import os
import re
import resource
import shutil
import struct
import tempfile
import zipfile
import zlib
from pathlib import Path

import numpy as np

from tests.faults.harness import Bench, Ended, check, check_ended
from tests.faults.payload import Payload, told

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
    for name in ("table.csv", "cells.csv"):
        for row in csv.reader(io.StringIO((folder / name).read_text(encoding="utf-8"))):
            for cell in row:
                cells += 1
                is_number = re.fullmatch(r"[-+]?[\d.e+-]+", cell)
                check(is_number or cell[:1] not in tuple("=+-@\t\r"), f"a cell of {name} begins so: {cell[:20]!r}")
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
    """Pictures and archives that are small on the disk and large in memory, encrypted, or packed in a way nobody
    knows."""
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
