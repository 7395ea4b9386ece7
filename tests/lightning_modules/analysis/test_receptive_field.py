import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_modules.analysis.receptive_field import receptive_field, receptive_fields, trace
from lightning_modules.components.upsampling import UPSAMPLING
from lightning_modules.unet import UNet, UNetModule


class Linearised(TorchFunctionMode):
    """Max pooling as a mean, so that a gradient passes through all of its window. Its indices are still those of the
    maxima."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function in (F.max_pool2d, F.max_pool2d_with_indices, torch.max_pool2d):
            names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
            given = dict(zip(names, args[1:], strict=False)) | {k: kwargs[k] for k in names if k in kwargs}
            given.pop("dilation", None)
            mean = F.avg_pool2d(args[0], **given)
            return (mean, function(*args, **kwargs)[1]) if "indices" in function.__name__ else mean
        return function(*args, **kwargs)


def positive(network: nn.Module) -> nn.Module:
    """Nothing cancels and no activation is negative, so that the gradient is zero only where nothing is seen."""
    network = network.double().eval()
    for parameter in network.parameters():
        parameter.data.fill_(1 / parameter[0].numel() if parameter.dim() > 1 else 1e-3)
    return network


def seen(network: nn.Module, images: Tensor, unit: tuple[int, int]) -> tuple[int, ...]:
    """First and last row, first and last column of the pixels whose gradient from `unit` is not zero."""
    images = images.double().requires_grad_()
    with Linearised():
        network(images)[:, :, unit[0], unit[1]].sum().backward()
    assert images.grad is not None
    _, _, rows, columns = images.grad.nonzero().T
    return (int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())) if len(rows) else ()


def claimed(network: nn.Module, side: int, unit: tuple[int, int]) -> tuple[int, ...]:
    """The same of the theoretical field; () where it is empty."""
    output = trace(network, 3, side)[""]
    assert output.field is not None
    spans = [*output.field.span(0), *output.field.span(1)]
    top, bottom, left, right = (int(b.expand(1, 1, *output.shape[2:])[0, 0, unit[0], unit[1]]) for b in spans)
    return (top, bottom, left, right) if top <= bottom and left <= right else ()


def conv(in_channels: int, out_channels: int, kernel_size: int = 3, **kwargs: Any) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size, **kwargs)


class Shuffled(nn.Module):
    """Crops, padding of three kinds, a stack, a split, a product and a linear layer over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.linear = conv(3, 8, 3, stride=2), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(self.down(F.pad(x, (3, 1, 2, 0), mode="reflect")), (0, 2, 1, 1), mode="replicate")
        left, right = F.pad(x, (5, 0, 0, -3))[..., 1:-1, :].chunk(2, dim=1)
        x = torch.stack([left, left * right], dim=1).sum(1)
        x = self.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return torch.relu_(x.index_select(2, torch.arange(x.shape[2] - 1, 0, -1, device=x.device)))


