"""The code that differed from its commit, which a report keeps and reproduce.sh makes again."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from handmade import section
from reproducing import NAME, experiment, git, run_script

from experiments.evidence.deviations import patch_name
from experiments.evidence.experiment import load_experiment
from experiments.reports.commands import Code, patches, uncommitted
from experiments.reports.formats import to_markdown
from experiments.reports.page import render
from experiments.reports.reproduce import reproduce_script
from experiments.shell.files import write_json

MINE = "python -m experiments.ablate_mine"
NEW = b"""diff --git a/experiments/ablate_mine.py b/experiments/ablate_mine.py
new file mode 100644
--- /dev/null
+++ b/experiments/ablate_mine.py
@@ -0,0 +1,2 @@
+x = 1  \r
+y = 2
\\ No newline at end of file
"""
CHANGED = b"""diff --git a/experiments/ablate_upsampling.py b/experiments/ablate_upsampling.py
--- a/experiments/ablate_upsampling.py
+++ b/experiments/ablate_upsampling.py
@@ -1 +1 @@
-x = {}
+x = 2
"""


def keep(cell: Path, patch: bytes, **others: Any) -> str:
    """Has a stored cell be one of code that its commit does not have; the name of its checkout, but for the commit."""
    sha256 = hashlib.sha256(patch).hexdigest()
    (cell / "code.patch").write_bytes(patch)
    path = cell / "environment.json"
    write_json(path, json.loads(path.read_text()) | {"patch": sha256, **others})
    return sha256[:12]


def write_script(folder: Path, commit: str) -> None:
    """reproduce.sh and the patches beside it, without the rest of a report, which takes seconds."""
    one = load_experiment(folder)
    for sha256, patch in patches([one]).items():
        (folder / patch_name(sha256)).write_bytes(patch)
    (folder / "reproduce.sh").write_text(reproduce_script([one], {NAME: "y"}, Code(commit)))


def test_each_code_that_trained_is_made_of_its_commit_and_its_patch(
    tmp_path: Path, repository: Path, stand_in: Path
) -> None:
    """Of the first seed with a study that was not committed, of the second after that; before anything is installed."""
    first, folder = git(repository, "rev-parse", "HEAD"), tmp_path / "x"
    (repository / "experiments" / "ablate_mine.py").write_text("x = 3\n")
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "--message", "second")
    second = git(repository, "rev-parse", "HEAD")
    experiment(folder, MINE, second)
    for cell in folder.glob("*/seed0"):
        short = keep(cell, NEW, commit=f"{first}-dirty")
    # As a person may have it, and the text would be another one.
    (folder / ".gitconfig").write_text(
        "[core]\nautocrlf = true\n[apply]\nwhitespace = fix\nignorewhitespace = change\n"
    )
    write_script(folder, second)
    done = run_script(folder, "again", REPOSITORY=str(repository), PYTHON=str(stand_in))
    assert done.returncode == 0, done.stderr
    assert "note:" not in done.stdout
    trees = [folder / "again" / f"code-{name}" for name in (f"{first}-{short}", second)]
    assert (trees[0] / "experiments" / "ablate_mine.py").read_bytes() == b"x = 1  \r\ny = 2"
    assert git(trees[0], "rev-parse", "HEAD") == first
    assert (trees[1] / "experiments" / "ablate_mine.py").read_text() == "x = 3\n"
    asked = [line.split("|") for line in (tmp_path / "log").read_text().splitlines()]
    assert [words[0] for words in asked if "experiments.ablate_mine" in words] == [str(tree) for tree in trees]
    again = run_script(folder, "again", REPOSITORY=str(repository), PYTHON=str(stand_in))
    assert again.returncode == 0, again.stderr  # it is applied once


ESCAPES = {
    "above": NEW.replace(b"experiments/ablate_mine.py", b"../canary"),
    "git": NEW.replace(b"experiments/ablate_mine.py", b".git/hooks/canary"),
    "link": b"""diff --git a/canary b/canary
