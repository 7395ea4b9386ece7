"""The images that a run stores to be looked at, of any number of channels."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from banded import Bands
from PIL import Image
from test_train import QUIET, TINY

from experiments.runs.callbacks import to_rgb
from experiments.runs.run import Run
from experiments.runs.training import train
from experiments.tracking.logger import tracker
from lightning_modules.components.scores.confusion import confusion_matrix
from lightning_modules.unet import UNetModule


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_the_stored_samples_are_what_was_scored(precision: str, tmp_path: Path) -> None:
    train(TINY.but(trainer={"max_epochs": 1, "precision": precision}), tmp_path, **QUIET)
    samples, per_image = np.load(tmp_path / "samples.npz"), np.load(tmp_path / "per_image.npz")
    names = per_image["names"].tolist()
    with zipfile.ZipFile(tmp_path / "predictions.zip") as archive:
        for number, name in enumerate(samples["names"].tolist()):
            labels, position = samples[f"prediction_{number}"], names.index(name)
            assert np.array_equal(labels, np.array(Image.open(archive.open(f"{position:05}.png"))))
            counted = confusion_matrix(
                *(torch.from_numpy(m.astype(int))[None] for m in (labels, samples[f"mask_{number}"])), 3, 255
            )
            assert np.array_equal(counted[0].numpy(), per_image["confusion"][position])
    logits = torch.from_numpy(samples["logits"]).float()
    # Rounded to float16: the scored label has the largest logit, or one that fell on it.
    scored = logits.gather(0, torch.from_numpy(samples["prediction_0"].astype(int))[None])[0]
    assert torch.equal(scored, logits.amax(0))
    if precision.startswith("bf16"):
        assert torch.equal(logits, logits.bfloat16().float())  # of that forward, and of no other


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 8])
def test_an_image_of_any_number_of_channels_becomes_a_picture(channels: int) -> None:
    image = torch.linspace(0, 1, 8).view(8, 1, 1).expand(8, 4, 6)[:channels]
    picture = to_rgb(image)
    assert picture.shape == (4, 6, 3) and picture.dtype == np.uint8
    grey = [round(255 * (channels - 1) / 14)] * 3  # the mean of sevenths
    assert (picture == ([0, 36, 73] if channels == 3 else grey)).all()
    assert (to_rgb(torch.ones(channels, 4, 6)) == 255).all()


@pytest.mark.parametrize(("channels", "logger"), [(1, "none"), (2, "wandb"), (5, "wandb")])
def test_a_run_on_images_of_any_number_of_channels_stores_its_samples(
    channels: int, logger: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(Bands, "in_channels", channels)
    run = Run(
        module=UNetModule,
        datamodule=Bands,
        hparams={"width": 2, "depth": 1},
        data=TINY.data,
        trainer={"max_epochs": 1, "limit_train_batches": 1},
    )
    out = tmp_path / "experiment" / "variant" / "seed0"
    train(run, out, tracker=tracker(logger), **QUIET)
    assert np.load(out / "samples.npz")["image_0"].shape == (32, 32, 3)
    if logger == "wandb":
        assert len(list(out.glob("wandb/offline-run-*/files/media/images/test/samples_*.png"))) == 4
