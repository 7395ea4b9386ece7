from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models.segmentation import deeplabv3_resnet50

from lightning_modules.deeplabv3 import CONTEXTS, DeepLabV3, DeepLabV3Module

TINY: dict[str, Any] = {"encoder": "resnet50", "encoder_width": 1 / 16, "decoder_width": 4}


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def on_meta(*args: Any, **kwargs: Any) -> DeepLabV3:
    with torch.device("meta"):
        return DeepLabV3(*args, **kwargs)


def rates(network: nn.Module) -> list[int]:
    """Of the 3x3 convolutions, in order."""
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    return [convolution.dilation[0] for convolution in convolutions]


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ({}, 58_040_661),
        ({"output_stride": 8}, 58_040_661),  # atrous convolution adds no weights
        ({"form": "torchvision"}, 58_630_997),
        ({"form": "torchvision", "encoder": "resnet50"}, 39_638_869),
        ({"encoder": "resnet50"}, 39_048_533),  # 590,336 of the 3x3 convolution less
    ],
)
def test_parameters_of_the_published_networks(arguments: dict[str, Any], count: int) -> None:
    assert parameters(on_meta(21, **arguments)) == count


def test_equals_torchvision_with_its_weights() -> None:
    peer = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=5).eval()
    for module in peer.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after training: no two channels alike
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    ours = DeepLabV3(5, encoder="resnet50", output_stride=8, form="torchvision").eval()
    theirs = peer.state_dict()
    backbone = {key.removeprefix("backbone."): v for key, v in theirs.items() if key.startswith("backbone.")}
    ours.encoder.load_state_dict(backbone)
    above = [v for key, v in theirs.items() if key.startswith("classifier.")]
    names = [key for key in ours.state_dict() if not key.startswith("encoder.")]  # both in the order of the figure
    ours.load_state_dict(dict(zip(names, above, strict=True)), strict=False)

    images = torch.randn(1, 3, 75, 97)
    with torch.no_grad():
        expected = peer(images)["out"]
        torch.testing.assert_close(ours(images), expected, rtol=0, atol=1e-4)
        assert expected.std() > 0.01  # large enough for the comparison to mean something
        paper = DeepLabV3(5, encoder="resnet50", output_stride=8).eval()
        paper.encoder.load_state_dict(backbone)
        difference = (paper.encoder(images)[-1] - ours.encoder(images)[-1]).abs().max()
    assert difference > 0.01  # the paper dilates the first block of a stage too, and has a multi-grid


@pytest.mark.parametrize(
    ("output_stride", "multi_grid", "cascade", "expected"),
    [
        (16, None, 4, [2, 4, 8]),  # Sec. 3.2.1: rate 2 times multi-grid (1, 2, 4)
        (8, None, 4, [4, 8, 16]),
        (32, None, 4, [1, 2, 4]),
        (16, (1, 1, 1), 7, [2, 2, 2, 4, 4, 4, 8, 8, 8, 16, 16, 16]),  # Fig. 3 (b)
        (16, (1, 2, 1), 6, [2, 4, 2, 4, 8, 4, 8, 16, 8]),
    ],
)
def test_rates_of_the_blocks_from_4_on(
    output_stride: int, multi_grid: tuple[int, ...] | None, cascade: int, expected: list[int]
) -> None:
    network = on_meta(21, output_stride=output_stride, multi_grid=multi_grid, cascade=cascade, context="none")
    assert rates(network)[-len(expected) :] == expected


