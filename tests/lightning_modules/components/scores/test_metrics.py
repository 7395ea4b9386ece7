"""What is collected over an epoch is exact, whatever the precision of the module."""

import pytest
import torch

from lightning_modules.components.scores.metrics import ConfusionMatrix, ImageMean, LossMean


def test_counts_grow_past_the_integers_of_a_float32() -> None:
    metric = ConfusionMatrix(2)
    metric.confusion[0, 0] = 2**24
    metric.update(torch.tensor([[[1, 0], [0, 0]]]))
    assert metric.compute().tolist() == [[2**24 + 1, 0], [0, 0]]


def test_image_mean_is_exact_and_skips_nan() -> None:
    metric = ImageMean()
    metric.total += 2**25  # as after 2^25 images of score 1, where a float32 sum stands still
    metric.count += 2**25
    metric.update(torch.tensor([1.0, torch.nan, 0.0]))
    assert metric.compute().item() == (2**25 + 1) / (2**25 + 2)
    metric.reset()
    metric.update(torch.tensor([torch.nan]))
    assert metric.compute().isnan()


def test_means_of_a_module_in_half_precision_are_as_exact() -> None:
    metric = ImageMean().to(torch.bfloat16)  # what Lightning does to all that a module holds
    for _ in range(300):
        metric.update(torch.tensor([0.3]))  # of bfloat16, 64 + 0.3 is 64
    assert metric.compute().item() == pytest.approx(0.3)
    metric.reset()
    metric.update(torch.tensor([0.3]))
    assert metric.compute().item() == pytest.approx(0.3)


def test_the_mean_loss_of_an_epoch_is_in_double_and_knows_its_parts() -> None:
    mean = LossMean()
    mean.total = mean.total.bfloat16()  # as a module in half precision does to a state at rest
    mean.update(3.0 + 2**-40, 2)
    assert mean.total.dtype == torch.float64
    mean.update(torch.tensor(1.0), 2)
    assert mean.sums() == (4.0 + 2**-40, 4)
    assert mean.compute() == (4.0 + 2**-40) / 4
    mean.update(float("nan"), 1)
    assert mean.compute().isnan()
