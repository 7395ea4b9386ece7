"""What an architecture is made of: its layers, what each sees of the image, what it holds and what it costs.

python -m experiments.explain MODEL --num-classes N [--in-channels C] [--size H W] [--model.FLAG ...]

Explains the forward pass that predicts one image. Multiply-adds are those of convolutions and products of matrices.
Nothing is computed and no weight is read. The receptive fields are followed through every function of torch, which
takes seconds for most networks and minutes for those with attention; --no-fields leaves them out.
"""

import argparse
import math
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jsonargparse.typing import PositiveInt
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils.flop_counter import FlopCounterMode

from experiments.shell.catalogue import ARCHITECTURES, documentation, listed, lookup
from experiments.shell.class_flags import ClassParser, first_word, settings_of
from experiments.shell.command import command, console
from experiments.shell.flags import refuse
from lightning_modules.analysis.receptive_field import ReceptiveField, evaluating, receptive_fields, watched
from lightning_modules.analysis.tracer import Tracer
from lightning_modules.base import SegmentationModule
from lightning_modules.recipe import Recipe

MOST_CLASSES = 2**20  # a module keeps a name for each
LINES = 60  # of a table whose depth nobody chose
POOLS = (nn.MaxPool2d, nn.AvgPool2d)  # shown though they hold no parameter and may keep the shape: they widen the field


@dataclass(frozen=True)
class Part:
    """A module and all that is in it, or what it does besides the modules in it."""

    path: str
    kind: str
    output: str | None  # path of the module whose first output is shown; None where predicting calls none of it
    calls: int
    parameters: int
    macs: int


