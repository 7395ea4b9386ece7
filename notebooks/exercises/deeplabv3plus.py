"""DeepLab v3+, put together."""

from typing import Any

import torch

from exercises import pair
from lightning_modules.deeplabv3plus import DeepLabV3Plus


def a(answer: Any) -> None:
    """513 = 16 x 32 + 1: 33 and 129."""
    with torch.device("meta"):
        encoder = DeepLabV3Plus(2, encoder="xception65", encoder_width=0.0625).eval().encoder
        maps = encoder(torch.empty(1, 3, 513, 513))
    given = pair(answer)
    assert given != (32, 128), "A map of stride 16 has its first place on pixel 0. Is pixel 512 on it, too?"
    assert given != (129, 33), "The deepest map comes first."
    assert given == (maps[-1].shape[2], maps[2].shape[2]), "513 / 16 and 513 / 4, rounded up."


def b(answer: Any) -> None:
    """48 + 256 = 304: the fine map, reduced, beside what comes out of ASPP."""
    with torch.device("meta"):
        decoder = DeepLabV3Plus(21).decoder
    assert decoder is not None
    seen = next(m.in_channels for m in decoder.modules() if isinstance(m, torch.nn.Conv2d))
    assert answer != 256, "And the fine map beside it?"
    assert answer == seen, "ASPP gives 256; Table 1 says to how many the fine map is reduced."


def c(answer: Any) -> None:
    """The map is twice as fine, the rates double, and that costs time; the weights are the same."""
    sizes, counts, rates = [], [], []
    with torch.device("meta"):
        for stride in (16, 8):
            network = DeepLabV3Plus(2, encoder="resnet50", encoder_width=0.0625, output_stride=stride).eval()
            sizes.append(network.encoder(torch.empty(1, 3, 128, 128))[-1].shape[2])
            counts.append(sum(p.numel() for p in network.parameters()))
            rates.append(max(m.dilation[0] for m in network.aspp.modules() if isinstance(m, torch.nn.Conv2d)))
    right = {letter for letter, (x, y) in {"A": counts, "B": sizes, "C": rates}.items() if y > x} | {"D"}
    given = {str(letter).strip().upper() for letter in answer} - {"", ","}
    assert "A" not in given, "A dilated kernel has as many weights as before."
    assert given == right, "Think of the map, of what ASPP has to reach, and of how many places are computed."
