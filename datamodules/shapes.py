"""ShapesDataModule: discs and squares on noise, made on the fly, for tests, smoke runs and notebooks."""

from typing import Any

import torch
from torch import Tensor

from datamodules.base import Loading, SegmentationDataModule, SegmentationDataset, random_generator
from datamodules.files import SPLITS
from datamodules.scale import Scale


class Shapes(SegmentationDataset):
    """Image i of a split is made from (seed, split, i) alone. The first row is unlabelled, as real borders are."""

    def __init__(self, split: str, length: int, size: int, seed: int = 0) -> None:
        self.names = [f"{split}{index:04}" for index in range(length)]
        self.size, self.key = size, (seed, SPLITS.index(split))

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        generator = random_generator(*self.key, index)
        y, x = torch.meshgrid(torch.arange(self.size), torch.arange(self.size), indexing="ij")
        mask = torch.zeros(self.size, self.size, dtype=torch.int64)
        for label in (1, 2):
            centre_y, centre_x = torch.randint(self.size, (2,), generator=generator).tolist()
            dy, dx = (y - centre_y).abs(), (x - centre_x).abs()
            inside = dy**2 + dx**2 < (self.size // 4) ** 2 if label == 1 else torch.maximum(dy, dx) < self.size // 5
            mask[inside] = label
        image = 0.5 * torch.rand(3, self.size, self.size, generator=generator) + 0.25 * mask
        mask[0] = ShapesDataModule.ignore_index
        return image, mask


class ShapesDataModule(SegmentationDataModule):
    """Discs and squares on noise, in three classes with the background.

    Args:
        size: height and width of every image in pixels, at least 8
        length: images of each split
        crop: height and width in pixels of what is trained on, or one number; null keeps the whole image
    """

    num_classes = 3
    loading = Loading(batch_size=4)
    hidden = ("scale",)  # its `size` is that
    note = "Discs and squares on noise: shows that the experiment runs, and nothing about segmentation."
    cpu_scale = Scale(epochs=2, validate_every=1)

    def __init__(
        self, *, size: int = 64, length: int = 16, crop: int | tuple[int, int] | None = None, **loading: Any
    ) -> None:
        if size < 8 or length < 1:
            raise ValueError(f"size must be at least 8 and length at least 1, got size={size} and length={length}")
        super().__init__(crop=size if crop is None else crop, **loading)
        self.size, self.length = size, length
        self.class_names = ["background", "disc", "square"]
        self.palette = [(0, 0, 0), (230, 159, 0), (86, 180, 233)]

    def load(self, split: str) -> SegmentationDataset:
        return Shapes(split, self.length, self.size)
