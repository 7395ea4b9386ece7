"""A stranger's or a damaged folder: every field of every file is refused in one line that names file and field."""

import io
import json
import math
import os
import struct
import tracemalloc
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_report import SIDES, write_experiment

from experiments.ablate_upsampling import RUNS
from experiments.evidence import schema
from experiments.evidence.experiment import Experiment, load_experiment
from experiments.grids.ablation import Ablation

VARIANT = "nearest+none"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One seed of 2 x 2 variants, with a prediction of both test images."""
    write_experiment(tmp_path, seeds=1)
    for cell in tmp_path.glob("*/seed0"):
        write_zip(cell / "predictions.zip", [png(*SIDES)] * 2)
    return tmp_path


def png(height: int, width: int, depth: int = 8, colour: int = 0) -> bytes:
    """A picture of zeros, as small as the format has it, made without its pixels in the memory."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    packer, row = zlib.compressobj(9), bytes(1 + (width * depth + 7) // 8)
    packed = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def write_zip(path: Path, pictures: list[bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for i, picture in enumerate(pictures):
            archive.writestr(f"{i:05}.png", picture)


def use(experiment: Experiment) -> None:
    """All that is read after the plan and the matrices."""
    assert experiment.pictures
    for cell in experiment.finished():
        cell.curve("val/miou")
        for name in cell.image_names:
            cell.prediction(name)


def refused(folder: Path, *words: str) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        use(load_experiment(folder))
    said = str(caught.value)
    assert len(said.splitlines()) == 1 and len(said) < 700
    for word in words:
        assert word in said, said
    return said


def change(path: Path, keys: tuple[str, ...], value: Any) -> None:
    content = json.loads(path.read_text())
    place = content
    for key in keys[:-1]:
        place = place.setdefault(key, {})
    if value is ...:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    path.write_text(json.dumps(content))


def test_the_folder_is_fine_before_anything_is_changed(folder: Path) -> None:
    use(load_experiment(folder))


PLAN_KEYS = [
    "experiment",
    "question",
    "baseline",
    "factors",
    "variants",
    "seeds",
    "data",
    "data_note",
    "scale_note",
    "common",
    "class_names",
    "palette",
    "command",
    "device",
    "commit",
]
OTHER_TYPES = [None, True, -1, 1.5, "x", [], ["x"], [[]], {"x": 1}, {"x": []}, [{}], [1, 1], [256, 0, 0]]


@pytest.mark.parametrize("key", PLAN_KEYS)
def test_a_field_of_a_plan_that_is_missing_or_of_another_type_is_named(folder: Path, key: str) -> None:
    path, counted = folder / "plan.json", 0
    content = path.read_text()
    texts = {"experiment", "question", "data", "data_note", "scale_note", "command", "device", "commit"}
    for value in [..., *OTHER_TYPES]:
        fits = (key in texts and isinstance(value, str)) or (key == "common" and isinstance(value, dict))
        if fits or (key == "class_names" and value == ["x"]) or (key == "seeds" and value == []):
            continue
        change(path, (key,), value)
        counted += 1
        refused(
            folder, "plan.json", key if key != "factors" or value in (..., None) else "", "start the experiment again"
        )
        path.write_text(content)
    assert counted > 8


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        (("variants", VARIANT, "levels"), [1], f"variants.{VARIANT}.levels"),
        (("variants", VARIANT, "levels", "skips"), ..., "a level of each factor"),
        (("variants", VARIANT, "levels", "skips"), "other", f"variants.{VARIANT}.levels.skips must be one of ['concat', 'none']"),
        (("variants", VARIANT, "parameters"), 1.5, "parameters must be a valid integer"),
        (("variants", VARIANT, "parameters"), -1, "parameters must be greater than or equal to 0"),
        (("variants", VARIANT, "parameters"), 2**60, "parameters must be less than"),
        (("variants", VARIANT, "gmac"), "many", "gmac must be a valid number"),
        (("variants", VARIANT, "image_seconds"), {"network": 0, "crf": 1}, "image_seconds must hold"),
        (("variants", "../../x"), {"levels": {}}, "must make the name of a folder"),
        (("variants", "/etc"), {"levels": {}}, "must make the name of a folder"),
        (("variants", ".."), {"levels": {}}, "must make the name of a folder"),
        (("variants", "a/../b"), {"levels": {}}, "must make the name of a folder"),
        (("variants", ""), {"levels": {}}, "must make the name of a folder"),
        (("variants", "x" * 256), {"levels": {}}, "must make the name of a folder"),
        (("baseline",), "other", "names no variant 'other', its baseline"),
        (("seeds",), [0, 0], "seeds must differ"),
        (("seeds",), list(range(5000)), "must plan up to 10,000 cells"),
        (("budget",), {VARIANT: {}}, f"lacks budget.{VARIANT}.steps"),
        (("differences",), {VARIANT: {"x": [1, 2]}}, "differences must have an entry for each variant"),
        (("differences",), {VARIANT: {"x": [1]}}, f"differences.{VARIANT}.x"),
        (("matched",), {VARIANT: {"of": "size"}}, f"matched.{VARIANT}.of"),
        (("notes",), "a note", "notes must be a valid list"),
        (("palette",), [[0, 0, 256]], "palette.0.2"),
        (("class_names",), [f"{i}" for i in range(256)], "class_names"),
    ],
)  # fmt: skip
def test_what_a_plan_holds_is_named_with_its_place(folder: Path, keys: tuple[str, ...], value: Any, said: str) -> None:
    change(folder / "plan.json", keys, value)
    refused(folder, "plan.json", said)


