"""Batch norms over several GPUs: converted by itself, the same network otherwise, and the same checkpoint."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from experiments.runs.devices import synchronise_batch_norm
from experiments.shell.catalogue import ARCHITECTURES
from lightning_modules.base import SegmentationModule
from lightning_modules.catalogue import NETWORKS


def trainer(devices: int, device: str) -> Any:
    """What is asked of a trainer, which no machine without GPUs can make."""
    return SimpleNamespace(world_size=devices, strategy=SimpleNamespace(root_device=torch.device(device)))


def drawn(cls: type[SegmentationModule], **settings: Any) -> SegmentationModule:
    """A module whose batch norms have statistics, scales and shifts of their own."""
    module = cls(3, 255, **settings)
    for norm in module.network.modules():
        if isinstance(norm, _BatchNorm):
            for tensor in (norm.running_mean, norm.running_var, norm.weight.data, norm.bias.data):
                tensor.uniform_(0.5, 1.5)
    return module


def groups(module: SegmentationModule) -> list[tuple[dict[str, Any], list[str]]]:
    """What the optimiser does to which weights."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    return [
        ({key: value for key, value in group.items() if key != "params"}, [names[p] for p in group["params"]])
        for group in module.parameter_groups()
    ]


SETTINGS = {name: dict(one.small) for name, one in NETWORKS.items()} | {
    "unet": {"width": 4, "depth": 2, "norm": "batch"},
    "smp": {"arch": "Unet", "encoder": "tu-mobilenetv3_small_050"},  # its batch norms hold the activations
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_synchronised_network_computes_trains_and_loads_as_before(name: str) -> None:
    module, settings = drawn(ARCHITECTURES[name], **SETTINGS[name]), SETTINGS[name]
    frozen = [norm for norm in module.network.modules() if isinstance(norm, _BatchNorm) and not norm.training]
    norms = sum(isinstance(part, _BatchNorm) for part in module.network.modules())
    images, before = torch.rand(2, 3, 64, 64), groups(module)
    module.eval()
    with torch.no_grad():
        expected = module(images)
    module.train()
    synchronise_batch_norm(trainer(2, "cuda"), module)
    converted = [part for part in module.network.modules() if isinstance(part, nn.SyncBatchNorm)]
    assert len(converted) == norms == sum(isinstance(part, _BatchNorm) for part in module.network.modules())
    assert len([norm for norm in converted if not norm.training]) == len(frozen)
    assert groups(module) == before
    state = module.state_dict()
    alone = ARCHITECTURES[name](3, 255, **settings)
    alone.load_state_dict(state)  # strictly: of the same names
    module.eval(), alone.eval()
    with torch.no_grad():
        torch.testing.assert_close(module(images), expected, rtol=0, atol=0)
        torch.testing.assert_close(alone(images), expected, rtol=0, atol=0)


def test_nothing_is_converted_on_one_gpu_or_without_batch_norm_and_cpu_processes_are_warned() -> None:
    unet = ARCHITECTURES["unet"]
    module = unet(3, 255, width=4, depth=2, norm="batch")
    synchronise_batch_norm(trainer(1, "cuda"), module)
    with pytest.warns(UserWarning, match="cannot be synchronised over CPU processes"):
        synchronise_batch_norm(trainer(2, "cpu"), module)
    assert not any(isinstance(part, nn.SyncBatchNorm) for part in module.modules())
    grouped = unet(3, 255, width=4, depth=2, norm="group")
    network = grouped.network
    synchronise_batch_norm(trainer(2, "cuda"), grouped)
    assert grouped.network is network
