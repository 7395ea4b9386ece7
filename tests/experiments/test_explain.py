import re
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from datamodules.shapes import ShapesDataModule
from experiments.explain import build_on_meta, main, show_network
from experiments.grids.cost import gmac
from experiments.runs.run import Run
from experiments.shell.catalogue import ARCHITECTURES
from lightning_modules.analysis.parts import LINES, Network
from lightning_modules.analysis.receptive_field import trace
from lightning_modules.base import SegmentationModule
from lightning_modules.unet import UNetModule


def printed(capsys: pytest.CaptureFixture[str], command: str) -> str:
    main(command.split())
    return capsys.readouterr().out


def row(text: str, path: str) -> list[str]:
    """The cells of the line of `path`."""
    line = next(line for line in text.splitlines() if re.match(rf"\W*{re.escape(path)}\s", line))
    return [cell.strip() for cell in line.strip("│ ").split("│")]


def test_count_is_a_bare_number(capsys: pytest.CaptureFixture[str]) -> None:
    published = "unet --num-classes 2 --in-channels 1 --count"
    assert printed(capsys, published) == "31030658\n"
    assert printed(capsys, f"{published} --model.padding valid") == "31030658\n"
    assert printed(capsys, "UNetModule --num-classes 2 --in-channels 1 --model.norm batch --count") == "31036546\n"


def test_parameters_stand_beside_those_of_the_paper(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "unet --num-classes 2 --model.depth 1 --no-fields")
    here = int(re.findall(r"parameters ([\d,]+)", text)[0].replace(",", ""))
    assert f"\npaper 31,030,658 (1 channel and 2 classes, padding valid): {31_030_658 - here:,} fewer here\n" in text
    paper = "unet --num-classes 2 --in-channels 1 --model.padding valid --no-fields --size 188 188"
    assert "padding valid): as many as here\n" in printed(capsys, paper)
    more = "segnet --num-classes 12 --no-fields --size 64 64"
    assert f"(3 channels and 11 classes, variant segnet): {9 * 64 + 1} more here\n" in printed(capsys, more)
    assert "(3 channels and 20 classes): as many" in printed(
        capsys, "hypercolumn_boxes --num-classes 20 --no-fields --size 64 64"
    )
    assert "\npaper " not in printed(capsys, "hypercolumn --num-classes 20 --no-fields --size 64 64")
    assert "\npaper " not in printed(capsys, "smp --num-classes 2 --no-fields --size 64 64 --model.encoder resnet18")


def test_a_paper_that_leaves_its_parameters_open_is_not_compared_with(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "inverted_net --num-classes 4 --in-channels 1 --no-fields --size 64 64")
    assert "parameters 3,141,028" in text and "paper" not in text


def test_table_of_the_unet(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "unet --num-classes 2 --in-channels 1 --size 96 64")
    assert "one image of 96 x 64" in text
    # 512 x 512 x 3 x 3 weights and a bias for each of 12 x 8 positions of the second convolution at stride 8
    assert row(text, "encoder.3.1.0") == [
        *("encoder.3.1.0", "Conv2d", "512 x 12 x 8", "8", "68 x 68", "2,359,808", "226 M")
    ]
    assert row(text, "encoder.4.1.0")[3:5] == ["16", "140 x 140"]
    assert row(text, "head")[2:6] == ["2 x 96 x 64", "1", "204 x 204", "130"]
    assert "parameters 31,030,658 (31,030,658 trained, 0 frozen)" in text
    assert "output stride 16" in text
    assert "receptive field 204 x 204" in text


def test_folding(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "unet --num-classes 2 --depth 1 --model.width 4 --model.depth 2")
    paths = ["encoder", "up", "decoder", "head"]  # an up and a decode take turns: the last return orders them
    assert [line.strip("│ ").split()[0] for line in text.splitlines() if line.startswith("│")] == [
        *("encoder", "up", "decoder", "head")
    ]
    assert row(text, "decoder")[2] == "4 x 512 x 512"
    assert all(row(text, path)[5] for path in paths)


@pytest.mark.parametrize("depth", [1, 2, 3, 9])
def test_parts_add_up_at_any_depth(depth: int) -> None:
    module = build_on_meta(UNetModule, 5, width=8, norm="batch", upsample="bilinear")
    network = Network(module, 64, 32)
    parts = network.parts(depth)
    assert sum(part.parameters for part in parts) == sum(p.numel() for p in module.parameters())
    assert sum(part.macs for part in parts) == network.macs


