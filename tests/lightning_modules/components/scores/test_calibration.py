import math

import numpy as np
import pytest
import torch

from lightning_modules.components.scores.calibration import calibration
from lightning_modules.components.scores.reductions import BINS, calibration_error
from lightning_modules.unet import UNetModule


def logits_of(probabilities: list[float]) -> torch.Tensor:
    """Two classes, a row of pixels: class 0 has these probabilities."""
    p = torch.tensor(probabilities, dtype=torch.float64)
    return torch.stack([p.log(), (1 - p).log()])[None, :, None]


def test_four_pixels_worked_out_by_hand() -> None:
    # Two pixels of confidence 0.9, one right; one of 0.7, right; one ignored.
    counts = calibration(logits_of([0.9, 0.1, 0.7, 0.99]), torch.tensor([[[0, 0, 0, 255]]]), 255)
    assert counts.shape == (1, BINS, 3)
    assert counts[0, 13].numpy() == pytest.approx([2, 1.8, 1])  # (13/15, 14/15] holds 0.9
    assert counts[0, 10].numpy() == pytest.approx([1, 0.7, 1])  # (10/15, 11/15] holds 0.7
    assert counts.sum(1)[0].numpy() == pytest.approx([3, 2.5, 2])
    error, overconfidence = calibration_error(counts.sum(0).numpy())
    assert error == pytest.approx((2 * abs(0.5 - 0.9) + abs(1 - 0.7)) / 3)
    assert overconfidence == pytest.approx(2.5 / 3 - 2 / 3)


def test_equals_the_definition_on_random_maps() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 5, 9, 7, generator=generator)
    masks = torch.randint(5, (2, 9, 7), generator=generator)
    masks[:, 0] = 255
    error, overconfidence = calibration_error(calibration(logits, masks, 255).sum(0).numpy())
    confidence, labels = (x[masks != 255].numpy() for x in logits.softmax(1).max(1))
    right = labels == masks[masks != 255].numpy()
    gaps = 0.0
    for low in range(BINS):
        inside = (confidence > low / BINS) & (confidence <= (low + 1) / BINS)
        if inside.any():
            gaps += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert error == pytest.approx(gaps, rel=1e-5)
    assert overconfidence == pytest.approx(confidence.mean() - right.mean(), rel=1e-5)


def test_logits_without_bounds_and_images_without_labels() -> None:
    certain = torch.tensor([1e4, -1e4]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    counts = calibration(certain.half(), torch.zeros(1, 2, 2, dtype=torch.long), 255)
    assert counts[0, -1].tolist() == [4, 4, 4]
    empty = calibration(certain, torch.full((1, 2, 2), 255), 255)
    assert not empty.any()
    assert all(math.isnan(value) for value in calibration_error(empty.sum(0).numpy()))


def test_a_module_stores_it_for_test_images_and_not_for_validation_images() -> None:
    module = UNetModule(2, 255, width=2, depth=1).eval()
    batch = {"image": torch.rand(1, 3, 16, 16), "mask": torch.randint(2, (1, 16, 16)), "index": torch.tensor([0])}
    with torch.no_grad():
        scored = module.test_step(batch, 0)
        np.testing.assert_array_equal(scored["calibration"], calibration(module(batch["image"]), batch["mask"], 255))
        assert not {"calibration", "segments", "trimap", "logits"} & set(module.validation_step(batch, 0))
