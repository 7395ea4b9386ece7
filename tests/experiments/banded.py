"""Shapes as a camera of other bands than red, green and blue would see them."""

import torch

from datamodules.base import SegmentationDataset
from datamodules.shapes import ShapesDataModule


class Bands(ShapesDataModule):
    """Images of as many channels as `in_channels` says, each another mixture of red, green and blue."""

    def load(self, split: str) -> SegmentationDataset:
        dataset, channels = super().load(split), self.in_channels

        class Mixed(SegmentationDataset):
            names = dataset.names

            def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
                image, mask = dataset[index]
                mixture = torch.linspace(0, 1, channels * 3).view(channels, 3)
                return torch.einsum("ck,khw->chw", mixture / mixture.sum(1, keepdim=True), image), mask

        return Mixed()
