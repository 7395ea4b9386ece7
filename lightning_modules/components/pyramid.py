"""Context at several scales on top of an encoder: atrous spatial pyramid pooling and pyramid pooling.

ASPP with image pooling: Chen et al. 2017 (DeepLab v3), https://arxiv.org/abs/1706.05587, Sec. 3.3
ASPP of atrous separable convolutions: Chen et al. 2018 (DeepLab v3+), https://arxiv.org/abs/1802.02611, Sec. 3.1
Pyramid pooling: Zhao et al. 2017 (PSPNet), https://arxiv.org/abs/1612.01105, Sec. 3.2

Pooled maps are resized with align_corners=False, where the authors' TensorFlow and Caffe code used True.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_modules.components.blocks import (
    conv_norm_relu,
    norm_of_one,
    resize,
    round_up,
    separable_conv,
    whole_numbers,
)
from lightning_modules.components.choices import one_of

# Of one axis of a map. A mean of means over rectangles of equal rows is their mean, and so for the maximum.
PoolName = Literal["average", "max"]
POOLS: dict[PoolName, Callable[[Tensor, int], Tensor]] = {"average": torch.mean, "max": torch.amax}


def pool_to_bins(x: Tensor, bins: int, pool: PoolName = "average") -> Tensor:
    """(N, C, H, W) -> (N, C, bins, bins): each bin the mean or the maximum of its region, as torch's adaptive pools.

    Not `nn.AdaptiveAvgPool2d` or `nn.AdaptiveMaxPool2d`, whose backward on CUDA raises under deterministic algorithms.
    """
    for dim in (-2, -1):
        size = x.shape[dim]
        # They overlap unless bins divide.
        edges = [(i * size // bins, round_up((i + 1) * size, bins)) for i in range(bins)]
        x = torch.stack([POOLS[pool](x.narrow(dim, low, high - low), dim) for low, high in edges], dim)
    return x


class PooledContext(nn.Module):
    """(N, in_channels, H, W) -> (N, out_channels, H, W): pooled to bins x bins, 1x1 convolved, spread out again.

    Without `out_channels` there is no convolution, and the map keeps its channels.
    """

    def __init__(self, in_channels: int, out_channels: int | None, *, bins: int, pool: PoolName = "average") -> None:
        super().__init__()
        self.bins, self.pool = bins, pool
        self.block = None if out_channels is None else conv_norm_relu(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = pool_to_bins(x, self.bins, self.pool)
        if self.block is not None:
            conv, norm, relu = self.block
            pooled = relu(norm_of_one(norm, conv(pooled)))  # one bin of one image is one value a channel
        return resize(pooled, x.shape[-2:])


def atrous_rates(output_stride: int) -> tuple[int, int, int]:
    """DeepLab v3, Sec. 3.3: rates 6, 12, 18 at output stride 16, doubled at 8; so they reach as far in the image."""
    return 6 * 16 // output_stride, 12 * 16 // output_stride, 18 * 16 // output_stride


class ASPP(nn.Module):
    """(N, in_channels, H, W) -> (N, out_channels, H, W): DeepLab v3, Fig. 5.

    A 1x1 convolution, a 3x3 convolution for each of `rates` and, with `image_pooling`, the mean of the whole map, side
    by side, each with batch normalisation and ReLU. Then comes a 1x1 convolution over all of them. `separable` splits
    the 3x3 convolutions into a depthwise and a pointwise one (ASSPP). A rate as large as the map leaves only the centre
    weight of a 3x3 kernel on the map (Fig. 4): the image pooling takes its place. Dropout 0.1 is from the authors' code
    (`deeplab/model.py`, keep_prob 0.9); the paper does not mention it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        rates: Sequence[int],
        *,
        image_pooling: bool = True,
        separable: bool = False,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if not whole_numbers(rates):
            raise ValueError(f"rates must be a list of whole numbers of at least 1, such as [6, 12, 18], got {rates!r}")
        if not rates and not image_pooling:
            raise ValueError(
                "rates=[] with image_pooling=False leaves no context: give rates such as [6, 12, 18], or image_pooling"
            )
        conv = separable_conv if separable else conv_norm_relu
        self.branches = nn.ModuleList([conv_norm_relu(in_channels, out_channels, kernel_size=1)])
        self.branches.extend(conv(in_channels, out_channels, rate=rate) for rate in rates)
        if image_pooling:
            self.branches.append(PooledContext(in_channels, out_channels, bins=1))
        self.project = conv_norm_relu(len(self.branches) * out_channels, out_channels, kernel_size=1)
        self.dropout = nn.Dropout(dropout)
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([branch(x) for branch in self.branches], dim=1)  # channels add up
        x = self.dropout(self.project(x))
        return x


class PyramidPooling(nn.Module):
    """(N, in_channels, H, W) -> (N, out_channels, H, W): PSPNet, Fig. 3 (c); `out_channels` follows from the rest.

    The map itself beside its means (or maxima) over bins x bins regions, one level for each of `bins`. With `reduce`
    a 1x1 convolution brings the levels down to in_channels / len(bins) each, as many together as the map has; without,
    each level keeps all its channels.
    """

    def __init__(
        self, in_channels: int, *, bins: Sequence[int] = (1, 2, 3, 6), pool: PoolName = "average", reduce: bool = True
    ) -> None:
        super().__init__()
        if not whole_numbers(bins):
            raise ValueError(f"bins must be a list of whole numbers of at least 1, such as [1, 2, 3, 6], got {bins!r}")
        one_of("pool", pool, POOLS)
        width = max(in_channels // len(bins), 1) if reduce and bins else None
        self.levels = nn.ModuleList(PooledContext(in_channels, width, bins=b, pool=pool) for b in bins)
        self.out_channels = in_channels + len(bins) * (width or in_channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, *(level(x) for level in self.levels)], dim=1)
