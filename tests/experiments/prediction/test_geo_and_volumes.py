"""Images that know where they are: GeoTIFF window by window, NIfTI slice by slice, and images too large for memory."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_predict import called
from trained import PALETTE, checkpoint, photograph, reading

from datamodules.transforms import resize_image
from experiments import Segmenter
from experiments.prediction.scaled_rows import Axis, combine
from experiments.prediction.volumes import Volume, read_volume

GEO = pytest.mark.extra("geo", "rasterio")


def geotiff(path: Path, pixels: np.ndarray, **profile: Any) -> Path:
    """(H, W, bands) at a place in zone 33 of UTM, a pixel half a metre wide."""
    import rasterio

    place = {"crs": "EPSG:32633", "transform": rasterio.transform.from_origin(4e5, 5e6, 0.5, 0.5)} | profile
    shape = {"height": pixels.shape[0], "width": pixels.shape[1], "count": pixels.shape[2], "dtype": pixels.dtype}
    with rasterio.open(path, "w", driver="GTiff", **shape, **place) as file:
        file.write(np.moveaxis(pixels, 2, 0))
    return path


@pytest.fixture
def pixels(tmp_path: Path) -> np.ndarray:
    return np.asarray(Image.open(photograph(tmp_path / "made.png", 211, 173))).copy()


@GEO
@pytest.mark.parametrize("flags", [[], ["--tile", "40"]])
@pytest.mark.parametrize("scale", [1.0, 0.6])
def test_a_geotiff_keeps_its_place(flags: list[str], scale: float, pixels: np.ndarray, tmp_path: Path) -> None:
    import rasterio

    pixels[20:50, 30:90] = 0
    source = geotiff(tmp_path / "t.tif", pixels, nodata=0)
    ckpt, out = checkpoint(tmp_path, trained=reading(scale=scale)), tmp_path / "out"
    assert called(source, "--checkpoint", ckpt, "--out", out, "--device", "cpu", *flags) == 0
    expected = Segmenter.from_checkpoint(ckpt, device="cpu")(pixels).labels
    unknown = (pixels == 0).all(2)
    with rasterio.open(source) as before, rasterio.open(out / "labels/t.tif") as made:
        assert (made.crs, made.transform, made.shape) == (before.crs, before.transform, before.shape)
        labels = made.read(1)
        assert made.nodata == 255 and (labels[unknown] == 255).all()
        assert (labels[~unknown] == expected[~unknown]).all()
        assert made.colormap(1)[1][:3] == PALETTE[1]
    rows = [*csv.DictReader((out / "stats.csv").open(encoding="utf-8"))]
    assert int(rows[-1]["pixels"]) == (~unknown).sum()
    assert float(rows[-1]["area"]) == pytest.approx(0.25 * (~unknown).sum(), rel=1e-4)
    assert rows[-1]["unit"] == "m²"
    assert (out / "overlay/t.png").exists() and (out / "confidence/t.tif").exists()


@GEO
def test_bands_that_the_network_does_not_take_are_named(
    pixels: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = geotiff(tmp_path / "t.tif", np.concatenate([pixels, pixels[:, :, :2]], axis=2))
    ckpt = checkpoint(tmp_path)
    assert called(source, "--checkpoint", ckpt, "--out", tmp_path / "out", "--device", "cpu") == 2
    assert "has 5 bands, and the network takes 1 or 3" in capsys.readouterr().err
    signed = geotiff(tmp_path / "s.tif", pixels.astype(np.int16) * 40)
    assert called(signed, "--checkpoint", ckpt, "--out", tmp_path / "out", "--device", "cpu") == 2
    assert "must hold uint8, uint16 or floats, got int16" in capsys.readouterr().err
    flags = ["--value-range", "0", "10200", "--device", "cpu"]
    assert called(signed, "--checkpoint", ckpt, "--out", tmp_path / "two", *flags) == 0


@GEO
@pytest.mark.parametrize("scale", [1.0, 0.4])
def test_what_is_too_large_for_memory_goes_window_by_window(scale: float, pixels: np.ndarray, tmp_path: Path) -> None:
    ckpt, source = checkpoint(tmp_path, trained=reading(scale=scale)), tmp_path / "made.png"
    common = [source, "--checkpoint", ckpt, "--device", "cpu"]
    assert called(*common, "--out", tmp_path / "whole") == 0
    flags = ["--max-pixels", "1000", "--tile", "24"]
    assert called(*common, "--out", tmp_path / "windows", *flags) == 0
    whole, windows = (Image.open(tmp_path / name / "labels/made.png") for name in ("whole", "windows"))
    assert windows.mode == "P" and windows.getpalette()[:9] == whole.getpalette()[:9]  # type: ignore[index]
    assert (np.asarray(whole) == np.asarray(windows)).all()
    stats = [(tmp_path / name / "stats.csv").read_text() for name in ("whole", "windows")]
    assert stats[0] == stats[1]
    sure = [
        np.asarray(Image.open(tmp_path / name / "confidence/made.png")).astype(int) for name in ("whole", "windows")
    ]
    assert np.abs(sure[0] - sure[1]).max() <= 1


@pytest.mark.parametrize(("length", "scale"), [(101, 0.37), (64, 1.7), (200, 0.25), (33, 0.5), (40, 1.0)])
def test_rows_are_resized_as_the_whole_image(length: int, scale: float) -> None:
    import torch

    image = torch.rand(3, length, 47)
    height, width = round(length * scale), round(47 * scale)
    expected = resize_image(image, (height, width)).numpy()
    rows, columns = Axis(height, length), Axis(width, 47)
    for start in range(0, height, 7):
        stop = min(start + 7, height)
        first, last = rows.needs(start, stop)
        part = combine(image[:, first:last].numpy(), 1, rows, start, stop, first)
        part = combine(part, 2, columns, 0, width, 0)
        assert np.abs(part - expected[:, start:stop]).max() < 1e-5


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A volume whose voxels a scanner has stored to the left, to the back and up, 2 x 1.5 x 3 mm."""
    import nibabel

    rng = np.random.default_rng(0)
    voxels = rng.integers(0, 256, (23, 31, 5)).astype(np.uint8)
    affine = np.diag([-2.0, -1.5, 3.0, 1.0])
    affine[:3, 3] = 7, 8, 9
    image: Any = nibabel.Nifti1Image(voxels, affine)  # type: ignore[no-untyped-call]
    image.header.set_xyzt_units("mm")
    nibabel.save(image, tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


def test_a_volume_keeps_its_affine(scan: Path, tmp_path: Path) -> None:
    import nibabel

    ckpt = checkpoint(tmp_path, in_channels=1, trained=reading("grey"))
    assert called(scan, "--checkpoint", ckpt, "--out", tmp_path / "out", "--device", "cpu") == 0
    before: Any = nibabel.load(scan)
    made: Any = nibabel.load(tmp_path / "out/labels/scan.nii.gz")
    assert (made.affine == before.affine).all() and made.shape == before.shape
    labels = np.asarray(made.dataobj)
    segmenter = Segmenter.from_checkpoint(ckpt, device="cpu")
    voxels = np.asarray(before.dataobj)
    # Left on the left and the front up: x of the file runs to the left, y to the back.
    for z in range(5):
        seen = voxels[::-1, :, z].T
        assert (segmenter(np.ascontiguousarray(seen)).labels == labels[::-1, :, z].T).all()
    rows = [*csv.DictReader((tmp_path / "out/stats.csv").open(encoding="utf-8"))]
    assert float(rows[-1]["area"]) == pytest.approx(23 * 31 * 5 * 9.0, rel=1e-4)
    assert rows[-1]["unit"] == "mm³"


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_come_back_where_they_were(axis: int, scan: Path) -> None:
    volume = read_volume(scan, axis, 10**6)
    assert isinstance(volume, Volume)
    slices = np.stack([volume[index] for index in range(len(volume))])
    assert (volume.put_back(slices) == np.asarray(volume.image.dataobj)).all()


@pytest.mark.parametrize(("unit", "size"), [("mm", 9.0), ("micron", 9e-9), ("meter", 9e9), ("unknown", None)])
def test_what_a_voxel_covers_is_in_the_unit_of_the_file(unit: str, size: float | None, scan: Path) -> None:
    volume = read_volume(scan, 2, 10**6)
    volume.image.header.set_xyzt_units(unit)
    assert (None if volume.unit is None else volume.unit.size) == (None if size is None else pytest.approx(size))


def test_a_dark_slice_of_a_bright_volume_is_predicted(tmp_path: Path) -> None:
    import nibabel

    voxels = np.zeros((16, 20, 3), np.uint16)
    voxels[..., 0], voxels[..., 1] = 60_000, 900
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / "v.nii.gz")  # type: ignore[no-untyped-call]
    ckpt = checkpoint(tmp_path, in_channels=1, trained=reading("grey"))
    assert called(tmp_path / "v.nii.gz", "--checkpoint", ckpt, "--out", tmp_path / "out", "--device", "cpu") == 0


