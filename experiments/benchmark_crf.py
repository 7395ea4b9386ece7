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
import itertools
import math
import os
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import torch

from experiments.crfs.measure import (
    COMPILED,
    CONV_ITERATIONS,
    ITERATIONS,
    ORACLE,
    PARAMETERS,
    PHOTOGRAPH,
    TORCH,
    UNFOLD,
    WINDOW,
    Job,
    Measured,
    Problem,
    alone,
    differences,
    exactness_of,
    measure,
)
from experiments.crfs.peers import BLOBS, NOISE, photograph
from experiments.shell.command import command
from experiments.shell.difference import git_commit
from experiments.shell.environment import command_line, processor
from experiments.shell.files import write_atomic
from experiments.shell.flags import Parser, positive, refuse
from lightning_modules.refinement import native

# Bars: ratios of pydensecrf2's time to ours, one core (CPU time) and two (wall time, against its one)
FASTER = {"80/13": 3.5, "67/3": 2.0}
FASTER_ON_TWO = 5.0  # of 80/13
TORCH_FASTER = 1.0
MEMORY = 1.5  # times its
SAME = 1e-4
STEP = {"smoothness": 1e-2, "appearance": 8e-2}
CONV_FASTER, CONV_MEMORY, CONV_SAME = 5.0, 1 / 8, 1e-3

# What is left to win for 80/13, an estimate for a core of 90 GFLOPS (float32) and 13 GB/s. A pixel of one iteration: 9
# lattice rows (6 + 3) of 24 numbers sliced and splatted, a multiply-add each, and 25 operations for each of 24
# exponentials; 96 bytes of unaries, 72 of offsets and weights and 8 of norms streamed. The lattice, built with vectors,
# 10 ms.
FLOPS, BYTES = 2 * 9 * 24 * 2 + 25 * 24, 96 + 72 + 8
GFLOPS, GBPS, BUILD_MS = 90.0, 13.0, 10.0

# So that neither side's memory goes back to the system and is cleared again at every call.
TUNED_MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}


Bar = tuple[str, str, bool | None]  # what, measured, met (None: could not be measured)


@dataclass
class Measurements:
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
    report: Measurements,
    problem: Problem,
    sizes: list[tuple[int, int]],
    rounds: int,
    threads: list[int],
    engines: list[str],
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


def exactness(report: Measurements, problem: Problem, engines: list[str]) -> list[Bar]:
    bars: list[Bar] = []
    report.say(f"## Lattice against the exact sum, {_by(problem.small)}, {problem.classes} classes")
    report.say(
        f"One filtering step: the message without its mean over the classes. Marginals: after {ITERATIONS} iterations. "
        f"Noise: unaries from a random label for each pixel, blurred, so soft; blobs: labels of some {BLOBS} pixels, "
        "as sharp as a network's. A step's error grows with the contrast, the original's too."
    )
    rows = [["", *(f"{kernel}, {what}" for kernel in STEP for what in ("mean", "max"))]]
    rows[0] += ["marginals, mean", "max", "labels agree"]
    for parameters, (unary, cell) in itertools.product(PARAMETERS, (("noise", NOISE), ("blobs", BLOBS))):
        apart = alone(exactness_of, problem, parameters, cell, engines)
        for engine, values in apart.items():
            cells = [f"{value:.2g}" for kernel in STEP for value in values[kernel][:2]]
            mean, most, same = values["marginals"]
            rows.append(
                [f"{parameters}, {unary}, {engine}", *cells, f"{mean:.2g}", f"{most:.2g}", f"{100 * same:.2f} %"]
            )
            if engine == ORACLE:
                continue
            for kernel, bar in STEP.items():
                step = values[kernel][1]
                beside = f" ({ORACLE} {apart[ORACLE][kernel][1]:.2g})" if ORACLE in apart else ""
                what = f"{engine} = exact sum within {bar:g} a step, {kernel} ({parameters}, {unary})"
                bars.append((what, f"{step:.2g}{beside}", step <= bar))
    report.table(rows)
    return bars


def conv(report: Measurements, problem: Problem, size: tuple[int, int], rounds: int, engines: list[str]) -> list[Bar]:
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


@command()
def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--sizes", type=_size, nargs="+", default=[(320, 480), (375, 500)], metavar="HxW", help="sizes of the image"
    )
    parser.add_argument("--classes", type=positive, default=21, help="number of the classes")
    parser.add_argument("--rounds", type=positive, default=5, help="how often each engine is measured")
    parser.add_argument("--calls", type=positive, default=3, help="calls timed in each process, after one that is not")
    parser.add_argument("--threads", type=positive, nargs="+", default=[1, 2], help="CPU threads, 1 among them")
    parser.add_argument("--image", type=Path, help="a photograph, instead of scikit-image's coffee")
    parser.add_argument(
        "--malloc",
        choices=["tuned", "default"],
        default="tuned",
        help="malloc's settings, the same for every process: tuned keeps freed memory",
    )
    parser.add_argument("--quick", action="store_true", help="a tiny image and one round, to see that it runs")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="file for the same as Markdown")
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

    report = Measurements()
    window, small = (5, (16, 24)) if args.quick else (WINDOW, PHOTOGRAPH)
    problem = Problem(photograph(args.image), args.classes, args.calls, window, small)
    report.say("# What the CRFs cost, and how exact they are")
    report.say(
        f"`{command_line()}` at commit `{git_commit()[:12]}`, torch {torch.__version__}, on {processor()} "
        f"({torch.backends.cpu.get_cpu_capability()}). Medians over {args.rounds} "
        f"round{'s' * (args.rounds > 1)} of {args.calls} call{'s' * (args.calls > 1)} after one that is not timed, "
        "each in a fresh process; ratios are medians of the rounds' ratios. CPU: of the process. Peak memory: of the "
        "first call, above what the process had before it, input and imports excluded. Malloc: "
        f"{_malloc(args.malloc)}. Compare numbers inside this run only."
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
