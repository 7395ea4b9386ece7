"""The files of a stored experiment, damaged or forged: the plan, and the eight files of a cell."""

import atexit
import csv
import hashlib
import io
import json
import random
import shutil
import struct
import tempfile
import zipfile
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.evidence.deviations import statements
from experiments.evidence.experiment import Experiment, load_experiment
from experiments.evidence.join import join
from experiments.reports.answer import answer
from experiments.reports.commands import Code
from experiments.reports.figures import FIGURES
from experiments.reports.figures.looks import drawing
from experiments.reports.formats import to_csv, to_latex, to_markdown
from experiments.reports.page import Section, _data, _json
from experiments.reports.reproduce import _of_one, reproduce_script
from experiments.reports.tables import make_notes, make_tables
from experiments.reports.write import warnings
from experiments.runs.callbacks import encode_labels, save_npz, save_predictions
from experiments.shell.files import write_atomic, write_json
from tests.fuzz.mutate import mutated, refused

NAME = "stored"
CLASSES, IMAGES, SIDE, WIDTH, BINS = 2, 3, 4, 20, 15
VARIANTS = ("a", "b")
CELL = "b/seed0"
NESTED = "stands for objects in one another"
FILES = (
    "run.json",
    "result.json",
    "environment.json",
    "code.patch",
    "metrics.csv",
    "per_image.npz",
    "samples.npz",
    "predictions.zip",
)
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**31, 2**53 + 1, 2**64, 10**400, 0.5, -0.0, 1e308, -1e308, 1e-320, float("nan")),
    *(float("inf"), "", "a", "b", "done", "0", "../../x", "/etc/passwd", "a/b", "\x00", "\x1b[2J", "\ud800", "x" * 300),
    *("é\u2028\u202e", "$(touch x)", "'", "[" * 50, [], [[]], [0, 0], [None], ["a"], {}, {"a": {}}, {"": None}),
    *({"a": "b", "x": 1}, [[0, 0, 256]], {"a": [1, 2]}),
]
CELLS_OF_CSV = ["", "0", "1", "-1", "0.5", "inf", "nan", "1e400", "x", "9" * 5000, '"', "\n", "\x00", "²", "1_0", " 1 "]
SHAPES = [
    (),
    (0,),
    (1,),
    (3,),
    (10**9,),
    (3, 2),
    (3, 2, 2),
    (2, 3, 2),
    (3, 2, 0),
    (3, 20, 2, 2),
    (4, 4),
    (4, 4, 3),
    (1, 1),
]
TYPES = [
    *("<i8", ">i8", "<i4", "<u8", "|u1", "|i1", "|b1", "<f8", "<f4", "<f2", ">f8", "<c16", "<U5", ">U5", "|S5", "<U0"),
    *("<M8[s]", "<m8[ns]", "|V4", "<f16", [("x", "<i8")], "|O"),
]
NUMBERS = [
    0,
    1,
    -1,
    255,
    256,
    2**28,
    2**31,
    2**62,
    2**63,
    0.5,
    1.5,
    -0.5,
    1e300,
    float("nan"),
    float("inf"),
    -float("inf"),
]
PATCH = b"diff --git a/x.py b/x.py\nnew file mode 100644\n"
ORDER = ("plan.json", *(f"{CELL}/{name}" for name in FILES))


