"""The order, the environment and the report of .ci/run, with a `make` that only writes down what it is asked for."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = [".venv/installed-dev", "lint", "test-extras", "cluster", "notebooks", "smoke", "audit"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of .ci/run and of what it reads, beside a folder of commands that stand in for others."""
    for name in (".ci/run", "tests/bare.py", "setup.cfg", "requirements.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy2(ROOT / name, tmp_path / name)
    write(tmp_path / "bin" / "chromium", "")
    write(
        tmp_path / "bin" / "make",
        'echo "$@" >> asked; [ "$1" != "$FAILS" ] || exit 7; [ "$1" != "$SLOW" ] || sleep 1.1',
    )
    return tmp_path


def quick(venv: str) -> list[str]:
    return [f"faults VENV={venv} ARGS=--quick", f"fuzz VENV={venv}"]


def write(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def ci(checkout: Path, **environment: str) -> tuple[int, str, list[str]]:
    """The exit status, what was printed, and what `make` was asked for."""
    variables = {
        "FAILS": "",
        "SLOW": "",
        **os.environ,
        "PATH": f"{checkout / 'bin'}:{os.environ['PATH']}",
        **environment,
    }
    done = subprocess.run([checkout / ".ci" / "run"], env=variables, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, (checkout / "asked").read_text().splitlines()


def test_the_tests_come_first_in_an_environment_of_the_requirements_alone(checkout: Path) -> None:
    status, printed, asked = ci(checkout)
    assert status == 0, printed
    assert asked == [".venv/installed VENV=.venv", "test VENV=.venv", *quick(".venv"), *ORDER]
    summary = printed.split("== seconds of each stage\n")[1].splitlines()
    assert [line.split()[0] for line in summary] == [
        "install",
        "test",
        "faults",
        "fuzz",
        "extras",
        "lint",
        "test-extras",
        "cluster",
        "notebooks",
        "smoke",
        "audit",
    ]


@pytest.mark.parametrize(("extras", "folder"), [(True, ".venv-bare"), (False, ".venv")])
def test_an_environment_with_extras_is_not_used_for_them(extras: bool, folder: str, checkout: Path) -> None:
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "installed").touch()
    # What the environment brings is asked of `bare`: here an answer of it, and the interpreter of these tests.
    found = '{"skimage"}' if extras else "set()"
    (checkout / "tests" / "bare.py").write_text(f"def modules_of_extras():\n    return {found}\n")
    (checkout / ".venv" / "bin" / "python").symlink_to(sys.executable)
    status, printed, asked = ci(checkout)
    assert status == 0, printed
    assert asked[:2] == [f"{folder}/installed VENV={folder}", f"test VENV={folder}"]
    assert asked[2:] == [*quick(folder), *ORDER]


def test_what_fails_ends_it_with_its_status_and_the_seconds_so_far(checkout: Path) -> None:
    status, printed, asked = ci(checkout, FAILS="lint")
    assert status == 7
    assert asked[-1] == "lint"
    assert printed.splitlines()[-1].split()[0] == "lint"


def test_the_targets_of_the_stages_are_in_the_makefile_and_its_help() -> None:
    stages = re.findall(r"^stage \S+ \d+ make ([a-z-]+)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert stages == ["test", "faults", "fuzz", "lint", "test-extras", "cluster", "notebooks", "smoke", "audit"]
    done = subprocess.run(["make", "-C", ROOT, "help"], capture_output=True, text=True, check=True)
    for target in (*stages, "full"):
        assert re.search(rf"^make {target} ", done.stdout, re.MULTILINE), target
        dry = ["make", "-C", ROOT, "--dry-run", "--old-file=.venv/installed", "--old-file=.venv/installed-dev", target]
        # Without the flags of the `make test` that this may be in, which name its environment.
        alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        commands = subprocess.run(dry, env=alone, capture_output=True, text=True, check=True).stdout
        assert ".venv/bin/python" in commands, target


def test_a_stage_over_its_budget_is_a_warning(checkout: Path) -> None:
    script = checkout / ".ci" / "run"
    assert "stage audit 60 " in script.read_text()
    status, printed, _ = ci(checkout, SLOW="audit")
    assert status == 0 and "warning" not in printed
    script.write_text(script.read_text().replace("stage audit 60 ", "stage audit 0 "))
    status, printed, _ = ci(checkout, SLOW="audit")
    assert status == 0
    assert printed.splitlines()[-1] == "warning: audit is over its budget"
