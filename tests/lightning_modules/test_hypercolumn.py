from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.hypercolumn import Hypercolumn, HypercolumnBoxes, HypercolumnModule, bilinear_taps, crop

WHOLE = torch.tensor([[0.0, 0.0, 1.0, 1.0]])


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def small_boxes(num_classes: int = 2, **options: Any) -> HypercolumnBoxes:
    return HypercolumnBoxes(num_classes, (3, 4, 5), **{"size": 10, **options})


def box_inputs(boxes: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(1, 3, 8, 12), torch.randn(1, 4, 4, 6), torch.randn(boxes, 5)


# ---- whole images


def test_the_sum_of_upsampled_scores_is_the_classifier_of_stacked_upsampled_maps() -> None:
    network = Hypercolumn(4, encoder_width=0.05, levels=(0, 2, 4)).eval()
    for classifier in network.classifiers:
        nn.init.normal_(classifier.weight)
        nn.init.normal_(classifier.bias)
    image = torch.rand(2, 3, 33, 47)
    maps = network.encoder(image)
    column = torch.cat([F.interpolate(maps[i], (33, 47), mode="bilinear") for i in (0, 2, 4)], dim=1)
    weight = torch.cat([classifier.weight for classifier in network.classifiers], dim=1)
    bias = torch.stack([classifier.bias for classifier in network.classifiers]).sum(0)
    torch.testing.assert_close(network(image), F.conv2d(column, weight, bias), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("encoder", "levels"), [("vgg16", (2, 3, 5)), ("vgg16", (1, 4)), ("resnet18", (1, 2, 5))])
@pytest.mark.parametrize("size", [(33, 47), (1, 20)])
def test_logits_have_the_size_of_the_image(encoder: str, levels: tuple[int, ...], size: tuple[int, int]) -> None:
    network = Hypercolumn(3, 1, encoder=encoder, levels=levels, encoder_width=0.05).eval()
    image = torch.rand(2, 1, *size)
    assert network(image).shape == (2, 3, *size)
    stride = 2 ** levels[0]
    assert network.logits(image).shape == (2, 3, -(-size[0] // stride), -(-size[1] // stride))


def test_only_the_stages_up_to_the_deepest_level_are_built() -> None:
    module = HypercolumnModule(3, 255, levels=(1, 2), encoder_width=0.05)
    module.loss(torch.rand(1, 3, 32, 32), torch.randint(3, (1, 32, 32))).backward()
    assert len(module.network.encoder.out_channels) == 3
    assert [name for name, p in module.named_parameters() if p.grad is None] == []


def test_biases_learn_at_twice_the_rate_and_without_weight_decay() -> None:
    module = HypercolumnModule(3, 255, encoder_width=0.05)
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in module.parameter_groups() for p in g["params"]}
    classifier = module.network.classifiers[0]
    assert rates[id(classifier.weight)] == (1e-3, 1e-3)
    assert rates[id(classifier.bias)] == (2e-3, 0)
    assert len(rates) == len(list(module.parameters()))


@pytest.mark.parametrize("levels", [(), (0,), (3, 2), (2, 2), (2, 6), (-1, 2), 3, "3"])
def test_levels_that_are_not_maps_are_refused(levels: Any) -> None:
    with pytest.raises(ValueError, match=r"from 0 to 5 in rising order, the last not 0, such as \[2, 3, 5\], got "):
        Hypercolumn(3, levels=levels, encoder_width=0.05)


def test_a_map_that_the_encoder_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match=r"encoder='tu-convnext_atto' has 0, 2, 3 up to 3, got \[1, 3\]"):
        Hypercolumn(3, encoder="tu-convnext_atto", levels=(1, 3))
    Hypercolumn(3, encoder="tu-convnext_atto", levels=(2, 3))


def test_a_box_has_at_least_one_pixel_and_classifier() -> None:
    with pytest.raises(ValueError, match="grid must be at least 1, got 0"):
        HypercolumnBoxes(1, (1, 1, 1), grid=0)


def test_one_batch_is_overfitted() -> None:
    torch.manual_seed(0)
    module = HypercolumnModule(3, 255, levels=(1, 2, 3), encoder_width=0.1)
    images = torch.rand(2, 3, 32, 32)
    masks = torch.randint(3, (2, 4, 4)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        module.loss(images, masks).backward()
        optimizer.step()
    assert (module(images).argmax(1) == masks).float().mean() > 0.9


# ---- boxes


def test_the_box_head_has_3457500_parameters() -> None:
    with torch.device("meta"):
        network = HypercolumnBoxes()
        inputs = torch.empty(1, 256, 60, 80), torch.empty(1, 512, 30, 40), torch.empty(3, 4096)
        boxes, categories = torch.empty(3, 5), torch.zeros(3, dtype=torch.long)
        assert network(*inputs, boxes, categories).shape == (3, 50, 50)
    assert parameters(network) == 500 * (9 * 256 + 512 + 4096 + 3) == 3_457_500


def test_the_weights_of_the_grid_add_up_to_one_at_each_pixel() -> None:
    weights = HypercolumnBoxes(1, (1, 1, 1)).blend_weights
    assert weights.shape == (25, 50, 50)
    torch.testing.assert_close(weights.sum(0), torch.ones(50, 50))
    assert (weights > 0).sum(0).max() == 4  # the four nearest classifiers
    # The parts of a box are 10 pixels wide, so those around the centre of the part in row 1, column 3 are 14, 15 and
    # 34, 35.
    cell = weights[1 * 5 + 3, 14:16, 34:36]
    torch.testing.assert_close(cell, torch.full((2, 2), 0.95**2))
    torch.testing.assert_close(weights[0, :5, :5], torch.ones(5, 5))  # a corner has but one


def test_equal_classifiers_in_the_grid_are_one_classifier() -> None:
    scores = 10 * torch.randn(2, 1, 10, 10)
    torch.testing.assert_close(small_boxes().blend(scores.expand(2, 25, 10, 10)), scores[:, 0], rtol=1e-4, atol=1e-4)


def test_half_way_between_classifiers_the_probability_is_their_mean() -> None:
    network = small_boxes(grid=2, size=3)
    scores = torch.tensor([2.0, -1.0, 0.5, 3.0]).view(1, 4, 1, 1).expand(1, 4, 3, 3)
    probability = network.blend(scores).sigmoid()[0]
    at = scores[0, :, 0, 0].sigmoid()
    torch.testing.assert_close(probability[1, 1], at.mean())
    torch.testing.assert_close(probability[0, 0], at[0])
    torch.testing.assert_close(probability[0, 1], at[:2].mean())
    torch.testing.assert_close(probability[1, 0], at[[0, 2]].mean())


def test_a_pixel_that_is_certainly_wrong_still_has_a_gradient() -> None:
    scores = torch.full((1, 25, 10, 10), 200.0, requires_grad=True)
    F.binary_cross_entropy_with_logits(small_boxes().blend(scores), torch.zeros(1, 10, 10), reduction="sum").backward()
    assert scores.grad is not None
    torch.testing.assert_close(scores.grad.sum(1), torch.ones(1, 10, 10))


@pytest.mark.parametrize("size", [(7, 9), (60, 80)])
def test_the_whole_image_as_a_box_is_the_whole_map(size: tuple[int, int]) -> None:
    maps = torch.randn(1, 2, *size)
    expected = F.interpolate(maps, (50, 50), mode="bilinear", align_corners=False)
    torch.testing.assert_close(crop(maps, WHOLE, 50), expected, rtol=1e-4, atol=1e-4)


def test_a_box_is_a_part_of_the_whole() -> None:
    maps = torch.randn(1, 2, 7, 9)
    corner = crop(maps, torch.tensor([[0.5, 0.0, 1.0, 0.5]]), 25)  # left, top, right, bottom
    torch.testing.assert_close(corner, crop(maps, WHOLE, 50)[..., :25, 25:], rtol=1e-4, atol=1e-4)


def test_beyond_the_border_the_edge_is_repeated() -> None:
    taps = bilinear_taps(torch.tensor([[-2.0, -1.0], [1.5, 3.0]]), 4, 5)
    torch.testing.assert_close(taps, F.one_hot(torch.tensor([[0] * 4, [4] * 4]), 5).float())


def plain_boxes(network: HypercolumnBoxes, pool3: Tensor, pool4: Tensor, fc7: Tensor, category: int) -> Tensor:
    """Probabilities of the first box, the whole image: every pixel asks its nearest classifiers, in loops."""
    size, grid = network.size, round(network.cells**0.5)
    group = slice(category * network.cells, (category + 1) * network.cells)
    scores = F.interpolate(network.pool3(network.scales[0] * pool3), (size, size), mode="bilinear")[0, group]
    scores = scores + F.interpolate(network.pool4(network.scales[1] * pool4), (size, size), mode="bilinear")[0, group]
    scores = (scores + network.fc7(fc7)[0, group, None, None]).sigmoid()
    out = torch.zeros(size, size)
    for y in range(size):
        for x in range(size):
            row, column = ((p + 0.5) * grid / size - 0.5 for p in (y, x))
            for i in range(grid):
                for j in range(grid):
                    share = max(0, 1 - abs(min(max(row, 0), grid - 1) - i))
                    share *= max(0, 1 - abs(min(max(column, 0), grid - 1) - j))
                    out[y, x] += share * scores[i * grid + j, y, x]
    return out


def test_equals_the_network_spelled_out() -> None:
    network = small_boxes(3, scales=(0.5, 2.0), grid=3, size=8)
    for p in network.parameters():
        nn.init.normal_(p)
    pool3, pool4, fc7 = box_inputs(boxes=1)
    boxes = torch.cat([torch.zeros(1, 1), WHOLE], dim=1)
    out = network(pool3, pool4, fc7, boxes, torch.tensor([1])).sigmoid()
    torch.testing.assert_close(out[0], plain_boxes(network, pool3, pool4, fc7, 1), rtol=1e-4, atol=1e-5)


def test_maps_of_one_size_learn_at_one_pace() -> None:
    network = small_boxes()
    inputs = box_inputs(boxes=1)
    loss = network(*inputs, torch.cat([torch.zeros(1, 1), WHOLE], dim=1), torch.tensor([1])).square().mean()
    loss.backward()
    learned = [
        F.conv2d(inputs[0], network.pool3.weight.grad, padding=1),
        F.conv2d(inputs[1], network.pool4.weight.grad),
        F.linear(inputs[2], network.fc7.weight.grad),
    ]
    sizes = [float(change.square().mean().sqrt()) for change in learned]
    assert min(sizes) > 1e-2 * max(sizes)


def test_a_box_is_of_its_image_and_its_category() -> None:
    network = small_boxes(3)
    for p in network.parameters():
        nn.init.normal_(p)
    pool3, pool4, fc7 = torch.randn(2, 3, 8, 12), torch.randn(2, 4, 4, 6), torch.randn(2, 5)
    boxes = torch.tensor([[1, 0.1, 0.2, 0.7, 0.9], [0, 0.0, 0.0, 0.5, 0.5]])
    both = network(pool3, pool4, fc7, boxes, torch.tensor([2, 0]))
    alone = network(pool3[1:], pool4[1:], fc7[:1], boxes[:1] * torch.tensor([0, 1, 1, 1, 1]), torch.tensor([2]))
    torch.testing.assert_close(both[:1], alone)
    both[0].sum().backward()
    assert network.fc7.weight.grad is not None
    assert network.fc7.weight.grad.view(3, -1).any(1).tolist() == [False, False, True]


def test_trains_on_boxes() -> None:
    """An object that fills a disc of each box, which only a grid of classifiers can know where the maps say nothing."""
    torch.manual_seed(0)
    network = small_boxes(2)
    pool3, pool4, fc7 = box_inputs(boxes=4)
    boxes = torch.tensor([[0, 0.1, 0.2, 0.7, 0.9]]).expand(4, 5)
    categories = torch.tensor([0, 1, 0, 1])
    ramp = torch.arange(10) - 4.5
    disc = (ramp[:, None] ** 2 + ramp**2 < 16).float()
    masks = torch.stack([disc, 1 - disc, disc, 1 - disc])
    optimizer = torch.optim.SGD(network.parameters(), 0.02, momentum=0.9)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        logits = network(0 * pool3, 0 * pool4, fc7, boxes, categories)
        loss = F.binary_cross_entropy_with_logits(logits, masks, reduction="sum") / len(boxes)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert ((logits > 0) == (masks > 0)).float().mean() > 0.9
