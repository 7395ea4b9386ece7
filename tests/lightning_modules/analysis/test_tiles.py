"""Tiles of a local network hold the logits of the whole image: every architecture, odd sizes and borders too."""

import functools
from typing import Any

import pytest
import tiled
import torch
from torch import Tensor, nn

from lightning_modules.analysis.memory import peak_bytes
from lightning_modules.analysis.tiles import predict_in_tiles, spans
from lightning_modules.analysis.tiling import NotLocalError, Reach, reach
from lightning_modules.base import SegmentationModule
from lightning_modules.catalogue import ARCHITECTURES

RESNET = {"encoder": "resnet18", "encoder_width": 0.0625}
SMALL: dict[str, dict[str, Any]] = {name: dict(one.small) for name, one in ARCHITECTURES.items()}
SMALL |= {name: SMALL[name] | RESNET for name in ("deeplabv2", "deeplabv3", "deeplabv3plus", "pspnet")}
# Architecture and settings: those that are local, and why the others are not.
LOCAL = {
    "fcn": {},
    "fcn, stride 32": {"stride": 32},
    "hypercolumn": {},
    "unet": {},
    "unet, valid": {"padding": "valid"},
    "unet, unpool": {"upsample": "unpool"},
    "unet, bilinear, add, batch": {"upsample": "bilinear", "skips": "add", "norm": "batch"},
    "segnet": {},
    "deconvnet": {},
    "deeplabv1": {},
    "deeplabv2": {},
    "deeplabv3, no pooling": {"image_pooling": False},
    "deeplabv3plus, no pooling": {"image_pooling": False},
    "inverted_net": {},
    "smp": {},
}
NOT_LOCAL = {
    "unet, group": ({"norm": "group"}, "GroupNorm takes its mean"),
    "deeplabv3": ({}, "it pools the image"),
    "deeplabv3plus": ({}, "it pools the image"),
    "pspnet": ({}, "it pools the image"),
    "hypercolumn_boxes": ({}, "it pools the image"),
    "pointrend": ({}, "whole image"),
    "crf_as_rnn": ({}, "whole image"),
    "smp, fpn": ({"arch": "FPN"}, "GroupNorm"),
    "smp, transformer": ({"arch": "Segformer", "encoder": "mit_b0"}, ""),
}


def built(name: str, settings: dict[str, Any]) -> SegmentationModule:
    """A small network whose layers all say something: those that start at zero are drawn."""
    architecture = name.split(",")[0]
    module = ARCHITECTURES[architecture].module(3, 255, in_channels=1, **SMALL[architecture] | settings).eval()
    for parameter in module.parameters():
        if parameter.dim() > 1 and (architecture == "deconvnet" or not bool(parameter.detach().std() > 1e-2)):
            nn.init.kaiming_normal_(parameter)
    return module


@functools.cache
def reach_of(name: str) -> tuple[SegmentationModule, Reach]:
    module = built(name, LOCAL[name])
    return module, reach(module, 1)


def test_every_architecture_is_here() -> None:
    assert {name.split(",")[0] for name in (*LOCAL, *NOT_LOCAL)} == {*ARCHITECTURES}


@pytest.mark.parametrize("name", LOCAL)
@pytest.mark.parametrize("upright", [True, False])
def test_tiles_hold_what_the_whole_image_holds(name: str, upright: bool) -> None:
    module, found = reach_of(name)
    # Long enough for a tile that meets no border, of no whole number of steps; and narrow, to be cheap.
    size = (2 * found.halo + 3 * found.step + 37, 45) if upright else (45, 2 * found.halo + 4 * found.step + 21)
    image = torch.rand(1, 1, *size)
    with torch.no_grad():
        whole = module(image)
        in_tiles = predict_in_tiles(module.predict, module, image, max(2 * found.step, 64), found)
    assert whole.abs().max() > 1e-3, "says nothing"
    assert (in_tiles - whole).abs().max() <= 1e-5 * max(1.0, float(whole.abs().max()))
    assert torch.equal(in_tiles.argmax(1), whole.argmax(1))


