import math

import pytest
import torch
from segmentation_models_pytorch import losses as smp_losses
from segmentation_models_pytorch.losses._functional import softmax_focal_loss_with_logits
from torch import Tensor

from lightning_modules.components.losses import (
    BORDER_SIGMA,
    BORDER_WEIGHT,
    LOSSES,
    border_weights,
    focal,
    median_frequency_weights,
)

REGIONS = ("dice", "jaccard", "lovasz")
WEIGHTS = [None, torch.tensor([0.5, 2.0, 1.0])]

# A 2 x 2 image of three classes: truth, and the probability of each class at (0, 0), (0, 1), (1, 0); (1, 1) is ignored.
MASK = torch.tensor([[[0, 0], [1, 255]]])
LOGITS = torch.tensor([[0.8, 0.1, 0.1], [0.5, 0.3, 0.2], [0.2, 0.6, 0.2], [0.1, 0.1, 0.8]]).log().T.reshape(1, 3, 2, 2)
CE = {
    None: -(math.log(0.8) + math.log(0.5) + math.log(0.6)),
    "weighted": -(0.5 * math.log(0.8) + 0.5 * math.log(0.5) + 2 * math.log(0.6)),
}
# Class 0: intersection 0.8 + 0.5, predicted 0.8 + 0.5 + 0.2, true 2. Class 1: 0.6, 0.1 + 0.3 + 0.6, 1. No class 2.
DICE = (1 - 2 * 1.3 / 3.5, 1 - 2 * 0.6 / 2)
JACCARD = (1 - 1.3 / 2.2, 1 - 0.6 / 1.4)
# Errors of class 0, largest first: 0.5 at a true pixel, 0.2 at a true one, 0.2 at another. The loss of the label maps
# that are wrong at the first one, two, three pixels: 1 - 1/2, 1 - 0/2, 1 - 0/3 (whichever of the two equal is first).
# Class 1: 0.4 at its true pixel, then 0.3 and 0.1 at others: 1 - 0/1 from the first pixel on.
LOVASZ = (0.5 * 0.5 + 0.2 * 0.5, 0.4)
# All pixels lie between the objects of other classes: d1 + d2 is infinite, as each sees one object only.
EXPECTED = {
    "ce": (CE[None] / 3, CE["weighted"] / 3),  # the weights 0.5 + 0.5 + 2 are 3 again
    "ce_sum": (CE[None], CE["weighted"]),
    "ce_per_pixel": (CE[None] / 3, CE["weighted"] / 3),
    "focal": (
        -(0.2**2 * math.log(0.8) + 0.5**2 * math.log(0.5) + 0.4**2 * math.log(0.6)) / 3,
        -(0.5 * 0.2**2 * math.log(0.8) + 0.5 * 0.5**2 * math.log(0.5) + 2 * 0.4**2 * math.log(0.6)) / 3,
    ),
    "dice": (sum(DICE) / 2, (0.5 * DICE[0] + 2 * DICE[1]) / 2.5),
    "jaccard": (sum(JACCARD) / 2, (0.5 * JACCARD[0] + 2 * JACCARD[1]) / 2.5),
    "lovasz": (sum(LOVASZ) / 2, (0.5 * LOVASZ[0] + 2 * LOVASZ[1]) / 2.5),
    "ce_border": (CE[None] / 3, CE["weighted"] / 3),
}


# class_weighting of segnet_train.prototxt, for the 11 classes of CamVid
CAMVID_WEIGHTS = [0.2595, 0.1826, 4.564, 0.1417, 0.9051, 0.3826, 9.6446, 1.8418, 0.6823, 6.2478, 7.3614]


def test_per_pixel_divides_by_the_labelled_pixels_and_not_by_their_weights() -> None:
    # Two pixels of class 0, one of class 1: -(0.25 log 0.8 + 0.25 log 0.5 + 4 log 0.6) over 3, and over 4.5.
    weights = torch.tensor([0.25, 4.0, 1.0])
    total = -(0.25 * math.log(0.8) + 0.25 * math.log(0.5) + 4 * math.log(0.6))
    assert LOSSES["ce_per_pixel"](LOGITS, MASK, 255, weights).item() == pytest.approx(total / 3)
    assert LOSSES["ce"](LOGITS, MASK, 255, weights).item() == pytest.approx(total / 4.5)
    # Of two images with unequal numbers of labelled pixels the count is that of the batch, as in caffe-segnet.
    two, masks = LOGITS.repeat(2, 1, 1, 1), torch.cat([MASK, MASK.where(MASK == 1, 255)])
    expected = (total - 4 * math.log(0.6)) / 4
    assert LOSSES["ce_per_pixel"](two, masks, 255, weights).item() == pytest.approx(expected)


