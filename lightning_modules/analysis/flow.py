"""What a network calls to predict one image, and which map goes into which call: recorded on the meta device."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_modules.analysis.receptive_field import evaluating

if TYPE_CHECKING:
    from lightning_modules.base import SegmentationModule

# They take a map for its size alone.
SIZED = {f"new_{what}" for what in ("empty", "zeros", "ones", "full", "empty_strided")}
SIZED |= {f"{what}_like" for what in ("empty", "zeros", "ones", "full", "rand", "randn")}
CALL = "call"  # name of what stands for the beginning of a module


@dataclass(frozen=True)
class Op:
    """One call of a function of torch, or the beginning of a module.

    Args:
        name: of the function: "convolution", "cat"; CALL for a module, whose shape is that of what it is given first
        within: the modules that it is called in, outermost first: path, and which call of that module it is
        inputs: numbers of the calls whose results it takes, in their order
        shape: of its first result, without the batch
        kernel: of a convolution: height and width
        rate: of a convolution: its largest dilation
        groups: of a convolution
        transposed: whether it is a transposed convolution
    """

    name: str
    within: tuple[tuple[str, int], ...]
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    kernel: tuple[int, ...] = ()
    rate: int = 1
    groups: int = 1
    transposed: bool = False


@dataclass(frozen=True)
class Flow:
    """All calls in their order, of which the first stands for the image; `outputs` are those that made the logits."""

    ops: list[Op]
    outputs: tuple[int, ...]
    side: tuple[int, int]  # of the first map that the network takes: the image, or more where it is padded before


def record(module: "SegmentationModule", height: int, width: int) -> Flow:
    """The flow of one image of height x width through `module`, which is on the meta device."""
    image = torch.empty(1, module.hparams["in_channels"], height, width, device="meta")
    recorder = Recorder(image)
    with _entered(module, recorder), evaluating(module), torch.no_grad(), recorder:
        logits = module(image)
    return Flow(recorder.ops, recorder.numbers((logits,)), recorder.side or (height, width))


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps every call of a function that takes what depends on the image.

    Such a tensor is known by itself, so that what leaves torch, such as a number that is read from a map, is lost: the
    calls that take it are recorded without that input.
    """

    def __init__(self, image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ops = [Op("image", (), (), tuple(image.shape[1:]))]
        self.made: Any = WeakTensorKeyDictionary()
        self.made[image] = 0
        self.stack: list[tuple[str, int]] = []
        self.calls: Counter[str] = Counter()
        self.side: tuple[int, int] | None = None

    def enter(self, path: str, given: Any) -> None:
        """A module begins, with what it is `given`: it may hand that to a function that is not torch's."""
        self.calls[path] += 1
        self.stack.append((path, self.calls[path]))
        tensors = [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor) and leaf in self.made]
        if tensors:
            if tensors[0].dim() == 4:
                self.side = self.side or (tensors[0].shape[2], tensors[0].shape[3])
            self.ops.append(Op(CALL, tuple(self.stack), self.numbers(tensors), tuple(tensors[0].shape[1:])))

    def numbers(self, value: Any) -> tuple[int, ...]:
        leaves = (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))
        return tuple(self.made[leaf] for leaf in leaves if leaf in self.made)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = self.numbers((args, kwargs or {}))
        out = function(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        name = function._schema.name.removeprefix("aten::").removesuffix("_")
        if made and (inputs or name == "convolution") and name not in SIZED:
            more: dict[str, Any] = {}
            if name == "convolution":
                _, weight, _, _, _, dilation, transposed, _, groups = args
                more = {"kernel": tuple(weight.shape[2:]), "rate": max(dilation, default=1)}
                more |= {"transposed": transposed, "groups": groups}
            for tensor in made:
                self.made[tensor] = len(self.ops)
            self.ops.append(Op(name, tuple(self.stack), inputs, tuple(made[0].shape[1:]), **more))
        return out


@contextmanager
def _entered(module: nn.Module, recorder: Recorder) -> Iterator[None]:
    """Tells the recorder which modules are being called."""

    def enter(path: str) -> Any:
        def before(_: nn.Module, args: Any, kwargs: Any) -> None:
            recorder.enter(path, (args, kwargs))

        return before

    def leave(_: nn.Module, args: Any, output: Any) -> None:
        recorder.stack.pop()

    handles = []
    for path, child in module.named_modules():
        if path:
            handles.append(child.register_forward_pre_hook(enter(path), with_kwargs=True))
            handles.append(child.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
