"""Optimisers, learning rates and schedules by name: what a paper's training section states in one line."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import LambdaLR

Groups = list[dict[str, Any]]  # "params", and "lr" or "weight_decay" where they are not the optimiser's


def sgd(groups: Groups, lr: float, momentum: float, weight_decay: float) -> torch.optim.Optimizer:
    """Stochastic gradient descent with heavy-ball momentum."""
    return torch.optim.SGD(groups, lr, momentum=momentum, weight_decay=weight_decay)


def adamw(groups: Groups, lr: float, momentum: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW, Loshchilov and Hutter 2019; `momentum` is its beta 1. In one kernel where all parameters are on devices
    that have it."""
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    fused = True if devices <= {"cpu", "cuda"} else None
    optimizer = torch.optim.AdamW(groups, lr, betas=(momentum, 0.999), weight_decay=weight_decay, fused=fused)
    # A gradient scaler divides before the step, as for any other optimiser: Lightning clips in between, and refuses
    # to where a fused step divides itself.
    optimizer._step_supports_amp_scaling = False
    return optimizer


OptimizerName = Literal["sgd", "adamw"]
OPTIMIZERS: dict[OptimizerName, Callable[[Groups, float, float, float], torch.optim.Optimizer]] = {
    "sgd": sgd,
    "adamw": adamw,
}

ScheduleName = Literal["constant", "poly", "step"]
# The share of the learning rate that is left after the share `t` in [0, 1) of all steps.
SCHEDULES: dict[ScheduleName, Callable[[float], float]] = {
    "constant": lambda t: 1.0,
    "poly": lambda t: (1 - t) ** 0.9,  # DeepLab v2, Sec. 4.1.1; PSPNet, Sec. 5.1
    "step": lambda t: 0.1 ** int(3 * t),  # DeepLab v1, Sec. 5.1: a tenth after every 2,000 of 6,000 iterations
}


def schedule(optimizer: torch.optim.Optimizer, kind: ScheduleName, steps: int, warmup: float) -> LambdaLR:
    """The schedule `kind` over `steps` optimiser steps, after a linear rise over the first share `warmup` of them."""
    decay, rise = SCHEDULES[kind], round(warmup * steps)
    return LambdaLR(optimizer, lambda step: (step + 1) / rise if step < rise else decay(min(step / steps, 1.0)))


def caffe_groups(
    network: nn.Module,
    lr: float,
    weight_decay: float,
    *,
    factors: Mapping[str, float] | None = None,
    decay_shifts: bool = True,
) -> Groups:
    """Parameter groups as Caffe's models state them: a bias learns at twice the rate and without weight decay.

    `factors` maps the name of a submodule, such as "head", to what the rate of all its parameters is multiplied by (ten
    for the last layer of DeepLab). Without `decay_shifts` the shift of a batch norm does not decay either; its rate is
    the plain one. Frozen parameters are in no group; the first group has the plain rate.
    """
    factors = dict(factors or {})
    for name in factors:
        network.get_submodule(name)  # AttributeError for a name that is none: our own mistake
    groups: dict[tuple[float, float], list[nn.Parameter]] = {(lr, weight_decay): []}
    for name, module in network.named_modules():
        factor = next((f for part, f in factors.items() if f"{name}.".startswith(f"{part}.")), 1.0)
        for kind, parameter in module.named_parameters(recurse=False):
            is_bias = kind == "bias" and isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
            is_shift = kind == "bias" and isinstance(module, _BatchNorm)  # also one that is synchronised
            decays = not is_bias and (decay_shifts or not is_shift)
            if parameter.requires_grad:
                key = lr * factor * (2 if is_bias else 1), weight_decay if decays else 0.0
                groups.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
        if parameters
    ]
