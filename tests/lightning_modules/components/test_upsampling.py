from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.components.upsampling import UPSAMPLING, Unpool, bilinear_kernel, icnr_, upsampling

PARAMETERS: dict[str, Callable[[int, int], int]] = {
    "transposed-2": lambda i, o: 4 * i * o + o,
    "transposed-3": lambda i, o: 9 * i * o + o,
    "transposed-4": lambda i, o: 16 * i * o + o,
    "nearest": lambda i, o: 9 * i * o + o,
    "bilinear": lambda i, o: 9 * i * o + o,
    "subpixel": lambda i, o: 36 * i * o + 4 * o,
    "unpool": lambda i, o: 9 * i * o + o,
}
TAPS = {
    "transposed-2": {1},
    "transposed-3": {1, 2, 4},  # Odena et al.: uneven, since 2 does not divide 3
    "transposed-4": {4},
    "nearest": {9},
    "bilinear": {9},
    "subpixel": {9},
    "unpool": {0, 9},
}


def run(layer: nn.Module, x: Tensor, out_channels: int) -> Tensor:
    """The layer's output; unpooling gets the indices of a random encoder map."""
    if not isinstance(layer, Unpool):
        return layer(x)
    encoder_map = torch.rand(x.shape[0], out_channels, 2 * x.shape[2], 2 * x.shape[3], device=x.device)
    return layer(x, F.max_pool2d(encoder_map, 2, return_indices=True)[1])


@pytest.mark.parametrize("kind", UPSAMPLING)
def test_doubles_height_and_width_with_the_stated_parameters(kind: str) -> None:
    layer = upsampling(kind, 4, 6)
    assert run(layer, torch.rand(2, 4, 5, 7), 6).shape == (2, 6, 10, 14)
    assert sum(p.numel() for p in layer.parameters()) == PARAMETERS[kind](4, 6)


@pytest.mark.parametrize("kind", UPSAMPLING)
def test_taps_per_output_pixel(kind: str) -> None:
    layer = upsampling(kind, 1, 1)
    for name, parameter in layer.named_parameters():
        nn.init.constant_(parameter, 0 if name.endswith("bias") else 1)
    interior = run(layer, torch.ones(1, 1, 6, 6), 1)[..., 2:-2, 2:-2]
    assert set(interior.unique().tolist()) == TAPS[kind]


@pytest.mark.parametrize("kind", UPSAMPLING)
def test_gradient_reaches_input_and_parameters(kind: str) -> None:
    layer, x = upsampling(kind, 4, 6), torch.rand(1, 4, 5, 7, requires_grad=True)
    run(layer, x, 6).square().sum().backward()
    for tensor in (x, *layer.parameters()):
        assert tensor.grad is not None and tensor.grad.abs().sum() > 0