NETWORKS: dict[str, nn.Module] = {
    "dilated": nn.Sequential(conv(3, 2), conv(2, 2, dilation=3, padding=3), conv(2, 2, (2, 5), dilation=(1, 4))),
    "strided": nn.Sequential(conv(3, 2, 5, stride=3), nn.ReLU(), conv(2, 2, 2, stride=2, padding=1)),
    "separable": nn.Sequential(conv(3, 3, 7, groups=3, padding=3), conv(3, 4, 1), conv(4, 4, groups=2)),
    "pooled": nn.Sequential(nn.MaxPool2d(3, 2, ceil_mode=True), conv(3, 2, padding=2), nn.AvgPool2d(2, 3, 1)),
    "padded": nn.Sequential(conv(3, 2, padding=20), nn.MaxPool2d(2), conv(2, 2, 7)),  # units that see padding alone
    "transposed": nn.Sequential(conv(3, 2, 3, stride=4), nn.ConvTranspose2d(2, 2, 5, 3, padding=1), conv(2, 2)),
    "bilinear kernel": nn.Sequential(conv(3, 2, 2, stride=8), nn.ConvTranspose2d(2, 2, 16, 8)),
    "bilinear": nn.Sequential(conv(3, 2, 3, stride=4), nn.Upsample(size=(28, 41), mode="bilinear"), conv(2, 2)),
    "aligned": nn.Sequential(conv(3, 2, 3, stride=4), nn.UpsamplingBilinear2d(size=(47, 71))),
    "bicubic": nn.Sequential(conv(3, 2, 3, stride=4), nn.Upsample(scale_factor=4, mode="bicubic")),
    "nearest": nn.Sequential(conv(3, 2, 3, stride=4), nn.Upsample(size=(50, 31)), nn.BatchNorm2d(2), conv(2, 2)),
    "nearest-exact": nn.Sequential(conv(3, 2, 3, stride=4), nn.Upsample(scale_factor=2.5, mode="nearest-exact")),
    "shuffled": Shuffled(),
    **{
        f"U-Net {kind} {skips}": UNet(2, 3, width=2, depth=2, upsample=kind, skips=skips)
        for kind, skips in (*((kind, "concat") for kind in UPSAMPLING if kind != "unpool"), ("bilinear", "none"))
    },
    "U-Net valid": UNet(2, 3, width=2, depth=2, padding="valid"),
    "U-Net group": UNet(2, 3, width=2, depth=1, norm="batch", skips="add"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_is_where_the_gradient_is_not_zero(name: str) -> None:
    side, network = 56, positive(NETWORKS[name])
    images = torch.ones(1, 3, side, side) + torch.rand(1, 3, side, side)
    height, width = network(images.double()).shape[2:]
    units = [(0, 0), (height - 1, 1), *((height // 2 + i, width // 2 - i) for i in range(min(9, width // 2)))]
    for unit in units:
        assert claimed(network, side, unit) == seen(network, images, unit), unit


class Unpooled(nn.Module):
    """SegNet in small: what was the largest of its window goes back to where it was."""

    def __init__(self, layer: str) -> None:
        super().__init__()
        self.layer, self.before, self.between, self.after = layer, conv(3, 1), conv(1, 1, padding=1), conv(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        pooled, index = F.max_pool2d(x, 2, return_indices=True)
        values = self.between(pooled)
        if self.layer == "max_unpool2d":
            return self.after(F.max_unpool2d(values, index, 2))
        flat = values.new_zeros(*x.shape[:2], x.shape[2] * x.shape[3])
        return self.after(flat.scatter_(2, index.flatten(2), values.flatten(2)).view_as(x))


@pytest.mark.parametrize("layer", ["max_unpool2d", "scatter"])
def test_unpooling_sees_what_any_position_of_the_maximum_lets_it_see(layer: str) -> None:
    network = positive(Unpooled(layer))
    images = torch.rand(200, 3, 26, 26, generator=torch.Generator().manual_seed(0))
    for unit in ((0, 0), (8, 9), (11, 10)):
        assert claimed(network, 26, unit) == seen(network, images, unit)


def alexnet() -> nn.Sequential:
    """Of FCN's Table 1: 11x11 stride 4, 5x5, three 3x3, pooling 3x3 stride 2, and fc6 as 6x6."""
    pool = nn.MaxPool2d(3, 2)
    features = (conv(3, 2, 11, stride=4), pool, conv(2, 2, 5, padding=2), nn.MaxPool2d(3, 2), conv(2, 2, padding=1))
    return nn.Sequential(*features, conv(2, 2, padding=1), conv(2, 2, padding=1), nn.MaxPool2d(3, 2), conv(2, 2, 6))


def vgg16() -> nn.Sequential:
    """With fc6 as 7x7, fc7 and the score as 1x1 convolutions."""
    with torch.device("meta"):
        features = torchvision.models.vgg16().features
        return nn.Sequential(*features, conv(512, 2, 7), conv(2, 2, 1), conv(2, 2, 1))


def resnet(layers: int, *, stride_in_first: bool) -> nn.Module:
    with torch.device("meta"):
        network: nn.Module = getattr(torchvision.models, f"resnet{layers}")()
    for module in network.modules():
        if isinstance(module, torchvision.models.resnet.Bottleneck) and stride_in_first:
            module.conv1.stride, module.conv2.stride = module.conv2.stride, (1, 1)
    return network


def large_fov() -> nn.Sequential:
    """DeepLab v1 up to fc6: 3x3 poolings, two of stride 1, conv5 of rate 2, fc6 of rate 12."""
    layers: list[nn.Module] = []
    for convolutions, stride, rate in ((2, 2, 1), (2, 2, 1), (3, 2, 1), (3, 1, 1), (3, 1, 2)):
        layers += [conv(3, 3, padding=rate, dilation=rate) for _ in range(convolutions)]
        layers.append(nn.MaxPool2d(3, stride, padding=1))
    return nn.Sequential(*layers, conv(3, 3, padding=12, dilation=12))


@pytest.mark.parametrize(
    ("network", "output", "size", "stride", "offset"),
    [
        (alexnet(), "7", 195, 32, 33),
        (alexnet(), "8", 355, 32, 113),  # FCN, Table 1
        (vgg16(), "30", 212, 32, 15.5),
        (vgg16(), "", 404, 32, 111.5),  # FCN, Table 1
        # With the stride in the first convolution of a block, as in the paper; torchvision has it in the second.
        (resnet(50, stride_in_first=True), "layer4", 483, 32, 0),
        (resnet(50, stride_in_first=False), "layer4", 427, 32, 0),
        (resnet(101, stride_in_first=True), "layer4", 1027, 32, 0),
        # 5, 7, 15, 19, 43, 51, 99, 115 behind each group and each pooling; conv5 adds 3 x 32, pool5 16, fc6 2 x 12 x 8
        (large_fov(), "", 419, 8, 0),
    ],
)
def test_published_fields(network: nn.Module, output: str, size: int, stride: int, offset: float) -> None:
    field = receptive_field(network, 3, output=output)
    assert (field.size, field.stride, field.offset) == ((size, size), (stride, stride), (offset, offset))
    assert not field.whole_image


def test_a_resized_map_has_the_largest_field_of_its_phases() -> None:
    # Units of 8 pixels, 8 apart: in between, bilinear resizing reads two of them.
    field = receptive_field(nn.Sequential(conv(3, 1, 8, stride=8), nn.Upsample(scale_factor=8, mode="bilinear")), 3)
    assert (field.size, field.stride, field.offset) == ((16, 16), (1, 1), (0, 0))


def test_axes_are_measured_each_for_itself() -> None:
    field = receptive_field(conv(3, 1, (5, 2), stride=(3, 2)), 3)
    assert (field.size, field.stride, field.offset) == ((5, 2), (3, 2), (2, 0.5))


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        tokens = x[..., ::8, ::8].flatten(2)
        return (tokens @ (tokens.mT @ tokens).softmax(-1)).view_as(x[..., ::8, ::8])


class ChannelsLast(nn.Module):
    """A pooling to 1 x 1 that torch gives the layout of its argument."""

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), 1) + x


@pytest.mark.parametrize(
    ("network", "stride"),
    [
        (nn.Sequential(conv(3, 2, 3, stride=2, padding=1), nn.AdaptiveAvgPool2d(1)), math.inf),
        (nn.AdaptiveMaxPool2d(3), math.inf),
        (nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Upsample(size=64)), math.inf),
        (torchvision.ops.SqueezeExcitation(3, 2), 1),
        (Attention(), 8),
        (ChannelsLast(), 1),
        (nn.Softmax(dim=2), 1),  # along columns alone: not all of the image, but not a field of a fixed size either
    ],
)
def test_sees_the_whole_image(network: nn.Module, stride: float) -> None:
    field = receptive_field(network, 3)
    assert field.whole_image
    assert (field.size, field.offset, field.stride) == (None, None, (stride, stride))


def test_a_share_that_grows_with_the_image_is_the_whole_image() -> None:
    class Quarters(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.interpolate(F.avg_pool2d(x, x.shape[-1] // 4), size=x.shape[-2:])

    assert receptive_field(Quarters(), 3).whole_image


def test_a_fixed_window_is_not() -> None:
    class Windows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            n, channels, height, width = x.shape
            return x.view(n, channels, height // 4, 4, width // 2, 2).mean((3, 5))

    field = receptive_field(Windows(), 3)
    assert (field.size, field.stride, field.offset) == ((4, 2), (4, 2), (1.5, 0.5))


def test_mirrored_border_and_valid_convolutions() -> None:
    same, valid = (UNetModule(2, 255, width=1, padding=padding) for padding in ("same", "valid"))
    assert receptive_field(same, 3) == receptive_field(valid, 3)
    assert receptive_field(same, 3).size == (204, 204)
    bottom = receptive_field(same, 3, output="network.encoder.4")
    assert (bottom.size, bottom.stride) == ((140, 140), (16, 16))


def test_the_network_of_the_u_net_paper_can_be_asked() -> None:
    same, valid = (UNet(2, 1, width=1, padding=padding) for padding in ("same", "valid"))
    padded, field = receptive_field(same, 1), receptive_field(valid, 1)
    assert (field.size, field.stride) == (padded.size, padded.stride) == ((204, 204), (1, 1))
    border = (572 - 388) // 2  # Fig. 1
    assert field.offset == pytest.approx([offset + border for offset in padded.offset])
    bottom = receptive_field(valid, 1, output="encoder.4")
    assert (bottom.size, bottom.stride) == ((140, 140), (16, 16))


def test_leaves_the_network_as_it_was() -> None:
    network = UNet(2, 1, width=2, depth=1, norm="batch").train()
    network.head.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fields = receptive_fields(network, 1)
    assert {"", "encoder.0", "encoder.0.0.0", "head"} <= fields.keys()
    assert network.training and not network.head.training
    assert network.encoder[0].training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


class Strange(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        match self.kind:
            case "cumsum":
                return x.cumsum(-1)
            case "roll":
                return x.roll(3, -1)
            case "value":
                return x if x.mean() > 0 else -x
            case "part":
                canvas = x.new_zeros(x.shape)
                canvas[..., 1:] = x[..., :-1]
                return canvas
            case _:
                return F.conv2d(x, x[:, :, :3, :3])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("cumsum", "no rule for the function aten.cumsum"),
        ("roll", "no rule for the function aten.roll"),
        ("value", "reads a value"),
        ("part", "into a part of a tensor"),
        ("dynamic", "weights made of the image"),
    ],
)
def test_what_it_cannot_follow_is_refused_by_name(kind: str, message: str) -> None:
    with pytest.raises(NotImplementedError, match=message):
        receptive_field(Strange(kind), 3)


def test_an_output_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"path of a module that returns a map .* got 'encoder'"):
        receptive_field(UNet(2, width=1, depth=1), 3, output="encoder")


def dilated(rates: tuple[int, ...]) -> nn.Sequential:
    layers = [nn.Conv2d(1, 1, 3, padding=rate, dilation=rate, bias=False) for rate in rates]
    for layer in layers:
        nn.init.ones_(layer.weight)
    return nn.Sequential(*layers)


def test_doubling_rates_double_the_field_at_nine_weights_a_layer() -> None:
    """Yu, Koltun 2016, Sec. 2: exponential in the layers, where the weights are linear."""
    rates = (1, 2, 4, 8)
    for layers, size in enumerate((3, 7, 15, 31), start=1):
        network = dilated(rates[:layers])
        assert receptive_field(network, 1).size == (size, size)
        assert sum(p.numel() for p in network.parameters()) == 9 * layers


@pytest.mark.parametrize(
    ("rates", "seen"), [((2, 2, 2), 49), ((1, 2, 5), 17**2), ((2, 4, 8), 15**2), ((1, 2, 3), 13**2)]
)
def test_rates_with_a_common_divisor_leave_holes(rates: tuple[int, ...], seen: int) -> None:
    """Wang et al. 2018, Sec. 3.2: 2, 2, 2 sees a grid of its field, 1, 2, 5 all of it."""
    network, image = dilated(rates), torch.zeros(1, 1, 41, 41, requires_grad=True)
    network(image)[0, 0, 20, 20].backward()
    assert image.grad is not None
    assert int((image.grad > 0).sum()) == seen
    whole = receptive_field(network, 1).size == (math.isqrt(seen), math.isqrt(seen))
    assert whole == (math.gcd(*rates) == 1)