@cache
def base() -> tuple[dict[str, bytes], Path]:
    """Of an experiment of two variants, one seed, three images of 4 x 4 pixels and two classes: the files that may be
    broken, and the folder of the other variant, which lies outside of what is made anew for each input."""
    rng = np.random.default_rng(0)
    folder = Path(tempfile.mkdtemp(prefix="fuzz-stored-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for variant in VARIANTS:
        _write_cell(folder / variant / "seed0", rng)
    write_json(folder / "plan.json", _plan())
    return {name: (folder / name).read_bytes() for name in ORDER}, folder / "a"


def _plan() -> dict[str, Any]:
    costs = {"parameters": 9, "gmac": 1.0, "step_ratio": 1.0, "step_seconds": 0.1, "peak_memory_mb": 3.0}
    costs |= {"image_seconds": {"network": 0.1, "crf": 0.2}}
    numbers = ("steps", "batch", "accumulation", "images", "epochs", "train_images", "steps_before")
    settings = ("optimizer", "lr", "momentum", "weight_decay", "schedule", "warmup", "gradient_clip_val", "loss")
    budget = dict.fromkeys(numbers, 2) | dict.fromkeys((*settings, "class_weights", "precision"), 0.5)
    budget |= {"augmentation": {"crop": [4, 4]}, "start": "random weights"}
    match = {"of": "parameters", "like": "a", "by": "width", "tolerance": 0.1, "ratio": 1.0, "values": [1, 2]}
    words = {key: key for key in ("experiment", "question", "data", "data_note", "scale_note", "device")}
    return words | {
        "baseline": "a",
        "factors": {"level": ["a", "b"], "other": ["x"]},
        "variants": {name: {"levels": {"level": name, "other": "x"}, "hash": name, **costs} for name in VARIANTS},
        "seeds": [0],
        "common": {"trainer.max_epochs": 1, "data.root": "/x"},
        "class_names": ["one", "two"],
        "palette": [[0, 0, 0], [255, 0, 0]],
        "command": "python -m experiments.ablate_upsampling --root /x",
        "commit": "0" * 40,
        "notes": ["note"],
        "not_compared": ["base"],
        "budget": {name: budget for name in VARIANTS},
        "differences": {name: {"hparams.level": ["a", name]} for name in VARIANTS},
        "matched": {"b": match},
    }


def _write_cell(folder: Path, rng: np.random.Generator) -> None:
    names = np.array([f"{i}.png" for i in range(IMAGES)])
    masks = rng.integers(0, CLASSES, (2, IMAGES, SIDE, SIDE), dtype=np.uint8)
    pictures = {i: encode_labels(torch.from_numpy(masks[1, i]), [(0, 0, 0), (255, 0, 0)]) for i in range(IMAGES)}
    save_npz(
        folder / "per_image.npz",
        names=names,
        groups=np.array([f"drive {i // 2}" for i in range(IMAGES)]),
        confusion=rng.integers(0, 4, (IMAGES, CLASSES, CLASSES)),
        boundary_f1=rng.random((IMAGES, CLASSES)),
        checkerboard=rng.random(IMAGES),
        trimap=rng.integers(0, 2, (IMAGES, WIDTH, CLASSES, CLASSES)),
        calibration=rng.random((IMAGES, BINS, 3)),
        segments=rng.integers(0, 4, (IMAGES, CLASSES, 4)),
    )
    shown = {f"mask_{i}": masks[0, i] for i in range(2)} | {f"prediction_{i}": masks[1, i] for i in range(2)}
    shown |= {f"image_{i}": np.zeros((SIDE, SIDE, 3), np.uint8) for i in range(2)}
    logits = {key: rng.random((CLASSES, SIDE, SIDE)).astype(np.float16) for key in ("logits", "initial_logits")}
    save_npz(folder / "samples.npz", names=names[:2], kinds=np.array(["fixed", "worst best"]), **shown, **logits)
    save_predictions(folder / "predictions.zip", pictures)
    write_atomic(folder / "metrics.csv", "epoch,step,train/loss,val/miou\n0,1,0.5,0.5\n1,2,0.25,0.5\n")
    write_json(folder / "run.json", {"hparams": {"width": 2}, "data": {}, "trainer": {"max_epochs": 1}, "seed": 0})
    write_json(
        folder / "result.json", {"status": "done", "seconds": 1.0, "epochs": 1, "steps": 2, "params": 9, "test": {}}
    )
    write_atomic(folder / "code.patch", PATCH)
    where = {"command": "python -m experiments.ablate_upsampling", "commit": "0" * 40, "device": "1 x CPU"}
    where |= {"patch": hashlib.sha256(PATCH).hexdigest()}
    write_json(folder / "environment.json", where | {"python": "3.11", "torch_threads": 1, "versions": {"torch": "2"}})


def one(rng: random.Random, folder: Path) -> str:
    name = rng.choice(ORDER)
    whole, other = base()
    files = dict(whole)
    way = rng.random()
    if way < 0.03:
        del files[name]
    elif way < 0.25 or name.endswith(".patch"):
        files[name] = mutated(rng, files[name])
    elif name.endswith(".json"):
        files[name] = _forge_json(rng, json.loads(files[name]))
    elif name.endswith(".csv"):
        files[name] = _forge_csv(rng, files[name].decode())
    else:
        files[name] = _forge_zip(rng, files[name])
    (folder / CELL).mkdir(parents=True)
    (folder / "a").symlink_to(other)
    for path, content in files.items():
        (folder / path).write_bytes(content)
    try:
        _use(rng, load_experiment(folder), folder)
    except (ValueError, FileNotFoundError) as error:
        # Of a plan of other classes it is the matrices that do not fit.
        return refused(error, name, *(["per_image.npz"] if name == "plan.json" else []))
    return "read"


def _use(rng: random.Random, experiment: Experiment, folder: Path) -> None:
    """A part of what a report does with it; of the figures, which take long, one now and then."""
    if not experiment.finished():
        return
    (joined,) = join([experiment])
    for cell in joined.finished():
        assert all(not value > 1e6 for value in cell.scores.values())
        cell.curve("val/miou")
        cell.patch()
    part = rng.randrange(4)
    if part == 0:
        section = Section(joined, answer(joined), make_tables(joined), make_notes(joined), warnings(joined), {})
        for text in (to_csv([section]), to_markdown([section]), to_latex([section]), *answer(joined)):
            text.encode()
    elif part == 1:
        statements(joined.plan)
        _of_one(joined)
        script = reproduce_script([joined], {joined.plan["experiment"]: "x"}, Code("unknown"))
        assert "\0" not in script and script.encode()
    elif part == 2:
        _json(_data(joined, joined.pictures, 8))
    else:
        assert joined.pictures is not None
        for cell in joined.finished():
            for image in cell.image_names[:5]:
                cell.prediction(image)
    if rng.random() < 0.002:
        draw, refuse = FIGURES[rng.choice(list(FIGURES))]
        if not refuse(joined):
            with drawing():
                draw(joined)[0].savefig(io.BytesIO(), dpi=20)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every container with each of its keys."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    return [(value, key) for key in keys] + [place for key in keys for place in _places(value[key])]


def _forge_json(rng: random.Random, content: Any) -> bytes:
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        places = _places(content)
        if not places:
            break
        holder, key = rng.choice(places)
        way = rng.random()
        if way < 0.6:
            holder[key] = deepcopy(rng.choice(VALUES))  # it may be broken in turn
        elif way < 0.75:
            del holder[key]
        elif way < 0.85 and isinstance(holder, dict):
            holder[str(rng.choice(VALUES))] = holder.pop(key)
        elif way < 0.95:
            other, name = rng.choice(places)
            holder[key] = json.loads(json.dumps(other[name])) if name in other or isinstance(other, list) else None
        else:
            holder[key] = NESTED
    text, depth = json.dumps(content), rng.choice([10, 36, 50, 900, 100_000])
    text = text.replace(
        json.dumps(NESTED), rng.choice(["[" * depth + "]" * depth, '{"x":' * depth + "0" + "}" * depth])
    )
    return text.encode(rng.choice(["utf-8"] * 8 + ["utf-16", "utf-8-sig"]))


def _forge_csv(rng: random.Random, text: str) -> bytes:
    rows = list(csv.reader(text.splitlines()))
    for _ in range(rng.choice([1, 1, 2, 4])):
        row = rng.choice(rows)
        way = rng.random()
        if way < 0.7 and row:
            row[rng.randrange(len(row))] = rng.choice(CELLS_OF_CSV)
        elif way < 0.85 and row:
            row.pop()
        else:
            rows.insert(rng.randrange(len(rows) + 1), list(row) * rng.choice([1, 2]))
    file = io.StringIO()
    csv.writer(file, quoting=rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])).writerows(rows)
    return file.getvalue().encode()


