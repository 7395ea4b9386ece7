"""When prediction in tiles is prediction at once: how far a network sees, and in which steps a tile may begin.

A network is *local* where a pixel's logits depend on a finite window around it. A tile with that much of the image
around it, which begins on the grid of the deepest map, then holds the same logits as the whole image.

One thing would still differ. A map is resized to the size of another one, or of the image, by the ratio of both sizes:
65 rows to 513, and of a tile 17 to 129. `Windowed` resizes the map of a tile at the places that the whole image has.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.overrides import TorchFunctionMode

from lightning_modules.analysis.field import WHOLE
from lightning_modules.analysis.receptive_field import LARGEST, SMALLEST, Output, evaluating, trace

FINEST = 64  # denominators of a stride: maps at 3/4 of the image are the only fractions that a paper here has


class NotLocalError(ValueError):
    """A network whose logits at a pixel depend on the whole image, or on where in the image the pixel is."""


class Resize(NamedTuple):
    """A call of `F.interpolate`, in the order of the calls: pixels of the image from a row or column to the next."""

    source: tuple[Fraction, Fraction]
    target: tuple[Fraction, Fraction]


@dataclass(frozen=True)
class Reach:
    """How prediction in tiles has to be cut for a network, in pixels of the image.

    `halo`: what a tile needs of the image on each side; `step`: where it may begin and end, a multiple of this.
    """

    halo: int
    step: int
    resizes: tuple[Resize, ...]


class Sizes(NamedTuple):
    """Of an image of some size: sides of the argument and of the result of each `F.interpolate`."""

    source: tuple[int, int]
    target: tuple[int, int]


def reach(network: nn.Module, in_channels: int) -> Reach:
    """The `Reach` of a network or a `SegmentationModule` that predicts (N, in_channels, H, W).

    Nothing is computed and no weight is read: the field of the logits is followed as in `receptive_field`. Takes
    seconds. Raises NotLocalError, with the reason, where no finite halo makes tiles exact.
    """
    if name := _normalised_over_image(network):
        raise NotLocalError(f"{name} takes its mean and variance from the whole image")
    side, before = SMALLEST, None
    while side <= LARGEST:
        now = _look(network, in_channels, side)
        if before is not None and (found := _agreed(before, now)):
            return found
        side, before = 2 * side, now
    raise NotLocalError("a pixel sees the whole image")


class _Look(NamedTuple):
    """What a trace of an image of `side` x `side` pixels says."""

    side: int
    maps: dict[str, tuple[int, ...]]  # sides of the map of each module
    resizes: list[Sizes]
    logits: Output


def _look(network: nn.Module, in_channels: int, side: int) -> _Look:
    takes = getattr(network, "input_side", None)
    side = side if takes is None else takes(side)
    with torch.device("cpu"), _recorded() as calls:
        try:
            outputs = trace(network, in_channels, side)
        except NotImplementedError as error:
            raise NotLocalError(f"its receptive field is not known ({error})") from error
    maps = {path: tuple(out.shape[2:]) for path, out in outputs.items() if len(out.shape) == 4 and out.field}
    if outputs[""].field is None or tuple(outputs[""].shape[2:]) != (side, side):
        raise NotLocalError("its logits have another size than the image")
    return _Look(side, maps, calls, outputs[""])


def _agreed(before: _Look, now: _Look) -> Reach | None:
    """The reach that two sizes agree on; None while fields of the middle still meet the border."""
    grown = now.side - before.side
    shapes = [*zip(before.maps.values(), now.maps.values(), strict=True)]
    strides = {s for pair in shapes if pair[0] != pair[1] for s in _strides(*pair, grown)}
    resizes = []
    for early, late in zip(before.resizes, now.resizes, strict=True):
        if early == late:
            raise NotLocalError("it pools the image to a fixed size")
        of_call = Resize(_strides(early.source, late.source, grown), _strides(early.target, late.target, grown))
        resizes.append(of_call)
        strides |= {*of_call.source, *of_call.target}
    step = math.lcm(*(stride.numerator for stride in strides), 1)
    sides = [_sides(look, step) for look in (before, now)]
    if sides[1] is None or sides[0] != sides[1]:
        return None
    # By the ratio of odd sizes a resized map lies up to a unit elsewhere, and two resizes may follow one another.
    margin = 2 * step if resizes else 0
    return Reach(-(-(sides[1] + margin) // step) * step, step, tuple(resizes))


def _strides(early: Sequence[int], late: Sequence[int], grown: int) -> tuple[Fraction, Fraction]:
    """Pixels of the image from a unit to the next, by what a map has grown."""
    if any(b <= a for a, b in zip(early, late, strict=True)):
        raise NotLocalError("it pools the image to a fixed size")
    down, right = (Fraction(grown, b - a).limit_denominator(FINEST) for a, b in zip(early, late, strict=True))
    return down, right


def _sides(look: _Look, step: int) -> int | None:
    """The most pixels that a pixel in the middle sees on one side of itself; None where the border cuts some off."""
    assert look.logits.field is not None
    most = 0
    for axis in (0, 1):
        first, last = look.logits.field.span(axis)
        others = [dim for dim in range(first.dim()) if dim != first.dim() - 2 + axis]
        first, last = first.amin(others), last.amax(others)
        if (first == WHOLE).any():
            raise NotLocalError("a pixel sees the whole image")
        if len(first) != look.side:  # one field for all pixels: of so small an image each sees everything
            return None
        place = torch.arange(look.side)
        middle = slice(3 * look.side // 8, 5 * look.side // 8)
        seen_before, seen_after = (place - first)[middle], (last - place)[middle]
        if bool((first[middle] <= 0).any()) or bool((last[middle] >= look.side - 1).any()):
            return None
        if len(seen_before) <= step:
            return None
        same = torch.equal(seen_before[step:], seen_before[:-step])
        if not same or not torch.equal(seen_after[step:], seen_after[:-step]):
            raise NotLocalError(f"what a pixel sees depends on where it is, not only on its place on a grid of {step}")
        most = max(most, int(seen_before.max()), int(seen_after.max()))
    return most


def _normalised_over_image(network: nn.Module) -> str:
    """The kind of the first layer that takes statistics of the image it predicts; empty where there is none."""
    for module in network.modules():
        if isinstance(module, nn.GroupNorm | _InstanceNorm):
            return type(module).__name__
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            return f"{type(module).__name__} without running statistics"
    return ""


def _sides_of(tensor: Tensor) -> tuple[int, int]:
    return int(tensor.shape[-2]), int(tensor.shape[-1])


class _Recorder(TorchFunctionMode):
    """Notes the sizes of each `F.interpolate`."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Sizes] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is F.interpolate:
            source = args[0] if args else (kwargs or {})["input"]
            self.calls.append(Sizes(_sides_of(source), _sides_of(out)))
        return out


