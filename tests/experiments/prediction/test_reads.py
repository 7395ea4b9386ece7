"""What does not fit a network is refused by name, and what fits is read as data modules read it."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from trained import checkpoint, module_of, photograph, reading, saved

from datamodules.layouts.source import Source
from experiments import Segmenter
from experiments.prediction.reads import Reads, as_image, reads_of
from experiments.prediction.sources import items

RGB, GREY = Reads(in_channels=3, channels="rgb", bits=8), Reads(in_channels=1, channels="grey", bits=8)
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)

REFUSED: dict[str, tuple[Any, str]] = {
    "0 to 255 as floats": (
        PIXELS.astype(np.float32),
        r"holds floats from .* to 25\d, .*: divide by 255, or give uint8",
    ),
    "a tensor of 0 to 255": (torch.from_numpy(PIXELS.copy()).permute(2, 0, 1).float(), "divide by 255"),
    "normalised": (PIXELS / 127.5 - 1.0, "scale it to 0 to 1"),
    "NaN": (np.full((4, 4, 3), np.nan, np.float32), "NaN or infinity"),
    "int64": (PIXELS.astype(np.int64), "must hold uint8, uint16 or floats, got int64: .*astype"),
    "bool": (PIXELS > 3, "must hold uint8, uint16 or floats, got bool"),
    "channels first": (
        np.moveaxis(np.zeros((9, 12, 3), np.uint8), 2, 0),
        r"must be \(H, W, C\), got the shape \(3, 9, 12\)",
    ),
    "channels last in a tensor": (torch.zeros(9, 12, 3), r"must be a tensor \(C, H, W\), got .*: permute\(2, 0, 1\)"),
    "a batch": (torch.zeros(2, 3, 9, 12), r"got the shape \(2, 3, 9, 12\); several images go one by one"),
    "four axes": (np.zeros((2, 5, 5, 3), np.uint8), r"\(H, W\) or \(H, W, C\), got the shape"),
    "five bands": (np.zeros((5, 5, 5), np.uint8), "has 5 bands, and the network takes 1 or 3"),
    "no pixels": (np.zeros((0, 5, 3), np.uint8), "has no pixels"),
    "12 of 16 bits": (
        (PIXELS.astype(np.uint16) << 4),
        "none above 40.*state the value that is white.*--value-range 0 4095",
    ),
    "masked": (np.ma.masked_less(PIXELS, 9), "is a masked array, and what is masked would be predicted"),
    "a list": ([[1, 2], [3, 4]], "must be a path, a PIL image, an array .* got list"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_does_not_fit_is_refused_by_name(kind: str) -> None:
    picture, why = REFUSED[kind]
    with pytest.raises(ValueError, match=why) as caught:
        as_image(picture, RGB, "picture 7")
    assert "picture 7" in str(caught.value)


def test_grey_and_colour_become_what_the_network_takes() -> None:
    grey = PIXELS[:, :, 0]
    assert torch.equal(as_image(grey, RGB), torch.from_numpy(grey / np.float32(255)).expand(3, -1, -1))
    luma = np.asarray(Image.fromarray(PIXELS).convert("L")) / np.float32(255)
    assert torch.equal(as_image(PIXELS, GREY)[0], torch.from_numpy(luma))
    assert torch.equal(as_image(PIXELS, RGB), torch.from_numpy(PIXELS / np.float32(255)).permute(2, 0, 1))


def test_alpha_is_dropped_and_palettes_are_colours() -> None:
    picture = Image.fromarray(PIXELS)
    expected = as_image(PIXELS, RGB)
    rgba = picture.convert("RGBA")
    rgba.putalpha(100)
    assert torch.equal(as_image(rgba, RGB), expected)
    assert torch.equal(as_image(np.asarray(rgba), RGB), expected)
    palette = picture.quantize(16)
    assert torch.equal(as_image(palette, RGB), as_image(palette.convert("RGB"), RGB))


def test_the_order_of_bytes_of_16_bits_does_not_matter(tmp_path: Path) -> None:
    values = (PIXELS[:, :, 0].astype(np.uint16) * 257).astype(">u2")
    big = Image.frombytes("I;16B", (7, 5), values.tobytes())
    assert torch.equal(as_image(big, RGB), as_image(PIXELS[:, :, 0], RGB))


def test_a_range_that_the_data_state_is_applied() -> None:
    reads = Reads(in_channels=1, channels="grey", value_range=(100.0, 1100.0), bits=16)
    values = np.array([[0, 100, 600, 1100, 4000]], np.uint16)
    assert as_image(values, reads)[0].tolist() == [[0.0, 0.0, 0.5, 1.0, 1.0]]
    assert as_image(values.astype(np.float32), reads)[0].tolist() == [[0.0, 0.0, 0.5, 1.0, 1.0]]
    with pytest.raises(ValueError, match="holds 8 bits a value, where 100 to 1100 become 0 to 1"):
        as_image(values.astype(np.uint8), reads)
    with pytest.raises(ValueError, match="value_range must be two numbers, the smaller first"):
        reads.but(value_range=(3.0, 3.0))
    with pytest.raises(ValueError, match="scale must be more than 0"):
        reads.but(scale=-1.0)


def test_a_file_is_read_as_a_folder_of_data_reads_it(tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg", "c.bmp"):
        path = photograph(tmp_path / "images" / name)
        source = Source(tmp_path)
        assert torch.equal(as_image(path, RGB), torch.from_numpy(source.image(path)))
    with pytest.raises(FileNotFoundError, match=r"none\.png is not there"):
        as_image(tmp_path / "none.png", RGB)


def test_a_checkpoint_from_before_is_asked_and_its_run_is(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "checkpoints", trained={})
    module = module_of("unet")
    with pytest.warns(UserWarning, match="does not say at which scale"):
        assert reads_of(module, path).scale == 1.0
    (tmp_path / "run.json").write_text('{"data": {"scale": 0.25, "crop": 64}}')
    assert reads_of(module, path) == Reads(in_channels=3, channels="rgb", scale=0.25)


@pytest.mark.parametrize(
    "wrong", [{"scale": 0}, {"scale": "a"}, {"channels": "cmyk"}, {"value_range": [3, 2]}, {"value_range": [1]}]
)
def test_what_no_version_has_written_is_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    path = saved(module_of("unet"), tmp_path / "last.ckpt", reading(**wrong))
    with pytest.raises(ValueError, match="what no version of this project has written"):
        Segmenter.from_checkpoint(path, device="cpu")


@pytest.mark.parametrize("key", ["b/i//a.png", "b/i/./a.png", "b/i/../../../a.png"])
def test_an_object_whose_name_leads_elsewhere_is_refused(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Bucket:
        def find(self, root: str, detail: bool) -> dict[str, dict[str, int]]:
            return {key: {"size": 1}}

        def unstrip_protocol(self, path: str) -> str:
            return f"s3://{path}"

    monkeypatch.setattr("experiments.prediction.sources.opened", lambda url, name: (Bucket(), "b/i"))
    with pytest.raises(ValueError, match=f"s3://b/i holds {re.escape(key)}, which is no path of a file"):
        items(["s3://b/i"], out=Path("out"))
