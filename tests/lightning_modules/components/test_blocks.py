import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_modules.components.blocks import (
    at_least_one,
    conv_norm_relu,
    he_,
    norm_of_one,
    pad_to_multiple,
    resize,
    separable_conv,
    set_batch_norms,
    whole_numbers,
)


def multiply_adds(layer: nn.Module, channels: int) -> float:
    """Of a layer on a map of 16 x 16, without leaving the meta device."""
    with FlopCounterMode(display=False) as counter:
        layer.to("meta")(torch.empty(1, channels, 16, 16, device="meta"))
    return counter.get_total_flops() / 2


def conv_weights(layer: nn.Module) -> int:
    return sum(m.weight.numel() for m in layer.modules() if isinstance(m, nn.Conv2d))


def test_a_separable_convolution_of_8_by_8_by_3_to_16_has_75_weights_for_432() -> None:
    assert conv_weights(conv_norm_relu(3, 16)) == 3 * 3 * 3 * 16 == 432
    assert conv_weights(separable_conv(3, 16)) == 3 * 3 * 3 + 3 * 16 == 75
    assert separable_conv(3, 16).eval()(torch.rand(1, 3, 8, 8)).shape == (1, 16, 8, 8)


@pytest.mark.parametrize(("channels", "kernel"), [(256, 3), (64, 3), (64, 5)])
def test_a_separable_convolution_costs_one_over_n_and_one_over_k_squared(channels: int, kernel: int) -> None:
    full, separable = (make(32, channels, kernel) for make in (conv_norm_relu, separable_conv))
    ratio = 1 / channels + 1 / kernel**2  # MobileNet, Sec. 3.1; 0.1150 for 256 channels and 3 x 3
    assert multiply_adds(separable, 32) / multiply_adds(full, 32) == pytest.approx(ratio)
    assert conv_weights(separable) / conv_weights(full) == pytest.approx(ratio)


@pytest.mark.parametrize("make", [conv_norm_relu, separable_conv])
@pytest.mark.parametrize(("kernel", "stride", "rate"), [(3, 1, 1), (3, 2, 1), (3, 1, 4), (5, 2, 2), (1, 2, 1)])
def test_size_is_the_input_over_the_stride_rounded_up(make: object, kernel: int, stride: int, rate: int) -> None:
    layer = make(2, 5, kernel, stride=stride, rate=rate)  # type: ignore[operator]
    assert layer(torch.rand(2, 2, 17, 22)).shape == (2, 5, math.ceil(17 / stride), math.ceil(22 / stride))


def test_a_separable_convolution_is_a_full_one_whose_kernel_is_an_outer_product() -> None:
    layer = separable_conv(3, 4, rate=2, norm="none", relu=False)
    nn.init.zeros_(layer.depthwise.bias)
    kernel = layer.pointwise.weight * layer.depthwise.weight[:, 0]  # (4, 3, 1, 1) * (3, 3, 3) -> (4, 3, 3, 3)
    x = torch.rand(1, 3, 9, 9)
    torch.testing.assert_close(layer(x), F.conv2d(x, kernel, layer.pointwise.bias, padding=2, dilation=2))


def test_relus_stand_behind_both_convolutions_or_nowhere() -> None:
    assert [name for name, _ in separable_conv(2, 2).named_children()] == [
        *("depthwise", "depthwise_norm", "depthwise_relu", "pointwise", "pointwise_norm", "pointwise_relu")
    ]
    assert not any(isinstance(layer, nn.ReLU) for layer in separable_conv(2, 2, relu=False))
    assert (separable_conv(2, 2, relu=False)(torch.randn(2, 2, 8, 8)) < 0).any()


@pytest.mark.parametrize("make", [conv_norm_relu, separable_conv])
def test_norm_is_checked(make: object) -> None:
    with pytest.raises(ValueError, match="norm must be one of none, batch, group, got 'layer'"):
        make(2, 2, norm="layer")  # type: ignore[operator]


def test_resize_aligns_pixel_centres() -> None:
    x = torch.tensor([[[[0.0, 1.0]]]])
    torch.testing.assert_close(resize(x, (1, 4)), torch.tensor([[[[0.0, 0.25, 0.75, 1.0]]]]))
    assert resize(x, x.new_empty(1, 1, 5, 7).shape[-2:]).shape == (1, 1, 5, 7)


def test_a_single_value_a_channel_is_normalised_by_the_running_statistics() -> None:
    norm, x = nn.BatchNorm2d(3), torch.randn(1, 3, 1, 1)
    norm.running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    expected = (x[0, :, 0, 0] - norm.running_mean) / math.sqrt(1 + norm.eps)
    torch.testing.assert_close(norm_of_one(norm, x)[0, :, 0, 0], expected)
    assert norm.num_batches_tracked == 0
    with pytest.raises(ValueError, match="more than 1 value"):
        norm(x)
    torch.testing.assert_close(norm_of_one(norm.eval(), x), norm(x))


def test_more_than_one_value_is_normalised_as_ever() -> None:
    norm, x = nn.BatchNorm2d(3), torch.randn(2, 3, 1, 1)
    normed = norm_of_one(norm, x)
    torch.testing.assert_close(normed, nn.BatchNorm2d(3)(x))
    assert norm.num_batches_tracked == 1
    assert norm_of_one(nn.GroupNorm(1, 3), x[:1]).shape == (1, 3, 1, 1)


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (nn.Conv2d(64, 256, 3), 64 * 9),
        (nn.Conv2d(512, 512, 5, groups=512), 25),
        (nn.ConvTranspose2d(64, 256, 4, stride=2), 64 * 4),  # 16 taps are spread over 4 output pixels
    ],
)
def test_he_draws_for_the_inputs_of_one_output(layer: nn.Module, inputs: int) -> None:
    he_(nn.Sequential(layer))
    assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / inputs), rel=0.03)
    assert not layer.bias.any()


def test_batch_norms_get_what_is_given_and_keep_the_rest() -> None:
    network = nn.Sequential(conv_norm_relu(1, 2), nn.GroupNorm(1, 2))
    set_batch_norms(network, eps=1e-3)
    set_batch_norms(network, momentum=0.0003)
    assert (network[0][1].eps, network[0][1].momentum, network[1].eps) == (1e-3, 0.0003, 1e-5)


def test_what_is_less_than_one_is_named() -> None:
    at_least_one(width=1, depth=2)
    with pytest.raises(ValueError, match="depth must be at least 1, got -2"):
        at_least_one(width=1, depth=-2)


@pytest.mark.parametrize(
    ("values", "whole"), [([6, 12], True), ((), True), (6, False), ("6", False), ([0], False), ([1.5], False)]
)
def test_whole_numbers_are_a_sequence(values: object, whole: bool) -> None:
    assert whole_numbers(values) == whole
    assert whole_numbers([0], least=0)


def test_padding_reaches_the_next_multiple() -> None:
    assert pad_to_multiple(torch.rand(1, 1, 33, 64), 32).shape == (1, 1, 64, 64)
