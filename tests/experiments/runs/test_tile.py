"""`--data.tile`: validation and test in exact tiles give the numbers of whole images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules.shapes import ShapesDataModule
from experiments.runs.run import Run
from experiments.runs.training import train
from lightning_modules.pspnet import PSPNetModule
from lightning_modules.unet import UNetModule


def run(tile: int | None, **others: Any) -> Run:
    return Run(
        module=UNetModule,
        datamodule=ShapesDataModule,
        hparams={"width": 4, "depth": 2, "norm": "batch"},
        data={"size": 96, "length": 8, "crop": 32, "tile": tile},
        trainer={"max_steps": 2, "accelerator": "cpu"},
    ).but(**others)


def test_tiles_change_no_score_and_no_hash(tmp_path: Path) -> None:
    results = [train(run(tile), tmp_path / str(tile)) for tile in (None, 24)]
    assert results[0]["hash"] == results[1]["hash"]
    assert results[0]["val"]["miou"] == results[1]["val"]["miou"]
    stored = []
    for tile in (None, 24):
        with np.load(tmp_path / f"{tile}/per_image.npz", allow_pickle=False) as arrays:
            stored.append(dict(arrays))
    assert (stored[0]["confusion"] == stored[1]["confusion"]).all()
    # Over the bins together: the last digits may move a pixel from a bin to the next.
    assert np.allclose(stored[0]["calibration"].sum(1), stored[1]["calibration"].sum(1), rtol=1e-4)


def test_what_cannot_be_tiled_is_refused_before_it_is_trained(tmp_path: Path) -> None:
    options = {"encoder": "resnet18", "encoder_width": 0.0625, "decoder_width": 8}
    of_whole = Run(
        module=PSPNetModule,
        datamodule=ShapesDataModule,
        hparams=options,
        data={"size": 64, "length": 8, "tile": 32},
        trainer={"max_steps": 1, "accelerator": "cpu"},
    )
    with pytest.raises(ValueError, match="tile=32 takes a local network, and for PSPNetModule it pools the image"):
        train(of_whole, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="tile must be at least 16 pixels, got 2"):
        ShapesDataModule(tile=2)
