"""Measures CRFs side by side: the time, memory and marginals of a call, and how far it is from the exact sum."""

import ctypes
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.crfs.peers import pydensecrf, resized, unaries, unfolded
from experiments.shell.memory import peak_mb, resident_mb
from lightning_modules.refinement.conv_crf import conv_crf
from lightning_modules.refinement.dense_crf import PRESETS, dense_crf

# Pydensecrf's default normalization for both, so that the same is compared.
PARAMETERS = {
    "80/13": {**PRESETS["pydensecrf"], "normalization": "symmetric"},
    "67/3": {**PRESETS["deeplab_v2"], "normalization": "symmetric"},
}
ITERATIONS = 10
ORACLE, COMPILED, TORCH, UNFOLD = "pydensecrf2", "C++", "torch", "unfold"
WINDOW = 11
CONV_ITERATIONS = (5, 2)  # the paper's, and a short run
PHOTOGRAPH = (48, 72)  # pixels, small enough for the exact sum


@dataclass(frozen=True)
class Job:
    """One thing to measure; `model` is "dense" or "conv"."""

    model: str
    engine: str
    size: tuple[int, int]
    parameters: str
    threads: int = 1
    iterations: int = ITERATIONS


@dataclass
class Measured:
    """Of one job over all rounds: medians of each round in milliseconds, peak memory in MB, and the marginals."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    marginals: np.ndarray | None = None

    def ratio(self, other: "Measured", key: str, own_key: str | None = None) -> float:
        """How many times as long (or as much) the other takes: the median of the rounds' ratios."""
        pairs = zip(getattr(other, key), getattr(self, own_key or key), strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)


@dataclass(frozen=True)
class Problem:
    """What every worker gets: the photograph (H, W, 3) uint8, the number of classes and of timed calls."""

    photograph: np.ndarray
    classes: int
    calls: int
    window: int
    small: tuple[int, int]  # height and width for the exact sum


def _call(job: Job, image: np.ndarray, problem: Problem) -> Callable[[], Tensor]:
    """What is timed: from probabilities and an image, the kernels included, to marginals."""
    parameters = PARAMETERS[job.parameters]
    probabilities = unaries(problem.classes, *image.shape[:2])
    if job.engine == ORACLE:
        return lambda: pydensecrf(probabilities, image, job.iterations, parameters)
    images = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    if job.engine == UNFOLD:
        plain = {name: value for name, value in parameters.items() if name != "normalization"}
        return lambda: unfolded(probabilities, images, window=problem.window, iterations=job.iterations, **plain)
    engine = {COMPILED: "c++", TORCH: "torch"}[job.engine]
    settings = {**parameters, "iterations": job.iterations, "engine": engine}
    if job.model == "dense":
        return lambda: dense_crf(probabilities, images, **settings)
    return lambda: conv_crf(probabilities, images, window=problem.window, shape="square", **settings)


def _measure(job: Job, problem: Problem, keep: bool) -> tuple[float, float, float, np.ndarray | None]:
    """CPU and wall milliseconds (medians of the calls), peak memory in MB, and the marginals (C, H, W) if to be
    kept."""
    torch.set_num_threads(job.threads)
    with torch.no_grad():
        _call(job, resized(problem.photograph, 24, 32), problem)()  # libraries are loaded, the kernel compiled
        call = _call(job, resized(problem.photograph, *job.size), problem)
        _forget_peak()
        before = resident_mb()
        marginals = call()
        memory = max(0.0, peak_mb() - before)
        kept = marginals[0].numpy().copy() if keep else None
        del marginals
        cpu, wall = [], []
        for _ in range(problem.calls):
            started = time.process_time(), time.perf_counter()
            call()
            cpu.append(time.process_time() - started[0])
            wall.append(time.perf_counter() - started[1])
    return 1000 * statistics.median(cpu), 1000 * statistics.median(wall), memory, kept


def _forget_peak() -> None:
    """Gives back what malloc keeps of freed memory, and lets VmHWM start anew: both would hide what the call needs."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # proc(5)
    except (AttributeError, OSError):
        pass  # not Linux with glibc: no peak is read there


def measure(jobs: Sequence[Job], problem: Problem, rounds: int) -> dict[Job, Measured]:
    """Each round measures each job once, in a fresh process."""
    measured = {job: Measured() for job in jobs}
    for number in range(rounds):
        for job in jobs:
            cpu, wall, memory, marginals = alone(_measure, job, problem, number == 0)
            result = measured[job]
            result.cpu.append(cpu)
            result.wall.append(wall)
            result.memory.append(memory)
            result.marginals = marginals if number == 0 else result.marginals
    return measured


def alone(work: Callable[..., Any], *arguments: Any) -> Any:
    """Runs in a process of its own, forked from one that has imported what takes long and started no thread."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["experiments.grids.cost", "lightning_modules.refinement.conv_crf", "PIL.Image"])
    with context.Pool(1) as pool:
        return pool.apply(work, arguments)


def exactness_of(
    problem: Problem, parameters: str, cell: int, engines: list[str]
) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Of each engine on a small photograph, against the exact sum: mean and maximum difference, label agreement.

    "marginals" after all iterations; "smoothness" and "appearance" for one filtering step with that kernel: the message
    that one iteration adds to the logits, less its mean over the classes, to which softmax is blind.
    """
    torch.set_num_threads(1)
    image = resized(problem.photograph, *problem.small)
    images = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    probabilities = unaries(problem.classes, *problem.small, cell)
    logs = probabilities.log()
    weights = {"smoothness": (0.0, 1.0), "appearance": (1.0, 0.0)}

    def marginals(engine: str, iterations: int, settings: dict[str, Any]) -> Tensor:
        if engine == ORACLE:
            return pydensecrf(probabilities, image, iterations, settings)
        if engine == "exact":
            exact: Tensor = dense_crf(
                probabilities.double(), images.double(), method="exact", iterations=iterations, **settings
            )
            return exact.float()
        with torch.no_grad():
            lattice: Tensor = dense_crf(
                probabilities,
                images,
                engine={COMPILED: "c++", TORCH: "torch"}[engine],
                iterations=iterations,
                **settings,
            )
        return lattice

    def message(engine: str, kernel: str) -> Tensor:
        pair = dict(zip(("w_appearance", "w_smoothness"), weights[kernel], strict=True))
        added = marginals(engine, 1, {**PARAMETERS[parameters], **pair}).log() - logs
        return added - added.mean(1, keepdim=True)

    exact = {kernel: message("exact", kernel) for kernel in weights}
    exact["marginals"] = marginals("exact", ITERATIONS, PARAMETERS[parameters])
    apart = {}
    for engine in engines:
        ours = {kernel: message(engine, kernel) for kernel in weights}
        ours["marginals"] = marginals(engine, ITERATIONS, PARAMETERS[parameters])
        apart[engine] = {key: differences(ours[key], exact[key]) for key in exact}
    return apart


def differences(a: Tensor, b: Tensor) -> tuple[float, float, float]:
    """Mean and maximum difference, and the share of pixels whose largest class is the same."""
    apart = (a - b).abs()
    same = (a.argmax(-3) == b.argmax(-3)).float().mean()
    return float(apart.mean()), float(apart.max()), float(same)