@contextmanager
def _recorded() -> Iterator[list[Sizes]]:
    with _Recorder() as recorder:
        yield recorder.calls


def resized_sizes(network: nn.Module, in_channels: int, height: int, width: int) -> list[Sizes]:
    """The sizes of every `F.interpolate` for an image of this size, on shapes alone."""
    tensors = dict(network.named_parameters()) | dict(network.named_buffers())
    on_meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    image = torch.empty(1, in_channels, height, width, device="meta")
    with evaluating(network), torch.no_grad(), _recorded() as calls:
        torch.func.functional_call(network, on_meta, (image,))
    return calls


class Windowed(TorchFunctionMode):
    """In this context a network that predicts a window of an image resizes as it does for the whole image.

    Args:
        reach: of the network
        sizes: of the whole image, see `resized_sizes`
        top: first row of the image in the window, a multiple of `reach.step`
        left: its first column
    """

    def __init__(self, reach: Reach, sizes: Sequence[Sizes], top: int, left: int) -> None:
        super().__init__()
        assert top % reach.step == left % reach.step == 0
        self.waiting, self.start = iter(zip(reach.resizes, sizes, strict=True)), (top, left)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.interpolate:
            return func(*args, **(kwargs or {}))
        call, whole = next(self.waiting)
        return self._resize(call, whole, *args, **(kwargs or {}))

    def _resize(
        self,
        call: Resize,
        whole: Sizes,
        input: Tensor,
        size: Any = None,
        scale_factor: Any = None,
        mode: str = "nearest",
        align_corners: bool | None = None,
        **other: Any,
    ) -> Tensor:
        usual = {"size": size, "scale_factor": scale_factor, "mode": mode, "align_corners": align_corners, **other}
        out: Tensor = F.interpolate(input, **usual)
        here = Sizes(_sides_of(input), _sides_of(out))
        if here == whole:  # the window is the image
            return out
        even = all(
            to % of == 0
            and to * here.source[axis] == of * here.target[axis]
            and to // of * call.target[axis] == call.source[axis]
            for axis, (of, to) in enumerate(zip(whole.source, whole.target, strict=True))
        )
        if even and not align_corners:
            return out
        if mode not in ("bilinear", "nearest", "nearest-exact") or any(other.values()):
            raise NotLocalError(
                f"a map is resized by {mode} with {', '.join(n for n in other if other[n])}".removesuffix(" with ")
            )
        x = input
        for axis in (0, 1):
            offsets = [int(self.start[axis] / stride[axis]) for stride in (call.source, call.target)]
            factor = scale_factor[axis] if isinstance(scale_factor, tuple | list) else scale_factor
            x = _along(
                x,
                axis - 2,
                here.target[axis],
                offsets,
                whole.source[axis],
                whole.target[axis],
                mode,
                bool(align_corners),
                factor,
            )
        return x


def _along(
    x: Tensor,
    dim: int,
    length: int,
    offsets: Sequence[int],
    source: int,
    target: int,
    mode: str,
    corners: bool,
    factor: float | None,
) -> Tensor:
    """Resizes along `dim` what is `source` long in the whole image and becomes `target`; x begins at `offsets[0]` of
    it and the result, `length` long, at `offsets[1]`. Places are computed as torch does, in float32."""
    real = torch.float64 if x.dtype == torch.float64 else torch.float32
    place = torch.arange(offsets[1], offsets[1] + length, device=x.device).clamp(max=target - 1).to(real)
    one = torch.ones((), dtype=real, device=x.device)
    if corners:
        scale = one * (source - 1) / (target - 1) if target > 1 else 0 * one
    else:
        scale = one / factor if factor else one * source / target
    if mode == "bilinear":
        at = scale * place if corners else (scale * (place + 0.5) - 0.5).clamp(min=0)
    else:
        at = scale * (place + 0.5) if mode == "nearest-exact" else scale * place
    low = at.floor().long().clamp(max=source - 1)
    here = (low - offsets[0]).clamp(0, x.shape[dim] - 1)
    if mode != "bilinear":
        return x.index_select(dim, here)
    share = (at - low).to(x.dtype)
    shape = [1] * x.dim()
    shape[dim] = length
    share = share.view(shape)
    above = ((low + 1).clamp(max=source - 1) - offsets[0]).clamp(0, x.shape[dim] - 1)
    return x.index_select(dim, here) * (1 - share) + x.index_select(dim, above) * share
