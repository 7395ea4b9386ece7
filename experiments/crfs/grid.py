"""The grid of a search for CRF parameters: where it starts, what a person may give instead, and its next round."""

import difflib
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from lightning_modules.refinement.conv_crf import conv_crf
from lightning_modules.refinement.dense_crf import dense_crf

Value = float | str
Point = dict[str, Value]  # one combination of the grid: arguments of a CRF
Grid = dict[str, list[Value]]

CRFS: dict[str, Callable[..., Any]] = {"dense": dense_crf, "conv": conv_crf}
NOT_SEARCHED = {"compatibility", "engine", "return_energy"}  # no numbers, or change none
VOC_DIAGONAL = 625.0  # pixels, of 500 x 375, the most frequent size in PASCAL VOC


def default_grid(crf: str, diagonal: float) -> Grid:
    """The grid for images of this diagonal in pixels: ends and middles of what DeepLab searched or released.

    v1, Sec. 5: w1 in [5, 10], sigma_alpha in [50:10:100], sigma_beta in [3:1:10], released with 4, 121 and 5; v2, Sec.
    4.1: [3:6], [30:10:100] and [3:6]. Both search with w2 = 3 and sigma_gamma = 3 fixed. pydensecrf's example has
    sigma_beta 13. ConvCRF, Sec. 4.2 and its code: blur 4 and w1 10, theta_alpha beyond the window.
    """
    scale = diagonal / VOC_DIAGONAL
    grid: Grid = {
        "w_appearance": [3.0, 5.5, 10.0],
        "theta_alpha": [_rounded(scale * pixels) for pixels in (30.0, 60.0, 120.0)],
        "theta_beta": [3.0, 6.0, 13.0],
        "w_smoothness": [3.0],
        "theta_gamma": [_rounded(3.0 * scale)],
    }
    if crf == "conv":
        grid |= {"w_appearance": [3.0, 10.0, 30.0], "theta_alpha": [_rounded(scale * 60.0)], "blur": [1, 2, 4]}
    return grid


def parse_grid(crf: str, texts: Sequence[str]) -> Grid:
    """`name=value,value,...` for arguments of a CRF; ValueError for what is none, with the nearest name."""
    arguments = {
        parameter.name: parameter
        for parameter in inspect.signature(CRFS[crf]).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in NOT_SEARCHED
    }
    grid: Grid = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if name not in arguments:
            near = difflib.get_close_matches(name, arguments, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"--grid knows {', '.join(arguments)} of {crf}_crf, got {name!r}{hint}")
        kind = type(arguments[name].default)
        read = kind if kind in (int, str) else float
        try:
            grid[name] = [read(value) for value in values.split(",")]
        except ValueError:
            grid[name] = []
        if not equals or not grid[name]:
            wanted = {int: "whole numbers", str: "names", float: "numbers"}[read]
            raise ValueError(f"--grid {name} must list {wanted}, such as {name}=3,4,5, got {text!r}")
    return grid


def check_grid(crf: str, grid: Grid) -> None:
    """Tries every value on an image of one grey: what the CRF refuses, it refuses before the work and not within it."""
    first = {name: values[0] for name, values in grid.items()}
    for name, values in grid.items():
        for value in values:
            try:
                CRFS[crf](torch.full((1, 2, 4, 4), 0.5), torch.full((1, 3, 4, 4), 128.0), **first | {name: value})
            except ValueError as error:
                raise ValueError(f"--grid: {error}") from error


def around(grid: Grid, best: Point) -> Grid:
    """Half a step below and above the best value of each number that has several, and the best value of what has one.

    Steps are ratios, as the ranges of DeepLab are spanned by them; next to 0 they are differences.
    """
    return {name: _halfway(sorted(values), best[name]) for name, values in grid.items()}


def _halfway(values: list[Any], best: Any) -> list[Value]:
    if len(values) == 1 or not isinstance(best, float):
        return [best]
    place = values.index(best)
    below = values[place - 1] if place else None
    above = values[place + 1] if place + 1 < len(values) else None
    near = [_middle(best, other) for other in (below, above) if other is not None]
    if len(near) == 1 and best > 0:  # at an end of the range: as far beyond it
        near.append(_rounded(best * best / near[0]) if near[0] > 0 else best)
    return sorted({*near, best})


def _middle(a: float, b: float) -> float:
    return _rounded(math.sqrt(a * b) if min(a, b) > 0 else (a + b) / 2)


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