@pytest.mark.parametrize("name", ["plan.json", "run.json", "result.json", "environment.json"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[" * 100_000, "cannot be read"),
        ('{"x":' * 100_000, "cannot be read"),
        ('{"x": ' + "[" * 60 + "]" * 60 + "}", "more than 40 deep"),
        ('{"x": NaN}', "NaN is no JSON"),
        ('{"x": -Infinity}', "-Infinity is no JSON"),
        ("[]", "expected an object"),
        (" " * (schema.MOST_JSON + 1), "expected up to 16,777,216 bytes"),
        ('{"x": ' + "1" * 5000 + "}", "cannot be read"),
    ],
    ids=range(8),
)
def test_json_that_is_no_object_is_refused(folder: Path, name: str, content: str, said: str) -> None:
    path = folder / name if name == "plan.json" else folder / VARIANT / "seed0" / name
    path.write_text(content)
    refused(folder, name, said)


@pytest.mark.parametrize(
    ("name", "keys", "value", "said"),
    [
        ("run.json", ("hparams",), [1], "hparams must be a valid dictionary"),
        ("run.json", ("settings",), "x", "settings must be"),
        ("result.json", ("status",), ["done"], "status must be a valid string"),
        ("result.json", ("seconds",), ..., "lacks seconds"),
        ("result.json", ("epochs",), 1.5, "epochs must be a valid integer"),
        ("result.json", ("seconds",), "3", "seconds must be a valid number"),
        ("result.json", ("params",), -3, "params must be"),
        ("result.json", ("test",), {"miou": "x"}, "test.miou"),
        ("environment.json", ("versions",), ["torch"], "versions must be"),
        ("environment.json", ("versions",), {"torch": 2}, "versions.torch"),
        ("environment.json", ("device",), {"a": [1]}, "device must be a valid string"),
        ("environment.json", ("torch_threads",), 1e300, "torch_threads"),
    ],
)
def test_a_field_of_a_cell_is_named(folder: Path, name: str, keys: tuple[str, ...], value: Any, said: str) -> None:
    change(folder / VARIANT / "seed0" / name, keys, value)
    refused(folder, f"{VARIANT}/seed0/{name}", said, "run the experiment again")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("inf,5,1.0,0.5", "line 2: epoch must be a whole number, got 'inf'"),
        ("nan,5,1.0,0.5", "epoch must be a whole number"),
        ("0.5,5,1.0,0.5", "epoch must be a whole number"),
        ("-1,5,1.0,0.5", "epoch must be a whole number"),
        ("1e300,5,1.0,0.5", "epoch must be a whole number"),
        ("0,5,1.0,inf", "val/miou must be a finite number, got 'inf'"),
        ("0,5,1.0,much", "'much'"),
        ("0,5,1.0," + "1" * 200_000, "field larger than field limit"),
    ],
)
def test_metrics_that_are_no_numbers_are_named(folder: Path, rows: str, said: str) -> None:
    (folder / VARIANT / "seed0" / "metrics.csv").write_text(f"epoch,step,train/loss,val/miou\n{rows}\n")
    refused(folder, "metrics.csv", said)


Arrays = dict[str, np.ndarray]


def rewrite(path: Path, change_arrays: Callable[[Arrays], Any]) -> None:
    with np.load(path) as stored:
        arrays = dict(stored)
    change_arrays(arrays)
    np.savez(path, **arrays)  # type: ignore[arg-type]


def put(key: str, value: Any) -> Callable[[Arrays], Any]:
    return lambda arrays: arrays.__setitem__(key, value(arrays[key]) if callable(value) else value)


