from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_networks import TINY
from torch import Tensor

from lightning_modules.catalogue import NETWORKS
from lightning_modules.components.blocks import mirror_pad
from lightning_modules.components.losses import LOSSES
from lightning_modules.components.points import Grid, point_labels, point_sample, uncertainty
from lightning_modules.pointrend import PointHead, PointRend, PointRendModule

SMALL: dict[str, Any] = {"head_width": 8, "points": 40, "subdivision_points": 30}


def tiny(network: str = "unet", **arguments: Any) -> PointRend:
    return PointRend(3, 3, network=network, network_options=TINY[network], **{**SMALL, **arguments}).eval()


def test_sampling_equals_grid_sample_with_a_repeated_border() -> None:
    maps, points = torch.randn(2, 5, 6, 9), 30 * torch.rand(2, 50, 2) - 3
    normalised = 2 * points / torch.tensor([4 * 9, 4 * 6]) - 1
    wanted = F.grid_sample(maps, normalised[:, :, None], padding_mode="border", align_corners=False)[..., 0]
    torch.testing.assert_close(point_sample(Grid(maps, 4), points), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(point_sample(Grid(maps, 4, 7), points - 7), wanted, atol=1e-5, rtol=1e-5)


def test_sampling_at_the_centres_of_pixels_is_indexing() -> None:
    maps, row, column = torch.randn(2, 5, 6, 9), torch.tensor([[0, 5], [2, 3]]), torch.tensor([[8, 0], [4, 4]])
    points = torch.stack([column, row], dim=-1) + 0.5
    sampled = point_sample(Grid(maps, 1), points)
    for image in (0, 1):
        torch.testing.assert_close(sampled[image], maps[image][:, row[image], column[image]], rtol=0, atol=0)


def test_labels_are_those_of_the_pixel_a_point_lies_in() -> None:
    masks = torch.tensor([[[0, 1], [2, 255]]])
    points = torch.tensor([[[0.0, 0.0], [1.99, 0.01], [0.99, 1.0], [2.0, 2.0]]])  # the last from rounding up
    assert point_labels(masks, points).tolist() == [[0, 1, 2, 255]]


def test_uncertainty_is_the_lead_of_the_best_class() -> None:
    logits = torch.tensor([[5.0, 1.0, -2.0], [1.0, 1.0, 1.5], [0.0, 2.0, 1.0]])[..., None]
    assert uncertainty(logits)[:, 0].tolist() == [-4.0, -0.5, -1.0]


def test_half_precision_asks_at_the_centres_of_pixels_too(monkeypatch: pytest.MonkeyPatch) -> None:
    network, asked = tiny().bfloat16(), []
    at_points = network.at_points
    monkeypatch.setattr(network, "at_points", lambda grids, points: asked.append(points) or at_points(grids, points))
    x = torch.rand(1, 3, 32, 544, dtype=torch.bfloat16)
    torch.set_default_dtype(torch.bfloat16)  # as Lightning does around the steps of a network in half precision
    try:
        logits = network(x)
        drawn = network.training_points(network.grids(x)[0], 32, 544)
    finally:
        torch.set_default_dtype(torch.float32)
    assert logits.isfinite().all()
    assert torch.equal(asked[-1] % 1, torch.full_like(asked[-1], 0.5))  # in bfloat16 pixels are even from 256 on
    assert len(drawn.unique()) > 0.9 * drawn.numel()  # and 40 random places among 256 numbers would meet


def test_every_layer_of_the_head_sees_the_coarse_logits() -> None:
    head = PointHead(256, 19)  # res2 of a ResNet-50, Cityscapes
    assert sum(p.numel() for p in head.parameters()) == 3 * ((256 + 19) * 256 + 256) + (256 + 19) * 19 + 19
    assert [layer.in_channels for layer in head.layers] == [256 + 19] * 3
    features, coarse = torch.randn(2, 256, 7), torch.randn(2, 19, 7)
    x = features
    for layer in [*head.layers, head.classifier]:
        weight, bias = layer.weight[..., 0], layer.bias[:, None]
        x = weight[:, : x.shape[1]] @ x + weight[:, x.shape[1] :] @ coarse + bias
        x = x.relu() if layer is not head.classifier else x
    torch.testing.assert_close(head(features, coarse), x)


def dense(network: PointRend, x: Tensor) -> Tensor:
    """The head at the centre of every pixel, from maps that are resized to the image."""
    height, width = x.shape[-2:]
    padded = mirror_pad(x, 0, -height % 32, 0, -width % 32)
    maps = [grid.maps for grid in network.grids(padded)]
    at_size = [F.interpolate(m, size=padded.shape[-2:], mode="bilinear", align_corners=False) for m in maps]
    coarse, fine = at_size[0].flatten(2), torch.cat(at_size[1:], dim=1).flatten(2)
    return network.head(fine, coarse).unflatten(2, padded.shape[-2:])[..., :height, :width]


@pytest.mark.parametrize("features", [None, ["encoder.2"], ["encoder.1", "encoder.2", "decoder.0"]])
@pytest.mark.parametrize(("height", "width"), [(64, 32), (33, 47), (1, 70)])
def test_equals_dense_evaluation_where_every_point_is_chosen(
    features: list[str] | None, height: int, width: int
) -> None:
    network = tiny(features=features, subdivision_points=10**6)
    torch.nn.init.normal_(network.head.classifier.weight)  # from nearly zero
    images = torch.rand(3, 3, height, width)
    torch.testing.assert_close(network(images), dense(network, images), atol=1e-5, rtol=1e-5)


def test_a_batch_equals_its_images_one_by_one() -> None:
    network = tiny(features=["encoder.0", "encoder.2"])
    assert network.head.layers[0].in_channels == 4 + 16 + 3  # the maps side by side, and the classes
    images = torch.rand(3, 3, 40, 33)
    torch.testing.assert_close(network(images), torch.cat([network(image[None]) for image in images]))


def plain_subdivision(network: PointRend, image: Tensor) -> Tensor:
    """The rendering of one image (3, H, W), point by point."""
    height, width = image.shape[-2:]
    grids = network.grids(mirror_pad(image[None], 0, -height % 32, 0, -width % 32))
    logits, stride = grids[0].maps, int(grids[0].stride)
    while stride > 1:
        stride //= 2
        logits = F.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=False)
        best = logits[0].sort(dim=0, descending=True).values
        lead = best[0] - best[1]
        inside = [
            (lead[i, j].item(), i, j)
            for i in range(lead.shape[0])
            for j in range(lead.shape[1])
            if i * stride < height and j * stride < width
        ]
        for _, i, j in sorted(inside)[: network.subdivision_points]:
            point = torch.tensor([[[(j + 0.5) * stride, (i + 0.5) * stride]]])
            logits[0, :, i, j] = network.at_points(grids, point)[0, :, 0]
    return logits[0, :, :height, :width]


