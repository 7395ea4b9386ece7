"""U-Net, Ronneberger, Fischer, Brox 2015, https://arxiv.org/abs/1505.04597

The network of Fig. 1 to the parameter (31,030,658 with 1 channel and 2 classes): `UNet(2, 1, padding="valid")`.

Departs from the paper by default, where `UNetModule` names the paper's own:
- padding="same", so that the mask keeps the size of the image;
- a loss and augmentation that suit more than cells;
- no dropout;
- a weight decay of 1e-4, where the paper names none.
And where asked for:
- normalisation;
- the layer that upsamples;
- what the skip connections carry.
"""

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lightning_modules.base import SegmentationModule
from lightning_modules.components.blocks import (
    NormName,
    at_least_one,
    conv_norm_relu,
    crop,
    he_,
    mirror_pad,
    pad_to_multiple,
    round_up,
)
from lightning_modules.components.choices import one_of
from lightning_modules.components.recomputing import Recomputing
from lightning_modules.components.upsampling import Unpool, UpsamplingName, icnr_, upsampling
from lightning_modules.recipe import Recipe

Skips = Literal["concat", "add", "none"]
Padding = Literal["same", "valid"]
SKIPS, PADDINGS = get_args(Skips), get_args(Padding)


def double_conv(in_channels: int, out_channels: int, *, padding: int, norm: NormName) -> nn.Sequential:
    """(N, in_channels, H, W) -> (N, out_channels, H, W), or H - 4, W - 4 without padding: two blue arrows of Fig. 1."""
    return nn.Sequential(
        conv_norm_relu(in_channels, out_channels, padding=padding, norm=norm),
        conv_norm_relu(out_channels, out_channels, padding=padding, norm=norm),
    )


