"""Names the format of a file that is not read, by how it begins, and how to convert it."""

import re
from io import BytesIO

from PIL import TiffImagePlugin

PILLOW = "convert it: python -c \"from PIL import Image; Image.open('{file}').convert('RGB').save('{stem}.png')\""
NUMPY = (
    'convert it: python -c "import numpy as np; from PIL import Image; '
    "Image.fromarray(np.load('{file}').astype('uint8')).save('{stem}.png')\", with values of 0 to 255"
)
NIFTI = (
    'convert it: python -c "import nibabel, numpy as np; from PIL import Image; '
    "v = nibabel.load('{file}').get_fdata(); "
    "[Image.fromarray((255 * s / v.max()).astype('uint8')).save(f'{stem}_{{i}}.png') for i, s in "
    'enumerate(np.moveaxis(v, 2, 0))]"'
)
DICOM = (
    "convert it: python -c \"import pydicom; from PIL import Image; p = pydicom.dcmread('{file}').pixel_array; "
    "Image.fromarray((255. * (p - p.min()) / (p.max() - p.min())).astype('uint8')).save('{stem}.png')\""
)
HEIC = (
    'pip install pillow-heif, then python -c "import pillow_heif; pillow_heif.register_heif_opener(); '
    "from PIL import Image; Image.open('{file}').convert('RGB').save('{stem}.png')\""
)
GDAL = "convert it: gdal_translate -of PNG -b 1 -b 2 -b 3 -ot Byte -scale {file} {stem}.png"
MAGICK = "convert it: magick {file} {stem}.png"

# Where a signature stands, the signature, what the format is called, and the line that converts a file of it.
SIGNATURES = (
    (4, (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypheim", b"ftypmif1", b"ftypmsf1"), "a HEIC photograph", HEIC),
    (4, (b"ftypavif", b"ftypavis"), "an AVIF image", PILLOW),
    (0, (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"), "a JPEG 2000 image", PILLOW),
    (0, (b"\0\0\0\x0cJXL \r\n\x87\n", b"\xff\x0a"), "a JPEG XL image", "convert it: djxl {file} {stem}.png"),
    (128, (b"DICM",), "a DICOM file", DICOM),
    (344, (b"n+1\0", b"ni1\0"), "a NIfTI volume", NIFTI),
    (4, (b"n+2\0", b"ni2\0"), "a NIfTI volume", NIFTI),
    (0, (b"\x93NUMPY",), "a NumPy array", NUMPY),
    (0, (b"GIF87a", b"GIF89a"), "a GIF image", PILLOW),
    (0, (b"\x76\x2f\x31\x01",), "an OpenEXR image", MAGICK),
    (0, (b"8BPS",), "a Photoshop file", MAGICK),
    (0, (b"%PDF",), "a PDF file", "convert it: pdftoppm -png -r 150 {file} {stem}"),
    (0, (b"\x89HDF",), "an HDF5 file", "save its arrays as PNG, one a file"),
    (0, (b"MATLAB 5.0",), "a MATLAB file", "save its arrays as PNG, one a file"),
    (0, (b"P5", b"P6", b"P4"), "a portable pixmap (PNM)", PILLOW),
    (0, (b"PK\x03\x04",), "a ZIP archive", "unpack it: unzip {file}"),
    (0, (b"version https://git-lfs",), "a pointer of Git LFS instead of the file", "fetch it: git lfs pull"),
)
COMPRESSED = b"\x1f\x8b"
TIFFS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
KINDS = {1: "", 2: " as signed integers", 3: " as floats"}  # tag 339


def named(data: bytes, name: str) -> tuple[str, str] | None:
    """What a file of this content and name is, and the line that makes a PNG of it; None where that is not known."""
    if not re.fullmatch(r"\w[\w.+-]*", name):  # a name is not to say what a line does that people copy
        name = "FILE"
    stem = name.split(".")[0]
    for place, beginnings, what, line in SIGNATURES:
        if data[place:].startswith(beginnings):
            return what, line.format(file=name, stem=stem)
    if data.startswith(COMPRESSED):
        if name.lower().endswith(".nii.gz"):
            return "a compressed NIfTI volume", NIFTI.format(file=name, stem=stem)
        return "a compressed file", f"unpack it: gunzip {name}"
    if data.startswith(TIFFS) and (bands := tiff_bands(data)):
        count, bits, kind = bands
        of = f"a TIFF of {count} band{'s'[: count - 1]} with {bits} bits{kind}"
        return of, GDAL.format(file=name, stem=stem)
    return None


def tiff_bands(data: bytes) -> tuple[int, int, str] | None:
    """How many bands the first picture of a TIFF has, the bits of each, and what kind of number it holds.

    None where its directory cannot be read.
    """
    try:
        header = data[: 16 if 43 in data[2:4] else 8]
        tags = TiffImagePlugin.ImageFileDirectory_v2(header)
        file = BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        if 256 not in tags or 257 not in tags:
            return None
        bits = tags.get(258, (1,))
        return int(tags.get(277, 1)), max(map(int, bits)), KINDS.get(next(iter(tags.get(339, (1,)))), "")
    except Exception:  # noqa: BLE001  # Pillow raises many kinds for what is damaged
        return None