def one(key: str, value: Any, dtype: Any = None) -> Callable[[Arrays], Any]:
    """The array with another number in its first place."""

    def planted(array: np.ndarray) -> np.ndarray:
        array = array.astype(dtype or array.dtype)
        array.flat[0] = value
        return array

    return put(key, planted)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (lambda a: a.pop("names"), "names must have the shape ('n',) for n images, got None"),
        (put("names", np.array("a.png")), "names must have the shape"),
        (put("names", np.array([1, 2])), "names must hold words"),
        (put("names", np.array([b"a", b"b"])), "names must hold words"),
        (put("names", np.array(["a.png", "a.png"])), "names must differ, got 'a.png' twice"),
        (put("names", np.array(["a.png"])), "confusion must have the shape"),
        (put("confusion", lambda a: a.astype(np.float64)), "confusion must hold whole numbers, got <f8"),
        (put("confusion", lambda a: a.astype(np.complex128)), "confusion must hold whole numbers, got <c16"),
        (put("confusion", lambda a: a.astype(bool)), "confusion must hold whole numbers, got |b1"),
        (put("confusion", lambda a: a.astype("<U8")), "confusion must hold whole numbers"),
        (put("confusion", lambda a: a.astype("datetime64[s]")), "confusion must hold whole numbers"),
        (put("confusion", lambda a: np.zeros(a.shape, [("x", "i8")])), "confusion must hold whole numbers"),
        (put("confusion", lambda a: a.astype(object)), "confusion must hold whole numbers, got |O"),
        (put("confusion", lambda a: a[0]), "confusion must have the shape ('n', 3, 3)"),
        (put("confusion", lambda a: a[:, :2, :2]), "confusion must have the shape ('n', 3, 3)"),
        (one("confusion", -1), "confusion[0, 0, 0] must be 0 to 2.68435e+08, got -1"),
        (one("confusion", 2**62), "confusion[0, 0, 0] must be 0 to"),
        (one("confusion", 2**63, np.uint64), "confusion[0, 0, 0] must be 0 to"),
        (put("confusion", lambda a: np.full(a.shape, 2**27)), "confusion[0] must count up to 268,435,456 pixels"),
        (one("boundary_f1", 2.0), "boundary_f1[0, 0] must be 0 to 1 or not a number, got 2.0"),
        (one("boundary_f1", math.inf), "boundary_f1[0, 0]"),
        (put("boundary_f1", lambda a: a.astype(np.longdouble)), "boundary_f1 must hold floating-point numbers"),
        (one("checkerboard", -0.1), "checkerboard[0] must be 0 to 1"),
        (put("trimap", np.zeros((2, 20, 3, 3))), "trimap must hold whole numbers"),
        (put("trimap", np.full((2, 20, 3, 3), -1)), "trimap[0, 0, 0, 0] must be"),
        (put("calibration", np.full((2, 15, 3), math.nan)), "calibration[0, 0, 0] must be"),
        (put("segments", np.full((2, 3, 4), -1)), "segments[0, 0, 0] must be"),
    ],
    ids=range(27),
)
def test_an_array_of_the_scores_is_named(folder: Path, changed: Callable[[Arrays], Any], said: str) -> None:
    rewrite(folder / VARIANT / "seed0" / "per_image.npz", changed)
    refused(folder, "per_image.npz", said, "run the experiment again")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (lambda a: a.pop("names"), "names must have the shape"),
        (put("names", np.array("a")), "names must have the shape"),
        (put("names", np.array(["a", "a"])), "names must differ"),
        (put("names", np.array([f"{i}" for i in range(101)])), "names must have the shape"),
        (lambda a: a.pop("image_0"), "image_0 must have the shape"),
        (lambda a: a.pop("mask_0"), "mask_0 must have the shape"),
        (put("kinds", np.array([], dtype="<U5")), "kinds must have the shape ('k',)"),
        (put("kinds", np.array(["ugly"])), "kinds must be of best, fixed, worst"),
        (put("kinds", np.array([1])), "kinds must hold words"),
        (put("image_0", lambda a: a.astype(np.float32)), "image_0 must hold bytes"),
        (put("image_0", lambda a: a[:5]), "mask_0 must have the shape"),
        (put("mask_0", lambda a: a[0]), "mask_0 must have the shape"),
        (put("prediction_0", lambda a: a.astype(np.int64)), "prediction_0 must hold bytes"),
        (put("logits", lambda a: a[:2]), "logits must have the shape (3, 'logits H', 'logits W')"),
        (put("initial_logits", lambda a: a.astype("<U3")), "initial_logits must hold floating-point numbers"),
    ],
    ids=range(15),
)
def test_an_array_of_the_samples_is_named(folder: Path, changed: Callable[[Arrays], Any], said: str) -> None:
    rewrite(folder / VARIANT / "seed0" / "samples.npz", changed)
    refused(folder, "samples.npz", said)


