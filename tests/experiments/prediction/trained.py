"""Checkpoints to predict with, written in a moment: small networks with the weights that they begin with."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from experiments.runs.checkpoints import CheckpointFiles
from lightning_modules.base import SegmentationModule
from lightning_modules.catalogue import ARCHITECTURES
from lightning_modules.unet import UNetModule

CLASSES = ["road", "tree", "sky"]
PALETTE = [(128, 64, 128), (0, 128, 0), (70, 130, 180)]


def module_of(
    name: str, *, in_channels: int = 3, classes: int = 3, seed: int = 0, **settings: Any
) -> SegmentationModule:
    torch.manual_seed(seed)
    module = ARCHITECTURES[name].module(
        classes, 255 if classes <= 255 else 65535, in_channels=in_channels, **{**ARCHITECTURES[name].small, **settings}
    )
    module.describe(
        [*CLASSES, *map(str, range(3, classes))][:classes], [*PALETTE, *[(9, 9, 9)] * (classes - 3)][:classes]
    )
    return module.eval()


def reading(channels: str = "rgb", **others: Any) -> dict[str, Any]:
    """What a checkpoint says of its images."""
    return {
        "data": "FolderDataModule",
        "reads": {"channels": channels, "value_range": None, "bits": 8, "scale": 1.0} | others,
    }


def saved(module: SegmentationModule, path: Path, trained: dict[str, Any] | None = None) -> Path:
    """The checkpoint of a module, as a training writes it."""
    module.trained = reading() if trained is None else trained
    content: dict[str, Any] = {
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        "pytorch-lightning_version": "2.6.4",
        "epoch": 1,
        "global_step": 1,
    }
    module.on_save_checkpoint(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    CheckpointFiles().save_checkpoint(content, path)
    return path


def checkpoint(folder: Path, name: str = "last.ckpt", **settings: Any) -> Path:
    """Of a small U-Net."""
    assert issubclass(ARCHITECTURES["unet"].module, UNetModule)
    trained = settings.pop("trained", None)
    return saved(module_of("unet", **settings), folder / name, trained)


def photograph(path: Path, height: int = 60, width: int = 83, *, mode: str = "RGB", seed: int = 0) -> Path:
    """Smooth colours with some grain, of a size that no network here likes."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    base = np.stack([np.sin(5 * x + seed), np.cos(7 * y), np.sin(3 * (x + y))], -1)
    pixels = ((base + 1) * 100 + rng.integers(0, 55, base.shape)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path)
    return path