@pytest.mark.parametrize("stride", [2, 4, 8])
def test_bilinear_kernel_resizes_bilinearly_away_from_the_border(stride: int) -> None:
    x = torch.rand(2, 3, 6, 7)
    resized = F.conv_transpose2d(x, bilinear_kernel(3, stride), stride=stride, padding=stride // 2)
    expected = F.interpolate(x, scale_factor=stride, mode="bilinear", align_corners=False)
    inside = (..., slice(stride, -stride), slice(stride, -stride))
    torch.testing.assert_close(resized[inside], expected[inside], atol=5e-7, rtol=0)
    assert not torch.allclose(resized, expected)  # the border does differ


def test_subpixel_starts_as_a_nearest_resize_of_a_convolution() -> None:
    layer, x = upsampling("subpixel", 4, 6), torch.rand(2, 4, 5, 7)
    conv = layer.get_submodule("0")
    assert isinstance(conv, nn.Conv2d) and conv.bias is not None
    maps = F.conv2d(x, conv.weight[::4], conv.bias[::4], padding=1)
    torch.testing.assert_close(layer(x), F.interpolate(maps, scale_factor=2, mode="nearest-exact"))

    nn.init.kaiming_normal_(conv.weight)
    icnr_(conv)
    blocks = F.pixel_unshuffle(layer(x), 2).view(2, 6, 4, 5, 7)
    torch.testing.assert_close(blocks, blocks[:, :, :1].expand_as(blocks))
    assert conv.weight[::4].unique().numel() == conv.weight[::4].numel()  # the channels still differ


def test_unpool_puts_each_value_where_the_maximum_was() -> None:
    layer = Unpool(1, 1)
    nn.init.dirac_(layer.conv.weight)
    layer.conv.bias = None
    encoder_map = torch.tensor([[[[1.0, 2, 0, 0], [0, 0, 3, 0], [0, 4, 0, 0], [0, 0, 0, 5]]]])
    indices = F.max_pool2d(encoder_map, 2, return_indices=True)[1]
    assert layer(torch.tensor([[[[6.0, 7], [8, 9]]]]), indices).tolist() == [
        [[[0, 6, 0, 0], [0, 0, 7, 0], [0, 8, 0, 0], [0, 0, 0, 9]]]
    ]


def test_unpool_equals_max_unpool() -> None:
    layer, x = Unpool(3, 5), torch.rand(2, 3, 4, 6)
    indices = F.max_pool2d(torch.rand(2, 5, 8, 12), 2, return_indices=True)[1]
    assert torch.equal(layer(x, indices), F.max_unpool2d(layer.conv(x), indices, 2))


@pytest.mark.gpu  # only there torch refuses operations
@pytest.mark.parametrize("kind", UPSAMPLING)
def test_trains_under_deterministic_algorithms_on_a_gpu(kind: str) -> None:
    layer = upsampling(kind, 4, 6).cuda()
    torch.use_deterministic_algorithms(True)
    try:
        run(layer, torch.rand(1, 4, 5, 7, device="cuda"), 6).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


def test_unknown_kind_names_the_choices_and_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"one of transposed-2, .*, unpool, got 'neares'; did you mean 'nearest'\?"):
        upsampling("neares", 1, 1)
    with pytest.raises(ValueError, match=r"got 'zzz'$"):
        upsampling("zzz", 1, 1)


@pytest.mark.parametrize("kind", ["transposed-2", "transposed-3", "transposed-4"])
def test_transposed_convolution_swaps_the_forward_and_the_backward_pass_of_a_convolution(kind: str) -> None:
    layer = upsampling(kind, 5, 2)
    assert isinstance(layer, nn.ConvTranspose2d)
    weight, options = layer.weight.detach(), {"stride": layer.stride, "padding": layer.padding}
    small, large = torch.randn(1, 5, 6, 7, requires_grad=True), torch.randn(1, 2, 12, 14, requires_grad=True)
    up, down = layer(small), F.conv2d(large, weight, **options)
    assert (up.shape, down.shape) == (large.shape, small.shape)
    (of_large,) = torch.autograd.grad(down, large, small.detach())
    torch.testing.assert_close(of_large + layer.bias[:, None, None], up)
    (of_small,) = torch.autograd.grad(up, small, large.detach())
    torch.testing.assert_close(of_small, down)


@pytest.mark.parametrize(("kernel", "stride"), [(k, s) for k in range(1, 7) for s in (1, 2, 3) if s <= k])
def test_the_overlap_of_a_plane_is_the_product_of_two_lines_and_even_where_the_stride_divides_the_kernel(
    kernel: int, stride: int
) -> None:
    line = F.conv_transpose1d(torch.ones(1, 1, 9), torch.ones(1, 1, kernel), stride=stride)[0, 0]
    plane = F.conv_transpose2d(torch.ones(1, 1, 9, 9), torch.ones(1, 1, kernel, kernel), stride=stride)[0, 0]
    assert torch.equal(plane, torch.outer(line, line))
    assert (len(line[kernel:-kernel].unique()) == 1) == (kernel % stride == 0)
