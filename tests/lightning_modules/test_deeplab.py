"""DeepLab v1 and v2."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.analysis.receptive_field import receptive_field
from lightning_modules.deeplabv1 import FIELDS_OF_VIEW, DeepLabV1, DeepLabV1Module
from lightning_modules.deeplabv2 import DeepLabV2, DeepLabV2Module

TINY_V1: dict[str, Any] = {"encoder_width": 0.05, "fc_width": 6, "branch_width": 5, "dropout": 0.0}
TINY_V2: dict[str, Any] = {"encoder": "vgg16", "encoder_width": 0.05, "fc_width": 6, "dropout": 0.0}
MODULES = [DeepLabV1Module, DeepLabV2Module]


def tiny(module: type[DeepLabV1Module] | type[DeepLabV2Module], **options: Any) -> DeepLabV1Module | DeepLabV2Module:
    small = TINY_V1 if module is DeepLabV1Module else TINY_V2
    return module(3, 255, **small | options)


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


# ---- v1


@pytest.mark.parametrize(
    ("field_of_view", "count"),
    [
        ("7x7-rate4", 134_346_581),
        ("4x4-rate4", 65_140_565),
        ("4x4-rate8", 65_140_565),
        ("3x3-rate12", 20_505_429),
    ],
)
def test_v1_has_the_parameters_of_table_2(field_of_view: str, count: int) -> None:
    with torch.device("meta"):
        network = DeepLabV1(21, field_of_view=field_of_view)
    assert parameters(network) == count


def test_multi_scale_features_add_640_channels_to_the_last_layer() -> None:
    with torch.device("meta"):
        network = DeepLabV1(21, multi_scale_features=True)
    sources = 3 + 64 + 128 + 256 + 512  # the image and pool1 to pool4
    branches = 9 * sources * 128 + 5 * (128 + 128 * 128 + 128)
    assert parameters(network) == 20_505_429 + branches + 5 * 128 * 21 == 21_711_445


@pytest.mark.parametrize(("field_of_view", "span"), [*zip(FIELDS_OF_VIEW, (25, 13, 25, 25), strict=True)])
def test_fc6_sees_the_field_of_view_of_table_2(field_of_view: str, span: int) -> None:
    """Sizes 224, 128, 224, 224 there: those of VGG's 7x7 and a 4x4 kernel at stride 32, here atrous at stride 8."""
    fc6 = DeepLabV1(2, field_of_view=field_of_view, **TINY_V1).fc[0]
    nn.init.ones_(fc6.weight)
    x = torch.zeros(1, fc6.in_channels, 41, 41, requires_grad=True)
    out = fc6(x)
    assert out.shape[-2:] == (41, 41)
    (gradient,) = torch.autograd.grad(out[0, 0, 20, 20], x)
    seen = gradient[0, 0].nonzero()
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [span, span]
    assert (seen.amax(0) + seen.amin(0)).tolist() == [40, 40]  # centred, whether the kernel is even or odd


def plain_v1(x: Tensor, network: DeepLabV1) -> Tensor:
    """LargeFOV spelled out: VGG16 whose last two pools keep stride 8, rate 2 after the first and fc6 at rate 12."""
    convs = [m for m in network.encoder.modules() if isinstance(m, nn.Conv2d)]
    for index, conv in enumerate(convs):
        rate = 2 if index >= 10 else 1  # conv5_1 to conv5_3
        x = F.relu(F.conv2d(x, conv.weight, conv.bias, padding=rate, dilation=rate))
        if index in (1, 3, 6):  # conv1_2, conv2_2, conv3_3
            x = F.max_pool2d(x, 3, stride=2, padding=1)
        if index in (9, 12):  # conv4_3, conv5_3
            x = F.max_pool2d(x, 3, stride=1, padding=1)
    fc6, fc7, fc8 = network.fc[0], network.fc[3], network.fc8
    x = F.relu(F.conv2d(x, fc6.weight, fc6.bias, padding=12, dilation=12))
    x = F.relu(F.conv2d(x, fc7.weight, fc7.bias))
    return F.conv2d(x, fc8.weight, fc8.bias)


def test_v1_equals_the_network_spelled_out() -> None:
    network = DeepLabV1(4, **TINY_V1)
    nn.init.normal_(network.fc8.weight)
    image = torch.rand(2, 3, 49, 65)
    expected = plain_v1(image, network)
    assert expected.shape == (2, 4, 7, 9)  # the sizes of the authors' network, n = 8 * (k - 1) + 1
    torch.testing.assert_close(network.logits(image), expected)
    whole = F.interpolate(expected, (49, 65), mode="bilinear", align_corners=False)
    torch.testing.assert_close(network(image), whole)


