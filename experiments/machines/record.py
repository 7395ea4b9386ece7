"""Results that commands measure, as sections of a Markdown file, each with what made it."""

import os
import re
from pathlib import Path

from experiments.shell.difference import git_commit
from experiments.shell.environment import command_line, package_version, processor
from experiments.shell.files import write_atomic


def made_by(device: str = "") -> str:
    """Command, commit, versions and the kind of machine, with the work that it did beside this."""
    cores, load = os.cpu_count() or 1, os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    machine = f"{device or f'{cores} CPUs of {processor()}'}, torch {package_version('torch')}"
    lines = ["```sh", command_line(), "```", "", f"{machine}; commit {git_commit()}."]
    if load > 1.5:
        said = (
            f"**Provisional: the load average was {load:.1f} on {cores} CPUs as this began, so others computed, too.**"
        )
        lines[:0] = [said, ""]
    return "\n".join(lines)


def write_section(path: Path, name: str, text: str) -> None:
    """Puts the text between the marks of its `name` in a file, or at its end, and leaves all else as it is."""
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    section = f"{begin}\n{text.strip()}\n{end}"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if pattern.search(before):
        after = pattern.sub(lambda _: section, before, count=1)
    else:
        after = f"{before.rstrip()}\n\n{section}\n".lstrip()
    write_atomic(path, after)
