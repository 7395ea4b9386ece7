from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from experiments.runs.run import defaults
from lightning_modules.components.encoders import build_encoder
from lightning_modules.components.upsampling import pool, unpool
from lightning_modules.segnet import VARIANTS, SegNet, SegNetBasic, SegNetModule


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def on_meta(network: type[nn.Module], **kwargs: Any) -> nn.Module:
    with torch.device("meta"):
        return network(11, **kwargs)


def test_segnet_has_29449355_parameters() -> None:
    network = on_meta(SegNet)
    convs = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(convs) == 26  # 13 layers in the encoder and 13 in the decoder, Sec. 3
    assert sum(map(parameters, convs)) == 29_433_483
    assert sum(map(parameters, norms)) == 15_872
    assert parameters(network) == 29_449_355


# Encoder: 7 * 7 * 3 * 64 + 3 * 7 * 7 * 64 * 64 weights and 4 * 2 * 64 of batch norm, 612,032; a classifier has 64 * 11
# + 11. Table 1 prints 1.425, .625, .65 and 1.625 million. The last is 2.2 % less than the layers of Sec. 3.1 add up to:
# four transposed convolutions of 8 * 8 * 64 * 64 weights, 1,048,576, and the encoder's 611,520 are 1.660 million
# already, and 1.625 only with each of the four counted as .25 million.
@pytest.mark.parametrize(
    ("variant", "count", "table", "tolerance"),
    [
        ("basic", 612_032 + 4 * (49 * 64 * 64 + 128) + 715, 1_425_000, 0.02),
        ("basic-encoder-addition", 612_032 + 4 * (49 * 64 * 64 + 128) + 715, 1_425_000, 0.02),
        ("basic-single-channel-decoder", 612_032 + 4 * (49 * 64 + 128) + 715, 625_000, 0.02),
        ("bilinear-interpolation", 612_032 + 715, 625_000, 0.02),
        ("fcn-basic", 612_032 + 4 * 64 * 11 * 11 + 4 * 715, 650_000, 0.02),
        ("fcn-basic-no-addition", 612_032 + 4 * 64 * 11 * 11 + 715, 650_000, 0.02),
        ("fcn-basic-no-dim-reduction", 612_032 + 4 * 64 * 64 * 64 + 715, 1_625_000, 0.023),
        ("fcn-basic-no-addition-no-dim-reduction", 612_032 + 4 * 64 * 64 * 64 + 715, 1_625_000, 0.023),
    ],
)
def test_variants_are_as_large_as_table_1_has_them(variant: str, count: int, table: int, tolerance: float) -> None:
    found = parameters(on_meta(SegNetBasic, variant=variant))
    assert found == count
    assert found == pytest.approx(table, rel=tolerance)


def test_every_variant_of_table_1_is_there() -> None:
    assert len(VARIANTS) == 8


@pytest.mark.parametrize("size", [(8, 6), (7, 5), (1, 1), (1, 4)])
def test_unpooling_puts_values_where_the_maxima_were(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    maxima, indices = pool(x)
    expected = F.max_unpool2d(maxima, indices, 2, output_size=size)
    torch.testing.assert_close(unpool(maxima, indices, size), expected)
    assert torch.equal(unpool(maxima, indices, size) != 0, x == unpool(maxima, indices, size))


def plain_segnet(x: Tensor, network: SegNet) -> Tensor:
    """segnet_train.prototxt spelled out for sides that divide by 32, with the layers of `network` in their order."""
    convs = iter([m for m in network.modules() if isinstance(m, nn.Conv2d)])
    norms = iter([m for m in network.modules() if isinstance(m, nn.BatchNorm2d)])

    def layer(x: Tensor) -> Tensor:
        conv, norm = next(convs), next(norms, None)
        x = F.conv2d(x, conv.weight, conv.bias, padding=1)
        if norm is None:
            return x  # conv1_1_D, the classifier
        return F.relu(F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias))

    masks = []
    for count in (2, 2, 3, 3, 3):
        for _ in range(count):
            x = layer(x)
        x, mask = F.max_pool2d(x, 2, return_indices=True)
        masks.append(mask)
    for count in (3, 3, 3, 2, 2):
        x = F.max_unpool2d(x, masks.pop(), 2)
        for _ in range(count):
            x = layer(x)
    return x


def test_segnet_equals_the_published_network_spelled_out() -> None:
    network = SegNet(3, width=4).eval()
    image = torch.rand(2, 3, 64, 96)
    torch.testing.assert_close(network(image), plain_segnet(image, network))


def plain_basic(x: Tensor, network: SegNetBasic) -> Tensor:
    """segnet_basic_train.prototxt without its biases (Sec. 3.1), for sides that divide by 16."""

    def layer(x: Tensor, block: nn.Module) -> Tensor:
        conv, norm = block[0], block[1]  # type: ignore[index]
        x = F.conv2d(x, conv.weight, padding=3)
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)

    masks = []
    for encode in network.encoder:
        x, mask = F.max_pool2d(F.relu(layer(x, encode)), 2, return_indices=True)
        masks.append(mask)
    for decode in reversed(network.decoder):
        x = layer(F.max_unpool2d(x, masks.pop(), 2), decode.layer)
    return F.conv2d(x, network.classifier.weight, network.classifier.bias)


def test_segnet_basic_equals_the_published_network_spelled_out() -> None:
    network = SegNetBasic(3, width=4).eval()
    image = torch.rand(2, 3, 32, 48)
    torch.testing.assert_close(network(image), plain_basic(image, network))


