"""How much memory the maps of a prediction take at once, known from shapes alone."""

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_modules.analysis.receptive_field import evaluating


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of the tensors that live, as calls make them and Python lets go of them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in given:  # no view, not in place
                size = leaf.untyped_storage().nbytes()
                self.now += size
                self.most = max(self.most, self.now)
                weakref.finalize(leaf, self._freed, size)
        return out

    def _freed(self, size: int) -> None:
        self.now -= size


def peak_bytes(network: nn.Module, in_channels: int, height: int, width: int) -> int:
    """The most bytes that the maps of one image (1, in_channels, height, width) take at once, weights left out.

    Nothing is computed. What a convolution needs beside its maps is not in it: allow for half as much again.
    """
    tensors = dict(network.named_parameters()) | dict(network.named_buffers())
    on_meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    image = torch.empty(1, in_channels, height, width, device="meta")
    with evaluating(network), torch.no_grad(), _Live() as live:
        torch.func.functional_call(network, on_meta, (image,))
    return live.most + image.untyped_storage().nbytes()
