"""What a network is made of: its layers, what each sees of the image, what it holds and costs, and what it looks at.

python -m experiments.explain MODEL --num-classes N [--in-channels C] [--size H W] [--model.FLAG ...]
python -m experiments.explain CHECKPOINT [--image FILE --out DIR [--pixel ROW COL] [--class NAME] [--layer PATH]]

Explains the forward pass that predicts one image. Multiply-adds are those of convolutions and products of matrices.
The table computes nothing and reads no weight. The receptive fields are followed through every function of torch,
which takes seconds for most networks and minutes for those with attention; --no-fields leaves them out.

With --out it computes and draws, of a trained network or of one with random weights:
- network.svg: its modules from the image to the logits, with channels and sizes, and which map goes where
- field.png: theoretical and effective receptive field of a pixel's logits, on the image or for random ones
- overlap.png: the taps of each transposed convolution that meet in each pixel
- cam.png: Seg-Grad-CAM, where a layer speaks for a class at the pixel; needs --image
"""

import copy
import math
import os
import sys
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.modules.instancenorm import _InstanceNorm

from datamodules.checks.problems import shown
from datamodules.files import MAX_PIXELS
from datamodules.layouts.pixels import CHANNELS, read_channels
from datamodules.transforms import resize, scaled_size
from experiments.reports.explained import Asked, View, class_of, draw, followed, layer_of, size_of
from experiments.reports.figures.looks import drawing, lay_out, save_figure, short
from experiments.reports.network_drawing import svg
from experiments.runs.callbacks import to_rgb
from experiments.runs.scored import alone
from experiments.shell.catalogue import ARCHITECTURES, documentation, key_of, listed, load, lookup
from experiments.shell.citation import bibtex
from experiments.shell.class_flags import ClassParser, first_word, settings_of
from experiments.shell.command import command, console
from experiments.shell.files import locked, write_atomic
from experiments.shell.flags import refuse
from lightning_modules.analysis.blocks import drawing_of
from lightning_modules.analysis.parts import LINES, Network
from lightning_modules.analysis.receptive_field import ReceptiveField
from lightning_modules.analysis.tracer import Tracer
from lightning_modules.base import SegmentationModule
from lightning_modules.papers import PAPERS
from lightning_modules.recipe import Recipe

MOST_CLASSES = 2**20  # a module keeps a name for each
SIZE = (512, 512)  # pixels of an image that nobody gives
RANDOM = 2  # images of random numbers, where none is given
READ = {1: "grey", 3: "rgb"}  # how an image is read for so many channels; all its bands for others
PICTURES = ("network.svg", "field.png", "overlap.png", "cam.png")
OF_PICTURES = ("pixel", "class", "layer", "region")  # flags that say what of the image is looked at


def build_on_meta(
    architecture: type[SegmentationModule], num_classes: int, in_channels: int = 3, **hparams: Any
) -> SegmentationModule:
    """The module on the meta device, where weights have shapes and no values.

    Without files of `weights`, which change no shape, and without the `tile` of a prediction: the image goes through at
    once.
    """
    hparams = {name: None if name in ("weights", "init_from", "tile") else value for name, value in hparams.items()}
    with torch.device("meta"), Tracer():  # some encoders compute with constants in their constructors
        return architecture(num_classes, -1, in_channels=in_channels, **hparams)  # no label is ignored, none is read


