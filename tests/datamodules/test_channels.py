"""What a network gets of the bands of an image, by the channels that are chosen and the range of their values."""

import numpy as np
import pytest
from PIL import Image

from datamodules.layouts.pixels import CHANNELS, as_channels

RNG = np.random.default_rng(5)
RGB = RNG.integers(256, size=(24, 32, 3)).astype(np.uint8)
DEEP = RNG.integers(65536, size=(24, 32, 5)).astype(np.uint16)
FLOATS = RNG.normal(size=(24, 32, 5)).astype(np.float32)


@pytest.mark.parametrize("pixels", [RGB, DEEP[..., :3], FLOATS[..., :3]], ids=["uint8", "uint16", "float32"])
def test_grey_is_luma(pixels: np.ndarray) -> None:
    scale = {"uint8": (0, 255), "uint16": (0, 65535)}.get(pixels.dtype.name, (-4, 4))
    grey = as_channels(pixels, "grey", scale, "a")
    assert grey.shape == (1, 24, 32)
    exact = (pixels.astype(float) @ [0.299, 0.587, 0.114] - scale[0]) / (scale[1] - scale[0])
    assert np.abs(grey[0] - exact).max() < 0.51 / (scale[1] - scale[0]) + 1e-5
    if pixels is RGB:
        assert np.array_equal(grey[0] * 255, np.asarray(Image.fromarray(RGB).convert("L")))


def test_rgba_has_alpha_in_full_where_a_file_has_none() -> None:
    two = np.dstack([RGB[..., 0], np.full((24, 32), 51)]).astype(np.uint8)
    assert (as_channels(RGB, "rgba", None, "a")[3] == 1).all()
    assert (as_channels(RGB[..., :1], "rgba", None, "a")[3] == 1).all()
    got = as_channels(two, "rgba", (0, 100), "a", alpha=True)
    assert got.shape == (4, 24, 32)
    assert np.allclose(got[3], 0.2) and np.array_equal(got[0], got[2])  # alpha knows no range
    four = np.dstack([RGB, RGB[..., 0]])
    assert np.array_equal(as_channels(four, "rgba", None, "a"), as_channels(four, "all", None, "a"))


@pytest.mark.parametrize("bands", [2, 4, 5])
@pytest.mark.parametrize("channels", ["rgb", "grey"])
def test_other_bands_have_no_colours(bands: int, channels: str) -> None:
    with pytest.raises(ValueError, match=rf"a.tif has {bands} bands, and channels: {channels} .* channels: all") as e:
        as_channels(np.zeros((4, 4, bands), np.uint8), channels, None, "a.tif")
    assert e.value.code == "E_BANDS"  # type: ignore[attr-defined]


def test_channels_are_one_of_four() -> None:
    assert CHANNELS == ("rgb", "grey", "rgba", "all")
    with pytest.raises(ValueError, match="channels must be one of rgb, grey, rgba, all, got 'gray'"):
        as_channels(RGB, "gray", None, "a")


def test_a_range_is_stretched_and_clipped() -> None:
    pixels = np.array([[[0], [1000]], [[1500], [60000]]], dtype=np.uint16)
    assert as_channels(pixels, "all", (1000, 2000), "a").tolist() == [[[0, 0], [0.5, 1]]]
    huge = np.array([[[-3e38], [3e38]]], dtype=np.float32)
    assert as_channels(huge, "all", (-1e38, 2e38), "a").tolist() == [[[0, 1]]]


@pytest.mark.parametrize("bad", [(1, 1), (2, 1), (0, float("inf")), (float("nan"), 1), (-3e38, 3e38), (0, 1e-60)])
def test_a_range_that_is_none_is_refused(bad: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="value_range must be two finite numbers, the smaller first") as caught:
        as_channels(RGB, "rgb", bad, "a")
    assert caught.value.code == "E_RANGE"  # type: ignore[attr-defined]


def test_floats_need_a_range_and_no_nan() -> None:
    pixels = np.array([[[0.25], [3]], [[-1.5], [2]]], dtype=np.float32)
    with pytest.raises(ValueError, match=r"a.npy holds floats from -1.5 to 3, .*value_range .* \[-1.5, 3\]"):
        as_channels(pixels, "all", None, "a.npy")
    for odd in (np.nan, np.inf, -np.inf):
        pixels[1, 0, 0] = odd
        with pytest.raises(ValueError, match="NaN or infinity in 1 places, the first in row 1, column 0, band 0") as e:
            as_channels(pixels, "all", (0, 1), "a.npy")
        assert e.value.code == "E_RANGE"  # type: ignore[attr-defined]
