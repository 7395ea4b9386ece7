from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.components.upsampling import UPSAMPLING
from lightning_modules.unet import SKIPS, UNet, UNetModule


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def on_meta(*args: object, **kwargs: object) -> UNet:
    with torch.device("meta"):
        return UNet(*args, **kwargs)  # type: ignore[arg-type]


def test_the_published_network_has_31030658_parameters_and_maps_572_to_388() -> None:
    network = on_meta(2, 1, padding="valid")
    assert parameters(network) == 31_030_658
    assert network(torch.empty(1, 1, 572, 572, device="meta")).shape == (1, 2, 388, 388)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert len(convolutions) == 23  # Sec. 2: "In total the network has 23 convolutional layers"


def test_padding_adds_no_parameter_and_batch_norm_the_known_number() -> None:
    assert parameters(on_meta(2, 1)) == 31_030_658
    assert parameters(on_meta(2, 1, norm="batch")) == 31_036_546


def plain_unet(x: Tensor, network: UNet) -> Tensor:
    """Fig. 1 spelled out for depth 2 and valid convolutions, with the weights of `network`."""
    w = dict(network.named_parameters())

    def double(x: Tensor, name: str) -> Tensor:
        for i in (0, 1):
            x = F.relu(F.conv2d(x, w[f"{name}.{i}.0.weight"], w[f"{name}.{i}.0.bias"]))
        return x

    first = double(x, "encoder.0")
    second = double(F.max_pool2d(first, 2), "encoder.1")
    x = double(F.max_pool2d(second, 2), "encoder.2")
    for level, skip in ((0, second), (1, first)):
        x = F.conv_transpose2d(x, w[f"up.{level}.weight"], w[f"up.{level}.bias"], stride=2)
        cut = (skip.shape[-1] - x.shape[-1]) // 2
        x = double(torch.cat([skip[..., cut : cut + x.shape[-2], cut : cut + x.shape[-1]], x], 1), f"decoder.{level}")
    return F.conv2d(x, w["head.weight"], w["head.bias"])


def test_equals_the_figure_spelled_out() -> None:
    network = UNet(3, 1, width=4, depth=2, padding="valid")
    images = torch.rand(2, 1, 60, 76)
    torch.testing.assert_close(network(images), plain_unet(images, network))


def test_valid_and_padded_networks_agree_away_from_the_border() -> None:
    valid, padded = UNet(2, 1, width=4, depth=2, padding="valid"), UNet(2, 1, width=4, depth=2)
    padded.load_state_dict(valid.state_dict())
    images = torch.rand(1, 1, 204, 204)
    # Two valid convolutions shift the grid of each pooling: by 2 pixels at stride 1 and by 4 more at stride 2.
    small, large = valid(images), padded(images[..., 2:, 2:])
    border = (204 - small.shape[-1]) // 2
    aligned = large[..., border - 2 :, border - 2 :][..., : small.shape[-1], : small.shape[-1]]
    centre = slice(16, -16)  # the padded border reaches further in than the valid network cuts off
    torch.testing.assert_close(small[..., centre, centre], aligned[..., centre, centre], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("upsample", "skips"), list(product(UPSAMPLING, SKIPS)))
def test_every_kind_keeps_odd_sizes_and_trains(upsample: str, skips: str) -> None:
    network = UNet(3, 1, width=4, depth=2, norm="batch", upsample=upsample, skips=skips)
    logits = network(torch.rand(2, 1, 21, 30))
    assert logits.shape == (2, 3, 21, 30)
    logits.square().mean().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(("upsample", "skips", "width"), list(product(UPSAMPLING, ("add", "none"), (8, 64))))
def test_matched_parameters_are_within_one_percent(upsample: str, skips: str, width: int) -> None:
    shape = {"width": width, "upsample": upsample, "norm": "batch"}
    reference = parameters(on_meta(4, 1, skips="concat", **shape))
    bare = parameters(on_meta(4, 1, skips=skips, **shape))
    matched = parameters(on_meta(4, 1, skips=skips, match_parameters=True, **shape))
    assert abs(matched / reference - 1) <= 0.01
    assert bare < 0.95 * reference  # what would be compared without matching


def test_without_skips_the_encoder_reaches_the_decoder_only_through_the_bottleneck() -> None:
    network = UNet(2, 1, width=4, depth=2, skips="none").eval()
    image = torch.rand(1, 1, 32, 32)
    before = network(image)
    network.encoder[2].register_forward_hook(lambda module, args, output: torch.zeros_like(output))
    assert network(image).std(dim=(-1, -2)).max() < 1e-6 < before.std(dim=(-1, -2)).max()


@pytest.mark.parametrize("size", [1, 93, 150, 388, 389])
def test_the_module_predicts_every_pixel_with_valid_convolutions(size: int) -> None:
    module = UNetModule(2, 255, in_channels=1, width=2, padding="valid").eval()
    with torch.no_grad():
        assert module(torch.rand(1, 1, size, 40)).shape == (1, 2, size, 40)


def test_overlap_tile_equals_the_network_inside_a_larger_image() -> None:
    module = UNetModule(2, 255, in_channels=1, width=2, depth=2, padding="valid").eval()
    image = torch.rand(1, 1, 120, 120)
    source, out = module.network.valid_input_size(76)
    border = (source - out) // 2
    whole = module.network(module.normalise(image[..., :source, :source]))
    tile = module(image[..., border : border + 76, border : border + 76])
    away = slice(border, 76 - border)  # where the mirrored border is not seen
    torch.testing.assert_close(tile[..., away, away], whole[..., :76, :76][..., away, away], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(75, 131), (20, 64), (3, 40)])
