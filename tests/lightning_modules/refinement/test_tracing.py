"""What torch.jit.trace and torch.compile make of the CRFs: what they are, or an error that says what to do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_modules.crf_as_rnn import CRFasRNNModule
from lightning_modules.refinement import native, post_process
from lightning_modules.refinement.conv_crf import ConvCRF, conv_crf
from lightning_modules.refinement.dense_crf import DenseCRF, dense_crf
from lightning_modules.unet import UNetModule

NUMBERS: dict[str, Any] = {
    "w_appearance": 4.0,
    "theta_alpha": 8.0,
    "theta_beta": 20.0,
    "w_smoothness": 2.0,
    "theta_gamma": 1.5,
    "iterations": 2,
}
FEW = NUMBERS | {"window": 5}  # of a convolutional CRF
NETWORK = {"network": "unet", "network_options": {"width": 4, "depth": 2}}
IN_PARTS = "trace the network without its CRF and call dense_crf on what it returns"
pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.*:DeprecationWarning")


def problem(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    probabilities = (2 * torch.randn(1, 3, 12, 14, generator=generator)).softmax(1)
    return probabilities, torch.randint(256, (1, 3, 12, 14), generator=generator).float()


def traced(function: Callable[..., Tensor], *inputs: Tensor) -> Any:
    with torch.no_grad():
        return torch.jit.trace(function, inputs, check_trace=False)


CRFS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "exact": lambda p, image: dense_crf(p, image, method="exact", **NUMBERS),
    "exact layer": DenseCRF(3, method="exact", **NUMBERS).eval(),
    "conv": lambda p, image: conv_crf(p, image, **FEW),
    "conv, blurred": lambda p, image: conv_crf(p, image, blur=2, **FEW),
    "conv layer": ConvCRF(3, learn=("weights", "thetas", "kernel", "compatibility"), **FEW).eval(),
}


@pytest.mark.parametrize("name", CRFS)
def test_a_traced_crf_is_the_crf_on_other_images(name: str) -> None:
    trace = traced(CRFS[name], *problem(0))
    for seed in (0, 1, 2):
        with torch.no_grad():
            torch.testing.assert_close(trace(*problem(seed)), CRFS[name](*problem(seed)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("engine", ["auto", "torch", "c++"])
def test_the_lattice_of_an_image_is_not_traced(engine: str) -> None:
    for crf in (
        lambda p, image: dense_crf(p, image, engine=engine, **NUMBERS),
        DenseCRF(3, engine=engine, **NUMBERS).eval(),
    ):
        with pytest.raises(ValueError, match=IN_PARTS):
            traced(crf, *problem(0))


def test_the_lattice_of_an_image_is_not_exported() -> None:
    module = CRFasRNNModule(3, 255, **NETWORK).eval()
    with pytest.raises(ValueError, match=IN_PARTS):
        torch.export.export(module, (torch.rand(1, 3, 24, 20),), strict=False)


def test_the_compiled_engine_of_a_convolutional_crf_is_not_traced() -> None:
    with pytest.raises(ValueError, match=r"engine 'c\+\+' serves .* while tracing: use engine='auto'"):
        traced(lambda p, image: conv_crf(p, image, engine="c++", **FEW), *problem(0))


def to_torchscript(module: Any, images: Tensor) -> Any:
    with torch.no_grad():
        return module.eval().to_torchscript(method="trace", example_inputs=images, check_trace=False)


@pytest.mark.parametrize("crf", ["conv", "dense"])
def test_crf_as_rnn_is_traced_with_a_convolutional_crf(crf: str) -> None:
    module = CRFasRNNModule(3, 255, crf=crf, crf_options={"window": 5} if crf == "conv" else None, **NETWORK)
    images, others = torch.rand(1, 3, 24, 20), torch.rand(1, 3, 24, 20)
    if crf == "dense":
        with pytest.raises(ValueError, match=IN_PARTS):
            to_torchscript(module, images)
        return
    trace = to_torchscript(module, images)
    for x in (images, others):
        torch.testing.assert_close(trace(x), module(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["conv", "dense"])
def test_a_crf_behind_a_network_is_traced_or_refused_too(kind: str) -> None:
    module = UNetModule(3, 255, width=4, depth=2)
    module.refine = post_process(kind, **(FEW if kind == "conv" else NUMBERS))
    images, others = torch.rand(1, 3, 24, 20), torch.rand(1, 3, 24, 20)
    if kind == "dense":
        with pytest.raises(ValueError, match=IN_PARTS):
            to_torchscript(module, images)
        return
    trace = to_torchscript(module, images)
    for x in (images, others):
        torch.testing.assert_close(trace(x), module(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("engine", ["torch", "c++"])
@pytest.mark.parametrize(("crf", "numbers"), [(dense_crf, NUMBERS), (conv_crf, FEW)], ids=["dense", "conv"])
def test_compiled_crfs_are_the_crfs(crf: Callable[..., Tensor], numbers: dict[str, Any], engine: str) -> None:
    if engine == "c++" and (why := native.reason("dense_crf") or native.reason("conv_crf")):
        pytest.skip(f"no compiled kernel: {why}")
    torch._dynamo.reset()
    # Its graphs are run as they are: what could go wrong is which calls they hold, not how those are made faster.
    compiled = torch.compile(lambda p, image: crf(p, image, engine=engine, **numbers), backend="eager")
    with torch.no_grad():
        for seed in (0, 1):
            expected = crf(*problem(seed), engine=engine, **numbers)
            torch.testing.assert_close(compiled(*problem(seed)), expected, rtol=1e-4, atol=1e-5)
