"""Stages that are computed again backward give the numbers of those that are kept, and keep less."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_modules.base import SegmentationModule
from lightning_modules.catalogue import ARCHITECTURES
from lightning_modules.components.encoders import NATIVE, build_encoder
from lightning_modules.components.recomputing import checkpoint_encoders
from lightning_modules.crf_as_rnn import CRFasRNNModule
from lightning_modules.fcn import FCNModule
from lightning_modules.inverted_net import InvertedNetModule
from lightning_modules.pointrend import PointRendModule
from lightning_modules.segnet import SegNetModule
from lightning_modules.smp import SmpModule
from lightning_modules.unet import UNetModule

MODULES: dict[str, tuple[type[SegmentationModule], dict[str, Any]]] = {
    "unet": (UNetModule, {"width": 4, "depth": 2, "norm": "batch", "dropout": 0.5}),
    "segnet": (SegNetModule, {"width": 4}),
    "segnet-basic": (SegNetModule, {"variant": "basic", "width": 4}),
    "inverted-net": (InvertedNetModule, {"variant": "all-conv", "width": 4, "depth": 2}),
    "fcn": (FCNModule, {"encoder_width": 0.1, "fc_width": 8}),
    "pointrend": (PointRendModule, {"network": "unet", "network_options": {"width": 4, "depth": 2}, "points": 16}),
    "crf-as-rnn": (CRFasRNNModule, {"network_options": {"encoder_width": 0.1, "fc_width": 8}, "crf": "none"}),
}

FOREIGN = ("smp-resnet34", "efficientnet-b0", "tu-convnext_atto", "tu-swin_tiny_patch4_window7_224")


def stepped(module: SegmentationModule) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor], int]:
    """The loss of a step, the gradients, the state after it, and the bytes that the step kept for its backward pass."""
    torch.manual_seed(1)
    images, masks = torch.rand(2, 3, 64, 64), torch.randint(3, (2, 64, 64))
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    module.set_class_weights(torch.ones(3)) if module.weight_of_class is not None else None
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = module.train().loss(images, masks)
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, copy.deepcopy(module.state_dict()), sum(kept.values())


def check(kept: SegmentationModule, again: SegmentationModule) -> None:
    again.load_state_dict(kept.state_dict())
    (loss, gradients, state, size), (loss2, gradients2, state2, size2) = stepped(kept), stepped(again)
    assert torch.equal(loss, loss2)
    assert gradients.keys() == gradients2.keys() and state.keys() == state2.keys()
    for name, gradient in gradients.items():
        assert torch.equal(gradient, gradients2[name]), name
    for name, value in state.items():  # running statistics moved once
        assert torch.equal(value.nan_to_num(), state2[name].nan_to_num()), name
    assert size2 < size


@pytest.mark.parametrize("name", MODULES)
def test_a_network_takes_the_same_step_and_keeps_less(name: str) -> None:
    module, hparams = MODULES[name]
    check(module(3, 255, **hparams), module(3, 255, checkpointing=True, **hparams))


class Whole(nn.Module):
    """An encoder's last map, averaged."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        mean: Tensor = self.encoder(x)[-1].mean()
        return mean


@pytest.mark.parametrize("name", [*NATIVE, *FOREIGN])
def test_every_encoder_gives_the_same_gradients(name: str) -> None:
    options = {"width": 0.1} if name in NATIVE else {}
    kept = Whole(build_encoder(name, **options)).train()
    again = copy.deepcopy(kept)
    checkpoint_encoders(again)
    copied = copy.deepcopy(again)  # of which no layer is that of the original
    image, computed = torch.rand(2, 3, 64, 64), []
    for network in (kept, again, copied):
        torch.manual_seed(1)  # of stochastic depth
        stages: list[Any] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, stages=stages: stages.append(x) or x, lambda x: x):
            loss = network(image)
        loss.backward()
        computed.append(len(stages))
    assert computed[1] == computed[2] < computed[0] / 2
    for (key, value), other, third in zip(
        kept.named_parameters(), again.parameters(), copied.parameters(), strict=True
    ):
        assert value.grad is None or torch.equal(value.grad, other.grad), key
        assert value.grad is None or torch.equal(value.grad, third.grad), key
    for (key, value), other in zip(kept.named_buffers(), again.buffers(), strict=True):
        assert torch.equal(value, other), key


def test_networks_of_smp_too() -> None:
    check(SmpModule(3, 255), SmpModule(3, 255, checkpointing=True))


def test_a_network_without_encoder_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="checkpointing=True is of networks with an encoder: Conv2d has none"):
        checkpoint_encoders(nn.Conv2d(3, 3, 1))
    for module in ARCHITECTURES.values():  # and there is none
        assert "checkpointing" in module.module.__signature__.parameters
