"""DeconvNet, Noh, Hong, Han 2015, https://arxiv.org/abs/1505.04366

The network of Fig. 2, 251,805,653 parameters with 21 classes, as the authors' stage_2_train.prototxt spells it out,
https://github.com/HyeonwooNoh/DeconvNet.

Departs from the paper:
- it sees whole images of any size, in one stage. The paper crops boxes around objects and object proposals to 224 x
  224, in two stages, and joins their scores with FCN's and a CRF (Sec. 4 and 5);
- where 224 pixels make one window of 7x7 for fc6, larger images make several, which overlap and add up;
- a map smaller than the window gets zeros around it, and loses them after the layer that mirrors fc6.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.base import SegmentationModule
from lightning_modules.components.blocks import at_least_one, crop, norm_of_one
from lightning_modules.components.encoders import build_encoder
from lightning_modules.components.encoders.vgg import load_fully_connected_
from lightning_modules.components.encoders.weights import ignored_normalisation
from lightning_modules.components.schedules import caffe_groups
from lightning_modules.components.upsampling import unpool
from lightning_modules.recipe import Recipe

WINDOW = 7  # of fc6, in pixels of pool5: 224 / 32


def deconv(in_channels: int, out_channels: int) -> nn.Sequential:
    """(N, in_channels, H, W) -> (N, out_channels, H, W): transposed convolution, batch norm, ReLU (Sec. 3.2.2)."""
    up = nn.ConvTranspose2d(in_channels, out_channels, kernel_size=3, padding=1)
    return nn.Sequential(up, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


class DeconvNet(nn.Module):
    """(N, in_channels, H, W) -> (N, num_classes, H, W), any H and W.

    Args:
        width: maps at full resolution, of which the other maps of encoder and decoder are multiples
        fc_width: channels of fc6 and fc7; 4096 for the weights of a whole VGG16
        weights: of VGG16 with batch norm: null, "imagenet" (downloaded), a file or a folder with one; of the whole
            classifier, fc6 and fc7 get theirs too
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        width: int = 64,
        fc_width: int = 4096,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        at_least_one(width=width, fc_width=fc_width)
        self.encoder = build_encoder("vgg16", in_channels, weights=weights, width=width / 64, norm="batch")
        *widths, deepest = self.encoder.out_channels  # 64, 128, 256, 512, 512; 512
        self.fc6, self.bn6 = nn.Conv2d(deepest, fc_width, WINDOW), nn.BatchNorm2d(fc_width)
        self.fc7, self.bn7 = nn.Conv2d(fc_width, fc_width, 1), nn.BatchNorm2d(fc_width)
        self.fc6_deconv = nn.Sequential(
            nn.ConvTranspose2d(fc_width, deepest, WINDOW), nn.BatchNorm2d(deepest), nn.ReLU(inplace=True)
        )
        self.decoder = nn.ModuleList()
        for level, convs in ((4, 3), (3, 3), (2, 3), (1, 2), (0, 2)):  # the encoder mirrored
            channels = [widths[level]] * convs + [widths[max(level - 1, 0)]]
            self.decoder.append(nn.Sequential(*(deconv(i, o) for i, o in pairwise(channels))))
        self.score = nn.Conv2d(widths[0], num_classes, kernel_size=1)
        for module in (self.fc6, self.fc7, *self.fc6_deconv.modules(), *self.decoder.modules(), self.score):
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, std=0.01)  # Sec. 6.1: zero-mean Gaussians
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        load_fully_connected_(weights, self.encoder.pretrained, self.fc6, self.fc7)

    def forward(self, x: Tensor) -> Tensor:
        indices: list[Tensor] = []  # of the maxima of each pooling
        *maps, x = self.encoder(x, indices)  # the last one is pool5
        height, width = x.shape[-2:]
        x = F.pad(x, (0, max(WINDOW - width, 0), 0, max(WINDOW - height, 0)))
        x = F.relu(norm_of_one(self.bn6, self.fc6(x)))  # H - 6, W - 6
        x = F.relu(norm_of_one(self.bn7, self.fc7(x)))
        x = crop(self.fc6_deconv(x), height, width)
        for decode, map_ in zip(self.decoder, reversed(maps), strict=True):
            x = decode(unpool(x, indices.pop(), map_.shape[-2:]))  # stride halves
        logits: Tensor = self.score(x)
        return logits


class DeconvNetModule(SegmentationModule):
    """Trains `DeconvNet` by the authors' solvers: SGD at 0.01 in steps, a bias at twice that and without decay.

    The rate falls to a tenth after each third of the steps; theirs does after 9,000 of 20,000 and after each 10,000 of
    40,000. The published batch is 64 images.
    """

    network: DeconvNet
    recipe = Recipe(weight_decay=5e-4, schedule="step")

    @classmethod
    def corrections(cls, hparams: Mapping[str, Any]) -> dict[str, str]:
        return ignored_normalisation(hparams)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return caffe_groups(self.network, self.hparams["lr"], self.hparams["weight_decay"])
