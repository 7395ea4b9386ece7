"""FolderDataModule: your own images and masks, as they lie, by a layout that its docstring and --help state."""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from datamodules.base import SegmentationDataModule, SegmentationDataset
from datamodules.boxes import Boxes, check_within, in_pixels, read_boxes, upright_size
from datamodules.files import read_bytes
from datamodules.fingerprint import fingerprint
from datamodules.layouts.palette import generated_palette
from datamodules.layouts.source import Source
from datamodules.transforms import resize, scaled_size
from datamodules.verify import check_layout, check_source

NEW = ("neutral", None)  # of an argument that earlier versions did not have


class Folder(SegmentationDataset):
    """Images by name, read from the disk at every access and resized by `scale`."""

    def __init__(self, source: Source, names: list[str], scale: float = 1.0, boxes: Boxes | None = None) -> None:
        if missing := [name for name in names if name not in source.images or name not in source.masks]:
            raise ValueError(
                f"{source.root} has no image or no mask for {', '.join(missing[:5])}; verify() lists every problem"
            )
        self.names, self.scale, self.source, self._boxes = names, scale, source, boxes or {}
        self.most_boxes = max(map(len, self._boxes.values()), default=0)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        name = self.names[index]
        image = torch.from_numpy(self.source.image(self.source.images[name][0]))
        mask = torch.from_numpy(self.source.labels(name).astype("int64"))
        return resize(image, mask, scaled_size(mask, self.scale))

    def boxes(self, index: int) -> Tensor:
        name = self.names[index]
        height, width = size = upright_size(self.source.images[name][0])
        return in_pixels(
            self._boxes.get(name, []), size, scaled_size(torch.empty(height, width, device="meta"), self.scale)
        )


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
        boxes: CSV file image,left,top,right,bottom,category of boxes of objects, in root or elsewhere, for an
            architecture that predicts in boxes; sides in pixels of the file, right and bottom exclusive
    """

    note = (
        "Images of one's own: whether those of the test split are independent of the training images, and of one "
        "another, only who made them can say."
    )
    published: ClassVar[Mapping[str, tuple[int, int, int]] | None] = None  # the classes there must be, with colours
    located = (
        "root", "splits", "images", "masks", "pairs", "classes", "ignore", "background", "group_by", "channels",
        "value_range", "max_pixels", "boxes",
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
        boxes: Annotated[str | None, NEW] = None,
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

        self.boxes: Boxes | None = None
        if boxes is not None:
            self.boxes_path = boxes_file(self.source, boxes)
            self.boxes = self._read_boxes(self.boxes_path)
            self.box_categories = frozenset(box.category for of_image in self.boxes.values() for box in of_image)
        if self.boxes is not None and self.loading.elastic:
            raise ValueError(
                f"elastic must be 0 where the data have boxes, as a deformed box is none, got {self.loading.elastic}: "
                "leave one of the two out"
            )

    def _read_boxes(self, path: Path) -> Boxes:
        boxes = read_boxes(
            path, self.class_names, lambda cell: cell if cell in self.source.images else self.source.finder(cell)
        )
        for split, names in self.source.splits.items():
            if boxes.keys().isdisjoint(names):
                raise ValueError(f"{path} has no box of an image of the {split} split: add them, or leave boxes out")
        return boxes

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
        return Folder(self.source, self.source.splits[split], self.loading.scale, self.boxes)

    @classmethod
    def identify(cls, arguments: Mapping[str, Any]) -> str:
        if "root" not in arguments:
            raise ValueError(f"{cls.__name__} needs root, the folder of its data (--data.root)")
        source = source_of(arguments)
        check_layout(source)
        found, boxes = fingerprint(source), arguments.get("boxes")
        if boxes is None:
            return found
        return sha256(found.encode() + read_bytes(boxes_file(source, boxes))).hexdigest()[: len(found)]

    @classmethod
    def about(cls, arguments: Mapping[str, Any]) -> str:
        try:
            return source_of(arguments).layout.note or cls.note
        except (ValueError, OSError, KeyError):  # which reading the data says
            return cls.note

    def verify(self) -> None:
        check_source(self.source)
        if self.boxes is not None:
            check_within(self.boxes_path, self.boxes, lambda name: upright_size(self.source.images[name][0]))


def boxes_file(source: Source, named: str) -> Path:
    """The file of boxes: within the folder of the data, or elsewhere."""
    within = source.root / named
    return within if within.exists() else Path(named)


def source_of(arguments: Mapping[str, Any]) -> Source:
    """The data of these arguments of a `FolderDataModule`."""
    given = {name: arguments.get(name) for name in FolderDataModule.located if name not in ("root", "boxes")}
    return Source(Path(arguments["root"]), **given)