class Network:
    """A module on the meta device, and what happens in it while it predicts one image of height x width."""

    def __init__(self, module: SegmentationModule, height: int, width: int) -> None:
        self.module, self.size = module, (height, width)
        self.calls: Counter[str] = Counter()
        self.shapes: dict[str, tuple[int, ...]] = {}  # of first outputs, without the batch, in their order

        def see(path: str, output: Tensor) -> None:
            self.calls[path] += 1
            self.shapes.setdefault(path, tuple(output.shape[1:]))

        counter = FlopCounterMode(display=False)
        with watched(module, see), evaluating(module), torch.no_grad(), counter:
            module(torch.empty(1, module.hparams["in_channels"], height, width, device="meta"))
        root = f"{type(module).__name__}."
        self._macs = {name.removeprefix(root): sum(n.values()) // 2 for name, n in counter.get_flop_counts().items()}
        self.macs = counter.get_total_flops() // 2

    @cached_property
    def fields(self) -> dict[str, ReceptiveField]:
        """Of every map; NotImplementedError for a network that calls a function which nothing is known of."""
        return receptive_fields(self.module, self.module.hparams["in_channels"])

    @property
    def output_stride(self) -> float:
        """The largest stride of a map that grows with the image."""
        strides = (max(field.stride) for field in self.fields.values())
        return max(stride for stride in strides if stride < math.inf)

    def parts(self, depth: int | None = None) -> list[Part]:
        """The tree of modules cut off at `depth`, by default as deep as `LINES` lines allow, in the order of calls.

        Parameters and multiply-adds add up to those of the network. Activations and other modules without parameters
        that keep the shape are left out.
        """
        deepest = max(path.count(".") for path, _ in self.module.named_modules())
        tree: list[Part] = []
        for tried in range(1, deepest + 1) if depth is None else (depth,):
            parts = list(self._parts("network", self.module.network, tried, set()))
            if tree and len(parts) > LINES:
                break
            tree = parts
        order = {path: number for number, path in enumerate(self.shapes)}
        return sorted(tree, key=lambda part: len(order) if part.output is None else order[part.output])

    def _parts(self, path: str, module: nn.Module, depth: int, counted: set[nn.Module]) -> Iterator[Part]:
        if module in counted:  # shared by two others: counts once
            return
        counted.add(module)
        children = list(module.named_children()) if depth else []
        for name, child in children:
            yield from self._parts(f"{path}.{name}", child, depth - 1, counted)
        parameters = sum(p.numel() for p in module.parameters(recurse=not children))
        macs = self._cost(path, module) - sum(self._cost(f"{path}.{name}", child) for name, child in children)
        output = (
            path if path in self.shapes else next((p for p in reversed(self.shapes) if p.startswith(f"{path}.")), None)
        )
        if parameters or macs or (not children and self._matters(module, output)):
            name = path.removeprefix("network").removeprefix(".") + (" itself" if children else "")
            yield Part(name.strip(), type(module).__name__, output, self.calls[path], parameters, macs)

    def _cost(self, path: str, module: nn.Module) -> int:
        """Multiply-adds of a module, also of one that is not called itself (a list of modules)."""
        inside = sum(self._cost(f"{path}.{name}", child) for name, child in module.named_children())
        return max(self._macs.get(path, 0), inside)

    def _matters(self, module: nn.Module, output: str | None) -> bool:
        """Whether it pools, or returns another shape than the module that returned before it."""
        if isinstance(module, POOLS) or output is None:
            return output is not None
        paths = list(self.shapes)
        before = max(paths.index(output) - 1, 0)
        return self.shapes[output] != self.shapes[paths[before]]


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
    notes, fields = [], {}
    try:
        fields = network.fields if with_fields else {}
    except NotImplementedError as error:
        notes.append(f"no receptive fields: {error}")
    parts = network.parts(depth)
    for part in parts:
        shape = "not called" if part.output is None else " x ".join(map(str, network.shapes[part.output]))
        field = fields.get(part.output or "")
        table.add_row(
            part.path,
            part.kind + (f" x {part.calls}" if part.calls > 1 else ""),
            shape,
            _stride(field) if part.output else "",
            _size(field) if part.output else "",
            f"{part.parameters:,}" if part.parameters else "",
            _count(part.macs) if part.macs else "",
        )
    console.print(table)
    weights = list(network.module.parameters())
    total, trained = (sum(p.numel() for p in some) for some in (weights, [p for p in weights if p.requires_grad]))
    console.print(f"parameters {total:,} ({trained:,} trained, {total - trained:,} frozen)")
    console.print(f"multiply-adds {_count(network.macs)}")
    if fields:
        seen = "the whole image" if fields[""].whole_image else _size(fields[""])
        console.print(f"output stride {network.output_stride:g} (of the deepest map)")
        console.print(f"receptive field {seen} (of the logits)")
    if any(part.output is None for part in parts):
        notes.append("not called: a part of the training alone")
    if fields and any(isinstance(m, nn.GroupNorm | _InstanceNorm) for m in network.module.modules()):
        notes.append("the fields leave out that group norm takes its mean and variance from the whole image")
    for note in notes:
        console.print(note, soft_wrap=True, markup=False)


def _stride(field: ReceptiveField | None) -> str:
    return "" if field is None else " x ".join("-" if s == math.inf else f"{s:g}" for s in _once(field.stride))


def _size(field: ReceptiveField | None) -> str:
    return "" if field is None else "image" if field.size is None else " x ".join(map(str, field.size))


def _once(pair: tuple[float, float]) -> tuple[float, ...]:
    return pair[:1] if pair[0] == pair[1] else pair


def _count(macs: int) -> str:
    unit, letter = next(((u, name) for u, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")) if macs >= u), (1, ""))
    return f"{macs / unit:.3g} {letter}".rstrip()


def parse_architecture(argv: list[str]) -> tuple[type[SegmentationModule], argparse.Namespace]:
    """The architecture and the other flags of a command line."""
    usage = "python -m experiments.explain MODEL --num-classes N [--model.FLAG ...] [options]"
    word = first_word(
        argv,
        what=f"an architecture, one of {listed(ARCHITECTURES)}",
        usage=usage,
        description=f"{__doc__}\nMODEL: {listed(ARCHITECTURES)}\n\nflags of one: MODEL --help",
    )
    try:
        architecture = lookup("MODEL", word, ARCHITECTURES)
    except ValueError as error:
        refuse(str(error))
    parser = ClassParser(
        verb="explain",
        usage=usage,
        description=f"{__doc__}\nThe flags below are those of {architecture.__name__}.\n\n"
        f"{documentation(architecture)}",
        chosen="after the MODEL you want",
    )
    parser.add_argument("--num-classes", type=PositiveInt, metavar="N", help="number of the classes; must be given")
    parser.add_argument("--in-channels", type=PositiveInt, default=3, metavar="C", help="channels of the image")
    parser.add_argument(
        "--size", type=PositiveInt, nargs=2, default=[512, 512], metavar=("H", "W"), help="pixels of the image"
    )
    parser.add_argument(
        "--depth",
        type=PositiveInt,
        metavar="N",
        help=f"levels of modules within modules that are shown (default: what {LINES} lines hold)",
    )
    parser.add_argument("--no-fields", action="store_true", help="leave out strides and receptive fields")
    parser.add_argument("--count", action="store_true", help="print the number of parameters, nothing else")
    parser.add_class(
        settings_of(architecture, Recipe, architecture.network_class),
        "model",
        skip={"num_classes", "ignore_index", "in_channels"},
    )
    args = parser.parse_args(argv[1:], defaults=True)
    if args.num_classes is None:
        refuse(f"say how many classes there are: --num-classes N (usage: {usage})")
    if args.num_classes > MOST_CLASSES:
        refuse(f"--num-classes must be at most {MOST_CLASSES:,}, got {args.num_classes:,}")
    return architecture, args


@command()
def main(argv: list[str] | None = None) -> None:
    architecture, args = parse_architecture(sys.argv[1:] if argv is None else argv)
    try:
        module = build_on_meta(architecture, args.num_classes, args.in_channels, **args.model.as_dict())
        if args.count:
            print(sum(p.numel() for p in module.parameters()))
            return
        show_network(Network(module, *args.size), console(), args.depth, with_fields=not args.no_fields)
    except RuntimeError as error:  # of torch, for sizes that no tensor has
        refuse(f"torch cannot describe a network of these sizes: {str(error).splitlines()[0]}")


if __name__ == "__main__":
    main()