@pytest.mark.parametrize("name", ["unet", "deeplabv3"])
def test_only_the_least_certain_points_are_predicted_anew_at_each_doubling(name: str) -> None:
    network = tiny(name, subdivision_points=15)  # fewer than the 5 x 4 cells of the first doubling
    torch.nn.init.normal_(network.head.classifier.weight)
    image = torch.rand(3, 36, 29)
    with torch.no_grad():
        torch.testing.assert_close(network(image[None])[0], plain_subdivision(network, image))


def test_training_points_are_uncertain_in_the_share_asked_for_and_follow_the_seed() -> None:
    network = tiny(points=400, oversample=3.0, importance=0.75)
    beyond = (4 * torch.arange(8.0) + 2 - 16).expand(8, 8)
    maps = torch.full((2, 3, 8, 8), -99.0)
    maps[0, 0], maps[0, 1] = -beyond, beyond  # image 0 changes its class at x = 16,
    maps[1, 0], maps[1, 1] = -beyond.T, beyond.T  # image 1 at y = 16
    points = network.training_points(Grid(maps, 4), 30, 25)
    assert points.shape == (2, 400, 2)
    assert (points >= 0).all() and (points[..., 0] <= 25).all() and (points[..., 1] <= 30).all()
    unsure, uniform = points[:, :300], points[:, 300:]
    for image, side, axis in ((0, 25, 0), (1, 30, 1)):  # 300 of 1,200 candidates: the quarter next to the edge
        distance = (unsure[image, :, axis] - 16).abs()
        assert distance.max() < 0.15 * side < (uniform[image, :, axis] - 16).abs().max()
        assert uniform[image, :, axis].mean().item() == pytest.approx(side / 2, rel=0.15)
    torch.manual_seed(3)
    first = network.training_points(Grid(maps, 4), 30, 25)
    torch.manual_seed(3)
    assert network.training_points(Grid(maps, 4), 30, 25).equal(first)


