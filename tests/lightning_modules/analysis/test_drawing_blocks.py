"""What a network is drawn with: blocks with their strides and channels, and which map goes where."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.analysis.blocks import MANY, Block, Drawing, drawing_of
from lightning_modules.base import SegmentationModule
from lightning_modules.catalogue import ARCHITECTURES
from lightning_modules.papers import PAPERS


def drawn(network: type[nn.Module], size: tuple[int, int] = (32, 48), num_classes: int = 2) -> Drawing:
    class Module(SegmentationModule):
        def build(self, num_classes: int, in_channels: int, **options: Any) -> Any:
            return network()

    with torch.device("meta"):
        module = Module(num_classes, 255)
    return drawing_of(module, *size)


def of_paper(name: str, size: int = 256, **settings: Any) -> Drawing:
    paper = PAPERS[name]
    with torch.device("meta"):
        module = ARCHITECTURES[name].module(
            paper.num_classes, -1, in_channels=paper.in_channels, **{**paper.settings, **settings}
        )
    return drawing_of(module, size, size)


def edges(drawing: Drawing) -> dict[tuple[str, str], str]:
    """How maps meet, by the names of the two blocks."""
    names = [block.name or block.kind for block in drawing.blocks]
    return {(names[edge.source], names[edge.target]): edge.join for edge in drawing.edges}


class Skipping(nn.Module):
    """Two levels, a skip that is concatenated and another that is added."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.merge = nn.Conv2d(8, 4, 1)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.norm(self.first(x)))
        up = self.up(F.max_pool2d(self.second(first), 2))
        up = F.interpolate(up, scale_factor=2, mode="bilinear")
        merged = self.merge(torch.cat([first, up], 1)) + first
        logits: Tensor = self.head(merged)
        return logits


def test_blocks_have_channels_sizes_strides_and_roles() -> None:
    blocks = drawn(Skipping).blocks
    assert blocks == [
        Block("", "image", "image", 3, (32, 48), 1),
        Block("first", "conv 3x3", "convolution", 4, (32, 48), 1),
        Block("second", "conv 3x3", "convolution", 8, (16, 24), 2),
        Block("", "max pool", "pool", 8, (8, 12), 4),
        Block("up", "transposed 2x2", "up", 4, (16, 24), 2),
        Block("", "resize, bilinear", "up", 4, (32, 48), 1),
        Block("merge", "conv 1x1", "convolution", 4, (32, 48), 1),
        Block("head", "conv 1x1", "scores", 2, (32, 48), 1),
        Block("", "logits", "logits", 2, (32, 48), 1),
    ]


def test_skips_are_edges_that_say_how_they_meet() -> None:
    found = edges(drawn(Skipping))
    assert found.pop(("first", "merge")) == found.pop(("resize, bilinear", "merge")) == "concat"
    assert found.pop(("first", "head")) == found.pop(("merge", "head")) == "add"
    chain = ["image", "first", "second", "max pool", "up", "resize, bilinear"]
    assert found == {**dict.fromkeys(pairwise(chain), ""), ("head", "logits"): ""}


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 4, stride=4)
        self.branches = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=rate, dilation=rate) for rate in (1, 6))
        self.image = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1))
        self.head = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        maps = [branch(x) for branch in self.branches]
        maps.append(self.image(x).expand_as(x))
        return F.interpolate(self.head(torch.cat(maps, 1)), scale_factor=4.0)


def test_branches_stand_beside_each_other() -> None:
    drawing = drawn(Branching)
    found = edges(drawing)
    for branch in ("branches.0", "branches.1"):
        assert found["stem", branch] == "" and found[branch, "head"] == "concat"
    assert ("branches.0", "branches.1") not in found
    by_name = {block.name: block for block in drawing.blocks}
    assert by_name["branches.1"].kind == "conv 3x3 rate 6" and by_name["branches.1"].stride == 4
    assert by_name["image.1"].stride is None and by_name["image.1"].size == (1, 1)


class Repeating(nn.Module):
    """The same convolution three times, fed with what it returned."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.step = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(3):
            x = self.step(F.max_pool2d(x, 3, 1, 1))
        logits: Tensor = self.head(x)
        return logits


def test_a_loop_is_drawn_once_and_says_how_often() -> None:
    drawing = drawn(Repeating)
    assert {block.name: block.calls for block in drawing.blocks if block.name} == {"stem": 1, "step": 3, "head": 1}
    assert all(edge.source < edge.target for edge in drawing.edges)


class Unfollowed(nn.Module):
    """What its second half sees, torch cannot tell: a map that does not come of the first half's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        shape = self.first(x).shape
        logits: Tensor = self.second(torch.zeros(*shape, device="meta"))
        return logits + x.mean()


def test_what_cannot_be_followed_keeps_its_block_and_has_no_arrow() -> None:
    drawing = drawn(Unfollowed)
    assert [block.name for block in drawing.blocks] == ["", "first", "second", ""]
    assert edges(drawing) == {("image", "first"): "", ("image", "logits"): "add", ("second", "logits"): "add"}


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 3)) for _ in range(40)))
        self.head = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.stages(x))
        return F.interpolate(logits, x.shape[-2:])


def test_a_deep_network_has_few_blocks() -> None:
    blocks = drawn(Deep, (96, 96)).blocks
    assert len(blocks) <= MANY and blocks[1].name.startswith("stages")


def test_the_skips_of_the_unet() -> None:
    found = edges(of_paper("unet"))
    assert {pair for pair, join in found.items() if join == "concat"} == {
        *((f"encoder.{3 - level}", f"decoder.{level}") for level in range(4)),
        *((f"up.{level}", f"decoder.{level}") for level in range(4)),
    }
    assert [b.stride for b in of_paper("unet").blocks if b.name.startswith("encoder")] == [1, 2, 4, 8, 16]


def test_the_skips_of_fcn_and_of_deeplab_v3_plus() -> None:
    fcn = edges(of_paper("fcn"))
    assert fcn["scores.1", "up.1"] == fcn["up.0", "up.1"] == fcn["scores.2", "upscore"] == "add"
    plus = edges(of_paper("deeplabv3plus"))
    assert plus["low_level", "decoder"] == "concat" and plus["encoder.blocks.0", "low_level"] == ""
    assert all(plus[f"aspp.branches.{branch}", "aspp.project"] == "concat" for branch in range(5))


def test_the_indices_of_segnet_lead_from_pooling_to_unpooling() -> None:
    drawing = of_paper("segnet", 64)
    ends = [(drawing.blocks[e.source], drawing.blocks[e.target]) for e in drawing.edges if e.join == "indices"]
    assert len(ends) == 5
    for pool, unpool in ends:
        assert (pool.kind, unpool.kind) == ("max pool", "unpool") and pool.stride == 2 * (unpool.stride or 0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_followed_from_the_image_to_the_logits(name: str) -> None:
    entry = ARCHITECTURES[name]
    with torch.device("meta"):
        module = entry.module(3, 255, **entry.small)
    drawing = drawing_of(module, 64, 64)
    assert 8 <= len(drawing.blocks) <= MANY + 2
    seen = {0}
    for edge in drawing.edges:  # in the order of their sources
        assert edge.source < edge.target
        seen |= {edge.target} if edge.source in seen else set()
    assert seen == set(range(len(drawing.blocks)))
