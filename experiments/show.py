"""Shows training images as a network gets them: raw, under their labels, and augmented, with a legend.

    python -m experiments.show --data brain --out samples.png
    python -m experiments.show --data folder --data.root DIR --data.zoom '[0.5,2]' --data.elastic 10
    python -m experiments.show --data camvid --data.root DIR --split test --images 6

A row is an image, evenly spread over the split; a column behind the first two is an epoch of the seed. Exactly these
images are trained on, in an order that the seed decides, too. Validation and test images are not augmented.
"""

import argparse
import math
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonargparse
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.base import Loading, SegmentationDataModule, TrainingSamples
from datamodules.checks.problems import shown
from datamodules.files import SPLITS
from experiments.reports.figures.looks import drawing, label_colours, lay_out, save_figure
from experiments.runs.callbacks import to_rgb
from experiments.runs.chosen import scale_of, word
from experiments.shell.catalogue import DATAMODULES, listed, lookup
from experiments.shell.class_flags import Choice, ClassParser, settings_of
from experiments.shell.command import command
from experiments.shell.flags import refuse

INCHES = 2.4  # of a picture
OPAQUE = 0.55  # of the labels over an image
COLUMNS = 6  # of the legend


def main(argv: Sequence[str] | None = None) -> None:
    with command() as console:
        datamodule, args = parse(sys.argv[1:] if argv is None else argv)
        if datamodule.cpu_scale is None:  # crop, zoom and scale are those that a training would have
            stated = {name: value for name, value in args.data.items() if name in args.given}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the data: verifying them again says it
                scale = scale_of(datamodule, stated, full_size=torch.cuda.is_available())
            args.data |= scale.data
            flags = " ".join(f"--data.{name} {word(value)}" for name, value in scale.data.items())
            console.print(
                f"As a training has them, unless a flag says otherwise: {flags}", markup=False, soft_wrap=True
            )
        data: SegmentationDataModule = datamodule(**args.data)
        data.verify()
        with drawing():
            figure = draw(data, args.split, args.images, args.epochs, args.seed)
            lay_out(figure)
            save_figure(figure, args.out, {"CreationDate": None} if args.out.suffix == ".pdf" else {}, tight=True)
        console.print(f"written: {args.out}", markup=False, soft_wrap=True)


def parse(argv: Sequence[str]) -> tuple[type[SegmentationDataModule], argparse.Namespace]:
    """The data module that a command line names, and its arguments with the rest."""
    first = next(iter(DATAMODULES))
    chosen, rest = Choice(f"--data takes one of {listed(DATAMODULES)}", data=first).parse_known_args([*argv])
    try:
        datamodule = lookup("--data", chosen.data, DATAMODULES)
    except ValueError as error:
        refuse(str(error))
    parser = ClassParser(
        verb="show",
        usage="%(prog)s [--data NAME] [--data.FLAG ...] [options]",
        description=f"{__doc__}\ndata sets (--data, {first} by default): {listed(DATAMODULES)}",
        chosen="with the --data you want",
    )
    positive, natural = jsonargparse.typing.PositiveInt, jsonargparse.typing.NonNegativeInt
    parser.add_argument("--out", type=Path, default=Path("samples.png"), help="PNG or PDF file, to be written")
    parser.add_argument("--split", choices=SPLITS, default="train", help="the split that the images are of")
    parser.add_argument("--images", type=positive, default=4, help="how many of its images")
    parser.add_argument("--epochs", type=positive, default=3, help="how often each is shown augmented")
    parser.add_argument("--seed", type=natural, default=0, help="seed of the augmentation")
    parser.add_class(settings_of(datamodule, Loading), "data", help="one of those listed above")
    args = parser.parse_args(rest, defaults=True)
    if args.out.suffix not in (".png", ".pdf"):
        refuse(f"--out must be a .png or .pdf file, got {shown(str(args.out))}")
    given = {name: args[name] for name in ("out", "split", "images", "epochs", "seed")}
    typed = parser.parse_args(rest, defaults=False).get("data")
    of_data = {*typed.as_dict()} if typed else set()
    return datamodule, argparse.Namespace(data=args.data.as_dict(), given=of_data, **given)


def draw(data: SegmentationDataModule, split: str, images: int, epochs: int, seed: int) -> Figure:
    """A row an image: as it is, under its labels, and as each of the epochs has it."""
    dataset, colours = data.dataset(split), label_colours(data.palette)
    places = np.linspace(0, len(dataset) - 1, min(images, len(dataset))).round().astype(int).tolist()
    augmented = TrainingSamples(dataset, data.transform, seed)
    heads = ["as it is", "with labels", *(f"epoch {epoch}" for epoch in range(epochs if split == "train" else 0))]
    named = _legend(data, colours)
    tall = max(dataset[place][1].shape[0] / dataset[place][1].shape[1] for place in places)
    below = 0.4 + 0.2 * math.ceil(len(named) / COLUMNS)
    size = INCHES * len(heads), INCHES * min(2.0, tall) * len(places) + below
    with drawing():
        figure = Figure(figsize=size, layout="compressed")
    axes = figure.subplots(len(places), len(heads), squeeze=False)
    for row, place in zip(axes, places, strict=True):
        image, mask = dataset[place]
        pictures = [to_rgb(image), _over(image, mask, colours)]
        for epoch in range(len(heads) - 2):
            sample = augmented[epoch, place]
            pictures.append(_over(sample["image"], sample["mask"], colours))
        for axis, picture in zip(row, pictures, strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(shown(dataset.names[place])[:30], fontsize=8)
    for axis, head in zip(axes[0], heads, strict=True):
        axis.set_title(head, fontsize=9)
    patches = [  # with an edge, or white would not be seen
        Patch(facecolor=tuple(colour / 255), edgecolor="0.5", linewidth=0.5, label=name) for name, colour in named
    ]
    columns = min(COLUMNS, len(patches))
    figure.legend(handles=patches, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
    return figure


def _legend(data: SegmentationDataModule, colours: NDArray[np.uint8]) -> list[tuple[str, NDArray[np.uint8]]]:
    named = [(shown(name), colours[label]) for label, name in enumerate(data.class_names)]
    return [*named, ("unlabelled, or outside of the image", colours[-1])]


def _over(image: Tensor, mask: Tensor, colours: NDArray[np.uint8]) -> NDArray[Any]:
    return (1 - OPAQUE) * to_rgb(image) / 255 + OPAQUE * colours[mask.numpy().astype(np.uint8)] / 255


if __name__ == "__main__":
    main()
