"""The commit of the code that runs, and what the code differs in from it, as a patch.

Git is asked for names and stored bytes alone; what is on the disk is read here, so that nothing which a repository
configures is run.
"""

import base64
import difflib
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]
CODE = ("datamodules", "experiments", "lightning_modules")
SUFFIXES = {".py", ".cpp", ".so", ".pyd", ".j2", ".css", ".js"}  # of files that run
DIRTY, UNKNOWN = "-dirty", "unknown"
PATCH = "code.patch"
MOST_PATCH = 2**22  # bytes
SENT, MOST_SENT = "SEGLAB_CODE", 2**16  # a variable of a process, and its bytes
GIT_SECONDS = 10
# Settings of a repository that name programs to run, or a server to ask. An owner other than ours is no reason to
# refuse: the code in the folder runs already, and nothing else of it is asked for.
QUIET_GIT = ("core.fsmonitor=false", f"core.hooksPath={os.devnull}", "protocol.allow=never", f"safe.directory={ROOT}")
FAILURES = (OSError, ValueError, IndexError, subprocess.SubprocessError)


class Difference(NamedTuple):
    """What the code that runs is: a commit, and what it differs in from it."""

    commit: str  # as `git_commit` has it
    files: dict[str, str]  # by name: new, changed or gone
    patch: bytes  # which `git apply` takes on a clean checkout of the commit; empty where there is nothing to apply
    lacks: list[str]  # of the files those that the patch cannot carry

    @property
    def sentence(self) -> str:
        """For who starts a run; empty where the code is that of its commit, or of none."""
        if not self.files:
            return ""
        (first, state), *others = sorted(self.files.items(), key=lambda item: (item[1] != "new", item[0]))
        more = f" and {len(others)} more file{'s' * (len(others) > 1)}" if others else ""
        kept = f"each run keeps the difference as {PATCH}, which reproduce.sh applies"
        lost = f"no patch can carry {', '.join(self.lacks)}, so reproduce.sh will lack it"
        what = "; ".join([kept] * bool(self.patch) + [lost] * bool(self.lacks))
        return (
            f"The code differs from commit {self.commit[:7]} in {first} ({state}){more}: {what}. Commit it to make it "
            "part of the history."
        )


def tell_difference(console: Console) -> None:
    """Says, before anything is trained, that the code which runs is not that of its commit."""
    if sentence := difference().sentence:
        console.print(sentence, style="yellow", soft_wrap=True, markup=False)


def git_commit() -> str:
    """The commit of the code that runs, "-dirty" when the code differs from it, "unknown" outside a checkout of its
    own.

    Code is what runs in the three packages, and a module beside them. A file that the commit does not have counts, too,
    as it may be imported. Ignored, tracked, or marked as unchanged makes no difference: the files are read and
    compared.
    """
    try:
        commit, stored = _stored()
        return commit + DIRTY * bool(_differing(stored))
    except FAILURES:
        return _as_sent().commit


def difference() -> Difference:
    """The commit of the code that runs and all that differs from it; of an unknown commit nothing is known to
    differ."""
    try:
        commit, stored = _stored()
        files, parts, lacks, size = _differing(stored), list[bytes](), list[str](), 0
        for name in files:
            part = _part(name, stored.get(name))
            if part is None or size + len(part) > MOST_PATCH:
                lacks.append(name)
            else:
                parts.append(part)
                size += len(part)
        return Difference(commit + DIRTY * bool(files), files, b"".join(parts), lacks)
    except FAILURES:
        return _as_sent()


def to_send() -> str:
    """What a machine that gets this code without its history is told of it, in the variable `SENT`."""
    code = difference()
    patch = base64.b64encode(zlib.compress(code.patch)).decode()
    if len(patch) > MOST_SENT:
        patch, code = "", code._replace(lacks=[*code.files])
    return json.dumps({"commit": code.commit, "files": code.files, "patch": patch, "lacks": code.lacks})


def _as_sent() -> Difference:
    """What the sender of this code has said of it; of an unknown commit nothing is known to differ."""
    try:
        told = json.loads(os.environ[SENT])
        patch = zlib.decompress(base64.b64decode(told["patch"])) if told["patch"] else b""
        return Difference(str(told["commit"]), dict(told["files"]), patch, list(told["lacks"]))
    except (KeyError, ValueError, TypeError, zlib.error):
        return Difference(UNKNOWN, {}, b"", [])


def _git(*words: str) -> bytes:
    """What git says of the folder of the project: as if no GIT_ variable were set, and without running what it
    names."""
    settings = [word for setting in QUIET_GIT for word in ("-c", setting)]
    # On Windows the names of variables have no case. Without locks, because many cells may ask at a time.
    environ = {name: value for name, value in os.environ.items() if not name.upper().startswith("GIT_")}
    environ |= {"GIT_OPTIONAL_LOCKS": "0", "GIT_NO_REPLACE_OBJECTS": "1", "GIT_NO_LAZY_FETCH": "1", "LC_ALL": "C"}
    command = ["git", *settings, "-C", os.fspath(ROOT), *words]
    with (
        tempfile.TemporaryFile() as out
    ):  # of a pipe, what git has started could hold the end for longer than git lives
        subprocess.run(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.DEVNULL,
            check=True,
            timeout=GIT_SECONDS,
        )
        out.seek(0)
        return out.read()