def _array(content: bytes) -> np.ndarray:
    found: np.ndarray = np.load(io.BytesIO(content), allow_pickle=False)
    return found


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def _forge_array(rng: random.Random, content: bytes) -> bytes:
    array, way = _array(content), rng.random()
    if way < 0.25 and array.dtype.kind != "U":  # another number
        array = array.astype(rng.choice([array.dtype, np.dtype("f8")]))
        with np.errstate(all="ignore"):
            if array.size:
                array.flat[rng.randrange(array.size)] = np.array(rng.choice(NUMBERS)).astype(array.dtype)
        return _npy(array)
    if way < 0.4 and array.dtype.kind == "U":
        array = array.astype("<U40")
        array.flat[rng.randrange(array.size)] = rng.choice(
            ["", "0.png", "fixed", "\ud800", "\x1b", "a" * 40, "worst  best"]
        )
        return _npy(array)
    if way < 0.6:  # another type, of the same values where they have one
        wanted = np.dtype(rng.choice(TYPES))
        try:
            with np.errstate(all="ignore"):
                return _npy(array.astype(wanted))
        except (TypeError, ValueError):
            return _npy(np.zeros(array.shape, wanted))
    if way < 0.75:
        shape = rng.choice(SHAPES)
        return _npy(np.zeros(shape if np.prod(shape) < 10**6 else (1,), array.dtype))
    if way < 0.8:
        return _npy(np.asfortranarray(array))
    # A header that claims something else than what follows.
    claimed = rng.choice([array.shape, *SHAPES, (-1,), (2**62, 4), (True, 2), "x", None])
    words = {"descr": rng.choice([array.dtype.str, *TYPES]), "fortran_order": rng.random() < 0.2, "shape": claimed}
    text = (str(words) if rng.random() < 0.9 else "(" * 3000).encode()
    version, length = rng.choice([(1, struct.pack("<H", len(text))), (2, struct.pack("<I", len(text))), (3, b"")])
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + (array.tobytes() if rng.random() < 0.7 else b"")


