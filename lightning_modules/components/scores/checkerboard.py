"""Checkerboard energy: what the grid of an upsampling layer leaves in the logits."""

import torch
from torch import Tensor

from lightning_modules.components.float64 import for_float64


def checkerboard_energy(logits: Tensor, period: int = 2) -> Tensor:
    """Share, in [0, 1], of the spectral power of logits (N, C, H, W) that an upsampling grid put there: (N,) float64.

    1. Less their mean over the classes, so that it is blind to what softmax is blind to; cropped to whole periods.
    2. Less each channel's mean and times a Hann window, so that the image's border does not spread over all
       frequencies. P is the power |FFT|^2, summed over the channels.
    3. A pattern that repeats every `period` pixels lives at the grid frequencies g = (i, j) / period other than 0; the
       window spreads each over 3 x 3 bins. S(f) is the sum of P over the 3 x 3 bins around f.
    4. excess(g) = max(0, S(g) - max over d of (S(g - d) + S(g + d)) / 2), with d three bins away along rows, columns
       and both diagonals. The largest of the four, because a straight edge draws a ridge through g: only a peak that
       stands out in every direction is a grid.
    5. Energy: the sum of excess(g) over the grid frequencies, divided by the sum of P.

    Smooth maps and white noise score about 0, a pure checkerboard 1, constant logits 0. NaN for images with a side
    under 9 periods, whose spectrum has no room for step 4.

    The last 2x upsampling of a network leaves a pattern of period 2, the one before it 4, and so on. The default is 2
    because it sees least of the image: label maps with sharp edges score up to 0.0002 there, ten times that at 8.
    """
    height, width = (size // period * period for size in logits.shape[-2:])
    if min(height, width) < 9 * period:
        return for_float64(logits.new_full((len(logits),), torch.nan, dtype=torch.float32)).double()
    x = logits[..., :height, :width].float()
    x = x - x.mean(1, keepdim=True)
    # In the type of x: the default one may be that of a network in half precision.
    down, along = (torch.hann_window(side, dtype=x.dtype, device=x.device) for side in (height, width))
    window = torch.outer(down, along)
    x = x - (x * window).sum((-2, -1), keepdim=True) / window.sum()  # weighted, so that the window leaves no mean
    # (N, H, W // 2 + 1): logits are real, so the other half of the columns is this one turned about frequency 0.
    power = for_float64(torch.fft.rfft2(x * window).abs().square()).sum(1, dtype=torch.float64)
    total = 2 * power.sum((-2, -1)) - power[..., 0].sum(-1)  # the columns that are their own other half count once
    if width % 2 == 0:
        total = total - power[..., -1].sum(-1)

    rows, columns = (_grid_bins(size, period, power.device) for size in (height, width))
    turned = columns > width // 2
    rows = torch.where(turned, -rows[:, None] % height, rows[:, None])  # (9 * period, 9 * period)
    around = power[:, rows, torch.where(turned, width - columns, columns)]  # 9 x 9 bins around each grid frequency
    sums = around.view(-1, period, 3, 3, period, 3, 3).sum((3, 6)).transpose(2, 3)  # (N, period, period, 3, 3)
    sums = sums.flatten(1, 2)[:, 1:].flatten(-2)  # (N, period^2 - 1, 9): the first frequency is 0
    pairs = (sums + sums.flip(-1)) / 2  # the fifth is S(g), the first four are its directions
    excess = (pairs[..., 4] - pairs[..., :4].amax(-1)).clamp(min=0).sum(-1)
    tiny = torch.finfo(torch.float64).tiny
    return (excess / total.clamp(min=tiny)).clamp(max=1)


def _grid_bins(size: int, period: int, device: torch.device) -> Tensor:
    """Indices (9 * period,) of the nine FFT bins around each multiple of 1 / period."""
    near = torch.arange(-4, 5, device=device)
    return (torch.arange(period, device=device)[:, None] * (size // period) + near).flatten() % size
