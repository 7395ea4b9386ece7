"""What a report says of differences: stars, intervals, effects of factors, and why one is not given."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from handmade import plant, rows, save_npz, write_tables

from experiments.evidence.experiment import load_experiment
from experiments.reports.tables import make_notes, make_summary
from experiments.shell.files import write_atomic


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
