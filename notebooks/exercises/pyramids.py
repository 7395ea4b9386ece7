"""Pyramids."""

from typing import Any

import torch
import torch.nn.functional as F

from lightning_modules.components.pyramid import ASPP, pool_to_bins


def a(answer: Any) -> None:
    """1 + 4 + 9 + 36 = 50."""
    right = sum(pool_to_bins(torch.ones(1, 1, 60, 60), bins).numel() for bins in (1, 2, 3, 6))
    assert answer != 12, "The bins lie in rows and columns."
    assert answer == right, "Level b has b x b bins."


def b(answer: Any) -> None:
    """17: from the middle it is 16 places to the border, and the kernel reaches one rate to each side."""

    def most(rate: int) -> int:
        valid = F.conv2d(torch.ones(1, 1, 33, 33), torch.ones(1, 1, 3, 3), padding=rate, dilation=rate)
        return int(valid.round().max())

    right = next(rate for rate in range(1, 40) if most(rate) < 9)
    assert answer != 33, "At 33 a single weight is left. When does the first one fall off in the middle?"
    assert answer == right, "Stand in the middle: how far is the border?"


def c(answer: Any) -> None:
    """5 x 256 = 1,280."""
    with torch.device("meta"):
        aspp = ASPP(2048, 256, (6, 12, 18))
    assert answer != 256, "That is what comes out of it."
    assert answer == aspp.project[0].in_channels, "Side by side, channels add up."
