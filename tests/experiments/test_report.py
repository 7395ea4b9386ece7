"""A finished experiment made by hand: 2 x 2 variants, 3 seeds, and matrices whose IoU are round numbers."""

import csv
import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.evidence.experiment import load_experiment
from experiments.report import main
from experiments.reports.formats import to_csv, to_latex, to_markdown
from experiments.reports.page import Section
from experiments.reports.tables import make_notes, make_summary, make_tables
from experiments.reports.write import warnings, write_report
from experiments.shell.files import write_atomic, write_json

CLASSES = ["background", "<script>alert(1)</script>", "=absent_class 5%"]
MIOU = {  # percent, for the seeds 0, 1, 2
    "transposed-3+concat": (80, 82, 84),
    "nearest+concat": (86, 86, 92),
    "transposed-3+none": (60, 62, 64),
    "nearest+none": (62, 62, 62),
}
FORMULA = "=cmd|'/C calc'!A0"
SIDES = (24, 20)  # of the images: large enough to have a checkerboard energy


def write_experiment(folder: Path, seeds: int = 3) -> None:
    variants: dict[str, Any] = {}
    for number, (name, percents) in enumerate(MIOU.items()):
        upsample, skips = name.split("+")
        variants[name] = {
            "levels": {"upsample": upsample, "skips": skips},
            "parameters": 1_250_000,
            "gmac": 1.5,
            "step_seconds": 0.1 + 0.05 * number,
            "step_ratio": 1 + 0.5 * number,
            "peak_memory_mb": 300.0,
        }
        for seed in range(seeds):
            write_cell(folder / name / f"seed{seed}", upsample, skips, seed, percents[seed])
    plan = {
        "experiment": "ablate_up_sampling",
        "question": "Transposed or resize?",
        "baseline": "transposed-3+concat",
        "factors": {"upsample": ["transposed-3", "nearest"], "skips": ["concat", "none"]},
        "variants": variants,
        "seeds": list(range(seeds)),
        "data": "shapes",
        "data_note": "Made of discs.",
        "scale_note": "CPU scale.",
        "class_names": CLASSES,
        "palette": [[0, 0, 0], [230, 159, 0], [86, 180, 233]],
        "device": "CPU",
        "common": {"trainer.max_epochs": 2, "hparams.width": 4},
        "command": "python -m experiments.x",
        "commit": "ab12",
    }
    write_atomic(folder / "plan.json", json.dumps(plan))  # in this order, which is the order of the rows