def test_multi_scale_features_are_classified_together_with_fc7() -> None:
    network = DeepLabV1(4, multi_scale_features=True, **TINY_V1)
    for layer in (network.fc8, *network.branch_fc8):
        nn.init.normal_(layer.weight)
    image = torch.rand(1, 3, 41, 33)
    maps = network.encoder(image)
    pools = [F.max_pool2d(maps[i], 3, 2 if i < 3 else 1, padding=1) for i in range(4)]
    assert [p.shape[-1] for p in pools] == [17, 9, 5, 5]
    features = [network.fc(maps[-1]), *(mlp(m) for mlp, m in zip(network.branches, [image, *pools], strict=True))]
    together = torch.cat([F.interpolate(f, (41, 33), mode="bilinear") for f in features], dim=1)
    weight = torch.cat([network.fc8.weight, *(c.weight for c in network.branch_fc8)], dim=1)
    torch.testing.assert_close(network(image), F.conv2d(together, weight, network.fc8.bias), rtol=1e-4, atol=1e-4)


# ---- v2


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"encoder": "vgg16"}, 37_877_652),  # ASPP-L
        ({"encoder": "vgg16", "rates": (2, 4, 8, 12)}, 37_877_652),  # ASPP-S
        ({"encoder": "vgg16", "rates": (12,)}, 20_505_429),  # LargeFOV, the network of v1
        ({}, 44_048_532),  # ResNet-101
    ],
)
def test_v2_has_the_published_number_of_parameters(options: dict[str, Any], count: int) -> None:
    with torch.device("meta"):
        network = DeepLabV2(21, **options)
    assert parameters(network) == count


def test_large_fov_is_the_same_network_in_v1_and_v2() -> None:
    first, second = DeepLabV1(3, **TINY_V1), DeepLabV2(3, rates=(12,), multi_scale=False, **TINY_V2)
    state = {n.replace("fc.", "branches.0.").replace("fc8.", "fc8.0."): p for n, p in first.state_dict().items()}
    second.load_state_dict(state)
    image = torch.rand(1, 3, 33, 47)
    torch.testing.assert_close(second(image), first(image))


def test_a_pyramid_adds_up_its_branches() -> None:
    network = DeepLabV2(3, rates=(2, 4), multi_scale=False, **TINY_V2 | {"fc_width": 0})
    image = torch.rand(1, 3, 40, 56)
    top = network.encoder(image)[-1]
    expected = sum(
        F.conv2d(top, c.weight, c.bias, padding=r, dilation=r) for c, r in zip(network.fc8, (2, 4), strict=True)
    )
    torch.testing.assert_close(network.logits(image), expected)


def test_a_position_takes_the_largest_logit_of_three_scales() -> None:
    network = DeepLabV2(3, **TINY_V2)
    single = DeepLabV2(3, multi_scale=False, **TINY_V2)
    single.load_state_dict(network.state_dict())
    image = torch.rand(1, 3, 64, 80)
    scales = [single.logits(image)] + [
        F.interpolate(single.logits(F.interpolate(image, size, mode="bilinear")), (8, 10), mode="bilinear")
        for size in ((32, 40), (48, 60))
    ]
    torch.testing.assert_close(network.logits(image), torch.stack(scales).amax(0))
    assert [tuple(s.shape[-2:]) for s in network.with_scales(image)] == [(8, 10), (8, 10), (6, 8), (4, 5)]


def test_the_encoder_sees_the_image_itself_first() -> None:
    network, seen = DeepLabV2(3, rates=(2,), **TINY_V2), []
    network.encoder.register_forward_hook(lambda module, args, maps: seen.append(tuple(args[0].shape[-2:])))
    network(torch.rand(1, 3, 64, 80))
    assert seen == [(64, 80), (48, 60), (32, 40)]
    assert receptive_field(network, 3, output="branches.0").stride == (8, 8)  # of the module as called first


def test_the_loss_adds_up_the_fusion_and_the_scales() -> None:
    module = tiny(DeepLabV2Module)
    images, masks = torch.rand(2, 3, 33, 47), torch.randint(3, (2, 33, 47))
    masks[:, :5] = 255
    outputs = module.network.with_scales(module.normalise(images))
    assert len(outputs) == 4
    whole = [F.interpolate(logits, (33, 47), mode="bilinear") for logits in outputs]
    expected = sum(F.cross_entropy(logits, masks, ignore_index=255) for logits in whole)
    torch.testing.assert_close(module.loss(images, masks), expected)
    single = tiny(DeepLabV2Module, multi_scale=False)
    loss = F.cross_entropy(single(images), masks, ignore_index=255)
    torch.testing.assert_close(single.loss(images, masks), loss)


# ---- both


@pytest.mark.parametrize("options", [{}, {"encoder": "resnet18"}])
@pytest.mark.parametrize("size", [(33, 47), (20, 9), (1, 1)])
@pytest.mark.parametrize("module", MODULES)
def test_logits_have_the_size_of_the_image(module: Any, size: tuple[int, int], options: dict[str, str]) -> None:
    network = tiny(module, in_channels=1, **options).eval()
    assert network(torch.rand(2, 1, *size)).shape == (2, 3, *size)


