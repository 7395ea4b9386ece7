"""What explain draws and says of a checkpoint and of an image, and how it ends where it cannot."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from experiments import explain
from experiments.explain import main
from experiments.reports.explained import Asked, class_of, draw
from lightning_modules.analysis.cam import seg_grad_cam
from lightning_modules.analysis.effective_field import effective_field
from lightning_modules.analysis.parts import Network
from lightning_modules.base import SegmentationModule
from lightning_modules.catalogue import ARCHITECTURES
from lightning_modules.unet import UNetModule

KEPT = Path(__file__).parents[1] / "data" / "kept" / "67a3901" / "checkpoints"
UNET = str(KEPT / "unet.ckpt")  # of three classes: background, disc, square
FCN = str(KEPT / "fcn.ckpt")
TINY = "unet --num-classes 2 --model.width 4 --model.depth 1 --depth 1 --size 32 24"


@pytest.fixture(scope="module")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 rows and 56 columns, lying on its side in the file: EXIF turns it upright."""
    path = tmp_path_factory.mktemp("photographs") / "street.png"
    pixels = np.random.default_rng(0).integers(0, 256, (56, 40, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(path, exif=exif)
    return path


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock") if folder.exists() else []


def test_a_checkpoint_on_an_image(photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    main([UNET, "--image", str(photograph), "--out", str(out), "--pixel", "20", "25", "--depth", "1"])
    said = capsys.readouterr().out
    assert "UNetModule, one image of 40 x 56" in said
    assert "image street.png: 40 x 56, classes background, disc, square" in said
    assert re.search(r"pixel at row 20, column 25: (background|disc|square) is predicted, [\d.]+%", said)
    assert re.search(r"cam: layer encoder\.2, 8 x 10 x 14, for \w+\n", said)
    assert re.search(r"field: theoretical 44 x 44, cut at the border; effective 95 % within [\d,]+ pixels", said)
    assert "overlap of up.0, up.1: kernel 2, stride 2, padding 0, even: 1" in said
    assert "not trained" not in said
    assert files(out) == ["cam.png", "field.png", "network.svg", "overlap.png"]
    assert all(Image.open(out / name).width > 500 for name in files(out) if name.endswith(".png"))
    drawn = (out / "network.svg").read_text(encoding="utf-8")
    assert f"written: {out / 'network.svg'}, {out / 'field.png'}" in said.replace("\n", "")
    assert ">UNetModule, one image of 40 x 56</title>" in drawn and ">encoder.2</text>" in drawn


def test_class_layer_and_region(photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a network without transposed convolutions, whose earlier pictures go."""
    (tmp_path / "overlap.png").write_bytes(b"of an earlier call")
    words = [str(KEPT / "hypercolumn.ckpt"), "--image", str(photograph), "--out", str(tmp_path), "--no-fields"]
    main([*words, "--class", "disc", "--layer", "encoder", "--size", "20", "28", "--depth", "1"])
    said = capsys.readouterr().out
    assert "image street.png, 40 x 56 resized to 20 x 28: 20 x 28" in said
    assert "pixel at row 10, column 14" in said and "for disc" in said
    assert "field: theoretical not followed" in said
    assert "no transposed convolution" in said
    assert files(tmp_path) == ["cam.png", "field.png", "network.svg"]


def test_random_weights_and_random_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([*TINY.split(), "--no-fields", "--model.upsample", "transposed-3", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert "not trained: all weights are random" in said and "cam.png is not drawn" in said
    assert "kernel 3, stride 2, padding 1, uneven: 1 to 4" in said
    first = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    assert [*first] == ["field.png", "network.svg", "overlap.png"]
    main([*TINY.split(), "--no-fields", "--model.upsample", "transposed-3", "--out", str(tmp_path)])
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == first


def test_a_network_that_cannot_be_followed_is_drawn_without_its_theoretical_field(photograph: Path) -> None:
    class Rolled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.roll(self.conv(x), 1, -1)

    class RolledModule(SegmentationModule):
        def build(self, num_classes: int, in_channels: int, **options: Any) -> Any:
            return Rolled()

    module, said = RolledModule(2, 255), list[str]()
    meta = explain.build_on_meta(RolledModule, 2)
    args = explain.parse([*TINY.split(), "--image", str(photograph), "--out", "x"])[1]
    view = explain.look(args, module, "")
    figures = draw(Network(meta, *view.size), module, view, Asked(1, None, "predicted", True), said.append)
    assert figures.keys() == {"cam.png", "field.png"} and isinstance(figures["cam.png"], Figure)
    assert any(line.startswith("field: theoretical not followed; effective 95 %") for line in said)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_has_an_effective_field_and_a_map(name: str) -> None:
    entry = ARCHITECTURES[name]
    module = entry.module(3, 255, **entry.small).eval()
    for parameter in module.parameters():  # scores that start at 0 move with nothing
        if not parameter.any():
            nn.init.normal_(parameter)
    layer = Network(explain.build_on_meta(entry.module, 3, **entry.small), 64, 64).deepest
    image = torch.rand(1, 3, 64, 64)
    assert effective_field(module, image, (30, 30)).sum() == pytest.approx(1)
    cam = seg_grad_cam(module, image, layer, 1, torch.ones(64, 64, dtype=torch.bool))
    assert min(cam.shape) > 1 and "encoder" in layer.split(".") and cam.isfinite().all()


def test_an_image_is_resized_as_those_of_the_training(photograph: Path) -> None:
    module: Any = UNetModule(2, 255, in_channels=1, width=4, depth=1)
    args = explain.parse([*TINY.split()[:3], "--image", str(photograph), "--out", "x", "--pixel", "39", "10"])[1]
    whole = explain.look(args, module, "")
    assert (whole.size, whole.pixel, whole.images.shape) == ((40, 56), (39, 10), (1, 1, 40, 56))
    luma = np.asarray(Image.open(photograph).transpose(Image.Transpose.ROTATE_270).convert("L")) / 255
    assert np.allclose(whole.images[0, 0].numpy(), luma, atol=1e-6)
    module.trained = {"reads": {"scale": 0.5}}
    half = explain.look(args, module, "")
    assert (half.size, half.pixel, half.images.shape) == ((20, 28), (19, 5), (1, 1, 20, 28))
    assert half.title == "street.png, 40 x 56 resized to 20 x 28"
    module.trained = {"reads": {"channels": "rgb"}}
    with pytest.raises(ValueError, match="as the network takes, 1, got 3"):
        explain.look(args, module, "")
    module.trained = {"reads": {"channels": "grey", "value_range": [0, 510], "bits": 8, "scale": 1.0}}
    assert torch.allclose(explain.look(args, module, "").images, whole.images / 2, atol=1e-6)
    for odd in ({}, {"reads": None}, {"reads": {"scale": "large"}}, None):
        module.trained = odd
        assert explain.look(args, module, "").size == (40, 56)


def test_a_class_by_its_name_or_its_number() -> None:
    assert class_of("disc", ["ground", "disc", "0"]) == 1
    assert class_of("2", ["ground", "disc", "0"]) == 2
    assert class_of("0", ["ground", "disc", "0"]) == 2  # a name comes first


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (f"{UNET} --image PHOTO", "--image is of pictures, which need a folder: add --out DIR"),
        (f"{UNET} --out OUT --class disc", "--class asks something of an image: add --image FILE"),
        (f"{UNET} --out OUT --image PHOTO --pixel 40 0", "rows 0 to 39 and columns 0 to 55, got 40 0"),
        (f"{UNET} --out OUT --image PHOTO --pixel -1 0", "--pixel expects a whole number of at least 0"),
        (f"{UNET} --out OUT --image PHOTO --class disk", "background, disc, square, .*got 'disk'; did you mean disc"),
        (f"{UNET} --out OUT --image PHOTO --class 3", "a number below 3, got '3'"),
        (f"{UNET} --out OUT --image PHOTO --layer encodr.2", r"--layer must be .*got 'encodr.2'; near are encoder\.2"),
        (f"{UNET} --out OUT --image PHOTO --region all", "region"),
        (f"{UNET} --out OUT --image NOWHERE.png", "NOWHERE.png"),
        (f"{UNET} --out OUT --image {UNET}", "unet.ckpt"),
        (f"{UNET} --num-classes 3", "--num-classes"),
        (f"{KEPT}/none.ckpt", "none.ckpt is not a file: give a checkpoint"),
        (f"{KEPT}/unet.npz", "is not a checkpoint of experiments.train"),
        ("unet --num-classes 2 --in-channels 5 --out OUT --image PHOTO", "as the network takes, 5, got 3"),
        (f"{UNET} --out OUT --image PHOTO --region predicted --class square --no-fields --size 9 9", "predicted as sq"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(
    words: str, said: str, photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out"
    with pytest.raises(SystemExit) as stop:
        main([{"PHOTO": str(photograph), "OUT": str(out)}.get(word, word) for word in words.split()])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert re.search(said, error), error
    assert not out.parent.exists()  # nothing half-written


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SystemExit) as stop:
        main([*TINY.split(), "--out", str(tmp_path / "file")])
    printed = capsys.readouterr()
    assert stop.value.code == 73 and printed.err.startswith("error: cannot write ") and printed.out == ""
