"""What a report may be asked for beside the whole: some of the variants, a margin; and what the terminal shows."""

import csv
import json
from pathlib import Path

import pytest
from handmade import rows, write_experiment

from experiments.report import main
from experiments.reports.write import write_report
from experiments.shell.files import write_json

pytestmark = pytest.mark.usefixtures("one_figure")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_experiment(tmp_path / "ablate")
    return tmp_path / "ablate"


def call(monkeypatch: pytest.MonkeyPatch, *argv: object) -> None:
    monkeypatch.setattr("sys.argv", ["report", *map(str, argv)])
    main()


def test_a_subset_has_a_folder_of_its_own_and_says_that_it_is_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_report(folder)
    whole = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    capsys.readouterr()
    call(monkeypatch, folder, "--only", "nearest+concat", "nearest+none")
    out = folder / "only-nearest-concat-nearest-none"
    said = " ".join(capsys.readouterr().out.split())
    assert "A subset: 3 of 4 variants, chosen after the run." in said and str(out) in said.replace(" ", "")
    for name in ("report.html", "table.md"):
        assert "A subset: 3 of 4 variants, chosen after the run." in (out / name).read_text(encoding="utf-8")
    assert list(rows(out)) == ["transposed-3+concat", "nearest+concat", "nearest+none"]
    assert "transposed-3+none" not in (out / "table.md").read_text(encoding="utf-8").split("Made by")[0]
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == whole
    write_report(folder)  # the folder below is no cell of it
    assert (folder / "table.md").read_bytes() == whole["table.md"]


def test_what_a_subset_may_not_replace_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for argv, words in (
        (["--only", "nearest+concat", "--out", folder], "holds the report of all variants"),
        (["--only", "nearest+concat", "--record"], "leave out --only"),
        (["--only", "n" * 120], "too long for the name of a folder: name one with --out DIR"),
        (["--only", "nearest"], "did you mean nearest+"),
        (["--margin", "0"], "expected a number of percentage points above 0"),
        (["--margin", "inf"], "expected a number of percentage points above 0"),
    ):
        with pytest.raises(SystemExit, match="2"):
            call(monkeypatch, folder, *argv)
        assert words in capsys.readouterr().err
    assert not list(folder.glob("only*")) and not (folder / "report.html").exists()
    call(monkeypatch, folder, "--only", "nearest+concat", "--out", tmp_path / "out")
    assert (tmp_path / "out" / "report.html").is_file()


def test_variants_of_two_experiments_are_compared_on_one_page(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_experiment(tmp_path / "other")
    plan = json.loads((tmp_path / "other" / "plan.json").read_text(encoding="utf-8"))
    del plan["variants"]["nearest+none"]
    write_json(tmp_path / "other" / "plan.json", plan | {"experiment": "other", "data": "brain"})
    both = folder, tmp_path / "other"
    call(monkeypatch, *both, "--only", "nearest+concat", "--out", tmp_path / "out")
    found = rows_of(tmp_path / "out")
    assert [(row["experiment"], row["variant"]) for row in found] == [
        (name, variant)
        for name in ("ablate_up_sampling", "other")
        for variant in ("transposed-3+concat", "nearest+concat")
    ]
    # What one experiment alone has is compared within it, and each must have one of them.
    call(monkeypatch, *both, "--only", "nearest+none", "nearest+concat", "--out", tmp_path / "one")
    assert [row["variant"] for row in rows_of(tmp_path / "one")].count("nearest+none") == 1
    for name, words in (("nearest+none", "name one of nearest+concat"), ("nowhere", "must name variants")):
        with pytest.raises(SystemExit, match="2"):
            call(monkeypatch, *both, "--only", name, "--out", tmp_path / "none")
        assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "none" / "report.html").exists()


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "table.csv").open(newline="", encoding="utf-8") as file:
        return [*csv.DictReader(file)]


def test_a_margin_says_who_lies_within_it_and_that_it_came_afterwards(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(monkeypatch, folder, "--margin", "15")
    text = (folder / "table.md").read_text(encoding="utf-8")
    assert "Within ± 15 points of transposed-3+concat (a margin chosen after the training): nearest+concat." in text
    assert "within ± 15" in text and "It was chosen after the training." in text


def test_the_terminal_shows_the_answer_its_table_and_where_the_rest_is(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for cell in folder.glob("*/seed2"):
        (cell / "environment.json").write_text('{"commit": "4567def", "torch_threads": 1, "device": "1 x CPU"}')
    (folder / "nearest+none" / "seed2" / "result.json").unlink()
    write_report(folder)
    said = capsys.readouterr().out
    lines = " ".join(said.split())
    assert lines.startswith("On shapes, transposed-3+none scores 20.0 points ")
    order = ("This holds for other seeds", "Partial: 11 of 12", "different commit", "nearest+none, seed 2: started")
    places = [lines.index(words) for words in (*order, "Test mIoU on shapes", "report: ")]
    assert places == sorted(places)
    assert said.count("┏") == 1 and "GMAC" in said  # one table
