"""What --help prints of flags that are the arguments of classes, kept: to import those classes takes seconds.

Kept are the parts that argparse lays out, so that they fit a terminal of any width. helps.json has them for the common
calls: it is committed, and holds as long as the code is that of its commit. What else was asked for lies in the user's
cache, until the code changes.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

Part = list[str]  # what kind it is, and its texts

ASKS = ("-h", "--help")
ROOT = Path(__file__).resolve().parents[2]
STORED = Path(__file__).with_name("helps.json")
COLOURED = (3, 14)  # the first Python that prints help in colours, which nothing here knows
PACKAGES = ("jsonargparse", "lightning", "docstring-parser")  # from which texts come, and how they are put

_keep: Callable[[list[Part]], None] | None = None  # where the help goes that this process is asked for


def answer() -> None:
    """Prints the help that `python -m experiments.VERB` asks for and ends, where it is known; else has `keep` keep it.

    To be called while `python -m` looks for the module, when `sys.argv` begins with "-m".
    """
    words = sys.argv[1:]
    verb = sys.orig_argv[len(sys.orig_argv) - len(words) - 1].removeprefix("-m").removeprefix("experiments.")
    # A word that is a file may decide on the flags, as a checkpoint does.
    if not {*ASKS} & {*words} or sys.version_info >= COLOURED or any(map(os.path.isfile, words)):
        return
    for look in (_stored, _cached):
        text = None
        with suppress(Exception):  # of any kind: without what is kept, help is slow, and a cache may hold anything
            text = look(verb, words)
        if text is not None:
            for stream in (sys.stdout, sys.stderr):
                stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # as every command does
            sys.stdout.write(text)
            sys.exit(0)


def keep(parts: list[Part], text: str) -> None:
    """Has the help that was printed as `text` at hand for the next call like this one, if these are its parts."""
    if _keep is not None and laid_out(parts) == text:
        _keep(parts)


def _stored(verb: str, words: Sequence[str]) -> str | None:
    """The help in helps.json of a call that ends with --help; None where it has none, or other code or versions run."""
    call = " ".join([verb, *words[:-1]])
    if words[-1] not in ASKS or call.split(" ") != [verb, *words[:-1]]:
        return None
    found = json.loads(STORED.read_text(encoding="utf-8"))
    if call not in found["helps"] or found["versions"] != versions():
        return None
    from experiments.shell.difference import DIRTY, UNKNOWN, git_commit  # imports rich, which the cache does without

    commit = git_commit()
    return None if commit == UNKNOWN or commit.endswith(DIRTY) else laid_out(unpacked(found, call))


def _cached(verb: str, words: Sequence[str]) -> str | None:
    """The help in the cache of exactly this call of this code; None, and a place for it, where it has none."""
    from datamodules.fingerprint import cache_folder  # imports numpy, which the helps of the commit do without

    global _keep
    columns = str(shutil.get_terminal_size().columns)  # some help is kept as it was laid out
    place, code = cache_folder() / "help" / f"{_id([str(ROOT), columns, verb, *words])}.json", _code()
    _keep = partial(_write, place, code)
    if not place.is_file():
        return None
    found = json.loads(place.read_text(encoding="utf-8"))
    return laid_out(found["parts"]) if found["code"] == code else None


def _write(place: Path, code: str, parts: list[Part]) -> None:
    """Keeps the parts where it can: a folder that cannot be written to is no reason for help to fail."""
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=place.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"code": code, "parts": parts}, file)
        os.replace(temporary, place)


def _code() -> str:
    """The SHA-256 of all Python of the project, and of the versions of what it prints help with."""
    digest = hashlib.sha256(json.dumps([sys.version, versions()]).encode())
    for package in ("datamodules", "experiments", "lightning_modules"):
        for path in sorted((ROOT / package).rglob("*.py")):
            data = path.read_bytes()
            digest.update(f"{path.relative_to(ROOT)} {len(data)}\n".encode() + data)
    return digest.hexdigest()


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Lays out flags whose texts are spelt out already."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        return str(action.metavar)

    def _expand_help(self, action: argparse.Action) -> str:
        return action.help or ""

    def _format_actions_usage(self, actions: Iterable[argparse.Action], groups: Any) -> str:
        return " ".join(str(action.metavar) for action in actions if action.metavar)


def laid_out(parts: Sequence[Sequence[str]]) -> str:
    """The help as argparse prints it in this terminal."""
    formatter = _Formatter("")
    for kind, *texts in parts:
        if kind == "whole":
            return texts[0]
        if kind == "usage" and len(texts) == 1:
            formatter.add_usage(texts[0].replace("%", "%%"), [], [])
        elif kind == "usage":
            prog, flags, places = texts
            formatter._prog = prog
            actions = [argparse.Action(["-"], "", metavar=flags), argparse.Action([], "", metavar=places)]
            formatter.add_usage(None, actions, [])
        elif kind == "text":
            formatter.add_text(texts[0])
        elif kind == "section":
            formatter.start_section(texts[0])
        elif kind == "end":
            formatter.end_section()
        else:
            formatter.add_arguments([argparse.Action([], "", metavar=texts[0], help=texts[1])])
    return formatter.format_help()


def versions() -> dict[str, str]:
    """Of what the texts depend on beside the code."""
    found = {"python": f"{sys.version_info[0]}.{sys.version_info[1]}"}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def packed(helps: Mapping[str, Sequence[Part]]) -> dict[str, Any]:
    """What helps.json holds of these helps by their commands: each part once, and each section."""
    parts: dict[str, Part] = {}
    sections: dict[str, str] = {}
    of_calls = {}
    for call, of_one in sorted(helps.items()):
        blocks: list[list[str]] = [[]]
        for part in of_one:
            parts[_id(part)] = part
            blocks += [[]] * (part[0] == "section")
            blocks[-1] = [*blocks[-1], _id(part)]
        sections |= {_id(block): " ".join(block) for block in blocks}
        of_calls[call] = " ".join(map(_id, blocks))
    return {
        "versions": versions(),
        "parts": dict(sorted(parts.items())),
        "sections": dict(sorted(sections.items())),
        "helps": of_calls,
    }


def unpacked(stored: Mapping[str, Any], call: str) -> list[Part]:
    """The parts of the help of a call in helps.json."""
    blocks = [stored["sections"][block] for block in stored["helps"][call].split()]
    return [stored["parts"][part] for block in blocks for part in block.split()]


def _id(parts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8]
