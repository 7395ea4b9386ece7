"""What the CRFs of `lightning_modules.refinement` cost and how exact they are, beside others, side by side in one run.

python -m experiments.benchmark_crf                          # some minutes; the bars at the end
python -m experiments.benchmark_crf --quick                  # a minute, whose numbers say nothing
python -m experiments.benchmark_crf --out experiments/results/benchmark_crf.md

The fully connected CRF (C++ and torch engine) stands beside pydensecrf2 (extra [oracle]), the C++ original; the lattice
beside the exact sum; ConvCRF beside the same sum over a window that `unfold` materialises. Each measurement has a fresh
process, and rounds go through all of them in turn, so that a machine which slows down slows all. Unaries are softened,
blurred random labels of a fixed seed; the photograph is scikit-image's "coffee" (extra [soft]) or --image.
"""

import argparse
import ctypes
import itertools
import math
import multiprocessing
import os
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from experiments.benchmark import _peak_mb, _resident_mb
from experiments.shell.ending import ending
from experiments.shell.environment import command_line, git_commit
from experiments.shell.files import write_atomic
from experiments.shell.flags import Parser, forgiving_output, positive, refuse
from lightning_modules.refinement import native
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
BLOBS, NOISE = 20, 1  # pixels a random label covers before blurring: like a network's output; a label for each pixel

# Bars: ratios of pydensecrf2's time to ours, one core (CPU time) and two (wall time, against its one)
FASTER = {"80/13": 3.5, "67/3": 2.0}
FASTER_ON_TWO = 5.0  # of 80/13
TORCH_FASTER = 1.0
MEMORY = 1.5  # times its
SAME = 1e-4
STEP = {"smoothness": 1e-2, "appearance": 8e-2}
CONV_FASTER, CONV_MEMORY, CONV_SAME = 5.0, 1 / 8, 1e-3

# What is left to win for 80/13, an estimate for a core of 90 GFLOPS (float32) and 13 GB/s. A pixel of one iteration: 9
# lattice rows (6 + 3) of 24 numbers sliced and splatted, a multiply-add each, and 25 operations for each of 24 exponentials;
# 96 bytes of unaries, 72 of offsets and weights and 8 of norms streamed. The lattice, built with vectors, 10 ms.
FLOPS, BYTES = 2 * 9 * 24 * 2 + 25 * 24, 96 + 72 + 8
GFLOPS, GBPS, BUILD_MS = 90.0, 13.0, 10.0

# So that neither side's memory goes back to the system and is cleared again at every call.
TUNED_MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}


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


Bar = tuple[str, str, bool | None]  # what, measured, met (None: could not be measured)


@dataclass
class Report:
    """Lines of text and tables in the order of the run, as plain text and as markdown."""

    parts: list[str | list[list[str]]] = field(default_factory=list)

    def say(self, line: str) -> None:
        self.parts.append(line)
        print(line, flush=True)

    def table(self, rows: list[list[str]]) -> None:
        self.parts.append(rows)
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        for row in rows:
            first = row[0].ljust(widths[0])
            print("  ".join([first, *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]), flush=True)

    def markdown(self) -> str:
        blocks = []
        for part in self.parts:
            if isinstance(part, str):
                blocks.append(part)
                continue
            ruler = ["---", *["---:"] * (len(part[0]) - 1)]
            blocks.append("\n".join("| " + " | ".join(row) + " |" for row in (part[0], ruler, *part[1:])))
        return "\n\n".join(blocks) + "\n"


