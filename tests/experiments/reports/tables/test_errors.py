"""The tables of errors and confusions of hand-made arrays, worked out in the tests."""

import json
from pathlib import Path

import numpy as np
import pytest
from handmade import CLASSES, save_npz, write_experiment

from experiments.evidence.confusions import confusion_shares
from experiments.evidence.experiment import load_experiment
from experiments.reports.formats import to_latex, to_markdown
from experiments.reports.page import Section
from experiments.reports.tables import Table, make_tables
from experiments.shell.files import write_atomic


def tables(folder: Path) -> dict[str, Table]:
    return {table.key: table for table in make_tables(load_experiment(folder))}


def extend(folder: Path) -> None:
    """Adds to every cell the arrays of errors; of its 200 to 300 pixels 4 wrong ones lie near a boundary."""
    for path in folder.glob("*/seed*/per_image.npz"):
        with np.load(path) as stored:
            arrays = dict(stored)
        trimap = np.zeros((2, 20, 3, 3), dtype=np.int64)
        trimap[0, 0, 0, 1], trimap[1, 2, 1, 0], trimap[1, 3, 1, 0] = 3, 1, 5  # the last is at 4 pixels
        trimap[0, 1, 0, 0] = 6
        segments = np.zeros((2, 3, 4), dtype=np.int64)
        segments[0, 0], segments[1, 1] = (3, 1, 6, 3), (5, 0, 4, 1)  # in all 8, 1, 10, 4
        calibration = np.zeros((2, 15, 3))
        calibration[0, 14], calibration[1, 8] = (60, 57, 51), (40, 24, 26)  # |57 - 51| + |24 - 26| of 100
        coverage = np.zeros((2, 240, 2), dtype=np.int64)
        coverage[0, 90], coverage[1, 20] = (60, 3), (40, 14)
        save_npz(path, **arrays, trimap=trimap, segments=segments, calibration=calibration, coverage=coverage)


def test_errors_are_the_numbers_worked_out_by_hand(tmp_path: Path) -> None:
    write_experiment(tmp_path)
    extend(tmp_path)
    table = tables(tmp_path)["errors"]
    # The third class has no pixel: d = 80, o = 10 are 180 pixels, 20 of them wrong; so 82, 9: 182, 18; 84, 8: 184, 16.
    wrong = [20 / 180, 18 / 182, 16 / 184]
    near = [4 / 20, 4 / 18, 4 / 16]
    expected = [f"{100 * np.mean(values):.2f} ± {100 * np.std(values, ddof=1):.2f}" for values in (wrong, near)]
    assert table.rows[0] == [
        *("transposed-3+concat", "3", *expected),
        *("12.50 ± 0.00", "40.00 ± 0.00", "8.00 ± 0.00", "4.00 ± 0.00"),
        # Of the surest 90 of 100 pixels 3 are wrong, and 30 of the 40 others hold 10.5 of 14. The area: 5 % up to 0.6,
        # from there on (0.35 x - 0.18) / x.
        *("15.00 ± 0.00", f"{100 * (0.05 * 0.6 + 0.35 * 0.4 + 0.18 * np.log(0.6)):.2f} ± 0.00"),
    ]
    nearest = [14 / 186, 14 / 186, 8 / 192]
    change = 100 * (np.mean(nearest) - np.mean(wrong))
    assert table.rows[1][2] == f"{100 * np.mean(nearest):.2f} ± {100 * np.std(nearest, ddof=1):.2f} ({change:.2f})"
    assert all(cell.endswith(" ± 0.00 (0.00)") for cell in table.rows[1][4:])
    notes = " ".join(table.notes)
    for words in (
        "Rottmann et al. (2020)",
        "Guo et al. (2017)",
        "Kohli et al. 2009",
        "5.6 % of all labelled pixels lie there",
    ):
        assert words in notes  # 3 + 6 + 1 of the 180 of the first cell
    assert "Not stored" not in notes


