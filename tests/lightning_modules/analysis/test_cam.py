from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.analysis.cam import seg_grad_cam, spread
from lightning_modules.analysis.receptive_field import ReceptiveField, receptive_field
from lightning_modules.unet import UNetModule


class HandMade(nn.Module):
    """Three maps at half the size, doubled; two logits that are sums of them with these weights."""

    WEIGHTS = torch.tensor([[2.0, -1.0, 0.0], [0.0, 1.0, 3.0]])

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.split, self.unused = nn.AvgPool2d(2), nn.Identity(), nn.Conv2d(1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(x)
        self.unused(x)
        maps = self.split(torch.cat([x, x * x, 1 - x], dim=1))
        logits = torch.einsum("kc,nchw->nkhw", self.WEIGHTS, maps)
        return F.interpolate(logits, scale_factor=2, mode="nearest")


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("region", [[(1, 2)], [(0, 0), (0, 1), (5, 3)]])
def test_the_map_of_a_network_made_by_hand(label: int, region: list[tuple[int, int]]) -> None:
    image = torch.rand(1, 1, 6, 8)
    mask = torch.zeros(6, 8, dtype=torch.bool)
    mask[tuple(zip(*region, strict=True))] = True
    cam = seg_grad_cam(HandMade(), image, "split", label, mask)
    x = F.avg_pool2d(image, 2)[0, 0]
    # A logit moves each map by its weight at one place: the mean over the 3 x 4 places is that over 12, once a pixel.
    alpha = HandMade.WEIGHTS[label] * len(region) / 12
    expected = (alpha[0] * x + alpha[1] * x * x + alpha[2] * (1 - x)).clamp(min=0)
    assert torch.allclose(cam, expected, atol=1e-6)


def test_what_speaks_against_a_class_counts_nothing() -> None:
    class Negative(HandMade):
        WEIGHTS = -HandMade.WEIGHTS.abs()

    assert not seg_grad_cam(Negative(), torch.rand(1, 1, 4, 4), "split", 0, torch.ones(4, 4, dtype=torch.bool)).any()


@pytest.mark.parametrize("layer", ["nowhere", "unused"])
def test_a_layer_without_a_way_to_the_logits_is_refused(layer: str) -> None:
    with pytest.raises(ValueError, match=f"layer.*'{layer}'"):
        seg_grad_cam(HandMade(), torch.rand(1, 1, 4, 4), layer, 0, torch.ones(4, 4, dtype=torch.bool))


def test_frozen_weights_and_the_mode_stay() -> None:
    module = UNetModule(3, 255, width=2, depth=1).requires_grad_(False)
    cam = seg_grad_cam(module, torch.rand(1, 3, 12, 10), "network.encoder.1", 2, torch.ones(12, 10, dtype=torch.bool))
    assert cam.shape == (6, 5) and module.training


def test_spread_as_interpolation_does() -> None:
    cam = torch.rand(3, 5)
    expected = F.interpolate(cam[None, None], size=(12, 15), mode="bilinear", align_corners=False)[0, 0]
    assert torch.allclose(spread(cam, 12, 15), expected, atol=1e-6)
    as_wide = ReceptiveField((7, 7), (4.0, 3.0), (1.5, 1.0))
    assert torch.allclose(spread(cam, 12, 15, as_wide), expected, atol=1e-6)
    assert torch.allclose(spread(cam, 12, 15, ReceptiveField(None, (4.0, 3.0), None)), expected, atol=1e-6)


def test_spread_puts_a_unit_where_the_centre_of_its_field_is() -> None:
    cam = torch.tensor([[0.0, 1.0, 0.0]])
    spot = spread(cam, 1, 12, ReceptiveField((5, 5), (4.0, 4.0), (0.0, 1.0)))
    assert spot[0].tolist() == [0, 0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25, 0, 0, 0]  # unit 1 at 1 + 4


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_a_bright_spot_lights_up_at_its_place(padding: Any) -> None:
    """Also where the map holds a mirrored border, around which a plain resize would miss."""
    module = UNetModule(2, 255, in_channels=1, width=2, depth=2, padding=padding, mean=[0.0], std=[1.0])
    for name, parameter in module.network.named_parameters():
        nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 0.1)
    image, size = torch.zeros(1, 1, 64, 48), (64, 48)
    image[0, 0, 40, 12] = 1
    cam = seg_grad_cam(module, image, "network.encoder.2", 0, torch.ones(size, dtype=torch.bool))
    placed = spread(cam, *size, receptive_field(module, 1, output="network.encoder.2"))
    weight = placed / placed.sum()
    at = [(weight.sum(1 - axis) * torch.arange(side)).sum().item() for axis, side in enumerate(size)]
    assert at == pytest.approx([40, 12], abs=2)