def test_the_decoder_shares_nothing_with_the_encoder_it_mirrors() -> None:
    network = SegNet(3, width=4)
    own = {p.data_ptr() for p in network.encoder.parameters()}
    mirrored = [p.data_ptr() for p in network.decoder.parameters()]
    assert len(set(mirrored)) == len(mirrored) and own.isdisjoint(mirrored)
    image = torch.rand(1, 3, 32, 32)
    before = [map_.clone() for map_ in network.eval().encoder(image)]
    for parameter in network.decoder.parameters():
        nn.init.constant_(parameter, 0.5)
    torch.testing.assert_close(network.encoder(image), before)


def test_a_single_channel_decoder_filter_sees_one_map() -> None:
    for variant, seen in (("basic-single-channel-decoder", 1), ("basic", 4)):
        decoder = SegNetBasic(3, width=4, variant=variant).eval().decoder[0]
        x = torch.rand(1, 4, 8, 8, requires_grad=True)
        _, indices = pool(torch.rand(1, 4, 16, 16))
        (gradient,) = torch.autograd.grad(decoder(x, indices, (16, 16))[:, 2].sum(), x)
        assert gradient.flatten(2).any(2).sum() == seen


@pytest.mark.parametrize("channels", ["fcn-basic", "fcn-basic-no-dim-reduction"])
def test_transposed_decoders_start_as_bilinear_interpolation(channels: str) -> None:
    decoder = SegNetBasic(3, width=4, variant=channels).decoder[0]
    x = torch.rand(2, 3 if channels == "fcn-basic" else 4, 6, 5)
    doubled = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    result = decoder(x, torch.empty(0), (12, 10))
    torch.testing.assert_close(result[..., 1:-1, 1:-1], doubled[..., 1:-1, 1:-1])


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_variants_that_add_see_the_maps_of_the_encoder(variant: str) -> None:
    network = SegNetBasic(3, width=4, variant=variant).eval()
    network.encoder[3].register_forward_hook(lambda module, args, output: torch.zeros_like(output))
    # Without the deepest maps and without additions nothing of the image is left: indices place zeros.
    with torch.no_grad():
        one, other = network(torch.rand(2, 3, 32, 32))
    assert (not torch.equal(one, other)) == VARIANTS[variant].add


@pytest.mark.parametrize("variant", ["segnet", *VARIANTS])
def test_every_variant_keeps_odd_sizes_and_trains(variant: str) -> None:
    module = SegNetModule(3, 255, variant=variant, width=4, in_channels=1, class_weights=None)
    logits = module(torch.rand(1, 1, 33, 47))
    assert logits.shape == (1, 3, 33, 47)
    module.loss(torch.rand(1, 1, 33, 47), torch.randint(3, (1, 33, 47))).backward()
    assert [n for n, p in module.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(("variant", "lr", "shift_decay"), [("segnet", 1e-3, 0.0), ("basic", 0.1, 5e-4)])
def test_the_recipe_is_that_of_the_authors_files(variant: str, lr: float, shift_decay: float) -> None:
    module = SegNetModule(3, 255, variant=variant, width=4)
    given = {id(p): (g["lr"], g["weight_decay"]) for g in module.parameter_groups() for p in g["params"]}
    for layer in module.network.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            if isinstance(layer, nn.BatchNorm2d):  # lr_mult 1 and 1; decay_mult 1 and, of segnet_train.prototxt, 0
                assert given.pop(id(parameter)) == (lr, 5e-4 if name == "weight" else shift_decay)
            else:  # lr_mult 1 and 2, decay_mult 1 and 0
                assert given.pop(id(parameter)) == ((lr, 5e-4) if name == "weight" else (2 * lr, 0.0))
    assert not given
    assert (module.hparams["class_weights"], module.hparams["loss"]) == ("median-frequency", "ce_per_pixel")


def test_corrections_name_what_was_not_the_authors_recipe() -> None:
    default = defaults(SegNetModule)
    for changed, names in (
        ({}, {"segnet-shift-decay"}),
        ({"weight_decay": 0.0}, set()),
        ({"variant": "basic"}, set()),
        ({"weights": "imagenet"}, {"segnet-shift-decay"}),
        ({"weights": "dir/vgg16_bn.safetensors"}, {"segnet-shift-decay"}),
        ({"weights": "dir/vgg16_bn"}, {"segnet-shift-decay", "encoder-normalisation"}),
        ({"weights": "dir/vgg16_bn", "mean": [0.5] * 3, "std": [0.5] * 3}, {"segnet-shift-decay"}),
    ):
        assert set(SegNetModule.corrections(default | changed)) == names, changed


def test_images_are_normalised_as_the_folder_of_the_weights_says(tmp_path: Path) -> None:
    save_file(build_encoder("vgg16", width=1 / 16, norm="batch").state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5]}')
    module = SegNetModule(3, 255, width=4, weights=str(tmp_path))
    assert module.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert module.std.flatten().tolist() == [0.5] * 3
    given = SegNetModule(3, 255, width=4, weights=str(tmp_path), mean=[0.4] * 3)
    assert given.mean.flatten().tolist() == pytest.approx([0.4] * 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "segnet-basic"}, "variant must be one of segnet, basic, basic-encoder-addition"),
        ({"variant": "basic", "weights": "imagenet"}, "weights are for variant='segnet', got 'basic'"),
        ({"width": 0}, "width must be at least 1, got 0"),
    ],
)
def test_errors_name_the_argument_and_the_choices(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SegNetModule(3, 255, **arguments)


@pytest.mark.parametrize("network", [SegNet, SegNetBasic])
def test_networks_have_at_least_one_map(network: type[SegNet] | type[SegNetBasic]) -> None:
    with pytest.raises(ValueError, match=r"^width must be at least 1, got 0"):
        network(2, width=0)
