"""torch.compile of the network in training: the same training but for rounding, and the same files."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from sharded_runs import UNET, WHERE, back_to_previous

from experiments.runs.training import train
from lightning_modules.components import compiling
from lightning_modules.recipe import Recipe
from lightning_modules.unet import UNet

SMALL = UNET.but(trainer={"gradient_clip_val": None}).but(width=4, depth=2, norm="batch", average="ema")
ALONE = {**WHERE, "devices": 1}


def weights(out: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return loaded


@pytest.mark.slow  # a minute of a compiler
def test_a_compiled_run_has_plain_files_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    train(SMALL, tmp_path / "eager", **ALONE)
    train(SMALL.but(compile=True), tmp_path / "compiled", **ALONE)
    eager, compiled = (weights(tmp_path / name) for name in ("eager", "compiled"))
    assert eager.keys() == compiled.keys()
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-3, atol=1e-4)
    assert any(not torch.equal(value, compiled[name]) for name, value in eager.items())  # or nothing was compiled
    back_to_previous(tmp_path / "compiled")
    train(SMALL.but(compile=True), tmp_path / "compiled", resume=True, **ALONE)
    for name, value in weights(tmp_path / "compiled").items():
        assert torch.equal(value, compiled[name]), name


def test_evaluation_and_copies_are_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(1)
        return graph.forward

    network = UNet(3, width=2, depth=1)
    image = torch.rand(1, 3, 8, 8)
    monkeypatch.setattr(compiling, "check_compiler", lambda device: None)
    monkeypatch.setattr(torch, "compile", lambda call, **how: torch._dynamo.optimize(backend, **how)(call))
    compiling.compile_(network, (), torch.device("cpu"))
    copied = deepcopy(network)
    with compiling.eager(network):
        network(image)
    copied(image)
    assert not compiled and not compiling.is_compiled(copied)
    network(image)
    assert len(compiled) == 1
    with pytest.raises(ValueError, match=r"at most 8 sizes in training.* set --data\.crop"):
        for side in range(16, 64, 4):
            with compiling.explaining_compiler(network):
                network(torch.rand(1, 3, side, side))


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    with pytest.raises(ValueError, match=r"compile=True needs a C\+\+ compiler.* leave --model\.compile out"):
        train(SMALL.but(compile=True), tmp_path / "run", **ALONE)


def test_two_ways_of_computing_again_are_refused() -> None:
    with pytest.raises(ValueError, match="checkpointing=True does not go with compile=True"):
        Recipe(checkpointing=True, compile=True)
