"""Training steps a second of our networks beside those of torchvision and smp, each in a process that waits its turn.

python -m tests.gpu.throughput NAME [--compile] [--toy]: a worker, which times a round whenever it reads a line.
"""

import argparse
import fcntl
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[2]
CLASSES, SIDE = 21, 513
BATCH, SMALL_BATCH = 16, 4  # the latter on devices of less than 70 GiB
ROUNDS = 3
# Dense bfloat16 TFLOP/s of the makers' data sheets, by what a device's name holds.
PEAKS = {
    "H200": 989,
    "H100 PCIe": 756,
    "H100": 989,
    "B200": 2250,
    "A100": 312,
    "A10G": 70,
    "A10": 125,
    "L40S": 362,
    "L4": 121,
    "RTX 4090": 165,
}


def ours(name: str, **settings: Any) -> Callable[[bool], Any]:
    def build(toy: bool) -> Any:
        from experiments.shell.catalogue import ARCHITECTURES

        small = {"encoder": "resnet18", "encoder_width": 0.1} if "encoder" in settings else {"width": 4, "depth": 2}
        module: Any = ARCHITECTURES[name](CLASSES, 255, **(small if toy else settings))
        return module.network

    return build


def torchvision_network(name: str) -> Callable[[bool], Any]:
    def build(toy: bool) -> Any:
        from torchvision.models import segmentation

        return getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=False)

    return build


def smp_network(name: str) -> Callable[[bool], Any]:
    def build(toy: bool) -> Any:
        import segmentation_models_pytorch as smp

        return getattr(smp, name)("resnet50", encoder_weights=None, classes=CLASSES)

    return build


NETWORKS: dict[str, Callable[[bool], Any]] = {
    "U-Net": ours("unet"),
    "U-Net, batch norm": ours("unet", norm="batch"),
    "FCN-8s, VGG16": ours("fcn"),
    "DeepLab v3, ResNet-50, stride 8": ours("deeplabv3", encoder="resnet50", output_stride=8),
    "DeepLab v3+, ResNet-50, stride 16": ours("deeplabv3plus", encoder="resnet50", output_stride=16),
    "PSPNet, ResNet-50, stride 8": ours("pspnet", encoder="resnet50"),
    "torchvision fcn_resnet50": torchvision_network("fcn_resnet50"),
    "torchvision deeplabv3_resnet50": torchvision_network("deeplabv3_resnet50"),
    "smp Unet, resnet50": smp_network("Unet"),
    "smp DeepLabV3Plus, resnet50": smp_network("DeepLabV3Plus"),
    "smp PSPNet, resnet50": smp_network("PSPNet"),
}
TOY = ("U-Net", "DeepLab v3, ResNet-50, stride 8")
COMPILED = [name for name in NETWORKS if not name.startswith(("torchvision", "smp"))]


def worker(name: str, compiled: bool, toy: bool) -> None:
    """Builds and warms up, prints what it is, then times a round for every line that it reads."""
    import torch
    import torch.nn.functional as F
    from torch.utils.flop_counter import FlopCounterMode

    device = torch.device("cpu" if toy else "cuda")
    small = not toy and torch.cuda.get_device_properties(device).total_memory < 70 * 2**30
    side, batch, steps = (33, 2, 2) if toy else (SIDE, SMALL_BATCH if small else BATCH, 8)
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = True
    network = NETWORKS[name](toy).to(device, memory_format=torch.channels_last).train()
    images = torch.rand(batch, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)
    if name.startswith("smp"):  # whose images are multiples of 32
        images = F.pad(images, [0, -side % 32] * 2)
    masks = torch.randint(CLASSES, (batch, *images.shape[-2:]), device=device)
    optimizer = torch.optim.SGD(network.parameters(), 1e-4, momentum=0.9)

    def forward() -> Any:
        with torch.autocast(device.type, torch.bfloat16):
            logits = network(images)
            return logits["out"] if isinstance(logits, dict) else logits

    with FlopCounterMode(display=False) as counter:
        forward()
    flops = 3 * counter.get_total_flops() / batch  # of an image: backward is two products for each one forward
    if compiled:
        network.compile(dynamic=False)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(forward().float(), masks).backward()
        optimizer.step()

    def give_back() -> None:
        optimizer.zero_grad()
        if synchronised() and device.type == "cuda":
            torch.cuda.empty_cache()

    def synchronised() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    # One after the other, as together they may not fit; those that are compiled take their time beside each other.
    with nullcontext() if compiled else alone():
        for _ in range(3):
            step()
        give_back()
    parameters = sum(p.numel() for p in network.parameters())
    print(json.dumps({"flops": flops, "parameters": parameters}), flush=True)
    for _ in sys.stdin:
        step()  # memory that was given back is taken again
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        started = synchronised()
        for _ in range(steps):
            step()
        seconds = (synchronised() - started) / steps
        peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
        give_back()
        print(json.dumps({"batch": batch, "images/s": batch / seconds, "peak GiB": peak}), flush=True)


