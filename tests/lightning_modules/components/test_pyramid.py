import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_modules.components.blocks import separable_conv
from lightning_modules.components.pyramid import ASPP, PyramidPooling, atrous_rates, pool_to_bins


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def support(network: nn.Module, size: int) -> list[tuple[int, int]]:
    """Where a size x size map with one channel changes the centre of the output, relative to that centre."""
    centre = size // 2
    x = torch.rand(1, 1, size, size, requires_grad=True)
    network.eval()(x)[0, :, centre, centre].sum().backward()
    assert x.grad is not None
    return [(int(row) - centre, int(column) - centre) for row, column in x.grad[0, 0].nonzero()]


def positive(network: nn.Module) -> nn.Module:
    """Weights above zero, so that no ReLU cuts a path off."""
    for parameter in network.parameters():
        nn.init.uniform_(parameter, 0.1, 1.0)
    return network


@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize("rates", [(1,), (2, 5), (6, 12, 18)])
def test_aspp_sees_the_eight_neighbours_at_each_rate_and_the_pixel_itself(
    rates: tuple[int, ...], separable: bool
) -> None:
    seen = support(positive(ASPP(1, 4, rates, image_pooling=False, separable=separable)), 41)
    steps = (-1, 0, 1)
    assert set(seen) == {(0, 0)} | {(i * rate, j * rate) for rate in rates for i in steps for j in steps}


def test_image_pooling_sees_the_whole_map() -> None:
    assert len(support(positive(ASPP(1, 4, (3,))), 21)) == 21 * 21


def test_rates_reach_as_far_in_the_image_at_every_output_stride() -> None:
    assert atrous_rates(16) == (6, 12, 18)  # DeepLab v3, Sec. 3.3
    assert atrous_rates(8) == (12, 24, 36)  # doubled
    assert all(stride * rate == 6 * 16 for stride in (8, 16, 32) for rate in atrous_rates(stride)[:1])


def valid_weights(size: int, rate: int) -> Tensor:
    """How many of the nine weights fall on the map, at each of its positions."""
    return F.conv2d(torch.ones(1, 1, size, size), torch.ones(1, 1, 3, 3), padding=rate, dilation=rate).flatten()


@pytest.mark.parametrize("rate", [1, 6, 12, 18, 30, 32, 33, 48, 64, 65, 80])
def test_valid_weights_fall_to_one_as_the_rate_grows_to_the_size_of_the_map(rate: int) -> None:
    size = 65  # Fig. 4 of DeepLab v3: a 3x3 kernel on a 65 x 65 map
    counts = valid_weights(size, rate)
    inside, outside = max(size - 2 * rate, 0), max(2 * rate - size, 0)  # rows with all three taps, and with the middle
    middle = min(outside, size)
    assert int((counts == 9).sum()) == inside**2
    assert int((counts == 1).sum()) == middle**2
    assert int((counts == 4).sum()) == (size - inside - middle) ** 2


def test_a_rate_as_large_as_the_map_leaves_a_1x1_convolution() -> None:
    branch = ASPP(3, 5, (9,)).eval().branches[1]
    x = torch.rand(2, 3, 9, 9)
    centre = branch[0].weight[:, :, 1:2, 1:2]
    torch.testing.assert_close(branch[0](x), F.conv2d(x, centre))
    assert not torch.allclose(ASPP(3, 5, (8,)).branches[1][0](x)[..., 0, 0], F.conv2d(x, centre)[..., 0, 0])


def test_aspp_is_its_figure_spelled_out() -> None:
    aspp = ASPP(3, 4, (2, 3)).eval()
    x = torch.rand(2, 3, 9, 7)
    maps = [F.conv2d(x, aspp.branches[0][0].weight)]
    maps += [F.conv2d(x, aspp.branches[i][0].weight, padding=r, dilation=r) for i, r in ((1, 2), (2, 3))]
    maps += [F.conv2d(x.mean((2, 3), keepdim=True), aspp.branches[3].block[0].weight).expand(-1, -1, 9, 7)]

    def norm_relu(x: Tensor) -> Tensor:
        return F.relu(x / (1 + 1e-5) ** 0.5)  # a batch norm that has seen nothing yet

    expected = norm_relu(F.conv2d(torch.cat([norm_relu(m) for m in maps], 1), aspp.project[0].weight))
    torch.testing.assert_close(aspp(x), expected)


@pytest.mark.parametrize("bins", [1, 2, 3, 6])
@pytest.mark.parametrize(("pool", "peer"), [("average", F.adaptive_avg_pool2d), ("max", F.adaptive_max_pool2d)])
def test_bins_are_those_of_adaptive_pooling(bins: int, pool: str, peer: object) -> None:
    for shape in ((60, 60), (7, 13), (4, 1)):
        x = torch.rand(2, 3, *shape)
        torch.testing.assert_close(pool_to_bins(x, bins, pool), peer(x, bins))  # type: ignore[operator]


