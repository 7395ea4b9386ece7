"""NIfTI volumes, predicted slice by slice; the labels keep the affine of the image. By nibabel."""

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.checks.problems import shown
from experiments.prediction.stats import Unit
from experiments.shell.files import write_whole

MILLIMETRES = {"meter": 1000.0, "mm": 1.0, "micron": 0.001}  # of a unit that NIfTI knows
AXES = ("sagittal", "coronal", "axial")  # what a slice across x, y and z is called


@dataclass
class Volume:
    """A scan (X, Y, Z), seen in slices across one of its axes.

    A slice is looked at as `BrainDataModule` has them: left on the left, the front (or the top) of the body up. So rows
    and columns do not depend on the order in which a scanner has stored the voxels.

    Args:
        image: of nibabel
        closest: the same voxels in the order right, front, top
        axis: across which slices are cut: 0 sagittal, 1 coronal, 2 axial
    """

    image: Any
    closest: Any
    axis: int

    def __post_init__(self) -> None:
        self.voxels = np.asarray(self.closest.dataobj)
        if self.voxels.dtype.kind in "iub" and self.voxels.dtype not in (np.uint8, np.uint16):
            self.voxels = self.voxels.astype(np.float32)  # of whole numbers with a sign: a range says what they mean
        elif self.voxels.dtype == np.float64:
            self.voxels = self.voxels.astype(np.float32)

    def __len__(self) -> int:
        return int(self.voxels.shape[self.axis])

    def __getitem__(self, index: int) -> NDArray[Any]:
        """(H, W) of a slice."""
        return np.ascontiguousarray(_looked_at(self.voxels.take(index, self.axis)))

    @property
    def unit(self) -> Unit | None:
        """The volume of a voxel; None where the file does not say in which unit its sides are."""
        factor = MILLIMETRES.get(self.image.header.get_xyzt_units()[0])
        if factor is None:
            return None
        return Unit(float(np.prod(self.image.header.get_zooms()[:3])) * factor**3, "mm³")

    def names(self, stem: str) -> Iterator[str]:
        return (f"{stem} {AXES[self.axis]} {index}" for index in range(len(self)))

    def put_back(self, slices: NDArray[Any]) -> NDArray[Any]:
        """Slices (n, H, W) -> (X, Y, Z) in the order in which the file has its voxels."""
        from nibabel import orientations as typed

        orientations: Any = typed
        planes = np.stack([_back(one) for one in slices], axis=self.axis)
        way = orientations.ornt_transform(
            orientations.io_orientation(self.closest.affine), orientations.io_orientation(self.image.affine)
        )
        turned: NDArray[Any] = orientations.apply_orientation(planes, way)
        return turned

    def write(self, path: Path, slices: NDArray[Any]) -> None:
        """Slices (n, H, W) as NIfTI with the affine and the units of the scan."""
        import nibabel as typed

        nibabel: Any = typed
        data = self.put_back(slices)
        header = self.image.header.copy()
        header.set_data_dtype(data.dtype)
        header.set_slope_inter(1, 0)
        header["cal_min"] = header["cal_max"] = 0
        made = nibabel.Nifti1Image(data, self.image.affine, header)
        content = made.to_bytes()

        def save(file: Any) -> None:
            with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=6, mtime=0) as packed:
                packed.write(content)

        write_whole(path, save)


def _looked_at(plane: NDArray[Any]) -> NDArray[Any]:
    return plane[:, ::-1].T


def _back(plane: NDArray[Any]) -> NDArray[Any]:
    return plane.T[:, ::-1]


def read_volume(path: Path, axis: int, max_voxels: int) -> Volume:
    """Raises ValueError, naming the file, for what is no volume of numbers, or too large."""
    try:
        import nibabel as typed
    except ImportError as error:
        raise ValueError(f'{path.name} needs nibabel: pip install -e ".[medical]"') from error
    nibabel: Any = typed
    name = shown(str(path))
    try:
        image: Any = nibabel.load(path)
        shape, kind = tuple(image.shape), image.get_data_dtype()
    except Exception as error:  # of a dozen kinds, by what is broken
        said = " ".join(str(error).split())[:120]
        raise ValueError(f"{name} cannot be read as NIfTI: {said}") from error
    if not isinstance(image, nibabel.Nifti1Image):
        raise ValueError(f"{name} is no NIfTI file, but {type(image).__name__}")  # noqa: TRY004
    if len(shape) == 4 and shape[3] == 1:
        image = image.slicer[..., 0]
        shape = shape[:3]
    if len(shape) != 3 or not all(shape):
        raise ValueError(f"{name} has the shape {shape}: one volume (X, Y, Z) is predicted; split a series up")
    if kind.kind not in "iuf":
        raise ValueError(f"{name} holds {kind}, and grey values are numbers")
    if np.prod(shape, dtype=np.int64) > max_voxels:
        raise ValueError(f"{name} has {np.prod(shape, dtype=np.int64):,} voxels, more than {max_voxels:,}: crop it")
    try:
        return Volume(image, nibabel.as_closest_canonical(image), axis)
    except Exception as error:
        said = " ".join(str(error).split())[:120]
        raise ValueError(f"{name} is damaged or cut off: {said}") from error
