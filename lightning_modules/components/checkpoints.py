"""Checkpoints as files: written whole beside their SHA-256, and read only where they are what was written.

A checkpoint `last.ckpt` has a `last.ckpt.sha256` beside it, in the form of sha256sum. While one is replaced, that file
holds the hashes of both, so that a kill at any moment leaves a checkpoint that passes.
"""

import hashlib
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.components.errors import MoreThanDataError

CODE = "it holds more than data; it is not loaded"
# What torch says of names to import and of calls; operands from 140 on are of pickle protocols that it does not write.
MEANS_CODE = (
    r"unsupported global|create new object|unrecognized function|Can only build|``weights_only|"
    r"operand 14\d|operand 15[01]"
)
KEYS = {"segmentation": dict, "state_dict": dict, "hyper_parameters": dict}  # what a checkpoint of this project holds


def read_checkpoint(
    path: str | os.PathLike[str],
    name: str | None = None,
    *,
    wanted: str = "a checkpoint",
    keys: Collection[str] = tuple(KEYS),
) -> dict[str, Any]:
    """The content of a checkpoint of this project, its tensors on the CPU; `keys` are the parts it must have.

    `name` is what an error calls the file, `wanted` what it asks for instead.

    Raises FileNotFoundError where there is nothing, MoreThanDataError where code would be run, which no file's ever is,
    and ValueError with the reason for anything else: another kind of file or a damaged one.
    """
    path = Path(path)
    shown = name or str(path)
    if not os.path.lexists(path):
        raise FileNotFoundError(f"{shown} is not a file: give {wanted} such as outputs/.../checkpoints/last.ckpt")
    if not path.is_file():  # a pipe is not opened, because reading it would wait for ever
        raise ValueError(f"{shown} is not a checkpoint: it is {'a folder' if path.is_dir() else 'no regular file'}")
    if path.stat().st_size == 0:
        raise ValueError(f"{shown} is damaged: it is empty (0 bytes)")
    expected = stored_digests(path)
    if expected is not None and not expected:
        raise ValueError(
            f"{shown} cannot be checked: {digest_file(path).name} beside it holds no SHA-256. Put it back, or remove "
            "it to read the checkpoint unchecked"
        )
    if expected is not None and digest(path) not in expected:
        raise ValueError(f"{shown} is damaged: its SHA-256 is not that in {digest_file(path).name} beside it")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises five kinds by what is broken
        why = reason(error)
        kind = MoreThanDataError if why == CODE else ValueError
        raise kind(f"{shown} is not a checkpoint of experiments.train: {why}") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(key), KEYS[key]) for key in keys):
        raise ValueError(f"{shown} is not a checkpoint of experiments.train: it holds no {', '.join(keys)}")
    weights = content["state_dict"] if "state_dict" in keys else {"": torch.empty(0)}
    if not weights or not all(isinstance(n, str) and isinstance(w, torch.Tensor) for n, w in weights.items()):
        raise ValueError(f"{shown} is not a checkpoint of experiments.train: its state_dict is not tensors by name")
    if "segmentation" in keys and not isinstance(content["segmentation"].get("architecture"), str):
        raise ValueError(f"{shown} is not a checkpoint of experiments.train: it names no architecture")
    return content


def start_from(module: nn.Module, checkpoint: str) -> None:
    """Takes over the weights and the normalisation of `checkpoint`, one of the same network at any output stride.

    A mean or std that the user gave stays, as do the weights of the classes, which are of the loss.
    """
    state = read_checkpoint(checkpoint, f"init_from={checkpoint!r}", keys=("state_dict",))["state_dict"]
    load_start(
        module,
        state,
        checkpoint,
        kept=given(module),
        otherwise=f"is no checkpoint of a {type(module).__name__} with the same arguments but for output_stride and "
        "freeze_batch_norm",
    )


def given(module: nn.Module) -> tuple[str, ...]:
    """What stays of a module that starts from a checkpoint: what the user gave, and what belongs to the loss."""
    hparams: Any = module.hparams
    return ("weight_of_class", *(name for name in ("mean", "std") if hparams[name] is not None))


def load_start(
    target: nn.Module, state: Mapping[str, Tensor], checkpoint: str, *, kept: Collection[str] = (), otherwise: str
) -> None:
    """Gives `target` the weights `state` of the checkpoint that `init_from` names; what begins with `kept` stays.

    Raises ValueError, which says `otherwise` and names weights, unless the others are all there in their shapes.
    """
    weights = target.state_dict()
    stays = {name: weight for name, weight in weights.items() if name.startswith(tuple(kept))}
    state = {name: weight for name, weight in state.items() if not name.startswith(tuple(kept))}
    odd = [name for name, weight in state.items() if name in weights and weights[name].shape != weight.shape]
    if not odd:
        missing, unexpected = target.load_state_dict({**stays, **state}, strict=False)
        odd = [*missing, *unexpected]
    if odd:
        odd.sort(key=lambda name: "." not in name)  # layers first, which tell more than mean and std
        raise ValueError(f"init_from={checkpoint!r} {otherwise}: {', '.join(odd[:3])}")


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_file(path: Path) -> Path:
    """Where the SHA-256 of a checkpoint lies."""
    return path.with_name(f"{path.name}.sha256")


def stored_digests(path: Path) -> set[str] | None:
    """What `path` may hash to; None where nothing says so, as with checkpoints of earlier versions or copied alone.

    Empty where what lies in its place holds no hash.
    """
    place = digest_file(path)
    if not os.path.lexists(place):
        return None
    text = place.read_bytes().decode("ascii", "replace") if place.is_file() else ""  # a pipe would be waited for
    return set(re.findall(r"^[0-9a-f]{64}(?= )", text, re.MULTILINE))


def reason(error: Exception) -> str:
    """What is wrong with a file in a few words; torch's own would advise to load it as code."""
    message = str(error)
    if re.search(MEANS_CODE, message, re.IGNORECASE):
        return CODE
    if "eights only" in message or "weights_only" in message:
        cause = next((line for line in message.splitlines() if line.startswith(("Unsupported", "Trying", "Can"))), "")
        return f"it is damaged, or holds more than data; it is not loaded ({cause[:100]})".removesuffix(" ()")
    first = next(iter(message.splitlines()), "")
    return f"{type(error).__name__}: {first[:200]}".removesuffix(": ")
