"""What a number depends on beside its `Run`: the commit, the versions, the machine and the command."""

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from typing import Any

import torch

PACKAGES = (
    "torch",
    "torchvision",
    "lightning",
    "torchmetrics",
    "segmentation-models-pytorch",
    "numpy",
    "pillow",
    "nilearn",
)


def git_commit() -> str:
    """The commit of the code that runs, "-dirty" when a tracked file differs from it, "unknown" outside a checkout."""
    try:
        describe = ["git", "-C", os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]
        commit, status = (
            subprocess.run([*describe, *words], capture_output=True, encoding="utf-8", errors="replace", check=True)
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "-uno"))
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.stdout.strip() + ("-dirty" if status.stdout.strip() else "")


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
        "versions": {name: version(name) for name in PACKAGES},
    }
