import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from experiments.soft_segment import MANIFEST, composite, eight_bits, encode, grey, main, of_checkpoint, of_encoder
from lightning_modules.base import SegmentationModule
from lightning_modules.deeplabv3 import DeepLabV3Module
from lightning_modules.pointrend import PointRendModule
from lightning_modules.smp import SmpModule
from lightning_modules.unet import UNetModule

QUICK = ["--layers", "3", "--segments", "6", "--eigenvectors", "12", "--superpixels", "60"]
superpixels = pytest.mark.extra("soft", "skimage")
RANDOM = ["--encoder", "resnet18", "--weights", "none"]


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    """A disc on a slope, 34 x 27, with noise."""
    y, x = np.mgrid[:27, :34]
    pixels = np.stack([4 * x, 6 * y, 90 + 0 * x], -1)
    pixels[(y - 13) ** 2 + (x - 17) ** 2 < 64] = (220, 200, 40)
    pixels = np.clip(pixels + np.random.default_rng(0).normal(0, 4, pixels.shape), 0, 255)
    path = tmp_path / "disc.png"
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def refused(arguments: list[str | Path], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == 2
    return capsys.readouterr().err


def save_checkpoint(module: SegmentationModule, path: Path) -> Path:
    trainer = Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    return path


@superpixels
def test_a_picture_becomes_layers(photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "layers"
    arguments = [str(photograph), "--out", str(out), *RANDOM, *QUICK]
    main(arguments)
    printed = capsys.readouterr().out
    assert [line.rsplit(maxsplit=2)[0] for line in printed.splitlines()[:-1]] == [
        *("encoder", "features", "superpixels", "Laplacian", "eigenvectors", "constrained sparsification"),
        *("grouping", "relaxed sparsification", "files"),
    ]
    image = np.asarray(Image.open(photograph))
    layers = [np.asarray(Image.open(path)) for path in sorted(out.glob("layer_*.png"))]
    assert len(layers) == 3
    assert all(layer.shape == (27, 34, 4) for layer in layers)
    assert (sum(layer[..., 3].astype(int) for layer in layers) == 255).all()
    shares = sum(layer[..., :3] * (layer[..., 3:] / 255) for layer in layers)
    assert np.abs(shares - image).max() <= 1
    assert np.abs(np.asarray(Image.open(out / "composite.png")).astype(int) - image).max() <= 1
    alphas = np.load(out / "alphas.npz")["alphas"]
    assert alphas.shape == (3, 27, 34)
    assert np.abs(alphas.sum(0) - 1).max() < 1e-6
    for alpha, layer in zip(alphas, layers, strict=True):
        assert np.abs(255 * alpha - layer[..., 3]).max() < 1
    stored = np.load(out / "eigenvectors.npz")
    assert stored["eigenvectors"].shape == (12, 27, 34)
    assert (np.diff(stored["eigenvalues"]) >= 0).all()
    assert len(list((out / "eigenvectors").glob("*.png"))) == 12
    record = json.loads((out / MANIFEST).read_text())
    assert (record["height"], record["width"], record["seed"]) == (27, 34, 0)
    present = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert present == {*record["files"], MANIFEST, ".lock"}

    before = {name: (out / name).read_bytes() for name in record["files"] if name.endswith(".png")}
    main(arguments)
    assert before == {name: (out / name).read_bytes() for name in before}
    main([*arguments, "--layers", "2", "--eigenvectors", "8"])  # leaves nothing of the earlier call
    assert len(list(out.glob("layer_*.png"))) == 2
    assert len(list((out / "eigenvectors").glob("*.png"))) == 8


@superpixels
@pytest.mark.parametrize("mode", ["L", "P"])
def test_grey_pictures_and_palettes(mode: str, photograph: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "other.png", tmp_path / "layers"
    Image.open(photograph).convert(mode).save(path)
    main([str(path), "--out", str(out), *RANDOM, *QUICK])
    expected = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert np.abs(np.asarray(Image.open(out / "composite.png")) - expected).max() <= 1


@superpixels
def test_max_side(photograph: Path, tmp_path: Path) -> None:
    for out, side in (("fine", "34"), ("coarse", "17")):  # the encoder sees the whole photograph or its half
        sides = ["--max-side", "17", "--encoder-side", side]
        main([str(photograph), "--out", str(tmp_path / out), *RANDOM, *QUICK, "--maps", "1", *sides])
        assert Image.open(tmp_path / out / "composite.png").size == (17, 14)
    fine, coarse = (np.asarray(Image.open(tmp_path / out / "features.png")) for out in ("fine", "coarse"))
    assert not np.array_equal(fine, coarse)


def test_foreign_files_are_left_alone(photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "layer_1.png").write_text("mine")
    (out / "notes.txt").write_text("mine")
    assert "holds layer_1.png and 1 more, which this command did not write" in refused(
        [photograph, "--out", out], capsys
    )
    assert sorted(path.name for path in out.iterdir()) == ["layer_1.png", "notes.txt"]
    assert (out / "layer_1.png").read_text() == "mine"
    assert "is a file: name a folder" in refused([photograph, "--out", photograph], capsys)


def test_images_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "layers"
    (tmp_path / "text.png").write_text("not a picture")
    Image.new("RGBA", (40, 40)).save(tmp_path / "clear.png")
    Image.new("I;16", (40, 40)).save(tmp_path / "deep.png")
    Image.new("RGB", (500, 1)).save(tmp_path / "line.png")
    for name, message in (
        ("none.png", "none.png is not a file: give the path of a photograph"),
        (".", "is not a file"),
        ("text.png", "text.png is damaged or not an image"),
        ("clear.png", "clear.png holds RGBA pixels: save it as 8-bit RGB or grey without transparency"),
        ("deep.png", "deep.png holds I;16 pixels"),
        ("line.png", "sides of at least 3 pixels, and more than 200 pixels for 100 eigenvectors, got 1 x 500"),
    ):
        assert message in refused([tmp_path / name, "--out", out], capsys)
    assert not out.exists()


def test_an_image_too_large_for_the_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "large.png"
    Image.new("1", (2000, 2000)).save(path)
    message = refused([path, "--out", tmp_path / "layers", "--eigenvectors", "100000"], capsys)
    assert "soft segmentation of 2000 x 2000 pixels (fewer with --max-side)" in message
    assert "GiB" in message


def test_flags(photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = [photograph, "--out", tmp_path / "layers"]
    for flags, message in (
        (["--max-side", "0"], "expected a whole number of at least 1, got '0'"),
        (["--seeed", "3"], "did you mean --seed?"),
        (["--checkpoint", "a.ckpt", "--encoder", "resnet18"], "leave out --encoder and --weights"),
        (["--checkpoint", "a.ckpt"], "a.ckpt is not a file"),
        (
            [*RANDOM, "--eigenvectors", "20", "--maps", "6"],
            "--maps must be among 1, 2, 3, 4, 5 for this encoder, got 6",
        ),
        (["--encoder", "resnet18", "--eigenvectors", "20"], "weights of resnet18 must be None, 'imagenet' or the path"),
    ):
        assert message in refused([*start, *flags], capsys)
    assert not (tmp_path / "layers").exists()


def test_without_scikit_image(
    photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)  # what Python does for a package that is not installed
    message = refused([photograph, "--out", tmp_path / "layers", *RANDOM, *QUICK], capsys)
    assert 'pip install -e ".[soft]"' in message
    assert not (tmp_path / "layers").exists()


@pytest.mark.parametrize(
    "module",
    [
        DeepLabV3Module(3, 255, encoder="resnet18"),
        DeepLabV3Module(3, 255, encoder="resnet18", in_channels=1),
        PointRendModule(3, 255, network="deeplabv3plus", network_options={"encoder": "resnet18"}),
        SmpModule(3, 255, arch="FPN", encoder="resnet18"),
    ],
    ids=["native", "grey", "point-rend", "smp"],
)
def test_the_encoder_of_a_checkpoint(module: SegmentationModule, photograph: Path, tmp_path: Path) -> None:
    features, in_channels = of_checkpoint(save_checkpoint(module, tmp_path / "last.ckpt"))
    image = np.asarray(Image.open(photograph))
    maps = encode(image, features, in_channels, [1, 2])
    assert [m.shape for m in maps] == [(64, 14, 17), (64, 7, 9)]
    assert encode(image, features, in_channels, None)[0].shape == (128, 4, 5)
    other = encode(255 - image, features, in_channels, [1])
    assert np.abs(other[0] - maps[0]).max() > 0.01


def test_a_checkpoint_without_encoder(tmp_path: Path) -> None:
    path = save_checkpoint(UNetModule(3, 255, width=2, depth=1), tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="UNetModule has no encoder that gives its maps"):
        of_checkpoint(path)


def test_an_image_is_normalised_as_its_encoder_wants() -> None:
    torch.manual_seed(0)
    features, in_channels = of_encoder("resnet18", None)
    grey_of_imagenet = np.full((32, 32, 3), (124, 116, 104), dtype=np.uint8)  # the mean colour: nearly zeros
    (first,) = encode(grey_of_imagenet, features, in_channels, [1])
    (white,) = encode(np.full((32, 32, 3), 255, dtype=np.uint8), features, in_channels, [1])
    assert np.abs(first).mean() < 0.02 * np.abs(white).mean()


def test_eight_bits_sum_to_255() -> None:
    alphas = np.random.default_rng(0).dirichlet([0.3] * 7, (40, 50))
    alphas[0, 0] = np.eye(7)[2]
    alphas[0, 1] = 1 / 7
    levels = eight_bits(alphas)
    assert (levels.sum(-1, dtype=int) == 255).all()
    assert np.abs(levels - 255 * alphas).max() < 1
    assert levels[0, 0].tolist() == [0, 0, 255, 0, 0, 0, 0]
    assert sorted(levels[0, 1]) == [36, 36, 36, 36, 37, 37, 37]


def test_composite_by_hand() -> None:
    front = np.array([[[200, 0, 10, 51]]], dtype=np.uint8)
    behind = np.array([[[100, 50, 10, 204]]], dtype=np.uint8)
    assert composite([front, behind])[0, 0].tolist() == [120, 40, 10]  # a fifth and four fifths


def test_grey_spans_all_levels() -> None:
    assert grey(np.array([[-2.0, 0.0, 3.0]])).tolist() == [[0, 102, 255]]
    assert grey(np.array([[0.3, 0.3], [0.3, 0.3 + 1e-16]])).tolist() == [[128, 128], [128, 128]]
