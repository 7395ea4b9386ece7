"""Blocks, padding and initialisation that more than one paper is built of."""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.components.choices import one_of
from lightning_modules.components.tracing import tracing

Drawn = TypeVar("Drawn", bound=nn.Module)
NormName = Literal["none", "batch", "group"]
NORMS: dict[NormName, Callable[[int], nn.Module]] = {
    "none": lambda channels: nn.Identity(),
    "batch": nn.BatchNorm2d,
    "group": lambda channels: nn.GroupNorm(next(g for g in (32, 16, 8, 4, 2, 1) if channels % g == 0), channels),
}


def conv_norm_relu(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 3,
    *,
    stride: int = 1,
    rate: int = 1,
    padding: int | None = None,
    norm: NormName = "batch",
) -> nn.Sequential:
    """(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)): convolution, norm, ReLU.

    `rate` is that of an atrous convolution. `padding` defaults to what keeps H and W at stride 1, for an odd
    kernel_size; 0 makes the convolution valid. A bias only where no norm follows that would take it away again.
    """
    one_of("norm", norm, NORMS)
    padding = rate * (kernel_size // 2) if padding is None else padding
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, rate, bias=norm == "none"),
        NORMS[norm](out_channels),
        nn.ReLU(inplace=True),
    )


def separable_conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 3,
    *,
    stride: int = 1,
    rate: int = 1,
    norm: NormName = "batch",
    relu: bool = True,
) -> nn.Sequential:
    """(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)): depthwise, then pointwise.

    A kernel_size x kernel_size convolution of each channel by itself, then a 1x1 convolution across the channels: a
    share 1 / out_channels + 1 / kernel_size^2 of the weights and multiply-adds of the full convolution. A norm follows
    each of the two and then, with `relu`, a ReLU (MobileNet, Fig. 3); Xception's blocks have their ReLU in front.
    """
    one_of("norm", norm, NORMS)
    bias, padding = norm == "none", rate * (kernel_size // 2)
    layers: dict[str, nn.Module] = {
        "depthwise": nn.Conv2d(
            in_channels, in_channels, kernel_size, stride, padding, rate, groups=in_channels, bias=bias
        ),
        "depthwise_norm": NORMS[norm](in_channels),
        "depthwise_relu": nn.ReLU(inplace=True),
        "pointwise": nn.Conv2d(in_channels, out_channels, 1, bias=bias),
        "pointwise_norm": NORMS[norm](out_channels),
        "pointwise_relu": nn.ReLU(inplace=True),
    }
    return nn.Sequential(OrderedDict((name, layer) for name, layer in layers.items() if relu or "relu" not in name))


def resize(x: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """(N, C, h, w) -> (N, C, *size), bilinear, with pixel centres aligned rather than corners."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def wide(x: Tensor) -> Tensor:
    """float32, or float64 where `x` is: half precision can hold neither a sum over an image nor a place in one."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def norm_of_one(norm: nn.Module, x: Tensor) -> Tensor:
    """`norm(x)`, by the running statistics where training has a single value a channel, of which there is no variance.

    That is image pooling, (N, C, 1, 1), with a batch of one. A synchronised batch norm sees the other devices' values.
    """
    if type(norm) is nn.BatchNorm2d and norm.training and x.numel() == x.shape[1]:
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
    normed: Tensor = norm(x)
    return normed


def set_batch_norms(module: nn.Module, *, eps: float | None = None, momentum: float | None = None) -> None:
    """Sets eps, momentum or both of every batch norm of `module`; TensorFlow's decay is 1 - momentum."""
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.eps = norm.eps if eps is None else eps
            norm.momentum = norm.momentum if momentum is None else momentum


def set_batch_norm_decay(network: nn.Module, decay: float) -> None:
    """DeepLab v3, Sec. 4.1: at each step the running statistics keep the share `decay` of what they are."""
    if not 0 <= decay < 1:
        raise ValueError(f"batch_norm_decay must be at least 0 and less than 1, got {decay}")
    set_batch_norms(network, momentum=1 - decay)


def freeze_batch_norms(network: nn.Module) -> None:
    """DeepLab v3, Sec. 4.1: statistics, scale and shift stay as they are. `network.train()` thaws the statistics."""
    for norm in network.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.eval().requires_grad_(False)


def he_(module: nn.Module) -> None:
    """Draws every convolution of `module` with standard deviation sqrt(2 / N), where N inputs reach one output.

    Biases become 0. He et al. 2015, https://arxiv.org/abs/1502.01852. A transposed convolution of stride s spreads its
    k x k taps over s x s outputs. A layer with a rule of its own, such as `icnr_`, follows it afterwards.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            taps = layer.in_channels // layer.groups * math.prod(layer.kernel_size)
            reach = taps / math.prod(layer.stride) if isinstance(layer, nn.ConvTranspose2d) else taps
            nn.init.normal_(layer.weight, std=math.sqrt(2 / reach))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def small_(module: Drawn) -> Drawn:
    """Draws every classifier of `module` with standard deviation 0.01 and biases of 0, as the authors of DeepLab v1 do.

    Returns the module.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.normal_(layer.weight, std=0.01)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module


def mirror_pad(x: Tensor, top: int, bottom: int, left: int, right: int) -> Tensor:
    """(N, C, H, W) -> (N, C, top + H + bottom, left + W + right), mirrored at the border pixels.

    Unlike `F.pad(mode="reflect")` it mirrors again where the padding is wider than the image.
    """
    for dim, before, after in ((-2, top, bottom), (-1, left, right)):
        if tracing() or before or after:  # an image of another size may need what this one does not
            position = torch.arange(before + x.shape[dim] + after, device=x.device) - before
            last = torch.full_like(position, x.shape[dim] - 1)  # a tensor, as ONNX has no remainder of a size
            period = (2 * last).clamp(min=1)  # of ... 2 1 0 1 2 ... last ... 2 1 0 ...
            position = position.remainder(period)
            x = x.index_select(dim, torch.minimum(torch.minimum(position, period - position), last))
    return x


def crop(x: Tensor, height: int, width: int, *, top: int = 0, left: int = 0) -> Tensor:
    """(N, C, H, W) -> (N, C, height, width), a view of the map from row `top` and column `left`.

    In a trace its rows and columns are picked. Whether a view lies in one piece depends on the size of the image, and
    torch.export would hold the network to images for which the answer is the same.
    """
    if not tracing():
        return x[..., top : top + height, left : left + width]
    for dim, start, length in ((-2, top, height), (-1, left, width)):
        x = x.index_select(dim, torch.arange(length, device=x.device) + start)
    return x


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """(N, C, H, W) -> the same mirrored below and to the right, until both sides divide by `multiple`."""
    below, right = (round_up(side, multiple) * multiple - side for side in x.shape[-2:])
    return mirror_pad(x, 0, below, 0, right)


def round_up(size: int, by: int) -> int:
    """`size` / `by`, rounded up; not -(-size // by), as ONNX and traces divide towards zero."""
    return (size + by - 1) // by


def at_least_one(**values: int) -> None:
    """Raises ValueError for the first of `values`, such as widths, that is less than 1, by its name."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def whole_numbers(values: object, *, least: int = 1) -> bool:
    """Whether `values` is a sequence of whole numbers, each of them at least `least`; it may be empty."""
    return isinstance(values, Sequence) and all(isinstance(value, int) and value >= least for value in values)
