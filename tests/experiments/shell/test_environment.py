"""What environment.json says of the code: its own commit and versions, whatever surrounds it."""

import json
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.shell import environment
from experiments.shell.environment import CODE, package_version

OWN = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "protocol.file.allow=always", "-c", "init.defaultBranch=main"]


@pytest.fixture(autouse=True)
def _nobody_s_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "torch.py").touch()  # takes seconds to import


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *OWN, "-C", folder, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def unpack(folder: Path) -> Path:
    """The project as an archive of its code would leave it."""
    for package in CODE:
        (folder / package / "inner").mkdir(parents=True)
        (folder / package / "__init__.py").touch()
        (folder / package / "inner" / "code.py").write_text("x = 1\n")
    (folder / "experiments" / "shell").mkdir()
    (folder / "experiments" / "shell" / "__init__.py").touch()
    shutil.copy(environment.__file__, folder / "experiments" / "shell")
    (folder / "README.md").write_text("text\n")
    (folder / ".gitignore").write_text("__pycache__/\nignored.py\n")
    return folder


def commit(folder: Path) -> str:
    if not (folder / ".git").exists():
        git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "x")
    return git(folder, "rev-parse", "HEAD")


def said(folder: Path, *others: Path, **variables: str) -> str:
    """What code in `folder` says of its commit, in a process that starts there."""
    script = "import datamodules, lightning_modules; from experiments.shell.environment import *; print(git_commit())"
    path = os.pathsep.join(map(os.fspath, (*others, folder, folder.parent / "modules", folder.parents[1] / "modules")))
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path, **variables},
        cwd=folder.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.stderr
    return done.stdout.strip()


def test_the_commit_is_that_of_the_code(tmp_path: Path) -> None:
    own = commit(unpack(tmp_path / "project"))
    assert said(tmp_path / "project") == own
    (tmp_path / "link").symlink_to("project")
    assert said(tmp_path / "link") == own
    git(tmp_path / "project", "worktree", "add", "--quiet", "--detach", str(tmp_path / "tree"))
    assert said(tmp_path / "tree") == own


def test_a_submodule_has_a_commit_of_its_own(tmp_path: Path) -> None:
    own = commit(unpack(tmp_path / "project"))
    (tmp_path / "outer").mkdir()
    commit(tmp_path / "outer")
    git(tmp_path / "outer", "submodule", "--quiet", "add", str(tmp_path / "project"), "inner")
    assert said(tmp_path / "outer" / "inner") == own


@pytest.mark.parametrize("tracked", [False, True])
def test_an_archive_inside_another_repository_has_no_commit(tracked: bool, tmp_path: Path) -> None:
    inner = unpack(tmp_path / "outer" / "inner")
    if not tracked:
        (tmp_path / "outer" / ".gitignore").write_text("inner\n")
    commit(tmp_path / "outer")
    assert said(inner) == "unknown"
    assert said(inner, GIT_DIR=str(tmp_path / "outer" / ".git"), GIT_WORK_TREE=str(inner)) == "unknown"


def touch(name: str, text: str = "x = 2\n") -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def hide(folder: Path) -> None:
    git(folder, "update-index", "--assume-unchanged", "datamodules/inner/code.py")
    touch("datamodules/inner/code.py")(folder)