def test_samples_of_another_size_than_those_of_other_variants_are_named(folder: Path) -> None:
    def smaller(arrays: Arrays) -> None:
        for key in ("image_0", "mask_0", "prediction_0"):
            arrays[key] = arrays[key][:9]

    rewrite(folder / VARIANT / "seed0" / "samples.npz", smaller)
    refused(folder, f"{VARIANT}/seed0/samples.npz", "prediction_0 must be as large as the mask")


def test_names_that_are_no_text_are_refused(folder: Path) -> None:
    for name in ("per_image.npz", "samples.npz"):
        path = folder / VARIANT / "seed0" / name
        before = path.read_bytes()
        rewrite(path, put("names", lambda a: (a.view(np.uint32) | 0x80000000).view(a.dtype)))
        refused(folder, name, "cannot be read")
        path.write_bytes(before)


def test_names_cannot_steer_a_terminal(folder: Path) -> None:
    for path in folder.glob("*/seed0/*.npz"):
        rewrite(path, put("names", lambda a: np.array([f"\x1b[2J\udcff{name}" for name in a])))
    change(folder / "plan.json", ("question",), "\x1b]0;x\x07 \ud800?")
    experiment = load_experiment(folder)
    assert experiment.finished()[0].image_names[0] == "\\x1b[2J\\udcffa.png"
    assert experiment.pictures[0].name == "\\x1b[2J\\udcffa.png" and experiment.pictures[0].predictions
    assert experiment.plan["question"] == "\\x1b]0;x\\x07 \\ud800?"


def zeros_in(path: Path, name: str, shape: tuple[int, ...], dtype: str, bytes_of_content: int) -> None:
    """Puts into the zip an array that claims this shape and holds so many zeros, packed a thousand to one."""
    with zipfile.ZipFile(path) as archive:
        kept = {one: archive.read(one) for one in archive.namelist() if one != f"{name}.npy"}
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype, "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for one_name, content in kept.items():
            archive.writestr(one_name, content)
        with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
            file.write(header.getvalue())
            for _ in range(bytes_of_content // 2**20):
                file.write(bytes(2**20))


@pytest.mark.parametrize(
    ("file", "name", "shape", "dtype", "size", "said"),
    [
        ("per_image.npz", "boundary_f1", (2, 3), "<f8", 2**28, "boundary_f1 must take the 48 bytes that its header claims"),
        ("per_image.npz", "boundary_f1", (2, 3, 2**25), "<f8", 0, "boundary_f1 must have the shape"),
        ("per_image.npz", "confusion", (10**15, 3, 3), "<i8", 0, "confusion must have the shape"),
        ("per_image.npz", "names", (2,), "<U4097", 2**20, "names must hold words of up to 4,096 letters"),
        ("samples.npz", "image_0", (2**14, 2**14, 3), "|u1", 2**28, "image_0 must take the 805,306,368 bytes"),
        ("samples.npz", "image_0", (2**16, 2**15, 3), "|u1", 0, "image_0 must take the"),
    ],
)  # fmt: skip
def test_sizes_are_checked_before_anything_is_decoded(
    folder: Path, file: str, name: str, shape: tuple[int, ...], dtype: str, size: int, said: str
) -> None:
    zeros_in(folder / VARIANT / "seed0" / file, name, shape, dtype, size)
    tracemalloc.start()
    refused(folder, file, said)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


def set_in_zip(path: Path, offset: int, value: int) -> None:
    """Sets two bytes of each local header, `offset` from its start, and of the directory, where they lie 2 later."""
    content = bytearray(path.read_bytes())
    for mark, at in ((b"PK\x03\x04", offset), (b"PK\x01\x02", offset + 2)):
        place = content.find(mark)
        while place >= 0:
            content[place + at : place + at + 2] = struct.pack("<H", value)
            place = content.find(mark, place + 4)
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["predictions.zip", "per_image.npz", "samples.npz"])
@pytest.mark.parametrize(("offset", "value", "said"), [(6, 1, "is encrypted"), (8, 99, "by an unknown method, 99")])
def test_a_zip_of_another_kind_is_named(folder: Path, name: str, offset: int, value: int, said: str) -> None:
    set_in_zip(folder / VARIANT / "seed0" / name, offset, value)
    refused(folder, name, said)