def test_prediction_in_tiles_is_prediction_at_once(height: int, width: int) -> None:
    module = UNetModule(2, 255, in_channels=1, width=4, depth=2, padding="valid", norm="batch", tile=21).eval()
    image, seen = torch.rand(2, 1, height, width), []
    module.network.register_forward_hook(lambda network, args, logits: seen.append(tuple(args[0].shape[-2:])))
    with torch.no_grad():
        tiles = module(image)
        module.tile = None
        whole = module(image)
    assert tiles.shape == whole.shape == (2, 2, height, width)
    torch.testing.assert_close(tiles, whole, rtol=1e-5, atol=1e-5)
    largest = module.network.valid_input_size(21)[0]
    assert max(max(shape) for shape in seen[:-1]) <= largest  # what bounds the memory
    assert len(seen) - 1 == -(-height // 24) * -(-width // 24)  # 21 is rounded up to 24 pixels, and 24 divides by 4


def test_training_sees_the_whole_image_whatever_the_tile() -> None:
    module = UNetModule(2, 255, in_channels=1, width=4, depth=2, padding="valid", norm="batch", tile=20)
    seen = []
    module.network.register_forward_hook(lambda network, args, logits: seen.append(args[0].shape[-1]))
    module(torch.rand(1, 1, 60, 60))
    assert seen == [module.network.valid_input_size(60)[0]]


@pytest.mark.parametrize(("tile", "padding"), [(64, "same"), (15, "valid")])
def test_a_tile_that_cannot_be_is_refused(tile: int, padding: str) -> None:
    with pytest.raises(ValueError, match=r"padding='valid' and at least 2\^depth = 16 pixels, got tile="):
        UNetModule(2, 255, width=1, tile=tile, padding=padding)


def test_the_border_loss_weighs_the_gap_between_two_cells_and_reaches_every_parameter() -> None:
    mask = torch.ones(1, 16, 16, dtype=torch.int64)
    mask[:, :, 8] = mask[:, :3] = mask[:, -3:] = 0
    losses = {}
    for name in ("ce", "ce_border"):
        torch.manual_seed(0)
        module = UNetModule(2, 255, in_channels=1, width=4, depth=2, padding="valid", loss=name, class_weights=[1, 1])
        losses[name] = module.loss(0.5 + 0.3 * mask[:, None], mask)
    losses["ce_border"].backward()
    assert losses["ce_border"] > 2 * losses["ce"]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in module.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"skips": "yes"}, "skips must be one of concat, add, none, got 'yes'"),
        ({"padding": "reflect"}, "padding must be one of same, valid"),
        ({"upsample": "cubic"}, "transposed-2"),
        ({"norm": "layer"}, "norm must be one of none, batch, group"),
        ({"width": 1, "skips": "none", "match_parameters": True}, "within 1 %"),
        ({"dropout": 1.0}, "dropout must be at least 0 and less than 1, got 1.0"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"decoder_widths": [4]}, "one width for each of the 4 levels"),
        ({"padding": "valid", "upsample": "unpool"}, "padding='same'"),
    ],
)
def test_errors_name_the_argument_and_the_choices(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        on_meta(2, 1, **arguments)


@pytest.mark.parametrize(("size", "nearest"), [(580, "572 or 588"), (100, "188 or 204"), (189, "188 or 204")])
def test_a_size_that_valid_pooling_would_cut_is_refused_with_the_nearest_ones(size: int, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"such as {nearest}, got {size}"):
        on_meta(2, 1, padding="valid")(torch.empty(1, 1, size, 572, device="meta"))


@pytest.mark.parametrize("depth", [1, 3])
def test_dropout_is_at_the_end_of_the_contracting_path_where_asked_for(depth: int) -> None:
    module = UNetModule(2, 255, in_channels=1, width=4, depth=depth, dropout=0.5)
    widths = []
    module.network.dropout.register_forward_hook(lambda drop, args, kept: widths.append(kept.shape[1]))
    image = torch.rand(1, 1, 16, 16)
    assert not torch.equal(module(image), module(image))
    assert widths == [2 ** (depth + 1), 2 ** (depth + 2)] * 2  # of the last map that is pooled, and of the bottom
    module.eval()
    assert torch.equal(module(image), module(image))
    plain = UNet(2, 1, width=4, depth=depth).train()
    assert torch.equal(plain(image), plain(image))


def test_weights_start_with_the_standard_deviation_of_the_paper() -> None:
    network = UNet(2, 64, width=64, depth=1)
    weight = network.encoder[0][1][0].weight
    assert weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)  # Sec. 3: N = 9 * 64 = 576


def test_one_batch_is_overfitted() -> None:
    module = UNetModule(3, 255, width=8, depth=2, norm="batch")
    images, masks = (
        torch.rand(2, 3, 32, 32),
        torch.randint(3, (2, 4, 4)).repeat_interleave(8, 1).repeat_interleave(8, 2),
    )
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        module.loss(images, masks).backward()
        optimizer.step()
    assert (module(images).argmax(1) == masks).float().mean() > 0.97
