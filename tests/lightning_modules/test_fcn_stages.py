"""FCN trained in stages: a checkpoint gives the next finer stream all but its last upsampling."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from test_fcn import TINY

from datamodules.shapes import ShapesDataModule
from lightning_modules.components.upsampling import bilinear_kernel
from lightning_modules.fcn import FCNModule


def checkpoint(module: FCNModule, path: Path) -> str:
    trainer = Trainer(
        max_steps=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        accelerator="cpu",
        default_root_dir=path.parent,
    )
    trainer.fit(module, ShapesDataModule(length=2, batch_size=1))
    trainer.save_checkpoint(path)
    return str(path)


def test_training_in_stages_takes_over_all_but_the_last_upsampling(tmp_path: Path) -> None:
    classes = ShapesDataModule().num_classes
    staged: dict[str, Any] = {**TINY, "at_once": False, "loss": "ce", "lr": 0.1}
    coarse = FCNModule(classes, 255, stride=32, mean=(0.1, 0.2, 0.3), **staged)
    first = checkpoint(coarse, tmp_path / "32s.ckpt")
    middle = FCNModule(classes, 255, stride=16, init_from=first, **staged)
    for name, weight in coarse.state_dict().items():
        if name != "network.upscore.weight":
            torch.testing.assert_close(middle.state_dict()[name], weight)
    torch.testing.assert_close(middle.network.upscore.weight, bilinear_kernel(classes, 16))
    assert coarse.network.scores[0].weight.any() and not middle.network.scores[1].weight.any()

    second = checkpoint(middle, tmp_path / "16s.ckpt")
    fine = FCNModule(classes, 255, stride=8, init_from=second, **staged)
    torch.testing.assert_close(fine.network.scores[1].weight, middle.network.scores[1].weight)

    coloured = FCNModule(classes, 255, stride=16, init_from=first, mean=(0.5, 0.6, 0.7), **staged)
    assert coloured.mean.flatten().tolist() == pytest.approx([0.5, 0.6, 0.7])  # said, so it stays
    assert middle.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])

    Path(first).unlink()  # the second stage's checkpoint holds what it took from the first
    loaded = FCNModule.load_from_checkpoint(second, weights_only=True).eval()
    image = torch.rand(1, 3, 40, 40)
    torch.testing.assert_close(loaded(image), middle.eval()(image))


def test_a_checkpoint_that_does_not_fit_the_next_stage_is_refused(tmp_path: Path) -> None:
    path = checkpoint(FCNModule(4, 255, stride=16, loss="ce", **TINY), tmp_path / "16s.ckpt")
    for arguments, message in (
        ({"stride": 8}, "at_once=True, not False"),
        ({"stride": 16}, "stride=16, not 32"),
        ({"stride": 8, "fc_width": 16}, "fc_width=8, not 16"),
        ({"stride": 32}, "init_from is for stride 16 or 8"),
        ({"stride": 8, "at_once": True}, "init_from is for stride 16 or 8 and at_once=False"),
    ):
        with pytest.raises(ValueError, match=message):
            FCNModule(4, 255, init_from=path, **{"at_once": False, **TINY, **arguments})
    (tmp_path / "broken.ckpt").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="is not a checkpoint"):
        FCNModule(4, 255, init_from=str(tmp_path / "broken.ckpt"), at_once=False, **TINY)
    with pytest.raises(FileNotFoundError, match="give a checkpoint of FCN-16s"):
        FCNModule(4, 255, init_from=str(tmp_path / "none.ckpt"), at_once=False, **TINY)


def test_a_checkpoint_with_other_weights_than_it_says_is_refused(tmp_path: Path) -> None:
    path = checkpoint(FCNModule(4, 255, stride=32, at_once=False, loss="ce", **TINY), tmp_path / "32s.ckpt")
    stored = torch.load(path, weights_only=True)
    first, second = [n for n, w in stored["state_dict"].items() if n.startswith("network.encoder") and w.ndim == 4][:2]
    for state, message in (
        ({"other": torch.zeros(1)}, "holds other layers: network.encoder"),
        (stored["state_dict"] | {first: stored["state_dict"][second]}, f"holds other layers: {first}"),
        ({}, "its state_dict is not tensors by name"),
        ({"network.encoder.x": "x"}, "its state_dict is not tensors by name"),
    ):
        torch.save(stored | {"state_dict": state}, path)
        with pytest.raises(ValueError, match=message):
            FCNModule(4, 255, stride=16, init_from=path, at_once=False, loss="ce", **TINY)
    torch.save(stored | {"segmentation": {}}, path)
    with pytest.raises(ValueError, match="it names no architecture"):
        FCNModule(4, 255, stride=16, init_from=path, at_once=False, loss="ce", **TINY)
