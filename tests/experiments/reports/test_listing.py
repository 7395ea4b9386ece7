"""`report --list`: every experiment below a folder with its question and answer, and nothing written."""

import os
import re
from pathlib import Path

import pytest
from handmade import write_experiment, write_tables

from experiments.report import main
from experiments.reports.listing import list_experiments
from experiments.shell.files import write_json


def state(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


def dated(path: Path, seconds: float) -> None:
    os.utime(path, (seconds, seconds))


def test_the_newest_is_first_with_its_answer_or_why_there_is_none(tmp_path: Path) -> None:
    for name in ("reported", "running", "of an earlier version"):
        write_experiment(tmp_path / name)
        dated(tmp_path / name / "plan.json", 1e9)
        for result in (tmp_path / name).glob("*/*/result.json"):
            dated(result, 1e9)
    write_tables(tmp_path / "reported")
    dated(tmp_path / "reported" / "table.md", 3e9)
    write_json(tmp_path / "running" / "nearest+none" / "seed2" / "result.json", {"status": "failed"})
    (tmp_path / "running" / "nearest+none" / "seed1" / "result.json").unlink()
    (tmp_path / "of an earlier version" / "table.md").write_text("# ablate\n\nTransposed or resize?\n")
    dated(tmp_path / "of an earlier version" / "table.md", 2e9)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "plan.json").write_bytes(b"{\xff\n")
    dated(tmp_path / "damaged" / "plan.json", 0.5e9)
    before = state(tmp_path)
    found = {entry.folder.name: entry for entry in list_experiments(tmp_path)}
    assert list(found) == ["reported", "of an earlier version", "running", "damaged"]
    sentence = (tmp_path / "reported" / "table.md").read_text().split("**")[1]
    assert found["reported"].answer == sentence.replace("\\", "") and "skips none scores" in sentence
    assert found["reported"].question == "Transposed or resize?"
    assert found["running"].answer == "not reported yet: 10 of 12 cells"
    assert found["of an earlier version"].answer == "reported by an earlier version: 12 of 12 cells"
    assert re.fullmatch(r"cannot be read: .*plan\.json.*", found["damaged"].answer)
    assert state(tmp_path) == before


def test_a_report_that_is_older_than_its_cells_says_so(tmp_path: Path) -> None:
    write_experiment(tmp_path)
    write_tables(tmp_path)
    for number, result in enumerate(tmp_path.glob("*/*/result.json")):
        dated(result, 1e9 if number < 10 else 4e9)
    (entry,) = list_experiments(tmp_path)
    assert entry.answer.endswith("(2 cells are newer than this report: write it again)")


def test_it_is_a_command_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_experiment(tmp_path / "outputs" / "below" / "one")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["report", "--list"])
    main()
    said = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d  outputs/below/one", said[0].replace("\\", "/"))
    assert said[1:] == ["  Transposed or resize?", "  not reported yet: 12 of 12 cells"]
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr("sys.argv", ["report", "--list", "empty"])
    main()
    assert capsys.readouterr().out == "no experiment in empty or below it\n"
    for argv, words in (
        (["--list", "nowhere"], "nowhere is no folder: expected one with experiments in it"),
        (["--list", "empty", "--margin", "1", "--out", "x"], "--list DIR stands alone: leave out --margin --out"),
        (["outputs", "--list"], "--list DIR stands alone: leave out outputs"),
        ([], "expected the folder of an experiment"),
    ):
        monkeypatch.setattr("sys.argv", ["report", *argv])
        with pytest.raises(SystemExit, match="2"):
            main()
        assert words in capsys.readouterr().err
