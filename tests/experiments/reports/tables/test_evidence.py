"""What the tables of a report say of differences: stars, intervals, effects of factors, and why there is none."""

import csv
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from handmade import (
    PLANTED,
    change_plan,
    keep,
    move,
    one_factor,
    plant,
    rows,
    save_npz,
    section,
    write_experiment,
    write_tables,
)
from scipy.stats import t

from experiments.evidence.experiment import load_experiment
from experiments.reports.page import render
from experiments.reports.tables import Table, make_notes, make_summary, make_tables
from experiments.reports.tables.evidence import spread_note

BASELINE = "transposed-3+concat"
DIFFERENCE = f"difference to {BASELINE} (points)"
FACTOR = "upsample: nearest - transposed-3"
BOTH = f"{FACTOR} x skips: none - concat"
ONLY = "on these images only (their groups were not stored)"
MEANING = "* 0 lies outside the interval; all 6 intervals of this report hold together with 95 %, for "


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted") / "ablate_planted"
    plant(folder)
    write_tables(folder)
    return folder


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With groups of images enough to speak of other images."""
    folder = tmp_path_factory.mktemp("grouped") / "ablate_grouped"
    plant(folder, groups=8)
    write_tables(folder)
    return folder


def tables(folder: Path) -> dict[str, Table]:
    return {table.key: table for table in make_tables(load_experiment(folder))}


def cells(table: Table, first: str) -> dict[str, str]:
    """A row by its first cell, by column."""
    return next(dict(zip(table.columns, row, strict=True)) for row in table.rows if row[0] == first)


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.\d+", text)]


def test_a_planted_difference_gets_the_star_and_an_equal_variant_does_not(planted: Path) -> None:
    found = tables(planted)
    answer, evidence = found["answer"], found["evidence"]
    assert [*cells(answer, BASELINE).values()] == [BASELINE, "60.00 ± 0.60", "baseline", "1.500"]
    for name, star in (("nearest+concat", ""), ("transposed-3+none", "*"), ("nearest+none", "*")):
        shown, row = cells(answer, name)[DIFFERENCE], cells(evidence, f"{name} - {BASELINE}")
        assert shown == f"{row['mIoU (points)'].rstrip('*')} {row['95 %, all together']}{star}"
        estimate, low, high = numbers(shown)
        assert estimate == PLANTED[name] - 60 and low + high == pytest.approx(2 * estimate, abs=0.02)
        assert row["mIoU (points)"].endswith("*") == bool(star) == (not low <= 0 <= high)
        both = (row["p, all together"], row["p, by itself"])
        assert both == (("< 0.001", "< 0.001") if star else ("1.000", "1.000"))
        assert row["P(above 0), new seed (%)"] == ("< 1" if star else "50")
        assert (row["excluded (points)"] == "-") == bool(star)
    for table in (answer, evidence, found["factorial"]):
        assert f"{MEANING}other seeds, {ONLY}." in table.notes


def test_intervals_are_those_of_the_residual_variance_worked_out_by_hand(planted: Path) -> None:
    found = tables(planted)
    row = cells(found["evidence"], f"nearest+concat - {BASELINE}")
    # Per mille, by variant and seed; less the means of the seeds, over 3 x 2 degrees of freedom.
    offsets = np.array([(-6, 0, 6), (6, -6, 0), (0, 6, -6), (6, 0, -6)])
    sd = math.sqrt(((offsets - offsets.mean(axis=0)) ** 2).sum() / 6) / 10
    half = float(t.ppf(0.975, 6)) * sd * math.sqrt(2 / 3)
    assert numbers(row["95 %, by itself"]) == [pytest.approx(-half, abs=0.005), pytest.approx(half, abs=0.005)]
    assert numbers(row["95 %, all together"])[1] > half
    assert row["df"] == "6.0" and row["seeds"] == "3"
    spread = found["spread"]
    assert spread.notes[0] == f"The intervals use one for all variants, {sd:.2f} points (6 degrees of freedom)."
    assert "No unequal spread shows" in spread.notes[1] and len(spread.rows) == 4


def test_what_is_excluded_is_never_less_than_the_end_of_the_interval(planted: Path) -> None:
    row = load_experiment(planted).comparisons["nearest+concat"]
    shown = float(cells(tables(planted)["evidence"], f"nearest+concat - {BASELINE}")["excluded (points)"])
    assert 100 * row.excluded <= shown < 100 * row.excluded + 0.1


def test_crossed_factors_show_their_planted_effects_and_interaction(planted: Path) -> None:
    found = tables(planted)
    # 60, 60 with skips and 40, 32 without: (0 - 8) / 2, (-20 - 28) / 2, and -8 - 0.
    for title, effect in ((FACTOR, -4), ("skips: none - concat", -24), (BOTH, -8)):
        shown = cells(found["factorial"], title)["mIoU (points)"]
        assert re.fullmatch(r"-\d+\.00 \[-\d+\.\d\d, -\d+\.\d\d\]\*", shown) and numbers(shown)[0] == effect
        assert cells(found["evidence"], title)["mIoU (points)"] == f"{effect:.2f}*"


def check_stars(folder: Path) -> int:
    """In every form of the report, a number has a star exactly where the interval beside it leaves out 0."""
    write_tables(folder)
    shown = {name: (folder / name).read_text(encoding="utf-8") for name in ("table.md", "table.tex")}
    shown["table.md"] = shown["table.md"].replace("\\*", "*")
    shown["table.tex"] = shown["table.tex"].replace("$-$", "-").replace("$^{*}$", "*")
    shown["report.html"] = render([section(folder, {})])
    checked = 0
    for name, text in shown.items():
        # No star goes by the intervals of a row alone.
        begin, end = (
            r"(## One factor at a time|One factor at a time: diff|<h3 id=\"e1-factors)",
            r"(\n## |\\end\{tab|</table>)",
        )
        judged, count = re.subn(f"(?s){begin}.*?{end}", "", text)
        assert count == 1, name
        for estimate, low, high, star in re.findall(r"([+-]?\d+\.\d\d) \[(-?\d+\.\d\d), (-?\d+\.\d\d)\](\*?)", judged):
            assert (star == "*") == (not float(low) <= 0 <= float(high)), (name, estimate, low, high)
            checked += 1
    for row in rows(folder).values():
        low, high = (row[f"miou_percent_difference_{end}"] for end in ("low", "high"))
        wanted = str(int(not float(low) <= 0 <= float(high))) if low else ""
        assert row["miou_percent_difference_star"] == wanted
    return checked


def test_a_star_stands_exactly_where_0_lies_outside_the_interval_in_every_form(tmp_path: Path) -> None:
    plant(tmp_path)
    # 3 comparisons in the answer's table and 3 effects in theirs.
    assert check_stars(tmp_path) == 3 * 6
    high = load_experiment(tmp_path).comparisons["nearest+concat"].high
    for aside, star in ((-1, "0"), (1, "1")):
        plant(tmp_path)
        for seed in range(3):
            move(tmp_path, "nearest+concat", seed, 2 * (round(500 * high) + aside))  # per mille, to either side
        assert check_stars(tmp_path) == 3 * 6
        assert rows(tmp_path)["nearest+concat"]["miou_percent_difference_star"] == star


def test_with_groups_enough_it_speaks_of_other_images_and_otherwise_everywhere_of_these_only(
    planted: Path, grouped: Path, tmp_path: Path
) -> None:
    for folder, images_only in ((planted, True), (grouped, False)):
        for name in ("table.md", "table.tex"):
            text = (folder / name).read_text(encoding="utf-8")
            assert ("these images only" in text) == images_only, name
            assert ("other seeds and other images (8 groups)" in text) == (not images_only), name
        stars = (folder / "table.md").read_text(encoding="utf-8").count("0 lies outside the interval; all 6")
        assert stars == 3  # below the answer, the effects and the evidence
        assert ("these images only" in render([section(folder, {})])) == images_only
        kinds = {row["miou_percent_difference_interval"] for row in rows(folder).values()} - {""}
        assert kinds == ({"seeds"} if images_only else {"seeds and images"})
    plant(tmp_path, groups=7)
    assert (
        tables(tmp_path)["answer"]
        .notes[0]
        .endswith(
            "on these images only (7 independent images or groups of images, and 8 are needed to speak of others)."
        )
    )


def test_the_networks_alone_have_a_table_and_a_mark_of_their_own(planted: Path, grouped: Path, tmp_path: Path) -> None:
    assert tables(planted)["networks"].rows == []
    plant(tmp_path, seeds=1, groups=8)  # the one table of differences that a single seed fills
    for folder, seeds, estimate in ((grouped, "3", "-28.00†"), (tmp_path, "1", "-26.80†")):
        found = tables(folder)
        row = cells(found["networks"], f"nearest+none - {BASELINE}")
        assert row["networks each"] == seeds and row["mIoU (points)"] == estimate
        low, high = numbers(row["95 %, all together"])
        assert low < float(estimate[:-1]) < high < 0
        assert "says nothing of the design" in found["networks"].notes[0]
        for key, table in found.items():
            text = " ".join([*table.columns, *table.notes, *(cell for line in table.rows for cell in line)])
            assert ("†" in text) == (key == "networks"), key
            assert not (key == "networks" or seeds == "1") or not re.search(r"\d\]?\*", text), key
    assert cells(tables(grouped)["networks"], f"nearest+concat - {BASELINE}")["mIoU (points)"] == "0.00"


@pytest.mark.parametrize("seeds", [1, 2])
def test_below_3_seeds_every_place_of_an_interval_is_a_dash_with_its_reason(seeds: int, tmp_path: Path) -> None:
    plant(tmp_path, seeds=seeds)
    found = tables(tmp_path)
    reason = f"No star and no interval: needs 3 seeds, got {seeds}."
    for key in ("answer", "factorial", "evidence"):
        assert reason in found[key].notes and not any("[-]" in note for note in found[key].notes)
    row = cells(found["evidence"], f"nearest+none - {BASELINE}")
    assert row["seeds"] == str(seeds) and [*row.values()][3:] == ["-"] * 7
    assert cells(found["answer"], "nearest+none")[DIFFERENCE].endswith(" [-]")
    assert all(line[1].endswith(" [-]") and line[2] == "-" for line in found["factorial"].rows)
    assert all(cell.endswith(" [-]") for line in found["factors"].rows for cell in line[2:])
    assert any(note.startswith(f"[-]: needs 3 seeds, got {seeds}") for note in found["factors"].notes)
    assert f"No intervals and no stars: needs 3 seeds, got {seeds}." in make_notes(load_experiment(tmp_path))
    write_tables(tmp_path)
    line = rows(tmp_path)["nearest+none"]
    for part in ("low", "high", "own_low", "own_high", "p", "adjusted", "df", "chance", "star", "interval"):
        assert line[f"miou_percent_difference_{part}"] == ""
    assert float(line["miou_percent_difference_estimate"]) < -25


def test_a_variant_without_a_cell_is_in_no_family_and_its_dashes_have_a_reason(tmp_path: Path) -> None:
    plant(tmp_path)
    shutil.rmtree(tmp_path / "nearest+none")
    found = tables(tmp_path)
    assert cells(found["answer"], "nearest+none")[DIFFERENCE] == "-"
    meaning = f"{MEANING.replace('6', '2')}other seeds, {ONLY}."
    assert found["answer"].notes == [meaning, "[-] nearest+none: needs 3 seeds, got 0."]
    effects = f"{FACTOR}, skips: none - concat, {BOTH}"
    assert found["factorial"].notes[-1] == f"[-] {effects}: needs 3 seeds, got 0."
    assert f"[-] nearest+none - {BASELINE}, {effects}: needs 3 seeds, got 0." in found["evidence"].notes


def test_a_variant_with_fewer_seeds_is_not_judged_and_the_others_are_by_least_squares(tmp_path: Path) -> None:
    plant(tmp_path)
    shutil.rmtree(tmp_path / "nearest+none" / "seed2")
    found = tables(tmp_path)
    assert cells(found["answer"], "nearest+none")["mIoU (%)"] == "32.30 ± 0.42 (2 of 3)"
    assert "[-] nearest+none: needs 3 seeds, got 2." in found["answer"].notes
    assert cells(found["evidence"], f"nearest+concat - {BASELINE}")["df"] == "5.0"  # 11 cells - 4 variants - 3 + 1


def test_one_comparison_does_not_speak_of_a_family(tmp_path: Path) -> None:
    plant(tmp_path)
    keep(tmp_path, BASELINE, "nearest+concat")
    one_factor(tmp_path)
    notes = tables(tmp_path)["answer"].notes
    assert notes == [f"No interval leaves out 0, which holds with 95 %, for other seeds, {ONLY}."]


def test_a_margin_is_a_column_and_says_when_it_was_chosen(tmp_path: Path) -> None:
    plant(tmp_path)
    change_plan(tmp_path, statistics={"margin": 2.0})
    table = tables(tmp_path)["evidence"]
    shown = {line[0]: line[-1] for line in table.rows}
    assert table.columns[-1] == "within ± 2" and shown.pop(f"nearest+concat - {BASELINE}") == "yes"
    assert {*shown.values()} == {"not shown"} and "chosen after" not in table.notes[-1]
    change_plan(tmp_path, statistics={"margin": 2.0, "margin_after": True})
    assert tables(tmp_path)["evidence"].notes[-1].endswith("It was chosen after the training.")
    plant(tmp_path, seeds=2)
    change_plan(tmp_path, statistics={"margin": 2.0})
    assert {line[-1] for line in tables(tmp_path)["evidence"].rows} == {"-"}


def test_separate_variances_use_each_comparison_s_own_and_say_so(tmp_path: Path) -> None:
    plant(tmp_path)
    change_plan(tmp_path, statistics={"variances": "separate"})
    found = tables(tmp_path)
    row = cells(found["evidence"], f"nearest+none - {BASELINE}")
    # The offsets 6, 0, -6 less -6, 0, 6 per mille: 1.2, 0, -1.2 points. Together: Bonferroni's correction for 6 rows.
    for column, miss in (("95 %, by itself", 0.05), ("95 %, all together", 0.05 / 6)):
        half = float(t.ppf(1 - miss / 2, 2)) * 1.2 / math.sqrt(3)
        assert numbers(row[column]) == [pytest.approx(-28 + sign * half, abs=0.006) for sign in (-1, 1)]
    assert row["df"] == "2.0"
    assert found["spread"].notes[0] == "The intervals use each comparison's own, as the plan says."
    said = "each comparison by its own paired t over the seeds, with Bonferroni's correction for 6"
    assert any(said in note for note in make_notes(load_experiment(tmp_path)))


def test_unequal_spreads_say_what_that_does_to_the_intervals() -> None:
    note = spread_note(0.03)
    assert note.startswith("The variants' spreads differ more than by chance (p 0.030)")
    assert "80 % at 24" in note and "--separate-variances, planned before the training" in note
    assert spread_note(0.06).startswith("No unequal spread shows (p 0.060")


def test_energy_is_a_factor_by_its_logarithm_and_no_difference(tmp_path: Path) -> None:
    write_experiment(tmp_path)
    generator = np.random.default_rng(0)
    energy: dict[str, list[float]] = {}
    for number, name in enumerate(load_experiment(tmp_path).cells):
        for seed in range(3):
            energy.setdefault(name, []).append(1e-4 * 4.0 ** (number % 2) * float(np.exp(0.1 * generator.normal())))
            set_energy(tmp_path, name, seed, energy[name][-1])
    factor, low, high = (float(number) for number in re.findall(r"\d+\.\d+|\d+", shown_factor(tmp_path)))
    logs = {name: np.log(values) for name, values in energy.items()}
    assert factor == pytest.approx(np.exp((logs["nearest+concat"] - logs[BASELINE]).mean()), abs=0.06)
    assert 3 < low < factor < high < 5.5
    assert low * high == pytest.approx(factor**2, rel=0.05)  # symmetric on the logarithm
    set_energy(tmp_path, "nearest+concat", 0, 0.0)
    assert shown_factor(tmp_path).endswith(" [-]")  # of no energy there is no factor, and two seeds are left


def set_energy(folder: Path, variant: str, seed: int, value: float) -> None:
    path = folder / variant / f"seed{seed}" / "per_image.npz"
    with np.load(path) as stored:
        save_npz(path, **{**stored, "checkerboard": np.full(2, value)})


def shown_factor(folder: Path) -> str:
    changed = ["upsample: transposed-3 to nearest", "skips: concat"]
    table = tables(folder)["factors"]
    assert table.columns[-1] == "checkerboard energy (factor)"
    return next(line[-1] for line in table.rows if line[:2] == changed)


def test_no_interval_leaves_what_a_score_can_be(tmp_path: Path) -> None:
    plant(tmp_path, groups=8)
    keep(tmp_path, BASELINE, "nearest+concat")
    for seed, (low, high) in enumerate([(-540, 340), (-100, 340), (-540, 100)]):
        move(tmp_path, BASELINE, seed, low)
        move(tmp_path, "nearest+concat", seed, high)
    experiment = load_experiment(tmp_path)
    row = experiment.comparisons["nearest+concat"]
    assert row.high == row.own_high == 1.0 and row.low >= -1.0
    assert experiment.networks is not None
    assert all(-1 <= row.low <= row.high <= 1 for row in experiment.networks.rows.values())
    for cell in (cell for table in tables(tmp_path).values() for line in table.rows for cell in line):
        assert all(abs(end) <= 100 for bounds in re.findall(r"\[(.*?)\]", cell) for end in numbers(bounds)), cell


def test_a_design_that_is_not_crossed_says_why_it_has_no_effects(tmp_path: Path) -> None:
    plant(tmp_path)
    keep(tmp_path, BASELINE, "nearest+concat", "transposed-3+none")
    reason = "No effects of the factors: not fully crossed: there is no variant with nearest + none."
    assert reason in make_notes(load_experiment(tmp_path))
    write_tables(tmp_path)
    for name, kept in (("table.md", "## Evidence"), ("table.tex", "-evidence}")):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert kept in text and "ffects of the crossed factors" not in text, name


def test_cells_of_different_images_are_named_and_judged_by_their_seeds(tmp_path: Path) -> None:
    plant(tmp_path, groups=8)
    path = tmp_path / "nearest+none" / "seed0" / "per_image.npz"
    with np.load(path) as stored:
        save_npz(path, **{key: array[:-1] for key, array in stored.items()})
    experiment = load_experiment(tmp_path)
    assert "on 11 to 12, not always the same, images of the test split" in make_notes(experiment)[0]
    found = tables(tmp_path)
    assert found["answer"].notes[0].endswith("on these images only (not scored on the same images).")
    assert found["networks"].rows == []
    other = replace(experiment, plan=experiment.plan | {"experiment": "other", "data": "others"})
    notes = make_summary([experiment, other]).notes
    assert notes[-1].startswith("other: * 0 lies outside") and "not scored on the same images" in notes[-1]


def test_notes_say_how_stars_come_about_and_what_narrower_intervals_take(planted: Path, grouped: Path) -> None:
    notes = make_notes(load_experiment(planted))
    judged, limits, seeds = notes[2:5]
    assert "shared by all variants (6 degrees of freedom)" in judged and "Hothorn, Bretz & Westfall 2008" in judged
    assert limits.startswith("No interval allows for other training images")
    assert re.fullmatch(r"To compare two variants to ± 1 point takes about \d+ seeds\.", seeds)
    assert "images" in make_notes(load_experiment(grouped))[4]  # which no seed makes fewer unknowns of
    assert any(note.startswith("In no test image: =absent") for note in notes)


def test_latex_prints_the_best_bold_and_stars_raised_with_their_footnote(planted: Path) -> None:
    text = (planted / "table.tex").read_text(encoding="utf-8")
    assert r"{}nearest+concat & 3 & \textbf{60.00 $\pm$ 0.60}" in text
    interval = r"\[\$-\$2\d\.\d\d, \$-\$1\d\.\d\d\]\$\^\{\*\}\$"
    assert re.search(rf"\{{\}}transposed-3\+none & 40\.00 \$\\pm\$ 0\.60 & \$-\$20\.00 {interval} & 1\.500", text)
    assert "\\footnotesize\n$^{*}$ 0 lies outside the interval; all 6 intervals" in text
    assert text.count(r"\begin{minipage}") == text.count(r"\end{minipage}") > 5


def test_csv_holds_every_number_of_the_evidence(planted: Path) -> None:
    with (planted / "table.csv").open(newline="", encoding="utf-8") as file:
        columns = next(csv.reader(file))
    parts = ["mean", "std", "estimate", "low", "high", "own_low", "own_high"]
    parts += ["p", "adjusted", "df", "chance", "star", "interval"]
    names = [f"miou_percent_difference_{part}" for part in parts]
    assert [column for column in columns if column.startswith("miou_percent_difference_")] == names
    found = rows(planted)
    assert not any(found[BASELINE][name] for name in names)
    row = {part: found["transposed-3+none"][name] for part, name in zip(parts, names, strict=True)}
    assert float(row["adjusted"]) < 0.05 and (row["star"], row["interval"]) == ("1", "seeds")
    assert float(row["estimate"]) == pytest.approx(-20) and float(row["mean"]) == pytest.approx(-20)
