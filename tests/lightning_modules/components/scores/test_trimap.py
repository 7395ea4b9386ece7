import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.components.scores.confusion import confusion_matrix
from lightning_modules.components.scores.reductions import scores, trimap_curve
from lightning_modules.components.scores.trimap import trimap
from lightning_modules.unet import UNetModule


def brute_force(labels: Tensor, masks: Tensor, num_classes: int, width: int) -> np.ndarray:
    """The docstring of `trimap` for one image (H, W), a loop over all pairs of pixels."""
    bands = np.zeros((width, num_classes, num_classes), dtype=np.int64)
    valid = [(y, x) for y, x in np.ndindex(*masks.shape) if masks[y, x] != 255]
    for y, x in valid:
        others = [(v - y) ** 2 + (u - x) ** 2 for v, u in valid if masks[v, u] != masks[y, x]]
        if others and (band := math.ceil(math.sqrt(min(others)))) <= width:
            bands[band - 1, masks[y, x], labels[y, x]] += 1
    return bands


@pytest.mark.parametrize(
    ("size", "num_classes", "ignored", "width"),
    [
        ((13, 17), 3, 0.0, 4),
        ((13, 17), 3, 0.3, 4),
        ((17, 13), 5, 0.9, 20),  # few labelled pixels: most boundaries are across ignored ones
        ((1, 30), 3, 0.2, 6),
        ((30, 1), 3, 0.2, 6),
        ((9, 11), 7, 0.1, 1),
    ],
)
def test_equals_a_loop_over_all_pairs_of_pixels(
    size: tuple[int, int], num_classes: int, ignored: float, width: int
) -> None:
    coarse = torch.randn(3, num_classes, size[0] // 4 + 1, size[1] // 4 + 1)
    masks = F.interpolate(coarse, size=size, mode="bilinear").argmax(1)
    masks[torch.rand(masks.shape) < ignored] = 255
    labels = torch.randint(num_classes, masks.shape)
    bands = trimap(labels, masks, num_classes, 255, width)
    assert bands.dtype == torch.int64
    expected = [brute_force(image, mask, num_classes, width) for image, mask in zip(labels, masks, strict=True)]
    np.testing.assert_array_equal(bands.numpy(), np.stack(expected))
    assert bands.any()
    as_bytes = trimap(labels.byte(), masks.byte(), num_classes, 255, width)
    assert torch.equal(as_bytes, bands)


def test_a_straight_boundary_has_one_column_a_side_in_each_band() -> None:
    masks = (torch.arange(12) >= 4).long().expand(1, 5, 12)
    bands = trimap(masks, masks, 2, 255, 6)
    # 4 columns left of the boundary, 8 right of it; the border of the image is none
    assert bands[0, :, 0, 0].tolist() == [5, 5, 5, 5, 0, 0]
    assert bands[0, :, 1, 1].tolist() == [5] * 6


def test_a_corner_is_the_root_of_two_away() -> None:
    masks = torch.zeros(1, 7, 7, dtype=torch.int64)
    masks[0, 0, 0] = 1
    assert trimap(masks, masks, 2, 255, 2)[0, :, 0, 0].tolist() == [2, 3]  # (0, 1), (1, 0); then (1, 1), (0, 2), (2, 0)


def test_ignored_pixels_neither_count_nor_make_a_boundary() -> None:
    masks = torch.zeros(1, 6, 8, dtype=torch.int64)
    masks[..., 3:5] = 255
    labels = torch.randint(2, masks.shape)
    assert not trimap(labels, masks, 2, 255).any()
    masks[..., 5:] = 1  # columns 2 and 5 are now three pixels apart, across the ignored ones
    bands = trimap(labels, masks, 2, 255)
    assert bands.sum((0, 2, 3)).tolist()[:4] == [0, 0, 12, 12]
    other = torch.where(masks == 255, 1 - labels, labels)
    assert torch.equal(trimap(other, masks, 2, 255), bands)


def test_without_a_boundary_or_a_label_there_is_no_band() -> None:
    labels = torch.randint(3, (2, 5, 6))
    for masks in (torch.full_like(labels, 2), torch.full_like(labels, 255)):
        assert trimap(labels, masks, 3, 255).shape == (2, 20, 3, 3)
        assert not trimap(labels, masks, 3, 255).any()


def test_bands_that_reach_everywhere_hold_the_whole_confusion_matrix() -> None:
    labels, masks = torch.randint(4, (2, 30, 40)), torch.randint(4, (2, 30, 40))
    masks[:, :9] = 255
    assert torch.equal(trimap(labels, masks, 4, 255, 50).sum(1), confusion_matrix(labels, masks, 4, 255))


def test_the_curve_is_the_mean_iou_of_wider_and_wider_bands() -> None:
    masks = (torch.arange(20) >= 10).long().expand(1, 4, 20)
    labels = (torch.arange(20) >= 12).long().expand(1, 4, 20)  # columns 10 and 11 are wrong, in bands 1 and 2
    curve = trimap_curve(trimap(labels, masks, 2, 255, 4).numpy())
    assert curve.shape == (1, 4)
    # within w pixels: class 0 has w right of w + min(w, 2), class 1 has w - 2 right of w
    expected = [(w / (w + min(w, 2)) + max(w - 2, 0) / w) / 2 for w in (1, 2, 3, 4)]
    assert curve[0].tolist() == pytest.approx(expected)
    whole = scores(trimap(labels, masks, 2, 255, 20).sum(1).numpy())["miou"]
    assert trimap_curve(trimap(labels, masks, 2, 255).numpy())[0, -1] == pytest.approx(float(whole[0]))


def test_errors_name_the_value() -> None:
    labels = torch.zeros(1, 4, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="width must be at least 1 pixel, got 0"):
        trimap(labels, labels, 2, 255, 0)
    with pytest.raises(ValueError, match=r"masks must hold classes 0 to 1 .* got 2"):
        trimap(labels, labels + 2, 2, 255)


def test_only_the_test_split_stores_it_and_not_of_very_many_classes() -> None:
    batch = {"image": torch.rand(1, 3, 8, 8), "mask": torch.zeros(1, 8, 8, dtype=torch.int64)}
    few, many = (UNetModule(classes, 255, width=2, depth=1).eval() for classes in (40, 41))
    with torch.no_grad():
        assert "trimap" in few.test_step(batch, 0)
        assert "trimap" not in few.validation_step(batch, 0)
        assert "trimap" not in many.test_step(batch, 0)


@pytest.mark.gpu
def test_equal_on_the_gpu() -> None:
    masks = torch.randint(5, (2, 40, 60))
    masks[torch.rand(masks.shape) < 0.2] = 255
    labels = torch.randint(5, masks.shape)
    assert torch.equal(trimap(labels.cuda(), masks.cuda(), 5, 255).cpu(), trimap(labels, masks, 5, 255))
