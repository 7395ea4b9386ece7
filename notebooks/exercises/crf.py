"""Conditional random fields."""

import math
from typing import Any

import torch

from lightning_modules.refinement.dense_crf import dense_crf

PARAMETERS = {"w_appearance": 8.0, "theta_alpha": 20.0, "theta_beta": 12.0, "w_smoothness": 1.0, "theta_gamma": 2.0}


def a(answer: Any) -> None:
    """e² / (1 + e²) = 0.88: only the difference of the scores counts."""
    right = float(torch.tensor([0.0, 2.0]).softmax(0)[1])
    assert abs(float(answer) - right) < 0.006, "The softmax: e to each score, divided by the sum of both."


def b(answer: Any) -> None:
    """exp(-1/2 - 2) = 0.082: the two exponents add up, so both have to be small for two pixels to be alike."""
    right = math.exp(-(20**2) / (2 * 20**2) - 24**2 / (2 * 12**2))
    assert abs(float(answer) - math.exp(-0.5)) > 1e-3, "They are near; how does their grey differ?"
    assert abs(float(answer) - right) < 0.0011, "exp(-distance² / (2 theta_alpha²) - difference² / (2 theta_beta²))."


def c(answer: Any) -> None:
    """Without iterations or weights nobody listens, and the softmax sees differences of scores alone."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(1, 2, 12, 12, generator=generator)
    image = 255 * torch.rand(1, 1, 12, 12, generator=generator)

    def result(scores: torch.Tensor, image: torch.Tensor, **changed: Any) -> torch.Tensor:
        options = {**PARAMETERS, "method": "exact", "engine": "torch", "iterations": 3, **changed}
        refined: torch.Tensor = dense_crf(scores.softmax(1), image, **options)
        return refined

    before, usual = scores.softmax(1), result(scores, image)
    unchanged = {
        "A": (result(scores, image, iterations=0), before),
        "B": (result(scores, image, w_appearance=0.0, w_smoothness=0.0), before),
        "C": (result(scores, torch.full_like(image, 99)), before),
        "D": (result(scores + 5, image), usual),
    }
    right = {letter for letter, (one, other) in unchanged.items() if torch.allclose(one, other, atol=1e-5)}
    given = {str(letter).strip().upper() for letter in answer} - {"", ","}
    assert "C" not in given, (
        "In one single grey all pixels are alike in colour, and near ones still convince each other."
    )
    assert given == right, (
        "Two of the steps of an iteration can fall away; and what does a softmax make of 5 more for all?"
    )