CHANGES: dict[str, tuple[Callable[[Path], object], bool]] = {
    "a file of code": (touch("datamodules/inner/code.py"), True),
    "one that is marked as unchanged": (hide, True),
    "one that is staged": (lambda folder: (touch("datamodules/inner/code.py")(folder), git(folder, "add", ".")), True),
    "one that is gone": (lambda folder: (folder / "lightning_modules" / "inner" / "code.py").unlink(), True),
    "a new module": (touch("experiments/new.py"), True),
    "an ignored module": (touch("experiments/ignored.py"), True),
    "a module that hides an installed one": (touch("numpy.py"), True),
    "the lines of Windows": (
        lambda folder: (folder / "datamodules" / "inner" / "code.py").write_bytes(b"x = 1\r\n"),
        False,
    ),
    "a text": (touch("README.md"), False),
    "a record of results": (touch("experiments/new.md"), False),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_code_that_the_commit_does_not_have_is_dirty(change: str, tmp_path: Path) -> None:
    own, (act, is_dirty) = commit(unpack(tmp_path / "project")), CHANGES[change]
    act(tmp_path / "project")
    assert said(tmp_path / "project") == own + "-dirty" * is_dirty


def test_a_package_from_another_folder_is_dirty(tmp_path: Path) -> None:
    own = commit(unpack(tmp_path / "project"))
    (tmp_path / "other" / "datamodules").mkdir(parents=True)
    (tmp_path / "other" / "datamodules" / "__init__.py").touch()
    assert said(tmp_path / "project", tmp_path / "other") == f"{own}-dirty"


def test_no_variable_of_git_is_obeyed(tmp_path: Path) -> None:
    own = commit(unpack(tmp_path / "project"))
    (tmp_path / "other").mkdir()
    commit(tmp_path / "other")
    variables = {
        "GIT_DIR": str(tmp_path / "other" / ".git"),
        "GIT_WORK_TREE": str(tmp_path / "other"),
        "GIT_INDEX_FILE": str(tmp_path / "other" / ".git" / "index"),
        "GIT_OBJECT_DIRECTORY": str(tmp_path / "other" / ".git" / "objects"),
        "GIT_COMMON_DIR": str(tmp_path / "other" / ".git"),
        "GIT_NAMESPACE": "x",
        "GIT_CEILING_DIRECTORIES": str(tmp_path),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "core.worktree",
        "GIT_CONFIG_VALUE_0": str(tmp_path / "other"),
        "GIT_CONFIG_PARAMETERS": "'broken",
        "GIT_CONFIG_GLOBAL": str(tmp_path / "other" / "missing"),
        "GIT_TRACE": str(tmp_path / "trace"),
        "GIT_EXEC_PATH": str(tmp_path),
    }
    assert said(tmp_path / "project", **variables) == own
    assert not (tmp_path / "trace").exists()


def test_what_a_repository_would_have_git_run_is_not_run(tmp_path: Path) -> None:
    folder = unpack(tmp_path / "project")
    own = commit(folder)
    ran = tmp_path / "ran"
    program = f"touch {ran}; cat"
    hook = tmp_path / "hooks" / "post-index-change"
    hook.parent.mkdir()
    hook.write_text(f"#!/bin/sh\n{program}\n")
    hook.chmod(0o755)
    for key, value in (
        ("core.fsmonitor", program),
        ("core.hooksPath", str(hook.parent)),
        ("filter.f.clean", program),
        ("filter.f.process", program),
        ("diff.external", program),
        ("core.sshCommand", program),
        ("core.pager", program),
        ("alias.ls-tree", f"!{program}"),
    ):
        git(folder, "config", key, value)
    (folder / ".git" / "info" / "attributes").write_text("* filter=f diff=f\n")
    os.utime(folder / "datamodules" / "inner" / "code.py", (1, 1))  # so that git status would look into it
    assert said(folder) == own
    assert not ran.exists()
    subprocess.run(["git", "-C", folder, "status"], check=False, capture_output=True)
    assert ran.exists()  # so the trap works


def test_a_repository_whose_files_lie_elsewhere_is_not_that_of_the_code(tmp_path: Path) -> None:
    folder = unpack(tmp_path / "project")
    commit(folder)
    (tmp_path / "other").mkdir()
    git(folder, "config", "core.worktree", str(tmp_path / "other"))
    assert said(folder) == "unknown"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="gives files away, which only root can")
def test_the_owner_of_the_files_does_not_matter(tmp_path: Path) -> None:
    folder = unpack(tmp_path / "project")
    own = commit(folder)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, 65534, 65534)
    refused = subprocess.run(["git", "-C", folder, "status"], check=False, capture_output=True, text=True)
    assert "dubious ownership" in refused.stderr
    assert said(folder) == own


def test_a_folder_whose_name_is_no_text(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/pro\xff\nject"))
    try:
        unpack(folder)
    except OSError:
        pytest.skip("this file system has no such names")
    assert said(folder) == "unknown"
    own = commit(folder)
    assert said(folder) == own


def test_without_git_or_with_one_that_fails_or_waits_it_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert environment.git_commit() != "unknown" or not (environment.ROOT / ".git").exists()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.git_commit() == "unknown"
    stand_in = tmp_path / "git"
    for script in ("exit 1", "echo", "echo /", "kill -9 $$", "printf '\\377\\0'", "sleep 5"):
        stand_in.write_text(f"#!/bin/sh\nPATH=/bin:/usr/bin\n{script}\n")
        stand_in.chmod(0o755)
        monkeypatch.setattr(environment, "GIT_SECONDS", 0.5)
        assert environment.git_commit() == "unknown", script


def test_a_version_is_that_of_what_was_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    found = environment.environment("x")
    assert list(found["versions"]) == list(environment.PACKAGES)
    assert "unknown" not in json.dumps(found["versions"])
    assert "not the installed" not in json.dumps(found["versions"])  # torch adds its build
    assert package_version("no-such-package") == "unknown"
    other = types.ModuleType("numpy")
    other.__version__ = "0.1"  # type: ignore[attr-defined]
    installed = package_version("numpy")
    monkeypatch.setitem(sys.modules, "numpy", other)
    assert package_version("numpy") == f"0.1, not the installed {installed}"
    monkeypatch.setitem(sys.modules, "no_such", other)
    assert package_version("no-such-package", "no_such") == "0.1"
