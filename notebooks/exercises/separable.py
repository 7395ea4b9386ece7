"""Separable convolution."""

from collections.abc import Callable
from typing import Any

from torch import nn

from lightning_modules.components.blocks import separable_conv


def _weights(module: nn.Module) -> int:
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Conv2d))


def a(answer: Any) -> None:
    """5 x 5 x 64 + 64 x 128 = 9,792, and the full one has 204,800."""
    assert answer != 5 * 5 * 64 * 128, "That is the full convolution: 5 x 5 kernels on all 64 channels for each output."
    right = _weights(separable_conv(64, 128, 5, norm="none"))
    assert answer == right, "One 5 x 5 kernel for each input channel, and a 1 x 1 kernel from 64 to 128 behind them."


def b(answer: Callable[[int, int], Any]) -> None:
    """1/n + 1/k²; the input channels and the size of the map cancel out."""
    for k, n in ((3, 16), (3, 256), (5, 8), (7, 1)):
        full, separable = nn.Conv2d(12, n, k, bias=False), separable_conv(12, n, k, norm="none")
        right, got = _weights(separable) / _weights(full), float(answer(k, n))
        assert abs(got - right) < 1e-9, f"For k={k} and n={n} it says {got:.4f}; counted it is {right:.4f}."


def c(answer: Any) -> None:
    """A 1 x 1 convolution has nothing to look around for, and with a single output there is nothing to share."""
    asked = {(1, 64), (3, 1), (3, 2)}
    right = {(k, n) for k, n in asked if 1 / n + 1 / k**2 > 1}
    given = {tuple(one) for one in answer}
    assert given <= asked, "Take them from the list, as (k, n)."
    assert given == right, "1/n + 1/k² must be more than 1."
