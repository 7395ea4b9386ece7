"""FolderDataModule: your own folder of images and masks, in the layout that its docstring and --help state."""

import math
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from datamodules.base import SegmentationDataModule, SegmentationDataset
from datamodules.files import (
    FOLDER,
    decode,
    files_by_name,
    has_groups,
    read_bytes,
    read_classes,
    read_groups,
    read_image,
    read_mask,
    read_split,
)
from datamodules.fingerprint import fingerprint
from datamodules.transforms import resize, scaled_size
from datamodules.verify import check_folder, check_layout

# Okabe and Ito, Color Universal Design, 2008: colours that colour-blind people tell apart.
OKABE_ITO = [(230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167)]


class Folder(SegmentationDataset):
    """Images by name, read from the disk at every access and resized by `scale`; a grey image becomes RGB."""

    def __init__(self, root: Path, names: list[str], scale: float = 1.0) -> None:
        images, masks = files_by_name(root / "images"), files_by_name(root / "masks")
        if missing := [name for name in names if name not in images or name not in masks]:
            raise ValueError(
                f"{root} has no image or no mask for {', '.join(missing[:5])}; verify() lists every problem"
            )
        self.names, self.scale = names, scale
        self.paths = [(images[name][0], masks[name][0]) for name in names]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image_path, mask_path = self.paths[index]
        pixels = read_image(image_path).transpose(2, 0, 1)
        image = torch.from_numpy(np.divide(pixels, np.float32(255), dtype=np.float32, order="C"))
        mask = torch.from_numpy(read_mask(mask_path).astype("int64"))
        return resize(image, mask, scaled_size(mask, self.scale))


def mask_palette(masks: Path, num_classes: int) -> list[tuple[int, int, int]]:
    """The colours stored in the first mask of a folder; none where it has no palette or a too short one."""
    try:
        for paths in islice(files_by_name(masks).values(), 1):
            flat = decode(paths[0], read_bytes(paths[0])).getpalette() or []
            if len(flat) >= 3 * num_classes:
                return [(flat[3 * i], flat[3 * i + 1], flat[3 * i + 2]) for i in range(num_classes)]
    except ValueError:  # verify() names the file together with all others that cannot be read
        pass
    return []


def generated_palette(num_classes: int) -> list[tuple[int, int, int]]:
    """Black, then seven colours that colour-blind people tell apart, then darker rounds of the seven."""
    rounds = math.ceil((num_classes - 1) / len(OKABE_ITO))
    shades = [1 - 0.75 * i / rounds for i in range(rounds)]
    colours = [(round(s * r), round(s * g), round(s * b)) for s in shades for r, g, b in OKABE_ITO]
    return [(0, 0, 0), *colours][:num_classes]


class FolderDataModule(SegmentationDataModule):
    """Your own folder of images and masks, read as RGB.

    - root/images/ holds JPEG, PNG, BMP, TIFF or WebP with 8 bits a channel.
    - root/masks/ holds an 8-bit index PNG with the name of each image, 255 where unlabelled.
    - root/classes.txt holds lines "index name", or "name" in the order of the labels.
    - root/splits/ holds train.txt, val.txt and test.txt: names without extension, one a line (`experiments.split`).
    - root/groups.csv, where test images belong together, holds below "image,group" lines such as "a,patient 7".

    FileNotFoundError where part of it is missing, ValueError for a bad classes.txt. A data set that is published in
    this layout is a subclass that states its `classes`.

    Args:
        root: folder with images/, masks/, splits/, classes.txt and, where test images belong together, groups.csv
        splits: folder of train.txt, val.txt and test.txt within root, such as folds/0
    """

    note = (
        "Images of one's own: whether those of the test split are independent of the training images, and of one "
        "another, only who made them can say."
    )
    classes: Mapping[str, tuple[int, int, int]] | None = None  # what classes.txt must list, with colours; None for any

    def __init__(self, root: str, *, splits: Annotated[str, ("neutral", FOLDER)] = FOLDER, **loading: Any) -> None:
        super().__init__(**loading)
        self.root, self.splits = Path(root), splits
        check_layout(self.root, splits)
        self.class_names = read_classes(self.root / "classes.txt", self.ignore_index)
        self.num_classes = len(self.class_names)
        if self.classes is None:
            self.palette = mask_palette(self.root / "masks", self.num_classes) or generated_palette(self.num_classes)
        elif self.class_names == list(self.classes):
            self.palette = list(self.classes.values())
        else:
            raise ValueError(
                f"{self.root / 'classes.txt'} must list the {len(self.classes)} classes of "
                f"{type(self).__name__.removesuffix('DataModule')}, {', '.join(self.classes)}, in this order, "
                f"got {', '.join(self.class_names)}; for other classes use FolderDataModule"
            )

    def groups(self, names: Sequence[str]) -> list[str]:
        """Those of groups.csv, and without it `default_groups`. ValueError as of `verify`, if it was changed since."""
        if not has_groups(self.root):
            return self.default_groups(names)
        groups, problems = read_groups(self.root, names, None)
        if problems:
            raise ValueError(f"in {self.root}: {problems[0].said}")
        return [groups[name] for name in names]

    def default_groups(self, names: Sequence[str]) -> list[str]:
        """The groups where no groups.csv states them."""
        return super().groups(names)

    def load(self, split: str) -> SegmentationDataset:
        return Folder(self.root, read_split(self.root, split, self.splits), self.loading.scale)

    @classmethod
    def identify(cls, arguments: Mapping[str, Any]) -> str:
        if "root" not in arguments:
            raise ValueError(f"{cls.__name__} needs root, the folder of its data (--data.root)")
        root = Path(arguments["root"])
        folder = arguments.get("splits", FOLDER)
        check_layout(root, folder)
        return fingerprint(root, folder)

    def verify(self) -> None:
        check_folder(self.root, self.class_names, self.ignore_index, self.splits)
