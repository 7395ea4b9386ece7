"""A network whose weights, gradients and optimiser states are spread over devices: FSDP2 of torch.

Rajbhandari et al. 2020, ZeRO, https://arxiv.org/abs/1910.02054; Zhao et al. 2023, https://arxiv.org/abs/2304.11277
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lightning_modules.components.encoders.base import Encoder

LEAST = 1_000_000  # parameters of a part that is gathered by itself; each costs a message forward and two backward


def parts(network: nn.Module, least: int = LEAST) -> Iterator[nn.Module]:
    """The parts of `network` that are gathered one after the other: stages of its encoder, and heads.

    Each is a child of the network with at least `least` parameters, which its forward calls. Encoders, networks that
    have one and lists of layers are no parts themselves: their children are.
    """
    for child in network.children():
        if sum(parameter.numel() for parameter in child.parameters()) < least:
            continue
        if isinstance(child, Encoder | nn.ModuleList | nn.ModuleDict) or any(
            isinstance(inner, Encoder) for inner in child.children()
        ):
            yield from parts(child, least)
        else:
            yield child


def shard(network: nn.Module, mesh: Any, entrances: Sequence[str]) -> None:
    """Spreads the parameters of `network` over the devices of `mesh`, in place; a second call changes nothing.

    `entrances` are the methods that are called from outside, beside forward. All devices must hold the same weights.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    if isinstance(network, FSDPModule):
        return
    for part in parts(network):
        fully_shard(part, mesh=mesh)
    fully_shard(network, mesh=mesh)
    for name in entrances:
        register_fsdp_forward_method(network, name)


def gathered(value: Any, *, keep: bool) -> Any:
    """`value`, a state of a module or an optimiser, with whole tensors on the CPU; all devices must call it.

    Where it is not to `keep`, nothing is left of it, so that one device alone needs the memory.
    """
    if isinstance(value, Mapping):
        whole: dict[Any, Any] = {key: gathered(inner, keep=keep) for key, inner in value.items()}
        return whole if keep else {}
    if isinstance(value, list | tuple):
        return [gathered(inner, keep=keep) for inner in value]
    if not isinstance(value, Tensor):
        return value
    sharded: Any = value
    full: Tensor = sharded.full_tensor() if _is_sharded(value) else value
    return full.detach().cpu() if keep else None


def spread_like(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, the same on all devices, in shards like those of a parameter, where it has any."""
    if not _is_sharded(like) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    there = value.to(like.device, like.dtype if value.is_floating_point() else value.dtype)
    return distribute_tensor(there, like.device_mesh, like.placements, src_data_rank=None)  # type: ignore[attr-defined]


def _is_sharded(value: Tensor) -> bool:
    return hasattr(value, "full_tensor")
