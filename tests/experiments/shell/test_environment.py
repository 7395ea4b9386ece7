"""What environment.json says of the code: its own commit, what differs from it, and versions, whatever surrounds
it."""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from experiments.shell import difference, environment
from experiments.shell.difference import CODE
from experiments.shell.environment import package_version

OWN = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "protocol.file.allow=always", "-c", "init.defaultBranch=main"]


@pytest.fixture(autouse=True)
def _nobody_s_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


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
    shutil.copy(difference.__file__, folder / "experiments" / "shell")
    (folder / "README.md").write_text("text\n")
    (folder / ".gitignore").write_text("__pycache__/\nignored.py\n")
    return folder


def commit(folder: Path) -> str:
    if not (folder / ".git").exists():
        git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "x")
    return git(folder, "rev-parse", "HEAD")


def said(folder: Path, *others: Path, ask: str = "print(git_commit())", **variables: str) -> str:
    """What code in `folder` says of its commit, in a process that starts there."""
    script = f"import sys, datamodules, lightning_modules; from experiments.shell.difference import *; {ask}"
    path = os.pathsep.join(map(os.fspath, (*others, folder)))
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
    sentence = said(tmp_path / "project", tmp_path / "other", ask="print(difference().sentence)")
    assert "in datamodules/ (from another folder): no patch can carry datamodules/, so" in sentence


STORED = {
    "changed.py": b"a = 1\n" * 20 + b"b = 2\n" + b"c = 3\n" * 20,
    "without_an_end.py": b"a = 1\nb = 2",
    "windows.py": b"a = 1\r\nb = 2\r\n",
    "to_windows.py": b"a = 1\nb = 2\n",
    "latin.py": b"# coding: latin-1\nx = 1\n",
    "gone.py": b"a = 1\n",
    "gone_and_empty.py": b"",
    "emptied.py": b"a = 1\n",
    "renamed.py": b"a = 1\n" * 9,
    "program.py": b"#!/usr/bin/env python\n",
    "lines.js": "a\u2028b\x0cc\x85\rd\n".encode(),
}
CHANGED = {
    "changed.py": b"a = 1\n" * 20 + b"b = 3\n" + b"c = 3\n" * 20 + b"\n",
    "without_an_end.py": b"a = 2\nb = 2",
    "windows.py": b"a = 1\r\nb = 3\r\n",
    "to_windows.py": b"a = 1\r\nb = 3\n",
    "latin.py": b"# coding: latin-1\nx = '\xe9'\n",
    "emptied.py": b"",
    "program.py": b"#!/usr/bin/env python3\n",
    "lines.js": "a\u2028b\x0cc\x85\rD\n".encode(),
    "inner/renamed.py": b"a = 1\n" * 9,
    "new.py": b"a = 1\n\n\nb = 2",
    "new_and_empty.py": b"",
    "ignored.py": b"a = 1\n",
    'odd "name"\\ \t\u00e9.py': b"a = 1  \n\t \n",
}


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def of_code(folder: Path) -> dict[str, bytes]:
    paths = [path for package in CODE for path in (folder / package).rglob("*.*")] + [*folder.glob("*.py")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.suffix in (".py", ".js")}


@pytest.mark.parametrize("kind", ["sha1", "sha256"])
def test_the_patch_makes_the_code_that_ran_of_its_commit(kind: str, tmp_path: Path) -> None:
    folder, package = unpack(tmp_path / "project"), tmp_path / "project" / "experiments"
    write(package, STORED)
    (package / "program.py").chmod(0o755)
    git(folder, "init", "--quiet", f"--object-format={kind}")
    commit(folder)
    git(folder, "worktree", "add", "--quiet", "--detach", str(tmp_path / "tree"))
    for name in STORED.keys() - CHANGED.keys():
        (package / name).unlink()
    write(package, CHANGED)
    write(folder, {"numpy.py": b"a = 1\n", "README.md": b"another text\n", "experiments/results/x.md": b"new\n"})
    write(package, {".ipynb_checkpoints/new-checkpoint.py": b"a\n", "__pycache__/x.py": b"a\n"})  # never imported
    names = json.loads(said(folder, ask="import json; print(json.dumps(difference().files))"))
    of_package = {f"experiments/{name}" for name in STORED.keys() | CHANGED.keys()}
    assert names.keys() == of_package | {"numpy.py"}
    assert {names[f"experiments/{name}"] for name in ("new.py", "gone.py", "changed.py")} == {"new", "gone", "changed"}
    patch = tmp_path / "code.patch"
    said(folder, ask=f"open({str(patch)!r}, 'wb').write(difference().patch)")
    git(tmp_path / "tree", "apply", "--whitespace=nowarn", str(patch))
    for path in (package / ".ipynb_checkpoints", package / "__pycache__"):
        shutil.rmtree(path)
    assert of_code(tmp_path / "tree") == of_code(folder)
    assert os.access(tmp_path / "tree" / "experiments" / "program.py", os.X_OK)
    assert len(patch.read_bytes()) < 3000 and b"another text" not in patch.read_bytes()
    git(folder, "add", ".")  # what is staged, and what is committed for the next time, makes no difference
    again = tmp_path / "again.patch"
    said(folder, ask=f"open({str(again)!r}, 'wb').write(difference().patch)")
    assert again.read_bytes() == patch.read_bytes()


