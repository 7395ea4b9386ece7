"""The box head, its network, and the module that trains it on boxes that are given or made from masks."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch import Tensor, nn

from datamodules.shapes import ShapesDataModule
from lightning_modules.components.boxes import FLOOR, Flat, bilinear_taps, crop, flat, overlap_of, padded
from lightning_modules.hypercolumn_boxes import HypercolumnBoxes, HypercolumnBoxesModule, HypercolumnBoxNet

WHOLE = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
TINY = {"encoder_width": 0.0625, "fc_width": 8, "size": 10}


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def small_boxes(num_classes: int = 2, **options: Any) -> HypercolumnBoxes:
    return HypercolumnBoxes(num_classes, (3, 4, 5), **{"size": 10, **options})


def box_inputs(boxes: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(1, 3, 8, 12), torch.randn(1, 4, 4, 6), torch.randn(boxes, 5)


# ---- the head


def test_a_box_has_at_least_one_pixel_and_classifier() -> None:
    with pytest.raises(ValueError, match="grid must be at least 1, got 0"):
        HypercolumnBoxes(1, (1, 1, 1), grid=0)


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


# ---- the network


def in_whole_images(images: int, classes: int, height: int, width: int) -> Flat:
    """Each image as a box of every class."""
    sides = torch.tensor([0, 0, width, height]).expand(images * classes, 4)
    return Flat(torch.arange(images).repeat_interleave(classes), sides, torch.arange(classes).repeat(images))


@pytest.mark.parametrize("encoder", ["vgg16", "resnet18"])
@pytest.mark.parametrize("size", [(64, 96), (33, 47)])
def test_without_boxes_the_image_is_the_one_box_of_each_class(encoder: str, size: tuple[int, int]) -> None:
    network = HypercolumnBoxNet(3, encoder=encoder, **TINY).eval()
    for p in network.head.parameters():
        nn.init.normal_(p)
    images = torch.rand(2, 3, *size)
    log_odds = network(images, in_whole_images(2, 3, *size))
    expected = F.interpolate(log_odds.view(2, 3, 10, 10), size, mode="bilinear")
    torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-4)


def test_an_encoder_that_is_held_fixed_learns_nothing() -> None:
    network = HypercolumnBoxNet(2, encoder="resnet18", train_encoder=False, **TINY).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.SGD((p for p in network.parameters() if p.requires_grad), 0.1)
    network(torch.rand(2, 3, 64, 64), in_whole_images(2, 2, 64, 64)).square().mean().backward()
    optimizer.step()
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {f"head.{map_}.{kind}" for map_ in ("pool3", "pool4", "fc7") for kind in ("weight", "bias")}


def test_the_weights_of_a_whole_vgg16_reach_fc6_and_fc7(tmp_path: Path) -> None:
    kept = {"classifier.0": (8, 32 * 49), "classifier.3": (8, 8)}
    own = HypercolumnBoxNet(2, **TINY)
    state = {name.removeprefix("encoder."): value for name, value in own.state_dict().items() if "encoder" in name}
    state |= {f"{name}.weight": torch.rand(shape) for name, shape in kept.items()}
    state |= {f"{name}.bias": torch.rand(8) for name in kept}
    torch.save(state, tmp_path / "vgg16.pth")
    network = HypercolumnBoxNet(2, weights=str(tmp_path / "vgg16.pth"), **TINY)
    assert torch.equal(network.fc6.weight.flatten(1), state["classifier.0.weight"])
    assert torch.equal(network.fc7.weight.flatten(1), state["classifier.3.weight"])


# ---- the module


def small_module(classes: int = 3, **settings: Any) -> HypercolumnBoxesModule:
    torch.manual_seed(0)
    return HypercolumnBoxesModule(classes, 255, **{**TINY, "lr": 1e-5, **settings})


def two_squares() -> Tensor:
    """A mask (1, 64, 64) of class 0 with a square of class 1, one of class 2, and ignored pixels beside them."""
    mask = torch.zeros(1, 64, 64, dtype=torch.long)
    mask[:, 8:28, 10:40], mask[:, 40:60, 30:60], mask[:, :6] = 1, 2, 255
    return mask


def test_rates_are_those_of_the_authors() -> None:
    assert small_module(lr=None, train_encoder=False).hparams["lr"] == 1e-3
    assert small_module(lr=None).hparams["lr"] == 1e-5  # a departure
    module = small_module(lr=1e-3)
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in module.parameter_groups() for p in g["params"]}
    head = module.network.head
    assert rates[id(head.pool3.weight)] == (1e-3, 1e-3) and rates[id(head.pool3.bias)] == (2e-3, 0)
    assert rates[id(head.fc7.weight)] == pytest.approx((1e-4, 1e-3)) and len(rates) == len([*module.parameters()])


def test_evaluation_boxes_are_the_same_in_any_batch_and_training_boxes_follow_the_global_generator() -> None:
    module, masks = small_module(), torch.cat([two_squares(), two_squares().flip(1)])
    module.eval()
    both, alone = module.boxes_of(masks), module.boxes_of(masks[1:])
    assert torch.equal(both.sides[both.image == 1], alone.sides)
    module.train()
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(module.boxes_of(masks).sides)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("overlap", [0.3, 0.7, 1.0])
def test_boxes_lie_over_the_true_ones(overlap: float) -> None:
    module = small_module(overlap=overlap, background=0).eval()
    boxes = module.boxes_of(two_squares())
    true = torch.tensor([[10, 8, 40, 28], [30, 40, 60, 60]])
    found = overlap_of(boxes.sides, true)
    assert boxes.category.tolist() == [1, 2] and (found >= overlap).all() and (found <= 1).all()
    assert torch.equal(boxes.sides, true) == (overlap == 1)


def test_a_logit_is_the_highest_log_odds_of_the_boxes_of_its_class() -> None:
    module = small_module(background=0).eval()
    for p in module.network.head.parameters():
        nn.init.normal_(p)
    images, boxes = torch.rand(1, 3, 64, 64), torch.tensor([[[0, 0, 40, 40, 1], [20, 20, 64, 64, 1], [-1] * 5]])
    both = module(images, boxes)
    alone = [module(images, boxes[:, i : i + 1]) for i in (0, 1)]
    torch.testing.assert_close(both, torch.maximum(*alone))
    assert (alone[0][0, 1, 40:] == FLOOR).all() and (alone[0][0, 1, :40, :40] > FLOOR).any()
    assert (both[0, 0] == 0).all() and (both[0, 2] == FLOOR).all()
    nothing = module(images, torch.full((1, 1, 5), -1))
    assert nothing.isfinite().all() and (nothing[:, 1:] == FLOOR).all()


@pytest.mark.parametrize(("loss", "pixels"), [("ce_sum", 100), ("ce", 1)])
def test_the_loss_is_that_of_figure_and_ground_spelled_out(loss: str, pixels: int) -> None:
    module, mask = small_module(loss=loss, class_weights=(1.0, 2.0, 4.0)).eval(), two_squares()
    boxes = flat(torch.tensor([[[10, 8, 40, 28, 1], [10, 8, 40, 28, 2], [0, 0, 64, 12, 0]], [[-1] * 5] * 3]))
    masks = torch.cat([mask, mask])
    log_odds = torch.stack([torch.full((10, 10), value) for value in (2.0, 2.0, -1.0)])
    figure, ground = -torch.tensor([2.0, -1.0]).sigmoid().log(), -torch.tensor([-2.0, 1.0]).sigmoid().log()
    first, second = pixels * figure[0] * 2, pixels * ground[0] * 4  # all of class 1, none of class 2
    # The last: rows of 12 / 10 pixels; the first five are ignored, and of the rest columns 10 to 39 below row 8 are
    # class 1.
    labels = mask[0, [int((i + 0.5) * 1.2) for i in range(10)]][:, [int((i + 0.5) * 6.4) for i in range(10)]]
    of_class, others = int((labels == 0).sum()), int((labels == 1).sum())
    third = (of_class * figure[1] + others * ground[1]) / (1 if loss == "ce_sum" else of_class + others)
    assert others and (labels == 255).sum() == 50
    found = module.losses_in(log_odds, masks, boxes)
    torch.testing.assert_close(found, torch.stack([(first + second + third) / 3, torch.tensor(0.0)]))


def test_ignored_pixels_of_a_box_have_no_gradient() -> None:
    module, mask = small_module(), two_squares()
    log_odds = torch.zeros(1, 10, 10, requires_grad=True)
    module.losses_in(log_odds, mask, flat(torch.tensor([[[0, 0, 64, 12, 0]]]))).sum().backward()
    assert log_odds.grad is not None and not log_odds.grad[0, :5].any() and log_odds.grad[0, 5:].all()


def test_given_boxes_are_those_that_are_trained_on() -> None:
    module, mask, images = small_module().eval(), two_squares(), torch.rand(1, 3, 64, 64)
    given = padded([torch.tensor([[10, 8, 40, 28, 1]])], least=3)
    batch = {"image": images, "mask": mask, "boxes": given}
    found = module.losses_in(module.network(module.normalise(images), flat(given)), mask, flat(given))[0]
    torch.testing.assert_close(module.loss_of(batch), found)
    assert module.loss_of({**batch, "boxes": torch.full((1, 2, 5), -1)}) == 0
    with pytest.raises(ValueError, match=r"of class 1, .* that is the background"):
        small_module(background=1).loss_of(batch)
    with pytest.raises(ValueError, match="of class 1, and of the 1 classes that is none"):
        small_module(1).loss_of(batch)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"overlap": 0.0}, "overlap must be more than 0 and at most 1, got 0.0"),
        ({"overlap": 1.5}, "overlap must be more than 0 and at most 1, got 1.5"),
        ({"background": 3}, "background must be one of several classes, 0 to 2, got 3"),
        ({"most_boxes": 0}, "most_boxes must be at least 1, got 0"),
        ({"loss": "dice"}, "loss must be one of ce_sum, ce, got 'dice'"),
        ({"encoder": "tu-mobilenetv3_small_050", "encoder_width": 0.5}, "width is of the native encoders"),
    ],
)
def test_what_the_module_refuses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_module(**settings)


def test_figures_in_their_boxes_are_scored_beside_the_whole_box(tmp_path: Path) -> None:
    data = ShapesDataModule(length=4)
    module = small_module(data.num_classes, background=0)
    module.describe(data.class_names, data.palette)
    trainer = Trainer(
        logger=False, default_root_dir=tmp_path, use_distributed_sampler=False, enable_progress_bar=False,
        accelerator="cpu",
    )  # fmt: skip
    module.network.head.pool3.bias.data.fill_(30.0)  # figure everywhere
    (scored,) = trainer.test(module, data, verbose=False)
    assert scored["test/box_iou"] == scored["test/box_iou_whole"]
    assert 0.2 < scored["test/box_iou"] < 1 and scored["test/loss"] > 0
    (again,) = trainer.test(module, data, verbose=False)
    assert again == scored
    module.network.head.pool3.bias.data.fill_(-30.0)
    (none,) = trainer.test(module, data, verbose=False)
    assert none["test/box_iou"] == 0 and none["test/box_iou_whole"] == scored["test/box_iou_whole"]


def test_boxes_of_one_batch_are_overfitted() -> None:
    module, mask = small_module(background=0, overlap=1.0, loss="ce"), two_squares()
    images = torch.rand(1, 3, 64, 64) + mask[:, None].clamp(max=2) / 2
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    module.network.dropout.p = 0.0
    for _ in range(60):
        optimizer.zero_grad()
        module.loss(images, mask).backward()
        optimizer.step()
    right = module.eval()(images, torch.tensor([[[4, 4, 48, 34, 1], [20, 36, 64, 64, 2]]])).argmax(1) == mask
    assert right[mask > 0][mask[mask > 0] != 255].float().mean() > 0.7
