"""Why score maps are coarse."""

import random
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from exercises import pair
from lightning_modules.analysis.receptive_field import receptive_field


def a(answer: Any) -> None:
    """Five strides of 2 multiply to 32: 480 / 32 = 15 rows and 640 / 32 = 20 columns."""
    rows, columns = pair(answer)
    assert (rows, columns) != (48, 64), "That divides by 10. Do five strides of 2 add up, or multiply?"
    assert (rows, columns) != (20, 15), "Rows come first: the image is 480 pixels high."
    assert (rows, columns) == (15, 20), "Halve both sides five times."


def b(answer: Any) -> None:
    """1 + 2 n >= 404 gives n = 202. VGG16 needs 13 of them, five poolings and fc6."""
    assert answer != 201, "201 layers see 1 + 2 x 201 = 403 pixels: one is missing."
    assert answer not in (404, 403), "One layer adds a pixel on each side, not one in all."
    assert answer == 202, "The first layer sees 3 pixels, and each one after it 2 more."


def c(answer: Callable[[Sequence[tuple[int, int]]], Any]) -> None:
    """The field grows by (kernel - 1) steps, and a stride multiplies the step: so the library finds it, too."""
    draw = random.Random(0)
    chains = [[(3, 1)], [(3, 1), (3, 1)], [(2, 2), (3, 1)]]
    chains += [[(draw.choice((1, 2, 3, 5, 7)), draw.choice((1, 2, 3))) for _ in range(4)] for _ in range(4)]
    for layers in chains:
        network = nn.Sequential(*(nn.Conv2d(1, 1, kernel, stride) for kernel, stride in layers))
        size = receptive_field(network, 1).size
        assert size is not None
        got = answer(layers)
        assert got == size[0], (
            f"The field of {layers} is {size[0]}, not {got!r}. A layer adds kernel - 1 steps of the map that it "
            "*reads*; its own stride counts for the layers behind it."
        )