def _png(rng: random.Random, content: bytes) -> bytes:
    """Another size in the header, another picture, or broken bytes."""
    way = rng.random()
    if way < 0.4:
        sides = [rng.choice([0, 1, 4, 5, 255, 20_000, 2**31 - 1, 2**32 - 1]) for _ in range(2)]
        return content[:16] + struct.pack(">II", *sides) + content[24:]
    return mutated(rng, content) if way < 0.8 else rng.choice([b"", b"GIF89a", content[:40], content * 2])


def _forge_zip(rng: random.Random, content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    for _ in range(rng.choice([1, 1, 1, 2])):
        name = rng.choice(list(entries))
        way = rng.random()
        if way < 0.15 and len(entries) > 1:
            del entries[name]
        elif way < 0.25:
            entries[rng.choice([*entries, "x", "../x", "image_9.npy"])] = entries[rng.choice(list(entries))]
        elif way < 0.4:
            entries[name] = mutated(rng, entries[name])
        else:
            try:
                entries[name] = _png(rng, entries[name]) if name.endswith(".png") else _forge_array(rng, entries[name])
            except Exception:  # noqa: BLE001 - was broken before, and numpy raises a dozen kinds
                entries[name] = b""
    file = io.BytesIO()
    kinds = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
    with zipfile.ZipFile(file, "w", rng.choice(kinds)) as archive:
        for name, entry in entries.items():
            archive.writestr(name, entry)
    packed = bytearray(file.getvalue())
    if rng.random() < 0.15:  # flags, methods, sizes in the headers of the entries and of the directory
        marks = [b"PK\x01\x02", b"PK\x03\x04"]
        mark = rng.choice(marks)
        places = [at for at in range(len(packed)) if packed[at : at + 4] == mark]
        at = rng.choice(places) + rng.randrange(4, 46 if mark == marks[0] else 30)
        packed[at : at + 1] = bytes([rng.choice([0, 1, 8, 99, 255])])
    return bytes(packed)
