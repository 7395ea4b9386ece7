"""Trains a few runs with DDP and with FSDP2 in each of two processes: see test_sharded.py.

python sharded_runs.py FOLDER NAME ...
"""

import os
import shutil
import sys
from pathlib import Path

import torch
import torch.distributed
from two_ranks import in_two_processes

from datamodules.shapes import ShapesDataModule
from experiments.runs.run import Run
from experiments.runs.training import train
from lightning_modules.deconvnet import DeconvNetModule
from lightning_modules.pspnet import PSPNetModule
from lightning_modules.unet import UNetModule

STEPS = 3
UNET = Run(
    module=UNetModule,
    datamodule=ShapesDataModule,
    # Its last stage has over a million parameters and is a part. A sum over an image has no mean of means, so that one
    # device and two minimise the same; such gradients are always clipped.
    hparams={"width": 36, "depth": 3, "optimizer": "adamw", "lr": 1e-3, "loss": "ce_sum"},
    data={"size": 32, "length": 4, "batch_size": 4, "num_workers": 0},
    trainer={"max_epochs": STEPS, "gradient_clip_val": 0.1, "limit_train_batches": 1},
)
RUNS = {
    "unet": UNET,
    "deconvnet": UNET.but(module=DeconvNetModule).but(trainer={"gradient_clip_algorithm": "value"}),
    "pspnet": UNET.but(module=PSPNetModule),  # the loss calls another method than forward
}
HPARAMS = {
    "deconvnet": {"width": 16, "fc_width": 192},
    "pspnet": {"encoder": "resnet18", "encoder_width": 0.5, "decoder_width": 8},
}
WHERE = {"accelerator": "cpu", "devices": 2, "enable_progress_bar": False, "num_sanity_val_steps": 0}


def run_of(name: str) -> Run:
    run = RUNS[name]
    return run if name not in HPARAMS else Run(**{**vars(run), "hparams": HPARAMS[name]})


def back_to_previous(out: Path) -> None:
    """The folder as it was when its last epoch had yet to begin."""
    checkpoints = out / "checkpoints"
    for ending in ("", ".sha256"):
        shutil.copy(checkpoints / f"previous.ckpt{ending}", checkpoints / f"last.ckpt{ending}")
    digest = (checkpoints / "last.ckpt.sha256").read_text()
    (checkpoints / "last.ckpt.sha256").write_text(digest.replace("previous.ckpt", "last.ckpt"))
    (out / "result.json").unlink()


def main(folder: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    for name in names:
        for strategy in ("ddp", "fsdp2"):
            train(run_of(name), folder / f"{name}-{strategy}", strategy=strategy, **WHERE)
    if "unet" not in names:
        return
    if os.environ["RANK"] == "0":
        shutil.copytree(folder / "unet-ddp", folder / "unet-resumed")
        back_to_previous(folder / "unet-resumed")
    torch.distributed.barrier()
    train(UNET, folder / "unet-resumed", strategy="fsdp2", resume=True, **WHERE)


if __name__ == "__main__":
    sys.exit(in_two_processes(lambda: main(Path(sys.argv[1]), sys.argv[2:])))
