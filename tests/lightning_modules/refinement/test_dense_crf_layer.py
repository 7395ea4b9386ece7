"""The fully connected CRF as a layer, whose weights and compatibility train."""

import pytest
import torch
import torch.nn.functional as F
from scenes import POINTS, TINY, scene

from lightning_modules.refinement.dense_crf import PRESETS, DenseCRF, dense_crf


def test_layer_starts_as_dense_crf_and_learns() -> None:
    p, image = scene(24, 36, 4)
    crf = DenseCRF(4, **POINTS[0], iterations=3, test_iterations=10)
    assert {name: tuple(value.shape) for name, value in crf.named_parameters()} == {
        "w_appearance": (4,),
        "w_smoothness": (4,),
        "compatibility": (4, 4),
    }
    torch.testing.assert_close(crf(p, image), dense_crf(p, image, **POINTS[0], iterations=3), atol=1e-5, rtol=0)
    with torch.no_grad():
        refined = crf.eval()(p, image)
    torch.testing.assert_close(refined, dense_crf(p, image, **POINTS[0]), atol=1e-5, rtol=0)

    crf.train()
    target = scene(24, 36, 4)[0].argmax(1)
    optimizer = torch.optim.SGD(crf.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        loss = F.nll_loss(crf(p, image).clamp(min=1e-6).log(), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[1] < losses[0]


def test_no_weight_leaves_the_probabilities() -> None:
    p, image = scene(24, 36, 4)
    crf = DenseCRF(4, **TINY | {"w_appearance": 0.0, "w_smoothness": torch.zeros(4)})
    torch.testing.assert_close(crf(p, image), p)


def test_layer_on_the_meta_device() -> None:
    with torch.device("meta"):
        crf = DenseCRF(21, **PRESETS["deeplab_v2"])
        marginals = crf(torch.rand(2, 21, 8, 9), torch.rand(2, 3, 8, 9))
    assert marginals.is_meta and marginals.shape == (2, 21, 8, 9)


def test_layer_refuses_bad_sizes() -> None:
    with pytest.raises(ValueError, match="num_classes must be a whole number of at least 1"):
        DenseCRF(0, **TINY)
    with pytest.raises(ValueError, match="test_iterations must be"):
        DenseCRF(2, **TINY, test_iterations=-1)
