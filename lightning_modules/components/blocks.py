"""Blocks and padding that more than one paper is built of."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda channels: nn.Identity(),
    "batch": nn.BatchNorm2d,
    "group": lambda channels: nn.GroupNorm(next(g for g in (32, 16, 8, 4, 2, 1) if channels % g == 0), channels),
}


def conv_norm_relu(
    in_channels: int, out_channels: int, kernel_size: int = 3, *, padding: int | None = None, norm: str = "batch"
) -> nn.Sequential:
    """(N, in_channels, H, W) -> (N, out_channels, H, W): convolution, normalisation, ReLU; kernel_size is odd.

    `padding` defaults to what keeps H and W; 0 makes the convolution valid. A bias only where no norm follows that
    would take it away again.
    """
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
    padding = kernel_size // 2 if padding is None else padding
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, bias=norm == "none"),
        NORMS[norm](out_channels),
        nn.ReLU(inplace=True),
    )


def mirror_pad(x: Tensor, top: int, bottom: int, left: int, right: int) -> Tensor:
    """(N, C, H, W) -> (N, C, top + H + bottom, left + W + right), mirrored at the border pixels.

    Unlike `F.pad(mode="reflect")` it mirrors again where the padding is wider than the image.
    """
    for dim, before, after in ((-2, top, bottom), (-1, left, right)):
        if before or after:
            size = x.shape[dim]
            period = max(2 * size - 2, 1)  # of ... 2 1 0 1 2 ... size-1 ... 2 1 0 ...
            position = torch.arange(-before, size + after, device=x.device).remainder(period)
            x = x.index_select(dim, torch.minimum(position, period - position).clamp(max=size - 1))
    return x


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """(N, C, H, W) -> the same mirrored below and to the right, until both sides divide by `multiple`."""
    return mirror_pad(x, 0, -x.shape[-2] % multiple, 0, -x.shape[-1] % multiple)
