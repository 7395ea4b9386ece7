"""FSDP2: a network in shards trains as a whole one does, and leaves the same files."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from sharded_runs import RUNS, UNET, WHERE, back_to_previous, run_of

from experiments.runs.strategies import strategy_of
from experiments.runs.training import build, train
from lightning_modules.components.sharding import parts
from lightning_modules.deconvnet import DeconvNetModule
from lightning_modules.fcn import FCNModule
from lightning_modules.recipe import Recipe

HPARAMS = vars(Recipe())


def train_in_two_processes(folder: Path, *names: str) -> None:
    """The runs of `sharded_runs` with these names, by DDP and in shards."""
    script = Path(__file__).with_name("sharded_runs.py")
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, script, folder, *names],
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{root}:{root / 'tests' / 'experiments'}"},
    )
    assert done.returncode == 0, done.stderr[-3000:]


def losses(out: Path) -> list[float]:
    """Of each epoch, which has one step here."""
    return list(pd.read_csv(out / "metrics.csv")["train/loss"])


def checkpoint(out: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    return loaded


def check_same(folder: Path, name: str) -> None:
    whole, shards = (folder / f"{name}-{strategy}" for strategy in ("ddp", "fsdp2"))
    assert losses(shards) == pytest.approx(losses(whole), rel=1e-5)
    module, datamodule = build(run_of(name))
    image = datamodule.dataset("test")[0][0][None]
    logits = []
    for out in (whole, shards):
        module.load_state_dict(checkpoint(out)["state_dict"])  # plain tensors by plain names
        logits.append(module.eval()(image))
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)
    assert (shards / "per_image.npz").is_file() and (shards / "samples.npz").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RUNS if name != "unet"])
def test_batch_norms_and_losses_of_several_outputs_are_those_of_whole_networks(name: str, tmp_path: Path) -> None:
    train_in_two_processes(tmp_path, name)
    check_same(tmp_path, name)


def test_shards_train_as_whole_networks_do_and_any_number_of_devices_goes_on(tmp_path: Path) -> None:
    train_in_two_processes(tmp_path, "unet")
    check_same(tmp_path, "unet")

    # The optimiser's states are numbered as torch numbers them: AdamW goes on from them on one device, and back.
    resumed = Path(shutil.copytree(tmp_path / "unet-fsdp2", tmp_path / "alone"))
    back_to_previous(resumed)
    train(UNET, resumed, resume=True, **{**WHERE, "devices": 1})
    whole = tmp_path / "unet-ddp"
    for out in (tmp_path / "unet-resumed", resumed):
        assert losses(out) == pytest.approx(losses(whole), rel=1e-5)
        for name, weight in checkpoint(whole)["state_dict"].items():
            torch.testing.assert_close(checkpoint(out)["state_dict"][name], weight, rtol=1e-4, atol=1e-5)


def test_the_largest_networks_are_gathered_stage_by_stage() -> None:
    with torch.device("meta"):
        deconvnet, fcn = (module(21, 255).network for module in (DeconvNetModule, FCNModule))
    for network, heads in ((deconvnet, ["fc6", "fc7", "fc6_deconv"]), (fcn, ["fc6", "fc7"])):
        found = list(parts(network))
        assert all(getattr(network, name) in found for name in heads)
        of_encoder = {id(part) for part in network.encoder.modules()}
        assert sum(id(part) in of_encoder for part in found) > 5
        in_parts = [p for part in found for p in part.parameters()]
        assert len(in_parts) == len({*map(id, in_parts)})  # none twice
        everything = sum(p.numel() for p in network.parameters())
        assert sum(p.numel() for p in in_parts) > 0.97 * everything


@pytest.mark.parametrize(
    ("hparams", "precision", "told"),
    [
        ({"average": "ema"}, None, "takes --model.average none, got ema: an average needs the whole network"),
        ({"compile": True}, None, "takes --model.compile False, got True: torch.compile breaks"),
        ({"channels_last": True}, None, "takes --model.channels_last False, got True"),
        ({}, "16-mixed", "takes --trainer.precision 32-true, bf16-mixed, .* got 16-mixed"),
    ],
)
def test_what_does_not_go_with_shards_is_refused_by_name(hparams: dict[str, Any], precision: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        strategy_of("fsdp2", HPARAMS | hparams, precision)
    assert strategy_of("ddp", HPARAMS | hparams, precision) == "ddp"


def test_it_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="average"):
        train(UNET.but(average="ema"), tmp_path / "run", strategy="fsdp2", **WHERE)
    assert not (tmp_path / "run").exists()
