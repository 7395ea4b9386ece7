"""Gradient checkpointing: maps of a stage are not kept but computed again backward, Chen et al. 2016, arXiv:1604.06174.

Memory for the time of a second forward of these stages; every number stays the same.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

CONTAINERS = nn.Sequential | nn.ModuleList | nn.ModuleDict


class Recomputing(nn.Module):
    """A network or an encoder whose contracting stages can be computed again, where `checkpointing` is set."""

    checkpointing = False

    def through(self, layers: nn.Module | Iterable[nn.Module], x: Tensor) -> Tensor:
        """`x` through one layer, or through several one after the other: a stage, in which nothing else is kept."""
        stage = [layers] if isinstance(layers, nn.Module) else list(layers)

        def run(x: Tensor) -> Tensor:
            for layer in stage:
                x = layer(x)
            return x

        if not self.checkpointing:
            return run(x)
        computed: Tensor = recomputed(run, stage, x)
        return computed


def recomputed(run: Callable[..., Any], layers: Sequence[nn.Module], *args: Any) -> Any:
    """`run(*args)`, of which only the arguments are kept for the gradient; its batch norms see them once."""
    if not (torch.is_grad_enabled() and any(layer.training for layer in layers)):
        return run(*args)
    from torch.utils.checkpoint import checkpoint

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), _without_statistics(layers)

    return checkpoint(run, *args, use_reentrant=False, context_fn=contexts)


@contextmanager
def _without_statistics(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Batch norms in training move copies of their running statistics in this context."""
    norms = [module for layer in layers for module in layer.modules() if getattr(module, "track_running_stats", False)]
    own = [(norm, dict(norm._buffers)) for norm in norms if norm.training]
    for norm, buffers in own:
        for name, buffer in buffers.items():
            norm._buffers[name] = None if buffer is None else buffer.clone()
    try:
        yield
    finally:
        for norm, buffers in own:
            norm._buffers.update(buffers)


def checkpoint_encoders(network: nn.Module) -> None:
    """Has the encoders in `network` compute their stages again; ValueError where it has none."""
    ours = [module for module in network.modules() if isinstance(module, Recomputing)]
    for module in ours:
        module.checkpointing = True
        if isinstance(model := getattr(module, "model", None), nn.Module):
            _checkpoint_blocks(model)
    if not ours:
        theirs = getattr(network, "encoder", None)  # of a network of smp
        if not isinstance(theirs, nn.Module):
            raise ValueError(f"checkpointing=True is of networks with an encoder: {type(network).__name__} has none")
        _checkpoint_blocks(theirs)


def _checkpoint_blocks(model: nn.Module) -> None:
    """Has every block of an encoder of smp or timm compute itself again: its outermost layers that are no lists."""
    for block in _blocks(model):
        block.forward = _Recomputed(block.forward, block)


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    for child in model.children():
        inner = list(child.children())
        if isinstance(child, CONTAINERS) and any(list(layer.children()) for layer in inner):
            yield from _blocks(child)
        elif inner:
            yield child


class _Recomputed:
    """A forward that is computed again; an object and no closure, so that a copy of its block is a copy of it too."""

    def __init__(self, forward: Callable[..., Any], block: nn.Module) -> None:
        self.forward, self.block = forward, block

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return recomputed(lambda *given: self.forward(*given, **kwargs), [self.block], *args)