def test_each_level_of_the_pyramid_is_constant_over_its_bins_or_between() -> None:
    x = torch.rand(1, 4, 12, 12)
    maps = PyramidPooling(4, bins=(1, 12), reduce=False)(x)
    torch.testing.assert_close(maps[:, :4], x)
    torch.testing.assert_close(maps[:, 4:8], x.mean((2, 3), keepdim=True).expand_as(x))  # one bin: the global mean
    torch.testing.assert_close(maps[:, 8:], x)  # as many bins as pixels: the map


@pytest.mark.parametrize("pool", ["average", "max"])
def test_reduction_brings_the_levels_down_to_the_channels_of_the_map(pool: str) -> None:
    reduced, full = PyramidPooling(8, pool=pool), PyramidPooling(8, pool=pool, reduce=False)
    x = torch.rand(2, 8, 5, 6)
    assert reduced.eval()(x).shape == (2, 16, 5, 6) and reduced.out_channels == 16  # PSPNet, Sec. 3.2: 1/N of each
    assert full(x).shape == (2, 40, 5, 6) and full.out_channels == 40
    assert parameters(reduced) == 4 * (8 * 2 + 2 * 2) and parameters(full) == 0


def test_without_bins_the_map_is_left_as_it_is() -> None:
    pyramid, x = PyramidPooling(8, bins=()), torch.rand(1, 8, 3, 3)
    assert pyramid.out_channels == 8 and torch.equal(pyramid(x), x)


@pytest.mark.parametrize("network", [ASPP(4, 4, (1, 2)), PyramidPooling(4)])
def test_one_bin_of_one_image_trains(network: nn.Module) -> None:
    network.train()
    network(torch.rand(1, 4, 5, 5)).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


def multiply_adds(network: nn.Module, in_channels: int, size: int) -> int:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network(torch.empty(1, in_channels, size, size, device="meta"))
    assert counter.get_total_flops() % 2 == 0  # a multiplication and an addition
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(("in_channels", "out_channels", "rate"), [(32, 64, 1), (128, 256, 6)])
def test_a_separable_convolution_costs_1_over_n_plus_1_over_k_squared(
    in_channels: int, out_channels: int, rate: int
) -> None:
    with torch.device("meta"):
        standard = nn.Conv2d(in_channels, out_channels, 3, padding=rate, dilation=rate, bias=False)
        separable = separable_conv(in_channels, out_channels, rate=rate, norm="batch")
    ratio = multiply_adds(separable, in_channels, 33) / multiply_adds(standard, in_channels, 33)
    assert ratio == pytest.approx(1 / out_channels + 1 / 3**2, rel=1e-12)  # MobileNets, Sec. 3.1


def test_an_8x8x3_map_takes_432_weights_or_75() -> None:
    """16 kernels of 3x3: one multiply-add a weight and pixel with padding, so that both ratios are the same."""
    standard = nn.Conv2d(3, 16, 3, padding=1, bias=False)
    separable = [m for m in separable_conv(3, 16).modules() if isinstance(m, nn.Conv2d)]
    weights = [m.weight.numel() for m in separable]
    assert standard.weight.numel() == 3 * 3 * 3 * 16 == 432
    assert weights == [3 * 3 * 3, 3 * 16] and sum(weights) == 75
    assert multiply_adds(nn.Conv2d(3, 16, 3, padding=1, bias=False, device="meta"), 3, 8) == 432 * 8 * 8


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ASPP(2, 2, (0,)), r"rates must be a list of whole .* at least 1, such as \[6, 12, 18\], got \(0,\)"),
        (lambda: ASPP(2, 2, 6), r"rates must be a list of .* such as \[6, 12, 18\], got 6"),  # type: ignore[arg-type]
        (lambda: ASPP(2, 2, "6"), r"rates must be a list .* such as \[6, 12, 18\], got '6'"),  # type: ignore[arg-type]
        (
            lambda: ASPP(2, 2, [], image_pooling=False),
            r"leaves no context: give rates such as \[6, 12, 18\], or image_p",
        ),
        (lambda: PyramidPooling(4, bins=(0,)), r"bins must be a list of whole .* such as \[1, 2, 3, 6\], got \(0,\)"),
        (lambda: PyramidPooling(4, bins=(-1, 2)), r"bins must be a list of whole .* got \(-1, 2\)"),
        (lambda: PyramidPooling(4, bins=(), pool="avg"), "pool must be one of average, max, got 'avg'"),
        (lambda: PyramidPooling(4, pool="median"), "pool must be one of average, max, got 'median'"),
    ],
)
def test_errors_name_the_argument(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()  # type: ignore[operator]