def unaries(classes: int, height: int, width: int, cell: int = BLOBS) -> Tensor:
    """Probabilities (1, C, H, W): random labels of some `cell` pixels across, blurred, softened."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, classes, -(-height // cell), -(-width // cell), generator=generator)
    labels = F.interpolate(noise, (height, width), mode="bicubic").argmax(1)
    soft = F.one_hot(labels, classes).movedim(3, 1).float()
    for _ in range(2):
        soft = F.avg_pool2d(soft, 7, stride=1, padding=3, count_include_pad=False)
    grain = torch.rand(soft.shape, generator=generator)
    return (3 * soft + grain).softmax(1)


def photograph(path: Path | None) -> np.ndarray:
    """An RGB image (H, W, 3) uint8."""
    if path is not None:
        return np.asarray(Image.open(path).convert("RGB"))
    from skimage import data

    return np.asarray(data.coffee())  # type: ignore[no-untyped-call]


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def pydensecrf(probabilities: Tensor, image: np.ndarray, iterations: int, parameters: dict[str, Any]) -> Tensor:
    """The C++ original behind the interface of `dense_crf`, for one image; a weight of 0 leaves its kernel out."""
    import pydensecrf.densecrf as original

    _, classes, height, width = probabilities.shape
    crf = original.DenseCRF2D(width, height, classes)
    energy = probabilities[0].flatten(1).clamp(min=torch.finfo(torch.float32).tiny).log_().neg_()
    crf.setUnaryEnergy(energy.numpy())
    kinds = {"kernel": original.DIAG_KERNEL, "normalization": original.NORMALIZE_SYMMETRIC}
    alpha, beta, gamma = (parameters[f"theta_{name}"] for name in ("alpha", "beta", "gamma"))
    if parameters["w_smoothness"]:
        crf.addPairwiseGaussian(sxy=gamma, compat=parameters["w_smoothness"], **kinds)
    if parameters["w_appearance"]:
        crf.addPairwiseBilateral(sxy=alpha, srgb=beta, rgbim=image, compat=parameters["w_appearance"], **kinds)
    return torch.from_numpy(np.asarray(crf.inference(iterations))).view(probabilities.shape)


def unfolded(
    probabilities: Tensor,
    images: Tensor,
    *,
    w_appearance: float,
    theta_alpha: float,
    theta_beta: float,
    w_smoothness: float,
    theta_gamma: float,
    window: int,
    iterations: int,
) -> Tensor:
    """`conv_crf` with a square window and symmetric normalization, as its authors' code sums: over a materialised window.

    Both kernels are merged into one, as that code does by default.
    """
    number, _, height, width = probabilities.shape

    def neighbours(maps: Tensor) -> Tensor:  # (N, C, window^2, H, W)
        return F.unfold(maps, window, padding=window // 2).view(number, maps.shape[1], window**2, height, width)

    steps = torch.arange(window) - window // 2
    distances = (steps[:, None] ** 2 + steps**2).view(window**2, 1, 1)
    colours = (neighbours(images) - images[:, :, None]).square().sum(1, keepdim=True)
    inside = neighbours(torch.ones_like(images[:, :1]))
    appearance = torch.exp(-distances / (2 * theta_alpha**2) - colours / (2 * theta_beta**2)) * inside
    smoothness = torch.exp(-distances / (2 * theta_gamma**2)) * inside
    merged = torch.zeros_like(appearance)
    for weight, kernel in ((w_appearance, appearance), (w_smoothness, smoothness)):
        norm = kernel.sum(2).rsqrt()
        merged += weight * norm[:, :, None] * kernel * neighbours(norm)
    logs = probabilities.log()
    q = logs.softmax(1)
    for _ in range(iterations):
        q = (logs + (merged * neighbours(q)).sum(2)).softmax(1)
    return q


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
    """CPU and wall milliseconds (medians of the calls), peak memory in MB, and the marginals (C, H, W) if to be kept."""
    torch.set_num_threads(job.threads)
    with torch.no_grad():
        _call(job, resized(problem.photograph, 24, 32), problem)()  # libraries are loaded, the kernel compiled
        call = _call(job, resized(problem.photograph, *job.size), problem)
        _forget_peak()
        before = _resident_mb()
        marginals = call()
        memory = max(0.0, _peak_mb() - before)
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
            cpu, wall, memory, marginals = _alone(_measure, job, problem, number == 0)
            result = measured[job]
            result.cpu.append(cpu)
            result.wall.append(wall)
            result.memory.append(memory)
            result.marginals = marginals if number == 0 else result.marginals
    return measured


def _alone(work: Callable[..., Any], *arguments: Any) -> Any:
    """Runs in a process of its own, forked from one that has imported what takes long and started no thread."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["experiments.benchmark", "lightning_modules.refinement.conv_crf", "PIL.Image"])
    with context.Pool(1) as pool:
        return pool.apply(work, arguments)


