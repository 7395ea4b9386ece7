"""Learning rates: the schedules at hand-computed points, and the groups of Caffe's models."""

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn

from lightning_modules.components.schedules import SCHEDULES, adamw, caffe_groups, schedule


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


def stepped(gradients: list[Tensor], optimizer: torch.optim.Optimizer) -> Tensor:
    """The one parameter of `optimizer` after a step with each gradient."""
    (parameter,) = optimizer.param_groups[0]["params"]
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


def test_adamw_is_fused_and_takes_the_steps_of_torch() -> None:
    gradients, start = [torch.randn(5, 3) for _ in range(20)], torch.randn(5, 3)
    ours = adamw([{"params": [nn.Parameter(start.clone())]}], 1e-2, 0.9, 1e-2)
    theirs = torch.optim.AdamW([nn.Parameter(start.clone())], 1e-2, betas=(0.9, 0.999), weight_decay=1e-2)
    assert ours.param_groups[0]["fused"] and not theirs.param_groups[0]["fused"]
    torch.testing.assert_close(stepped(gradients, ours), stepped(gradients, theirs), rtol=1e-5, atol=1e-6)
    on_another_device = adamw([{"params": [nn.Parameter(torch.empty(2, device="meta"))]}], 1e-2, 0.9, 1e-2)
    assert not on_another_device.param_groups[0]["fused"]


@pytest.mark.parametrize("fused", [None, True])
def test_adamw_goes_on_as_the_checkpoint_began(fused: bool | None) -> None:
    gradients, start = [torch.randn(5, 3) for _ in range(6)], torch.randn(5, 3)
    whole = torch.optim.AdamW([nn.Parameter(start.clone())], 1e-2, weight_decay=1e-2, fused=fused)
    half = torch.optim.AdamW([nn.Parameter(start.clone())], 1e-2, weight_decay=1e-2, fused=fused)
    middle = stepped(gradients[:3], half).clone()
    resumed = adamw([{"params": [nn.Parameter(middle)]}], 1e-2, 0.9, 1e-2)
    resumed.load_state_dict(half.state_dict())
    assert torch.equal(stepped(gradients[3:], resumed), stepped(gradients, whole))


def test_gradients_of_a_scaled_loss_can_be_clipped_before_a_fused_step() -> None:
    """Lightning refuses to clip for an optimiser that divides by the scale itself; fused ones of torch do."""
    start, scaler = torch.randn(5, 3), torch.amp.GradScaler("cpu")
    ours = adamw([{"params": [nn.Parameter(start.clone())]}], 1e-2, 0.9, 1e-2)
    plain = adamw([{"params": [nn.Parameter(start.clone())]}], 1e-2, 0.9, 1e-2)
    precision = MixedPrecision("16-mixed", "cpu", scaler)  # type: ignore[arg-type]
    (parameter,) = ours.param_groups[0]["params"]
    scaler.scale(parameter.square().sum()).backward()
    scaler.unscale_(ours)
    precision.clip_gradients(ours, 0.5)
    scaler.step(ours)
    gradient = 2 * start
    torch.testing.assert_close(parameter.detach(), stepped([gradient * 0.5 / gradient.norm()], plain))