def test_what_no_text_can_carry_is_named(tmp_path: Path) -> None:
    folder = unpack(tmp_path / "project")
    (folder / "experiments" / "link.py").symlink_to("inner/code.py")
    own = commit(folder)
    write(
        folder / "experiments", {"fast.so": b"\x7fELF\0", "zero.py": b"a\0", "large.py": b"#" * 2**22, "x.py": b"1\n"}
    )
    asked = "d = difference(); print(len(d.patch), *d.lacks); print(d.sentence)"
    found, sentence = said(folder, ask=asked).splitlines()
    size, *lacks = found.split()
    assert lacks == [f"experiments/{name}" for name in ("fast.so", "large.py", "link.py", "zero.py")]
    assert 0 < int(size) < 200
    assert sentence == (
        f"The code differs from commit {own[:7]} in experiments/fast.so (new) and 4 more files: each run keeps the "
        "difference as code.patch, which reproduce.sh applies; no patch can carry experiments/fast.so, "
        "experiments/large.py, experiments/link.py, experiments/zero.py, so reproduce.sh will lack it. Commit it to "
        "make it part of the history."
    )


def test_code_of_a_commit_has_no_patch_and_nothing_is_said(tmp_path: Path) -> None:
    own = commit(unpack(tmp_path / "project"))
    assert said(tmp_path / "project", ask="print(difference())") == (
        f"Difference(commit='{own}', files={{}}, patch=b'', lacks=[])"
    )
    assert said(tmp_path / "project", ask="print(difference().sentence)") == ""


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
    touch("datamodules/inner/code.py", "x = 3\n")(folder)
    assert "+x = 3" in said(folder, ask="print(difference().patch.decode())")
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
    assert difference.git_commit() != "unknown" or not (difference.ROOT / ".git").exists()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert difference.git_commit() == "unknown"
    stand_in = tmp_path / "git"
    for script in ("exit 1", "echo", "echo /", "kill -9 $$", "printf '\\377\\0'", "sleep 5"):
        stand_in.write_text(f"#!/bin/sh\nPATH=/bin:/usr/bin\n{script}\n")
        stand_in.chmod(0o755)
        monkeypatch.setattr(difference, "GIT_SECONDS", 0.5)
        assert difference.git_commit() == "unknown", script


def test_the_patch_beside_the_environment_is_that_of_the_last_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(patch: bytes, lacks: list[str]) -> dict[str, object]:
        code = difference.Difference("ab12-dirty", {"x.py": "new"}, patch, lacks)
        monkeypatch.setattr(environment, "difference", lambda: code)
        made = environment.write_environment(tmp_path, "x", device="1 x CPU")
        assert json.loads((tmp_path / "environment.json").read_text()) == made and made["device"] == "1 x CPU"
        return made

    assert start(b"one", [])["patch"] == hashlib.sha256(b"one").hexdigest()
    made = start(b"two\r\n", ["x.so"])
    assert (tmp_path / "code.patch").read_bytes() == b"two\r\n"
    assert (made["patch"], made["patch_lacks"]) == (hashlib.sha256(b"two\r\n").hexdigest(), ["x.so"])
    assert not {"patch", "patch_lacks"} & start(b"", []).keys()
    assert not (tmp_path / "code.patch").exists()


def test_the_machine_is_told_by_what_its_numbers_depend_on_and_by_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    found = environment.environment("x")
    assert found["instruction_set"] == torch.backends.cpu.get_cpu_capability()
    assert found["processor"] != "unknown" and platform.node() not in found["processor"]
    assert "BLAS" in found["blas"] and ("oneDNN" in found["blas"]) == torch.backends.mkldnn.is_available()
    of_makers = {
        "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n\nprocessor\t: 1\nmodel\t: 9\n": (
            "AMD EPYC (family 25, model 17)"
        ),
        "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n\n": "Pi (implementer 0x41, part 0xd40)",
        "": "Pi",
    }
    monkeypatch.setattr(platform, "processor", lambda: "Pi")
    for text, name in of_makers.items():
        monkeypatch.setattr(Path, "read_text", lambda *_, text=text, **__: text)
        assert environment.processor() == name
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: Path("/no such file").read_bytes())
    assert environment.processor() == "Pi"  # neither Windows nor macOS has this file
    monkeypatch.setattr(torch.__config__, "show", lambda: "of a later version")
    assert environment.blas() == "unknown"


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
