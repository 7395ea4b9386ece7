"""Maps read at points between their cells, and the maps inside a network: what rendering a segmentation needs.

Kirillov et al. 2020, https://arxiv.org/abs/1912.08193
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from lightning_modules.components.blocks import wide


class Grid(NamedTuple):
    """A map (N, C, h, w): cell (i, j) lies on `stride` x `stride` pixels from (i, j) * stride - margin."""

    maps: Tensor
    stride: float
    margin: int = 0


def point_sample(grid: Grid, points: Tensor) -> Tensor:
    """(N, C, h, w) at points (N, P, 2), x and y in pixels from the image's corner -> (N, C, P), float32 or float64.

    In half precision neither a place in an image nor a share between two cells can be told: the points are not to be.

    Bilinear between the centres of cells and constant beyond the outermost, as in resizing. Not `F.grid_sample`, whose
    backward on CUDA raises under deterministic algorithms.
    """
    channels, height, width = grid.maps.shape[1:]
    x, y = ((points + grid.margin) / grid.stride - 0.5).unbind(-1)
    x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
    left, top = x.floor().long(), y.floor().long()
    right, bottom = (left + 1).clamp(max=width - 1), (top + 1).clamp(max=height - 1)
    flat = wide(grid.maps).flatten(2)

    def at(row: Tensor, column: Tensor) -> Tensor:
        return flat.gather(2, (row * width + column)[:, None].expand(-1, channels, -1))

    dx, dy = (x - left)[:, None], (y - top)[:, None]
    above = (1 - dx) * at(top, left) + dx * at(top, right)
    below = (1 - dx) * at(bottom, left) + dx * at(bottom, right)
    return (1 - dy) * above + dy * below


def point_labels(masks: Tensor, points: Tensor) -> Tensor:
    """The labels (N, P) of the pixels of masks (N, H, W) in which points (N, P, 2) lie."""
    height, width = masks.shape[1:]
    column, row = points.long().unbind(-1)
    # A uniform number below 1 times the width can be rounded up to the width.
    index = row.clamp(max=height - 1) * width + column.clamp(max=width - 1)
    return masks.flatten(1).gather(1, index)


def uncertainty(logits: Tensor) -> Tensor:
    """(N, num_classes, ...) -> (N, ...): the second best logit less the best, so at most 0 (Sec. 5)."""
    best, second = logits.topk(2, dim=1).values.unbind(1)
    return second - best


@contextmanager
def caught(network: nn.Module, features: Sequence[str]) -> Iterator[list[Tensor]]:
    """A list which, after `network` has run within the block, holds the maps that `features` names, in their order.

    Of a module that runs several times, on several scales of the image, the largest map.
    """
    maps: list[Tensor] = []
    names = [feature.partition("[")[0] for feature in features]
    returned: dict[str, list[Any]] = {name: [] for name in names}
    hooks = [
        network.get_submodule(name).register_forward_hook(lambda _, args, out, name=name: returned[name].append(out))
        for name in returned
    ]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()
    for feature, name in zip(features, names, strict=True):
        item = feature.removeprefix(name).strip("[]")
        runs = [out[int(item)] if item else out for out in returned[name]]
        if not runs:
            raise KeyError(f"{name} does not run")
        maps.append(max(runs, key=lambda map_: map_.shape[-1]))