def write_cell(folder: Path, upsample: str, skips: str, seed: int, percent: int) -> None:
    """Two images; both classes have the IoU d / (d + 2 o) = percent / 100 when summed over the two."""
    d, o = percent, (100 - percent) // 2
    total = np.array([[d, o, 0], [o, d, 0], [0, 0, 0]])
    height, width = SIDES
    rng = np.random.default_rng(seed)
    mask = (np.arange(width) > width // 2) * np.ones((height, 1))
    save_npz(
        folder / "per_image.npz",
        names=np.array(["a.png", "b.png"]),
        confusion=np.stack([total // 2, total - total // 2]),
        boundary_f1=np.array([[0.5, 0.7, math.nan], [percent / 100, percent / 100, math.nan]]),
        checkerboard=np.array([1e-4, 3e-4]) * (1 + seed),
    )
    save_npz(
        folder / "samples.npz",
        names=np.array(["a.png"]),
        image_0=rng.integers(0, 255, (*SIDES, 3), dtype=np.uint8),
        mask_0=mask.astype(np.uint8),
        prediction_0=np.roll(mask, 1, axis=1).astype(np.uint8),
        logits=rng.normal(size=(3, *SIDES)).astype(np.float16),
        initial_logits=rng.normal(size=(3, *SIDES)).astype(np.float16),
    )
    rows = ["epoch,step,train/loss,val/miou", "0,5,1.0,", f"1,10,0.5,{percent / 100}"]  # no validation in epoch 0
    write_atomic(folder / "metrics.csv", "\n".join(rows) + "\n")
    hparams = {"width": 4, "upsample": upsample, "skips": skips}
    write_json(folder / "run.json", {"hparams": hparams, "trainer": {"max_epochs": 2}, "seed": seed})
    write_json(folder / "environment.json", {"commit": "ab12", "torch_threads": 1, "device": "1 x CPU"})
    write_json(folder / "result.json", {"hash": "0", "status": "done", "seconds": 3.2, "epochs": 2})


def save_npz(path: Path, **arrays: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)  # type: ignore[arg-type]


def write_tables(folder: Path) -> None:
    """The tables alone, as write_report writes them: figures and page take seconds."""
    experiment = load_experiment(folder)
    one = Section(experiment, make_tables(experiment), make_notes(experiment), warnings(experiment), {})
    write_atomic(folder / "table.md", to_markdown([one]))
    write_atomic(folder / "table.csv", to_csv([one]))
    write_atomic(folder / "table.tex", to_latex([one]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment with its report; tests only read it."""
    folder = tmp_path_factory.mktemp("outputs") / "ablate_up_sampling"
    write_experiment(folder)
    assert write_report(folder) == folder / "report.html"
    return folder


def rows(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "table.csv").open(newline="", encoding="utf-8") as file:
        return {row["variant"]: row for row in csv.DictReader(file)}


def test_every_file_is_there(folder: Path) -> None:
    figures = [
        f"figures/{name}.{kind}" for name in ("scores", "curves", "samples", "logits") for kind in ("png", "pdf")
    ]
    for name in ("table.md", "table.csv", "table.tex", "report.html", "reproduce.sh", "environment.json", *figures):
        assert (folder / name).stat().st_size > 500, name
    assert not list(folder.rglob("*.tmp"))


def test_csv_holds_the_numbers_worked_out_by_hand(folder: Path) -> None:
    found = rows(folder)
    assert list(found) == list(MIOU)
    # 80, 82, 84: deviation 2, half-width 4.302653 * 2 / sqrt(3) = 4.9683.
    baseline = found["transposed-3+concat"]
    assert float(baseline["miou_percent_mean"]) == pytest.approx(82)
    assert float(baseline["miou_percent_std"]) == pytest.approx(2)
    assert float(baseline["miou_percent_low"]) == pytest.approx(77.0317, abs=1e-4)
    assert float(baseline["miou_percent_high"]) == pytest.approx(86.9683, abs=1e-4)
    assert baseline["miou_percent_difference_mean"] == ""
    # 86, 86, 92 less 80, 82, 84 are 6, 4, 8.
    nearest = found["nearest+concat"]
    assert float(nearest["miou_percent_mean"]) == pytest.approx(88)
    assert float(nearest["miou_percent_difference_mean"]) == pytest.approx(6)
    assert float(nearest["miou_percent_difference_std"]) == pytest.approx(2)
    assert float(nearest["miou_percent_difference_low"]) == pytest.approx(1.0317, abs=1e-4)
    assert float(nearest["iou/background_percent_mean"]) == pytest.approx(88)
    # Images score (0.5 + 0.7) / 2 = 60 % and 86, 86, 92 %; energy 200 ppm times 1, 2, 3.
    assert float(nearest["boundary_f1_percent_mean"]) == pytest.approx((60 + 88) / 2)
    assert float(nearest["checkerboard_ppm_mean"]) == pytest.approx(400)
    assert (nearest["seeds"], nearest["parameters"], nearest["step_ratio"]) == ("3", "1250000", "1.5")


PLANTED = {"transposed-3+concat": 60, "nearest+concat": 60, "transposed-3+none": 40, "nearest+none": 32}  # percent


def plant(folder: Path, seeds: int = 3, images: int = 12) -> None:
    """An experiment whose mIoU are PLANTED to the digit, though every seed and every image moves them."""
    write_experiment(folder, seeds)
    rng = np.random.default_rng(0)
    for number, (name, percent) in enumerate(PLANTED.items()):
        # Per mille, zero on average over 3 seeds; no two variants alike, whose difference would not vary.
        offsets = [(-6, 0, 6), (6, -6, 0), (0, 6, -6), (6, 0, -6)][number]
        for seed in range(seeds):
            moved = 2 * rng.integers(1, 20, images // 2)
            right = 10 * percent + offsets[seed] + np.concatenate([moved, -moved])  # of 1000 pixels in the union
            wrong = (1000 - right) // 2
            confusion = np.zeros((images, 3, 3), dtype=np.int64)
            confusion[:, 0, 0] = confusion[:, 1, 1] = right
            confusion[:, 0, 1] = confusion[:, 1, 0] = wrong
            save_npz(
                folder / name / f"seed{seed}" / "per_image.npz",
                names=np.array([f"{image}.png" for image in range(images)]),
                confusion=confusion,
                boundary_f1=np.full((images, 3), 0.5),
                checkerboard=np.full(images, 1e-4),
            )


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted") / "ablate_planted"
    plant(folder)
    write_tables(folder)
    return folder


def section(folder: Path, title: str) -> str:
    """Of table.md, by the start of its title."""
    text = (folder / "table.md").read_text(encoding="utf-8")
    return next(part for part in text.split("\n## ") if part.startswith(title))


def cells(folder: Path, title: str, row: str) -> dict[str, str]:
    """The row of a table of table.md by its first cell, by column."""
    lines = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in section(folder, title).splitlines()
        if line.startswith("|")
    ]
    return next(dict(zip(lines[0], line, strict=True)) for line in lines if line[0] == row)


def test_a_planted_difference_gets_the_star_and_an_equal_variant_does_not(planted: Path) -> None:
    for title, column in (("Test scores", "difference (points)"), ("Evidence", "difference (points)")):
        assert cells(planted, title, "transposed-3+none")[column] == r"-20.00\*"
        assert cells(planted, title, "nearest+concat")[column] == "0.00"
        assert (
            r"\* p below 5 % after Holm's correction over 3 comparisons with transposed-3+concat: paired t test over"
            in (section(planted, title))
        )
    found = rows(planted)
    ends = [float(found["transposed-3+none"][f"miou_percent_difference_{end}_both"]) for end in ("low", "high")]
    assert -23 < ends[0] < -20 < ends[1] < -17 and sum(ends) == pytest.approx(-40)
    assert float(found["transposed-3+none"]["miou_percent_difference_p_adjusted"]) < 0.05
    assert float(found["nearest+concat"]["miou_percent_difference_p_adjusted"]) == pytest.approx(1)
    assert found["nearest+concat"]["miou_percent_difference_test"] == "both"
    assert found["transposed-3+concat"]["miou_percent_difference_p_adjusted"] == ""


def test_one_comparison_is_not_corrected_and_nothing_is_blamed_on_it(tmp_path: Path) -> None:
    plant(tmp_path)
    plan = json.loads((tmp_path / "plan.json").read_text())
    plan["variants"] = {name: plan["variants"][name] for name in ("transposed-3+concat", "nearest+concat")}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    write_tables(tmp_path)
    note = section(tmp_path, "Evidence")
    assert "over 1 comparison with" in note and "of its comparison alone" not in note


def test_a_variant_without_a_cell_is_in_no_family_of_tests(tmp_path: Path) -> None:
    plant(tmp_path)
    shutil.rmtree(tmp_path / "nearest+none")
    write_tables(tmp_path)
    evidence = section(tmp_path, "Evidence")
    assert "after Holm's correction over 2 comparisons" in evidence and "at best over 2 comparisons" in evidence


def test_every_interval_says_what_it_allows_for(planted: Path) -> None:
    found = cells(planted, "Evidence", "transposed-3+none")
    names = ("other seeds, the same images", "other images, the same trained networks", "other seeds and other images")
    assert all(re.fullmatch(r"\[-\d\d\.\d\d, -\d\d\.\d\d\]", found[f"95 % interval: {name}"]) for name in names)
    # The offsets 0, 6, -6 less -6, 0, 6 per mille: the deviation of (0.6, 0.6, -1.2) is 1.0392 points, and Hedges'
    # correction for 3 seeds 1 / sqrt(pi) = 0.5642.
    assert found["effect size d_z"].startswith(f"{-20 / 1.0392 * 0.5642:.2f} [")
    notes = section(planted, "Cost")
    for words in ("from 3 seeds (", "from 12 images (", "from 3 seeds and 12 images (", "In no test image: =absent"):
        assert words in notes
    assert "not enough seeds: 3 give p = 0.75 at best over 3 comparisons, 7 are needed" in section(planted, "Evidence")


def test_a_design_that_is_not_crossed_says_why_it_has_no_effects(tmp_path: Path) -> None:
    plant(tmp_path)
    plan = json.loads((tmp_path / "plan.json").read_text())
    del plan["variants"]["nearest+none"]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    reason = "No effects of the factors: not fully crossed: there is no variant with nearest + none."
    assert reason in make_notes(load_experiment(tmp_path))


def test_of_other_test_images_no_number_is_called_that_of_all(tmp_path: Path) -> None:
    plant(tmp_path)
    path = tmp_path / "nearest+none" / "seed0" / "per_image.npz"
    with np.load(path) as stored:
        save_npz(path, **{key: array[:-1] for key, array in stored.items()})
    experiment = load_experiment(tmp_path)
    notes = make_notes(experiment)
    assert "on 11 to 12, not always the same, images of the test split" in notes[0]
    assert "No effects of the factors: not scored on the same test images." in notes
    other = replace(experiment, plan=experiment.plan | {"experiment": "other", "data": "others"})
    assert "other: 95 % interval over seeds (Student's t). Nothing" in make_summary([experiment, other]).notes[-1]


def test_crossed_factors_show_their_planted_effects_and_interaction(planted: Path) -> None:
    title = "Effects of the crossed factors"
    # 60, 60 with skips and 40, 32 without: (0 - 8) / 2, (-20 - 28) / 2, and -8 - 0.
    assert cells(planted, title, "upsample: transposed-3 to nearest")["mIoU (points)"] == r"-4.00\*"
    assert cells(planted, title, "skips: concat to none")["mIoU (points)"] == r"-24.00\*"
    both = cells(planted, title, "upsample: transposed-3 to nearest x skips: concat to none")
    assert both["mIoU (points)"] == r"-8.00\*" and both["p (Holm)"] == "&lt; 0.001"


def test_factors_that_are_not_fully_crossed_have_no_table_of_effects(tmp_path: Path) -> None:
    plant(tmp_path)
    plan = json.loads((tmp_path / "plan.json").read_text())
    del plan["variants"]["nearest+none"]
    write_atomic(tmp_path / "plan.json", json.dumps(plan))
    write_tables(tmp_path)
    for name, kept in (("table.md", "Evidence"), ("table.tex", "-evidence}")):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert kept in text and "ffects of the crossed factors" not in text, name


def test_one_seed_has_a_test_of_its_networks_and_reasons_for_the_rest(tmp_path: Path) -> None:
    plant(tmp_path, seeds=1)
    write_tables(tmp_path)
    found = cells(tmp_path, "Evidence", "transposed-3+none")
    assert found["95 % interval: other seeds, the same images"] == found["effect size d_z"] == "-"
    assert found["95 % interval: other images, the same trained networks"].startswith("[")
    assert found["difference (points)"].endswith(r"\*")
    text = section(tmp_path, "Evidence")
    assert "it says nothing of other seeds" in text and "permutation test" in text
    for reason in ("needs 2 seeds, got 1", "needs 3 seeds, got 1", "not enough seeds"):
        assert reason in text


def test_cells_of_different_images_are_not_paired(tmp_path: Path) -> None:
    plant(tmp_path)
    path = tmp_path / "nearest+none" / "seed0" / "per_image.npz"
    with np.load(path) as stored:
        save_npz(path, **{key: array[:10] for key, array in stored.items()})
    write_tables(tmp_path)
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "No tests and no intervals over images" in text and "## Evidence" not in text and r"\*" not in text


def test_latex_prints_the_best_bold_and_the_star_raised_with_its_test(planted: Path) -> None:
    text = (planted / "table.tex").read_text(encoding="utf-8")
    assert r"{}nearest+concat & 3 & \textbf{60.00 $\pm$ 0.60}" in text
    assert r"{}transposed-3+none & 3 & 40.00 $\pm$ 0.60" in text
    assert text.count("$-$20.00$^{*}$") == 2
    assert "\\footnotesize\n$^{*}$ p below 5 \\% after Holm's correction over 3 comparisons" in text
    assert text.count(r"\begin{minipage}") == text.count(r"\end{minipage}") == 7


def test_a_class_absent_everywhere_is_undefined_and_not_in_the_mean(folder: Path) -> None:
    assert rows(folder)["nearest+concat"][f"iou/{CLASSES[2]}_percent_mean"] == ""
    assert "absent from both truth and prediction is left out" in (folder / "table.md").read_text(encoding="utf-8")


def test_markdown_shows_the_scores_and_what_they_are(folder: Path) -> None:
    text = (folder / "table.md").read_text(encoding="utf-8")
    assert "| transposed-3+concat | 3 | 82.00 ± 2.00 | [77.03, 86.97] | baseline | - |" in text
    assert "| nearest+concat | 3 | **88.00 ± 3.46** | [79.39, 96.61] | +6.00 | [1.03, 10.97] |" in text
    assert "| upsample: transposed-3 to nearest | skips: none | 3 | +0.00" not in text  # zero has no sign
    assert "| skips: concat to none | upsample: transposed-3 | 3 | -20.00 [-20.00, -20.00] |" in text
    for words in (
        "over seeds",
        "last epoch, not of the best",
        "No interval is corrected for the number of comparisons; every p that is printed is.",
        "No difference gets a star: needs 6 images, got 2.",
        "CPU scale.",
        "Made of discs.",
    ):
        assert words in text
    assert "<script>" not in text


def test_the_page_holds_the_tables_and_escapes_names(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text and "<script>alert(1)" not in text
    for words in (
        "Transposed or resize?",
        "python -m experiments.x",
        "ab12",
        "12 of 12",
        "<strong>88.00 ± 3.46</strong>",
    ):
        assert words in text


def test_latex_escapes_names_and_keeps_its_own_commands(folder: Path) -> None:
    text = (folder / "table.tex").read_text(encoding="utf-8")
    assert r"\label{tab:ablate-up-sampling-scores}" in text
    assert r"\textless{}script\textgreater{}alert(1)" in text and r"=absent\_class" in text
    assert r"transposed-3+none & 3 & 62.00 $\pm$ 2.00 & [57.03, 66.97] & $-$20.00" in text
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == text.count(r"\begin{tabular}") == 10
    body = re.sub(r"\\[%_#&$]", "", re.sub(r"(?m)^%.*$|\{%$", "", text))
    assert "%" not in body and "_" not in body
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")


def test_rebuilding_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / folder.name)
    write_report(copy)
    for path in ("table.md", "table.csv", "table.tex", "report.html", "reproduce.sh", "figures/scores.pdf"):
        assert (copy / path).read_bytes() == (folder / path).read_bytes(), path


@pytest.fixture(scope="module")
def one_seed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of one seed, with a variant that a spreadsheet would run and that has no result."""
    folder = tmp_path_factory.mktemp("one_seed")
    write_experiment(folder, seeds=1)
    plan = json.loads((folder / "plan.json").read_text())
    plan["variants"][FORMULA] = plan["variants"].pop("nearest+none")
    write_atomic(folder / "plan.json", json.dumps(plan))
    write_tables(folder)
    return folder


def test_one_seed_says_that_there_is_no_interval(one_seed: Path) -> None:
    text = (one_seed / "table.md").read_text(encoding="utf-8")
    assert "One seed: no interval over seeds." in text
    assert "| nearest+concat | 1 | **86.00 ± -** | - | +6.00 | - |" in text
    assert rows(one_seed)["nearest+concat"]["miou_percent_std"] == ""


def test_spreadsheet_formulas_are_defused_and_numbers_are_not(one_seed: Path) -> None:
    assert f"'{FORMULA}" in rows(one_seed)
    assert rows(one_seed)["transposed-3+none"]["miou_percent_difference_mean"] == "-20"
    cells = [cell for row in rows(one_seed).values() for cell in row.values()]
    assert all(float(cell) < 0 for cell in cells if cell.startswith(("=", "+", "-", "@")))


def test_a_partial_experiment_says_so_and_lists_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_experiment(tmp_path)
    lost = tmp_path / "nearest+concat" / "seed1"
    (lost / "result.json").unlink()
    write_atomic(lost / "log.txt", "step 1\nRuntimeError: <b>out of memory</b>\n\n")
    shutil.rmtree(tmp_path / "transposed-3+none")
    write_report(tmp_path)
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    assert "Partial: 8 of 12 cells are finished" in text and "8 of 12" in printed
    assert "How many seeds or images a difference in mIoU would need" in printed
    assert "| nearest+concat | 2 of 3 | **89.00 ± 4.24** |" in text  # 86 and 92
    assert "- nearest+concat, seed 1: started, not finished; nearest+concat/seed1/log.txt ends: RuntimeError" in text
    assert "| transposed-3+none | 0 of 3 | - | - | - | - |" in text
    assert "- transposed-3+none, seed 2: not started" in text
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "RuntimeError: &lt;b&gt;out of memory&lt;/b&gt;" in page and "Partial: 8 of 12" in page


def test_cells_of_other_settings_are_not_mixed_in(tmp_path: Path) -> None:
    write_experiment(tmp_path)
    stale = tmp_path / "nearest+none" / "seed2" / "run.json"
    write_json(stale, json.loads(stale.read_text()) | {"trainer": {"max_epochs": 9}})
    shutil.copytree(tmp_path / "nearest+none" / "seed0", tmp_path / "nearest+none" / "seed7")
    shutil.copytree(tmp_path / "nearest+none" / "seed0", tmp_path / "nearest+none" / "seed0.old1")
    experiment = load_experiment(tmp_path)
    assert [(m.variant, m.seed, m.state) for m in experiment.missing] == [
        ("nearest+none", 2, "trained with other settings (trainer.max_epochs 9, planned 2)")
    ]
    stray, uneven = experiment.deviations
    assert stray == "Finished cells that the plan does not name are left out: nearest+none/seed7."
    assert uneven.startswith("Not every variant has the seeds 0, 1, 2: nearest+none lacks seed 2.")


def test_other_test_images_are_named(tmp_path: Path) -> None:
    write_experiment(tmp_path, seeds=1)
    path = tmp_path / "nearest+none" / "seed0" / "per_image.npz"
    with np.load(path) as stored:
        save_npz(path, **{**stored, "names": np.array(["a.png", "c.png"])})
    assert "same test images" in load_experiment(tmp_path).deviations[0]


def test_cells_are_read_with_and_without_a_trimap(tmp_path: Path) -> None:
    write_experiment(tmp_path, seeds=1)
    path = tmp_path / "nearest+none" / "seed0" / "per_image.npz"
    assert load_experiment(tmp_path).cells["nearest+none"][0].trimap is None  # as stored before there was one
    with np.load(path) as stored:
        arrays = dict(stored)
    bands = np.arange(2 * 20 * 9).reshape(2, 20, 3, 3)
    save_npz(path, **arrays, trimap=bands)
    cell = load_experiment(tmp_path).cells["nearest+none"][0]
    assert cell.trimap is not None and np.array_equal(cell.trimap, bands.sum(axis=0))
    save_npz(path, **arrays, trimap=bands[:, :19])
    with pytest.raises(ValueError, match=r"trimap must have the shape \('n', 20, 3, 3\).*got \(2, 19, 3, 3\)"):
        load_experiment(tmp_path)


def test_cells_of_another_commit_or_machine_are_named(tmp_path: Path) -> None:
    write_experiment(tmp_path)
    assert load_experiment(tmp_path).deviations == []
    path = tmp_path / "nearest+none" / "seed1" / "environment.json"
    write_json(path, {"commit": "4567def", "torch_threads": 1, "device": "1 x CPU"})
    (found,) = load_experiment(tmp_path).deviations
    assert (
        found.startswith("Cells were trained with different commit (ab12: ") and "4567def: nearest+none seed 1" in found
    )


def test_a_folder_that_cannot_be_written_to_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_experiment(tmp_path / "one", seeds=1)
    (tmp_path / "mine").write_text("of the user's")
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path / "one"), "--out", str(tmp_path / "mine")])
    with pytest.raises(SystemExit, match="73"):
        main()
    said = capsys.readouterr().err
    assert said.startswith("error: cannot write ") and str(tmp_path / "mine") in said and "--out" in said
    assert (tmp_path / "mine").read_text() == "of the user's"


def test_errors_name_the_folder_or_file_and_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere holds no experiment.*expected .*plan\.json"):
        write_report(tmp_path / "nowhere")
    write_experiment(tmp_path / "one", seeds=1)
    with pytest.raises(FileNotFoundError, match=r"experiments below it: .*one"):
        write_report(tmp_path)
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        main()

    damaged = tmp_path / "one" / "nearest+none" / "seed0" / "per_image.npz"
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"seed0.per_image\.npz cannot be read .*: delete .*seed0 and run"):
        write_report(tmp_path / "one")
    save_npz(damaged, names=np.array(["a"]), confusion=np.zeros((1, 2, 2), np.int64))
    with pytest.raises(ValueError, match=r"confusion must have the shape \('n', 3, 3\).*got \(1, 2, 2\)"):
        write_report(tmp_path / "one")
    shutil.rmtree(tmp_path / "one")
    write_experiment(tmp_path / "one", seeds=1)
    for name, content, message in (
        (
            "metrics.csv",
            "epoch,train/loss,val/miou\n0,much,0.5\n",
            r"metrics\.csv cannot be read .*'much'.*: delete .*seed0 and",
        ),
        (
            "result.json",
            "null",
            r"result\.json cannot be read .*expected an object, got null\): delete .*seed0 and run",
        ),
        (
            "../../plan.json",
            "{",
            r"plan\.json cannot be read .*: delete this file alone and start .*keeps its finished",
        ),
    ):
        file = tmp_path / "one" / "nearest+none" / "seed0" / name
        before = file.read_text()
        file.write_text(content)
        with pytest.raises(ValueError, match=message):
            write_report(tmp_path / "one")
        file.write_text(before)
    for path in (tmp_path / "one").glob("*/seed0/result.json"):
        path.unlink()
    with pytest.raises(ValueError, match=r"(?s)no finished cell.*python -m experiments\.x.*nearest\+none seed 0"):
        write_report(tmp_path / "one")
