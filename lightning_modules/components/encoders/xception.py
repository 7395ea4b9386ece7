"""Aligned Xception, Chen, Zhu, Papandreou, Schroff, Adam 2018, https://arxiv.org/abs/1802.02611, Sec. 3.2 and Fig. 4.

Xception (Chollet 2017, arXiv:1610.02357) with a deeper middle flow and strided separable convolutions for max pooling.
The skip of a block carries its raw input: no ReLU works in place on it. 37,867,312 parameters without a classifier.

Departs from the paper where the text and the authors' published model differ, and follows the model, whose weights
exist:
- a batch norm follows every convolution;
- a ReLU stands behind each depthwise convolution only in the last block of the exit flow. In all others it stands in
  front of each separable convolution, as in Chollet's.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.components.blocks import conv_norm_relu, he_, separable_conv, set_batch_norms
from lightning_modules.components.encoders.base import Encoder, scaled

Layout = tuple[tuple[tuple[int, int, int], int], ...]  # of each block: channels of its three convolutions, stride
MIDDLE_AND_EXIT: Layout = (*(((728, 728, 728), 1),) * 16, ((728, 1024, 1024), 2))


class Block(nn.Module):
    """(N, in_channels, H, W) -> (N, widths[-1], H / stride, W / stride).

    Three separable convolutions, the last with the stride, each behind a ReLU; beside them a skip, which is the raw
    input or, where `project`, a 1x1 convolution of it.
    """

    def __init__(
        self, in_channels: int, widths: Sequence[int], *, stride: int = 1, rate: int = 1, project: bool = False
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            separable_conv(below, out, stride=s, rate=rate, relu=False)
            for below, out, s in zip([in_channels, *widths], widths, (1, 1, stride), strict=False)
        )
        self.shortcut = nn.Sequential()
        if project:
            self.shortcut.append(nn.Conv2d(in_channels, widths[-1], 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(widths[-1]))

    def forward(self, x: Tensor) -> Tensor:
        inner = x
        for conv in self.convs:
            inner = conv(F.relu(inner))  # not in place: x is also the skip
        return inner + self.shortcut(x)


class Xception(Encoder):
    """Maps: the image; what each strided block is given, at strides 2 to 16; the end of the exit flow.

    DeepLab v3+ takes its low-level features from map 2: 128 channels in Xception-65, 256 in Xception-71. Where a block
    gives up its stride for the sake of `output_stride`, those after it double their rate.
    """

    entry: ClassVar[Layout]

    def __init__(self, in_channels: int = 3, *, depth: int = 5, output_stride: int = 32, width: float = 1.0) -> None:
        super().__init__()
        self.depth, self.output_stride = depth, min(output_stride, 2**depth)
        first, below = scaled(32, width), scaled(64, width)
        self.stem = nn.Sequential(conv_norm_relu(in_channels, first, stride=2), conv_norm_relu(first, below))
        self.blocks = nn.ModuleList()
        self.taps = []  # indices of the strided blocks, whose input is a map
        out_channels, current, rate = [in_channels], 2, 1
        for index, (channels, stride) in enumerate((*self.entry, *MIDDLE_AND_EXIT)):
            if stride == 2 and len(out_channels) == depth:
                break
            if stride == 2:
                self.taps.append(index)
                out_channels.append(below)
            widths = [scaled(c, width) for c in channels]
            kept = stride if current * stride <= output_stride else 1
            project = stride == 2 or below != widths[-1]
            self.blocks.append(Block(below, widths, stride=kept, rate=rate, project=project))
            below, current, rate = widths[-1], current * kept, rate * stride // kept
        self.exit = nn.Sequential()
        if depth == 5:
            for wide in (scaled(c, width) for c in (1536, 1536, 2048)):
                self.exit.append(separable_conv(below, wide, rate=rate))
                below = wide
        self.out_channels = (*out_channels, below)
        he_(self)
        set_batch_norms(self, eps=1e-3)  # the authors' published model

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [x]
        x = self.through(self.stem, x)  # stride 2
        for index, block in enumerate(self.blocks):
            if index in self.taps:
                maps.append(x)
            x = self.through(block, x)  # stride doubles in the blocks of `taps`
        return [*maps, self.through(self.exit, x)]


def _renames(last: int) -> tuple[tuple[str, str], ...]:
    """From timm's names to ours; `last` is timm's number of the block without a skip."""
    return (
        (r"^stem\.(\d)\.conv\.", r"stem.\1.0."),
        (r"^stem\.(\d)\.bn\.", r"stem.\1.1."),
        (r"\.shortcut\.conv\.", ".shortcut.0."),
        (r"\.shortcut\.bn\.", ".shortcut.1."),
        *((rf"^blocks\.{last}\.stack\.conv{i + 1}\.", f"exit.{i}.") for i in range(3)),
        *((rf"\.stack\.conv{i + 1}\.", f".convs.{i}.") for i in range(3)),
        (r"\.conv_dw\.", ".depthwise."),
        (r"\.bn_dw\.", ".depthwise_norm."),
        (r"\.conv_pw\.", ".pointwise."),
        (r"\.bn_pw\.", ".pointwise_norm."),
    )


class Xception65(Xception):
    pretrained, renames = "xception65.tf_in1k", _renames(20)
    entry = (((128,) * 3, 2), ((256,) * 3, 2), ((728,) * 3, 2))


class Xception71(Xception):
    pretrained, renames = "xception71.tf_in1k", _renames(22)
    entry = (((128,) * 3, 2), ((256,) * 3, 1), ((256,) * 3, 2), ((728,) * 3, 1), ((728,) * 3, 2))
