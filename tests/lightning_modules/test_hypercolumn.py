from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_modules.hypercolumn import Hypercolumn, HypercolumnModule


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
