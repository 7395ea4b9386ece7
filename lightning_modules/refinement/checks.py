"""What the refinements refuse before they work: a clear error rather than a wrong picture."""

import math

import torch
from torch import Tensor

from lightning_modules.components.errors import NonFiniteError

LARGEST = torch.finfo(torch.float32).max
MAX_CLASSES = 2**14  # a matrix between more takes over a gigabyte
MAX_ITERATIONS = 2**31 - 1  # what a C int holds
WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_shapes(probabilities: Tensor, images: Tensor) -> None:
    """ValueError unless probabilities (N, C, H, W) and images (N, 1 or 3, H, W) fit each other; reads no pixel.

    Probabilities are float32 or float64, the images integers or floats, on the same device.
    """
    for name, values in (("probabilities", probabilities), ("images", images)):
        check_tensor(name, values)
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


def check_classes(probabilities: Tensor, num_classes: int) -> None:
    """ValueError unless probabilities (N, C, H, W) have as many classes as a layer was made for."""
    if probabilities.shape[1] != num_classes:
        raise ValueError(
            f"probabilities must have the {num_classes} classes of this module, got {probabilities.shape[1]}"
        )


def check_values(probabilities: Tensor, images: Tensor) -> None:
    """ValueError unless probabilities are distributions over C, within 1e-3, and images in 0..255; reads all pixels."""
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


def check_positive(**values: float | Tensor) -> None:
    """Raises unless each of the values is one number, more than 1e-12, so that squares count, and finite in float32."""
    for name, value in values.items():
        check_number(name, value)
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError(f"{name} must be one number, got shape {tuple(value.shape)}")
        if not 1e-12 < (value.item() if isinstance(value, Tensor) else value) <= LARGEST:
            raise ValueError(f"{name} must be more than 0 (1e-12) and finite in float32, got {_shown(value)}")


def check_whole(name: str, value: int, least: int, most: int) -> None:
    """ValueError unless the value is a whole number of at least `least` and at most `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{name} must be a whole number of at least {least} and at most {most}, got {_shown(value)}")


def check_tensor(name: str, value: Tensor) -> None:
    """TypeError unless the value is a tensor of real numbers that lie in memory one by one."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}: torch.as_tensor makes one of an array")
    if value.layout != torch.strided or value.is_nested:
        raise TypeError(f"{name} must be a dense tensor, got one of layout {value.layout}: call .to_dense()")
    if value.is_meta:
        raise ValueError(f"{name} must hold numbers, got a tensor on the device meta, which has none")
    if value.dtype not in (*WHOLE, *FLOATS):
        raise ValueError(f"{name} must hold integers or floats, got {value.dtype}")


def check_number(name: str, value: float | Tensor) -> None:
    """Raises unless the value is a number of Python's or a tensor of numbers."""
    if isinstance(value, Tensor):
        check_tensor(name, value)
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number or a tensor, got {_shown(value)}: float() makes one of another kind")


def check_finite(name: str, value: float | Tensor) -> None:
    """Raises unless the value is a number, or a tensor of them, finite in float32, which the engines compute in."""
    check_number(name, value)
    finite = bool(value.detach().float().isfinite().all()) if isinstance(value, Tensor) else abs(value) <= LARGEST
    if not finite:  # as NaN is not
        raise ValueError(f"{name} must be finite in float32, got {_shown(value)}")


def as_float(value: float | Tensor) -> float | Tensor:
    """A tensor as it is, a number as torch takes it: whole ones of more than 64 bits it does not."""
    return value if isinstance(value, Tensor) else float(value)


def _shown(value: object) -> str:
    """The value in at most a line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
