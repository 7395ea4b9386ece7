"""The rule by which a study is sized for data that nobody has sized by hand."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from datamodules.base import Loading, SegmentationDataModule, SegmentationDataset
from datamodules.folder import FolderDataModule
from datamodules.scale import scale_by_rule
from datamodules.shapes import ShapesDataModule


class Plain(SegmentationDataset):
    def __init__(self, count: int, size: tuple[int, int], rare: int) -> None:
        self.names, self.size, self.rare = [f"i{i}" for i in range(count)], size, rare

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        mask = torch.zeros(self.size, dtype=torch.int64)
        mask[:, self.size[1] // 2 :] = 1
        mask.view(-1)[: self.rare] = 2
        return torch.zeros(1, *self.size), mask


class PlainDataModule(SegmentationDataModule):
    num_classes = 3
    in_channels = 1
    loading = Loading()

    def __init__(
        self, count: int = 40, size: tuple[int, int] = (300, 400), rare: int = 20_000, **loading: object
    ) -> None:
        super().__init__(**loading)
        self.made = (count, size, rare)
        self.class_names = ["wide", "narrow", "rare"]
        self.palette = [(0, 0, 0), (9, 9, 9), (99, 99, 99)]
        self.verified = False

    def load(self, split: str) -> SegmentationDataset:
        assert self.verified  # bad files are named before one of them is read
        count, (height, width), rare = self.made
        return Plain(count, (round(self.loading.scale * height), round(self.loading.scale * width)), rare)

    def verify(self) -> None:
        self.verified = True


def test_large_images_are_scaled_down_and_trained_for_about_300_steps() -> None:
    scale = scale_by_rule(PlainDataModule, {})
    assert scale.data == {"scale": 0.48, "crop": (96, 96), "zoom": (0.75, 1.5), "batch_size": 4}
    assert (scale.epochs, scale.validate_every, scale.batches) == (30, 10, None)  # 10 steps an epoch
    assert scale.class_weights is None
    assert "40 training images, 32 looked at: median size 300 x 400 pixels" in scale.reason
    assert "30 epochs make 300 steps" in scale.reason


@pytest.mark.parametrize(
    ("arguments", "data", "epochs"),
    [
        ({"count": 3}, {"batch_size": 3}, 150),  # never more than 150 passes
        ({"size": (40, 90)}, {"crop": (32, 80)}, 30),  # small images stay as they are
        ({"size": (20, 20), "rare": 100}, {"crop": (32, 32)}, 30),  # padded, so that every network can halve it
        ({"scale": 0.25}, {"crop": (64, 96)}, 30),  # what is given is kept, and sizes the rest
        ({"batch_size": 20}, {"crop": (96, 96)}, 150),
    ],
)
def test_the_settings_follow_from_number_and_size(
    arguments: dict[str, object], data: dict[str, object], epochs: int
) -> None:
    scale = scale_by_rule(PlainDataModule, arguments)
    assert data.items() <= scale.data.items()
    assert scale.epochs == epochs
    assert scale.epochs % scale.validate_every == 0
    assert not scale.data.keys() & arguments.keys()


def test_an_epoch_of_very_many_images_is_cut_short() -> None:
    scale = scale_by_rule(PlainDataModule, {"count": 10_000, "size": (64, 64), "rare": 500})
    assert (scale.epochs, scale.validate_every, scale.batches) == (1, 1, 300)
    assert "1 epoch of 300 batches make" in scale.reason


def test_a_rare_class_is_weighted() -> None:
    scale = scale_by_rule(PlainDataModule, {"rare": 50})
    assert scale.class_weights == "median-frequency"
    assert "the rarest class, rare, has" in scale.reason


def test_full_size_leaves_the_images_as_they_are() -> None:
    scale = scale_by_rule(PlainDataModule, {}, full_size=True)
    assert scale.data == {"crop": (288, 384), "zoom": (0.75, 1.5), "batch_size": 16, "num_workers": 8}
    assert (scale.epochs, scale.validate_every) == (200, 20)


def test_it_takes_a_folder_and_data_that_have_no_scale(camvid_root: Path) -> None:
    assert "scale" not in scale_by_rule(ShapesDataModule, {}).data
    scale = scale_by_rule(FolderDataModule, {"root": str(camvid_root)})
    FolderDataModule(str(camvid_root), **scale.data)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        scale_by_rule(FolderDataModule, {"root": str(camvid_root / "none")})


@pytest.mark.parametrize(
    ("names", "sides"),
    [
        (["ground", "left_lung", "right_lung"], True),
        (["Left lung", "lung, right", "rest"], True),
        (["left", "leftover", "brightness"], False),
    ],
)
def test_images_are_not_mirrored_where_left_and_right_are_classes(names: list[str], sides: bool) -> None:
    class Sided(PlainDataModule):
        def __init__(self, **loading: object) -> None:
            super().__init__(**loading)
            self.class_names = names

    scale = scale_by_rule(Sided, {})
    assert scale.data.get("flip", True) is not sides
    assert ("not mirrored, as left and right are classes" in scale.reason) is sides
    assert "flip" not in scale_by_rule(Sided, {"flip": True}).data
