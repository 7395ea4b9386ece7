"""What the CRFs share: the parameters of a mean field with an appearance and a smoothness kernel, and their checks."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args

from torch import Tensor

from lightning_modules.components.choices import one_of
from lightning_modules.refinement.checks import (
    MAX_ITERATIONS,
    as_float,
    check_finite,
    check_positive,
    check_tensor,
    check_whole,
)

Number = float | Tensor
Normalization = Literal["symmetric", "before", "after", "none"]
Engine = Literal["auto", "torch", "c++"]
CRF = TypeVar("CRF", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True, eq=False)
class MeanField:
    """Parameters of mean field inference (Kraehenbuehl, Koltun 2011, Eq. 3) for `num_classes` classes.

    Args:
        w_appearance: weight of the kernel of positions and colours, one number or one for each class (C,)
        theta_alpha: standard deviation of positions in the appearance kernel, in pixels
        theta_beta: standard deviation of colours in the appearance kernel, in grey levels
        w_smoothness: weight of the kernel of positions alone, one number or one for each class (C,)
        theta_gamma: standard deviation of the smoothness kernel, in pixels
        iterations: steps of mean field
        compatibility: cost (C, C) of a class (row) beside another (column); None is Potts, 1 for any two classes
        normalization: scales the kernel between i and j by the sums s of its rows: "symmetric" 1 / sqrt(s_i s_j),
            "before" 1 / s_j, "after" 1 / s_i, "none" leaves it
        engine: what computes; "auto" takes C++ where it can serve

    TypeError or ValueError unless each has a meaning for these classes. Whole numbers become floats.
    """

    num_classes: int = field(kw_only=False)
    w_appearance: Number
    theta_alpha: Number
    theta_beta: Number
    w_smoothness: Number
    theta_gamma: Number
    iterations: int = 5
    compatibility: Tensor | None = None
    normalization: Normalization = "symmetric"
    engine: Engine = "auto"

    def __post_init__(self) -> None:
        one_of("engine", self.engine, get_args(Engine))
        check_positive(theta_alpha=self.theta_alpha, theta_beta=self.theta_beta, theta_gamma=self.theta_gamma)
        one_of("normalization", self.normalization, get_args(Normalization))
        check_whole("iterations", self.iterations, 0, MAX_ITERATIONS)
        classes = self.num_classes
        for name, weight in (("w_appearance", self.w_appearance), ("w_smoothness", self.w_smoothness)):
            check_finite(name, weight)
            shape = tuple(weight.shape) if isinstance(weight, Tensor) else ()
            if shape not in ((), (classes,)):
                raise ValueError(f"{name} must be one number, or one for each of {classes} classes, got shape {shape}")
        if self.compatibility is not None:
            check_tensor("compatibility", self.compatibility)
            if tuple(self.compatibility.shape) != (classes, classes):
                raise ValueError(
                    f"compatibility must be a ({classes}, {classes}) matrix, the cost of a class (row) beside "
                    f"another (column), or None for Potts, got shape {tuple(self.compatibility.shape)}"
                )
            check_finite("compatibility", self.compatibility)
        for name in ("w_appearance", "theta_alpha", "theta_beta", "w_smoothness", "theta_gamma"):
            object.__setattr__(self, name, as_float(getattr(self, name)))


def takes(parameters: type[MeanField]) -> Callable[[CRF], CRF]:
    """Lets `inspect.signature` see, in place of a CRF's `**parameters`, the keyword arguments of the class they go to.

    Decorates a function or the constructor of a layer. An argument that it declares itself stays as it is there.
    """

    def compose(crf: CRF) -> CRF:
        signature = inspect.signature(crf)
        declared = {p.name: p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD}
        given = {p.name: p for p in inspect.signature(parameters).parameters.values() if p.kind is p.KEYWORD_ONLY}
        positional = [p for p in declared.values() if p.kind is not p.KEYWORD_ONLY]
        keywords = given | {name: p for name, p in declared.items() if p.kind is p.KEYWORD_ONLY}
        composed = signature.replace(parameters=[*positional, *keywords.values()])
        crf.__signature__ = composed  # type: ignore[attr-defined]
        return crf

    return compose
