"""BrainDataModule: axial slices of the MNI152 brain with its tissues, the data set that needs no download.

Template: Fonov et al., Unbiased average age-appropriate atlases for pediatric studies, NeuroImage 54, 2011,
https://doi.org/10.1016/j.neuroimage.2010.07.033 (ICBM 152, 2009). It ships inside the nilearn wheel.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.base import Loading, SegmentationDataModule, SegmentationDataset
from datamodules.scale import Scale
from datamodules.transforms import resize, scaled_size

# Slice numbers z (1 mm each). Neighbours are nearly equal: splits are blocks with at least 4 unused slices between.
BLOCKS = {
    "train": [range(16, 44), range(60, 72), range(88, 98), range(114, 146)],
    "val": [range(76, 84)],
    "test": [range(48, 56), range(102, 110)],
}


@cache
def read_template() -> tuple[Tensor, Tensor]:
    """T1 in [0, 1], float32 (189, 233, 197), and tissue labels, uint8: slices, anterior up, left on the left."""
    from nilearn import datasets  # takes a second; only needed here

    def voxels(name: str) -> np.ndarray:  # (x to the right, y to the front, z up), 1 mm
        return getattr(datasets, f"load_mni152_{name}template")(resolution=1).get_fdata(dtype=np.float32)

    t1, grey, white = voxels(""), voxels("gm_"), voxels("wm_")
    labels = np.stack([1 - grey - white, grey, white]).argmax(axis=0) + 1
    labels[t1 <= 0] = 0  # the template is stripped of the skull: zero is all that is not brain or fluid within it
    images, masks = (np.ascontiguousarray(v[:, ::-1].transpose(2, 1, 0)) for v in (t1, labels.astype(np.uint8)))
    return torch.from_numpy(images), torch.from_numpy(masks)


class Brain(SegmentationDataset):
    """The slices of one split in memory, (1, 233, 197) times `scale`, named z016 and so on."""

    def __init__(self, split: str, scale: float = 1.0) -> None:
        images, masks = read_template()
        size = scaled_size(masks[0], scale)
        numbers = [z for block in BLOCKS[split] for z in block]
        self.names = [f"z{z:03}" for z in numbers]
        self.slices = [resize(images[None, z], masks[z].long(), size) for z in numbers]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.slices[index]


class BrainDataModule(SegmentationDataModule):
    """Tissues of one averaged brain: 82 training, 8 validation and 16 test slices of 233 x 197 pixels.

    The labels are the most probable tissue of the template's own grey- and white-matter maps inside the brain;
    cerebrospinal fluid (CSF) is the rest. The image is its T1 contrast. It is *one averaged brain*: it ranks designs,
    it does not measure generalisation to people.
    """

    num_classes = 4
    in_channels = 1
    loading = Loading(crop=160)
    note = (
        "One averaged brain (MNI152): the numbers rank designs on its anatomy, they do not measure generalisation to "
        "people. Training and test slices are at least 5 mm apart."
    )
    # CSF is 2 % of the pixels, one or two pixels wide, and lost without its weight.
    cpu_scale = Scale(
        data={"crop": 96, "zoom": (0.75, 1.5), "jitter": 0.1, "batch_size": 4},
        epochs=12,
        validate_every=4,
        class_weights=(0.5, 3.0, 1.0, 1.0),
    )
    full_size = Scale(
        data={"crop": 192, "zoom": (0.75, 1.5), "jitter": 0.1, "batch_size": 16},
        epochs=200,
        validate_every=10,
        class_weights=(0.5, 3.0, 1.0, 1.0),
    )

    def __init__(self, **loading: Any) -> None:
        super().__init__(**loading)
        self.class_names = ["background", "CSF", "grey matter", "white matter"]
        self.palette = [(0, 0, 0), (0, 114, 178), (230, 159, 0), (240, 228, 66)]  # told apart by colour-blind eyes

    @classmethod
    def read_shared(cls) -> None:
        read_template()

    def groups(self, names: Sequence[str]) -> list[str]:
        """The block of neighbouring slices: two of them in the test split, "z048-z055" and "z102-z109"."""
        blocks = [block for of_split in BLOCKS.values() for block in of_split]
        home = {f"z{z:03}": f"z{block[0]:03}-z{block[-1]:03}" for block in blocks for z in block}
        return [home[name] for name in names]

    def load(self, split: str) -> SegmentationDataset:
        return Brain(split, self.loading.scale)
