"""Making a small map large."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def _taps(kernel_size: int, stride: int) -> Tensor:
    count = F.conv_transpose1d(torch.ones(1, 1, 20), torch.ones(1, 1, kernel_size), stride=stride)[0, 0]
    return count[kernel_size:-kernel_size].int()


def a(answer: tuple[set[int], set[int]]) -> None:
    """2 and 3 along a line; their products 4, 6 and 9 in the plane. Uneven, since 2 does not divide 5."""
    line, plane = (set(one) for one in answer)
    taps = _taps(5, 2)
    assert line == set(taps.tolist()), "Draw five boxes every two places, and count how many lie over each other."
    assert plane == set(torch.outer(taps, taps).unique().tolist()), (
        "In the plane the counts of row and column multiply."
    )


def b(answer: Any) -> None:
    """4, 8 and 12: those that 4 divides."""
    even = {size for size in range(4, 13) if len(_taps(size, 4).unique()) == 1}
    assert set(answer) == even, "Use overlap(size, 4) of above: how many different numbers does it have?"


def c(answer: Callable[[Tensor, int], Tensor]) -> None:
    """And with the turned kernel behind it this is a transposed convolution."""
    x = torch.arange(1.0, 7).view(2, 3)
    for stride in (1, 2, 3):
        rows, columns = (stride * (side - 1) + 1 for side in x.shape)
        got = torch.as_tensor(answer(x, stride)).float()
        assert got.shape == (rows, columns), (
            f"(2, 3) with stride {stride} becomes ({rows}, {columns}): none at the ends."
        )
        assert torch.equal(got[::stride, ::stride], x), "The values stay in their order, a stride apart."
        assert (got != 0).sum() == x.numel(), "All the others are zero."


def d(answer: Any) -> None:
    """0, 2, 6, 8: the centres lie at -0.25, 0.25, 0.75, 1.25, and beyond the ends the edge is repeated."""
    row = F.interpolate(torch.tensor([[[0.0, 8.0]]]), scale_factor=2, mode="linear", align_corners=False)[0, 0]
    given = [float(value) for value in answer]
    assert len(given) == 4, "Four numbers."
    assert given != [0.0, 8 / 3, 16 / 3, 8.0], "That is align_corners=True, where the corners lie on each other."
    assert given == row.tolist(), "Where do the centres of the four pixels lie between those of the two?"