def _exactness(
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
    found = {}
    for engine in engines:
        ours = {kernel: message(engine, kernel) for kernel in weights}
        ours["marginals"] = marginals(engine, ITERATIONS, PARAMETERS[parameters])
        found[engine] = {key: differences(ours[key], exact[key]) for key in exact}
    return found


def differences(a: Tensor, b: Tensor) -> tuple[float, float, float]:
    """Mean and maximum difference, and the share of pixels whose largest class is the same."""
    apart = (a - b).abs()
    same = (a.argmax(-3) == b.argmax(-3)).float().mean()
    return float(apart.mean()), float(apart.max()), float(same)


def _timings(measured: dict[Job, Measured], peer: str) -> list[list[str]]:
    """One row a job; ratios to the peer of the same size, parameters and iterations on one thread."""
    rows = [["", "threads", "CPU ms", "times faster", "wall ms", "times faster", "peak MB", "of its memory"]]
    for job, result in measured.items():
        other = next((m for j, m in measured.items() if _beside(j, job) and j.engine == peer), None)
        cells = [job.engine, str(job.threads)]
        for key in ("cpu", "wall"):
            cells.append(f"{statistics.median(getattr(result, key)):.1f}")
            cells.append("-" if other is None else f"{result.ratio(other, key):.2f}")
        cells.append(f"{statistics.median(result.memory):.0f}")
        share = math.nan if other is None else _share(result, other)
        cells.append("-" if math.isnan(share) else f"{share:.3f}")
        rows.append(cells)
    return rows


def _beside(peer: Job, job: Job) -> bool:
    return (peer.size, peer.parameters, peer.iterations) == (job.size, job.parameters, job.iterations)


def _share(result: Measured, other: Measured) -> float:
    """Of the other's peak memory; NaN where that is too little to be seen."""
    theirs = statistics.median(other.memory)
    return statistics.median(result.memory) / theirs if theirs >= 1 else math.nan


def _at_most(what: str, bar: float, share: float) -> Bar:
    return (what, "-", None) if math.isnan(share) else (what, f"{share:.3f}x", share <= bar)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def dense(
    report: Report, problem: Problem, sizes: list[tuple[int, int]], rounds: int, threads: list[int], engines: list[str]
) -> list[Bar]:
    bars: list[Bar] = []
    for size, parameters in itertools.product(sizes, PARAMETERS):
        name = f"{_by(size)}, {parameters}"
        report.say(f"## Fully connected CRF, {name}, {problem.classes} classes, {ITERATIONS} iterations")
        jobs = [
            Job("dense", engine, size, parameters, count)
            for engine in engines
            for count in ([1] if engine == ORACLE else threads)
        ]
        measured = measure(jobs, problem, rounds)
        report.table(_timings(measured, ORACLE))
        oracle = measured.get(Job("dense", ORACLE, size, parameters))
        reference = oracle or measured[Job("dense", TORCH, size, parameters, threads[0])]
        beside = ORACLE if oracle else TORCH
        for job, result in measured.items():
            if result is reference:
                continue
            mean, most, same = _apart(result, reference)
            label = f"{job.engine} against {beside}, {job.threads} thread{'s' * (job.threads > 1)}"
            report.say(f"{label}: marginals differ by {most:.2g} (mean {mean:.2g}), labels agree on {100 * same:.4g} %")
            if oracle is None:
                continue
            bars.append(
                (
                    f"{job.engine} = {ORACLE} within {SAME:g}, all labels ({name}, {job.threads} thr.)",
                    f"{most:.2g}, {100 * same:.4g} %",
                    most <= SAME and same == 1,
                )
            )
            bars += _speed_bars(job, result, oracle, name)
        if parameters == "80/13":
            compiled = measured.get(Job("dense", COMPILED, size, parameters))
            report.say(_bound(size, compiled))
    return bars


def _apart(result: Measured, reference: Measured) -> tuple[float, float, float]:
    assert result.marginals is not None and reference.marginals is not None
    return differences(torch.from_numpy(result.marginals), torch.from_numpy(reference.marginals))


def _speed_bars(job: Job, result: Measured, oracle: Measured, name: str) -> list[Bar]:
    bars: list[Bar] = []

    def at_least(bar: float, ratio: float, how: str) -> None:
        bars.append((f"{job.engine} >= {bar:g}x {how} ({name})", f"{ratio:.2f}x", ratio >= bar))

    if job.threads == 1:
        faster = TORCH_FASTER if job.engine == TORCH else FASTER[job.parameters]
        at_least(faster, result.ratio(oracle, "cpu"), "per core")
    elif job.engine == COMPILED and job.threads == 2 and job.parameters == "80/13":
        at_least(FASTER_ON_TWO, result.ratio(oracle, "wall"), "on two cores, wall")
    if job.engine == COMPILED:
        what = f"C++ peak memory <= {MEMORY:g}x ({name}, {job.threads} thr.)"
        bars.append(_at_most(what, MEMORY, _share(result, oracle)))
    return bars


def _bound(size: tuple[int, int], compiled: Measured | None) -> str:
    """The estimate of what a core could do, with its arithmetic."""
    steps = size[0] * size[1] * ITERATIONS
    compute, stream = steps * FLOPS / GFLOPS / 1e6, steps * BYTES / GBPS / 1e6
    low, high = max(compute, stream) + BUILD_MS, 1.2 * max(compute, stream) + 1.5 * BUILD_MS
    line = (
        f"Bound, an estimate and not measured: {FLOPS} operations a pixel and iteration at {GFLOPS:g} GFLOPS are "
        f"{compute:.0f} ms, {BYTES} bytes at {GBPS:g} GB/s {stream:.0f} ms beside them, a vectorised lattice build "
        f"{BUILD_MS:g} ms: {low:.0f} to {high:.0f} ms a core."
    )
    if compiled is None:
        return line
    ours = statistics.median(compiled.cpu)
    return f"{line} The C++ engine takes {ours:.0f} ms, {ours / high:.1f} to {ours / low:.1f} times that."


def exactness(report: Report, problem: Problem, engines: list[str]) -> list[Bar]:
    bars: list[Bar] = []
    report.say(f"## Lattice against the exact sum, {_by(problem.small)}, {problem.classes} classes")
    report.say(
        "One filtering step: the message without its mean over the classes. Marginals: after "
        f"{ITERATIONS} iterations. Noise: unaries from a random label for each pixel, blurred, so soft; blobs: labels of "
        f"some {BLOBS} pixels, as sharp as a network's. A step's error grows with the contrast, the original's too."
    )
    rows = [["", *(f"{kernel}, {what}" for kernel in STEP for what in ("mean", "max"))]]
    rows[0] += ["marginals, mean", "max", "labels agree"]
    for parameters, (unary, cell) in itertools.product(PARAMETERS, (("noise", NOISE), ("blobs", BLOBS))):
        found = _alone(_exactness, problem, parameters, cell, engines)
        for engine, values in found.items():
            cells = [f"{value:.2g}" for kernel in STEP for value in values[kernel][:2]]
            mean, most, same = values["marginals"]
            rows.append(
                [f"{parameters}, {unary}, {engine}", *cells, f"{mean:.2g}", f"{most:.2g}", f"{100 * same:.2f} %"]
            )
            if engine == ORACLE:
                continue
            for kernel, bar in STEP.items():
                step = values[kernel][1]
                beside = f" ({ORACLE} {found[ORACLE][kernel][1]:.2g})" if ORACLE in found else ""
                what = f"{engine} = exact sum within {bar:g} a step, {kernel} ({parameters}, {unary})"
                bars.append((what, f"{step:.2g}{beside}", step <= bar))
    report.table(rows)
    return bars


def conv(report: Report, problem: Problem, size: tuple[int, int], rounds: int, engines: list[str]) -> list[Bar]:
    bars: list[Bar] = []
    window = f"{problem.window}x{problem.window}"
    for iterations in CONV_ITERATIONS:
        title = f"{_by(size)}, {window} square, blur 1, {problem.classes} classes, {iterations} iterations"
        report.say(f"## ConvCRF, {title}")
        jobs = [Job("conv", engine, size, "80/13", 1, iterations) for engine in (UNFOLD, *engines)]
        measured = measure(jobs, problem, rounds)
        report.table(_timings(measured, UNFOLD))
        unfold = measured[jobs[0]]
        for job in jobs[1:]:
            result = measured[job]
            ratio, most = result.ratio(unfold, "cpu"), _apart(result, unfold)[1]
            report.say(f"{job.engine} against {UNFOLD}: marginals differ by {most:.2g}")
            name = f"ConvCRF {job.engine}, {iterations} iterations"
            bars.append((f"{name}: >= {CONV_FASTER:g}x {UNFOLD}, one core", f"{ratio:.1f}x", ratio >= CONV_FASTER))
            bars.append(_at_most(f"{name}: <= 1/8 of its memory", CONV_MEMORY, _share(result, unfold)))
            bars.append((f"{name}: within {CONV_SAME:g}", f"{most:.2g}", most <= CONV_SAME))
    return bars


def _size(text: str) -> tuple[int, int]:
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH, such as 320x480, got {text!r}")
    height, width = text.split("x")
    return int(height), int(width)


@ending()
def main(arguments: Sequence[str] | None = None) -> None:
    forgiving_output()
    parser = Parser(description=__doc__)
    parser.add_argument("--sizes", type=_size, nargs="+", default=[(320, 480), (375, 500)], metavar="HxW")
    parser.add_argument("--classes", type=positive, default=21)
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--calls", type=positive, default=3, help="timed in each process, after one that is not")
    parser.add_argument("--threads", type=positive, nargs="+", default=[1, 2])
    parser.add_argument("--image", type=Path, help="a photograph, instead of scikit-image's coffee")
    parser.add_argument("--malloc", choices=["tuned", "default"], default="tuned", help="of every process alike")
    parser.add_argument("--quick", action="store_true", help="a tiny image and one round, to see that it runs")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="the same as markdown")
    args = parser.parse_args(arguments)
    if args.image is not None and not args.image.is_file():
        refuse(f"--image {args.image} is no file")
    if 1 not in args.threads:
        refuse("--threads needs 1: the others are compared with one thread")
    if args.image is None and find_spec("skimage") is None:
        refuse('the photograph needs scikit-image (pip install -e ".[soft]"), or --image with one of yours')
    if args.quick:
        args.sizes, args.classes, args.rounds, args.calls = [(32, 48)], 3, 1, 1
    if args.malloc == "tuned":
        os.environ.update(TUNED_MALLOC)  # glibc reads them when a process starts; the workers' server has not yet

    report = Report()
    window, small = (5, (16, 24)) if args.quick else (WINDOW, PHOTOGRAPH)
    problem = Problem(photograph(args.image), args.classes, args.calls, window, small)
    report.say("# What the CRFs cost, and how exact they are")
    report.say(
        f"`{command_line()}` at commit `{git_commit()[:12]}`, torch {torch.__version__}. Medians over {args.rounds} round{'s' * (args.rounds > 1)} "
        f"of {args.calls} call{'s' * (args.calls > 1)} after one that is not timed, each in a fresh process; ratios are "
        f"medians of the rounds' ratios. CPU: of the process. Peak memory: of the first call, above what the process had "
        f"before it, input and imports excluded. Malloc: {_malloc(args.malloc)}. Compare numbers inside this run only."
    )
    engines = [TORCH]
    for name in ("dense_crf", "conv_crf"):
        missing = native.reason(name)
        if missing:
            report.say(f"**The C++ engine is not measured: {missing}**")
            break
    else:
        engines = [COMPILED, TORCH]
    oracle = [ORACLE] if find_spec("pydensecrf") else []
    if not oracle:
        report.say(f'**{ORACLE} is not installed (pip install -e ".[oracle]"): nothing is compared with it.**')
    bars = exactness(report, problem, oracle + engines)
    bars += dense(report, problem, args.sizes, args.rounds, args.threads, oracle + engines)
    bars += conv(report, problem, args.sizes[0], args.rounds, engines)
    report.say("## Bars")
    if args.quick:
        report.say("**--quick: these numbers say that the command runs, and nothing else.**")
    verdict = {True: "met", False: "MISSED", None: "not measured"}
    report.table([["bar", "measured", ""], *([what, number, verdict[met]] for what, number, met in bars)])
    if args.out:
        write_atomic(args.out, report.markdown())


def _malloc(kind: str) -> str:
    if kind == "default":
        return "glibc's default"
    return "kept, for every process alike (" + " ".join(f"{key}={value}" for key, value in TUNED_MALLOC.items()) + ")"


if __name__ == "__main__":
    main()
