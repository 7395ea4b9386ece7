"""How many taps of a transposed convolution meet in each pixel that it makes: where the numbers differ, a checkerboard.

Odena, Dumoulin, Olah 2016, https://doi.org/10.23915/distill.00003: they are equal exactly where the stride divides the
kernel. Equal numbers do not forbid a checkerboard, as a kernel can learn one; unequal ones begin with it.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pair = tuple[int, int]


@dataclass(frozen=True)
class Overlap:
    """Of all transposed convolutions with the same geometry: their `paths`, and the `taps` (H, W) of small images.

    `inner` are the rows and columns of `taps` that no border reaches: top, bottom, left, right, the ends left out.
    """

    kernel: Pair
    stride: Pair
    padding: Pair
    output_padding: Pair
    dilation: Pair
    taps: Tensor = field(repr=False, compare=False)
    inner: tuple[int, int, int, int]
    paths: list[str] = field(default_factory=list)

    @property
    def away(self) -> Tensor:
        """The taps away from the border: whole periods of them."""
        top, bottom, left, right = self.inner
        return self.taps[top:bottom, left:right]

    @property
    def least(self) -> int:
        return int(self.away.min())

    @property
    def most(self) -> int:
        return int(self.away.max())

    @property
    def even(self) -> bool:
        return self.least == self.most


def overlaps(network: nn.Module) -> list[Overlap]:
    """Of every geometry of the transposed convolutions in `network`, in their order; none for a network without one."""
    found: dict[tuple[Pair, ...], Overlap] = {}
    for path, layer in network.named_modules():
        if isinstance(layer, nn.ConvTranspose2d):
            kernel, stride, dilation = (_pair(value) for value in (layer.kernel_size, layer.stride, layer.dilation))
            padding, more = _pair(layer.padding), _pair(layer.output_padding)
            key = (kernel, stride, padding, more, dilation)
            if key not in found:
                found[key] = Overlap(*key, *_count(*key))
            found[key].paths.append(path)
    return list(found.values())


def _count(
    kernel: Pair, stride: Pair, padding: Pair, more: Pair, dilation: Pair
) -> tuple[Tensor, tuple[int, int, int, int]]:
    """The taps of each pixel, whole numbers, and where no border reaches: three periods of them.

    A kernel of ones makes of an image of ones the number of its taps that meet in a pixel.
    """
    reach = [rate * (taps - 1) + 1 for rate, taps in zip(dilation, kernel, strict=True)]
    beyond = [-(-span // step) for span, step in zip(reach, stride, strict=True)]  # pixels whose taps meet in one
    inputs = [count + 2 for count in beyond]
    taps = F.conv_transpose2d(
        torch.ones(1, 1, *inputs, dtype=torch.float64, device="cpu"),
        torch.ones(1, 1, *kernel, dtype=torch.float64, device="cpu"),
        stride=stride,
        padding=padding,
        output_padding=more,
        dilation=dilation,
    )
    inner: list[int] = []
    for axis, step in enumerate(stride):
        # Pixel q, counted without padding, gets taps of the inputs from (q - reach + 1) / step to q / step.
        first = step * (beyond[axis] - 1) - padding[axis]
        last = step * inputs[axis] - padding[axis]
        inner += [max(first, 0), min(last, taps.shape[2 + axis])]
    return taps[0, 0].round().int(), (inner[0], inner[1], inner[2], inner[3])


def _pair(value: int | str | tuple[int, ...]) -> Pair:
    """Rows and columns; the layers of torch hold a pair, whatever they were given."""
    assert isinstance(value, tuple)
    return value[0], value[1]
