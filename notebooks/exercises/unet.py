"""U-Net."""

from collections.abc import Callable
from typing import Any

import torch

from lightning_modules.unet import UNet


def paper(depth: int = 4) -> UNet:
    with torch.device("meta"):
        return UNet(2, 1, width=1, depth=depth, padding="valid")


def a(answer: Any) -> None:
    """684 pixels: 92 more on each side, and 684 is one of the sides that are taken."""
    right, _ = paper().valid_input_size(500)
    assert answer != 500, "Then 184 pixels are lost, and 316 come out."
    assert answer == right, "As in the paper, where 388 pixels need 572: how many are lost on both sides together?"


def b(answer: Any) -> None:
    """All that are a multiple of 16 away from 572."""
    network = paper()
    right = {side for side in (508, 512, 524, 570, 588, 600, 620) if network.input_side(side) == side}
    got = {int(side) for side in answer}
    for side in sorted(got - right):
        steps, now = [], side
        while (now := now - 4) % 2 == 0:
            now //= 2
            steps.append(str(now))
        raise AssertionError(f"{side}: after the poolings {', '.join(steps) or 'none'}, and {now} is odd.")
    assert got == right, "Some are missing. Take 4 pixels, halve, four times: is each side even before it is halved?"


def c(answer: Callable[[int, int], Any]) -> None:
    """Down: take 4 and halve; at the bottom take 4; up: double and take 4."""
    for depth in (1, 2, 3, 4):
        network = paper(depth)
        smallest = network.input_side(1)
        for side in (smallest, smallest + 2**depth, smallest + 5 * 2**depth, smallest + 1, smallest + 2**depth - 1):
            got, right = answer(side, depth), None
            if network.input_side(side) == side:
                right = network(torch.empty(1, 1, side, side, device="meta")).shape[-1]
            assert got == right, (
                f"output_side({side}, {depth}) is {right}, not {got!r}. Two 3x3 convolutions take 4 pixels at every "
                "level, down and up, and an odd side before a pooling is refused."
            )
