"""Which pixels of the image a unit of a network can see.

The theoretical receptive field of a unit is the smallest rectangle that holds every pixel it depends on through any
path. `Tracer` carries the rows and columns of each unit through every function of torch that the network calls
(`field_rules.py` says how), on the meta device: no weight is read and no map is computed. So skips, crops, unpooling
and resizing count as they are written, and what has no rule raises.

Two conventions. The statistics of a normalisation do not count, though batch norm in training and group norm take
them from the whole image. A pooling into a fixed number of bins, whose share of the image grows with it, counts as all
of it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_modules.analysis.field import WHOLE, Field, field_of_image
from lightning_modules.analysis.tracer import Tracer

SMALLEST, LARGEST = 512, 16384  # sides of the images that are tried: powers of two, which every stride divides
GROWTH = 1.1  # a field that grows by more than this when the image doubles is a share of the image


@dataclass(frozen=True)
class ReceptiveField:
    """Of the units of one map, away from the border of the image.

    `size`, the height and width of the field in pixels, is the largest over the phases of an upsampled map, and None if
    it is the whole image. `stride` is the way in pixels from a unit to the next, rows then columns. It is the mean
    over the phases, so 1 for logits at full resolution, and infinite for a map that does not grow with the image.
    `offset` is where the centre of the first unit's field would be without a border, also a mean over phases; the
    centre of the first pixel is 0.
    """

    size: tuple[int, int] | None
    stride: tuple[float, float]
    offset: tuple[float, float] | None

    @property
    def whole_image(self) -> bool:
        return self.size is None


class Box(NamedTuple):
    """Rows and columns of an image, the last ones included."""

    top: int
    bottom: int
    left: int
    right: int

    def reaches(self, height: int, width: int) -> bool:
        """Whether it touches the border of an image of this size."""
        return 0 in (self.top, self.left) or self.bottom == height - 1 or self.right == width - 1


class Output(NamedTuple):
    """What a module returned when it was called first; without a field it does not depend on the image."""

    shape: tuple[int, ...]
    field: Field | None


def receptive_field(network: nn.Module, in_channels: int, *, output: str = "") -> ReceptiveField:
    """The theoretical field of the map that the module at the path `output` returns; "" is `network` itself.

    A module that is called several times counts as called first. A network that takes images of some sides only has a
    method `input_side`, as `UNet` does. Raises NotImplementedError for a function of torch without a rule.
    """
    fields = receptive_fields(network, in_channels, [output])
    if output not in fields:
        raise ValueError(f"output must be the path of a module that returns a map (N, C, H, W), got {output!r}")
    return fields[output]


def receptive_fields(
    network: nn.Module, in_channels: int, outputs: Sequence[str] | None = None
) -> dict[str, ReceptiveField]:
    """`receptive_field` of several modules, by default of all that return a map (N, C, H, W).

    The image doubles until the field of the units in its middle keeps off the border and stays as it is.
    """
    by_path: dict[str, ReceptiveField] = {}
    before: dict[str, Middle] = {}
    side = SMALLEST
    with torch.device("cpu") if torch.get_default_device().type == "meta" else nullcontext():
        while side <= LARGEST:
            taken = _side(network, side)
            maps = {path: out for path, out in trace(network, in_channels, taken).items() if len(out.shape) == 4}
            now = {
                path: _middle(out, taken)
                for path, out in maps.items()
                if path not in by_path and (outputs is None or path in outputs)
            }
            for path, middle in now.items():
                if path in before and (field := _settled(before[path], middle, last=2 * side > LARGEST)):
                    by_path[path] = field
            if now.keys() <= by_path.keys():
                break
            before, side = now, 2 * side
    return by_path


def _side(network: nn.Module, least: int) -> int:
    """A side of an image of at least `least` pixels that `network` takes."""
    input_side: Callable[[int], int] | None = getattr(network, "input_side", None)
    return least if input_side is None else input_side(least)


class Middle(NamedTuple):
    """The units in the middle of a map, an eighth of it along each axis: all phases of up to 64 pixels."""

    side: int  # of the image
    units: tuple[int, ...]  # of the map
    sizes: tuple[int, int] | None  # None where a field reaches the border, so that it may be cut off
    whole: bool
    first: list[int]  # index of the first of these units along each axis
    centres: list[Tensor]  # of their fields


def _middle(output: Output, side: int) -> Middle:
    units = output.shape[2:]
    counts = [max(n // 8, min(2, n)) for n in units]
    starts = [(n - count) // 2 for n, count in zip(units, counts, strict=True)]
    sizes, centres, whole, cut = [0, 0], [torch.empty(0)] * 2, False, False
    for axis, span in enumerate([output.field.span(0), output.field.span(1)] if output.field else []):
        first, last = torch.broadcast_tensors(*span)  # type: ignore[no-untyped-call]
        for dim in (2, 3):
            if first.shape[dim] > 1:
                first, last = (bound.narrow(dim, starts[dim - 2], counts[dim - 2]) for bound in (first, last))
        seen = first <= last  # a unit between the taps of a transposed convolution sees nothing
        if seen.any():
            whole |= bool((first == WHOLE).any())
            cut |= bool(((first <= 0) | (last >= side - 1))[seen].any())
            sizes[axis] = int((last - first)[seen].max()) + 1
            centres[axis] = ((first + last) / 2).where(seen, math.nan).nanmean((0, 1, 3 - axis))
    return Middle(side, units, None if cut else (sizes[0], sizes[1]), whole, starts, centres)


def _settled(before: Middle, now: Middle, *, last: bool) -> ReceptiveField | None:
    """The field, if two images agree on it; after the `last` image, what does not fit in it is the whole image."""
    grown = [after - units for after, units in zip(now.units, before.units, strict=True)]
    strides = [(now.side - before.side) / units if units else math.inf for units in grown]
    if now.whole or (last and now.sizes is None):
        return ReceptiveField(None, (strides[0], strides[1]), None)
    if now.sizes is None or before.sizes is None:
        return None
    if any(b > GROWTH * a for a, b in zip(before.sizes, now.sizes, strict=True)):
        return ReceptiveField(None, (strides[0], strides[1]), None) if last else None
    offsets = [0.0, 0.0]
    for axis, centres in enumerate(now.centres):
        period = _period(centres)
        if period < len(centres):
            strides[axis] = float(centres[period] - centres[0]) / period
        index = now.first[axis] + torch.arange(min(period, len(centres)))
        if strides[axis] < math.inf:
            offsets[axis] = float((centres[:period] - strides[axis] * index).nanmean())
    return ReceptiveField(now.sizes, (strides[0], strides[1]), (offsets[0], offsets[1]))


def _period(centres: Tensor) -> int:
    """After how many units the distances between centres repeat: 1, or the number of phases of an upsampled map."""
    for period in range(1, len(centres) // 2 + 1):
        steps = centres[period:] - centres[:-period]
        if torch.allclose(steps, steps[:1], equal_nan=True):
            return period
    return len(centres)


def field_of_pixel(network: nn.Module, in_channels: int, size: tuple[int, int], pixel: tuple[int, int]) -> Box | None:
    """What the logits at `pixel` can depend on of an image of `size`, rows first; None where it is nothing.

    Raises NotImplementedError for a function of torch without a rule.
    """
    output = trace(network, in_channels, *size)[""]
    if output.field is None:
        return None
    found: list[int] = []
    for axis, side in enumerate(size):
        bounds = [bound.expand(1, 1, *output.shape[2:])[0, 0][pixel] for bound in output.field.span(axis)]
        found += [max(int(bounds[0]), 0), min(int(bounds[1]), side - 1)]
    box = Box(*found)
    return box if box.top <= box.bottom and box.left <= box.right else None


def trace(network: nn.Module, in_channels: int, side: int, width: int | None = None) -> dict[str, Output]:
    """What every module of `network` returns for an image of side x side pixels, in the order in which they return.

    With a `width` the image has `side` rows and so many columns.
    """
    tensors = dict(network.named_parameters()) | dict(network.named_buffers())
    on_meta = {
        name: torch.empty_like(tensor, device="meta", dtype=torch.float32 if tensor.is_floating_point() else None)
        for name, tensor in tensors.items()
    }
    width = side if width is None else width
    image = torch.empty(1, in_channels, side, width, device="meta")
    outputs: dict[str, Output] = {}

    def see(path: str, output: Tensor) -> None:
        outputs.setdefault(path, Output(tuple(output.shape), tracer.fields.get(output)))

    with watched(network, see), evaluating(network), torch.no_grad(), Tracer() as tracer:
        tracer.fields[image] = field_of_image(side, width)
        torch.func.functional_call(network, on_meta, (image,))
    return outputs


@contextmanager
def watched(network: nn.Module, see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Calls `see` with the path and the output of every module of `network` as they return."""

    def hook(path: str) -> Any:
        def call(module: nn.Module, args: Any, output: Any) -> None:
            if (returned := _tensor(output)) is not None:
                see(path, returned)

        return call

    handles = [module.register_forward_hook(hook(path)) for path, module in network.named_modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensor(value: Any) -> Tensor | None:
    """A tensor, the last of several (the deepest map of an encoder), or the first of a dict ("out" of torchvision)."""
    if isinstance(value, dict):
        value = list(value.values())[:1]
    if isinstance(value, list | tuple):
        return _tensor(value[-1]) if value else None
    return value if isinstance(value, Tensor) else None


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """`network.eval()`, and each module as it was before afterwards."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
