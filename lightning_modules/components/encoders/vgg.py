"""VGG, Simonyan, Zisserman 2014, https://arxiv.org/abs/1409.1556: the 13 convolutions of configuration D, VGG16.

14,714,688 parameters; the names of the weights are torchvision's (`features.0.weight`), so that its files load.

Departs from the paper in nothing at `output_stride=32`, except that pooling rounds odd sizes up, as Caffe does. At 8
and 16 it is the encoder of DeepLab v1 (Chen et al. 2014, Sec. 3.1): 3x3 pools, those beyond the output stride without a
stride, and atrous convolutions after them. There pooling rounds down: 320 pixels become 160, and in Caffe 161; the
published crop of 321 becomes 161 in both. `norm="batch"` puts a batch norm behind each convolution.
"""

from typing import Literal

from torch import Tensor, nn

from lightning_modules.components.blocks import he_
from lightning_modules.components.checks import one_of
from lightning_modules.components.encoders.base import Encoder, scaled

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))  # Table 1, column D
VggNorm = Literal["none", "batch"]
PRETRAINED: dict[VggNorm, str] = {"none": "vgg16.tv_in1k", "batch": "vgg16_bn.tv_in1k"}  # by norm


class VGG16(Encoder):
    """Maps conv1_2, conv2_2, conv3_3, conv4_3, conv5_3 and pool5, each convolution after its ReLU."""

    def __init__(
        self,
        in_channels: int = 3,
        *,
        depth: int = 5,
        output_stride: int = 32,
        width: float = 1.0,
        norm: VggNorm = "none",
    ) -> None:
        super().__init__()
        one_of("norm", norm, PRETRAINED)
        self.pretrained = PRETRAINED[norm]
        self.depth, self.output_stride = depth, min(output_stride, 2**depth)
        self.features = nn.Sequential()
        self.taps: list[int] = []  # positions in `features` of the layers whose output is a map
        self.out_channels = ()
        below, rate = in_channels, 1
        for stage, channels in enumerate(STAGES[: depth + 1]):
            for out in (scaled(c, width) for c in channels):
                self.features.append(nn.Conv2d(below, out, 3, padding=rate, dilation=rate))  # a bias, as published
                if norm == "batch":
                    self.features.append(nn.BatchNorm2d(out))
                self.features.append(nn.ReLU(inplace=True))
                below = out
            self._tap(below)
            if stage < depth:
                stride = 2 if 2 ** (stage + 1) <= output_stride else 1
                rate = rate * 2 // stride
                pool = nn.MaxPool2d(2, 2, ceil_mode=True) if output_stride == 32 else nn.MaxPool2d(3, stride, padding=1)
                self.features.append(pool)
        if depth == 5:
            self._tap(below)
        he_(self)

    def _tap(self, channels: int) -> None:
        self.taps.append(len(self.features) - 1)
        self.out_channels += (channels,)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                maps.append(x)
        return maps
