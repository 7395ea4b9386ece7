"""torch.compile of a network in training. Evaluation stays eager: its images have many sizes, each a graph of its own.

Ansel et al. 2024, PyTorch 2, https://doi.org/10.1145/3620665.3640366
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

SIZES = 8  # of images, each compiled by itself: more are an error, as the rest would run eager in silence
WAY_OUT = "leave --model.compile out"


def compile_(network: nn.Module, entrances: Sequence[str], device: torch.device) -> None:
    """Has `network` compiled when it is called, in place: names of weights, and copies of it, stay as they are.

    Of a network with other `entrances` than forward each child is. A size of images has one graph, so that what is
    compiled for it does not depend on those before, and a resumed run rounds as one that was not interrupted.

    Raises ValueError where no compiler is found.
    """
    check_compiler(device)
    torch._dynamo.config.recompile_limit = SIZES
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    for part in network.children() if entrances else [network]:
        part.compile(dynamic=False)


def check_compiler(device: torch.device) -> None:
    """Raises ValueError where what torch.compile calls on `device` is not installed."""
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler as error:
            raise ValueError(
                f"compile=True needs a C++ compiler, and none was found: install g++, or {WAY_OUT}"
            ) from error
    elif not any(map(shutil.which, ("cc", "gcc", "clang"))):  # of Triton's launchers
        raise ValueError(f"compile=True needs a C compiler, and none was found: install gcc, or {WAY_OUT}")


@contextmanager
def eager(network: nn.Module) -> Iterator[None]:
    """Nothing is compiled in this context; neither is `network`, if it is to be in training."""
    if not is_compiled(network):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def explaining_compiler(network: nn.Module) -> Iterator[None]:
    """What torch.compile fails with says what it was, and the way out."""
    if not is_compiled(network):
        yield
        return
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
    from torch._inductor.exc import CppCompileError

    try:
        yield
    except FailOnRecompileLimitHit as error:
        raise ValueError(
            f"compile=True takes images of at most {SIZES} sizes in training, as each is compiled by itself: set "
            f"--data.crop, or {WAY_OUT}"
        ) from error
    except (TorchDynamoException, CppCompileError) as error:
        told = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"compile=True fails for this network ({told}): {WAY_OUT}") from error


def is_compiled(network: nn.Module) -> bool:
    return any(part._compiled_call_impl is not None for part in (network, *network.children()))
