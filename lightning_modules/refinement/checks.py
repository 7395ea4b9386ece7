"""What the refinements refuse before they work: a clear error rather than a wrong picture."""

import math
import os
from pathlib import Path

import torch
from torch import Tensor

from lightning_modules.components.errors import NonFiniteError

NORMALIZATIONS = ("symmetric", "before", "after", "none")


def check_inputs(probabilities: Tensor, images: Tensor) -> None:
    """ValueError unless probabilities are (N, C, H, W) distributions over C and images (N, 1 or 3, H, W) in 0..255.

    Probabilities are float32 or float64, at least 0 and sum to 1 within 1e-3; the images are integers or floats.
    """
    check_shapes(probabilities, images)
    check_values(probabilities, images)


def check_shapes(probabilities: Tensor, images: Tensor) -> None:
    """The part of `check_inputs` that reads no pixel: shapes, types, devices."""
    for name, values in (("probabilities", probabilities), ("images", images)):
        if values.ndim != 4 or not values.numel():
            raise ValueError(
                f"{name} must be (N, {'C' if name == 'probabilities' else '1 or 3'}, H, W) with no side of 0, "
                f"got {tuple(values.shape)}"
            )
    if images.shape[1] not in (1, 3):
        raise ValueError(f"images must be grey or RGB, 1 or 3 channels, got {images.shape[1]}: leave the others out")
    if (probabilities.shape[0], *probabilities.shape[2:]) != (images.shape[0], *images.shape[2:]):
        raise ValueError(
            f"probabilities and images must have the same number, height and width, got {tuple(probabilities.shape)} "
            f"and {tuple(images.shape)}: resize one of them"
        )
    if probabilities.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"probabilities must be float32 or float64, got {probabilities.dtype}: call .float()")
    if probabilities.device != images.device:
        raise ValueError(
            f"probabilities and images must be on one device, got {probabilities.device} and {images.device}"
        )
    if images.dtype == torch.bool or images.is_complex():
        raise ValueError(f"images must hold integers or floats in 0..255, got {images.dtype}")


def check_values(probabilities: Tensor, images: Tensor) -> None:
    """The part of `check_inputs` that reads every pixel, once."""
    _check_distribution(probabilities.detach())
    _check_grey_levels(images.detach())


def _check_distribution(probabilities: Tensor) -> None:
    low, sums = float(probabilities.min()), [float(v) for v in torch.aminmax(probabilities.sum(1))]
    if not math.isfinite(low) or not all(math.isfinite(v) for v in sums):
        raise NonFiniteError("probabilities hold NaN or infinity, so the network's logits do: look for them there")
    if low < 0 or sums[0] < 1 - 1e-3 or sums[1] > 1 + 1e-3:
        raise ValueError(
            f"probabilities must be at least 0 and sum to 1 over the classes, got a minimum of {low:.4g} and sums from "
            f"{sums[0]:.4g} to {sums[1]:.4g}: pass logits.softmax(1)"
        )


def check_marginals(marginals: Tensor) -> Tensor:
    """The marginals (N, C, H, W) that a mean field found; NonFiniteError unless they sum to 1 over the classes.

    Weights near the largest number overflow in the messages. Then one engine leaves NaN, another finite nonsense.
    """
    sums = torch.stack(torch.aminmax(marginals.detach().sum(1)))
    if not bool(((sums - 1).abs() < 1e-3).all()):  # NaN fails too
        raise NonFiniteError(
            f"the marginals sum to {sums[0]:.4g} to {sums[1]:.4g} over the classes in place of 1, as the messages "
            f"overflow {marginals.dtype}: lower w_appearance, w_smoothness or compatibility, or normalise the kernels"
        )
    return marginals


def _check_grey_levels(images: Tensor) -> None:
    low, high = (float(v) for v in torch.aminmax(images))
    if not (low >= 0 and high <= 255):  # NaN fails too
        raise ValueError(f"images must be finite and in 0..255, got {low:.4g} to {high:.4g}: undo their normalisation")
    if high <= 1 and images.is_floating_point() and bool((images != images.round()).any()):
        raise ValueError(
            f"images must be in 0..255, and these, {low:.4g} to {high:.4g}, look scaled to [0, 1]: multiply by 255"
        )


def check_parameters(
    num_classes: int,
    *,
    w_appearance: float | Tensor,
    theta_alpha: float | Tensor,
    theta_beta: float | Tensor,
    w_smoothness: float | Tensor,
    theta_gamma: float | Tensor,
    iterations: int,
    compatibility: Tensor | None,
    normalization: str,
) -> None:
    """ValueError unless each parameter of the mean field has a meaning for `num_classes` classes."""
    check_positive(theta_alpha=theta_alpha, theta_beta=theta_beta, theta_gamma=theta_gamma)
    check_choice("normalization", normalization, NORMALIZATIONS)
    check_iterations("iterations", iterations)
    for name, weight in (("w_appearance", w_appearance), ("w_smoothness", w_smoothness)):
        shape = tuple(weight.shape) if isinstance(weight, Tensor) else ()
        if shape not in ((), (num_classes,)):
            raise ValueError(f"{name} must be one number, or one for each of {num_classes} classes, got shape {shape}")
        check_finite(name, weight)
    if compatibility is not None:
        if tuple(compatibility.shape) != (num_classes, num_classes):
            raise ValueError(
                f"compatibility must be a ({num_classes}, {num_classes}) matrix, the cost of a class (row) beside "
                f"another (column), or None for Potts, got shape {tuple(compatibility.shape)}"
            )
        check_finite("compatibility", compatibility)


def check_positive(**values: float | Tensor) -> None:
    """ValueError naming the first of the values that is not more than 1e-12, so that squares count, and finite."""
    for name, value in values.items():
        number = float(value.detach() if isinstance(value, Tensor) else value)
        if not 1e-12 < number < math.inf:
            raise ValueError(f"{name} must be more than 0 (1e-12) and finite, got {number}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """ValueError unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_iterations(name: str, value: int) -> None:
    """ValueError unless the value is a whole number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} must be a whole number of at least 0, got {value!r}")


def check_finite(name: str, value: float | Tensor) -> None:
    """ValueError unless the number, or each of them, is finite in float32, which the engines compute in."""
    if isinstance(value, Tensor):
        finite = value.is_meta or bool(value.float().isfinite().all())
    else:
        finite = abs(value) <= torch.finfo(torch.float32).max  # NaN fails too
    if not finite:
        raise ValueError(f"{name} must be finite in float32, got {value}")


def tracing() -> bool:
    """Whether torch.jit.trace runs: it records functions of torch alone, and where C++ writes, memory as it was found."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined,no-untyped-call]


def check_memory(needed_bytes: int, device: torch.device, what: str) -> None:
    """ValueError if `what` needs more bytes than the device has free; says nothing where that cannot be known."""
    free = free_bytes(device)
    if free is not None and needed_bytes > free:
        raise ValueError(
            f"{what} needs about {needed_bytes / 2**30:,.1f} GiB on {device}, which has {free / 2**30:,.1f} GiB free: "
            "use fewer classes or a smaller image"
        )


def free_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):  # macOS tells what there is, not what is free
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None