def test_a_block_of_the_cascade_is_block_4_without_its_projection() -> None:
    four, five = (on_meta(21, cascade=last, context="none") for last in (4, 5))
    block4 = parameters(four.encoder.layer4)
    projection = 1024 * 2048 + 2 * 2048  # block 5 has as many channels below as above, so that its shortcut is free
    assert parameters(five) - parameters(four) == block4 - projection + 1024 * 512


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize(("context", "cascade"), [(c, 4) for c in CONTEXTS] + [("none", 7)])
def test_every_context_at_every_stride_keeps_odd_sizes_and_trains(
    output_stride: int, context: str, cascade: int
) -> None:
    network = DeepLabV3(3, **TINY, output_stride=output_stride, context=context, cascade=cascade)
    images = torch.rand(1, 3, 65, 75)
    assert network.logits(images).shape == (1, 3, -(-65 // output_stride), -(-75 // output_stride))
    logits = network(images)
    assert logits.shape == (1, 3, 65, 75)
    logits.square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_image_pooling_and_rates_are_branches_of_their_own() -> None:
    full = parameters(on_meta(21))
    branch, share = 256 * 2 + 256 * 256, 256 * 2048  # norm and its part of the projection; a 1x1 convolution
    assert full - parameters(on_meta(21, image_pooling=False)) == share + branch
    assert full - parameters(on_meta(21, rates=(6, 12))) == 9 * share + branch
    assert full - parameters(on_meta(21, rates=())) == 3 * (9 * share + branch)
    assert rates(on_meta(21).context) == [6, 12, 18] and rates(on_meta(21, output_stride=8).context) == [12, 24, 36]


@pytest.mark.parametrize("encoder", ["resnet18", "vgg16", "smp-resnet18"])
def test_takes_any_encoder(encoder: str) -> None:
    width = 1.0 if encoder.startswith("smp") else 1 / 16
    network = DeepLabV3(3, 1, encoder=encoder, encoder_width=width, decoder_width=4).eval()
    assert network(torch.rand(1, 1, 33, 47)).shape == (1, 3, 33, 47)


def test_frozen_batch_norms_stay_as_they_are_when_training() -> None:
    network = DeepLabV3(3, **TINY, freeze_batch_norm=True).train()
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [v.clone() for norm in norms for v in norm.state_dict().values()]
    network(torch.rand(2, 3, 33, 33)).square().mean().backward()
    after = [v for norm in norms for v in norm.state_dict().values()]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert network.training and not any(p.requires_grad for norm in norms for p in norm.parameters())
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert all(m.weight.grad is not None for m in convolutions)


def test_batch_norm_decay_is_the_share_that_stays() -> None:
    network = DeepLabV3(3, **TINY, cascade=5, batch_norm_decay=0.9)
    below = network.encoder.bn1
    network.encoder.conv1.register_forward_hook(lambda module, args, output: torch.full_like(output, 5.0))
    network(torch.rand(2, 3, 33, 33))
    torch.testing.assert_close(below.running_mean, torch.full_like(below.running_mean, 0.9 * 0 + 0.1 * 5))
    for tiny, momentum in ((network, 0.1), (DeepLabV3(3, **TINY), 0.0003)):
        norms = [m for m in tiny.modules() if isinstance(m, nn.BatchNorm2d)]
        assert [norm.momentum for norm in norms] == pytest.approx([momentum] * len(norms))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"context": "psp"}, "context must be one of aspp, pyramid, none, got 'psp'"),
        ({"form": "caffe"}, "form must be one of paper, torchvision, got 'caffe'"),
        ({"cascade": 8}, "cascade must be the last ResNet block, 4 to 7, got 8"),
        ({"encoder": "vgg16", "cascade": 5}, "encoder='vgg16' has none, pass encoder='resnet50'"),
        ({"encoder": "vgg16", "multi_grid": (1, 2, 4)}, "multi_grid and cascade"),
        ({"multi_grid": (1, 2)}, "multi_grid"),
        ({"decoder_width": 0}, "decoder_width must be at least 1, got 0"),
        ({"rates": 6}, r"rates must be a list of .* such as \[6, 12, 18\], got 6"),
        ({"rates": (), "image_pooling": False}, "leaves no context"),
        ({"batch_norm_decay": 1.5}, "batch_norm_decay must be at least 0 and less than 1, got 1.5"),
    ],
)
def test_errors_name_the_argument_and_the_way_out(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        on_meta(2, **arguments)


def test_the_recipe_is_that_of_the_paper() -> None:
    module = DeepLabV3Module(3, 255, **TINY)
    keys = ("lr", "momentum", "weight_decay", "schedule", "output_stride", "batch_norm_decay")
    assert [module.hparams[key] for key in keys] == [0.007, 0.9, 1e-4, "poly", 16, 0.9997]


def test_the_second_stage_starts_from_the_first_with_frozen_batch_norms(tmp_path: Path) -> None:
    stages = {"output_stride": 8, "freeze_batch_norm": True, "lr": 0.001}  # Sec. 4.1
    first, path = DeepLabV3Module(3, 255, **TINY), tmp_path / "first.ckpt"
    first(torch.rand(2, 3, 33, 33))  # moves the running statistics
    torch.save({"state_dict": first.state_dict()}, path)
    second = DeepLabV3Module(3, 255, **TINY, **stages, init_from=str(path))
    for (name, old), new in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(old, new), name
    frozen = sum(p.numel() for m in second.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters())
    assert sum(p.numel() for group in second.parameter_groups() for p in group["params"]) == parameters(second) - frozen
    checkpoint: dict[str, Any] = {"hyper_parameters": dict(second.hparams)}
    second.on_save_checkpoint(checkpoint)
    assert checkpoint["hyper_parameters"]["init_from"] is None

    with pytest.raises(FileNotFoundError, match="is not a file: give a checkpoint such as"):
        DeepLabV3Module(3, 255, **TINY, init_from=str(tmp_path / "none.ckpt"))
    with pytest.raises(ValueError, match="no checkpoint of a DeepLabV3Module with the same arguments"):
        DeepLabV3Module(4, 255, **TINY, init_from=str(path))


@pytest.mark.parametrize(("before", "after"), [(None, [1.0, 2.0, 3.0]), ("median-frequency", None), (None,) * 2])
def test_the_second_stage_keeps_what_is_said_of_colours_and_classes(tmp_path: Path, before: Any, after: Any) -> None:
    first, path = DeepLabV3Module(3, 255, **TINY, class_weights=before, mean=(0.1,) * 3, std=(0.3,) * 3), tmp_path / "1"
    if before:
        first.set_class_weights(torch.ones(3))
    torch.save({"state_dict": first.state_dict()}, path)
    second = DeepLabV3Module(3, 255, **TINY, class_weights=after, init_from=str(path), mean=(0.6, 0.7, 0.8))
    assert second.mean.flatten().tolist() == pytest.approx([0.6, 0.7, 0.8])
    assert second.std.flatten().tolist() == pytest.approx([0.3] * 3)
    assert second.class_weights is None if after is None else second.class_weights.tolist() == after
    assert torch.equal(second.network.head[0].weight, first.network.head[0].weight)


def test_the_second_stage_counts_its_classes_itself(tmp_path: Path) -> None:
    first = DeepLabV3Module(3, 255, **TINY)
    torch.save({"state_dict": first.state_dict()}, tmp_path / "1")
    second = DeepLabV3Module(3, 255, **TINY, class_weights="median-frequency", init_from=str(tmp_path / "1"))
    with pytest.raises(ValueError, match="must be counted before the loss"):
        _ = second.class_weights
