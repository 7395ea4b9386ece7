"""Settings of a run are plain before anything is stored: numbers of numpy and torch, and what has no plain form."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from interrupt import BASE, OFTEN, QUIET, At, PowerCut, cut

from experiments.runs.run import Run
from experiments.runs.training import train
from experiments.shell.catalogue import load
from lightning_modules.base import plain


def test_settings_of_numpy_are_plain_before_anything_is_stored(tmp_path: Path) -> None:
    run = Run(
        module=BASE.module,
        datamodule=BASE.datamodule,
        hparams={
            "width": np.int64(2),
            "depth": 2,
            "lr": np.logspace(-3, -2, 3)[0],
            "class_weights": [np.float64(1), np.float32(2), np.int8(1)],
            "mean": list(np.array([0.5, 0.25, 0.5])),
            "upsample": np.str_("nearest"),
        },
        data={"size": np.int32(16), "length": 4, "flip": np.bool_(True), "zoom": np.array([0.5, 2.0])},
        trainer={"max_epochs": np.int64(1)},
        seed=np.int64(1),  # type: ignore[arg-type]
    )
    written = Run(
        module=BASE.module,
        datamodule=BASE.datamodule,
        hparams={
            "width": 2,
            "depth": 2,
            "lr": 0.001,
            "class_weights": [1.0, 2.0, 1],
            "mean": [0.5, 0.25, 0.5],
            "upsample": "nearest",
        },
        data={"size": 16, "length": 4, "flip": True, "zoom": [0.5, 2.0]},
        trainer={"max_epochs": 1},
        seed=1,
    )
    assert run == written
    assert run.hash == written.hash
    with pytest.raises(PowerCut):
        train(run, tmp_path / "run", callbacks=[At(4, cut)], save_every=OFTEN, **QUIET)
    train(run, tmp_path / "run", resume=True, **QUIET)
    assert load(tmp_path / "run" / "checkpoints" / "last.ckpt").hparams["lr"] == 0.001


def test_a_module_built_by_hand_stores_plain_settings() -> None:
    checkpoint: dict[str, Any] = {
        "hyper_parameters": {"lr": np.float64(0.1), "network_options": {"width": np.int64(2)}}
    }
    module = BASE.module(3, 255, width=2, depth=2)
    module.on_save_checkpoint(checkpoint)
    assert [type(value) for value in checkpoint["hyper_parameters"].values()] == [float, dict]
    assert type(checkpoint["hyper_parameters"]["network_options"]["width"]) is int


@pytest.mark.parametrize("value", [print, object(), {1, 2}, 1j])
def test_a_setting_without_a_plain_form_is_named(value: object) -> None:
    with pytest.raises(ValueError, match=r"hparams lr must be a number, a word, a list or a dictionary"):
        BASE.but(lr=value)
    with pytest.raises(ValueError, match="here must be"):
        plain([value], "here")
