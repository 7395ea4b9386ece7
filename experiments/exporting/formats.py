"""The formats of an exported network: how its graph is made, and how the file runs again.

Every graph takes float32 images (1, C, H, W) in [0, 1] and returns logits (1, num_classes, H, W): the normalisation is
part of it.
"""

import copy
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lightning_modules.base import SegmentationModule

FormatName = Literal["onnx", "pt2", "torchscript"]
Size = tuple[int, int]
Runner = Callable[[Tensor], Tensor]  # images (1, C, H, W) -> logits (1, num_classes, H, W)
INPUT, OUTPUT = "images", "logits"
METADATA = "metadata.json"  # the file within pt2 and TorchScript that holds what ONNX has properties for
# Of nodes: paths and lines of this machine.
NO_TRACE = {"stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn"}


@dataclass(frozen=True)
class Exported:
    """A network as bytes; `smallest` is the shortest side of an image that it takes, where sizes are free."""

    data: bytes
    smallest: int | None


@dataclass(frozen=True)
class Format:
    """How a network becomes a file of this format, and how that runs.

    Args:
        suffix: of the file
        runtime: what runs it, for sentences
        export: the module as `prepared` has it, the size of the example, whether other sizes are taken, the metadata
        runner: what computes with the bytes of a file, on this number of threads
    """

    suffix: str
    runtime: str
    export: Callable[[SegmentationModule, Size, bool, Mapping[str, str]], Exported]
    runner: Callable[[bytes, int], Runner]


class CannotExportError(ValueError):
    """A network that a format cannot hold."""


def extra(module: str) -> Any:
    """A package of the extra `export`; ValueError with the way out where it is not installed."""
    try:
        return __import__(module, fromlist=["_"])
    except ImportError as error:
        raise ValueError(f'ONNX takes {module.split(".")[0]}: pip install -e ".[export]"') from error


def prepared(module: SegmentationModule) -> SegmentationModule:
    """A copy for evaluation on the CPU, in float32, with its channels first and without gradients."""
    copied = copy.deepcopy(module).cpu().float().eval().requires_grad_(False)
    copied.hparams["channels_last"] = False  # which would be part of the graph, and is of training
    copied.network.to(memory_format=torch.contiguous_format)
    return copied


def example(module: SegmentationModule, size: Size, seed: int = 0) -> Tensor:
    """Images (1, C, *size) in [0, 1], the same for the same seed: noise over slopes, so that some logits are near."""
    channels = module.hparams["in_channels"]
    generator = torch.Generator().manual_seed(seed)
    slopes = torch.stack(torch.meshgrid(*(torch.linspace(0, 1, side) for side in size), indexing="ij")).mean(0)
    noise = torch.rand(1, channels, *size, generator=generator)
    return 0.5 * slopes + 0.5 * noise


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the advice of exporters, which is for who writes networks; what goes wrong is compared and said."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        # torch.export prints the whole graph where it gives up.
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _refused(module: SegmentationModule, format: str, free: bool, error: Exception) -> CannotExportError:
    """What an exporter's error means: one line, and the way out."""
    cause = " ".join(f"{type(error).__name__}: {error}".split())[:240]
    way_out = (
        "leave out --dynamic to export it for one --size"
        if free
        else "docs/export.md lists what each format can hold; choose another --format"
    )
    sizes = "with free height and width" if free else "at one size"
    return CannotExportError(f"{type(module).__name__} cannot be exported as {format} {sizes} ({cause}): {way_out}")


def _program(module: SegmentationModule, size: Size, free: bool, format: str) -> tuple[Any, int | None]:
    """The graph of torch.export, and the smallest side that it takes."""
    sides = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC} if free else None
    try:
        with _quietly(), torch.no_grad():
            program = torch.export.export(module, (example(module, size),), dynamic_shapes=(sides,), strict=False)
    except Exception as error:  # of any kind: exporters raise whatever their passes do
        raise _refused(module, format, free, error) from error
    for node in program.graph.nodes:
        for key in NO_TRACE & node.meta.keys():
            del node.meta[key]
    return program, max((int(limits.lower) for limits in program.range_constraints.values()), default=None)


