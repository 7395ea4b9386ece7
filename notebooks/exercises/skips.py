"""Skip connections."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from exercises import pair
from lightning_modules.components.blocks import resize
from lightning_modules.fcn import FCN


def a(answer: Any) -> None:
    """From 32 to 16, 8 and 4: three doublings, and what has a stride of 4 is made 4 times larger."""
    doublings, times = pair(answer)
    assert (doublings, times) != (4, 3), "The other way round: first the doublings."
    assert times == 4, "The last sum has the stride of the finest map that was added."
    assert doublings == 3, "fc7 has a stride of 32. How often do you halve that until it is 4?"


def b(answer: Any) -> None:
    """512 x 21 + 21 = 10,773, of 134 million: finer answers for next to nothing."""
    with torch.device("meta"):
        right = sum(p.numel() for p in FCN(21, stride=16).scores[1].parameters())
    assert answer != right - 21, "The biases are missing: one a class."
    assert answer != 9 * (right - 21) + 21, "That is a 3x3 convolution. A 1x1 one has a single weight for each pair."
    assert answer == right, "One weight for each pair of a channel and a class, and one bias for each class."


def c(answer: Callable[[Tensor, Tensor], Any]) -> None:
    """What FCN does at each skip: doubled smoothly, then added."""
    generator = torch.Generator().manual_seed(0)
    for height, width in ((6, 8), (7, 5)):
        deep = torch.randn(2, 3, height, width, generator=generator)
        shallow = torch.randn(2, 3, 2 * height, 2 * width, generator=generator)
        got = answer(deep, shallow)
        assert got.shape == shallow.shape, f"The sum is as large as the shallow map, not {tuple(got.shape)}."
        inner = (..., slice(2, -2), slice(2, -2))  # at the border, ways of resizing differ
        doubled = (got - shallow)[inner]
        assert doubled.abs().max() > 1e-3, "The deep map is missing in it."
        assert torch.allclose(doubled, resize(deep, shallow.shape[2:])[inner], atol=1e-4), (
            "Is the deep one doubled by a bilinear resize, with the pixels' centres aligned (align_corners=False), and "
            "is the shallow one added once?"
        )
