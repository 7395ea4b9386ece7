"""The project as somebody has it who installed the requirements and no extra."""

import os
import subprocess
import sys
from collections.abc import Iterable
from configparser import ConfigParser
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


def extras() -> dict[str, list[str]]:
    """The requirements of each extra in setup.cfg."""
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return {name: [*filter(None, text.splitlines())] for name, text in parser["options.extras_require"].items()}


def brought(requirements: Iterable[str]) -> set[str]:
    """The installed distributions, by canonical name, that these requirements and their own bring."""
    waiting, found = [Requirement(line) for line in requirements], set[tuple[str, str]]()
    while waiting:
        requirement = waiting.pop()
        for extra in {"", *requirement.extras}:
            name = canonicalize_name(requirement.name)
            if (name, extra) in found:
                continue
            try:
                inner = [Requirement(line) for line in requires(name) or []]
            except PackageNotFoundError:
                continue
            found.add((name, extra))
            waiting += [one for one in inner if one.marker is None or one.marker.evaluate({"extra": extra})]
    return {name for name, _ in found}


@cache
def modules_of_extras() -> set[str]:
    """The installed top-level modules that an extra brings and the requirements do not."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    required = brought(line for line in lines if not line.startswith("#"))
    optional = brought(line for of_one in extras().values() for line in of_one) - required
    return {
        module
        for module, distributions in packages_distributions().items()
        if {canonicalize_name(name) for name in distributions} <= optional
    }


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with these arguments in the root of the repository; it and its processes have no extra."""
    hidden = {"PYTHONPATH": str(ROOT / "tests" / "hidden"), "HIDDEN": " ".join(modules_of_extras())}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | hidden, capture_output=True, text=True, check=False)