class UNet(Recomputing):
    """(N, in_channels, H, W) -> (N, num_classes, H, W); with padding="valid" the border is lost: 572 -> 388.

    Without `match_parameters` a network that loses its skips also loses parameters, and an ablation would compare two
    things at once.

    Args:
        width: maps at full resolution, doubled at each level below
        depth: poolings, as many as upsamplings
        padding: "valid" as in the paper, or "same", which keeps the size of the image
        norm: what normalises behind each convolution
        upsample: layer of the expanding path that doubles the size: see components/upsampling.py
        skips: the encoder's map goes beside the decoder's ("concat", the paper), is added to it, or goes nowhere
        match_parameters: decoder widths with as many parameters as the network with skips="concat" has, within 1 %
        dropout: share of values dropped at the end of the contracting path: of the last map that is pooled, and the
            bottom
        decoder_widths: maps of the decoder at each level, finest first; those of the encoder by default
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        width: int = 64,
        depth: int = 4,
        padding: Padding = "same",
        norm: NormName = "none",
        upsample: UpsamplingName = "transposed-2",
        skips: Skips = "concat",
        match_parameters: bool = False,
        dropout: float = 0.0,
        decoder_widths: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        one_of("skips", skips, SKIPS)
        one_of("padding", padding, PADDINGS)
        at_least_one(width=width, depth=depth)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be at least 0 and less than 1, got {dropout}")
        if padding == "valid" and upsample == "unpool":
            raise ValueError("unpooling needs maps as large as those pooled: use padding='same', or another upsample")
        widths = [width * 2**level for level in range(depth + 1)]  # 64, 128, 256, 512, 1024 in the paper
        if match_parameters:
            if decoder_widths is not None:
                raise ValueError("match_parameters chooses decoder_widths: give one of the two")
            decoder_widths = _matched_widths(num_classes, in_channels, width, depth, norm, upsample, skips)
        wide = list(decoder_widths) if decoder_widths is not None else widths[:-1]
        if len(wide) != depth:
            raise ValueError(f"decoder_widths must hold one width for each of the {depth} levels, got {wide}")

        self.depth, self.padding, self.skips = depth, padding, skips
        pad = 1 if padding == "same" else 0
        self.encoder = nn.ModuleList(
            double_conv(i, o, padding=pad, norm=norm) for i, o in zip([in_channels, *widths[:-1]], widths, strict=True)
        )
        self.up, self.decoder = nn.ModuleList(), nn.ModuleList()
        below = widths[-1]
        for level in reversed(range(depth)):
            # An added or an unpooled map has the channels of the encoder's map that it meets.
            out = widths[level] if skips == "add" or upsample == "unpool" else wide[level]
            self.up.append(upsampling(upsample, below, out))
            merged = out + widths[level] if skips == "concat" else out
            self.decoder.append(double_conv(merged, wide[level], padding=pad, norm=norm))
            below = wide[level]
        self.head = nn.Conv2d(below, num_classes, kernel_size=1)
        self.dropout = nn.Dropout(dropout)
        self._initialise()

    def _initialise(self) -> None:
        """Sec. 3: normal weights of standard deviation sqrt(2 / N), where N inputs reach one output (He et al.).

        A sub-pixel convolution then gets back its own rule, ICNR: the same weights for all four outputs of a block.
        """
        he_(self)
        for up in self.up:
            if isinstance(up, nn.Sequential) and isinstance(up[0], nn.Conv2d):  # not behind a resize
                icnr_(up[0])

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if self.padding == "same":
            x = pad_to_multiple(x, 2**self.depth)
        else:
            self._check_valid(height, width)
        features: list[Tensor] = []  # at strides 1, 2, 4, 8, 16
        indices: list[Tensor] = []
        for level, encode in enumerate(self.encoder):
            if level:
                x, index = nn.functional.max_pool2d(x, 2, return_indices=True)  # stride doubles
                indices.append(index)
            x = self.through(encode, x)
            if level >= self.depth - 1:
                x = self.dropout(x)
            features.append(x)
        x = features.pop()
        for up, decode in zip(self.up, self.decoder, strict=True):
            index, skip = indices.pop(), features.pop()
            x = up(x, index) if isinstance(up, Unpool) else up(x)  # stride halves
            if self.skips == "concat":
                x = torch.cat([self._beside(skip, x), x], dim=1)  # channels add up
            elif self.skips == "add":
                x = x + self._beside(skip, x)
            x = decode(x)
        logits: Tensor = self.head(x)
        return crop(logits, height, width) if self.padding == "same" else logits

    def _beside(self, skip: Tensor, like: Tensor) -> Tensor:
        """The grey arrows of Fig. 1: the middle of the encoder's map, as large as the decoder's; all, where none is
        lost."""
        if self.padding == "same":
            return skip
        height, width = like.shape[-2:]
        return crop(skip, height, width, top=(skip.shape[-2] - height) // 2, left=(skip.shape[-1] - width) // 2)

    def valid_input_size(self, size: int) -> tuple[int, int]:
        """The smallest input side whose valid output covers `size` pixels, and that output: 388 -> (572, 388)."""
        # Two valid convolutions take 4 pixels; pooling halves and upsampling doubles. So `bottom` pixels at the end of
        # the contracting path come of 2^d (bottom + 4) + border of the image, and make 2^d bottom - border of the mask.
        step = 2**self.depth
        border = 4 * (step - 1)
        bottom = max(1, round_up(size + border, step))
        return step * (bottom + 4) + border, step * bottom - border

    def input_side(self, least: int) -> int:
        """The smallest side of an image, of at least `least` pixels, that the network takes.

        Valid convolutions take 'an even x- and y-size' before each pooling (Fig. 1), so that no row is dropped unseen.
        """
        if self.padding == "same":
            return least
        smallest, step = self.valid_input_size(1)[0], 2**self.depth
        return smallest + round_up(max(least - smallest, 0), step) * step

    def _check_valid(self, *sizes: int) -> None:
        for size in sizes:
            above = self.input_side(size)
            if above != size:
                below = max(above - 2**self.depth, self.input_side(1))
                raise ValueError(
                    f"padding='valid' takes sides such as {below} or {below + 2**self.depth}, got {size}: pad the "
                    "image (UNetModule does), or use padding='same'"
                )


@cache  # a grid builds each of its variants several times
def _matched_widths(
    num_classes: int, in_channels: int, width: int, depth: int, norm: NormName, upsample: UpsamplingName, skips: Skips
) -> list[int]:
    """Decoder widths, a common factor times the encoder's, with the parameter count of skips="concat" within 1 %."""
    widths = [width * 2**level for level in range(depth)]

    def parameters(skips: Skips, wide: list[int]) -> int:
        with torch.device("meta"):
            network = UNet(
                num_classes,
                in_channels,
                width=width,
                depth=depth,
                norm=norm,
                upsample=upsample,
                skips=skips,
                decoder_widths=wide,
            )
        return sum(p.numel() for p in network.parameters())

    if skips == "concat":
        return widths
    target, low, high = parameters("concat", widths), 1.0, 4.0
    for _ in range(12):  # the count grows with the factor; 3 / 2 ** 12 is less than one channel of 1024
        middle = (low + high) / 2
        if parameters(skips, [round(middle * w) for w in widths]) < target:
            low = middle
        else:
            high = middle
    candidates = [[round(factor * w) for w in widths] for factor in (low, high)]
    best = min(candidates, key=lambda wide: abs(parameters(skips, wide) - target))
    gap = parameters(skips, best) / target - 1
    if abs(gap) > 0.01:
        raise ValueError(
            f"match_parameters cannot come within 1 % of {target:,} parameters: the nearest decoder_widths {best} miss "
            f"it by {gap:+.1%}. Use a larger width, or match_parameters=False, and report the difference"
        )
    return best


