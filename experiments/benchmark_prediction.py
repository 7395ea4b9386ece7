"""Measures time and memory of predicting large images in exact tiles, beside predicting them at once.

    python -m experiments.benchmark_prediction
    python -m experiments.benchmark_prediction --sizes 2048 8192 --device cuda --model.width 64

For each size a GeoTIFF of random squares is written and predicted by `experiments.predict`: in exact tiles, and at once
where the machine has the memory for it. Each prediction is a process of its own. Rounds alternate; the table has the
median of the seconds, the most resident memory of the process (and of the GPU), and the share of labels that differ.
Weights are random: neither time nor memory depends on them.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rich.table
import torch
from rich.console import Console

from experiments.prediction.fitting import GIB, WORKSPACE
from experiments.prediction.raster import rasterio
from experiments.runs.checkpoints import CheckpointFiles
from experiments.shell.command import command
from experiments.shell.environment import processor
from experiments.shell.flags import Parser, positive
from experiments.shell.memory import available_bytes
from lightning_modules.analysis.memory import peak_bytes
from lightning_modules.unet import UNetModule

CLASSES = 5
# Runs in a process of its own, so that its memory is that of this prediction alone.
CHILD = """
import json, sys, time
from experiments.predict import main
from experiments.shell.memory import peak_mb
import torch
started = time.perf_counter()
try:
    main(sys.argv[1:])
except SystemExit as stop:
    assert stop.code == 0, stop.code
seconds, on_gpu = time.perf_counter() - started, torch.cuda.is_available() and torch.cuda.max_memory_allocated() / 2**20
print(json.dumps({"seconds": seconds, "mb": peak_mb(), "gpu_mb": float(on_gpu)}))
"""


def write_image(path: Path, side: int) -> None:
    """Random grey squares of 64 pixels, in rows, so that it needs no memory."""
    library, rng = rasterio(), np.random.default_rng(0)
    from rasterio.windows import Window

    profile = {"height": side, "width": side, "count": 3, "dtype": "uint8", "crs": "EPSG:32633", "tiled": True}
    profile |= {"blockxsize": 256, "blockysize": 256, "transform": library.transform.from_origin(4e5, 5e6, 1, 1)}
    with library.open(path, "w", driver="GTiff", compress="deflate", **profile) as file:
        for top in range(0, side, 256):
            height = min(256, side - top)
            squares = rng.integers(0, 256, (3, -(-height // 64), -(-side // 64))).astype(np.uint8)
            rows = squares.repeat(64, axis=1).repeat(64, axis=2)[:, :height, :side]
            file.write(rows, window=Window(0, top, side, height))


def write_checkpoint(path: Path, width: int, depth: int) -> float:
    """A U-Net with the weights it begins with; the bytes that its maps take, a pixel."""
    torch.manual_seed(0)
    module = UNetModule(CLASSES, 255, width=width, depth=depth, norm="batch")
    module.trained = {"reads": {"channels": "rgb", "value_range": None, "bits": 8, "scale": 1.0}}
    content: dict[str, Any] = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    content |= {"pytorch-lightning_version": "2.6.4", "epoch": 0, "global_step": 0}
    module.on_save_checkpoint(content)
    CheckpointFiles().save_checkpoint(content, path)
    return WORKSPACE * peak_bytes(module, 3, 1024, 1024) / 1024**2


def predict(*arguments: object) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    if done.returncode:
        raise ValueError(f"the prediction failed: {done.stderr.strip()[-400:]}")
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def measure(
    folder: Path, side: int, rounds: int, device: str, bytes_a_pixel: float, console: Console
) -> list[dict[str, Any]]:
    """A row a way: its name, medians, and the share of labels that differ from those of the tiles."""
    image, checkpoint = folder / f"{side}.tif", folder / "last.ckpt"
    write_image(image, side)
    room = torch.cuda.mem_get_info()[0] if device == "cuda" else available_bytes()
    fits = bytes_a_pixel * side**2 < 0.7 * room
    ways: dict[str, list[object]] = {"exact tiles": []}
    if fits:
        ways = {"exact tiles": ["--tile", 1024], "at once": ["--memory", 2 * room / GIB]}
    common = [image, "--checkpoint", checkpoint, "--device", device, "--no-overlay", "--no-confidence"]
    measured: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for number in range(rounds):
        for way, flags in ways.items():
            out = folder / f"{side}-{way.replace(' ', '-')}-{number}"
            measured[way].append(predict(*common, *flags, "--out", out))
            said = measured[way][-1]
            console.print(f"{side}, {way}: {said['seconds']:.1f} s, {said['mb']:.0f} MiB", highlight=False)
    labels = {way: folder / f"{side}-{way.replace(' ', '-')}-0" / "labels" / f"{side}.tif" for way in ways}
    rows = []
    for way, of_way in measured.items():
        medians = {key: statistics.median(one[key] for one in of_way) for key in ("seconds", "mb", "gpu_mb")}
        rows.append({"side": side, "way": way, **medians, "differ": differing(labels[way], labels["exact tiles"])})
    return rows


def differing(one: Path, other: Path) -> float:
    """The share of labels that differ, read in rows."""
    count, library = 0, rasterio()
    with library.open(one) as first, library.open(other) as second:
        for _, window in first.block_windows(1):
            count += int((first.read(1, window=window) != second.read(1, window=window)).sum())
        return count / (first.width * first.height)


def main(argv: Sequence[str] | None = None) -> None:
    with command() as console:
        parser = Parser(description=__doc__)
        parser.add_argument("--sizes", type=positive, nargs="+", default=[2048, 8192, 20000], help="sides in pixels")
        parser.add_argument("--rounds", type=positive, default=1, help="how often each way is measured")
        parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where it is predicted")
        parser.add_argument("--model.width", dest="width", type=positive, default=8, help="width of the U-Net")
        parser.add_argument("--model.depth", dest="depth", type=positive, default=3, help="depth of the U-Net")
        args = parser.parse_args(argv)
        if args.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("--device cuda needs a GPU, and there is none: take --device cpu")
        name = torch.cuda.get_device_name() if args.device == "cuda" else processor()
        console.print(f"U-Net of width {args.width} and depth {args.depth} on {name}", highlight=False)
        with tempfile.TemporaryDirectory() as place:
            bytes_a_pixel = write_checkpoint(Path(place) / "last.ckpt", args.width, args.depth)
            rows = [
                row
                for side in args.sizes
                for row in measure(Path(place), side, args.rounds, args.device, bytes_a_pixel, console)
            ]
        table = rich.table.Table("pixels", "way", "seconds", "megapixels/s", "MiB", "GPU MiB", "labels that differ")
        for row in rows:
            rate = row["side"] ** 2 / 1e6 / row["seconds"]
            cells = [f"{row['seconds']:.1f}", f"{rate:.2f}", f"{row['mb']:.0f}", f"{row['gpu_mb']:.0f}"]
            table.add_row(f"{row['side']} x {row['side']}", row["way"], *cells, f"{row['differ']:.2e}")
        console.print(table)


if __name__ == "__main__":
    main()
