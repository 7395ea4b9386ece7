"""Scores on a device without float64, as Apple's GPUs are: a stand-in that computes on the CPU and refuses to hold
one."""

from collections.abc import Iterator
from typing import Any, Self

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from lightning_modules.components import float64
from lightning_modules.components.scores.checkerboard import checkerboard_energy
from lightning_modules.components.scores.metrics import LossMean, Scores
from lightning_modules.unet import UNetModule

DEVICE = "meta"  # the kind of device that a tensor may be of without a driver for it


class OnDevice(torch.Tensor):
    """A tensor that says it is on DEVICE; its numbers are in `inner`, on the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Self:
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=DEVICE
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return call(function, args, kwargs or {})

    def tolist(self) -> Any:
        return self.inner.tolist()


def call(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The function on the CPU; what comes out is on the device if anything that goes in is, or if that is asked for."""
    seen = []
    plain, named = tree_map(lambda x: x.inner if isinstance(x, OnDevice) and not seen.append(x) else x, (args, kwargs))
    there = bool(seen)
    if any(isinstance(x, Tensor) and not isinstance(x, OnDevice) and x.ndim for x in tree_leaves(args)) and there:
        raise RuntimeError(f"{function}: tensors on two devices")
    if named.get("device") is not None:
        there, named["device"] = torch.device(named["device"]).type == DEVICE, torch.device("cpu")
    out = function(*plain, **named)
    name = function.__name__.split(".")[0]
    if there and name.endswith("_") and not name.endswith("__") and isinstance(args[0], OnDevice):
        return args[0]  # it was changed in place
    return tree_map(lambda x: held(x) if isinstance(x, Tensor) and there else x, out)


def tree_leaves(args: Any) -> list[Any]:
    found: list[Any] = []
    tree_map(found.append, args)
    return found


def held(value: Tensor) -> OnDevice:
    if value.dtype in (torch.float64, torch.complex128):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework does not support float64")
    return OnDevice(value)


class Driver(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return call(function, args, kwargs or {})


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    real = torch.tensor  # makes its tensor past the driver
    monkeypatch.setattr(torch, "tensor", lambda data, device="cpu", **kind: real(data, **kind).to(device))
    monkeypatch.setattr(float64, "NO_FLOAT64", (DEVICE,))
    with Driver():
        yield DEVICE


def test_the_stand_in_refuses_float64(device: str) -> None:
    values = torch.rand(3).to(device)
    assert values.device.type == DEVICE and values.sum().device.type == DEVICE and values.cpu().device.type == "cpu"
    for way in (lambda: values.double(), lambda: torch.zeros(3, dtype=torch.float64, device=device)):
        with pytest.raises(TypeError, match="float64"):
            way()
    with pytest.raises(TypeError, match="float64"):
        torch.rand(3, dtype=torch.float64).to(device)


@pytest.mark.parametrize("detailed", [False, True])
def test_every_score_is_that_of_the_cpu(detailed: bool, device: str) -> None:
    logits, masks, losses = torch.randn(2, 3, 24, 30), torch.randint(3, (2, 24, 30)), torch.rand(2)
    masks[0, :5], masks[1] = 255, 255
    here, there = Scores(3, 255, detailed=detailed), Scores(3, 255, detailed=detailed).to(device)
    expected = here.update(logits, masks, losses)
    found = there.update(logits.to(device), masks.to(device), losses.to(device))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name].cpu(), value, rtol=0, atol=0, equal_nan=True, msg=name)
    for name, mean in here.means.items():
        torch.testing.assert_close(there.means[name].compute().cpu(), mean.compute(), rtol=0, atol=0, equal_nan=True)
    there.reset()
    assert int(there.loss.count) == 0


def test_images_too_small_for_a_spectrum_have_no_energy(device: str) -> None:
    energy = checkerboard_energy(torch.rand(2, 3, 5, 5).to(device))
    assert energy.dtype == torch.float64 and energy.isnan().all()


def test_a_module_moves_and_its_epoch_loss_is_summed_up(device: str) -> None:
    module = UNetModule(3, 255, width=2, depth=1).to(device)
    assert {p.device.type for p in module.parameters()} == {DEVICE}
    module.epoch_loss.update(torch.tensor(1.5).to(device), 2)
    module.epoch_loss.update(0.5, 2)
    assert module.epoch_loss.sums() == (2.0, 4)
    mean = LossMean()
    mean.update(torch.tensor(1.5, dtype=torch.float64), 3)
    assert mean.to(device).to("cpu").sums() == (1.5, 3)
