"""What an exported network says of itself, so that neither the checkpoint nor this repository is needed to use it."""

import json
from collections.abc import Mapping
from typing import Any

from experiments.runs.run import Run
from experiments.shell.difference import git_commit
from lightning_modules.base import SegmentationModule


def metadata(module: SegmentationModule, run: Run | None, sizes: str) -> dict[str, str]:
    """Words as they are, all else as JSON, by name.

    `run` is that of the run.json beside the checkpoint, for what earlier versions did not store in it; `sizes` says
    which images are taken.
    """
    trained: Mapping[str, Any] = getattr(module, "trained", None) or {}
    reads = {"scale": 1.0, **_of_run(run), **trained.get("reads", {})}
    data = trained.get("data") or ("" if run is None else run.datamodule.__name__)
    facts = {
        "architecture": type(module).__name__,
        "class_names": module.class_names,
        "palette": [list(colour) for colour in module.palette],
        "ignore_index": module.ignore_index,
        "channels": module.hparams["in_channels"],
        "value_range": [0, 1],  # of the input
        "mean": module.mean.flatten().tolist(),  # within the graph: nobody is to subtract it again
        "std": module.std.flatten().tolist(),
        "scale": reads.pop("scale"),  # what an image was resized by before training
        "reads": reads,
        "sizes": sizes,
        "data": data,
        "commit": trained.get("commit") or "",
        "exported_by": git_commit(),
    }
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()}


def _of_run(run: Run | None) -> dict[str, Any]:
    """How the images of a run were read, as far as its arguments say so."""
    arguments = {} if run is None else run.data
    return {name: arguments[name] for name in ("scale", "channels", "value_range") if arguments.get(name) is not None}