@contextmanager
def alone() -> Iterator[None]:
    """Waits until no other worker is in this context."""
    with Path(tempfile.gettempdir(), f"seglab-gpu-{os.getppid()}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclass
class Worker:
    """A network in a process of its own, and what it answered."""

    name: str
    compiled: bool
    process: subprocess.Popen[str]
    about: dict[str, Any] | None = None
    rounds: list[dict[str, Any]] = field(default_factory=list)
    failure: str = ""

    def ask(self, within: float, line: str = "") -> dict[str, Any] | None:
        """Its next answer; None, and why in `failure`, where it ended or takes longer than `within` seconds."""
        assert self.process.stdin is not None and self.process.stdout is not None
        answered: list[str] = []
        reading = threading.Thread(target=lambda: answered.append(self.process.stdout.readline()), daemon=True)  # type: ignore[union-attr]
        try:
            if line:
                self.process.stdin.write(line)
                self.process.stdin.flush()
            reading.start()
            reading.join(within)
            if answered and answered[0].startswith("{"):
                found: dict[str, Any] = json.loads(answered[0])
                return found
            self.failure = "it ended" if answered else f"not ready within {within:.0f} s"
        except OSError:
            self.failure = "it ended"
        self.process.kill()
        if self.process.stderr is not None and answered:
            self.failure = (self.process.stderr.read().strip().splitlines() or [self.failure])[-1][:300]
        return None


def start(name: str, compiled: bool, toy: bool) -> Worker:
    flags = ["--compile"] * compiled + ["--toy"] * toy
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tests.gpu.throughput", name, *flags],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return Worker(name, compiled, process)


def compare(record: Callable[..., None], seconds: float, toy: bool) -> None:
    """All networks in rounds A B C A B C ...; those that are compiled get ready beside each other."""
    deadline = time.monotonic() + seconds - (5 if toy else 25)
    missing = {name for name in ("torchvision", "segmentation_models_pytorch") if find_spec(name) is None}
    prefixes = {"torchvision": "torchvision", "segmentation_models_pytorch": "smp"}
    names = [n for n in NETWORKS if not any(n.startswith(prefixes[gone]) for gone in missing)]
    wanted = [(n, False) for n in (TOY if toy else names)] + [(n, True) for n in (TOY[:1] if toy else COMPILED)]
    workers = [start(name, compiled, toy) for name, compiled in wanted]
    for one in workers:
        one.about = one.ask(max(1.0, deadline - time.monotonic()))
    for _ in range(ROUNDS):
        for one in workers:
            if one.about and not one.failure and (answer := one.ask(30, "go\n")):
                one.rounds.append(answer)
    device, peak = peak_of(toy)
    for one in workers:
        one.process.kill()
        one.process.wait()
        if not one.about or not one.rounds:
            record(failed=f"{one.name}{', compiled' * one.compiled}: {one.failure}")
            continue
        rate = median(answer["images/s"] for answer in one.rounds)
        of_peak = one.about["flops"] * rate / peak / 1e12 if peak else None
        record(
            network=one.name,
            batch=one.rounds[0]["batch"],
            compiled="yes" if one.compiled else "no",
            **{"M parameters": one.about["parameters"] / 1e6, "GFLOP an image": one.about["flops"] / 1e9},
            **{"images/s": rate, "model FLOP utilisation": of_peak, "peak GiB": one.rounds[-1]["peak GiB"]},
            **{"of peak TFLOP/s": peak, "device": device},
        )
    for gone in sorted(missing):
        record(failed=f"{gone} is not installed: its networks are left out")


def peak_of(toy: bool) -> tuple[str, float | None]:
    """The device's name and its dense bfloat16 TFLOP/s, None where they are not known."""
    import torch

    name = "CPU" if toy or not torch.cuda.is_available() else torch.cuda.get_device_name()
    return name, next((peak for part, peak in PEAKS.items() if part in name), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=[*NETWORKS])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--toy", action="store_true")
    args = parser.parse_args()
    worker(args.name, args.compile, args.toy)


if __name__ == "__main__":
    main()
