"""A data set in files of its own kind, with a load(split) of its own, as no data module of the catalogue is one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from datamodules.base import SegmentationDataModule, SegmentationDataset
from datamodules.files import files_below
from datamodules.fingerprint import digest_files

FILES = "*/*.npz"


class Arrays(SegmentationDataset):
    """One .npz file an image."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.names, self.files = [path.stem for path in files], files

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        try:
            with np.load(self.files[index]) as arrays:
                return torch.from_numpy(arrays["image"])[None] / 255, torch.from_numpy(arrays["mask"]).long()
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise ValueError(f"{self.files[index]} cannot be read: {error}") from error


class ArraysDataModule(SegmentationDataModule):
    """Grey images of two classes.

    Args:
        root: folder with train, val and test
    """

    num_classes, in_channels, hidden = 2, 1, ("scale",)

    def __init__(self, root: str, **loading: Any) -> None:
        super().__init__(**loading)
        self.class_names, self.palette = ["no", "yes"], [(0, 0, 0), (255, 255, 255)]
        self.files = files_below(root, FILES)

    def load(self, split: str) -> SegmentationDataset:
        return Arrays([path for path in self.files if path.parent.name == split])

    def verify(self) -> None:
        images = Arrays(self.files)
        for index in range(len(images)):
            images[index]

    @classmethod
    def identify(cls, arguments: Mapping[str, Any]) -> str:
        return digest_files(arguments.get("root"), FILES)
