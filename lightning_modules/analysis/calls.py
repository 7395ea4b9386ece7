"""What the calls of a network are, for a drawing of it: which ones are told, and the stride of their maps."""

from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING

from lightning_modules.analysis.flow import Flow, Op, record

if TYPE_CHECKING:
    from lightning_modules.base import SegmentationModule

MATRICES = {"addmm": "linear", "mm": "product", "bmm": "product"}
POOLS = {
    "max_pool2d_with_indices": "max pool",
    "avg_pool2d": "average pool",
    "_adaptive_avg_pool2d": "average to bins",
    "adaptive_max_pool2d": "maximum to bins",
    "mean": "mean of the map",
}
RESIZES = {
    "upsample_nearest2d": "resize, nearest",
    "upsample_bilinear2d": "resize, bilinear",
    "upsample_bicubic2d": "resize, bicubic",
    "max_unpool2d": "unpool",
    "pixel_shuffle": "to sub-pixels",
    "scatter": "unpool",  # where it is given values and their places
}
SAMPLES = {"grid_sampler_2d": "sample at points"}
NAMES = {"convolution": "convolution", **MATRICES, **POOLS, **RESIZES, **SAMPLES}  # what a block is made for


class Calls:
    """The calls of one image of height x width through `module`, and of one twice as large."""

    def __init__(self, module: "SegmentationModule", height: int, width: int) -> None:
        self.size = height, width
        self.modules = dict(module.named_modules())
        self.num_classes: int = module.hparams["num_classes"]
        self.flow = record(module, height, width)
        self.twice: Flow | None = None
        with suppress(RuntimeError, ValueError, AssertionError):  # of a network that takes one size alone
            self.twice = record(module, 2 * height, 2 * width)
        self.ops = self.flow.ops
        self.inside: dict[str, list[int]] = {}
        for number, op in enumerate(self.ops):
            for path in dict.fromkeys(path for path, _ in op.within):
                self.inside.setdefault(path, []).append(number)

    def shown(self, number: int) -> bool:
        """Whether a call is told of by itself: one that learns, or changes the size of the map."""
        op = self.ops[number]
        if op.name == "scatter":
            return len(op.inputs) == 2
        if op.name not in NAMES or op.name in ("convolution", *MATRICES, *SAMPLES):
            return op.name in NAMES
        before = self.ops[op.inputs[0]].shape[1:] if op.inputs else ()
        if op.name == "mean":
            return len(before) == 2 and op.shape[1:] == (1, 1) and before != (1, 1)
        return op.name in POOLS or op.shape[1:] != before

    def stride(self, number: int) -> float | None:
        """Pixels of the image from a unit of the map to the next, from how it grows with the image."""
        shape = self.ops[number].shape
        if len(shape) != 3:
            return None
        if not self.ops[number].within:
            return 1.0
        if self.again is None or self.twice is None:
            return self.flow.side[1] / shape[2]
        grown = self.twice.ops[self.again[number]].shape[2] - shape[2]
        return (self.twice.side[1] - self.flow.side[1]) / grown if grown else None

    @cached_property
    def again(self) -> dict[int, int] | None:
        """Each call in the network when the image is twice as large; None where it calls something else then."""
        if self.twice is None:
            return None
        now, then = (
            [(number, op.name) for number, op in enumerate(flow.ops) if op.within] for flow in (self.flow, self.twice)
        )
        if [name for _, name in now] != [name for _, name in then]:
            return None
        return {number: other for (number, _), (other, _) in zip(now, then, strict=True)}


def words(op: Op) -> str:
    """A call as one says it: "conv 3x3 rate 12"."""
    if op.name != "convolution":
        return NAMES.get(op.name, op.name)
    side = "x".join(map(str, op.kernel))
    what = "transposed" if op.transposed else "depthwise" if op.groups > 1 else "conv"
    return f"{what} {side}" + (f" rate {op.rate}" if op.rate > 1 else "")