new file mode 120000
--- /dev/null
+++ b/canary
@@ -0,0 +1 @@
+..
\\ No newline at end of file
"""
    + NEW.replace(b"experiments/ablate_mine.py", b"canary/canary.py"),
}
ABSOLUTE = NEW.replace(b"a/experiments/ablate_mine.py", b"/tmp/canary").replace(
    b"b/experiments/ablate_mine.py", b"/tmp/canary"
)
REFUSED: dict[str, tuple[bytes, str]] = {
    **{name: (patch, "does not apply to the commit") for name, patch in ESCAPES.items()},
    "of other code": (CHANGED.replace(b"{}", b"7"), "does not apply to the commit"),
    "absolute": (ABSOLUTE, "experiments/ablate_mine.py is neither in the commit"),  # which git takes for tmp/canary
    "without the study": (CHANGED.replace(b"{}", b"1"), "experiments/ablate_mine.py is neither in the commit"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_patch_that_does_not_make_the_code_is_refused_before_anything_is_installed(
    case: str, tmp_path: Path, repository: Path, stand_in: Path
) -> None:
    commit, folder, (patch, said) = git(repository, "rev-parse", "HEAD"), tmp_path / "x", REFUSED[case]
    experiment(folder, MINE, f"{commit}-dirty")
    for cell in folder.glob("*/seed*"):
        keep(cell, patch)
    write_script(folder, commit)
    done = run_script(folder, REPOSITORY=str(repository), PYTHON=str(stand_in))
    assert done.returncode == 2 and said in done.stderr.splitlines()[-1], done.stderr
    assert "venv" not in (tmp_path / "log").read_text()
    (tree,) = (folder / "reproduced").glob("code-*")
    assert not [path for path in tmp_path.rglob("canary*") if tree not in path.parents]
    assert not Path("/tmp/canary").exists()


def test_a_patch_that_is_gone_or_another_one_is_refused(tmp_path: Path, repository: Path, stand_in: Path) -> None:
    commit, folder = git(repository, "rev-parse", "HEAD"), tmp_path / "x"
    experiment(folder, MINE, f"{commit}-dirty")
    for cell in folder.glob("*/seed*"):
        short = keep(cell, NEW)
    write_script(folder, commit)
    beside = folder / f"code-{short}.patch"
    beside.write_bytes(NEW.replace(b"y = 2", b"y = 3"))
    changed = run_script(folder, REPOSITORY=str(repository), PYTHON=str(stand_in))
    assert changed.returncode == 2 and f"{beside} must have the SHA-256 {short}" in changed.stderr
    beside.unlink()
    gone = run_script(folder, REPOSITORY=str(repository), PYTHON=str(stand_in))
    assert gone.returncode == 2 and f"{beside} is not there: expected what the code differed in from" in gone.stderr
    assert "venv" not in (tmp_path / "log").read_text()


def test_code_of_which_nothing_was_kept_is_told_before_anything_is_installed(
    tmp_path: Path, repository: Path, stand_in: Path
) -> None:
    """As earlier versions stored it."""
    commit, folder = git(repository, "rev-parse", "HEAD"), tmp_path / "x"
    experiment(folder, MINE, f"{commit}-dirty")
    write_script(folder, commit)
    done = run_script(folder, REPOSITORY=str(repository), PYTHON=str(stand_in))
    assert done.returncode == 2 and not (tmp_path / "log").exists()
    assert "changes that were not committed and are not known" in done.stdout
    assert f"experiments/ablate_mine.py is neither in the commit {commit} nor in a code.patch" in done.stderr


def test_a_study_outside_the_project_is_refused_with_the_way_out(tmp_path: Path, repository: Path) -> None:
    script = reproduce_script([experiment(tmp_path, "python /home/me/my.py", "ab12")], {NAME: "x"}, Code("ab12"))
    (tmp_path / "reproduce.sh").write_text(script)
    done = run_script(tmp_path, REPOSITORY=str(repository))
    assert done.returncode == 2 and "move it to experiments/ablate_NAME.py" in done.stderr and "/home" not in script


def test_what_no_patch_could_carry_is_said(tmp_path: Path) -> None:
    experiment(tmp_path, MINE, "ab12-dirty")
    for cell in tmp_path.glob("*/seed*"):
        short = keep(cell, NEW, patch_lacks=["experiments/fast.so"])
    script = reproduce_script([load_experiment(tmp_path)], {NAME: "x"}, Code("ab12"))
    assert f"note: code-{short}.patch lacks experiments/fast.so, which no patch can carry" in script


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read (no such file)"),
        (NEW + b"\n", "must have the SHA-256 that "),
        (b"#!/bin/sh\n", "must be a patch as text, got b'#!/bin/sh"),
        (NEW + b"\0", "must be a patch as text"),
        (b"diff --git " + b"x" * 2**22, "expected up to 4,194,304 bytes"),
    ],
)
def test_a_damaged_patch_is_refused_in_a_line(content: bytes | None, said: str, tmp_path: Path) -> None:
    """Way out, what was expected and what came."""
    experiment(tmp_path, MINE, "ab12-dirty")
    cell = tmp_path / "nearest+none" / "seed1"
    keep(cell, NEW if content == NEW + b"\n" else content or NEW)
    (cell / "code.patch").unlink()
    if content is not None:
        (cell / "code.patch").write_bytes(content)
    with pytest.raises(ValueError, match="put it back, or delete") as refused:
        patches([load_experiment(tmp_path)])
    assert str(cell / "code.patch") in str(refused.value) and said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("patch", "said"),
    [
        (NEW, "Its study file was not committed; it is kept in {}."),
        (
            CHANGED.replace(b"ablate_upsampling", b"ablate_mine"),
            "had changes that were not committed; they are kept in {}",
        ),
        (CHANGED, ""),
        (NEW.replace(b"ablate_mine", b"ablate_mine2"), ""),
    ],
)
def test_a_report_says_that_its_study_file_was_not_committed(patch: bytes, said: str, tmp_path: Path) -> None:
    experiment(tmp_path, MINE, "ab12-dirty")
    cells = sorted(tmp_path.glob("*/seed*"))
    for cell in cells:
        keep(cell, patch, command=MINE)
    name = patch_name(hashlib.sha256(patch).hexdigest())
    one = section(tmp_path)
    assert cells and said.format(name) in uncommitted(one.experiment)
    for text in (to_markdown([one]), render([one])):
        assert ("Its study file" in text) == bool(said)
        assert said.format(name) in text