class UNetModule(SegmentationModule):
    """Trains `UNet` by the paper's recipe, Sec. 3: SGD with momentum 0.99 and a constant learning rate, batch of one.

    For cells, its loss is `loss="ce_border"` (Eq. 1 and 2, w0 = 10, sigma = 5), w_c `class_weights`, and its elastic
    deformation (Sec. 3.1) the data module's `elastic=10`; it has dropout, and no weight decay (`weight_decay=0`).

    Args:
        tile: with padding="valid" an image is evaluated in squares of at least so many pixels (388 in Fig. 1), which
            bounds the memory and changes no logit, unless norm="group" normalises over the tile
    """

    network: UNet
    recipe = Recipe(lr=1e-3, momentum=0.99, schedule="constant")
    hidden = ("decoder_widths",)

    def __init__(self, num_classes: int, ignore_index: int, *, tile: int | None = None, **settings: Any) -> None:
        super().__init__(num_classes, ignore_index, **settings)
        padding, depth = self.network.padding, self.network.depth
        if tile is not None and (padding != "valid" or tile < 2**depth):
            raise ValueError(
                f"tile takes padding='valid' and at least 2^depth = {2**depth} pixels, got tile={tile} with "
                f"padding={padding!r}: leave it out to predict the image at once"
            )
        self.tile = tile

    def predict(self, images: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, num_classes, H, W): valid convolutions see a mirrored border (Sec. 2, Fig.
        2)."""
        if self.network.padding == "same":
            return super().predict(images)
        height, width = images.shape[-2:]
        rows, in_h, border = self._tiles(height)
        columns, in_w, _ = self._tiles(width)
        below, right = rows[-1] + in_h - border - height, columns[-1] + in_w - border - width
        padded = mirror_pad(self.normalise(images), border, below, border, right)
        bands = []
        for top, bottom in pairwise([*rows, height]):
            tiles = [
                crop(self.network(crop(padded, in_h, in_w, top=top, left=left)), bottom - top, end - left)
                for left, end in pairwise([*columns, width])
            ]
            bands.append(torch.cat(tiles, dim=-1))
        return torch.cat(bands, dim=-2)

    def _tiles(self, size: int) -> tuple[list[int], int, int]:
        """Where along `size` pixels the tiles' outputs begin, the side of their inputs and the border in those."""
        tile = size if self.tile is None or self.training else min(self.tile, size)
        source, out = self.network.valid_input_size(tile)
        step = out - out % 2**self.network.depth  # so that the windows of every pooling fall as in the whole image
        starts = [0] if out >= size else list(range(0, size - out + step, step))
        return starts, source, (source - out) // 2
