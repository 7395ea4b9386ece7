"""What a training step of each variant costs, measured side by side: time in rounds A B C A B C ..., and peak
memory."""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from experiments.runs.run import Run
from experiments.runs.training import build
from experiments.shell.memory import peak_mb, resident_mb
from lightning_modules.recipe import MEDIAN_FREQUENCY

STEPS = 4  # timed in each round, after WARMUP that are not: the first steps allocate and choose algorithms
WARMUP = 2


@dataclass(frozen=True)
class Cost:
    """Of one variant. Times and memory are of this machine in this hour: compare them inside one table only."""

    step_seconds: float  # median over all timed steps: forward, loss, backward, optimiser
    peak_memory_mb: (
        float  # of one process: resident memory above what it had before it built the network; on a GPU, allocated
    )


def gmac(run: Run, height: int, width: int) -> float:
    """Multiply-accumulates, in 10^9, of the forward pass of one image; half of what is called FLOPs."""
    with torch.device("meta"):
        module, _ = build(run.from_scratch())
        images = torch.empty(1, module.hparams["in_channels"], height, width)
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            module.eval()(images)
    return counter.get_total_flops() / 2 / 1e9


def measure(
    runs: Mapping[str, Run],
    rounds: int = 3,
    *,
    threads: int = 1,
    images: torch.Tensor | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> dict[str, Cost]:
    """The cost of every variant, on a batch `images` (N, in_channels, H, W) or on noise.

    Each round measures each variant once, in a fresh process: what one leaves behind, such as caches, does not meet the
    next. A machine that slows down slows all of them.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # imports once, starts no thread: a fork costs milliseconds
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    memory: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        for name, run in runs.items():
            progress(f"measuring {name}, round {number + 1} of {rounds}")
            with context.Pool(1) as pool:
                timed, peak = pool.apply(_steps, (run.from_scratch().config(), threads, images))
            seconds[name] += timed
            memory[name].append(peak)
    return {name: Cost(statistics.median(seconds[name]), statistics.median(memory[name])) for name in runs}


def _steps(config: dict[str, Any], threads: int, images: torch.Tensor | None) -> tuple[list[float], float]:
    """Times training steps; on noise of the shape of a real batch it needs no data.

    A bilateral filter, unlike a convolution, takes twice as long for noise as for a photograph.
    """
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before = resident_mb()
    module, datamodule = build(Run.from_config(config))
    if module.hparams["class_weights"] == MEDIAN_FREQUENCY:  # what they are changes no time
        module.set_class_weights(torch.ones(module.num_classes))
    module.to(device).train()
    height, width = datamodule.transform.crop
    if images is None:
        images = torch.rand(datamodule.batch_size, module.hparams["in_channels"], height, width)
    images = images.to(device)
    masks = torch.randint(module.num_classes, (datamodule.batch_size, height, width), device=device)
    optimizer = torch.optim.SGD(module.parameters(), 1e-6, momentum=0.9)
    timed = []
    for step in range(WARMUP + STEPS):
        started = time.perf_counter()
        optimizer.zero_grad()
        module.loss(images, masks).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if step >= WARMUP:
            timed.append(time.perf_counter() - started)
    if device.type == "cuda":
        return timed, torch.cuda.max_memory_allocated() / 2**20
    return timed, peak_mb() - before
