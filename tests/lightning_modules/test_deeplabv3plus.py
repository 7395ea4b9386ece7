from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.deeplabv3plus import DeepLabV3Plus, DeepLabV3PlusModule

TINY: dict[str, Any] = {"encoder": "resnet50", "encoder_width": 1 / 16, "decoder_width": 6, "low_level_width": 4}


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def on_meta(*args: Any, **kwargs: Any) -> DeepLabV3Plus:
    with torch.device("meta"):
        return DeepLabV3Plus(*args, **kwargs)


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ({}, 41_049_269),
        ({"separable": False}, 54_705_317),
        ({"encoder": "resnet101"}, 45_688_261),
        ({"encoder": "resnet101", "separable": False}, 59_344_309),
        ({"encoder": "resnet101", "separable": False, "decoder": False}, 58_040_661),  # is DeepLab v3
        ({"encoder": "mobilenet_v2"}, 4_392_453),  # ours: all 1,280 channels of the last map, low level from 24
    ],
)
def test_parameters_of_the_published_networks(arguments: dict[str, Any], count: int) -> None:
    assert parameters(on_meta(21, **arguments)) == count


def decoded(network: DeepLabV3Plus, x: Tensor) -> Tensor:
    """Fig. 2 above the encoder spelled out, for batch norms that have seen nothing yet, with the weights of
    `network`."""
    w = dict(network.named_parameters())

    def block(x: Tensor, name: str, rate: int = 1) -> Tensor:
        for layer in ("depthwise", "pointwise") if f"{name}.depthwise.weight" in w else ("0",):
            weight = w[f"{name}.{layer}.weight"]
            groups, padding = x.shape[1] // weight.shape[1], rate * (weight.shape[2] // 2)
            x = F.conv2d(x, weight, padding=padding, dilation=rate, groups=groups)
            x = F.relu(x / (1 + 1e-5) ** 0.5)
            rate = 1
        return x

    def resize(x: Tensor, size: torch.Size) -> Tensor:
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)

    features = network.encoder(x)
    low, high = features[2], features[-1]
    maps = [block(high, f"aspp.branches.{index}", rate) for index, rate in enumerate((1, 6, 12, 18))]
    maps.append(block(high.mean((2, 3), keepdim=True), "aspp.branches.4.block").expand_as(maps[0]))
    up = resize(block(torch.cat(maps, 1), "aspp.project"), low.shape[2:])
    merged = torch.cat([block(low, "low_level"), up], 1)
    logits = F.conv2d(block(block(merged, "decoder.0"), "decoder.1"), w["head.weight"], w["head.bias"])
    return resize(logits, x.shape[2:])


@pytest.mark.parametrize("separable", [True, False])
def test_equals_the_figure_spelled_out(separable: bool) -> None:
    network = DeepLabV3Plus(3, **TINY, separable=separable).eval()
    images = torch.randn(2, 3, 65, 75)
    logits = network(images)
    torch.testing.assert_close(logits, decoded(network, images))
    assert logits.std(dim=(2, 3)).min() > 1e-3  # large enough for the comparison to mean something


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("decoder", [True, False])
def test_every_output_stride_keeps_odd_sizes_and_trains(output_stride: int, decoder: bool) -> None:
    network = DeepLabV3Plus(3, **TINY, output_stride=output_stride, decoder=decoder)
    images = torch.rand(1, 3, 65, 75)
    stride = 4 if decoder else output_stride  # Sec. 3.1: the decoder takes the resolution of the low-level features
    assert network.logits(images).shape == (1, 3, -(-65 // stride), -(-75 // stride))
    logits = network(images)
    assert logits.shape == (1, 3, 65, 75)
    logits.square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_only_the_decoder_brings_back_detail_that_the_output_stride_lost() -> None:
    for decoder in (True, False):
        network = DeepLabV3Plus(2, **TINY, decoder=decoder).eval()
        network.aspp.register_forward_hook(lambda module, args, output: torch.zeros_like(output))
        image = torch.rand(1, 3, 64, 64)
        assert (network(image).std(dim=(2, 3)).max() > 1e-6) == decoder


@pytest.mark.parametrize(("encoder", "width"), [("xception65", 1 / 16), ("xception71", 1 / 16), ("mobilenet_v2", 1.0)])
def test_takes_the_encoders_of_the_paper(encoder: str, width: float) -> None:
    network = DeepLabV3Plus(3, 1, encoder=encoder, encoder_width=width, decoder_width=8).eval()
    assert network(torch.rand(1, 1, 33, 47)).shape == (1, 3, 33, 47)


def test_the_recipe_is_that_of_the_paper() -> None:
    module = DeepLabV3PlusModule(3, 255, **TINY, freeze_batch_norm=True).train()
    keys = ("lr", "momentum", "weight_decay", "schedule", "output_stride", "batch_norm_decay")
    assert [module.hparams[key] for key in keys] == [0.007, 0.9, 4e-5, "poly", 16, 0.9997]
    norms = [m for m in module.network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [norm.momentum for norm in norms] == pytest.approx([0.0003] * len(norms))
    assert not any(norm.training or p.requires_grad for norm in norms for p in norm.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decoder_width": 0}, "decoder_width must be at least 1, got 0"),
        ({"low_level_width": -1}, "low_level_width must be at least 1, got -1"),
        ({"rates": "6"}, r"rates must be a list of .* such as \[6, 12, 18\], got '6'"),
    ],
)
def test_errors_name_the_argument(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeepLabV3Plus(2, **TINY | arguments)