@GEO
def test_web_mercator_has_no_areas_and_ground_control_points_are_kept(pixels: np.ndarray, tmp_path: Path) -> None:
    import rasterio

    ckpt = checkpoint(tmp_path)
    mercator = geotiff(tmp_path / "m.tif", pixels, crs="EPSG:3857")
    assert called(mercator, "--checkpoint", ckpt, "--out", tmp_path / "out", "--device", "cpu") == 0
    assert "area" not in (tmp_path / "out/stats.csv").read_text().splitlines()[0]
    points = [rasterio.control.GroundControlPoint(r, c, 1000 + c, 2000 - r) for r, c in ((0, 0), (0, 99), (99, 0))]
    with rasterio.open(mercator, "r+") as file:
        file.gcps = (points, file.crs)
    assert called(mercator, "--checkpoint", ckpt, "--out", tmp_path / "two", "--device", "cpu") == 0
    with rasterio.open(tmp_path / "two/labels/m.tif") as made:
        assert [(p.row, p.col, p.x, p.y) for p in made.gcps[0]] == [(p.row, p.col, p.x, p.y) for p in points]


@GEO
def test_white_that_means_nothing_does_not_hide_that_an_image_is_dark(
    pixels: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dark = pixels.astype(np.uint16) * 16
    dark[:9] = 65535
    source = geotiff(tmp_path / "t.tif", dark, nodata=65535)
    assert called(source, "--checkpoint", checkpoint(tmp_path), "--out", tmp_path / "out", "--device", "cpu") == 2
    assert "none above 40" in capsys.readouterr().err


@GEO
def test_large_images_are_read_as_small_ones_or_refused(
    pixels: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ckpt = checkpoint(tmp_path)
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).convert("1").save(tmp_path / "in/bits.png")
    alpha = Image.fromarray(pixels)
    alpha.putalpha(0)
    alpha.save(tmp_path / "in/alpha.png")
    common = [tmp_path / "in", "--checkpoint", ckpt, "--device", "cpu"]
    assert called(*common, "--out", tmp_path / "whole") == 0
    assert called(*common, "--out", tmp_path / "rows", "--max-pixels", "1000") == 0
    for name in ("bits", "alpha"):
        labels = [np.asarray(Image.open(tmp_path / out / f"labels/{name}.png")) for out in ("whole", "rows")]
        assert (labels[0] == labels[1]).all()
    turned = Image.fromarray(pixels)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    source = [tmp_path / "turned.jpg", "--checkpoint", ckpt, "--device", "cpu", "--max-pixels", "1000"]
    assert called(*source, "--out", tmp_path / "three") == 2
    assert "is to be turned by its EXIF orientation" in capsys.readouterr().err
    (tmp_path / "masks").mkdir()
    for flags in (["--score", tmp_path / "masks"], ["--probabilities"]):
        assert called(*common, "--max-pixels", "1000", "--out", tmp_path / "four", *flags) == 2
        assert "can be had of images that are read at once" in capsys.readouterr().err


def test_a_volume_of_no_numbers_or_in_a_series_is_refused(
    tmp_path: Path, scan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import nibabel

    ckpt = checkpoint(tmp_path, in_channels=1, trained=reading("grey"))
    series = nibabel.Nifti1Image(np.zeros((4, 4, 4, 3), np.uint8), np.eye(4))  # type: ignore[no-untyped-call]
    (tmp_path / "v").mkdir()
    nibabel.save(series, tmp_path / "v/series.nii")
    signed = nibabel.Nifti1Image(np.arange(-9, 55, dtype=np.int16).reshape(4, 4, 4), np.eye(4))  # type: ignore[no-untyped-call]
    nibabel.save(signed, tmp_path / "v/signed.nii.gz")
    (tmp_path / "v/cut.nii.gz").write_bytes(scan.read_bytes()[:200])
    assert called(tmp_path / "v", "--checkpoint", ckpt, "--out", tmp_path / "out", "--device", "cpu") == 2
    said = capsys.readouterr().err
    assert "has the shape (4, 4, 4, 3): one volume" in said
    assert "holds floats from -9 to 54" in said and "--value-range" in said
    assert "cut.nii.gz" in said
