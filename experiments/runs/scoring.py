"""Cells that train nothing: a step works on trained weights, and its module is scored on the test split as theirs."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.base import SegmentationDataModule, SegmentationDataset
from experiments.runs.callbacks import encode_labels, sample_positions, sampled, save_npz, save_predictions
from experiments.runs.checkpoints import Signals
from experiments.runs.run import Run, changes, check_kept
from experiments.runs.scored import what_was_scored
from experiments.shell.catalogue import load
from experiments.shell.environment import write_environment
from experiments.shell.files import locked, read_json, write_atomic, write_json
from experiments.shell.store import Store, kept
from lightning_modules.base import SegmentationModule
from lightning_modules.components.finite import labelled_logits, naming
from lightning_modules.components.scores.metrics import Scores
from lightning_modules.components.scores.reductions import scores


@dataclass(frozen=True)
class Task:
    """What a step works on: the trained modules of its parents, on the device, and the data that they were trained
    on; `folder` is for what it writes beside the files of every cell."""

    run: Run
    folder: Path
    modules: list[SegmentationModule]
    datamodule: SegmentationDataModule


def trained(checkpoint: Path, architecture: type[SegmentationModule]) -> SegmentationModule:
    """The module of a checkpoint, on a GPU where there is one; ValueError where it is of another architecture."""
    module = load(checkpoint)
    if isinstance(module, architecture):
        return module.to("cuda" if torch.cuda.is_available() else "cpu")
    raise ValueError(f"{checkpoint} holds {type(module).__name__}, where {architecture.__name__} was planned")


def carry_out(
    run: Run, out: Path, *, command: str | None = None, patience: float = 0.0, store: Store | None = None
) -> dict[str, Any]:
    """Does the step of `run` into the folder `out`, and scores its module on the test split.

    Leaves the files that a training leaves, but for checkpoints. Returns what result.json holds: `found` is what the
    step tells other cells; epochs, steps and parameters are those of its first parent, whose seconds are counted in.

    Raises ValueError or FileNotFoundError for parents that are not those of the plan, and for another run in `out`.
    """
    if run.step is None or not run.parents:
        raise ValueError("a run without a step and parents is trained: use train")
    step, started = run.step, time.monotonic()
    run = run.identified()
    with Signals(), locked(out, patience), kept(store, out, partial(check_kept, run=run)):
        run.check_parents()
        if (out / "run.json").exists() and (changed := changes(read_json(out / "run.json"), run)):
            raise ValueError(f"{out} holds another run ({'; '.join(changed)}): choose another folder with --out")
        checkpoints = [Path(path) for path in run.parents]
        modules = [trained(path, run.module) for path in checkpoints]
        datamodule = run.datamodule(**run.data)
        datamodule.seed = run.seed
        datamodule.verify()
        write_json(out / "run.json", run.record())
        device = torch.cuda.get_device_name(modules[0].device) if modules[0].device.type == "cuda" else "CPU"
        write_environment(out, command, device=f"1 x {device}")
        module, found = step.work()(Task(run, out, modules, datamodule), **step.options)
        confusion = _score(module, datamodule, out, checkpoints[0].parents[1])
        write_atomic(out / "metrics.csv", "epoch,train/loss,val/miou\n")  # nothing is trained
        parent = read_json(checkpoints[0].parents[1] / "result.json")
        result = {
            "hash": run.hash,
            "status": "done",
            **what_was_scored(datamodule, confusion),
            "test": {key: float(value) for key, value in scores(confusion).items() if value.ndim == 0},
            "found": found,
            "seconds": parent["seconds"] + time.monotonic() - started,
            **{key: parent[key] for key in ("epochs", "steps", "params")},
        }
        write_json(out / "result.json", result)
    return result


def _score(module: SegmentationModule, datamodule: SegmentationDataModule, out: Path, parent: Path) -> np.ndarray:
    """Writes the scores, the predictions and the samples; returns the confusion matrix (C, C) of the split."""
    dataset = datamodule.dataset("test")
    arrays, labels, logits = evaluate(module, dataset, torch.get_num_threads())
    save_npz(out / "per_image.npz", groups=np.array(datamodule.groups(dataset.names)), **arrays)
    maps = enumerate(torch.from_numpy(label_map) for label_map in labels)
    pictures = {position: encode_labels(label_map, module.palette) for position, label_map in maps}
    save_predictions(out / "predictions.zip", pictures)
    with np.load(parent / "samples.npz", allow_pickle=False) as stored:
        initial = {"initial_logits": stored["initial_logits"]}
    save_npz(out / "samples.npz", **initial, **sampled(dataset, arrays["confusion"], labels.__getitem__, logits))
    confusion: np.ndarray = arrays["confusion"].sum(0)
    return confusion


def evaluate(
    module: SegmentationModule, dataset: SegmentationDataset, jobs: int
) -> tuple[dict[str, np.ndarray], list[np.ndarray], Tensor]:
    """What per_image.npz holds but for the groups, the labels (H, W) of each image, and the logits (C, H, W) of the
    first sample.

    Raises NonFiniteError, naming the image, for a logit at a labelled pixel that is NaN or infinite.
    """
    first = sample_positions(len(dataset))[0]

    def one(index: int) -> dict[str, Tensor]:
        image, mask = dataset[index]
        name = f"{dataset.names[index]} (test)"
        with torch.no_grad(), naming(name):
            logits = module(image[None].to(module.device)).float().cpu()
        labelled_logits(logits, mask[None], module.ignore_index, [name], module.class_names)
        of_one = Scores(module.num_classes, module.ignore_index, detailed=True)
        row = of_one.update(logits, mask[None], torch.zeros(1))
        return row if index == first else {key: value for key, value in row.items() if key != "logits"}

    with workers(jobs) as pool:
        rows = list(pool.map(one, range(len(dataset))))
    logits = rows[first].pop("logits")[0]
    labels = [row.pop("labels")[0].byte().numpy() for row in rows]
    arrays = {key: torch.cat([row[key] for row in rows]).numpy() for key in rows[0]}
    return {"names": np.array(dataset.names), **arrays}, labels, logits


@contextmanager
def workers(jobs: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that compute with one core each, as the kernels let go of the interpreter; cancelled by an interrupt."""
    pool = ThreadPoolExecutor(jobs, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
