"""Double precision on every device: scores are summed in it, and Apple's GPUs have none."""

from torch import Tensor

NO_FLOAT64 = ("mps",)  # kinds of devices that have none


def for_float64(values: Tensor) -> Tensor:
    """The same on a device that has float64: on the CPU instead of Apple's GPUs."""
    return values.cpu() if values.device.type in NO_FLOAT64 else values