@pytest.mark.parametrize(
    ("module", "options"),
    [
        (DeepLabV1Module, {"multi_scale_features": True}),
        (DeepLabV1Module, {"multi_scale_features": True, "encoder": "resnet18"}),
        (DeepLabV2Module, {"encoder": "resnet18", "fc_width": None}),
        (DeepLabV2Module, {"rates": (2, 4, 8, 12)}),
    ],
)
def test_gradient_reaches_every_parameter_with_a_batch_of_one(module: Any, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    built = tiny(module, **options).train()
    built.loss(torch.rand(1, 3, 65, 65), torch.randint(3, (1, 65, 65))).backward()
    assert [n for n, p in built.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("module", MODULES)
def test_the_last_layer_learns_at_ten_times_the_rate(module: Any) -> None:
    built = tiny(module, multi_scale_features=True) if module is DeepLabV1Module else tiny(module)
    base = 1e-3 if module is DeepLabV1Module else 2.5e-4
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in built.parameter_groups() for p in g["params"]}
    for name, parameter in built.network.named_parameters():
        factor = 10 if "fc8" in name else 1
        expected = (2 * factor * base, 0) if name.endswith("bias") else (factor * base, 5e-4)
        assert rates[id(parameter)] == pytest.approx(expected), name


@pytest.mark.parametrize("module", MODULES)
def test_refinement_follows_the_network_in_evaluation_only(module: Any) -> None:
    seen: list[Tensor] = []

    def smooth(probabilities: Tensor, images: Tensor) -> Tensor:
        seen.append(images)
        return F.avg_pool2d(probabilities, 5, stride=1, padding=2, count_include_pad=False)

    built = tiny(module)
    for name, parameter in built.named_parameters():
        if "fc8" in name:
            nn.init.normal_(parameter)
    images = torch.rand(1, 3, 40, 56)
    plain = built.eval()(images)
    built.refine = smooth
    refined = built(images)
    torch.testing.assert_close(refined.exp(), smooth(plain.softmax(1), images))
    torch.testing.assert_close(refined.softmax(1), refined.exp())  # logits of the refined probabilities
    assert not torch.allclose(refined.softmax(1), plain.softmax(1), atol=1e-3)
    assert torch.equal(seen[0], images)  # as they come, not normalised
    seen.clear()
    torch.testing.assert_close(built.train()(images), plain)
    assert seen == []


def test_a_refinement_that_is_certain_gives_finite_logits() -> None:
    built = tiny(DeepLabV1Module).eval()
    built.refine = lambda probabilities, images: F.one_hot(probabilities.argmax(1), 3).movedim(3, 1).float()
    logits = built(torch.rand(1, 3, 16, 16))
    assert torch.isfinite(logits).all()
    loss = built.loss_function(logits, logits.argmax(1), 255, None)
    assert loss == 0


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (DeepLabV1, {"field_of_view": "large"}, "field_of_view must be one of 7x7-rate4, 4x4-rate4, .* got 'large'"),
        (DeepLabV1, {"fc_width": 0}, "fc_width must be at least 1, got 0"),
        (DeepLabV1, {"branch_width": -1}, "branch_width must be at least 1, got -1"),
        (DeepLabV2, {"fc_width": -1}, "fc_width must be at least 1, got -1"),
        (DeepLabV2, {"rates": ()}, r"rates must be a list of whole numbers of at least 1, .* \[6, 12, 18\], got \(\)"),
        (DeepLabV2, {"rates": (0, 6)}, r"got \(0, 6\)"),
        (DeepLabV2, {"rates": 6}, r"such as \[6, 12, 18\], got 6"),
        (DeepLabV2, {"rates": "6"}, r"such as \[6, 12, 18\], got '6'"),
    ],
)
def test_errors_name_the_argument_and_the_choices(network: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network(3, **options)


def test_multi_scale_features_want_an_encoder_with_all_their_maps() -> None:
    with pytest.raises(ValueError, match="encoder='tu-convnext_atto' has none at stride 2, pass encoder='vgg16'"):
        DeepLabV1(2, encoder="tu-convnext_atto", multi_scale_features=True)
    DeepLabV1(2, encoder="tu-convnext_atto", fc_width=2)


@pytest.mark.parametrize("module", MODULES)
def test_one_batch_is_overfitted(module: Any) -> None:
    torch.manual_seed(0)
    built = tiny(module, encoder_width=0.1, fc_width=32)
    images = torch.rand(2, 3, 32, 32)
    masks = torch.randint(3, (2, 2, 2)).repeat_interleave(16, 1).repeat_interleave(16, 2)
    optimizer = torch.optim.Adam(built.parameters(), 2e-3)
    for _ in range(60):
        optimizer.zero_grad()
        built.loss(images, masks).backward()
        optimizer.step()
    assert (built(images).argmax(1) == masks).float().mean() > 0.9
