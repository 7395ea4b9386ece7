"""Logits, losses and marginals that are NaN or infinite are never scored, and the error says of which image they
are."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from PIL import Image
from rich.console import Console
from torch import Tensor

from datamodules.shapes import ShapesDataModule
from experiments import soft_segment
from experiments.crfs.search import confusions, predict
from experiments.runs.callbacks import half
from experiments.runs.run import Run
from experiments.runs.scoring import evaluate, workers
from experiments.runs.training import build, train
from lightning_modules.base import Batch
from lightning_modules.components.errors import NonFiniteError
from lightning_modules.components.losses import LOSSES
from lightning_modules.components.scores.table import PER_IMAGE
from lightning_modules.crf_as_rnn import CRFasRNNModule
from lightning_modules.refinement import post_process
from lightning_modules.refinement.dense_crf import PRESETS
from lightning_modules.unet import UNetModule

TINY = Run(
    module=UNetModule,
    datamodule=ShapesDataModule,
    hparams={"width": 2, "depth": 1},
    data={"size": 24, "length": 4, "batch_size": 2},
    trainer={"max_epochs": 1},
)
QUIET: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False}


class Spoil(Callback):
    """Gives the last layer a bias that is NaN before the named split is evaluated."""

    def __init__(self, split: str, value: float) -> None:
        self.split, self.value = split, value

    def spoil(self, module: LightningModule) -> None:
        with torch.no_grad():
            module.network.head.bias[1] = self.value  # type: ignore[union-attr, operator, index]

    def on_validation_start(self, trainer: Any, pl_module: LightningModule) -> None:
        if self.split == "val" and not trainer.sanity_checking:
            self.spoil(pl_module)

    def on_test_start(self, trainer: Any, pl_module: LightningModule) -> None:
        if self.split == "test":
            self.spoil(pl_module)


class Planted(UNetModule):
    """Its logits of class 1 in the given row are what `planted` says."""

    planted = (0, math.nan)

    def predict(self, images: Tensor) -> Tensor:
        logits = super().predict(images).clone()
        row, value = self.planted
        logits[:, 1, row] = value
        return logits


def planted(row: int, value: float) -> UNetModule:
    module = Planted(3, 255, width=2, depth=1).eval().requires_grad_(False)
    module.describe(["background", "disc", "square"], [(0, 0, 0)] * 3)
    module.planted = (row, value)
    return module


def first_of_test() -> Batch:
    """A batch of one, whose mask has no label in its first row."""
    return next(iter(ShapesDataModule(**TINY.data).test_dataloader()))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("split", ["val", "test"])
def test_a_network_that_breaks_down_after_its_last_step_has_no_result(split: str, value: float, tmp_path: Path) -> None:
    message = rf"logits of {split}0000 \({split}\) are NaN or infinite at 552 of its 552 labelled pixels, for disc: "
    with pytest.raises(NonFiniteError, match=message):
        train(TINY, tmp_path, callbacks=[Spoil(split, value)], **QUIET)
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize("split", ["val", "test"])
def test_an_infinite_loss_of_finite_logits_is_no_result(split: str) -> None:
    module = UNetModule(3, 255, width=2, depth=1, loss="ce_sum", class_weights=[3e38] * 3).eval()
    step = module.validation_step if split == "val" else module.test_step
    with pytest.raises(NonFiniteError, match=rf"the loss of image 0 \({split}\) is inf, though its logits are finite"):
        step(first_of_test(), 0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_pixels_without_a_label_may_have_any_logit_and_change_no_score(loss: str, value: float) -> None:
    scored, means = [], []
    for planted_value in (1.0, value):
        torch.manual_seed(0)
        module = planted(0, planted_value)
        module.loss_function = LOSSES[loss]
        scored.append(module.test_step(first_of_test(), 0))
        means.append(module.test_scores.loss.compute())
    assert means[0] == means[1] and means[1].isfinite()
    for name in PER_IMAGE.keys() - {"checkerboard"}:
        torch.testing.assert_close(scored[0][name], scored[1][name], rtol=0, atol=0, equal_nan=True)
    assert torch.equal(scored[0]["labels"][:, 1:], scored[1]["labels"][:, 1:])
    assert module.test_scores.checkerboard.compute().isnan()  # no spectrum, no score, and no image in the mean


def of_test_step(module: UNetModule) -> None:
    module.test_step(first_of_test(), 0)


def of_search(module: UNetModule) -> None:
    predict(module, ShapesDataModule(**TINY.data).dataset("test"), "test", [0], print)


def of_ablation(module: UNetModule) -> None:
    evaluate(module, ShapesDataModule(**TINY.data).dataset("test"), jobs=1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("scored", [of_test_step, of_search, of_ablation])
def test_wherever_logits_become_labels_or_probabilities_the_image_is_named(
    scored: Callable[[UNetModule], None], value: float
) -> None:
    scored(planted(0, value))  # without a label
    with pytest.raises(
        NonFiniteError, match=r"(test0000|image 0) \(test\) are NaN or infinite at 24 of its 552 .* disc: "
    ):
        scored(planted(1, value))


@pytest.mark.parametrize("scored", [of_test_step, of_ablation])
@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_a_crf_that_is_given_nan_or_overflows_names_the_image(scored: Callable[[UNetModule], None], kind: str) -> None:
    module = planted(0, math.nan)  # a CRF looks at pixels without a label too
    module.refine = post_process(kind, **PRESETS["pydensecrf"])
    with pytest.raises(NonFiniteError, match=r"(test0000|image 0) \(test\): probabilities hold NaN"):
        scored(module)
    module = planted(0, 1.0)
    module.refine = post_process(kind, **PRESETS["pydensecrf"] | {"w_appearance": 3e38, "w_smoothness": 3e38})
    with pytest.raises(NonFiniteError, match=r"(test0000|image 0) \(test\): the marginals sum to"):
        scored(module)
    module.refine = lambda probabilities, images: probabilities * math.nan  # anybody's own
    with pytest.raises(NonFiniteError, match=r"(test0000|image 0) \(test\) are NaN or infinite"):
        scored(module)


@pytest.mark.parametrize("crf", ["dense", "conv"])
def test_a_crf_in_a_search_names_the_image(crf: str) -> None:
    kept = predict(planted(0, math.nan), ShapesDataModule(**TINY.data).dataset("val"), "val", [1, 2], print)
    point = {name: float(value) for name, value in PRESETS["pydensecrf"].items() if name.startswith(("w_", "theta"))}
    with workers(1) as pool:
        assert confusions(crf, None, kept, pool, torch.device("cpu")).sum() == 2 * 552
        with pytest.raises(NonFiniteError, match=r"val0001 \(val\): probabilities hold NaN"):
            confusions(crf, point, kept, pool, torch.device("cpu"))


def test_a_crf_inside_the_network_names_the_image() -> None:
    run = TINY.but(width=2)
    run = Run(module=CRFasRNNModule, datamodule=ShapesDataModule, hparams={"network": "unet"}, data=run.data)
    run = run.but(network_options={"width": 2, "depth": 1})
    module, _ = build(run)
    with torch.no_grad():
        module.network.network.head.bias[1] = math.nan
    with pytest.raises(NonFiniteError, match=r"image 0 \(test\): probabilities hold NaN"):
        module.eval().test_step(first_of_test(), 0)


def test_finite_logits_are_stored_as_finite_ones() -> None:
    stored = half(torch.tensor([1e5, -1e30, 0.5, math.inf]))
    assert stored.tolist() == [65504, -65504, 0.5, 65504] and stored.dtype == "float16"


def test_soft_segmentation_names_the_photograph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("skimage", reason='needs pip install -e ".[soft]"')
    path = tmp_path / "photo.png"
    Image.new("RGB", (32, 32)).save(path)
    broken = (lambda images: [images * math.nan], 3)
    monkeypatch.setattr("experiments.soft_segment.of_encoder", lambda name, weights: broken)
    args = soft_segment.parse_photograph([str(path), "--out", str(tmp_path / "out")])
    with pytest.raises(NonFiniteError, match=r"photo\.png: maps hold NaN or infinity"):
        soft_segment.segment(args, Console())
