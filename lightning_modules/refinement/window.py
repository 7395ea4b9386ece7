"""Sums over a window around each pixel, without a tensor of the size of the window times the classes."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 2**19  # numbers of a strip of rows that the CPU sums up at a time: fewer cost calls, more leave its cache

Offsets = tuple[tuple[int, int], ...]  # (dy, dx)


def half_window(window: int, shape: str) -> Offsets:
    """The centre and those offsets below it, or right of it in its row: k(i, i + d) = k(i + d, i), so -d follows."""
    radius = window // 2
    return tuple(
        (dy, dx)
        for dy in range(radius + 1)
        for dx in range(-radius if dy else 0, radius + 1)
        if shape == "square" or dy + abs(dx) <= radius
    )


def offsets_within(window: int, shape: str, size: tuple[int, int]) -> int:
    """How many of the `half_window` join two pixels of an image of this size, without making them."""
    radius, (height, width) = window // 2, size
    count = min(radius, width - 1) + 1
    for dy in range(1, min(radius, height - 1) + 1):
        count += 2 * min(radius if shape == "square" else radius - dy, width - 1) + 1
    return count


def gaussian(offsets: Offsets, theta: Tensor, blur: int) -> Tensor:
    """Logarithm of the smoothness kernel at each offset; a step at 1 / blur of the resolution is blur pixels."""
    distances = torch.tensor([dy**2 + dx**2 for dy, dx in offsets], device=theta.device)
    return -(blur**2) * distances / (2 * theta**2)


def table(kernel: Tensor, offsets: Offsets) -> Tensor:
    """Values at half of the offsets -> (window, window) of all, 0 outside the window's shape."""
    radius = max(dy for dy, _ in offsets)
    side = 2 * radius + 1
    places = [(radius + dy) * side + radius + dx for dy, dx in offsets]
    mirrored = [side * side - 1 - place for place in places]  # of the centre, the centre itself
    index = torch.tensor(places + mirrored[1:], device=kernel.device)
    return kernel.new_zeros(side * side).index_put((index,), torch.cat([kernel, kernel[1:]])).view(side, side)


def depthwise(values: Tensor, kernel: Tensor) -> Tensor:
    """Values (N, C, h, w), the same kernel (window, window) for every pixel -> sum over the window, (N, C, h, w)."""
    channels, side = values.shape[1], len(kernel)
    return F.conv2d(values, kernel.expand(channels, 1, side, side), padding=side // 2, groups=channels)


class _Overlap(NamedTuple):
    """The pixels `here` of a strip of rows whose neighbours at an offset, `there`, are in the image."""

    here: tuple[slice, ...]
    there: tuple[slice, ...]


def _overlap(offset: tuple[int, int], top: int, bottom: int, width: int) -> _Overlap:
    dy, dx = offset
    columns = slice(max(0, -dx), width - max(0, dx))
    shifted = slice(columns.start + dx, columns.stop + dx)
    return _Overlap(
        (slice(None), slice(None), slice(top, bottom), columns),
        (slice(None), slice(None), slice(top + dy, bottom + dy), shifted),
    )


def _strips(values: Tensor) -> list[tuple[int, int]]:
    """Rows (first, last + 1) to work on at a time: small enough for the CPU's cache, all of them elsewhere."""
    number, channels, height, width = values.shape
    rows = max(1, BLOCK // (number * channels * width)) if values.device.type == "cpu" else height
    return [(top, min(top + rows, height)) for top in range(0, height, rows)]


class AppearanceKernel(torch.autograd.Function):
    """Images (N, K, h, w) -> k(i, i + d) for each offset d, (N, offsets, h, w); 0 where i + d is outside the image.

    Gradients flow to the two numbers that the thetas give, and keep the result only: distances are computed again.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, per_pixel: Tensor, per_level: Tensor, offsets: Offsets) -> Tensor:
        number, _, height, width = images.shape
        kernel = images.new_zeros(number, len(offsets), height, width)
        for m, (dy, dx) in enumerate(offsets):
            here, there = _overlap((dy, dx), 0, height - dy, width)
            exponent = (images[here] - images[there]).square_().sum(1).mul_(-per_level)
            torch.exp(exponent.sub_(per_pixel * (dy**2 + dx**2)), out=kernel[:, m, here[2], here[3]])
        ctx.save_for_backward(images, kernel)
        ctx.offsets = offsets
        return kernel

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        images, kernel = ctx.saved_tensors
        to_pixel, to_level = images.new_zeros(2)
        for m, (dy, dx) in enumerate(ctx.offsets):
            here, there = _overlap((dy, dx), 0, images.shape[2] - dy, images.shape[3])
            product = grad[:, m, here[2], here[3]] * kernel[:, m, here[2], here[3]]
            to_pixel -= (dy**2 + dx**2) * product.sum()
            to_level -= ((images[here] - images[there]).square_().sum(1) * product).sum()
        return None, to_pixel, to_level, None


class LocalSum(torch.autograd.Function):
    """Values (N, C, h, w), kernel (N, offsets, h, w) -> sum over the window of k(i, j) v_j, (N, C, h, w).

    Keeps its arguments and nothing of the size of the window times the classes, for the backward pass neither.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, kernel: Tensor, offsets: Offsets) -> Tensor:
        ctx.save_for_backward(values, kernel)
        ctx.offsets = offsets
        return _local_sum(values, kernel, offsets)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, kernel = ctx.saved_tensors
        to_values = _local_sum(grad, kernel, ctx.offsets) if ctx.needs_input_grad[0] else None  # it is symmetric
        if not ctx.needs_input_grad[1]:
            return to_values, None, None
        to_kernel = torch.zeros_like(kernel)
        to_kernel[:, 0] = (grad * values).sum(1)
        height, width = values.shape[2:]
        for top, bottom in _strips(values):
            for m, (dy, dx) in enumerate(ctx.offsets[1:], start=1):
                last = min(bottom, height - dy)
                if top < last:
                    here, there = _overlap((dy, dx), top, last, width)
                    product = (grad[here] * values[there]).addcmul_(grad[there], values[here])
                    to_kernel[:, m, here[2], here[3]] = product.sum(1)
        return to_values, to_kernel, None


def _local_sum(values: Tensor, kernel: Tensor, offsets: Offsets) -> Tensor:
    height, width = values.shape[2:]
    out = values * kernel[:, :1]
    for top, bottom in _strips(values):
        for m, (dy, dx) in enumerate(offsets[1:], start=1):
            k = kernel[:, m : m + 1]
            last = min(bottom, height - dy)
            if top < last:  # to the strip from its neighbours at d
                here, there = _overlap((dy, dx), top, last, width)
                out[here].addcmul_(k[here], values[there])
            first = max(top, dy)
            if first < bottom:  # and from those at -d, by the same kernel
                here, there = _overlap((dy, dx), first - dy, bottom - dy, width)
                out[there].addcmul_(k[here], values[here])
    return out
