"""What a number depends on beside its `Run`: the commit, the versions, the machine and the command.

Commit and versions are those of the code that runs, whatever repository or environment surrounds it.
"""

import hashlib
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

# The name of a distribution, and of the module that it installs.
PACKAGES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "lightning": "lightning",
    "torchmetrics": "torchmetrics",
    "segmentation-models-pytorch": "segmentation_models_pytorch",
    "numpy": "numpy",
    "pillow": "PIL",
    "nilearn": "nilearn",
}
ROOT = Path(__file__).resolve().parents[2]
CODE = ("datamodules", "experiments", "lightning_modules")
SUFFIXES = {".py", ".cpp", ".so", ".pyd", ".j2", ".css", ".js"}  # of files that run
GIT_SECONDS = 10
# Settings of a repository that name programs to run, or a server to ask. An owner other than ours is no reason to
# refuse: the code in the folder runs already, and nothing else of it is asked for.
QUIET_GIT = ("core.fsmonitor=false", f"core.hooksPath={os.devnull}", "protocol.allow=never", f"safe.directory={ROOT}")


def git_commit() -> str:
    """The commit of the code that runs, "-dirty" when the code differs from it, "unknown" outside a checkout of its
    own.

    Code is what runs in the three packages, and a module beside them. A file that the commit does not have counts, too,
    as it may be imported. Ignored, tracked, or marked as unchanged makes no difference: the files are read and
    compared.
    """
    try:
        top = os.fsdecode(_git("rev-parse", "--show-toplevel").removesuffix(b"\n"))
        if not os.path.samefile(top, ROOT):  # an archive unpacked, or an environment made, inside another repository
            return "unknown"
        commit = _git("rev-parse", "--verify", "HEAD^{commit}").decode("ascii").strip()
        entries = _git("ls-tree", "-r", "-z", commit).split(b"\0")[:-1]
        wanted = {}
        for entry in entries:
            about, _, name = entry.partition(b"\t")
            wanted[os.fsdecode(name)] = about.split()[2].decode("ascii")
        return commit + ("-dirty" if _differs(wanted) else "")
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return "unknown"


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


def _differs(wanted: dict[str, str]) -> bool:
    """Whether code on the disk is not that of a commit, whose files have these hashes."""
    paths = {path for package in CODE for path in (ROOT / package).rglob("*")} | {*ROOT.iterdir()}
    names = {path.relative_to(ROOT).as_posix() for path in paths if path.suffix in SUFFIXES and path.is_file()}
    of_code = {
        name for name in wanted if Path(name).suffix in SUFFIXES and ("/" not in name or name.split("/")[0] in CODE)
    }
    elsewhere = [  # a package of this name from another folder
        package
        for package in CODE
        if package in sys.modules and Path(sys.modules[package].__file__ or "").resolve().parent != ROOT / package
    ]
    return bool(elsewhere) or names != of_code or any(wanted[name] not in _hashes(ROOT / name) for name in names)


def _hashes(path: Path) -> set[str]:
    """What git may call the content of a file: by either of its hashes, and as it would store lines of Windows."""
    data = path.read_bytes()
    return {
        hashlib.new(kind, b"blob %d\0" % len(content) + content).hexdigest()
        for kind in ("sha1", "sha256")
        for content in {data, data.replace(b"\r\n", b"\n")}
    }


def package_version(distribution: str, module: str | None = None) -> str:
    """The version of a package that runs: of the module where it is imported and is not the one that is installed.

    "unknown" for a package that is neither installed nor imported.
    """
    loaded = getattr(sys.modules.get(module or distribution), "__version__", None)
    try:
        installed = version(distribution)
    except (PackageNotFoundError, KeyError):  # the latter of one whose description is damaged
        return str(loaded or "unknown")
    # torch says of its build after a "+"
    shadowed = loaded is not None and str(loaded).split("+")[0] != installed.split("+")[0]
    return f"{loaded}, not the installed {installed}" if shadowed else installed


def command_line() -> str:
    """The command as a person would type it again."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["python", "-m", spec.name] if spec else ["python", sys.argv[0]]
    return shlex.join([*program, *sys.argv[1:]])


def environment(command: str | None = None) -> dict[str, Any]:
    """What environment.json holds; no host name or user; paths as the command has them."""
    return {
        "command": command or command_line(),
        "commit": git_commit(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "versions": {name: package_version(name, module) for name, module in PACKAGES.items()},
    }
