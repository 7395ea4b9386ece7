"""The parts of `python -m tests.gpu`, each in a process of its own: python -m tests.gpu.parts NAME ROWS SECONDS."""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
Record = Callable[..., None]
TITLES = {
    "tests": "Tests that need a GPU",
    "networks": "Training throughput, bfloat16, channels last; batches that lie on the device",
    "crfs": "CRFs beside the engines of the CPU",
    "waiting": "A full-size cell: is the device ever waiting for data?",
    "two": "Two cells at once on one device",
}


def tests(record: Record, seconds: float, toy: bool) -> None:
    """All tests marked `gpu`, the files that have one alone, as collecting all others takes half of the time."""
    marked = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text("utf-8")]
    files = [str(path.relative_to(ROOT)) for path in marked]
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "-m", "gpu", "-p", "no:cacheprovider", "--tb=line"]
    done = subprocess.run(
        [*command, *(files[:1] if toy else files)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout)}
    record(**{word: counts.get(word, 0) for word in ("passed", "failed tests", "skipped", "error")})
    for line in re.findall(r"^(?:FAILED|ERROR) .*", done.stdout, re.MULTILINE):
        record(failed=line[:300])
    if not counts:
        record(failed=f"pytest ended with {done.returncode}: {(done.stdout + done.stderr)[-300:]}")


def networks(record: Record, seconds: float, toy: bool) -> None:
    from tests.gpu.throughput import compare

    compare(record, seconds, toy)


def crfs(record: Record, seconds: float, toy: bool) -> None:
    """Ten iterations on one image of 21 classes, with the parameters of DeepLab v2, on the GPU and on the CPU."""
    import torch

    from lightning_modules.refinement.conv_crf import conv_crf
    from lightning_modules.refinement.dense_crf import PRESETS, dense_crf

    size, rounds = ((24, 32), 1) if toy else ((375, 500), 5)
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 21, 6, 8, generator=generator).mul(8)
    probabilities = torch.nn.functional.interpolate(coarse, size, mode="bilinear").softmax(1)
    rough = torch.nn.functional.interpolate(torch.rand(1, 3, 12, 16, generator=generator), size, mode="bicubic")
    images = (255 * (rough + 0.05 * torch.rand(1, 3, *size, generator=generator)).clamp(0, 1)).round()
    device = torch.device("cpu" if toy else "cuda")
    parameters = PRESETS["deeplab_v2"]
    for name, crf in (("dense", dense_crf), ("conv", conv_crf)):
        marginals, medians = [], []
        for where in (torch.device("cpu"), device):
            given = probabilities.to(where), images.to(where)
            timed = []
            for _ in range(rounds + 1):  # the first compiles and allocates
                started = time.perf_counter()
                found = crf(*given, **parameters)
                if where.type == "cuda":
                    torch.cuda.synchronize()
                timed.append(time.perf_counter() - started)
            marginals.append(found.cpu())
            medians.append(1000 * statistics.median(timed[1:] or timed))
        same = (marginals[0] - marginals[1]).abs().max().item()
        labels = float((marginals[0].argmax(1) == marginals[1].argmax(1)).double().mean())
        record(
            CRF=name,
            pixels=f"{size[0]}x{size[1]}",
            **{"CPU ms": medians[0], f"{device.type} ms": medians[1], "times faster": medians[0] / medians[1]},
            **{"largest difference": same, "same labels": labels},
        )


