"""DeepLab v3+, Chen, Zhu, Papandreou, Schroff, Adam 2018, https://arxiv.org/abs/1802.02611

The network of Fig. 2 on the aligned Xception-65 with atrous separable convolutions in ASPP and decoder: 41,049,269
parameters with 21 classes; 45,688,261 on ResNet-101.

Departs from the authors' TensorFlow code:
- maps are resized with align_corners=False, theirs with True;
- the low-level features of Xception, of which the paper gives only the stride, 4, are the 128 channels of its first
  block. The code takes 256 channels inside the second block, before its stride: 6,144 parameters more;
- all weights decay, by 4e-5. The code regularises neither the 68 depthwise convolutions nor the 146 batch norms.
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from lightning_modules.base import SegmentationModule
from lightning_modules.components.blocks import (
    at_least_one,
    conv_norm_relu,
    freeze_batch_norms,
    resize,
    separable_conv,
    set_batch_norm_decay,
)
from lightning_modules.components.checkpoints import start_from
from lightning_modules.components.encoders import build_encoder
from lightning_modules.components.pyramid import ASPP, atrous_rates
from lightning_modules.recipe import Recipe


class DeepLabV3Plus(nn.Module):
    """(N, in_channels, H, W) -> (N, num_classes, H, W).

    Args:
        encoder: "xception65" or "resnet101" as in the paper, another native one, or one of smp ("mobilenet_v2") or timm
            ("tu-convnext_atto")
        encoder_width: factor of the channels of a native encoder
        weights: weights of the encoder: null, "imagenet" (downloaded), "package" (of pip), a file or a folder with one
        output_stride: stride of the encoder's last map: 8, 16 or 32
        separable: the 3x3 convolutions of ASPP and decoder are split into a depthwise and a pointwise one (Sec. 3.1)
        decoder: without it the output of ASPP is classified and resized straight to the image, as in DeepLab v3
        rates: atrous rates of ASPP; null: 6, 12, 18 at output stride 16, more at 8
        image_pooling: ASPP also sees the mean of the whole map
        decoder_width: channels of ASPP and decoder
        low_level_width: channels of the encoder's map at stride 4 that the decoder sees (Table 1)
        dropout: share of values dropped behind ASPP
        batch_norm_decay: share of the running statistics that a step keeps. 0.9997 wants tens of thousands of steps, or
            pretrained statistics: after 1,000 steps 74 % are still the initial ones
        freeze_batch_norm: batch norms stay as they are, for the second half of the recipe, at output stride 8
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        encoder: str = "xception65",
        encoder_width: float = 1.0,
        weights: str | None = None,
        output_stride: int = 16,
        separable: bool = True,
        decoder: bool = True,
        rates: Sequence[int] | None = None,
        image_pooling: bool = True,
        decoder_width: int = 256,
        low_level_width: int = 48,
        dropout: float = 0.1,
        batch_norm_decay: float = 0.9997,
        freeze_batch_norm: bool = False,
    ) -> None:
        super().__init__()
        at_least_one(decoder_width=decoder_width, low_level_width=low_level_width)
        self.encoder = build_encoder(
            encoder, in_channels, output_stride=output_stride, weights=weights, width=encoder_width
        )
        channels, wide = self.encoder.out_channels, decoder_width
        self.aspp = ASPP(
            channels[-1],
            wide,
            atrous_rates(output_stride) if rates is None else rates,
            image_pooling=image_pooling,
            separable=separable,
            dropout=dropout,
        )
        self.low_level, self.decoder = None, None
        if decoder:
            conv = separable_conv if separable else conv_norm_relu
            self.low_level = conv_norm_relu(channels[2], low_level_width, kernel_size=1)
            self.decoder = nn.Sequential(conv(low_level_width + wide, wide), conv(wide, wide))  # Table 2
        self.head = nn.Conv2d(wide, num_classes, kernel_size=1)
        set_batch_norm_decay(self, batch_norm_decay)
        self.freeze_batch_norm = freeze_batch_norm
        self.train()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.freeze_batch_norm:
            freeze_batch_norms(self)
        return self

    def logits(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, num_classes, H / 4, W / 4), or at the output stride without a decoder."""
        features = self.encoder(x)
        x = self.aspp(features[-1])
        if self.low_level is not None and self.decoder is not None:
            low_level = self.low_level(features[2])
            x = self.decoder(torch.cat([low_level, resize(x, low_level.shape[-2:])], dim=1))  # channels add up
        logits: Tensor = self.head(x)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return resize(self.logits(x), x.shape[-2:])


class DeepLabV3PlusModule(SegmentationModule):
    """Trains `DeepLabV3Plus` by the recipe of DeepLab v3 (Sec. 4, see deeplabv3.py): poly schedule from 0.007.

    Weight decay 4e-5 is what the authors' code gives for Xception (`deeplab/train.py`), and 1e-4 for ResNets; the paper
    states none.

    Args:
        init_from: checkpoint of the same network at any output stride, such as that of the first half of the recipe
    """

    network: DeepLabV3Plus
    recipe = Recipe(lr=0.007, weight_decay=4e-5)

    def __init__(self, num_classes: int, ignore_index: int, *, init_from: str | None = None, **settings: Any) -> None:
        super().__init__(num_classes, ignore_index, **settings)
        if init_from is not None:
            start_from(self, init_from)
