import pytest
import torch
from torch import nn

from lightning_modules.analysis.overlap import overlaps
from lightning_modules.components.upsampling import transposed_2, transposed_3, transposed_4
from lightning_modules.fcn import FCN
from lightning_modules.unet import UNet

# Derived by hand: along one axis, pixel q of stride 2 gets taps q, q - 2, ... of the kernel.
BY_HAND = {
    (2, 2): [1, 1],
    (3, 2): [2, 1],  # taps 0 and 2 at even pixels, tap 1 alone at odd ones
    (4, 2): [2, 2],
    (5, 2): [3, 2],
    (5, 3): [2, 2, 1],
    (2, 3): [1, 1, 0],  # nothing reaches every third pixel
    (8, 2): [4, 4],
    (64, 32): [2] * 32,
    (3, 1): [3],
}


@pytest.mark.parametrize(("kernel", "stride"), BY_HAND)
def test_taps_are_those_derived_by_hand(kernel: int, stride: int) -> None:
    (found,) = overlaps(nn.ConvTranspose2d(3, 2, kernel, stride))
    line = torch.tensor(BY_HAND[kernel, stride], dtype=torch.int32)
    side = 3 * stride - max(0, stride - kernel)  # three periods, but for what lies behind the last tap
    assert found.away.shape == (side, side)
    assert torch.equal(found.away, torch.outer(line, line).repeat(3, 3)[:side, :side])
    assert (found.least, found.most) == (int(line.min()) ** 2, int(line.max()) ** 2)
    assert found.even == (kernel % stride == 0)


def test_the_whole_map_is_that_of_the_layer_itself() -> None:
    """Also with padding, dilation and sides that differ; the taps of one channel, whatever the groups are."""
    layer = nn.ConvTranspose2d(
        4, 4, (3, 4), (2, 3), padding=(1, 0), output_padding=(1, 2), dilation=(1, 2), groups=2, bias=False
    )
    nn.init.ones_(layer.weight)
    (found,) = overlaps(layer)
    inputs = [-(-3 // 2) + 2, -(-7 // 3) + 2]
    assert torch.equal(layer(torch.ones(1, 4, *inputs))[0, 0].int(), 2 * found.taps)  # two channels a group
    top, bottom, left, right = found.inner
    assert 0 <= top < bottom <= found.taps.shape[0] and 0 <= left < right <= found.taps.shape[1]


@pytest.mark.parametrize(("layer", "least", "most"), [(transposed_2, 1, 1), (transposed_3, 1, 4), (transposed_4, 4, 4)])
def test_the_layers_of_an_ablation_are_as_they_say(layer: type[nn.Module], least: int, most: int) -> None:
    (found,) = overlaps(layer(2, 2))
    assert (found.least, found.most) == (least, most)


def test_layers_of_one_geometry_share_a_map() -> None:
    (found,) = overlaps(UNet(2, width=2, depth=3))
    assert found.paths == ["up.0", "up.1", "up.2"] and found.kernel == (2, 2)
    assert overlaps(UNet(2, width=2, depth=3, upsample="bilinear")) == []


def test_fcn() -> None:
    with torch.device("meta"):
        (last,) = overlaps(FCN(2, stride=32))
        doubled, eight = overlaps(FCN(2, stride=8))
    assert (last.kernel, last.stride) == ((64, 64), (32, 32)) and last.even and last.least == 4
    assert doubled.paths == ["up.0", "up.1"] and eight.paths == ["upscore"]
