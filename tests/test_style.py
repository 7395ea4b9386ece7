"""What ruff does not measure of the text: the length of files and of the sentences in docstrings."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("datamodules", "experiments", "lightning_modules")
MOST_LINES, MOST_WORDS = 400, 35
# The kernels, each one translation unit that is compiled as it stands.
LONG = {
    "lightning_modules/refinement/native/conv_crf.cpp",
    "lightning_modules/refinement/native/dense_crf.cpp",
}


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".cpp"))


def sentences(docstring: str) -> Iterator[str]:
    """Of its paragraphs and the items of its lists; lines of code and of commands are none."""
    for block in re.split(r"\n\s*\n|\n\s*(?:[-*]|\w+:) ", docstring):
        if not re.match(r"\s*(?:python -m|from |    )", block):
            yield from re.split(r"(?<=[.!?:])\s+(?=[A-Z`\"\[(0-9])", " ".join(block.split()))


def test_no_file_is_longer_than_can_be_read_at_once() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sources(*PACKAGES, "tests")}
    long = {path.relative_to(ROOT).as_posix(): count for path, count in lines.items() if count > MOST_LINES}
    assert long.keys() <= LONG, long


@pytest.mark.parametrize(
    "path", [pytest.param(p, id=str(p.relative_to(ROOT))) for p in sources(*PACKAGES) if p.suffix == ".py"]
)
def test_no_sentence_of_a_docstring_is_too_long(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (docstring := ast.get_docstring(node)):
            for sentence in sentences(docstring):
                assert len(sentence.split()) <= MOST_WORDS, f"{path}, line {getattr(node, 'lineno', 1)}: {sentence}"


def test_nothing_is_imported_from_a_conftest() -> None:
    """Several have that name, and which one is found depends on the tests that are chosen."""
    pattern = re.compile(r"^\s*(from|import) conftest\b", re.MULTILINE)
    assert [str(path) for path in sources("tests") if pattern.search(path.read_text(encoding="utf-8"))] == []


def test_sentences_are_told_apart() -> None:
    text = "A sentence. Another: `one` more. They are\n- an item\n- another\n\n    python -m code. None.\n\n"
    text += "Args:\n    x: of it"
    told = ["A sentence.", "Another:", "`one` more.", "They are", "an item", "another", "Args:", "of it"]
    assert list(sentences(text)) == told
