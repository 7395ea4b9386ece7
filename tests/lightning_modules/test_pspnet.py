from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.pspnet import PSPNet, PSPNetModule

TINY: dict[str, Any] = {"encoder": "resnet50-deep", "encoder_width": 1 / 16, "decoder_width": 8}


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def on_meta(*args: Any, **kwargs: Any) -> PSPNet:
    with torch.device("meta"):
        return PSPNet(*args, **kwargs)


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ({"aux": False}, 46_716_373),
        ({}, 49_081_578),
        # the stem: 3x3 convolutions 3-64-64-128 with their norms and 64 more channels into the first block, for a 7x7
        (
            {"aux": False, "encoder": "resnet50"},
            46_716_373 - (9 * (3 + 64 + 2 * 64) * 64 + 512 + 64 * 320 - 9408 - 128),
        ),
        # four levels of 2048 channels without a convolution: the head's 3x3 convolution reads 10,240, not 4,096
        ({"aux": False, "reduce": False}, 46_716_373 - 4 * (2048 * 512 + 1024) + 9 * 512 * (10_240 - 4096)),
    ],
)
def test_parameters_of_the_published_network(arguments: dict[str, Any], count: int) -> None:
    assert parameters(on_meta(21, **arguments)) == count


def test_every_3x3_convolution_of_the_last_two_stages_is_dilated() -> None:
    encoder = on_meta(21).encoder
    for stage, rate in ((encoder.layer3, 2), (encoder.layer4, 4)):  # Sec. 3.3
        assert {m.dilation for m in stage.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)} == {
            (rate, rate)
        }


def spelled_out(network: PSPNet, x: Tensor) -> tuple[Tensor, Tensor]:
    """Fig. 3 (c) and (d) and Fig. 4, for batch norms that have seen nothing yet, with the weights of `network`."""
    w = dict(network.named_parameters())

    def block(x: Tensor, name: str) -> Tensor:
        weight = w[f"{name}.0.weight"]
        return F.relu(F.conv2d(x, weight, padding=weight.shape[2] // 2) / (1 + 1e-5) ** 0.5)

    def resize(x: Tensor, size: torch.Size) -> Tensor:
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)

    def head(x: Tensor, name: str) -> Tensor:
        return F.conv2d(block(x, f"{name}.0"), w[f"{name}.2.weight"], w[f"{name}.2.bias"])

    *_, third, last = network.encoder(x)
    levels = [
        block(F.adaptive_avg_pool2d(last, bins), f"pyramid.levels.{i}.block") for i, bins in enumerate((1, 2, 3, 6))
    ]
    logits = head(torch.cat([last, *(resize(level, last.shape[2:]) for level in levels)], 1), "head")
    return resize(logits, x.shape[2:]), resize(head(third, "aux"), x.shape[2:])


def test_equals_the_figure_spelled_out() -> None:
    network = PSPNet(3, **TINY).eval()
    images = torch.randn(2, 3, 65, 75)
    expected = spelled_out(network, images)
    for ours, theirs in zip(network.with_aux(images), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
        assert theirs.std(dim=(2, 3)).min() > 1e-2  # large enough for the comparison to mean something
    torch.testing.assert_close(network(images), expected[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("pool", ["average", "max"])
@pytest.mark.parametrize("reduce", [True, False])
@pytest.mark.parametrize("bins", [(), (1,), (1, 2, 3, 6)])
def test_every_row_of_table_1_keeps_odd_sizes_and_every_parameter_learns(
    bins: tuple[int, ...], reduce: bool, pool: str
) -> None:
    module = PSPNetModule(3, 255, **TINY, bins=bins, reduce=reduce, pool=pool)
    images, masks = torch.rand(1, 3, 33, 47), torch.randint(3, (1, 33, 47))
    assert module(images).shape == (1, 3, 33, 47)
    assert module.network.logits(images).shape == (1, 3, 5, 6)
    module.loss(images, masks).backward()
    assert [name for name, p in module.named_parameters() if p.grad is None] == []


def test_the_auxiliary_loss_counts_its_weight_and_is_no_part_of_a_prediction() -> None:
    module = PSPNetModule(3, 255, **TINY, aux_weight=0.4).eval()  # without dropout
    images, masks = torch.rand(2, 3, 33, 33), torch.randint(3, (2, 33, 33))
    main, aux = (F.cross_entropy(logits, masks) for logits in module.network.with_aux(module.normalise(images)))
    torch.testing.assert_close(module.loss(images, masks), main + 0.4 * aux)
    before = module(images)
    nn.init.zeros_(module.network.aux[2].weight)
    torch.testing.assert_close(module(images), before)

    alone = PSPNetModule(3, 255, **TINY, aux_weight=0)
    assert not [name for name, _ in alone.named_parameters() if "aux" in name]
    alone.eval().load_state_dict(module.state_dict(), strict=False)
    torch.testing.assert_close(alone.loss(images, masks), main)


def test_layers_that_are_not_the_encoders_learn_ten_times_as_fast() -> None:
    module = PSPNetModule(3, 255, **TINY)
    keys = ("lr", "momentum", "weight_decay", "schedule", "aux_weight")
    assert [module.hparams[key] for key in keys] == [0.01, 0.9, 1e-4, "poly", 0.4]
    encoder, new = module.parameter_groups()
    assert "lr" not in encoder and new["lr"] == pytest.approx(0.1)
    assert sum(p.numel() for p in encoder["params"]) == parameters(module.network.encoder)
    assert sum(p.numel() for group in (encoder, new) for p in group["params"]) == parameters(module)


@pytest.mark.parametrize("encoder", ["resnet18", "vgg16", "smp-resnet18"])
def test_takes_any_encoder(encoder: str) -> None:
    width = 1.0 if encoder.startswith("smp") else 1 / 16
    network = PSPNet(3, 1, encoder=encoder, encoder_width=width, decoder_width=4).eval()
    assert network(torch.rand(1, 1, 33, 47)).shape == (1, 3, 33, 47)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pool": "median"}, "pool must be one of average, max"),
        ({"pool": "avg", "bins": ()}, "pool must be one of average, max, got 'avg'"),
        ({"bins": (0,)}, "bins must be a list of whole numbers of at least 1"),
        ({"bins": 6}, r"bins must be a list .* such as \[1, 2, 3, 6\], got 6"),
        ({"decoder_width": 0}, "decoder_width must be at least 1, got 0"),
        ({"aux_weight": -1}, "aux_weight must be at least 0"),
    ],
)
def test_errors_name_the_argument(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PSPNetModule(2, 255, **TINY | arguments)


def test_the_auxiliary_head_of_the_narrowest_decoder_has_a_channel() -> None:
    assert PSPNet(2, **TINY | {"decoder_width": 1}).aux[0][0].out_channels == 1