def test_what_earlier_cells_did_not_store_is_a_dash_with_a_note(tmp_path: Path) -> None:
    write_experiment(tmp_path)
    table = tables(tmp_path)["errors"]
    assert table.rows[0][3:] == ["-"] * 7 and table.rows[0][2].startswith("9.90 ± ")
    note = table.notes[-1]
    assert note.startswith("Not stored: ") and '"missed segments (%)"' in note and '"wrong pixels (%)"' not in note
    assert not any("Guo" in one for one in table.notes)


def test_confusions_are_shares_of_the_wrong_pixels_and_names_are_escaped(tmp_path: Path) -> None:
    write_experiment(tmp_path, seeds=1)
    path = tmp_path / "nearest+none" / "seed0" / "per_image.npz"
    with np.load(path) as stored:
        arrays = dict(stored)
    arrays["confusion"][:] = 0
    arrays["confusion"][0, 0], arrays["confusion"][1, 1] = (50, 30, 0), (10, 7, 0)
    save_npz(path, **arrays)
    experiment = load_experiment(tmp_path)
    shares = confusion_shares(experiment)["nearest+none"]
    assert (
        shares[0, 1] == pytest.approx(0.75) and shares[1, 0] == pytest.approx(0.25) and shares.sum() == pytest.approx(1)
    )
    table = tables(tmp_path)["confusions"]
    # The other three variants err alike in both directions.
    assert [row[:3] for row in table.rows] == [[CLASSES[0], CLASSES[1], "56.2"], [CLASSES[1], CLASSES[0], "43.8"]]
    assert table.rows[0][3:] == ["50.0", "50.0", "50.0", "75.0"] and table.columns[-1] == "nearest+none (%)"
    one = Section(experiment, ["It."], make_tables(experiment), [], [], {})
    assert "| background | &lt;script>alert(1)&lt;/script> | 56.2 |" in to_markdown([one])
    assert r"background & \textless{}script\textgreater{}alert(1)" in to_latex([one])


def test_no_wrong_pixel_no_confusions(tmp_path: Path) -> None:
    write_experiment(tmp_path, seeds=1)
    for path in tmp_path.glob("*/seed0/per_image.npz"):
        with np.load(path) as stored:
            arrays = dict(stored)
        save_npz(path, **{**arrays, "confusion": arrays["confusion"] * np.eye(3, dtype=np.int64)})
    assert tables(tmp_path)["confusions"].rows == []


def test_the_budget_of_each_variant_and_what_it_differs_in(tmp_path: Path) -> None:
    write_experiment(tmp_path, seeds=1)
    old = tables(tmp_path)["fairness"]
    assert old.rows[3] == [
        "nearest+none",
        "upsample: transposed-3 to nearest; skips: concat to none",
        *("-", "-", "1.00", "1.00"),
    ]
    assert "stored no budgets" in old.notes[-1]
    plan = json.loads((tmp_path / "plan.json").read_text())
    plan["variants"]["nearest+none"]["parameters"] *= 2
    budget = {"steps": 1200, "batch": 4, "images": 4800, "accumulation": 1, "epochs": 2, "train_images": 2400}
    budget |= {
        "augmentation": {"crop": [16, 16]},
        "optimizer": "adamw",
        "lr": 0.002,
        "momentum": 0.9,
        "weight_decay": 0.0,
    }
    budget |= {"schedule": "poly", "warmup": 0.0, "loss": "ce", "class_weights": None, "precision": "32-true"}
    budget |= {"gradient_clip_val": None, "start": "scratch", "steps_before": 0}
    plan["budget"] = {name: budget | ({"steps": 600} if name == "nearest+none" else {}) for name in plan["variants"]}
    plan["differences"] = {name: {} for name in plan["variants"]}
    plan["differences"]["nearest+none"] = {"trainer.max_epochs": [2, 1], "hparams.width": [4, 8]}
    write_atomic(tmp_path / "plan.json", json.dumps(plan))
    new = tables(tmp_path)["fairness"]
    assert new.rows[0] == ["transposed-3+concat", "-", "1,200", "4,800", "1.00", "1.00"]
    assert new.rows[3] == ["nearest+none", "trainer.max_epochs: 2 to 1; width: 4 to 8", "600", "4,800", "2.00", "1.00"]
    assert any("ot of equal budget" in note and "nearest+none" in note for note in new.notes)