class _Stored(NamedTuple):
    """A file of the commit."""

    mode: str
    blob: str


def _stored() -> tuple[str, dict[str, _Stored]]:
    """The commit, and its files of code by their names; one of `FAILURES` where there is none."""
    top = os.fsdecode(_git("rev-parse", "--show-toplevel").removesuffix(b"\n"))
    if not os.path.samefile(top, ROOT):  # an archive unpacked, or an environment made, inside another repository
        raise ValueError(f"{top} is another repository")
    commit = _git("rev-parse", "--verify", "HEAD^{commit}").decode("ascii").strip()
    stored = {}
    for entry in _git("ls-tree", "-r", "-z", commit).split(b"\0")[:-1]:
        about, _, name = entry.partition(b"\t")
        mode, _, blob = about.decode("ascii").split()
        stored[os.fsdecode(name)] = _Stored(mode, blob)
    return commit, {name: file for name, file in stored.items() if _is_code(name)}


def _is_code(name: str) -> bool:
    """Whether a file can be run by an import or by what is imported: nothing is imported from a hidden folder."""
    *folders, file = name.split("/")
    hidden = any(folder.startswith(".") or folder == "__pycache__" for folder in folders)
    return Path(file).suffix in SUFFIXES and not hidden and (not folders or folders[0] in CODE)


def _differing(stored: Mapping[str, _Stored]) -> dict[str, str]:
    """What of the code on the disk is not that of the commit: by name new, changed or gone."""
    paths = {path for package in CODE for path in (ROOT / package).rglob("*")} | {*ROOT.iterdir()}
    by_name = {path.relative_to(ROOT).as_posix(): path for path in paths}
    names = {name for name, path in by_name.items() if _is_code(name) and path.is_file()}
    states = {name: "new" for name in names - stored.keys()}
    states |= {name: "gone" for name in stored if name not in names}
    states |= {name: "changed" for name in names & stored.keys() if stored[name].blob not in _hashes(ROOT / name)}
    states |= {  # a package of this name from another folder
        f"{package}/": "from another folder"
        for package in CODE
        if package in sys.modules and Path(sys.modules[package].__file__ or "").resolve().parent != ROOT / package
    }
    return dict(sorted(states.items()))


def _hashes(path: Path) -> set[str]:
    """What git may call the content of a file: by either of its hashes, and as it would store lines of Windows."""
    data = path.read_bytes()
    return {
        hashlib.new(kind, b"blob %d\0" % len(content) + content).hexdigest()
        for kind in ("sha1", "sha256")
        for content in {data, data.replace(b"\r\n", b"\n")}
    }


def _part(name: str, stored: _Stored | None) -> bytes | None:
    """A file's part of the patch; None for one that a text cannot carry: a binary, a large one, a link, a package from
    elsewhere, or one whose stored content a partial clone lacks."""
    path, old, new = ROOT / name, None, None
    if name.endswith("/") or (stored and not stored.mode.startswith("100")):
        return None
    if path.is_file():
        if path.stat().st_size > MOST_PATCH:
            return None
        new = path.read_bytes()
    if stored:
        try:
            old = _git("cat-file", "blob", stored.blob)
        except subprocess.SubprocessError:
            return None
    if any(b"\0" in content for content in (old, new) if content):
        return None
    return b"".join(_lines(os.fsencode(name), stored.mode if stored else "100644", old, new))


def _lines(name: bytes, mode: str, old: bytes | None, new: bytes | None) -> Iterator[bytes]:
    """The lines of a unified diff in git's form; None stands for a file that is not there."""
    before, after = _quoted(b"a/" + name), _quoted(b"b/" + name)
    yield b"diff --git %s %s\n" % (before, after)
    if old is None or new is None:
        yield b"%s file mode %s\n" % (b"new" if old is None else b"deleted", mode.encode())
    old_lines, new_lines = (re.findall(rb"[^\n]*\n|[^\n]+", content or b"") for content in (old, new))
    names = (b"/dev/null" if old is None else before, b"/dev/null" if new is None else after)
    for line in difflib.diff_bytes(difflib.unified_diff, old_lines, new_lines, *names):
        yield line if line.endswith(b"\n") else line + b"\n\\ No newline at end of file\n"


def _quoted(name: bytes) -> bytes:
    """As git writes a name that would not be read as one word."""
    if re.fullmatch(rb"[\w.,+@=/-]+", name):
        return name
    return b'"%s"' % re.sub(rb"[^ !#-\[\]-~]", lambda match: b"\\%03o" % match[0][0], name)
