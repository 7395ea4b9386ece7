"""Optimisers and learning-rate schedules by name: what a paper's training section states in one line."""

from collections.abc import Callable, Iterable

import torch
from torch.nn import Parameter
from torch.optim.lr_scheduler import LambdaLR


def sgd(parameters: Iterable[Parameter], lr: float, momentum: float, weight_decay: float) -> torch.optim.Optimizer:
    """Stochastic gradient descent with heavy-ball momentum."""
    return torch.optim.SGD(parameters, lr, momentum=momentum, weight_decay=weight_decay)


def adamw(parameters: Iterable[Parameter], lr: float, momentum: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW, Loshchilov and Hutter 2019; `momentum` is its beta 1."""
    return torch.optim.AdamW(parameters, lr, betas=(momentum, 0.999), weight_decay=weight_decay)


OPTIMIZERS: dict[str, Callable[[Iterable[Parameter], float, float, float], torch.optim.Optimizer]] = {
    "sgd": sgd,
    "adamw": adamw,
}

# The share of the learning rate that is left after the share `t` in [0, 1) of all steps.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda t: 1.0,
    "poly": lambda t: (1 - t) ** 0.9,  # DeepLab v2, Sec. 4.1.1; PSPNet, Sec. 5.1
}


def schedule(optimizer: torch.optim.Optimizer, kind: str, steps: int, warmup: float) -> LambdaLR:
    """The schedule `kind` over `steps` optimiser steps, after a linear rise over the first share `warmup` of them."""
    decay, rise = SCHEDULES[kind], round(warmup * steps)
    return LambdaLR(optimizer, lambda step: (step + 1) / rise if step < rise else decay(min(step / steps, 1.0)))
