"""Images of one, four and five channels through everything that trains, scores, stores and draws."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from banded import Bands
from lightning.pytorch import Trainer

from experiments.reports.figures.looks import drawing
from experiments.runs.callbacks import to_rgb
from experiments.runs.run import Run
from experiments.runs.training import build, train
from experiments.search_crf import check_classes
from experiments.shell.catalogue import ARCHITECTURES
from experiments.show import draw
from lightning_modules import catalogue

DATA = {"size": 64, "length": 2, "batch_size": 2}


def small(name: str, channels: int) -> dict[str, Any]:
    """Settings of a small network of the architecture `name`, without a CRF where there is none for the channels."""
    alone = name == "crf_as_rnn" and channels not in (1, 3)
    return {**catalogue.ARCHITECTURES[name].small, **({"crf": "none"} if alone else {})}


@pytest.fixture(params=[1, 4, 5])
def channels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(Bands, "in_channels", request.param)
    return int(request.param)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_trains_a_step(name: str, channels: int, tmp_path: Path) -> None:
    run = Run(module=ARCHITECTURES[name], datamodule=Bands, hparams=small(name, channels), data=DATA)
    module, data = build(run)
    assert module.hparams["in_channels"] == len(module.mean) == len(module.std) == channels
    before = [parameter.detach().clone() for parameter in module.parameters()]
    trainer = Trainer(
        max_steps=1,
        limit_val_batches=1,
        logger=False,
        default_root_dir=tmp_path,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        accelerator="cpu",
    )
    trainer.fit(module, data)
    assert trainer.global_step == 1
    assert any(not torch.equal(*pair) for pair in zip(before, module.parameters(), strict=True))
    image = data.dataset("test")[0][0][None]
    assert module.eval()(image).shape == (1, 3, 64, 64)


@pytest.mark.parametrize("name", ["unet", "pointrend"])
def test_a_run_is_stored_as_reports_read_it(name: str, channels: int, tmp_path: Path) -> None:
    run = Run(
        module=ARCHITECTURES[name],
        datamodule=Bands,
        hparams=small(name, channels),
        data=DATA,
        trainer={"max_epochs": 1},
    )
    assert train(run, tmp_path, accelerator="cpu", enable_progress_bar=False)
    samples = np.load(tmp_path / "samples.npz")
    image = build(run)[1].dataset("test")[0][0]
    assert samples["image_0"].dtype == np.uint8
    assert np.array_equal(samples["image_0"], to_rgb(image))  # all that a report sees of an image


def test_training_images_are_drawn(channels: int, tmp_path: Path) -> None:
    data = Bands(**DATA)
    with drawing():
        figure = draw(data, "train", 2, 1, 0)
        figure.savefig(tmp_path / "a.png")
    image = data.dataset("train")[0][0]
    shown = np.asarray(figure.axes[0].images[0].get_array())
    grey = image.mean(0).numpy()
    assert shown.shape == (64, 64, 3)
    assert np.abs(shown / 255 - grey[..., None]).max() < 0.51 / 255


def test_a_search_of_a_crf_says_at_once_what_it_cannot_see(channels: int) -> None:
    run = Run(module=ARCHITECTURES["unet"], datamodule=Bands, hparams=small("unet", channels), data=DATA)
    module, data = build(run)
    if channels == 1:
        check_classes(module, data)
        return
    with pytest.raises(ValueError, match=f"a CRF compares the colours .* the data have {channels} channels: score"):
        check_classes(module, data)
