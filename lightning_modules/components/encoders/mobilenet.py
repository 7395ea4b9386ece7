"""MobileNets, Howard et al. 2017, https://arxiv.org/abs/1704.04861: 1.0 MobileNet-224 of Table 1, and its multipliers.

The encoder has 3,206,976 parameters, 4,231,976 with a classifier of 1000 classes, and then takes 568,740,352
multiply-adds for 224 x 224 pixels. `width` is the width multiplier alpha (Sec. 3.3). The resolution multiplier rho
(Sec. 3.4) is the size of the images: rho = 160 / 224 is an encoder given 160 x 160 pixels.

Departs from Table 1:
- the last depthwise convolution has stride 1. It is printed with stride 2 between two maps of 7 x 7.
Departs from the authors' slim code:
- batch norms have epsilon 1e-5 and momentum 0.1, PyTorch's (theirs: 1e-3, and 0.0003, a decay of 0.9997);
- ReLU takes the place of ReLU6;
- depthwise weights decay as all others (theirs: not).
"""

from torch import Tensor, nn

from lightning_modules.components.blocks import conv_norm_relu, he_, separable_conv
from lightning_modules.components.encoders.base import Encoder, scaled

# Channels and strides of the 13 depthwise separable convolutions, Table 1.
LAYERS = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1),) * 5,
    *((1024, 2), (1024, 1)),
)


class MobileNetV1(Encoder):
    """Maps: the image, and what enters each strided convolution, at strides 2 to 16; the last convolution.

    Where a convolution gives up its stride for the sake of `output_stride`, the depthwise ones after it double their
    rate.
    """

    def __init__(self, in_channels: int = 3, *, depth: int = 5, output_stride: int = 32, width: float = 1.0) -> None:
        super().__init__()
        self.depth, self.output_stride = depth, min(output_stride, 2**depth)
        below, current, rate = scaled(32, width), 2, 1
        stages: list[list[nn.Module]] = [[conv_norm_relu(in_channels, below, stride=2)]]
        self.out_channels = (in_channels,)
        for channels, stride in LAYERS:
            if stride == 2:
                self.out_channels += (below,)
                if len(stages) == depth:
                    break
                stages.append([])
            kept = stride if current * stride <= output_stride else 1
            stages[-1].append(separable_conv(below, scaled(channels, width), stride=kept, rate=rate))
            below, current, rate = scaled(channels, width), current * kept, rate * stride // kept
        else:
            self.out_channels += (below,)
        self.stages = nn.ModuleList(nn.Sequential(*stage) for stage in stages)
        he_(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [x]
        for stage in self.stages:
            maps.append(self.through(stage, maps[-1]))  # stride doubles
        return maps