def waiting(record: Record, seconds: float, toy: bool) -> None:
    """Trains on 1024 x 2048 JPEGs, and looks at every step whether the device had run out of work when data came."""
    import torch
    from lightning.pytorch import Callback

    from datamodules.folder import FolderDataModule
    from experiments.runs.run import Run
    from experiments.runs.training import train
    from lightning_modules.deeplabv3plus import DeepLabV3PlusModule

    class Clock(Callback):
        """Gaps between steps, those at the beginning of an epoch apart, and whether the device was idle after one."""

        def __init__(self, limit: float) -> None:
            self.limit, self.started, self.ended = limit, 0.0, 0.0
            self.gaps: list[float] = []
            self.idle: list[bool] = []
            self.first: float | None = None

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            now = time.perf_counter()
            if self.first is None:
                self.first = now
            if batch_idx:
                self.gaps.append(now - self.ended)
                self.idle.append(module.device.type != "cuda" or torch.cuda.current_stream().query())

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.ended = time.perf_counter()
            if self.ended - self.started > self.limit:
                trainer.should_stop = True

    size, count, crop, batch = ((64, 128), 8, 32, 2) if toy else ((1024, 2048), 512, 513, 16)
    cores = os.cpu_count() or 1
    workers = 0 if toy else max(1, cores - 2)
    with tempfile.TemporaryDirectory(prefix="seglab-full-") as folder:
        root = write_street(Path(folder, "data"), size, count, distinct=min(count, 4 if toy else 24))
        run = Run(
            module=DeepLabV3PlusModule,
            datamodule=FolderDataModule,
            hparams={"encoder": "resnet18" if toy else "resnet50", "channels_last": True, "encoder_width": 1.0},
            data={"root": str(root), "batch_size": batch, "crop": (crop, crop), "num_workers": workers},
            trainer={"max_epochs": 1000, "precision": "bf16-mixed", "check_val_every_n_epoch": 1000},
        )
        clock = Clock(3 if toy else seconds - 45)
        clock.started = time.perf_counter()
        train(
            run,
            Path(folder, "cell"),
            callbacks=[clock],
            test=False,
            accelerator="cpu" if toy else "gpu",
            devices=1,
            enable_progress_bar=False,
            num_sanity_val_steps=0,
        )
        took = clock.ended - (clock.first or clock.started)
        steps = len(clock.gaps)
        record(
            images=f"{size[0]}x{size[1]}",
            crop=crop,
            batch=batch,
            workers=workers,
            **{"steps in epochs": steps, "images/s": batch * steps / took, "seconds": took},
            **{"in gaps between steps": sum(clock.gaps) / took, "idle when data came": sum(clock.idle) / steps},
            **{"longest gap s": max(clock.gaps), "median gap ms": 1000 * statistics.median(clock.gaps)},
        )


def write_street(root: Path, size: tuple[int, int], count: int, distinct: int) -> Path:
    """A folder of data with `count` training images, of which `distinct` differ: the others are links to those."""
    import numpy as np
    from PIL import Image

    for part in ("images", "masks", "splits"):
        (root / part).mkdir(parents=True)
    (root / "classes.txt").write_text("".join(f"{i} class{i}\n" for i in range(19)), encoding="utf-8")
    rng = np.random.default_rng(0)
    for split, number in (("train", count), ("val", 1), ("test", 1)):
        names = [f"{split}{i}" for i in range(number)]
        (root / "splits" / f"{split}.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
        for i, name in enumerate(names):
            files = root / "images" / f"{name}.jpg", root / "masks" / f"{name}.png"
            if i >= distinct:
                for file in files:
                    os.link(file.with_name(file.name.replace(name, f"{split}{i % distinct}")), file)
                continue
            rows, columns = size
            blocks = rng.integers(19, size=(rows // 16, columns // 16)).astype(np.uint8)
            mask = np.kron(blocks, np.ones((16, 16), np.uint8))
            noise = rng.integers(-12, 13, size=(rows, columns, 3))
            image = (12 * mask[..., None] + 20 + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(image).save(files[0], quality=90)
            Image.fromarray(mask).save(files[1])
    return root


def two(record: Record, seconds: float, toy: bool) -> None:
    """The same small cell twice: one after the other, and both at once, beginning with the command of each."""
    length, size, steps = (8, 32, 4) if toy else (256, 256, 300)
    flags = f"--data shapes --data.size {size} --data.length {length} --data.num_workers {0 if toy else 2} "
    flags += f"--data.batch_size 8 --model.width {2 if toy else 32} --trainer.max_steps {steps} "
    flags += "--trainer.max_epochs 100000 --trainer.check_val_every_n_epoch 1000 --trainer.num_sanity_val_steps 0 "
    flags += "--trainer.accelerator cpu" if toy else "--trainer.precision bf16-mixed --trainer.accelerator gpu"
    with tempfile.TemporaryDirectory(prefix="seglab-two-") as folder:

        def start(name: str) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-m", "experiments.train", *flags.split(), "--out", f"{folder}/{name}"]
            return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)

        def timed(*groups: tuple[str, ...]) -> float:
            began = time.perf_counter()
            for group in groups:
                if any(process.wait() for process in [start(name) for name in group]):
                    raise RuntimeError("a cell failed")
            return time.perf_counter() - began

        alone, together = timed(("a",), ("b",)), timed(("c", "d"))
        record(
            **{"steps of each": steps, "one after the other s": alone, "at once s": together},
            **{"times the throughput": alone / together},
        )


PARTS: dict[str, Callable[[Record, float, bool], None]] = {
    "tests": tests,
    "networks": networks,
    "crfs": crfs,
    "waiting": waiting,
    "two": two,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=[*PARTS])
    parser.add_argument("rows", type=Path)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--toy", action="store_true")
    args = parser.parse_args()

    def record(**row: Any) -> None:
        with args.rows.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    PARTS[args.name](record, args.seconds, args.toy)


if __name__ == "__main__":
    main()