def _export_pt2(module: SegmentationModule, size: Size, free: bool, metadata: Mapping[str, str]) -> Exported:
    program, smallest = _program(module, size, free, "pt2")
    file = io.BytesIO()
    with _quietly():
        torch.export.save(program, file, extra_files={METADATA: json.dumps(metadata)})
    return Exported(file.getvalue(), smallest)


def _run_pt2(data: bytes, threads: int) -> Runner:
    with _quietly():
        network = torch.export.load(io.BytesIO(data)).module()
    return lambda images: network(images)


class _OneSize(nn.Module):
    """A traced network that refuses images of another size, where a trace would answer, and may answer wrongly."""

    def __init__(self, traced: Any, height: int, width: int) -> None:
        super().__init__()
        self.traced, self.height, self.width = traced, height, width

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[2] != self.height or images.shape[3] != self.width:
            raise ValueError("the network was exported for images of another size")
        logits: Tensor = self.traced(images)
        return logits


def _export_torchscript(module: SegmentationModule, size: Size, free: bool, metadata: Mapping[str, str]) -> Exported:
    file = io.BytesIO()
    try:
        with _quietly(), torch.no_grad():
            images = example(module, size)
            traced: Any = module.to_torchscript(method="trace", example_inputs=images, check_trace=False)
            whole = traced if free else torch.jit.script(_OneSize(traced, *size))
            torch.jit.save(whole, file, _extra_files={METADATA: json.dumps(metadata)})
    except Exception as error:
        raise _refused(module, "torchscript", free, error) from error
    return Exported(file.getvalue(), None)


def _run_torchscript(data: bytes, threads: int) -> Runner:
    with _quietly():
        network: Any = torch.jit.load(io.BytesIO(data))  # type: ignore[no-untyped-call]
    return lambda images: network(images)


def _export_onnx(module: SegmentationModule, size: Size, free: bool, metadata: Mapping[str, str]) -> Exported:
    extra("onnxruntime")
    extra("onnxscript")
    onnx = extra("onnx")
    program, smallest = _program(module, size, free, "onnx")
    try:
        with _quietly():
            made = torch.onnx.export(program, dynamo=True, verbose=False, input_names=[INPUT], output_names=[OUTPUT])
        assert made is not None
        proto = made.model_proto
        for place in (*proto.graph.node, *proto.graph.value_info, *(n for f in proto.functions for n in f.node)):
            del place.metadata_props[:]  # paths and lines of this machine
        _name_sides(proto)
        onnx.helper.set_model_props(proto, dict(metadata))
        return Exported(proto.SerializeToString(), smallest)
    except Exception as error:
        raise _refused(module, "onnx", free, error) from error


def _name_sides(proto: Any) -> None:
    """Free sides as "height" and "width", where torch has symbols such as "s14"."""
    (images,) = proto.graph.input
    (logits,) = proto.graph.output
    sides = images.type.tensor_type.shape.dim[2:]
    names = {side.dim_param: name for side, name in zip(sides, ("height", "width"), strict=True) if side.dim_param}
    for value in (images, logits):
        for side in value.type.tensor_type.shape.dim:
            if side.dim_param in names:
                side.dim_param = names[side.dim_param]
    del proto.graph.value_info[:]  # whose sides are formulas of those symbols


def session(data: bytes, threads: int) -> Any:
    """ONNX Runtime on the CPU with a network."""
    runtime = extra("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3  # errors: what else it says changes nothing
    return runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _run_onnx(data: bytes, threads: int) -> Runner:
    network = session(data, threads)
    return lambda images: torch.from_numpy(network.run(None, {INPUT: images.numpy()})[0])


FORMATS: dict[FormatName, Format] = {
    "onnx": Format("onnx", "ONNX Runtime", _export_onnx, _run_onnx),
    "pt2": Format("pt2", "torch.export", _export_pt2, _run_pt2),
    "torchscript": Format("torchscript.pt", "TorchScript", _export_torchscript, _run_torchscript),
}
assert {*FORMATS} == {*get_args(FormatName)}