def show_network(network: Network, console: Console, depth: int | None = None, *, with_fields: bool = True) -> None:
    height, width = network.size
    table = Table("path", "kind", title=f"{type(network.module).__name__}, one image of {height} x {width}")
    for column in ("output", "stride", "field", "parameters", "multiply-adds"):
        table.add_column(column, justify="right")
    fields, lacking = followed(network) if with_fields else ({}, "")
    notes = [lacking] if lacking else []
    parts = network.parts(depth)
    for part in parts:
        shape = "not called" if part.output is None else " x ".join(map(str, network.shapes[part.output]))
        field = fields.get(part.output or "")
        table.add_row(
            part.path,
            part.kind + (f" x {part.calls}" if part.calls > 1 else ""),
            shape,
            _stride(field) if part.output else "",
            size_of(field) if part.output else "",
            f"{part.parameters:,}" if part.parameters else "",
            _count(part.macs) if part.macs else "",
        )
    console.print(table)
    weights = list(network.module.parameters())
    total, trained = (sum(p.numel() for p in some) for some in (weights, [p for p in weights if p.requires_grad]))
    console.print(f"parameters {total:,} ({trained:,} trained, {total - trained:,} frozen)")
    if told := beside_paper(type(network.module), total):
        console.print(told, soft_wrap=True, markup=False, highlight=False)
    console.print(f"multiply-adds {_count(network.macs)}")
    if fields:
        seen = "the whole image" if fields[""].whole_image else size_of(fields[""])
        console.print(f"output stride {network.output_stride:g} (of the deepest map)")
        console.print(f"receptive field {seen} (of the logits)")
    if any(part.output is None for part in parts):
        notes.append("not called: a part of the training alone")
    if fields and any(isinstance(m, nn.GroupNorm | _InstanceNorm) for m in network.module.modules()):
        notes.append("the fields leave out that group norm takes its mean and variance from the whole image")
    for note in notes:
        console.print(note, soft_wrap=True, markup=False)


def beside_paper(architecture: type[SegmentationModule], parameters: int) -> str:
    """The parameters of the paper's network beside these; empty where the paper has no network of its own."""
    paper = PAPERS.get(key_of(architecture, ARCHITECTURES)) if architecture in ARCHITECTURES.values() else None
    if paper is None or paper.parameters is None or paper.derived:
        return ""
    more = parameters - paper.parameters
    differs = f"{abs(more):,} {'more' if more > 0 else 'fewer'} here" if more else "as many as here"
    return f"paper {paper.parameters:,} ({paper.form}): {differs}"


def _stride(field: ReceptiveField | None) -> str:
    return "" if field is None else " x ".join("-" if s == math.inf else f"{s:g}" for s in _once(field.stride))


def _once(pair: tuple[float, float]) -> tuple[float, ...]:
    return pair[:1] if pair[0] == pair[1] else pair


