"""Help that is kept is the help that would be printed, and is not printed once it could be another."""

import json
import sys
from pathlib import Path

import pytest
from stored_helps import help_of, made

from experiments.shell import difference, helps


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A process that `python -m experiments.train --help` has started, with code that differs from its commit."""
    monkeypatch.setattr(sys, "argv", ["-m", "--help"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "experiments.train", "--help"])
    monkeypatch.setattr(difference, "git_commit", lambda: "ab12-dirty")
    monkeypatch.setattr(helps, "_keep", None)
    return monkeypatch


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit, match="0"):
        helps.answer()
    return capsys.readouterr().out


def test_what_is_committed_is_what_is_printed() -> None:
    if json.loads(helps.STORED.read_text(encoding="utf-8"))["versions"] != helps.versions():
        pytest.skip("helps.json is of other versions")
    assert helps.STORED.read_text(encoding="utf-8") == made(), "a flag has changed: call `make helps`"


@pytest.mark.parametrize("columns", ["60", "97", "200"])
@pytest.mark.parametrize("words", [[], ["--model", "fcn"], ["--data", "camvid"]], ids=str)
def test_the_help_of_the_commit_fits_any_terminal(
    words: list[str], columns: str, asked: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked.setenv("COLUMNS", columns)
    asked.setattr(difference, "git_commit", lambda: "ab12")
    asked.setattr(helps, "versions", lambda: json.loads(helps.STORED.read_text(encoding="utf-8"))["versions"])
    asked.setattr(sys, "argv", ["-m", *words, "-h"])
    asked.setattr(sys, "orig_argv", ["python", "-mexperiments.train", *words, "-h"])
    assert printed(capsys) == help_of("train", *words)[1]


def test_other_code_or_versions_have_help_of_their_own(asked: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked.setenv("SEGLAB_CACHE", str(tmp_path))
    for commit, versions in (("ab12-dirty", helps.versions()), ("unknown", helps.versions()), ("ab12", {})):
        asked.setattr(difference, "git_commit", lambda commit=commit: commit)
        asked.setattr(helps, "versions", lambda versions=versions: versions)
        helps.answer()


def test_help_is_printed_from_the_cache_until_the_code_changes(
    asked: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked.setenv("SEGLAB_CACHE", str(tmp_path / "cache"))
    helps.answer()
    helps.keep([["whole", "other"]], "what was printed")  # not its parts
    helps.answer()
    helps.keep([["whole", "usage: x\n"]], "usage: x\n")
    assert printed(capsys) == "usage: x\n"
    asked.setenv("COLUMNS", "61")
    helps.answer()
    asked.delenv("COLUMNS")
    asked.setattr(helps, "_code", lambda: "of other code")
    helps.answer()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"code": 1, "parts": 3}', "null"])
def test_a_damaged_cache_is_no_error(content: str, asked: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked.setenv("SEGLAB_CACHE", str(tmp_path))
    asked.setattr(helps, "_code", lambda: 1)
    helps.answer()
    helps.keep([["whole", "usage: x\n"]], "usage: x\n")
    (kept,) = (tmp_path / "help").iterdir()
    kept.write_text(content)
    helps.answer()


def test_a_cache_that_cannot_be_written_is_no_error(asked: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    asked.setenv("SEGLAB_CACHE", str(tmp_path / "file"))
    helps.answer()
    helps.keep([["whole", "usage: x\n"]], "usage: x\n")
    helps.answer()


def test_a_call_with_a_file_or_without_help_is_left_to_the_command(asked: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked.setattr(difference, "git_commit", lambda: "ab12")
    (tmp_path / "x.ckpt").touch()
    for words in ([str(tmp_path / "x.ckpt"), "--help"], ["--model", "fcn"], ["--model", "--help", "fcn"]):
        asked.setattr(sys, "argv", ["-m", *words])
        asked.setattr(sys, "orig_argv", ["python", "-m", "experiments.train", *words])
        helps.answer()
