"""DeepLab v2, Chen, Papandreou, Kokkinos, Murphy, Yuille 2018, https://arxiv.org/abs/1606.00915

Atrous spatial pyramid pooling on an encoder at output stride 8: 44,048,532 parameters on ResNet-101 and 37,877,652 on
VGG16 with 21 classes. Any other encoder takes their place.

Departs from the paper:
- the loss compares the logits, resized, with the mask at full resolution (Sec. 4: with a mask at an eighth of it);
- fc6 and fc7 start from random weights, not from those of a classifier (Sec. 4.1.1);
- the scales are fused at output stride 8, where Sec. 3.2 resizes them to the image first.

Decided here: maps are resized with align_corners=False, and the batch norms of ResNet-101 are trained. The sides of a
scaled image are rounded, where reimplementations take the floor: 0.75 of 65 pixels are 49, not 48.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.base import SegmentationModule
from lightning_modules.components.blocks import at_least_one, he_, resize, small_, whole_numbers
from lightning_modules.components.encoders import build_encoder
from lightning_modules.components.encoders.vgg import fully_connected
from lightning_modules.components.schedules import caffe_groups
from lightning_modules.recipe import Recipe

SCALES = (1.0, 0.75, 0.5)  # of the image, Sec. 4.1.2; 1 first, as hooks and receptive fields see the first call


def scaled(side: int, scale: float) -> int:
    """`scale` of `side` pixels, at least 1, as `round` has it: half a pixel goes to the even side.

    In whole numbers, because a traced or exported network has symbols for its sides, which `round` refuses.
    """
    quarters = int(4 * scale) * side
    return max(1, (quarters + 1 + quarters // 4 % 2) // 4)


class DeepLabV2(nn.Module):
    """(N, in_channels, H, W) -> (N, num_classes, H, W), resized from output stride 8 (Sec. 3.1).

    Atrous spatial pyramid pooling (Sec. 3.2): the sum of the logits of several branches. A branch is fc6, fc7 and fc8,
    as Fig. 7 draws it for VGG16; or one 3x3 convolution to the classes, as on ResNet-101. LargeFOV has rate 12 alone
    (Table 3).

    Args:
        encoder: "resnet101" or "vgg16" as in the paper, another native one, or one of smp ("mobilenet_v2") or timm
            ("tu-convnext_atto")
        weights: weights of the encoder: null, "imagenet" (downloaded), "package" (of pip), a file or a folder with one
        rates: atrous rate of each branch: 6, 12, 18, 24 of ASPP-L, or 2, 4, 8, 12 of ASPP-S
        multi_scale: the image goes through the network at scales 1, 0.75 and 0.5, and at each position the largest
            logit of each class counts (Sec. 4.1.2), at 1.8 times the cost in training and testing
        dropout: share of values dropped behind fc6 and fc7
        fc_width: channels of fc6 and fc7, 0 for branches of one convolution; null: 1024 on VGG16, 0 on any other
            encoder
        encoder_width: factor of the channels of a native encoder
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        encoder: str = "resnet101",
        weights: str | None = None,
        rates: Sequence[int] = (6, 12, 18, 24),
        multi_scale: bool = True,
        dropout: float = 0.5,
        fc_width: int | None = None,
        encoder_width: float = 1.0,
    ) -> None:
        super().__init__()
        if not whole_numbers(rates) or not rates:
            raise ValueError(
                f"rates must be a list of whole numbers of at least 1, one a branch, such as [6, 12, 18], got {rates!r}"
            )
        if fc_width is None:
            fc_width = 1024 if encoder == "vgg16" else 0
        if fc_width:
            at_least_one(fc_width=fc_width)
        self.scales = SCALES if multi_scale else (1.0,)
        self.encoder = build_encoder(encoder, in_channels, output_stride=8, weights=weights, width=encoder_width)
        below = self.encoder.out_channels[-1]
        self.branches, self.fc8 = nn.ModuleList(), nn.ModuleList()
        for rate in rates:
            if fc_width:
                self.branches.append(fully_connected(below, fc_width, 3, rate, dropout))
                self.fc8.append(small_(nn.Conv2d(fc_width, num_classes, kernel_size=1)))
            else:
                self.branches.append(nn.Identity())
                self.fc8.append(small_(nn.Conv2d(below, num_classes, kernel_size=3, padding=rate, dilation=rate)))
        he_(self.branches)

    def logits(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, num_classes, H / 8, W / 8), the largest over the scales."""
        return self.with_scales(x)[0]

    def with_scales(self, x: Tensor) -> list[Tensor]:
        """The fused logits at stride 8 of the image; of several scales then those of each at its own, 1, 0.75, 0.5."""
        height, width = x.shape[-2:]
        each = [self._one_scale(resize(x, (scaled(height, scale), scaled(width, scale)))) for scale in self.scales]
        if len(each) == 1:
            return each
        fused = torch.stack([resize(logits, each[0].shape[-2:]) for logits in each]).amax(0)
        return [fused, *each]

    def _one_scale(self, x: Tensor) -> Tensor:
        top = self.encoder(x)[-1]
        return torch.stack([fc8(branch(top)) for branch, fc8 in zip(self.branches, self.fc8, strict=True)]).sum(0)

    def forward(self, x: Tensor) -> Tensor:
        return resize(self.logits(x), x.shape[-2:])


class DeepLabV2Module(SegmentationModule):
    """Trains `DeepLabV2` by the paper's recipe, Sec. 4.1: the last layer at ten times the rate; 20,000 batches of 10.

    The rate, 2.5e-4, is what reimplementations on ResNet-101 take; VGG16 takes lr=1e-3 (Sec. 4.1.1). With several
    scales the loss adds up that of the fused logits and that of each scale, as reimplementations do. `refine` is for
    the CRF of Sec. 3.3.
    """

    network: DeepLabV2
    entrances = ("with_scales",)
    recipe = Recipe(lr=2.5e-4, weight_decay=5e-4)

    def loss(self, images: Tensor, masks: Tensor) -> Tensor:
        scales = self.network.with_scales(self.normalise(images))
        weights, ignored = self.class_weights, self.ignore_index
        losses = [self.loss_function(resize(logits, masks.shape[-2:]), masks, ignored, weights) for logits in scales]
        return torch.stack(losses).sum()

    def parameter_groups(self) -> list[dict[str, Any]]:
        return caffe_groups(self.network, self.hparams["lr"], self.hparams["weight_decay"], factors={"fc8": 10})
