import math

import numpy as np
import pytest
import torch

from lightning_modules.components.scores.calibration import calibration, coverage
from lightning_modules.components.scores.reductions import BINS, calibration_error, risk_area, risk_at, risk_curve
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


def test_risk_and_coverage_of_five_pixels_by_hand() -> None:
    # From the surest: right, wrong, right, right; one is ignored. Their odds lie in bins of their own.
    logits = logits_of([0.99, 0.05, 0.8, 0.6, 0.999])
    counts = coverage(logits, torch.tensor([[[0, 0, 0, 0, 255]]]), 255)[0].numpy()
    assert counts.sum(0).tolist() == [4, 1] and (counts[:, 0] <= 1).all()
    covered, risk = risk_curve(counts)
    assert covered.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert risk.tolist() == pytest.approx([0, 1 / 2, 1 / 3, 1 / 4])
    assert [risk_at(counts, share) for share in (0.25, 0.375, 0.5, 1.0)] == pytest.approx([0, 1 / 3, 1 / 2, 1 / 4])


def test_the_area_is_the_mean_risk_over_all_coverages() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(2, 3, 120, 90, generator=generator)
    masks = torch.where(torch.rand(2, 120, 90, generator=generator) < 0.7, logits.argmax(1), 1)
    masks[:, :5] = 255
    counts = coverage(logits, masks, 255).sum(0).numpy()
    confidence, labels = (x[masks != 255].numpy() for x in logits.double().softmax(1).max(1))
    wrong = (labels != masks[masks != 255].numpy())[np.argsort(-confidence, kind="stable")]
    risks = wrong.cumsum() / np.arange(1, len(wrong) + 1)
    assert counts.sum(0).tolist() == [len(wrong), wrong.sum()]
    assert risk_area(counts) == pytest.approx(risks.mean(), rel=0.01)
    for share in (0.5, 0.9):
        assert risk_at(counts, share) == pytest.approx(risks[int(share * len(risks)) - 1], rel=0.01)
    assert risk_at(counts, 1.0) == pytest.approx(wrong.mean())
    # Within one bin the errors count as spread evenly, so that the area is the risk itself.
    assert risk_area(np.array([[0, 0], [10, 3]])) == pytest.approx(0.3)
    fine = np.concatenate([np.full((70, 2), [100, 20]), np.full((30, 2), [100, 0])])
    drawn = np.array([fine[::-1, 1].cumsum()[k] / (100 * (k + 1)) for k in range(100)])
    assert risk_area(fine) == pytest.approx(drawn.mean(), abs=0.002)


def test_odds_that_a_float32_of_probabilities_cannot_tell_apart() -> None:
    logits = torch.tensor([[20.0, 24.0, 38.0], [0.0, 0.0, 0.0]]).view(1, 2, 1, 3)
    counts = coverage(logits.half(), torch.zeros(1, 1, 3, dtype=torch.long), 255)[0, :, 0].tolist()
    assert logits.softmax(1)[0, 0, 0].tolist()[1:] == [1.0, 1.0]
    places = [math.floor(4 * (8 + x / math.log(2))) for x in (20, 24)]  # of odds e^20 and e^24
    assert [counts[place] for place in (*places, -1)] == [1, 1, 1]  # e^38 is beyond the last bin


def test_coverage_of_logits_without_bounds_and_of_nothing() -> None:
    certain = torch.tensor([math.inf, -math.inf]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    assert coverage(certain, torch.zeros(1, 2, 2, dtype=torch.long), 255).sum() == 4
    empty = coverage(certain, torch.full((1, 2, 2), 255), 255)[0].numpy()
    assert not empty.any() and math.isnan(risk_area(empty)) and math.isnan(risk_at(empty, 0.9))
