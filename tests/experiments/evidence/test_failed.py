"""Cells that learnt nothing stand above the answer of every form of the report."""

import html
from pathlib import Path

import numpy as np
import pytest
from handmade import save_npz, section, write_experiment

from experiments.evidence.experiment import load_experiment
from experiments.evidence.failed import WAYS_OUT, failed, failed_line, without_failed
from experiments.reports.formats import to_latex, to_markdown
from experiments.reports.listing import list_experiments
from experiments.reports.page import render
from experiments.reports.record import write_record
from experiments.reports.tables.evidence import spread_table
from experiments.reports.write import warnings, write_report
from lightning_modules.components.scores.reductions import at_chance

NOTHING = "their training failed, and what follows measures that."


def fail(cell: Path, *, constant: bool = False) -> None:
    """Its network gives every class to every class alike, or the class 0 alone."""
    with np.load(cell / "per_image.npz") as stored:
        arrays = dict(stored)
    true = arrays["confusion"].sum(2)
    guessed = np.zeros_like(arrays["confusion"])
    guessed[..., 0] = true if constant else true - true // 2
    guessed[..., 1] = 0 if constant else true // 2
    save_npz(cell / "per_image.npz", **{**arrays, "confusion": guessed})


def plain(text: str) -> str:
    return text.replace("\\", "")


@pytest.mark.parametrize(
    ("confusion", "chance"),
    [
        ([[50, 50], [50, 50]], True),
        ([[51, 49], [48, 52]], True),
        ([[53, 47], [47, 53]], False),
        ([[100, 0], [100, 0]], True),  # one class everywhere
        ([[100, 0], [90, 10]], False),
        ([[40, 60, 0], [60, 40, 0], [0, 0, 0]], True),  # 1/2 of the classes that there are, not 1/3
        ([[0, 9, 0], [0, 9, 0], [0, 9, 0]], True),
        ([[100, 0], [0, 0]], False),  # of one class nothing else can be said
        ([[10, 90], [0, 0]], False),
        ([[0, 0], [0, 0]], False),
    ],
)
def test_chance_is_the_class_accuracy_of_guessing(confusion: list[list[int]], chance: bool) -> None:
    assert at_chance(np.array(confusion)) == chance


def test_every_form_says_it_above_the_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_experiment(tmp_path)
    for seed in (0, 1):
        fail(tmp_path / f"nearest+none/seed{seed}")
    experiment = load_experiment(tmp_path)
    assert failed(experiment) == {"nearest+none": 2}
    line = f"2 of 3 cells of nearest+none are no better than chance: {NOTHING}"
    assert failed_line(experiment) == line and WAYS_OUT in warnings(experiment)
    write_report(tmp_path)
    one = section(tmp_path)
    assert " ".join(capsys.readouterr().out.split()).startswith(f"{line} {one.answer[0]}")
    assert plain(to_markdown([one]).split("\n\n")[0]) == f"**{line} {one.answer[0]}**"
    page = html.unescape(render([one]))
    assert page.index(line) < page.index(f">{one.answer[0]}<")
    assert line in plain(to_latex([one]))
    assert list_experiments(tmp_path)[0].answer.startswith(line)


def test_a_record_says_it_above_an_answer_of_ones_own(tmp_path: Path) -> None:
    write_experiment(tmp_path)
    fail(tmp_path / "nearest+none/seed0")
    text = plain(write_record([section(tmp_path)], None, tmp_path, answer="My own answer.").read_text("utf-8"))
    line = "1 of 3 cells of nearest+none is no better than chance: its training failed, and what follows measures that."
    assert text.index(line) < text.index("My own answer.")


def test_what_did_not_fail_says_nothing(tmp_path: Path) -> None:
    write_experiment(tmp_path)
    experiment = load_experiment(tmp_path)
    assert (failed(experiment), failed_line(experiment), without_failed(experiment)) == ({}, "", "")
    assert not any("chance" in line for line in warnings(experiment))
    assert section(tmp_path).headline == section(tmp_path).answer[0]


def test_several_variants_and_one_class_everywhere_are_named(tmp_path: Path) -> None:
    write_experiment(tmp_path)
    fail(tmp_path / "nearest+none/seed0", constant=True)
    fail(tmp_path / "transposed-3+none/seed2")
    said = "1 of 3 cells of transposed-3+none and 1 of 3 cells of nearest+none are no better than chance"
    assert failed_line(load_experiment(tmp_path)) == f"{said} (1 predicts one class everywhere): {NOTHING}"


def test_unequal_spread_names_the_variants_whose_cells_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.reports.write.SPREAD_P", 1.1)
    monkeypatch.setattr("experiments.reports.tables.evidence.SPREAD_P", 1.1)
    write_experiment(tmp_path)
    fail(tmp_path / "nearest+none/seed1")
    way_out = (
        "Failed cells of nearest+none widen the intervals of all variants: python -m experiments.report DIR --only "
        "nearest+concat transposed-3+none leaves them out."
    )
    experiment = load_experiment(tmp_path)
    (said,) = (line for line in warnings(experiment) if line.startswith("Seeds lie further apart"))
    assert said.endswith(way_out)
    assert way_out in spread_table(experiment).notes
    fail(tmp_path / "transposed-3+concat/seed1")  # of the baseline, which stays
    assert without_failed(load_experiment(tmp_path)).endswith("widen the intervals of all variants.")
