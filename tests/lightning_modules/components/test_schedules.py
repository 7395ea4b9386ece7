"""Learning rates: the schedules at hand-computed points, and the groups of Caffe's models."""

import torch
from torch import nn

from lightning_modules.components.schedules import SCHEDULES, caffe_groups, schedule


def test_step_falls_to_a_tenth_after_each_third() -> None:
    assert [SCHEDULES["step"](step / 6) for step in range(6)] == [1.0, 1.0, 0.1, 0.1, 0.1**2, 0.1**2]


def test_poly_with_warmup_rises_first() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    poly = schedule(optimizer, "poly", 10, 0.2)
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        poly.step()
    torch.testing.assert_close(rates, [0.5, 1.0, 0.8**0.9, 0.7**0.9])


def test_caffe_groups_name_every_trained_parameter_once() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    network[1].weight.requires_grad_(False)
    groups = caffe_groups(network, 0.1, 0.5, factors={"2": 10})
    rates = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert groups[0]["lr"] == 0.1  # the one that train/lr logs
    assert sum(len(group["params"]) for group in groups) == len(rates) == 5
    expected = {
        id(network[0].weight): (0.1, 0.5),
        id(network[0].bias): (0.2, 0.0),
        id(network[1].bias): (0.1, 0.5),  # the shift of a normalisation is no bias of a convolution
        id(network[2].weight): (1.0, 0.5),
        id(network[2].bias): (2.0, 0.0),
    }
    assert rates == expected
    without = caffe_groups(network, 0.1, 0.5, factors={"2": 10}, decay_shifts=False)
    rates = {id(p): (group["lr"], group["weight_decay"]) for group in without for p in group["params"]}
    assert rates == expected | {id(network[1].bias): (0.1, 0.0)}
