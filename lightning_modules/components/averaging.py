"""What is scored after a training: the last weights or their average, with batch-norm statistics computed again."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

AverageName = Literal["none", "recalibrate", "ema", "ema+recalibrate"]
AVERAGES: tuple[AverageName, ...] = get_args(AverageName)


def decay_of(steps: int) -> float:
    """The share that an average keeps at each step to remember a fifth of all `steps`: 0.98 of 250.

    So a short training is not averaged with its beginning. Relative to the length, as in Karras et al. 2024.
    """
    return max(0.0, 1 - 5 / steps)


def exponential_average(network: nn.Module, decay: float) -> AveragedModel:
    """A copy of `network` that follows it: at each `update_parameters` it keeps the share `decay` of what it was.

    Weights and running statistics alike; the first update copies. Polyak and Juditsky 1992; Tarvainen and Valpola 2017.
    """
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)  # type: ignore[no-untyped-call]


def recalibrated(module: Any, network: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """A copy of `network` whose batch norms have the mean statistics of `batches` instead of running ones.

    `module`: the SegmentationModule whose `predict` takes the images, (N, in_channels, H, W) in [0, 1], to a network of
    its kind, whole as in training. Batch norms alone are in training mode, so no dropout moves what they measure. Those
    that are frozen, and those that no image reaches, stay as they are. A network without any other is copied, and no
    batch is read.

    Modelled on `torch.optim.swa_utils.update_bn`, which measures under dropout and resets frozen batch norms, too.
    """
    network = deepcopy(network).train()
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.training and m.running_mean is not None]
    network.eval()
    if not norms:
        return network
    before = [(deepcopy(norm.state_dict()), norm.momentum) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
        norm.train()
    with torch.no_grad(), standing_in(module, network):
        for batch in batches:
            module.predict(batch)
    for norm, (state, momentum) in zip(norms, before, strict=True):
        norm.momentum = momentum
        if not norm.num_batches_tracked:
            norm.load_state_dict(state)
    return network.eval()


@contextmanager
def standing_in(module: Any, network: nn.Module) -> Iterator[None]:
    """Has `module` use another network of its kind in this context, and take images as in training.

    Its own network is not touched.
    """
    own, module.network, mode, module.training = module.network, network, module.training, True
    try:
        yield
    finally:
        module.network, module.training = own, mode