@pytest.mark.parametrize(
    ("height", "width", "said"),
    [
        (14_000, 14_000, "must have"),  # 196 million pixels in 185 kB
        (11_000, 11_000, "must have"),  # below the number of pixels that Pillow refuses
        (1, 1, "must have"),  # fewer than were scored
    ],
)
def test_a_picture_of_another_size_is_refused_before_it_is_decoded(
    folder: Path, height: int, width: int, said: str
) -> None:
    picture = png(height, width, depth=1)
    write_zip(folder / VARIANT / "seed0" / "predictions.zip", [picture] * 2)
    cell = load_experiment(folder).cells[VARIANT][0]
    for size in (None, SIDES):
        tracemalloc.start()
        with warnings.catch_warnings(), pytest.raises(ValueError, match=r"predictions\.zip cannot be read") as caught:
            warnings.simplefilter("ignore")
            cell.prediction("a.png", size)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (peak < 2**24 and "00000.png" in str(caught.value)) or "pixels" in str(caught.value)


def test_an_entry_too_large_for_its_picture_is_not_read(folder: Path) -> None:
    path = folder / VARIANT / "seed0" / "predictions.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("00000.png", "w") as file:
        for _ in range(800):
            file.write(bytes(2**20))
    assert path.stat().st_size < 2**20
    cell = load_experiment(folder).cells[VARIANT][0]
    for size in (None, SIDES):
        tracemalloc.start()
        with pytest.raises(ValueError, match=r"predictions\.zip.*00000\.png takes 838,860,800 bytes, too many"):
            cell.prediction("a.png", size)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**20


@pytest.mark.parametrize("name", ["metrics.csv", "per_image.npz", "samples.npz", "predictions.zip", "run.json"])
def test_a_pipe_is_not_waited_for(folder: Path, name: str) -> None:
    path = folder / VARIANT / "seed0" / name
    path.unlink()
    os.mkfifo(path)
    if name == "predictions.zip":  # as one that was not stored
        assert load_experiment(folder).cells[VARIANT][0].prediction("a.png") is None
    else:
        refused(folder, name, "no regular file")


def test_of_a_huge_log_only_the_end_is_read(folder: Path) -> None:
    cell = folder / VARIANT / "seed0"
    (cell / "result.json").unlink()
    with (cell / "log.txt").open("wb") as file:
        file.truncate(2**32)
        file.seek(2**32)
        file.write(b"\nthe \x1b[2Jend\n")
    (missing,) = load_experiment(folder).missing
    assert missing.state.endswith("log.txt ends: the \\x1b[2Jend")


def test_what_other_versions_store_besides_is_let_pass_and_what_they_lack_is_optional(folder: Path) -> None:
    change(folder / "plan.json", ("later",), {"x": [1]})
    change(folder / "plan.json", ("variants", VARIANT, "later"), 1)
    for key in ("parameters", "gmac", "step_seconds", "step_ratio", "peak_memory_mb"):
        change(folder / "plan.json", ("variants", VARIANT, key), ...)
    cell = folder / VARIANT / "seed0"
    for name in ("run.json", "result.json", "environment.json"):
        change(cell / name, ("later",), None)
    (cell / "predictions.zip").unlink()
    rewrite(cell / "per_image.npz", put("later", np.array(["x"])))
    rewrite(cell / "samples.npz", lambda a: [a.pop(key) for key in ("logits", "initial_logits")])
    use(load_experiment(folder))


def test_matrices_in_fortran_order_or_of_other_whole_numbers_are_the_same(folder: Path) -> None:
    before = load_experiment(folder).cells[VARIANT][0]
    path = folder / VARIANT / "seed0" / "per_image.npz"
    for changed in (np.asfortranarray, lambda a: a.astype(">i4"), lambda a: a.astype(np.uint8)):
        rewrite(path, put("confusion", changed))
        after = load_experiment(folder).cells[VARIANT][0]
        assert np.array_equal(after.confusion, before.confusion)
        np.testing.assert_equal(after.scores, before.scores)
        assert np.array_equal(after.counts.predicted, before.counts.predicted)


@pytest.mark.parametrize("name", ["../x", "/x", "a\x1b", ""])
def test_a_variant_that_would_leave_the_folder_is_refused_before_it_is_trained(name: str) -> None:
    run = RUNS["nearest+none"]
    with pytest.raises(ValueError, match="a variant's name must make the name of a folder that lies in this one"):
        Ablation(name="x", question="?", runs={name: run}, factors={}, baseline=name)
