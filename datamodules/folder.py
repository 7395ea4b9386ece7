"""FolderDataModule: your own images and masks, as they lie, by a layout that its docstring and --help state."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from datamodules.base import SegmentationDataModule, SegmentationDataset
from datamodules.fingerprint import fingerprint
from datamodules.layouts.palette import generated_palette
from datamodules.layouts.source import Source
from datamodules.transforms import resize, scaled_size
from datamodules.verify import check_layout, check_source

NEW = ("neutral", None)  # of an argument that earlier versions did not have


class Folder(SegmentationDataset):
    """Images by name, read from the disk at every access and resized by `scale`."""

    def __init__(self, source: Source, names: list[str], scale: float = 1.0) -> None:
        if missing := [name for name in names if name not in source.images or name not in source.masks]:
            raise ValueError(
                f"{source.root} has no image or no mask for {', '.join(missing[:5])}; verify() lists every problem"
            )
        self.names, self.scale, self.source = names, scale, source

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        name = self.names[index]
        image = torch.from_numpy(self.source.image(self.source.images[name][0]))
        mask = torch.from_numpy(self.source.labels(name).astype("int64"))
        return resize(image, mask, scaled_size(mask, self.scale))


class FolderDataModule(SegmentationDataModule):
    """Your own folder of images and masks, in this layout or as it lies, by a dataset.yaml or the flags of its keys.

    - root/images/ holds JPEG, PNG, BMP, TIFF or WebP with 8 bits a channel, read as RGB.
    - root/masks/ holds an 8-bit index PNG with the name of each image, 255 where unlabelled.
    - root/classes.txt holds lines "index name", or "name" in the order of the labels.
    - root/splits/ holds train.txt, val.txt and test.txt: names without extension, one a line (`experiments.split`).
    - root/groups.csv, where test images belong together, holds below "image,group" lines such as "a,patient 7".

    root/dataset.yaml says where files lie and what masks hold in another layout: see docs/data.md. Without a test split
    final scores are of the validation images. FileNotFoundError where part of it is missing, ValueError for what cannot
    be used. A data set that is published in this layout is a subclass that states its `published` classes.

    Args:
        root: folder with images/, masks/, splits/ and classes.txt, or with a dataset.yaml; or such a file elsewhere
        splits: folder of train.txt, val.txt and test.txt within root (splits by default), such as folds/0; or a file of
            lists, or by split a list, a folder's name or a share of the images
        images: pattern of the image files, such as photos/**/{name}.jpg
        masks: pattern of the masks, such as labels/{name}_mask.png, masks/{name}/*.png or annotations/{name}.json
        pairs: CSV file "image,mask[,split][,group]", or such lists by split, instead of two patterns
        classes: names in the order of labels, names with their values or colours in the masks, or a file of them
        ignore: values or colours of unlabelled pixels, or "others" for all that no class has
        background: class of pixels that no polygon and no mask of a class covers
        group_by: regular expression that tells the group of an image in its name, instead of groups.csv
        channels: rgb, grey, rgba or all bands; without it 8-bit RGB and grey alone are taken, as rgb
        value_range: the two values that become 0 and 1; needed for images of 16 bits and floats
        max_pixels: the most pixels that an image may have (64 million by default)
    """

    note = (
        "Images of one's own: whether those of the test split are independent of the training images, and of one "
        "another, only who made them can say."
    )
    published: ClassVar[Mapping[str, tuple[int, int, int]] | None] = None  # the classes there must be, with colours
    located = (
        "root", "splits", "images", "masks", "pairs", "classes", "ignore", "background", "group_by", "channels",
        "value_range", "max_pixels",
    )  # fmt: skip

    def __init__(
        self,
        root: str,
        *,
        splits: Annotated[str | dict[str, Any] | None, NEW] = None,
        images: Annotated[str | None, NEW] = None,
        masks: Annotated[str | None, NEW] = None,
        pairs: Annotated[str | dict[str, str] | None, NEW] = None,
        classes: Annotated[str | list[str] | dict[str, Any] | None, NEW] = None,
        ignore: Annotated[str | list[int | str] | None, NEW] = None,
        background: Annotated[str | None, NEW] = None,
        group_by: Annotated[str | None, NEW] = None,
        channels: Annotated[str | None, NEW] = None,
        value_range: Annotated[tuple[float, float] | None, NEW] = None,
        max_pixels: Annotated[int | None, NEW] = None,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        given = {
            "images": images, "masks": masks, "pairs": pairs, "classes": classes, "ignore": ignore,
            "background": background, "group_by": group_by, "channels": channels, "value_range": value_range,
            "max_pixels": max_pixels,
        }  # fmt: skip
        self.source = source_of({"root": root, "splits": splits, **given})
        self.root = self.source.root
        check_layout(self.source)
        self.class_names = self.source.classes.names
        self.num_classes = len(self.class_names)
        self.in_channels, self.scored = self.source.in_channels, self.source.scored
        if self.published is None:
            self.palette = self.source.palette or generated_palette(self.num_classes)
        elif self.class_names == list(self.published):
            self.palette = list(self.published.values())
        else:
            raise ValueError(
                f"{self.root / 'classes.txt'} must list the {len(self.published)} classes of "
                f"{type(self).__name__.removesuffix('DataModule')}, {', '.join(self.published)}, in this order, "
                f"got {', '.join(self.class_names)}; for other classes use FolderDataModule"
            )

    def groups(self, names: Sequence[str]) -> list[str]:
        """Those that the data state, and else `default_groups`. ValueError as of `verify`, if they changed since."""
        if not self.source.has_groups:
            return self.default_groups(names)
        groups, problems = self.source.groups(names, verified=True)
        if problems:
            raise ValueError(f"in {self.root}: {problems[0].said}")
        return [groups.get(name, name) for name in names]

    def default_groups(self, names: Sequence[str]) -> list[str]:
        """The groups where nothing states them."""
        return super().groups(names)

    @property
    def reads(self) -> dict[str, Any]:
        return {**super().reads, **self.source.reads}

    def load(self, split: str) -> SegmentationDataset:
        return Folder(self.source, self.source.splits[split], self.loading.scale)

    @classmethod
    def identify(cls, arguments: Mapping[str, Any]) -> str:
        if "root" not in arguments:
            raise ValueError(f"{cls.__name__} needs root, the folder of its data (--data.root)")
        source = source_of(arguments)
        check_layout(source)
        return fingerprint(source)

    @classmethod
    def about(cls, arguments: Mapping[str, Any]) -> str:
        try:
            return source_of(arguments).layout.note or cls.note
        except (ValueError, OSError, KeyError):  # which reading the data says
            return cls.note

    def verify(self) -> None:
        check_source(self.source)


def source_of(arguments: Mapping[str, Any]) -> Source:
    """The data of these arguments of a `FolderDataModule`."""
    given = {name: arguments.get(name) for name in FolderDataModule.located if name != "root"}
    return Source(Path(arguments["root"]), **given)
