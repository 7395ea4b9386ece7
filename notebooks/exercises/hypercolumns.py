"""Hypercolumns."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.components.boxes import overlap_of
from lightning_modules.hypercolumn import Hypercolumn


def a(answer: Any) -> None:
    """256 + 512 + 512 = 1,280 numbers for each pixel."""
    with torch.device("meta"):
        right = sum(classifier.in_channels for classifier in Hypercolumn(2).classifiers)
    assert answer == right, "They are stacked, not added up."


def b(answer: Any) -> None:
    """80 x 100 in common, 120 x 100 in all: 0.67. A fifth of the width costs a third of the overlap."""
    box = torch.tensor([0, 0, 100, 100])
    right = float(overlap_of(box, box + torch.tensor([20, 0, 20, 0])))
    assert abs(float(answer) - 0.8) > 1e-9, "That is the common part over *one* box; the union is larger."
    assert abs(float(answer) - right) < 0.006, "Pixels that both have, over pixels that at least one has."


def c(answer: Callable[[list[Tensor], int, int, tuple[int, int]], Tensor]) -> None:
    """What every layer says of that pixel, in one vector."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(1, channels, side, side, generator=generator) for channels, side in ((3, 8), (5, 4), (2, 2))]
    stack = torch.cat([F.interpolate(m, (16, 16), mode="bilinear") for m in maps], dim=1)
    for i, j in ((0, 0), (7, 3), (15, 12)):
        got = answer(maps, i, j, (16, 16))
        assert tuple(got.shape) == (10,), f"3 + 5 + 2 channels make a vector of 10 numbers, not {tuple(got.shape)}."
        assert torch.allclose(got, stack[0, :, i, j], atol=1e-5), (
            f"At pixel ({i}, {j}) the numbers are others. Enlarge each map to `size` first, bilinear with "
            "align_corners=False, then take the pixel."
        )
