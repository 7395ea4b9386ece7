import math

import pytest
import torch
from torch import Tensor, nn

from lightning_modules.analysis.effective_field import effective_field, held, smoothed
from lightning_modules.analysis.receptive_field import Box, field_of_pixel
from lightning_modules.unet import UNetModule


def averaging(count: int) -> nn.Sequential:
    """So many 3x3 means, without a bias."""
    layers = [nn.Conv2d(1, 1, 3, padding=1, bias=False) for _ in range(count)]
    for layer in layers:
        nn.init.constant_(layer.weight, 1 / 9)
    return nn.Sequential(*layers)


def test_the_field_of_means_is_their_convolution() -> None:
    """Two means in a row weigh 1, 2, 3, 2, 1 along each axis: Luo et al., Sec. 2.2."""
    field = effective_field(averaging(2), torch.rand(3, 1, 11, 13), (5, 6))
    line = torch.tensor([1.0, 2, 3, 2, 1], dtype=torch.float64) / 9
    expected = torch.zeros(11, 13, dtype=torch.float64)
    expected[3:8, 4:9] = torch.outer(line, line)
    assert torch.allclose(field, expected, atol=1e-6)


def test_it_grows_as_a_root_where_the_theoretical_field_grows_with_depth() -> None:
    sides = {n: held(effective_field(averaging(n), torch.rand(1, 1, 81, 81), (40, 40))).side for n in (4, 16)}
    assert sides[16] / sides[4] == pytest.approx(2, abs=0.15)
    # Of a sum of n steps of variance 2/3 along each axis 95 % lie in a circle of the radius sqrt(-2 ln 0.05) sigmas.
    assert sides[16] == pytest.approx(math.sqrt(math.pi * -2 * math.log(0.05) * 16 * 2 / 3), rel=0.03)


class Mirrored(nn.Module):
    """Two logits of which one is the other with its sign turned: their sum moves with nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :1] - 2 * x[:, 1:], 2 * x[:, 1:] - x[:, :1]], dim=1)


def test_logits_that_mirror_each_other_do_not_cancel() -> None:
    field = effective_field(Mirrored(), torch.rand(1, 2, 4, 4), (1, 2))
    assert field[1, 2] == 1 and field.sum() == 1


def test_every_image_counts_the_same() -> None:
    class Squared(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * x + torch.roll(x, 1, -1)).sum(1, keepdim=True)

    images = torch.stack([torch.full((1, 3, 3), 1.0), torch.full((1, 3, 3), 0.0)])
    field = effective_field(Squared(), images, (1, 1))
    # 2 x to the pixel itself and 1 to its neighbour: 2/3 and 1/3 in the first image, 0 and 1 in the second.
    assert field[1, 1] == pytest.approx((2 / 3 + 0) / 2) and field[1, 0] == pytest.approx((1 / 3 + 1) / 2)


def test_nothing_moves_a_constant() -> None:
    class Zero(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 0 * x

    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ones_like(x)

    for network in (Zero(), Constant()):
        field = effective_field(network, torch.rand(2, 1, 4, 4), (0, 0))
        assert not field.any()
        with pytest.raises(ValueError, match="0 at every pixel"):
            held(field)


def test_what_is_held() -> None:
    field = torch.tensor([[0.5, 0.25, 0.125], [0.0625, 0.0625, 0.0]])
    assert held(field, 0.5) == (0.5, 1)
    assert held(field, 0.75) == (0.25, 2)
    assert held(field, 0.9) == (0.0625, 5)  # two with the same level are both in it
    assert held(field, 1.0).side == math.sqrt(5)


def test_the_mode_of_the_network_stays() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    effective_field(network, torch.rand(1, 1, 5, 5), (2, 2))
    assert network.training and all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_it_lies_within_the_theoretical_field(padding: str) -> None:
    module = UNetModule(2, 255, in_channels=1, width=2, depth=2, padding=padding, mean=[0.0], std=[1.0])
    for parameter in module.network.parameters():
        parameter.data.abs_()  # or a ReLU in the way might let nothing through
    size, pixel = (72, 56), (20, 41)
    box = field_of_pixel(module, 1, size, pixel)
    assert box is not None
    rows, columns = effective_field(module, torch.rand(2, 1, *size), pixel).nonzero().T
    assert box.top <= rows.min() and rows.max() <= box.bottom
    assert box.left <= columns.min() and columns.max() <= box.right
    assert box.top == 0 and box.right == 55 and box.bottom < 71 and box.left > 0  # cut at two borders


def test_the_field_of_a_pixel() -> None:
    assert field_of_pixel(averaging(2), 1, (20, 30), (10, 29)) == Box(8, 12, 27, 29)
    assert field_of_pixel(nn.Sequential(averaging(1), nn.AdaptiveAvgPool2d(1)), 1, (9, 7), (0, 0)) == Box(0, 8, 0, 6)


def test_smoothing_keeps_the_sum_and_the_middle() -> None:
    field = torch.zeros(40, 60, dtype=torch.float64)
    field[10:31, 20:41] = torch.rand(21, 21, dtype=torch.float64)
    smooth = smoothed(field)
    assert smooth.sum() == pytest.approx(field.sum().item(), rel=1e-9)
    assert smooth.argmax() // 60 == pytest.approx(20, abs=8)
    # The lines of the middle are even, where those of chance were not.
    assert smooth[15:26, 25:36].std() < 0.3 * field[15:26, 25:36].std()
    corner = torch.zeros(9, 9, dtype=torch.float64)
    corner[0, 0] = 1
    assert smoothed(corner)[0, 0] == pytest.approx(1) and smoothed(corner).sum() == pytest.approx(1)
    line = torch.ones(1, 7, dtype=torch.float64)
    assert torch.allclose(smoothed(line), line)
