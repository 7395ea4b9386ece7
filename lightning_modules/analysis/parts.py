"""The parts of a network, what each returns, holds and costs, and how far it sees: of a module on the meta device."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_modules.analysis.receptive_field import ReceptiveField, evaluating, receptive_fields, watched

if TYPE_CHECKING:
    from lightning_modules.base import SegmentationModule

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

    def __init__(self, module: "SegmentationModule", height: int, width: int) -> None:
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

    @property
    def deepest(self) -> str:
        """The path of the encoder's deepest map: the last of the smallest ones, those of one pixel left out.

        Of a network that calls nothing its encoder it is the last of all its smallest maps.
        """
        areas = {path: shape[1] * shape[2] for path, shape in self.shapes.items() if len(shape) == 3 and shape[0]}
        areas = {path: area for path, area in areas.items() if area > 1} or areas
        areas = {path: area for path, area in areas.items() if "encoder" in path.split(".")} or areas
        least = min(areas.values())
        return [path for path, area in areas.items() if area == least][-1]

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