def test_multiply_adds_are_those_of_the_benchmark() -> None:
    run = Run(module=UNetModule, datamodule=ShapesDataModule, hparams={"width": 8})
    classes = ShapesDataModule().num_classes
    assert Network(build_on_meta(UNetModule, classes, width=8), 64, 64).macs == round(gmac(run, 64, 64) * 1e9)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_explained(name: str) -> None:
    module = build_on_meta(ARCHITECTURES[name], 21)
    assert all(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))
    assert trace(module, 3, 256)[""].field is not None  # every function has a rule; the sizes would take seconds
    network = Network(module, 64, 96)
    parts = network.parts()
    assert 5 < len(parts) <= LINES
    assert sum(part.parameters for part in parts) == sum(p.numel() for p in module.parameters())
    assert sum(part.macs for part in parts) == network.macs > 0
    assert network.shapes[""] == (21, 64, 96)


class Odd(nn.Module):
    """Has a parameter of its own, a function that nothing is known of, and a part that only training calls."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3, 3, 1, 1))
        self.conv = nn.Conv2d(3, 2, 3, padding=1)
        self.norm = nn.GroupNorm(1, 2)
        self.aux = nn.Conv2d(3, 2, 1)
        self.scale.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.conv2d(x, self.scale)
        return torch.roll(torch.relu(self.norm(self.conv(x))), 1, -1)


class OddModule(SegmentationModule):
    def build(self, num_classes: int, in_channels: int, **options: Any) -> Odd:
        return Odd()


def test_what_is_odd_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    network = Network(build_on_meta(OddModule, 2), 8, 8)
    show_network(network, Console(width=120))
    text = capsys.readouterr().out
    assert row(text, "itself")[1:] == ["Odd", "2 x 8 x 8", "", "", "9", "576"]
    assert row(text, "conv")[2] == "2 x 8 x 8"
    assert row(text, "aux")[2] == "not called"
    assert "parameters 77 (68 trained, 9 frozen)" in text
    assert "no receptive fields: receptive_field has no rule for the function aten.roll.default" in text
    assert "output stride" not in text
    assert "not called: a part of the training alone" in text


def test_group_norm_is_noted(capsys: pytest.CaptureFixture[str]) -> None:
    assert "group norm" in printed(capsys, "unet --num-classes 2 --model.width 4 --model.norm group")
    assert "group norm" not in printed(capsys, "unet --num-classes 2 --model.width 4 --model.norm batch")


def test_the_whole_image_and_a_map_of_one_pixel(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "smp --num-classes 2 --model.arch PSPNet --model.encoder resnet18 --size 64 64 --depth 9")
    assert "receptive field the whole image" in text
    assert row(text, "decoder.psp.blocks.0.pool.0")[2:5] == ["128 x 1 x 1", "-", "image"]


def test_weights_are_not_looked_for(capsys: pytest.CaptureFixture[str]) -> None:
    command = "smp --num-classes 2 --model.encoder resnet18 --count"
    assert printed(capsys, f"{command} --model.weights nowhere/at_all.pt") == printed(capsys, command)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", r"first word is to be an architecture, one of .*UNetModule \(unet\)"),
        ("--num-classes 2", "first word"),
        ("unett --num-classes 2", "did you mean unet"),
        ("unet", "--num-classes N"),
        ("unet --num-classes 2 --model.depth 100 --count", "torch cannot describe a network of these sizes"),
        ("unet --num-classes 99999999999", "--num-classes must be at most 1,048,576"),
        ("unet --num-classes 0", "--num-classes expects a whole number of at least 1, got '0'"),
        ("unet --num-classes two", "--num-classes expects a whole number .*'two'"),
        ("unet --num-classes 2 --in-channels -1", "--in-channels expects a whole number of at least 1, got '-1'"),
        ("unet --num-clases 2", "did you mean --num-classes"),
        ("unet --num-classes 2 --model.upsampel nearest", "did you mean --model.upsample"),
        ("unet --num-classes 2 --model.upsample nearst", "did you mean 'nearest'"),
        ("unet --num-classes 2 --size 64", "--size"),
        ("unet --num-classes 2 --depth 0", "depth"),
    ],
)
def test_a_wrong_word_is_answered_in_one_line(command: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(command.split())
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert re.search(message, error)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    for command, words in (("--help", list(ARCHITECTURES)), ("unet --help", ["--model.upsample", "--count"])):
        with pytest.raises(SystemExit) as stop:
            main(command.split())
        assert stop.value.code == 0
        text = capsys.readouterr().out
        assert all(word in text for word in words)


def test_counts_more_classes_than_a_byte_holds(capsys: pytest.CaptureFixture[str]) -> None:
    main(["unet", "--num-classes", "847", "--count"])
    assert (
        int(capsys.readouterr().out) == 31_031_810 + (847 - 2) * 65
    )  # of 2 classes, and 64 weights and a bias for each


def test_fields_can_be_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    main(["unet", "--num-classes", "2", "--model.depth", "1", "--no-fields"])
    printed = capsys.readouterr().out
    assert "multiply-adds" in printed
    assert "receptive field" not in printed
