"""What the report of a large experiment takes: seconds, and the largest memory that it held at once.

    python -m experiments.benchmark_statistics [--seeds 3] [--images 2000] [--classes 150] [--keep DIR]

Writes an experiment of 8 variants with made-up matrices, ten images a group, and reports it in a process of its own.
"""

import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.shell.command import command
from experiments.shell.files import write_atomic, write_json
from experiments.shell.flags import Parser, positive

LEVELS, SKIPS = ("nearest", "bilinear", "transposed-2", "transposed-3"), ("concat", "none")
PRESENT, PIXELS, SIDE = 12, 2**18, 128  # classes and pixels of an image; the side of those that are shown
GROUP = 10  # images


def write_experiment(folder: Path, seeds: int, images: int, classes: int) -> None:
    """A finished experiment, as large as one can be, whose numbers are drawn."""
    names = [f"{level}+{skips}" for level in LEVELS for skips in SKIPS]
    costs = {"parameters": 10**6, "gmac": 1.0, "step_ratio": 1.0, "step_seconds": 0.1, "peak_memory_mb": 100.0}
    class_names = [f"class {k}" for k in range(classes)]
    for number, name in enumerate(names):
        for seed in range(seeds):
            _write_cell(
                folder / name / f"seed{seed}", np.random.default_rng([number, seed]), 0.1 * number, images, classes
            )
    levels = [dict(zip(("upsample", "skips"), name.split("+"), strict=True)) for name in names]
    plan = {
        "experiment": "large",
        "question": "What does a report take?",
        "baseline": names[0],
        "factors": {"upsample": LEVELS, "skips": SKIPS},
        "variants": {name: {"levels": of_one, **costs} for name, of_one in zip(names, levels, strict=True)},
        "seeds": list(range(seeds)),
        **dict.fromkeys(("data", "data_note", "scale_note", "device"), "made up"),
        "common": {"trainer.max_epochs": 1},
        "class_names": class_names,
        "palette": [[k % 256, 7 * k % 256, 31 * k % 256] for k in range(classes)],
        "command": "python -m experiments.ablate_upsampling",
        "commit": "unknown",
    }
    write_json(folder / "plan.json", plan)


def _write_cell(folder: Path, generator: np.random.Generator, shift: float, images: int, classes: int) -> None:
    folder.mkdir(parents=True)
    rows = [generator.choice(classes, min(PRESENT, classes), replace=False) for _ in range(images)]
    names = np.array([f"{i:05}.png" for i in range(images)])
    counts = {"names": names, "checkerboard": generator.random(images)}
    counts["groups"] = np.array([f"group {i // GROUP}" for i in range(images)])
    counts |= {"boundary_f1": generator.random((images, classes)), "calibration": generator.random((images, 15, 3))}
    counts["segments"] = generator.integers(0, 9, (images, classes, 4))
    with zipfile.ZipFile(folder / "per_image.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for key, array in counts.items():
            with archive.open(f"{key}.npy", mode="w") as file:
                np.save(file, array)
        # In blocks: at once they take as much as what is measured here.
        header = {"descr": "<i8", "fortran_order": False, "shape": (images, classes, classes)}
        with archive.open("confusion.npy", mode="w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for block in _matrices(generator, rows, shift, classes):
                file.write(block.tobytes())
    shown = {
        f"{key}_{i}": generator.integers(0, classes, (SIDE, SIDE), np.uint8)
        for key in ("mask", "prediction")
        for i in range(6)
    }
    shown |= {f"image_{i}": generator.integers(0, 255, (SIDE, SIDE, 3), np.uint8) for i in range(6)}
    logits: Mapping[str, NDArray[Any]] = {
        key: generator.normal(size=(classes, SIDE, SIDE)).astype(np.float16) for key in ("logits", "initial_logits")
    }
    np.savez(folder / "samples.npz", names=names[:6], **shown, **logits)  # type: ignore[arg-type]
    write_atomic(folder / "metrics.csv", "epoch,step,train/loss,val/miou\n0,1,0.5,0.5\n")
    write_json(folder / "run.json", {"trainer": {"max_epochs": 1}})
    write_json(folder / "result.json", {"status": "done", "seconds": 1.0, "epochs": 1})
    write_json(folder / "environment.json", {"commit": "unknown", "device": "made up", "torch_threads": 1})


def _matrices(
    generator: np.random.Generator, rows: list[NDArray[np.int64]], shift: float, classes: int
) -> Iterator[NDArray[np.int64]]:
    """Of each image those of the classes in it: (1, C, C)."""
    for present in rows:
        matrix = np.zeros((1, classes, classes), dtype=np.int64)
        size = len(present)
        share = generator.exponential(1, (size, size)) * (1 + (8 + shift) * np.eye(size))
        matrix[0, present[:, None], present] = (PIXELS * share / share.sum()).astype(np.int64)
        yield matrix


def measure_report(folder: Path) -> tuple[float, float]:
    """Seconds, and the largest memory in MB, of a process that reports the experiment in `folder`."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.report", str(folder)], stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL
    )
    _, code, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(code)
    if process.returncode:
        raise ValueError(f"the report of {folder} ended with the status {process.returncode}: see what it printed")
    return time.perf_counter() - start, used.ru_maxrss / 1024  # kB on Linux


@command()
def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--seeds", type=positive, default=3, help="seeds of each of the 8 variants")
    parser.add_argument("--images", type=positive, default=2000, help="images of the test split")
    parser.add_argument("--classes", type=positive, default=150, help="number of the classes")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="write the experiment here, and let it stay")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary) / "large"
        if not (folder / "plan.json").exists():
            write_experiment(folder, args.seeds, args.images, args.classes)
        seconds, memory = measure_report(folder)
        cells = len(LEVELS) * len(SKIPS) * args.seeds
        matrices = cells * args.images * args.classes**2 * 8 / 2**20
        print(
            f"report of {cells} cells x {args.images:,} images x {args.classes} classes ({matrices:,.0f} MB of "
            "matrices)"
        )
        print(f"{seconds:.0f} s, at most {memory:,.0f} MB")


if __name__ == "__main__":
    main()
