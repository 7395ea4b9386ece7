"""What is segmentation?"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from exercises import pair


def a(answer: Any) -> None:
    """Car, person, road: one number for each category, however many cars there are."""
    assert answer != 7, "You have counted instances. Do two cars get different numbers?"
    assert answer == 3, "Count the categories that occur."


def b(answer: Any) -> None:
    """(384 - 224) / 32 + 1 = 6 and (512 - 224) / 32 + 1 = 10: a score map, for one pass through the network."""
    rows, columns = pair(answer)
    assert (rows, columns) != (12, 16), "That is 384 / 32 and 512 / 32: the last windows would hang over the border."
    assert (rows, columns) != (10, 6), "Rows come first: the image is 384 pixels high."
    assert (rows, columns) == (6, 10), "How many steps of 32 fit until the window of 224 touches the far border?"


def c(answer: Callable[[Tensor, Tensor, int], Any]) -> None:
    """Intersection over union: what the library computes from its confusion matrix for all classes at once."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        one, two = (torch.randint(3, (6, 7), generator=generator) for _ in range(2))
        for k in range(3):
            right = ((one == k) & (two == k)).sum() / ((one == k) | (two == k)).sum()
            got = float(answer(one, two, k))
            assert abs(got - float(right)) < 1e-6, f"For two random maps and c={k} it says {got:.3f}, not {right:.3f}."
