"""What a decoder may count on, whichever encoder it is given."""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.components.recomputing import Recomputing


class Encoder(Recomputing):
    """(N, in_channels, H, W) -> `depth` + 1 maps, map i at stride min(2 ** i, output_stride).

    Map i has `out_channels[i]` channels and ceil(H / stride) rows; `output_stride` is the stride of the last one.
    `mean` and `std` are what images in [0, 1] are normalised by for the weights that were loaded, None where none are
    known. Its stages are run by `through`.
    """

    pretrained: str | None = None  # the weights of timm that weights="imagenet" of a native encoder stands for
    renames: ClassVar[tuple[tuple[str, str], ...]] = ()  # regular expressions from timm's names to its own

    out_channels: tuple[int, ...]
    output_stride: int
    depth: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def forward(self, x: Tensor) -> list[Tensor]:
        raise NotImplementedError


class Classifier(nn.Module):
    """(N, in_channels, H, W) -> logits (N, num_classes): the last map averaged over all pixels, then a linear layer."""

    def __init__(self, encoder: Encoder, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.fc = nn.Linear(encoder.out_channels[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(self.encoder(x)[-1], 1).flatten(1))
        return logits


def scaled(channels: int, width: float) -> int:
    """`channels` times a width multiplier, at least one."""
    return max(1, round(channels * width))