def test_with_the_weights_of_segnet_the_mean_by_weight_is_twice_the_authors_loss() -> None:
    # A weight is the median frequency over that of its class, so pixels are as many as 1 / weight; every pixel costs
    # log 11. Then 1 / (mean of 1 / weight) = 11 / 22.73 = 0.484 is what a pixel weighs, and 2.066 times that is 1.
    weights = torch.tensor(CAMVID_WEIGHTS)
    counts = (10_000 / weights).round().long()
    masks = torch.arange(11).repeat_interleave(counts)[None, None]
    logits = torch.zeros(1, 11, *masks.shape[1:])
    per_pixel, by_weight = (LOSSES[name](logits, masks, 255, weights).item() for name in ("ce_per_pixel", "ce"))
    assert by_weight == pytest.approx(math.log(11))
    assert by_weight / per_pixel == pytest.approx(2.066, abs=1e-3)


def batch(height: int = 12, width: int = 10) -> tuple[Tensor, Tensor]:
    """Logits of three classes, and masks of which the upper half and a pixel below are ignored."""
    masks = torch.randint(3, (2, height, width))
    masks[:, : height // 2] = 255
    masks[0, -2, 3] = 255
    return torch.randn(2, 3, height, width), masks


def value_and_gradient(name: str, logits: Tensor, masks: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    logits = logits.detach().requires_grad_()
    loss = LOSSES[name](logits, masks, 255, weights)
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


@pytest.mark.parametrize("name", LOSSES)
def test_two_by_two_pixels_worked_out_by_hand(name: str) -> None:
    plain, weighted = EXPECTED[name]
    assert LOSSES[name](LOGITS, MASK, 255, None).item() == pytest.approx(plain, rel=1e-5)
    assert LOSSES[name](LOGITS, MASK, 255, WEIGHTS[1]).item() == pytest.approx(weighted, rel=1e-5)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", LOSSES)
def test_ignored_pixels_change_neither_value_nor_gradient(name: str, weights: Tensor | None) -> None:
    logits, masks = batch()
    loss, gradient = value_and_gradient(name, logits, masks, weights)
    assert loss > 0 and gradient.any() and not gradient[(masks == 255)[:, None].expand_as(gradient)].any()
    wild = torch.where((masks == 255)[:, None], 1e4 * torch.randn_like(logits), logits)
    wild_loss, wild_gradient = value_and_gradient(name, wild, masks, weights)
    assert wild_loss.equal(loss) and wild_gradient.equal(gradient)
    # As if the ignored rows were not there: they are in no denominator either.
    cropped = value_and_gradient(name, logits[:, :, 6:], masks[:, 6:], weights)
    torch.testing.assert_close(cropped, (loss, gradient[:, :, 6:]))


@pytest.mark.parametrize("weights", [*WEIGHTS, torch.tensor([0.0, 0.0, 1.0])])
@pytest.mark.parametrize("name", LOSSES)
def test_nothing_labelled_costs_exactly_nothing(name: str, weights: Tensor | None) -> None:
    masks = torch.full((2, 8, 8), 255)
    if weights is not None and not weights[:2].any():  # labelled, but with classes that count nowhere
        masks[:, :, :4], masks[:, :, 5:] = 0, 1
    loss, gradient = value_and_gradient(name, torch.randn(2, 3, 8, 8), masks, weights)
    assert loss.shape == () and loss.item() == 0 and not gradient.any() and torch.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    logits, masks = torch.randn(1, 3, 300, 300), torch.zeros(1, 300, 300, dtype=torch.int64)
    masks[:, 100:] = 1
    logits = (20 * logits).to(dtype)  # a sum over the pixels is far beyond the 65,504 of float16
    loss, gradient = value_and_gradient(name, logits, masks, WEIGHTS[1])
    assert loss.dtype == torch.float32 and gradient.dtype == dtype
    assert torch.isfinite(loss) and torch.isfinite(gradient).all()
    torch.testing.assert_close(loss, LOSSES[name](logits.float(), masks, 255, WEIGHTS[1]))
    # Of a module that is in half precision itself, the weights are too.
    torch.testing.assert_close(value_and_gradient(name, logits, masks, WEIGHTS[1].to(dtype))[0], loss)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name: str, weights: Tensor | None) -> None:
    logits, masks = batch(4, 4)
    assert torch.autograd.gradcheck(
        lambda x: LOSSES[name](x, masks, 255, weights), logits.double().requires_grad_(), atol=1e-6
    )


@pytest.mark.parametrize("name", LOSSES)
def test_a_perfect_prediction_costs_nothing_and_the_opposite_the_most(name: str) -> None:
    _, masks = batch()
    truth = torch.nn.functional.one_hot(masks.where(masks != 255, 0), 3).movedim(-1, 1).float()
    assert LOSSES[name](40 * truth, masks, 255, None).item() == pytest.approx(0, abs=1e-6)
    if name in REGIONS:
        assert LOSSES[name](-40 * truth, masks, 255, None).item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", REGIONS)
def test_classes_that_no_mask_holds_do_not_flatter_the_mean(name: str) -> None:
    logits, masks = batch()
    with_absent = torch.cat([logits, torch.full((2, 18, 12, 10), -40.0)], dim=1)
    torch.testing.assert_close(LOSSES[name](with_absent, masks, 255, None), LOSSES[name](logits, masks, 255, None))


@pytest.mark.parametrize("name", LOSSES)
def test_only_losses_that_do_not_divide_by_the_weights_depend_on_their_scale(name: str) -> None:
    logits, masks = batch()
    masks[:, -1] = 255  # random labels leave gaps everywhere, so that the border outweighs the class
    ones, tens = (LOSSES[name](logits, masks, 255, torch.full((3,), w)) for w in (1.0, 10.0))
    assert ones.item() == pytest.approx(LOSSES[name](logits, masks, 255, None).item(), rel=1e-5)
    if name in ("ce_sum", "ce_per_pixel"):
        assert tens.item() == pytest.approx(10 * ones.item(), rel=1e-5)
    elif name != "ce_border":  # w0 stays what it is
        assert tens.item() == pytest.approx(ones.item(), rel=1e-5)


def test_the_sum_is_a_mean_over_images() -> None:
    logits, masks = batch()
    parts = [LOSSES["ce_sum"](logits[i : i + 1], masks[i : i + 1], 255, None) for i in (0, 1)]
    torch.testing.assert_close(LOSSES["ce_sum"](logits, masks, 255, None), sum(parts) / 2)


def test_focal_is_smps_of_a_softmax_and_cross_entropy_without_gamma() -> None:
    logits, masks = batch()
    labelled = masks != 255
    pixels = logits.movedim(1, -1)[labelled]
    torch.testing.assert_close(focal(logits, masks, 255), softmax_focal_loss_with_logits(pixels, masks[labelled]))
    torch.testing.assert_close(focal(logits, masks, 255, gamma=0), LOSSES["ce"](logits, masks, 255, None))


@pytest.mark.parametrize("label", [3, 7])  # three classes; the first is one too many
@pytest.mark.parametrize("name", REGIONS)
def test_labels_that_are_no_class_are_refused(name: str, label: int) -> None:
    logits, masks = batch()
    masks[0, -1, 0] = label
    with pytest.raises(
        ValueError, match=f"masks must hold classes 0 to 2, or 255 where ignored, got {label}: set num_cl"
    ):
        LOSSES[name](logits, masks, 255, None)


def test_lovasz_is_smps() -> None:
    logits, masks = batch(40, 50)
    expected = smp_losses.LovaszLoss("multiclass", ignore_index=255)(logits, masks)
    torch.testing.assert_close(LOSSES["lovasz"](logits, masks, 255, None), expected)


def test_lovasz_of_label_maps_is_their_jaccard_loss() -> None:
    truth, predicted = torch.randint(3, (2, 1, 20, 20))
    truth[:, :3] = 255
    logits = 60 * torch.nn.functional.one_hot(predicted, 3).movedim(-1, 1).float()
    valid = truth != 255
    iou = [
        ((truth == c) & (predicted == c)).sum() / (((truth == c) | (predicted == c)) & valid).sum() for c in range(3)
    ]
    assert LOSSES["lovasz"](logits, truth, 255, None).item() == pytest.approx(1 - sum(iou).item() / 3, rel=1e-5)


def plain_border_weights(mask: Tensor, objects: Tensor) -> Tensor:
    """Eq. 2 by brute force: `objects` (H, W) numbers the objects of a mask from 1."""
    grid = torch.stack(torch.meshgrid(*map(torch.arange, mask.shape), indexing="ij"), dim=-1).float()
    weights = torch.zeros(mask.shape)
    for y, x in torch.ones(mask.shape).nonzero().tolist():
        distances = [
            torch.linalg.vector_norm(grid[objects == o] - grid[y, x], dim=-1).min().item()
            for o in objects.unique().tolist()
            if o and mask[objects == o][0] != mask[y, x]
        ]
        if len(distances) > 1:
            weights[y, x] = BORDER_WEIGHT * math.exp(-(sum(sorted(distances)[:2]) ** 2) / (2 * BORDER_SIGMA**2))
    return weights


@pytest.mark.parametrize("background", [0, 1])
def test_border_weights_are_those_of_the_paper_whichever_label_is_the_background(background: int) -> None:
    cells = torch.zeros(24, 70, dtype=torch.int64)  # the last cell is farther away than any window reaches
    cells[2:8, 2:9], cells[5:20, 12:20], cells[14:23, 1:8], cells[3:12, 60:68] = 1, 2, 3, 4
    mask = torch.where(cells > 0, 1 - background, background)
    weights = border_weights(mask[None], 255)[0]
    # The background is one region and the cells are apart: only the background has two objects to lie between.
    torch.testing.assert_close(weights, plain_border_weights(mask, cells), rtol=1e-5, atol=2e-6)
    assert not weights[cells > 0].any()
    assert weights[6, 10].item() == pytest.approx(10 * math.exp(-((2 + 2) ** 2) / 50), rel=1e-5)


def test_border_weights_of_several_classes_and_ignored_pixels() -> None:
    mask = torch.tensor([[[0, 1, 2, 2, 255, 255, 2]]])
    weights = border_weights(mask, 255)[0, 0]
    for x, sides in {0: 1 + 2, 1: 1 + 1, 2: 1 + 2, 3: 2 + 3, 6: 5 + 6}.items():  # ignored pixels are no object
        assert weights[x].item() == pytest.approx(10 * math.exp(-(sides**2) / 50), rel=1e-5)
    logits = torch.randn(1, 3, 1, 7)
    entropy = torch.nn.functional.cross_entropy(logits, mask, ignore_index=255, reduction="none")[0, 0]
    expected = ((1 + weights) * entropy).sum() / 5
    torch.testing.assert_close(LOSSES["ce_border"](logits, mask, 255, None), expected)


def test_touching_at_a_corner_keeps_two_objects_apart() -> None:
    mask = torch.ones(1, 8, 8, dtype=torch.int64)
    mask[:, :4, :4] = mask[:, 4:, 4:] = 0
    assert border_weights(mask, 255)[0, 3, 4].item() == pytest.approx(10 * math.exp(-((1 + 1) ** 2) / 50), rel=1e-5)


def test_median_frequency_by_hand() -> None:
    # Three images of 100 labelled pixels: class 0 in all of them, 1 in two, 2 in one, 3 in none.
    pixels = torch.tensor([225, 50, 25, 0])
    images = torch.tensor([300, 200, 100, 0])
    # Frequencies 3/4, 1/4, 1/4: their median is 1/4.
    assert median_frequency_weights(pixels, images).tolist() == pytest.approx([1 / 3, 1, 1, 0])
    assert median_frequency_weights(pixels[:2], images[:2]).tolist() == pytest.approx([2 / 3, 2])  # median 1/2
    with pytest.raises(ValueError, match="at least one labelled pixel"):
        median_frequency_weights(torch.zeros(3), torch.zeros(3))


@pytest.mark.gpu
@pytest.mark.parametrize("name", LOSSES)
def test_runs_under_deterministic_algorithms_on_a_gpu(name: str) -> None:
    logits, masks = batch()
    expected = value_and_gradient(name, logits, masks, WEIGHTS[1])
    torch.use_deterministic_algorithms(True)
    try:
        found = value_and_gradient(name, logits.cuda(), masks.cuda(), WEIGHTS[1].cuda())
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(tuple(t.cpu() for t in found), expected)
