"""Encoders and decoders."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_modules.components.upsampling import pool, unpool
from lightning_modules.deconvnet import DeconvNet


def a(answer: Any) -> None:
    """64 x 180 x 240 windows of 2 bits are 691,200 bytes; the map itself takes 44 million."""
    maxima, _ = pool(torch.empty(1, 64, 360, 480, device="meta"))
    right = maxima.numel() * 2 // 8
    assert answer != 4 * right, "There is one position for each window, not for each pixel."
    assert answer != 8 * right, "Those are bits."
    assert answer == right, "How many windows of 2x2 are there in 64 maps? Four notes of 2 bits fill a byte."


def b(answer: Any) -> None:
    """48 of 49 weights are gone in both: 201 million fewer, and 50 million stay."""
    with torch.device("meta"):
        network = DeconvNet(21)
    whole = sum(p.numel() for p in network.parameters())
    one = network.fc6.weight.numel() // 49 * 48
    assert answer != whole - one, "That is fc6 alone. Its mirror on the way up shrinks, too."
    assert answer == whole - 2 * one, (
        "fc6 has 512 x 7 x 7 x 4096 weights, and so has its mirror. What is left of 7 x 7? Biases stay."
    )


def c(answer: Callable[[Tensor, Tensor], Any]) -> None:
    """What SegNet does at every level, from 2 bits a window."""
    generator = torch.Generator().manual_seed(0)
    for height, width in ((1, 1), (2, 3), (4, 3)):
        map_ = torch.rand(2 * height, 2 * width, generator=generator) + 0.1
        maxima, positions = pool(map_[None, None])
        code = (positions // (2 * width) % 2 * 2 + positions % 2)[0, 0]
        right = unpool(maxima, positions, (2 * height, 2 * width))[0, 0]
        got = torch.as_tensor(answer(maxima[0, 0], code))
        assert got.shape == right.shape, f"Of maps {height} x {width} it makes {tuple(got.shape)}: twice as large?"
        assert not (got != 0).all(), "Every pixel has a value. Three of the four in each window are zero."
        assert torch.allclose(got.float(), right), (
            f"For maxima {maxima[0, 0].tolist()} and code {code.tolist()} something is in the wrong place: code // 2 "
            "is the row within the window, code % 2 the column."
        )
