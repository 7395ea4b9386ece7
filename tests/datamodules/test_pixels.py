"""Images of any number of bands, of 8 or 16 bits or floats: what is read of each kind, and what is refused."""

import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kinds import encoded, png, tiff
from PIL import Image

from datamodules.files import read_image
from datamodules.layouts.pixels import as_channels, bands_of, read_channels, read_pixels

MOST = 10**6
RNG = np.random.default_rng(5)
RGB = RNG.integers(256, size=(24, 32, 3)).astype(np.uint8)
DEEP = RNG.integers(65536, size=(24, 32, 5)).astype(np.uint16)
FLOATS = RNG.normal(size=(24, 32, 5)).astype(np.float32)
extra = pytest.mark.extra("bands", "imagecodecs", "tifffile")


def code_of(path: Path, **more: Any) -> str:
    with pytest.raises(ValueError) as caught:
        read_channels(path, "all", None, MOST, **more)
    assert path.name in str(caught.value)
    return str(getattr(caught.value, "code", "none"))


def save(path: Path, pixels: np.ndarray | Image.Image, **options: Any) -> Path:
    made = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    made.save(path, **options)
    return path


def save_tiff(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    import tifffile

    if pixels.ndim == 3:  # otherwise taken for pages
        options.setdefault("planarconfig", "contig")
    tifffile.imwrite(path, pixels, **options)
    return path


def paletted() -> Image.Image:
    image = Image.fromarray(RGB[:, :, 0] % 3)
    image.putpalette([9, 8, 7, 200, 100, 50, 0, 255, 0])
    return image


# --- 8 bits, as ever


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA", "LA"])
def test_8_bits_are_what_read_image_gives(form: str, mode: str, tmp_path: Path) -> None:
    image = paletted() if mode == "P" else Image.fromarray(RGB).convert(mode)
    try:
        path = save(tmp_path / "a", image, format=form)
    except (OSError, KeyError):
        pytest.skip(f"no {mode} in {form}")
    pixels, header = read_pixels(path, MOST), bands_of(path)
    assert pixels.dtype == np.uint8 and pixels.shape == (24, 32, header.count)
    assert (header.bits, header.kind, header.width, header.height) == (8, "uint", 32, 24)
    assert header.has_alpha == (Image.open(path).mode in ("RGBA", "LA"))
    as_read = read_image(path)
    expected = np.divide(as_read.transpose(2, 0, 1), np.float32(255), dtype=np.float32)
    got = as_channels(pixels, "rgb", None, "a", alpha=header.has_alpha)
    assert got.flags.c_contiguous and got.dtype == np.float32
    assert np.array_equal(got, expected)
    assert np.array_equal(as_channels(pixels, "rgb", (0, 255), "a", alpha=header.has_alpha), expected)


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize(("form", "deep"), [("JPEG", False), ("PNG", False), ("TIFF", False), ("PNG", True)])
def test_exif_turns_it_upright(orientation: int, form: str, deep: bool, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a", DEEP[:, :, 0] if deep else RGB, format=form, exif=exif)
    pixels = read_pixels(path, MOST)
    if deep:
        save(tmp_path / "b", Image.fromarray((DEEP[:, :, 0] >> 8).astype(np.uint8)), format=form, exif=exif)
        assert np.array_equal(pixels[:, :, 0] >> 8, read_image(tmp_path / "b")[:, :, 0])
    else:
        assert np.array_equal(pixels, read_image(path))


def test_what_stands_for_transparent_is_alpha(tmp_path: Path) -> None:
    for number, (image, value) in enumerate([(paletted(), 1), (Image.fromarray(RGB[..., 0] % 3), 1)]):
        path = save(tmp_path / f"{number}.png", image, transparency=value)
        header, pixels = bands_of(path), read_pixels(path, MOST)
        assert header.has_alpha and pixels.shape[2] == header.count == (4, 2)[number]
        assert np.array_equal(pixels[:, :, -1], np.where(RGB[..., 0] % 3 == 1, 0, 255))
        assert np.array_equal(as_channels(pixels, "rgb", None, "a", alpha=True)[0] * 255, read_image(path)[..., 0])


# --- 16 bits and floats


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_grey_is_as_stored(form: str, tmp_path: Path) -> None:
    path = save(tmp_path / "a", DEEP[:, :, 0], format=form)
    pixels = read_pixels(path, MOST)
    assert pixels.dtype == np.uint16 and np.array_equal(pixels[:, :, 0], DEEP[:, :, 0])
    assert bands_of(path).said == "1 band of 16 bits"
    grey = as_channels(pixels, "grey", None, "a")
    assert np.array_equal(grey[0], DEEP[:, :, 0] / np.float32(65535))


def test_a_float_tiff_of_one_band_needs_no_extra(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", FLOATS[:, :, 0])
    assert np.array_equal(read_pixels(path, MOST)[:, :, 0], FLOATS[:, :, 0])
    assert bands_of(path).kind == "float"


@extra
@pytest.mark.parametrize("bands", [2, 3, 4])
def test_16_bit_png_of_more_bands(bands: int, tmp_path: Path) -> None:
    import imagecodecs

    path = tmp_path / "a.png"
    pixels = np.ascontiguousarray(DEEP[:, :, :bands])
    path.write_bytes(imagecodecs.png_encode(pixels))
    assert np.array_equal(read_pixels(path, MOST), pixels)
    assert (bands_of(path).count, bands_of(path).has_alpha) == (bands, bands != 3)


@extra
@pytest.mark.parametrize("compression", [None, "deflate", "lzw", "packbits", "zstd", "lzma"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("pixels", [DEEP, FLOATS, FLOATS.astype(np.float64), (DEEP >> 8).astype(np.uint8)], ids=str)
def test_tiff_of_five_bands(
    compression: str | None, planar: str, tile: tuple[int, int] | None, pixels: np.ndarray, tmp_path: Path
) -> None:
    stored = np.moveaxis(pixels, 2, 0) if planar == "separate" else pixels
    options = {"compression": compression, "planarconfig": planar, "tile": tile, "photometric": "minisblack"}
    path = save_tiff(tmp_path / "a.tif", stored, predictor=compression == "deflate" or None, **options)
    got = read_pixels(path, MOST)
    assert got.dtype == (np.float32 if pixels.dtype.kind == "f" else pixels.dtype)
    assert np.array_equal(got, pixels)
    assert bands_of(path).count == 5 and not bands_of(path).has_alpha
    assert read_channels(path, "all", (-9, 9), MOST).shape == (5, 24, 32)


@extra
@pytest.mark.parametrize("options", [{"byteorder": ">"}, {"bigtiff": True}, {"byteorder": ">", "bigtiff": True}])
@pytest.mark.parametrize("bands", [1, 3, 5])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_big_endian_and_big_tiff(options: dict[str, Any], bands: int, kind: type, tmp_path: Path) -> None:
    pixels = (DEEP[:, :, :bands] >> 8).astype(kind)
    path = save_tiff(tmp_path / "a.tif", pixels.squeeze(), photometric="rgb" if bands == 3 else "minisblack", **options)
    assert np.array_equal(read_pixels(path, MOST), pixels)


@extra
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("pixels", [RGB, DEEP], ids=["8 bits", "16 bits"])
def test_a_smaller_copy_is_no_second_picture(first: bool, pixels: np.ndarray, tmp_path: Path) -> None:
    import tifffile

    colours = "rgb" if pixels is RGB else "minisblack"
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for full in (first, not first):
            file.write(
                pixels if full else pixels[::2, ::2],
                photometric=colours,
                planarconfig="contig",
                subfiletype=int(not full),
            )
    assert np.array_equal(read_pixels(tmp_path / "a.tif", MOST), pixels)


@extra
def test_sub_directories_are_no_pictures_and_pages_are(tmp_path: Path) -> None:
    import tifffile

    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(DEEP, photometric="minisblack", planarconfig="contig", subifds=1)
        file.write(DEEP[::2, ::2], photometric="minisblack", planarconfig="contig", subfiletype=1)
    assert np.array_equal(read_pixels(tmp_path / "a.tif", MOST), DEEP)
    save_tiff(tmp_path / "b.tif", np.stack([DEEP[..., 0]] * 3), photometric="minisblack", planarconfig=None)
    assert code_of(tmp_path / "b.tif") == "E_MULTIFRAME"


@extra
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_of_five_bands_is_turned_too(orientation: int, tmp_path: Path) -> None:
    tag = [(274, "H", 1, orientation, True)]
    path = save_tiff(tmp_path / "a.tif", DEEP, photometric="minisblack", extratags=tag)
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(tmp_path / "b.png", DEEP[:, :, 3], exif=exif)
    assert np.array_equal(read_pixels(path, MOST)[:, :, 3], read_pixels(tmp_path / "b.png", MOST)[:, :, 0])


@extra
def test_alpha_of_a_tiff_is_known_from_its_tag(tmp_path: Path) -> None:
    rgbi = save_tiff(tmp_path / "a.tif", DEEP[..., :4], photometric="rgb", extrasamples=["unspecified"])
    rgba = save_tiff(tmp_path / "b.tif", DEEP[..., :4], photometric="rgb", extrasamples=["unassalpha"])
    assert [bands_of(path).has_alpha for path in (rgbi, rgba)] == [False, True]
    assert np.array_equal(read_pixels(rgbi, MOST), DEEP[..., :4])
    with pytest.raises(ValueError, match=r"a.tif has 4 bands, and channels: rgb takes 1 or 3; choose channels: all"):
        read_channels(rgbi, "rgb", None, MOST)
    with pytest.raises(ValueError, match=r"b.tif has 4 bands of 16 bits, the last one alpha, .* choose channels: rgba"):
        read_channels(rgba, "rgb", None, MOST)
    assert read_channels(rgba, "rgb", None, MOST, drop_alpha=True).shape == (3, 24, 32)
    assert read_channels(rgba, "rgba", None, MOST).shape == (4, 24, 32)


@pytest.mark.parametrize("kind", ["u1", "<u2", ">u2", "f2", "<f4", ">f4", "f8"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("bands", [0, 1, 5])
def test_arrays(kind: str, order: str, bands: int, tmp_path: Path) -> None:
    pixels = np.asarray(DEEP[..., :bands] >> 1 if bands else DEEP[..., 0] >> 1).astype(kind)
    np.save(tmp_path / "a.npy", np.array(pixels, order=order))  # type: ignore[call-overload]
    got, header = read_pixels(tmp_path / "a.npy", MOST), bands_of(tmp_path / "a.npy")
    assert np.array_equal(got, pixels.reshape(24, 32, -1).astype(got.dtype), equal_nan=True)
    assert got.dtype.isnative and got.dtype == {"u1": np.uint8, "u2": np.uint16}.get(kind[-2:], np.float32)
    assert (header.count, header.width, header.height) == (max(bands, 1), 32, 24)


# --- what is refused


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (encoded(RGB, "PNG")[:-60], "E_DECODE"),
        (b"<!DOCTYPE html>", "E_DECODE"),
        (b"GIF89a", "E_FORMAT"),
        (b"", "E_EMPTY_FILE"),
        (png(13000, 13000), "E_TOO_MANY_PIXELS"),
        (png(30000, 30000, 16, 2)[:33] + png(8, 8, 16, 2)[8:], "E_DECODE"),  # two headers
        (png(20000, 20000), "E_TOO_MANY_PIXELS"),
        (tiff(5, 32, 2), "E_IMAGE_MODE"),
        (tiff(1, 16, 2), "E_IMAGE_MODE"),
        (tiff(1, 8, 2), "E_IMAGE_MODE"),
        (tiff(4, 8, photometric=5), "E_IMAGE_MODE"),
        (tiff(1, 16, photometric=0), "E_IMAGE_MODE"),
        (tiff(5, 16)[:-30], "E_DECODE"),
        (b"II*\0\x08\0\0\0\x01\0" + bytes(12) + b"\x08\0\0\0", "E_DECODE"),  # pages in a circle
        (b"II*\0" + b"\xff" * 60, "E_DECODE"),
        (b"II+\0\x08\0\0\0" + b"\xff" * 60, "E_DECODE"),
    ],
    ids=str,
)
def test_what_is_damaged_or_not_taken_has_its_code(content: bytes, code: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    assert code_of(path) == code
    if code not in ("E_TOO_MANY_PIXELS", "E_DECODE"):
        with pytest.raises(ValueError) as caught:
            bands_of(path)
        assert caught.value.code == code  # type: ignore[attr-defined]


def test_cmyk_and_several_frames_are_refused(tmp_path: Path) -> None:
    assert code_of(save(tmp_path / "a.jpg", Image.fromarray(RGB).convert("CMYK"))) == "E_IMAGE_MODE"
    frames = [Image.fromarray(RGB), Image.fromarray(RGB[::-1].copy())]
    for ending in ("webp", "png", "tif"):
        frames[0].save(tmp_path / f"b.{ending}", save_all=True, append_images=frames[1:])
        assert code_of(tmp_path / f"b.{ending}") == "E_MULTIFRAME", ending


def with_shape(shape: str, kind: str = "<f4") -> bytes:
    text = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(64)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (with_shape("(10**15,)"), "E_DECODE"),
        (with_shape("(1000000000000, 1000)"), "E_DECODE"),
        (with_shape("(4, 4)", "|O"), "E_IMAGE_MODE"),
        (with_shape("(4, 4)", "<i4"), "E_IMAGE_MODE"),
        (with_shape("(4, 4)", "<c8"), "E_IMAGE_MODE"),
        (with_shape("(16,)"), "E_BANDS"),
        (with_shape("(2, 2, 2, 2)"), "E_BANDS"),
        (with_shape("(4, 0)"), "E_BANDS"),
        (with_shape("(-4, -4)"), "E_BANDS"),
        (with_shape("(4, 5)"), "E_DECODE"),
        (with_shape("(" * 90), "E_DECODE"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{", "E_DECODE"),
        (b"\x93NUMPY\x09\x00", "E_DECODE"),
    ],
)
def test_an_array_that_lies_takes_no_memory(content: bytes, code: str, tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    assert code_of(tmp_path / "a.npy") == code


def test_too_many_numbers_are_seen_in_the_header(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((10, 10, 5), np.uint8))
    with pytest.raises(ValueError, match=r"10 x 10 pixels, more than 9.9e-05 million; cut it up"):
        read_pixels(tmp_path / "a.npy", 99)
    with pytest.raises(ValueError, match=r"5 bands, more than 0.00048 million numbers; cut it up, or leave bands out"):
        read_pixels(tmp_path / "a.npy", 120)
    assert read_pixels(tmp_path / "a.npy", 125).shape == (10, 10, 5)


@extra
def test_a_part_that_is_missing_or_a_method_that_is_not_known(tmp_path: Path) -> None:
    for method, code in (("jpeg2000", "E_FORMAT"), ("deflate", "E_DECODE")):
        path = save_tiff(tmp_path / f"{method}.tif", DEEP, photometric="minisblack", compression=method)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 255
        path.write_bytes(content)
        assert code_of(path) == code
    import tifffile

    path = save_tiff(tmp_path / "sparse.tif", DEEP, photometric="minisblack", tile=(16, 16))
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags[325].overwrite((0, *file.pages[0].tags[325].value[1:]))
    assert code_of(path) == "E_DECODE"


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    (tmp_path / "a.tif").write_bytes(tiff(5, 16))
    with pytest.raises(
        ValueError, match=r'5 bands of 16 bits, for which tifffile .*: pip install -e "\.\[bands\]"'
    ) as e:
        read_pixels(tmp_path / "a.tif", MOST)
    assert e.value.code == "E_FORMAT"  # type: ignore[attr-defined]
    (tmp_path / "a.png").write_bytes(png(32, 24, 16, 2, (b"\0" + bytes(range(192))) * 24))
    with pytest.raises(ValueError, match=r"3 bands of 16 bits, for which imagecodecs is .*\[bands\]"):
        read_pixels(tmp_path / "a.png", MOST)


@extra
@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, as it reads on
@pytest.mark.parametrize("seed", range(8))
def test_random_damage_ends_in_a_code_or_in_pixels(seed: int, tmp_path: Path) -> None:
    rng, buffer = np.random.default_rng(seed), BytesIO()
    np.save(buffer, DEEP)
    import imagecodecs

    sources = [tiff(5, 16), tiff(1, 16), buffer.getvalue(), imagecodecs.png_encode(np.ascontiguousarray(DEEP[..., :3]))]
    for number, options in enumerate([{"compression": "lzw"}, {"tile": (16, 16), "bigtiff": True}]):
        path = save_tiff(tmp_path / f"{number}.tif", DEEP, photometric="minisblack", **options)
        sources.append(path.read_bytes())
    path = tmp_path / "a"
    for _ in range(60):
        content = bytearray(sources[rng.integers(len(sources))])
        # Where headers and directories lie: at either end.
        for place in rng.integers(0, 400, size=rng.integers(1, 6)):
            content[place if rng.random() < 0.5 else -1 - place] = rng.choice([0, 1, 255, rng.integers(256)])
        path.write_bytes(content[: rng.integers(1, len(content))] if rng.random() < 0.2 else content)
        try:
            assert read_pixels(path, MOST).ndim == 3
        except ValueError as error:
            assert getattr(error, "code", "").startswith("E_"), error
