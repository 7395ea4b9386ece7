"""A report writes into its own folder alone: a link that came with a stranger's folder is refused or replaced."""

import json
import os
import shutil
from pathlib import Path

import pytest
from handmade import section, write_experiment

from experiments.evidence.experiment import load_experiment
from experiments.reports import figures
from experiments.reports.figures import scores, write_figures
from experiments.reports.page import Section
from experiments.reports.record import write_record
from experiments.reports.write import Report, collect, write
from experiments.shell.ending import CannotWriteError
from experiments.shell.files import locked

FORMS = ("table.md", "table.csv", "table.tex", "cells.csv", "report.html", "reproduce.sh", "environment.json")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """What must stay as it is: a folder with files of the names that a report writes."""
    own = tmp_path / "own"
    (own / "figures").mkdir(parents=True)
    for name in (*FORMS, "figures/scores.png", "figures/trimap.png", "x_scores.png", "scores.png", "trimap.png"):
        (own / name).write_text("mine")
    return own


@pytest.fixture(autouse=True)
def _one_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """All twelve take ten seconds; that of trimaps cannot be drawn of these cells, so it would be deleted."""
    kept = {name: figures.FIGURES[name] for name in ("scores", "trimap")}
    monkeypatch.setattr(figures, "FIGURES", kept)
    assert kept["scores"][0] is scores.scores


def unchanged(own: Path) -> bool:
    return len([*own.rglob("*")]) == 13 and all(path.read_text() == "mine" for path in own.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", ["figures", "report"])
def test_a_report_does_not_write_through_a_folder_that_is_a_link(tmp_path: Path, own: Path, name: str) -> None:
    for one in ("one", "two"):
        write_experiment(tmp_path / one, seeds=1)
    if name == "figures":
        (tmp_path / "one" / "figures").symlink_to(own / "figures")
        with pytest.raises(CannotWriteError, match=r"one/figures, which is a link to .*own/figures.*remove the link"):
            collect([tmp_path / "one"], tmp_path / "one")
    else:  # of several experiments, a folder each
        plan = tmp_path / "two" / "plan.json"
        plan.write_text(json.dumps(json.loads(plan.read_text()) | {"experiment": "other"}))
        (tmp_path / "report").mkdir()
        (tmp_path / "report" / "other").symlink_to(own)
        with pytest.raises(CannotWriteError, match=r"report/other, which is a link to .*own"):
            collect([tmp_path / "one", tmp_path / "two"], tmp_path / "report")
    assert unchanged(own)


def test_files_that_are_links_are_replaced(tmp_path: Path, own: Path) -> None:
    folder = tmp_path / "one"
    write_experiment(folder, seeds=1)
    (folder / "figures").mkdir()
    for name in (*FORMS, "figures/scores.png", "figures/trimap.png"):
        (folder / name).symlink_to(own / name)
    write(collect([folder], folder))
    assert unchanged(own)
    assert not any((folder / name).is_symlink() for name in (*FORMS, "figures/scores.png", "figures/trimap.png"))
    assert (folder / "figures" / "scores.png").read_bytes()[:4] == b"\x89PNG"


def test_the_folder_that_a_person_names_may_be_a_link(tmp_path: Path) -> None:
    write_experiment(tmp_path / "elsewhere", seeds=1)
    (tmp_path / "outputs").symlink_to(tmp_path / "elsewhere")
    write(collect([tmp_path / "outputs"], tmp_path / "outputs"))
    assert (tmp_path / "elsewhere" / "figures" / "scores.png").is_file()
    shutil.rmtree(tmp_path / "elsewhere" / "figures")
    write_figures(load_experiment(tmp_path / "outputs"), tmp_path / "outputs")
    assert (tmp_path / "elsewhere" / "figures" / "scores.png").is_file()


def test_a_record_does_not_write_through_a_link(tmp_path: Path, own: Path) -> None:
    write_experiment(tmp_path / "one", seeds=1)
    found = section(tmp_path / "one")
    assert isinstance(found, Section) and Report
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "figures").symlink_to(own / "figures")
    with pytest.raises(CannotWriteError, match=r"results/figures, which is a link to "):
        write_record([found], None, tmp_path / "results")
    assert unchanged(own)


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="this system opens no file so that links are refused")
def test_a_lock_that_is_a_link_is_refused_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    """Of a stranger's folder: taking a lock empties its file."""
    mine = tmp_path / "mine.txt"
    mine.write_text("precious")
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / ".lock").symlink_to(mine)
    with pytest.raises((CannotWriteError, OSError), match="theirs"), locked(folder):
        pass
    assert mine.read_text() == "precious"
