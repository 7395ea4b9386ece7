"""What reproduce.sh is called with."""

import shlex
import sys
from pathlib import Path

import pytest
from reproducing import STAND_IN, git


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "a clone"
    folder.mkdir()
    git(folder, "init", "--quiet")
    (folder / "experiments").mkdir()
    for name in ("report.py", "ablate_upsampling.py"):
        (folder / "experiments" / name).write_text("x = 1\n")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "first")
    return folder


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """An interpreter that writes down what it is asked for, into `log` beside it."""
    python = tmp_path / "python"
    quoted = {"log": shlex.quote(str(tmp_path / "log")), "table": "/dev/null", "python": shlex.quote(sys.executable)}
    python.write_text(STAND_IN.format(**quoted))
    python.chmod(0o755)
    return python
