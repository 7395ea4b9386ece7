"""Weights and checkpoints that a run starts from, by what they hold: where they lie is no part of a run's hash."""

import hashlib
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from lightning_modules.components.checkpoints import digest, read_checkpoint
from lightning_modules.components.encoders.weights import is_path

STARTS = ("weights", "init_from")  # hyperparameters that may name a file, or a folder of files
START = r"run:[0-9a-f]{16}@\d+"  # of a checkpoint: the hash of its run, and its step


def by_content(hparams: Mapping[str, Any], known: Mapping[str, str]) -> dict[str, Any]:
    """`hparams` with the files that a network starts from named by their content; other words, such as "imagenet",
    stay.

    A checkpoint of this project goes by the hash of its run and its step: two machines that trained the same have the
    same. `known` says so of checkpoints that are not read, as they may have yet to be trained.
    """
    return {
        key: by_content(value, known)
        if isinstance(value, Mapping)
        else known.get(value) or identity(value)
        if key in STARTS and isinstance(value, str)
        else value
        for key, value in hparams.items()
    }


def identity(name: str) -> str:
    """What the file or the folder `name` holds; `name` itself where there is none, as for "imagenet"."""
    path = Path(name)
    if not is_path(name):
        return name
    if path.is_file():
        return _of_file(os.path.realpath(path), *_state(path))
    if path.is_dir():
        files = sorted(inner for inner in path.rglob("*") if inner.is_file())
        listed = [
            (inner.relative_to(path).as_posix(), _of_file(os.path.realpath(inner), *_state(inner))) for inner in files
        ]
        return f"sha256:{hashlib.sha256(repr(listed).encode()).hexdigest()[:16]}"
    return name


def _state(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


@lru_cache
def _of_file(path: str, *state: int) -> str:
    """Once a process for a file whose size and times stay the same."""
    if path.endswith(".ckpt"):
        try:
            stored = read_checkpoint(path)
            if "run" in stored:
                return f"run:{stored['run']}@{stored.get('global_step')}"
        except ValueError:
            pass  # of others, or damaged, which the network that is to start from it says
    return f"sha256:{digest(Path(path))[:16]}"
