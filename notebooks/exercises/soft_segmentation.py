"""Soft segmentation."""

from collections.abc import Callable
from typing import Any

import numpy as np

from lightning_modules.refinement.laplacian import matting_laplacian


def a(answer: Any) -> None:
    """0.25 x 200 + 0.75 x 40 = 80."""
    assert abs(float(answer) - 160) > 1e-6, "You have given the foreground three quarters."
    assert abs(float(answer) - 80) < 1e-6, "alpha F + (1 - alpha) B."


def b(answer: Callable[[float, float, float], Any]) -> None:
    """(C - B) / (F - B): easy with three known greys. A photograph shows C alone."""
    for alpha, foreground, background in ((0.25, 200.0, 40.0), (1.0, 10.0, 90.0), (0.6, 0.0, 255.0)):
        colour = alpha * foreground + (1 - alpha) * background
        got = float(answer(colour, foreground, background))
        assert abs(got - alpha) < 1e-9, f"C={colour}, F={foreground}, B={background}: it says {got:.3f}, not {alpha}."


def c(answer: Any) -> None:
    """Whatever is linear in the colours is free; a label map is not, unless the image itself is black and white."""
    image = np.random.default_rng(0).random((9, 11, 3))
    laplacian = matting_laplacian(image)
    maps = {
        "A": np.full((9, 11), 0.3),
        "B": image[..., 2],
        "C": 2 * image[..., 0] - image[..., 1],
        "D": (np.random.default_rng(1).random((9, 11)) > 0.5).astype(float),
    }
    right = {letter for letter, alpha in maps.items() if abs(alpha.ravel() @ (laplacian @ alpha.ravel())) < 1e-2}
    given = {str(letter).strip().upper() for letter in answer} - {"", ","}
    assert "D" not in given, "A label map jumps where no colour does."
    assert given == right, "Which of them are of the form a . C + b, with the same a and b everywhere?"