def test_the_loss_is_on_the_points_and_on_the_coarse_logits() -> None:
    module = PointRendModule(3, 255, network="unet", network_options=TINY["unet"], loss="dice", **SMALL).eval()
    images, masks = torch.rand(2, 3, 32, 64), torch.randint(3, (2, 32, 64))
    masks[0, :20] = 255
    torch.manual_seed(1)
    loss = module.loss(images, masks)

    torch.manual_seed(1)
    grids = module.network.grids(module.normalise(images))
    points = module.network.training_points(grids[0], 32, 64)
    whole = F.interpolate(grids[0].maps, size=(32, 64), mode="bilinear", align_corners=False)
    labels = torch.stack([mask[p[:, 1].long(), p[:, 0].long()] for mask, p in zip(masks, points, strict=True)])
    entropy = F.cross_entropy(module.network.at_points(grids, points), labels, ignore_index=255)
    torch.testing.assert_close(loss, LOSSES["dice"](whole, masks, 255, None) + entropy)

    touched = torch.zeros(2, 8, 16, dtype=torch.bool)  # cells within one cell of a point
    for cells, positions in zip(touched, (points / 4).long().tolist(), strict=True):
        for x, y in positions:
            cells[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = True
    assert 0.1 < touched.float().mean() < 0.9
    wild = [Grid(g.maps.masked_fill(~touched[:, None], 1e4), g.stride) for g in grids]
    torch.testing.assert_close(module.network.at_points(wild, points), module.network.at_points(grids, points))


@pytest.mark.parametrize("name", NETWORKS)
def test_stands_on_every_network(name: str) -> None:
    module = PointRendModule(3, 255, network=name, network_options=TINY[name], **SMALL)
    with torch.no_grad():
        for parameter in module.parameters():  # some scores start at zero, and nothing below has a gradient then
            parameter.add_(0.05 * torch.randn_like(parameter))
    assert module(torch.rand(2, 3, 33, 47)).shape == (2, 3, 33, 47)
    module.loss(torch.rand(2, 3, 64, 64), torch.randint(3, (2, 64, 64))).backward()
    without = [n for n, p in module.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert without == []
    # No multiple of the stride; two images, as one leaves batch normalisation a single value at stride 32.
    assert torch.isfinite(module.loss(torch.rand(2, 3, 30, 30), torch.randint(3, (2, 30, 30))))
    assert not any(m._forward_hooks for m in module.modules())


@pytest.mark.parametrize("name", NETWORKS)
def test_fine_features_belong_to_the_pixels_around_the_point(name: str) -> None:
    network = tiny(name)
    coarse, fine = network.grids(torch.rand(1, 3, 64, 96))
    assert fine.stride == 4 <= coarse.stride
    for x, y in ((70.0, 18.0), (34.0, 42.0)):
        images = torch.rand(8, 3, 64, 96, requires_grad=True)
        *_, fine = network.grids(images)
        point_sample(fine, torch.tensor([[[x, y]]]).expand(8, 1, 2)).square().sum().backward()
        seen = images.grad.square().sum((0, 1))  # type: ignore[union-attr]
        seen = seen / seen.sum()
        assert (seen.sum(0) @ (torch.arange(96) + 0.5)).item() == pytest.approx(x, abs=fine.stride)
        assert (seen.sum(1) @ (torch.arange(64) + 0.5)).item() == pytest.approx(y, abs=fine.stride)


@pytest.mark.parametrize("name", [name for name, base in NETWORKS.items() if base.features == "encoder[2]"])
def test_no_later_layer_changes_the_features_in_place(name: str) -> None:
    network, images = tiny(name), torch.rand(1, 3, 64, 64)
    seen: list[Tensor] = []
    hook = network.network.encoder.register_forward_hook(lambda *a: seen.append(a[2][2].clone()))
    fine = network.grids(images)[1].maps
    hook.remove()
    assert any(fine.equal(kept) for kept in seen)


def test_a_head_that_no_logits_come_from_is_left_out() -> None:
    assert tiny("pspnet").network.aux is None


def test_learns_an_edge_that_the_coarse_logits_cannot_draw() -> None:
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    masks = (2 * rows + columns > 47).long()[None]
    images = masks[:, None] + 0.1 * torch.randn(1, 3, 32, 32)
    module = PointRendModule(2, 255, network="unet", network_options={"width": 8, "depth": 2}, points=200)
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        module.loss(images, masks).backward()
        optimizer.step()
    module.eval()
    coarse = module.network.grids(module.normalise(images))[0].maps
    smooth = F.interpolate(coarse, scale_factor=4, mode="bilinear", align_corners=False).argmax(1)
    rendered = module(images).argmax(1)
    assert (rendered == masks).float().mean() > max(0.98, (smooth == masks).float().mean().item())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network": "vnet"}, "network must be one of deconvnet, .*, unet, got 'vnet'"),
        ({"network_options": {"widht": 4}}, "network_options do not fit UNet: .*'widht'"),
        ({"network_options": {"width": 4, "depth": 6}}, "depth of at most 5"),
        ({"features": ["encoder[2]"]}, "features must name modules that UNet runs, within encoder, up, decoder, head"),
        ({"features": ["encoder.7"]}, r"features must name .* got \['encoder.7'\]"),
        ({"features": "encoder.2"}, r"features must be a list of .* such as \['encoder.2', .*\], got 'encoder.2'"),
        ({"features": []}, r"features must be a list of .* got \[\]"),
        ({"features": ["encoder[x]"]}, r"features must be a list of .* got \['encoder\[x\]'\]"),
        (
            {"features": ["encoder.2[0]"]},
            r"features must be maps \(N, C, H, W\) with channels, but 'encoder.2\[0\]' has",
        ),
        (
            {"network": "fcn", "features": ["fc7"]},
            r"must be items of its encoder, such as 'encoder\[2\]', .* got \['fc7'\]",
        ),
        (
            {"network": "pspnet", "network_options": {"aux": True}},
            "network_options must leave aux of 'pspnet' at False, .* got aux=True: leave it out",
        ),
        (
            {"network": "hypercolumn", "features": ["encoder[1]"], "network_options": {"encoder": "tu-convnext_atto"}},
            r"with channels, but 'encoder\[1\]' has the shape \(1, 0, 32, 32\): name another",
        ),
        ({"points": 0}, "points must be at least 1, got 0"),
        ({"head_width": -1}, "head_width must be at least 1, got -1"),
        ({"oversample": 0.5}, r"oversample must be at least 1 and importance in \[0, 1\], got 0.5 and 0.75"),
    ],
)
def test_errors_name_the_argument_and_the_way_out(arguments: dict[str, Any], message: str) -> None:
    options = TINY[arguments.get("network", "unet")] if arguments.get("network") in TINY else TINY["unet"]
    with pytest.raises(ValueError, match=message):
        PointRend(3, 3, **{"network": "unet", "network_options": options, **arguments})


def test_one_class_has_no_second_best() -> None:
    with pytest.raises(
        ValueError, match=r"num_classes must be at least 2 for PointRend, .* got 1: count the background"
    ):
        PointRend(1, network="unet", network_options=TINY["unet"])


def test_the_maps_of_a_network_of_scales_are_of_the_image_itself() -> None:
    network, seen = tiny("deeplabv2"), []
    network.network.encoder.register_forward_hook(lambda encoder, args, maps: seen.append(maps[2]))
    fine = network.grids(torch.rand(1, 3, 32, 32))[1]
    assert fine.stride == 4 and fine.maps is seen[0]