def _count(macs: int) -> str:
    unit, letter = next(((u, name) for u, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")) if macs >= u), (1, ""))
    return f"{macs / unit:.3g} {letter}".rstrip()


def look(args: Namespace, module: SegmentationModule, weights: str) -> View:
    """The image of the command line as the module's data read it, or random numbers; the pixel is one of the file."""
    channels: int = module.hparams["in_channels"]
    if args.image is None:
        full = size = tuple(args.size or SIZE)
        images = torch.rand(RANDOM, channels, *size, generator=torch.Generator().manual_seed(0))
        picture = np.full((*size, 3), 255, dtype=np.uint8)
        title = f"mean of {RANDOM} images of random numbers"
    else:
        reads = _reads(module)
        how = reads["channels"] if reads.get("channels") in CHANNELS else READ.get(channels, "all")
        span = reads.get("value_range")
        span = (span[0], span[1]) if isinstance(span, list | tuple) and len(span) == 2 else None
        image = torch.from_numpy(read_channels(args.image, how, span, MAX_PIXELS))
        if len(image) != channels:
            raise ValueError(
                f"--image {args.image} must have as many channels as the network takes, {channels}, got {len(image)}: "
                "give one of the kind that it was trained on"
            )
        full = tuple(image.shape[1:])
        scale = reads.get("scale")
        scale = scale if isinstance(scale, int | float) and 0 < scale < math.inf else 1.0
        size = tuple(args.size or scaled_size(image[0], scale))
        images = resize(image, torch.zeros(full, dtype=torch.long), size)[0][None]
        picture = to_rgb(images[0])
        title = short(shown(args.image.name)) + (
            "" if size == full else f", {full[0]} x {full[1]} resized to {size[0]} x {size[1]}"
        )
    row, column = args.pixel or [side // 2 for side in full]
    if row >= full[0] or column >= full[1]:
        raise ValueError(
            f"--pixel must lie in the image, rows 0 to {full[0] - 1} and columns 0 to {full[1] - 1}, got {row} "
            f"{column}: the row comes first"
        )
    row, column = (int((p + 0.5) * now / was) for p, now, was in zip((row, column), size, full, strict=True))
    return View(images, (row, column), picture, f"{title}{weights}", args.image is not None)


def _reads(module: SegmentationModule) -> dict[str, Any]:
    """How the images of the training were read, where the checkpoint says so: channels, value range and scale."""
    trained = getattr(module, "trained", None)
    reads = trained.get("reads") if isinstance(trained, dict) else None
    return reads if isinstance(reads, dict) else {}


def untrained(architecture: type[SegmentationModule], args: Namespace) -> SegmentationModule:
    """The module with weights, the same random ones at every call."""
    say("not trained: all weights are random (seed 0) but those that --model.weights names")
    torch.manual_seed(0)
    return whole_image(architecture(args.num_classes, -1, in_channels=args.in_channels, **args.model.as_dict()))


def whole_image(module: SegmentationModule) -> SegmentationModule:
    """The module, which sees the image at once where it was to predict in tiles; that changes no logit."""
    if "tile" in vars(module):
        vars(module)["tile"] = None
    return module


def say(line: str) -> None:
    console().print(line, soft_wrap=True, markup=False, highlight=False)


def write(args: Namespace, module: SegmentationModule, network: Network, view: View, asked: Asked) -> None:
    """All pictures once all are drawn, in place of those of an earlier call."""
    for line in alone(module):
        say(line)
    if args.image is not None:
        say(f"image {view.title}: {view.size[0]} x {view.size[1]}, classes {', '.join(map(shown, module.class_names))}")
    name, (height, width) = type(module).__name__, network.size
    blocks = svg(drawing_of(network.module, height, width), f"{name}, one image of {height} x {width}")
    with drawing():
        figures = draw(network, module.eval().requires_grad_(False), view, asked, say)
        for figure in figures.values():
            lay_out(figure)
        for picture in PICTURES[1:]:
            if picture in figures:
                save_figure(figures[picture], args.out / picture, {"Software": None}, tight=True)
            else:
                with suppress(OSError):
                    (args.out / picture).unlink()
    write_atomic(args.out / PICTURES[0], blocks)
    say(f"written: {', '.join(str(args.out / one) for one in PICTURES if one in {PICTURES[0], *figures})}")


def _cited(architecture: type[SegmentationModule]) -> str:
    paper = PAPERS.get(key_of(architecture, ARCHITECTURES))
    if paper is None:
        raise ValueError(
            f"--bibtex must have a paper, got {architecture.__name__}: name it in lightning_modules/papers.py"
        )
    return paper.cited


def parse(argv: list[str]) -> tuple[type[SegmentationModule] | Path, Namespace]:
    """The architecture or the checkpoint of a command line, and its flags."""
    usage = "python -m experiments.explain MODEL --num-classes N [--model.FLAG ...] [options]"
    word = first_word(
        argv,
        what=f"an architecture, one of {listed(ARCHITECTURES)}, or the path of a checkpoint",
        usage=usage,
        description=f"{__doc__}\nMODEL: {listed(ARCHITECTURES)}\n\nflags of one: MODEL --help",
    )
    known = word in ARCHITECTURES or word in {cls.__name__ for cls in ARCHITECTURES.values()}
    if not known and (os.path.lexists(word) or word.endswith(".ckpt") or os.sep in word):
        parser = _parser("[options]", __doc__ or "", "after the CHECKPOINT, which states its model and its classes")
        args = parser.parse_args(argv[1:], defaults=True)
        _check(args)
        return Path(word), args
    try:
        architecture = lookup("MODEL", word, ARCHITECTURES)
    except ValueError as error:
        refuse(f"{error}, or the path of a checkpoint")
    told = f"{__doc__}\nThe flags below are those of {architecture.__name__}.\n\n{documentation(architecture)}"
    parser = _parser(usage, told, "after the MODEL you want")
    parser.add_argument("--num-classes", type=PositiveInt, metavar="N", help="number of the classes; must be given")
    parser.add_argument("--in-channels", type=PositiveInt, default=3, metavar="C", help="channels of the image")
    parser.add_class(
        settings_of(architecture, Recipe, architecture.network_class),
        "model",
        skip={"num_classes", "ignore_index", "in_channels"},
    )
    args = parser.parse_args(argv[1:], defaults=True)
    if args.num_classes is None and not args.bibtex:
        refuse(f"say how many classes there are: --num-classes N (usage: {usage})")
    if (args.num_classes or 0) > MOST_CLASSES:
        refuse(f"--num-classes must be at most {MOST_CLASSES:,}, got {args.num_classes:,}")
    _check(args)
    return architecture, args


def _parser(usage: str, description: str, chosen: str) -> ClassParser:
    """With the flags that an architecture and a checkpoint share."""
    parser = ClassParser(verb="explain", usage=usage, description=description, chosen=chosen)
    parser.add_argument(
        "--size",
        type=PositiveInt,
        nargs=2,
        metavar=("H", "W"),
        help=f"pixels of the image, to which --image is resized (default: {SIZE[0]} {SIZE[1]}, or those of --image)",
    )
    parser.add_argument(
        "--depth",
        type=PositiveInt,
        metavar="N",
        help=f"levels of modules within modules that are shown (default: what {LINES} lines hold)",
    )
    parser.add_argument("--no-fields", action="store_true", help="leave out strides and receptive fields")
    parser.add_argument("--count", action="store_true", help="print the number of parameters, nothing else")
    parser.add_argument("--bibtex", action="store_true", help="print the BibTeX entry of the paper, nothing else")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"folder for {', '.join(PICTURES)}")
    parser.add_argument("--image", type=Path, metavar="FILE", help="the image to draw on (default: random numbers)")
    parser.add_argument(
        "--pixel",
        type=NonNegativeInt,
        nargs=2,
        metavar=("ROW", "COL"),
        help="pixel of the image whose logits are looked at (default: the centre)",
    )
    parser.add_argument("--class", metavar="C", help="name or number of a class (default: the predicted one)")
    parser.add_argument(
        "--layer",
        metavar="PATH",
        help="layer whose map speaks for the class, as the table names it (default: the deepest map of the encoder)",
    )
    parser.add_argument(
        "--region",
        choices=("pixel", "predicted"),
        help="what speaks for the class at the pixel, or at all pixels predicted as it (default: pixel)",
    )
    return parser


def _check(args: Namespace) -> None:
    """Ends the command for a flag that lacks the one it needs."""
    given = [name for name in ("image", *OF_PICTURES) if args[name] is not None]
    if given and args.out is None:
        refuse(f"--{given[0]} is of pictures, which need a folder: add --out DIR")
    of_image = [name for name in given if name not in ("image", "pixel")]
    if of_image and args.image is None:
        refuse(f"--{of_image[0]} asks something of an image: add --image FILE")


@command()
def main(argv: list[str] | None = None) -> None:
    chosen, args = parse(sys.argv[1:] if argv is None else argv)
    trained = load(chosen) if isinstance(chosen, Path) else None
    architecture = type(trained) if isinstance(trained, SegmentationModule) else chosen
    assert not isinstance(architecture, Path)
    if args.bibtex:
        print(bibtex(_cited(architecture)))
        return
    try:
        if trained is None:
            meta = build_on_meta(architecture, args.num_classes, args.in_channels, **args.model.as_dict())
        else:
            meta = copy.deepcopy(whole_image(trained)).to("meta")
        if args.count:
            print(sum(p.numel() for p in meta.parameters()))
            return
        with locked(args.out) if args.out is not None else nullcontext():
            view = look(args, meta, "" if trained else "; random weights") if args.out is not None else None
            network = Network(meta, *(view.size if view else args.size or SIZE))
            label = None if args["class"] is None else class_of(args["class"], meta.class_names)
            layer = None if args.layer is None else layer_of(args.layer, network)
            show_network(network, console(), args.depth, with_fields=not args.no_fields)
            if view is not None:
                asked = Asked(label, layer, args.region or "pixel", not args.no_fields)
                write(args, trained or untrained(architecture, args), network, view, asked)
    except RuntimeError as error:  # of torch, for sizes that no tensor has
        refuse(f"torch cannot describe a network of these sizes: {str(error).splitlines()[0]}")


if __name__ == "__main__":
    main()
