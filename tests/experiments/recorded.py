"""A training that notes the loss and the images of each step: in this process, or as a script in two."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from two_ranks import in_two_processes

from datamodules.shapes import ShapesDataModule
from experiments.runs.run import Run
from experiments.runs.training import train
from experiments.shell.ending import ending
from lightning_modules.unet import UNetModule

# 12 steps an epoch. Images that are zoomed out are padded, so that parts of a step have unequally many labelled pixels.
RECORDED = Run(
    module=UNetModule,
    datamodule=ShapesDataModule,
    hparams={"width": 4, "depth": 2, "norm": "group", "dropout": 0.0},
    data={"size": 16, "length": 50, "batch_size": 4},
    trainer={"max_epochs": 2},
)
Steps = dict[int, tuple[float, list[int]]]  # by their number: the mean loss, and the images in the order of the epoch


class Recorder(Callback):
    """Adds a line for each batch of all processes to a file; after the step `stop` the last of them gets a SIGTERM."""

    def __init__(self, path: Path, stop: int | None) -> None:
        self.path, self.stop = path, stop

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        more = trainer.fit_loop.epoch_loop._should_accumulate()
        share = float((batch["mask"] != module.ignore_index).float().mean())
        parts = trainer.world_size * trainer.accumulate_grad_batches
        # Of several parts each loss comes times its share of labelled pixels.
        loss = float(outputs["loss"]) * trainer.accumulate_grad_batches * (share if parts == 1 else 1)
        mine = [loss, share, batch["index"].tolist()]
        every = [mine]
        if trainer.world_size > 1:
            every = [[]] * trainer.world_size
            torch.distributed.all_gather_object(every, mine)
        if trainer.is_global_zero:
            with self.path.open("a") as file:
                file.write(json.dumps([trainer.global_step + more, every]) + "\n")
        if trainer.global_step == self.stop and not more and trainer.global_rank == trainer.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)


def record(run: Run, out: Path, *, devices: int = 1, stop: int | None = None) -> None:
    """Trains, from a checkpoint in `out` where there is one, up to the step `stop`."""
    out.mkdir(parents=True, exist_ok=True)
    callbacks = [Recorder(out.with_suffix(".lines"), stop)]
    where: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False, "devices": devices}
    train(run, out, callbacks=callbacks, resume=(out / "run.json").exists(), **where)


def steps(out: Path) -> Steps:
    """What was recorded of each step, once."""
    found: dict[int, list[Any]] = {}
    for line in out.with_suffix(".lines").read_text().splitlines():
        step, every = json.loads(line)
        found.setdefault(step, []).extend([every])
    recorded: Steps = {}
    for step, parts in found.items():
        loss, share = (sum(part[number] for every in parts for part in every) for number in (0, 1))
        # Each process has every n-th image of a batch.
        images = [
            image for every in parts for dealt in zip(*(part[2] for part in every), strict=True) for image in dealt
        ]
        recorded[step] = loss / share, images
    return recorded


if __name__ == "__main__":

    def both() -> None:
        with ending():
            record(RECORDED, Path(sys.argv[1]), devices=2, stop=int(sys.argv[2]) or None)

    sys.exit(in_two_processes(both))
