"""docs/lecture.md leads from each concept to a section that runs, to code, to a test and to an ablation that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/lecture.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TEXT.splitlines() if line.startswith("| ")][
    1:
]


def test_every_notebook_and_more_than_the_concepts_of_the_lecture_are_there() -> None:
    notebooks = {path.name for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert {re.findall(r"notebooks/([\w.]+)\)", row[1])[0] for row in ROWS} == notebooks
    assert len(ROWS) >= 40 and len({row[0] for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_concept_leads_somewhere(row: list[str]) -> None:
    _, place, code, test, ablation = row
    told = re.fullmatch(r"\[(\d\d)\]\(\.\./notebooks/(\1_\w+)\.ipynb\), (.+)", place)
    assert told is not None
    source = (ROOT / "notebooks" / f"{told[2]}.py").read_text(encoding="utf-8")
    parts = source.split(f"\n# ## {told[3]}\n")
    assert len(parts) == 2, f"{told[2]} has no section {told[3]!r}"
    section = re.split(r"\n# ## ", parts[1])[0]
    assert "assert " in section, "a section that claims something"
    named = re.fullmatch(r"\[([\w.]+)\]\(\.\./([\w/]+\.py)\)", code)
    assert named is not None and Path(named[2]).name == named[1] and (ROOT / named[2]).is_file()
    file, name = re.fullmatch(r"`(test_\w+\.py)::(test_\w+)`", test).groups()  # type: ignore[union-attr]
    (path,) = (ROOT / "tests").rglob(file)
    assert f"\ndef {name}(" in path.read_text(encoding="utf-8")
    if ablation:
        report = re.fullmatch(r"\[(\w+)\]\(\.\./experiments/results/(ablate_\1\.md)\)", ablation)
        assert report is not None and (ROOT / "experiments/results" / report[2]).is_file()
