"""What docs/install.md promises of machines that are not Linux, as far as Linux can tell."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = ("fcntl", "resource", "pwd", "grp", "termios")
NAMES = {
    "os": ("fork", "getuid", "geteuid", "sched_getaffinity", "getpgid", "setsid", "killpg"),
    "signal": ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGCHLD", "pthread_sigmask"),
}


def imports() -> list[str]:
    """What the notebooks import of this repository."""
    sources = "\n".join(p.read_text(encoding="utf-8") for p in sorted((ROOT / "notebooks").glob("[0-9]*.py")))
    return sorted(
        set(re.findall(r"^ *from ((?:lightning_modules|datamodules|experiments)[\w.]*) import", sources, re.MULTILINE))
    )


@pytest.mark.extra("notebooks", "skimage")
def test_the_notebooks_import_nothing_that_windows_lacks() -> None:
    ours = [f"import {name}" for name in imports()]
    code = ["import os, signal, sys, types", *ours]  # and what others made know Windows by themselves
    code += [
        "for n in [n for n in sys.modules if n.split('.')[0] in ('lightning_modules', 'datamodules', 'experiments')]:"
    ]
    code += ["    del sys.modules[n]"]
    code += ["sys.platform = 'win32'", "sys.modules['msvcrt'] = types.ModuleType('msvcrt')"]
    code += [f"sys.modules[{name!r}] = None" for name in MODULES]
    code += [f"{module}.__dict__.pop({name!r}, None)" for module, names in NAMES.items() for name in names]
    code += ours
    assert len(code) > 30
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(code)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_notebook_finds_the_library_with_its_parent_on_the_path(tmp_path: Path) -> None:
    """As in a hosted notebook, where the installation is not seen before the next start."""
    code = 'import sys; sys.path.insert(0, ".."); import pictures, exercises, lightning_modules as l; print(l.__file__)'
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"MPLBACKEND": "Agg"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT / "notebooks",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and str(ROOT) in str(Path(done.stdout.strip()).resolve()), done.stderr
