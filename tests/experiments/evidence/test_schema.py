"""A stranger's or a damaged folder: every field of every file is refused in one line that names file and field."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import VARIANT, Arrays, change, put, refused, rewrite, use, write_folder

from experiments.ablate_upsampling import RUNS
from experiments.evidence import schema
from experiments.evidence.experiment import load_experiment
from experiments.grids.ablation import Ablation


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path)


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
        (
            ("variants", VARIANT, "levels", "skips"),
            "other",
            f"variants.{VARIANT}.levels.skips must be one of ['concat', 'none']",
        ),
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
        (put("groups", np.array("drive")), "groups must have the shape"),
        (put("groups", np.array([1, 2])), "groups must hold words"),
        (put("groups", np.array(["drive"])), "groups must have the shape"),
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
    ids=range(30),
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
        for key in ("names", "groups") if name == "per_image.npz" else ("names",):
            rewrite(path, lambda a, key=key: a.update({key: (a["names"].view(np.uint32) | 0x80000000).view("<U5")}))
            refused(folder, name, "cannot be read")
            path.write_bytes(before)


def test_groups_may_be_equal_or_not_stored(folder: Path) -> None:
    path = folder / VARIANT / "seed0" / "per_image.npz"
    assert load_experiment(folder).cells[VARIANT][0].groups is None  # as in cells of earlier versions
    rewrite(path, put("groups", np.array(["drive", "drive"])))
    assert load_experiment(folder).cells[VARIANT][0].groups == ["drive", "drive"]


def test_names_cannot_steer_a_terminal(folder: Path) -> None:
    rewrite(folder / VARIANT / "seed0" / "per_image.npz", put("groups", np.array(["\x1b[2J\udcff", "drive"])))
    for path in folder.glob("*/seed0/*.npz"):
        rewrite(path, put("names", lambda a: np.array([f"\x1b[2J\udcff{name}" for name in a])))
    change(folder / "plan.json", ("question",), "\x1b]0;x\x07 \ud800?")
    experiment = load_experiment(folder)
    assert experiment.cells[VARIANT][0].groups == ["\\x1b[2J\\udcff", "drive"]
    assert experiment.finished()[0].image_names[0] == "\\x1b[2J\\udcffa.png"
    assert experiment.pictures[0].name == "\\x1b[2J\\udcffa.png" and experiment.pictures[0].predictions
    assert experiment.plan["question"] == "\\x1b]0;x\\x07 \\ud800?"


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