@pytest.mark.parametrize("name", ["unet", "deeplabv1", "fcn"])
def test_less_of_the_image_around_a_tile_is_not_enough(name: str) -> None:
    module, found = reach_of(name)
    size = (2 * found.halo + 3 * found.step + 37, 45)
    image = torch.rand(1, 1, *size)
    narrow = Reach(found.step, found.step, found.resizes)
    with torch.no_grad():
        whole = module(image)
        in_tiles = predict_in_tiles(module.predict, module, image, max(2 * found.step, 64), narrow)
    assert (in_tiles - whole).abs().max() > 1e-4 * float(whole.abs().max())


@pytest.mark.parametrize("name", NOT_LOCAL)
def test_what_sees_the_whole_image_is_refused(name: str) -> None:
    settings, why = NOT_LOCAL[name]
    with pytest.raises(NotLocalError, match=why):
        reach(built(name, settings), 1)


class Corners(nn.Module):
    """Resizes by aligned corners, so that a pixel's place in the image decides what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 3, 3, stride=4, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(self.down(x), size=x.shape[-2:], mode="bilinear", align_corners=True)


def test_a_field_that_depends_on_the_place_is_refused_or_followed() -> None:
    network = Corners().eval()
    try:
        found = reach(network, 1)
    except NotLocalError:
        return
    image = torch.rand(1, 1, 2 * found.halo + 61, 40)
    with torch.no_grad():
        in_tiles = predict_in_tiles(network, network, image, 16, found)
        assert (in_tiles - network(image)).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["unet", "segnet", "deeplabv1", "deeplabv3", "pspnet", "inverted_net"])
def test_the_page_says_which_tiles_are_exact(name: str) -> None:
    assert tiled.row(name) in tiled.committed()


@pytest.mark.slow
def test_the_whole_table_of_the_page_holds() -> None:
    assert tiled.committed() == tiled.table()


def test_every_pixel_is_in_one_tile() -> None:
    found = Reach(8, 4, ())
    for length in (1, 4, 17, 64, 65):
        cut = spans(length, 18, found)
        assert [p for span in cut for p in range(span.start, span.stop)] == [*range(length)]
        assert all(span.first % 4 == 0 and (span.last % 4 == 0 or span.last == length) for span in cut)
        assert all(span.start - span.first >= 8 or span.first == 0 for span in cut)


def test_the_memory_of_maps_is_that_of_the_tensors_that_live_at_once() -> None:
    network = nn.Sequential(nn.Conv2d(1, 8, 1), nn.ReLU(inplace=True), nn.Conv2d(8, 2, 1)).eval()
    pixels = 4 * 32 * 32
    # The image, eight maps and the two that are made of them.
    assert peak_bytes(network, 1, 32, 32) == (1 + 8 + 2) * pixels


def test_a_module_evaluates_in_tiles_as_at_once() -> None:
    module, found = reach_of("unet")
    image = torch.rand(1, 1, 2 * found.halo + 61, 70)
    with torch.no_grad():
        whole = module(image)
        module.evaluate_in_tiles(20)
        assert (module(image) - whole).abs().max() < 1e-5 * max(1.0, float(whole.abs().max()))
    module._cut = None
    with pytest.raises(ValueError, match="tile=32 takes a local network, and for PSPNetModule"):
        built("pspnet", {}).evaluate_in_tiles(32)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["unet", "deeplabv1", "segnet"])
def test_tiles_hold_the_same_on_a_gpu(name: str) -> None:
    module, found = reach_of(name)
    module = module.cuda()
    image = torch.rand(1, 1, 2 * found.halo + 3 * found.step + 37, 300, device="cuda")
    with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
        whole = module(image)
        in_tiles = predict_in_tiles(module.predict, module, image, max(2 * found.step, 64), found)
    module.cpu()
    assert (in_tiles - whole).abs().max() <= 1e-4 * max(1.0, float(whole.abs().max()))
