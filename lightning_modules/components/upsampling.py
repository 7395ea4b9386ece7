"""2x upsampling with learned weights: the layers that an ablation swaps by name.

Every kind maps (N, in_channels, H, W) to (N, out_channels, 2H, 2W) exactly; kinds differ in where their taps fall.
"Taps" counts the weights, per input channel, that meet in one output pixel away from the border; "overlap" is even when
every output pixel has the same number. Uneven overlap draws a checkerboard before anything is learned; even overlap
with separate weights per output phase (transposed-2, transposed-4) can still learn one.

Odena et al., Deconvolution and Checkerboard Artifacts, Distill 2016, https://doi.org/10.23915/distill.00003
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.components.choices import one_of


def transposed_2(in_channels: int, out_channels: int) -> nn.Module:
    """Transposed convolution, kernel 2, stride 2: the up-convolution of U-Net (Fig. 1).

    1 tap, even: nothing overlaps, and each of the four output phases has weights of its own.
    4 * in_channels * out_channels + out_channels parameters.
    """
    return nn.ConvTranspose2d(in_channels, out_channels, kernel_size=2, stride=2)


def transposed_3(in_channels: int, out_channels: int) -> nn.Module:
    """Transposed convolution, kernel 3, stride 2.

    1, 2 or 4 taps by output phase, uneven because 2 does not divide 3: the checkerboard of Odena et al.
    9 * in_channels * out_channels + out_channels parameters.
    """
    return nn.ConvTranspose2d(in_channels, out_channels, kernel_size=3, stride=2, padding=1, output_padding=1)


def transposed_4(in_channels: int, out_channels: int) -> nn.Module:
    """Transposed convolution, kernel 4, stride 2: the learned upsampling of FCN, `bilinear_kernel` fits it.

    4 taps, even. 16 * in_channels * out_channels + out_channels parameters.
    """
    return nn.ConvTranspose2d(in_channels, out_channels, kernel_size=4, stride=2, padding=1)


def nearest(in_channels: int, out_channels: int) -> nn.Module:
    """Nearest-neighbour resize, then a 3x3 convolution: the advice of Odena et al.

    9 taps over 4 input pixels, even. 9 * in_channels * out_channels + out_channels parameters.
    """
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="nearest-exact"),
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
    )


def bilinear(in_channels: int, out_channels: int) -> nn.Module:
    """Bilinear resize (align_corners=False), then a 3x3 convolution.

    9 taps over 9 input pixels, even. 9 * in_channels * out_channels + out_channels parameters.
    """
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
    )


def subpixel(in_channels: int, out_channels: int) -> nn.Module:
    """3x3 convolution to four maps per channel, interleaved by a pixel shuffle; starts from `icnr_`.

    9 taps, even; like transposed-2, each output phase has weights of its own, but they start equal.
    36 * in_channels * out_channels + 4 * out_channels parameters.

    Shi et al. 2016, https://arxiv.org/abs/1609.05158
    """
    conv = nn.Conv2d(in_channels, 4 * out_channels, kernel_size=3, padding=1)
    icnr_(conv)
    return nn.Sequential(conv, nn.PixelShuffle(2))


@torch.no_grad()
def icnr_(conv: nn.Conv2d) -> None:
    """Gives the four phases of each channel of a sub-pixel convolution the first one's weights, in place.

    The layer then equals a convolution followed by a nearest-neighbour resize. A network that draws its convolutions
    anew (He initialisation, say) calls this afterwards, or loses it. Aitken et al. 2017,
    https://arxiv.org/abs/1707.02937
    """
    for parameter in conv.parameters():
        parameter.copy_(parameter[::4].repeat_interleave(4, dim=0))


def pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """Max-pooling that remembers where its maxima were (SegNet, Fig. 3; DeconvNet, Fig. 3).

    (N, C, H, W) -> maxima of 2x2 windows and their flat positions, both (N, C, ceil(H / 2), ceil(W / 2)).
    """
    maxima, indices = F.max_pool2d(x, 2, ceil_mode=True, return_indices=True)
    return maxima, indices


def unpool(x: Tensor, indices: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, C, h, w) -> (N, C, *size), what was pooled: each value goes where the maximum was, zeros elsewhere."""
    height, width = size
    # not F.max_unpool2d, which raises on CUDA under deterministic algorithms; 2x2 windows never share a pixel
    flat = x.new_zeros(*x.shape[:2], height * width).scatter_(2, indices.flatten(2), x.flatten(2))
    return flat.view(*x.shape[:2], height, width)


class Unpool(nn.Module):
    """3x3 convolution, then each value goes where the encoder's maximum was, zeros elsewhere (SegNet, Fig. 3).

    9 taps at one pixel of every 2x2 block and none at the other three, uneven wherever the image puts the maxima; the
    convolutions that follow make it dense. 9 * in_channels * out_channels + out_channels parameters.

    Takes, besides (N, in_channels, H, W), the indices (N, out_channels, H, W) of
    `F.max_pool2d(encoder_map, 2, return_indices=True)`, so a network asks `isinstance(layer, Unpool)` before the call.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor, indices: Tensor) -> Tensor:
        values = self.conv(x)
        return unpool(values, indices, (2 * values.shape[2], 2 * values.shape[3]))


UpsamplingName = Literal["transposed-2", "transposed-3", "transposed-4", "nearest", "bilinear", "subpixel", "unpool"]
UPSAMPLING: dict[UpsamplingName, Callable[[int, int], nn.Module]] = {
    "transposed-2": transposed_2,
    "transposed-3": transposed_3,
    "transposed-4": transposed_4,
    "nearest": nearest,
    "bilinear": bilinear,
    "subpixel": subpixel,
    "unpool": Unpool,
}


def upsampling(kind: UpsamplingName, in_channels: int, out_channels: int) -> nn.Module:
    """Builds the layer called `kind`, one of `UPSAMPLING`; a ValueError names them all, and the nearest."""
    one_of("upsampling", kind, UPSAMPLING)
    return UPSAMPLING[kind](in_channels, out_channels)


def bilinear_kernel(channels: int, stride: int) -> Tensor:
    """Weights (channels, channels, 2 * stride, 2 * stride) of a transposed convolution that resizes bilinearly.

    With an even stride and padding stride // 2 it equals `F.interpolate(scale_factor=stride, mode="bilinear",
    align_corners=False)` away from the border, where interpolate repeats the edge and a convolution sees zeros.
    FCN (Long et al. 2015, Sec. 3.3) starts its upsampling from it, each channel to itself.
    """
    taps = 1 - (torch.arange(2 * stride) - (stride - 0.5)).abs() / stride  # a triangle around the kernel's centre
    return torch.eye(channels)[:, :, None, None] * torch.outer(taps, taps)
