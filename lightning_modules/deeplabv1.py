"""DeepLab, Chen, Papandreou, Kokkinos, Murphy, Yuille 2015, https://arxiv.org/abs/1412.7062

VGG16 at output stride 8, with fc6 and fc7 as atrous convolutions of a wide field of view: 134,346,581, 65,140,565 or
20,505,429 parameters (7x7, 4x4 and 3x3 kernel of fc6) with 21 classes. Any other encoder takes VGG16's place.

Departs from the paper:
- the loss compares the logits, resized, with the mask at full resolution (Sec. 3.1: with a mask at an eighth of it);
- maps are resized with align_corners=False (the authors' Caffe code: True);
- fc6 and fc7 start from random weights, not from those of a classifier (Sec. 3.2);
- the multi-scale features are trained together with the rest, not after it (Sec. 4.3).

The LargeFOV network that the authors released also averages pool5 over 3x3 before fc6; neither the paper nor this
network does.
"""

from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.base import SegmentationModule
from lightning_modules.components.blocks import at_least_one, he_, resize, small_
from lightning_modules.components.choices import one_of
from lightning_modules.components.encoders import build_encoder
from lightning_modules.components.encoders.vgg import fully_connected
from lightning_modules.components.schedules import caffe_groups
from lightning_modules.recipe import Recipe

# Kernel, rate ("input stride") and filters of fc6, Table 2. From end to end it spans 25 positions, 13 in the second
# row.
FieldOfView = Literal["7x7-rate4", "4x4-rate4", "4x4-rate8", "3x3-rate12"]
FIELDS_OF_VIEW: dict[FieldOfView, tuple[int, int, int]] = {
    "7x7-rate4": (7, 4, 4096),
    "4x4-rate4": (4, 4, 4096),
    "4x4-rate8": (4, 8, 4096),
    "3x3-rate12": (3, 12, 1024),  # LargeFOV
}


class DeepLabV1(nn.Module):
    """(N, in_channels, H, W) -> (N, num_classes, H, W), resized from output stride 8 (Sec. 3.1).

    Args:
        encoder: "vgg16" as in the paper, another native one, or one of smp ("mobilenet_v2") or timm
            ("tu-convnext_atto")
        weights: weights of the encoder: null, "imagenet" (downloaded), "package" (of pip), a file or a folder with one
        field_of_view: kernel and rate of fc6, a row of Table 2
        multi_scale_features: the image and the first four pooled maps go through two convolutions each beside the main
            path; the last layer classifies all together, at full resolution as the authors do in testing (Sec. 4.3)
        dropout: share of values dropped behind fc6 and fc7
        fc_width: channels of fc6 and fc7; null takes those of Table 2
        branch_width: channels of the convolutions of `multi_scale_features`
        encoder_width: factor of the channels of a native encoder
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        encoder: str = "vgg16",
        weights: str | None = None,
        field_of_view: FieldOfView = "3x3-rate12",
        multi_scale_features: bool = False,
        dropout: float = 0.5,
        fc_width: int | None = None,
        branch_width: int = 128,
        encoder_width: float = 1.0,
    ) -> None:
        super().__init__()
        one_of("field_of_view", field_of_view, FIELDS_OF_VIEW)
        kernel_size, rate, filters = FIELDS_OF_VIEW[field_of_view]
        filters = filters if fc_width is None else fc_width
        at_least_one(fc_width=filters, branch_width=branch_width)
        self.encoder = build_encoder(encoder, in_channels, output_stride=8, weights=weights, width=encoder_width)
        below = self.encoder.out_channels
        if multi_scale_features and not all(below[:4]):
            raise ValueError(
                f"multi_scale_features takes maps at strides 1, 2, 4 and 8: encoder={encoder!r} has none at stride "
                f"{2 ** below.index(0)}, pass encoder='vgg16' or a ResNet"
            )
        self.fc = fully_connected(below[-1], filters, kernel_size, rate, dropout)
        self.fc8 = small_(nn.Conv2d(filters, num_classes, kernel_size=1))
        sources = (in_channels, *below[:4]) if multi_scale_features else ()
        self.branches = nn.ModuleList(fully_connected(c, branch_width, 3, 1, dropout) for c in sources)
        self.branch_fc8 = nn.ModuleList(small_(nn.Conv2d(branch_width, num_classes, 1, bias=False)) for _ in sources)
        he_(self.fc)
        he_(self.branches)

    def logits(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, num_classes, H / 8, W / 8), or (.., H, W) with multi-scale features."""
        features = self.encoder(x)
        logits: Tensor = self.fc8(self.fc(features[-1]))
        if not self.branches:
            return logits
        pooled = [F.max_pool2d(f, 3, stride, padding=1) for f, stride in zip(features, (2, 2, 2, 1), strict=False)]
        # To classify the concatenation of the resized maps is to classify each of them, resize and add.
        logits = resize(logits, x.shape[-2:])
        for branch, fc8, source in zip(self.branches, self.branch_fc8, [x, *pooled], strict=True):
            logits = logits + resize(fc8(branch(source)), x.shape[-2:])
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return resize(self.logits(x), x.shape[-2:])


class DeepLabV1Module(SegmentationModule):
    """Trains `DeepLabV1` by the paper's recipe, Sec. 5: the last layer at ten times the rate; 6,000 batches of 20.

    The fully connected CRF that follows the network in the paper (Sec. 4.2) goes to `refine` of the trained module: the
    paper trains the two one after the other.
    """

    network: DeepLabV1
    recipe = Recipe(lr=1e-3, weight_decay=5e-4, schedule="step")

    def parameter_groups(self) -> list[dict[str, Any]]:
        factors = {"fc8": 10, "branch_fc8": 10}
        return caffe_groups(self.network, self.hparams["lr"], self.hparams["weight_decay"], factors=factors)
