"""Shapes in whole numbers, as traced and exported networks need them, are those that were."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from lightning_modules.components.blocks import crop, mirror_pad, pad_to_multiple, round_up
from lightning_modules.deeplabv2 import SCALES, scaled
from lightning_modules.unet import UNet


def test_scaled_sides_are_rounded_as_python_rounds() -> None:
    for side, scale in itertools.product(range(1, 2000), SCALES):
        assert scaled(side, scale) == max(1, round(scale * side)), (side, scale)


def test_rounding_up_is_a_division_of_the_negative() -> None:
    assert all(round_up(size, by) == -(-size // by) for size in range(200) for by in range(1, 40))


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_valid_sizes_are_those_of_layer_after_layer(depth: int) -> None:
    network = UNet(2, 1, width=1, depth=depth, padding="valid")
    for size in range(1, 200):
        bottom = 1
        while True:
            source, out = bottom + 4, bottom
            for _ in range(depth):
                source, out = 2 * source + 4, 2 * out - 4
            if out >= size:
                break
            bottom += 1
        assert network.valid_input_size(size) == (source, out)


@pytest.mark.parametrize("sides", [(1, 1), (1, 7), (5, 3), (4, 8)])
def test_borders_are_mirrored_again_and_again(sides: tuple[int, int]) -> None:
    x = torch.rand(1, 2, *sides)
    padded = mirror_pad(x, 3, 9, 0, 5)
    at = [range(-3, sides[0] + 9), range(sides[1] + 5)]
    mirrored = [
        [abs((p + n - 1) % max(2 * n - 2, 1) - (n - 1)) for p in places] for places, n in zip(at, sides, strict=True)
    ]
    for i, j in itertools.product(range(padded.shape[2]), range(padded.shape[3])):
        assert torch.equal(padded[..., i, j], x[..., mirrored[0][i], mirrored[1][j]])


class Padded(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return crop(2 * pad_to_multiple(images, 8), images.shape[-2] - 1, images.shape[-1] - 2, top=1, left=2)


def test_padding_and_crops_are_exported_for_other_sizes() -> None:
    sides = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    for example in ((16, 24), (13, 19)):  # one needs no padding, one does
        images = torch.rand(1, 3, *example)
        exported = torch.export.export(Padded(), (images,), dynamic_shapes=(sides,), strict=False).module()
        for other in ((16, 24), (13, 19), (32, 9)):
            images = torch.rand(1, 3, *other)
            assert torch.equal(exported(images), Padded()(images))
