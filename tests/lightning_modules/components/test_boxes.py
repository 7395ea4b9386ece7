"""Boxes made from masks, moved at a stated overlap, pooled and pasted."""

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou
from torchvision.ops import roi_pool as torchvision_roi_pool

from lightning_modules.components.boxes import (
    FLOOR,
    Flat,
    boxes_of_mask,
    flat,
    generator_of,
    jittered,
    labels_in,
    overlap_of,
    padded,
    paste,
    roi_pool,
)


def random_boxes(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Boxes (count, 5) within an image, of every size from one pixel to all of it."""
    ends = [(torch.rand(count, 2, generator=generator) * side).long().sort(1).values for side in (width, height)]
    (left, right), (top, bottom) = (end.unbind(1) for end in ends)
    return torch.stack([left, top, right + 1, bottom + 1, torch.arange(count) % 3], dim=1)


def test_overlap_is_torchvisions() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (random_boxes(50, 40, 60, generator)[:, :4] for _ in range(2))
    expected = box_iou(ours.double(), theirs.double())
    torch.testing.assert_close(overlap_of(ours[:, None], theirs[None]), expected)


@pytest.mark.parametrize("overlap", [0.05, 0.3, 0.5, 0.7, 0.9, 0.999])
def test_every_moved_box_keeps_the_stated_overlap(overlap: float) -> None:
    generator = torch.Generator().manual_seed(1)
    boxes = random_boxes(3000, 97, 131, generator)
    moved = jittered(boxes, overlap, (97, 131), generator)
    found = overlap_of(moved, boxes)
    assert (found >= overlap).all() and (found <= 1).all()
    assert (moved[:, :2] >= 0).all() and (moved[:, 2] <= 131).all() and (moved[:, 3] <= 97).all()
    assert (moved[:, 2:4] > moved[:, :2]).all() and torch.equal(moved[:, 4], boxes[:, 4])
    large = (boxes[:, 2:4] - boxes[:, :2]).amin(1) > 20
    if overlap < 0.95:
        assert (found[large] < 1).float().mean() > 0.9  # they do move
        assert found[large].quantile(0.1) < overlap + 0.5 * (1 - overlap)


def test_at_an_overlap_of_1_boxes_are_the_true_ones() -> None:
    boxes = random_boxes(500, 97, 131, torch.Generator().manual_seed(1))
    assert torch.equal(jittered(boxes, 1.0, (97, 131)), boxes)
    assert jittered(boxes[:0], 0.5, (97, 131)).shape == (0, 5)


def test_boxes_are_those_of_components_by_their_size() -> None:
    mask = torch.zeros(20, 30, dtype=torch.long)
    mask[2:5, 3:9] = 1  # 18 pixels
    mask[10:18, 20:28] = 1  # 64, another component
    mask[5, 9] = 1  # touches the first by a corner alone, and is too small
    mask[0, :], mask[19, :] = 2, 255
    found = boxes_of_mask(mask, (255, 0), least_pixels=10, most=20)
    assert found.tolist() == [[20, 10, 28, 18, 1], [0, 0, 30, 1, 2], [3, 2, 9, 5, 1]]
    assert torch.equal(boxes_of_mask(mask, (255, 0), least_pixels=10, most=2), found[:2])
    assert boxes_of_mask(mask, (255,), least_pixels=10, most=1)[0, 4] == 0  # no background is known
    assert boxes_of_mask(torch.full((4, 4), 255), (255,), least_pixels=1, most=9).shape == (0, 5)


def test_boxes_collate_and_come_back() -> None:
    of_images = [torch.tensor([[0, 0, 2, 2, 1]]), torch.zeros(0, 5).long(), torch.tensor([[1, 1, 3, 3, 0], [2] * 5])]
    batch = padded(of_images, least=4)
    assert batch.shape == (3, 4, 5)
    boxes = flat(batch)
    assert boxes.image.tolist() == [0, 2, 2]
    assert torch.equal(torch.cat([boxes.sides, boxes.category[:, None]], 1), torch.cat(of_images))


def test_a_mask_decides_its_generator() -> None:
    masks = torch.randint(3, (2, 9, 9), generator=torch.Generator().manual_seed(0))
    draws = [torch.rand(1, generator=generator_of(mask)) for mask in (masks[0], masks[0].clone(), masks[1])]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("size", [(97, 131), (64, 96), (5, 7)])
def test_pooling_in_boxes_is_torchvisions(size: tuple[int, int]) -> None:
    generator, (height, width) = torch.Generator().manual_seed(0), size
    maps = torch.randn(2, 4, -(-height // 16), -(-width // 16), generator=generator)
    boxes = random_boxes(60, height, width, generator)
    image = torch.arange(60) % 2
    inclusive = boxes[:, :4] - torch.tensor([0, 0, 1, 1])
    # torchvision pools cells beyond the map as nothing, and here a box ends with the map.
    last = torch.tensor([(maps.shape[3] - 1) * 16, (maps.shape[2] - 1) * 16] * 2)
    rois = torch.cat([image[:, None], torch.minimum(inclusive, last)], dim=1).float()
    ours = roi_pool(maps, Flat(image, boxes[:, :4], boxes[:, 4]), 16, 7)
    torch.testing.assert_close(ours, torchvision_roi_pool(maps, rois, 7, 1 / 16), rtol=0, atol=0)


def test_pooling_works_in_half_precision_and_has_a_gradient() -> None:
    maps = torch.rand(1, 2, 6, 8).bfloat16().requires_grad_()
    boxes = Flat(torch.zeros(1, dtype=torch.long), torch.tensor([[20, 30, 90, 80]]), torch.zeros(1, dtype=torch.long))
    roi_pool(maps, boxes, 16, 7).sum().backward()
    assert maps.grad is not None and maps.grad.any()


def test_labels_are_those_under_the_centres_of_the_parts_of_a_box() -> None:
    mask = torch.arange(12).view(1, 3, 4)
    boxes = Flat(torch.zeros(2, dtype=torch.long), torch.tensor([[0, 0, 4, 3], [1, 1, 3, 3]]), torch.zeros(2).long())
    whole, inner = labels_in(mask, boxes, 2)
    assert whole.tolist() == [[1, 3], [9, 11]] and inner.tolist() == [[5, 6], [9, 10]]


def test_what_is_pasted_is_the_highest_of_its_class() -> None:
    sides = torch.tensor([[0, 0, 4, 4], [2, 2, 6, 6], [0, 0, 6, 6]])
    boxes = Flat(torch.tensor([0, 0, 1]), sides, torch.tensor([1, 1, 0]))
    odds = torch.tensor([1.0, 3.0, 2 * FLOOR])[:, None, None].expand(3, 5, 5)
    logits = paste(odds, boxes, (2, 2, 6, 6))
    assert logits[0, 1, 3, 3] == 3 and logits[0, 1, 0, 0] == 1 and logits[0, 1, 0, 5] == FLOOR
    assert (logits[0, 0] == FLOOR).all() and (logits[1] == FLOOR).all()
