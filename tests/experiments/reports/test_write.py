"""The files of a report on an experiment made by hand: numbers, notes, warnings, and what is refused."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from handmade import CLASSES, MIOU, rows, save_npz, write_experiment, write_tables

from experiments.evidence.experiment import load_experiment
from experiments.report import main
from experiments.reports.write import write_report
from experiments.shell.files import write_atomic, write_json

FORMULA = "=cmd|'/C calc'!A0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment with its report; tests only read it."""
    folder = tmp_path_factory.mktemp("outputs") / "ablate_up_sampling"
    write_experiment(folder)
    assert write_report(folder) == folder / "report.html"
    return folder


def test_every_file_is_there(folder: Path) -> None:
    names = ("scores", "curves", "samples", "logits")
    figures = [f"figures/{name}" for one in names for name in (f"{one}.png", f"print/{one}-column.pdf")]
    for name in ("table.md", "table.csv", "table.tex", "report.html", "reproduce.sh", "environment.json", *figures):
        assert (folder / name).stat().st_size > 500, name
    assert not list(folder.rglob("*.tmp"))


def test_csv_holds_the_numbers_worked_out_by_hand(folder: Path) -> None:
    found = rows(folder)
    assert list(found) == list(MIOU)
    # 80, 82, 84: deviation 2.
    baseline = found["transposed-3+concat"]
    assert float(baseline["miou_percent_mean"]) == pytest.approx(82)
    assert float(baseline["miou_percent_std"]) == pytest.approx(2)
    assert baseline["miou_percent_difference_mean"] == baseline["miou_percent_difference_low"] == ""
    # 86, 86, 92 less 80, 82, 84 are 6, 4, 8.
    nearest = found["nearest+concat"]
    assert float(nearest["miou_percent_mean"]) == pytest.approx(88)
    assert float(nearest["miou_percent_difference_mean"]) == pytest.approx(6)
    assert float(nearest["miou_percent_difference_std"]) == pytest.approx(2)
    # Residuals of variant and seed: -0.5 0.5 0, -0.5 -1.5 2, -0.5 0.5 0, 1.5 0.5 -2, squares 14, over 3 x 2 degrees of
    # freedom. By itself: 2.446912 * sqrt(14 / 6 * 2 / 3) = 3.0518; together with five other rows it is wider.
    assert float(nearest["miou_percent_difference_own_low"]) == pytest.approx(6 - 3.0518, abs=1e-4)
    low, high = (float(nearest[f"miou_percent_difference_{end}"]) for end in ("low", "high"))
    assert low + high == pytest.approx(12) and 0 < low < 6 - 3.0518 and nearest["miou_percent_difference_star"] == "1"
    assert nearest["miou_percent_difference_interval"] == "seeds"
    assert float(nearest["iou/background_percent_mean"]) == pytest.approx(88)
    # Images score (0.5 + 0.7) / 2 = 60 % and 86, 86, 92 %; energy 200 ppm times 1, 2, 3.
    assert float(nearest["boundary_f1_percent_mean"]) == pytest.approx((60 + 88) / 2)
    assert float(nearest["checkerboard_ppm_mean"]) == pytest.approx(400)
    assert (nearest["seeds"], nearest["parameters"], nearest["step_ratio"]) == ("3", "1250000", "1.5")


def test_a_class_absent_everywhere_is_undefined_and_not_in_the_mean(folder: Path) -> None:
    assert rows(folder)["nearest+concat"][f"iou/{CLASSES[2]}_percent_mean"] == ""
    assert "absent from both truth and prediction is left out" in (folder / "table.md").read_text(encoding="utf-8")


def test_markdown_shows_the_scores_and_what_they_are(folder: Path) -> None:
    text = (folder / "table.md").read_text(encoding="utf-8")
    assert text.startswith("**On shapes, skips none scores 23.0 points of mIoU [")
    assert "| transposed-3+concat | 82.00 ± 2.00 | baseline | 1.500 |" in text
    assert re.search(r"\| nearest\+concat \| 88\.00 ± 3\.46 \| \+6\.00 \[1\.\d\d, 10\.\d\d\]\\\* \| 1\.500 \|", text)
    assert "| nearest+concat | 3 | **88.00 ± 3.46** | **74.00 ± 1.73** |" in text
    assert "| upsample: transposed-3 to nearest | skips: none | +0.00" not in text  # zero has no sign
    assert "| skips: concat to none | upsample: transposed-3 | -20.00 [-23.05, -16.95] |" in text
    for words in (
        "over seeds",
        "last epoch, not of the best",
        "on these images only (their groups were not stored)",
        "CPU scale.",
        "Made of discs.",
    ):
        assert words in text
    answer, figure, table = (text.index(words) for words in ("On shapes", "figures/seeds.png", "| variant | mIoU"))
    assert answer < figure < table < text.index("Transposed or resize?") < text.index("## ")
    assert "<script>" not in text


def test_the_page_holds_the_tables_and_escapes_names(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text and "<script>alert(1)" not in text
    for words in (
        "Transposed or resize?",
        "python -m experiments.x",
        "ab12",
        "12 of 12",
        "averaged over the other factor",
        "<strong>88.00 ± 3.46</strong>",
    ):
        assert words in text


def test_latex_escapes_names_and_keeps_its_own_commands(folder: Path) -> None:
    text = (folder / "table.tex").read_text(encoding="utf-8")
    assert r"\label{tab:ablate-up-sampling-answer}" in text
    assert r"\textless{}script\textgreater{}alert(1)" in text and r"=absent\_class" in text
    assert r"transposed-3+none & 62.00 $\pm$ 2.00 & $-$20.00 [$-$2" in text
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == text.count(r"\begin{tabular}") >= 11
    assert text.count(r"\caption{") == 11 and "resizebox" not in text
    body = re.sub(r"\\[%_#&$]", "", re.sub(r"(?m)^%.*$|\{%$", "", text))
    assert "%" not in body and "_" not in body
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")


def test_rebuilding_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / folder.name)
    write_report(copy)
    for path in ("table.md", "table.csv", "table.tex", "report.html", "reproduce.sh", "figures/print/scores-page.pdf"):
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
    assert text.startswith("**On shapes, 1 seed cannot tell what other seeds would give")
    assert "| nearest+concat | 86.00 ± - | +6.00 [-] | 1.500 |" in text
    assert "No star and no interval: needs 3 seeds, got 1" in text
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
    assert "| nearest+concat | 89.00 ± 4.24 (2 of 3) |" in text  # 86 and 92
    assert "- nearest+concat, seed 1: started, not finished; nearest+concat/seed1/log.txt ends: RuntimeError" in text
    assert "| transposed-3+none | - | - | 1.500 |" in text
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
    assert (
        stray == "Finished cells that the plan does not name are left out: nearest+none/seed7. "
        "Start the experiment with their seeds, too, to take them in."
    )
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
