"""What a training step costs in other ways of computing it: sharded, with stages computed again, compiled.

    python -m experiments.benchmark_devices shards           # memory of the largest networks over two processes
    python -m experiments.benchmark_devices checkpointing    # memory and time of encoders that compute stages again
    python -m experiments.benchmark_devices speed            # channels last, compiled, in bfloat16

Each measurement has fresh processes, and rounds go through all of them in turn. Peak memory is resident memory above
that of the imports, or what a GPU allocated. Images are noise. Prints Markdown tables.
"""

import multiprocessing
import os
import socket
import statistics
import sys
import time
from itertools import product
from typing import Any

from experiments.shell.command import command
from experiments.shell.flags import Parser, positive

STEPS, WARMUP = 4, 2
LARGEST: dict[str, dict[str, Any]] = {"deconvnet": {}, "fcn": {}}
NETWORKS: dict[str, dict[str, Any]] = {
    "unet": {"width": 16, "norm": "batch"},
    "fcn": {"encoder_width": 0.25, "fc_width": 256},
    "deeplabv3plus": {"encoder": "resnet50", "encoder_width": 0.25},
}


def step_costs(name: str, hparams: dict[str, Any], how: dict[str, Any]) -> tuple[list[float], float]:
    """Seconds of each timed step, and the peak memory in MB; `how`: side, batch, threads, precision."""
    import torch

    from experiments.shell.catalogue import ARCHITECTURES
    from experiments.shell.memory import peak_mb, resident_mb
    from lightning_modules.components.compiling import compile_

    torch.set_num_threads(how["threads"])
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before = resident_mb()
    module = ARCHITECTURES[name](21, 255, **hparams).to(device).train()
    if hparams.get("compile"):
        compile_(module.network, module.entrances, device)
    images = torch.rand(how["batch"], 3, how["side"], how["side"], device=device)
    masks = torch.randint(21, (how["batch"], how["side"], how["side"]), device=device)
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], 1e-6, momentum=0.9)
    timed = []
    for step in range(WARMUP + STEPS):
        started = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=how["precision"] == "bf16-mixed"):
            loss = module.loss(images, masks)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if step >= WARMUP:
            timed.append(time.perf_counter() - started)
    on_gpu = device.type == "cuda"
    return timed, torch.cuda.max_memory_allocated() / 2**20 if on_gpu else peak_mb() - before


def shard_costs(name: str, strategy: str, rank: int, port: int, side: int) -> tuple[float, float]:
    """MB of this one of two CPU processes: what lies between two steps, and the peak of two steps."""
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.nn.parallel import DistributedDataParallel

    from experiments.shell.catalogue import ARCHITECTURES
    from experiments.shell.memory import peak_mb, resident_mb
    from lightning_modules.components.sharding import shard

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    before = resident_mb()
    network: Any = ARCHITECTURES[name](21, 255).network
    if strategy == "fsdp2":
        shard(network, init_device_mesh("cpu", (2,)), ())
    else:
        network = DistributedDataParallel(network)
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 1e-6, momentum=0.9)
    for _ in range(2):
        network(torch.rand(1, 3, side, side)).mean().backward()
        optimizer.step()
    found = resident_mb() - before, peak_mb() - before
    dist.barrier()
    dist.destroy_process_group()
    return found


def _shards(context: Any, args: Any) -> None:
    print("| network | strategy | between steps, MB | peak, MB |\n|---|---|---:|---:|")
    for name, strategy in product(LARGEST, ("ddp", "fsdp2")):
        of_rounds = []
        for _ in range(args.rounds):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            with context.Pool(2) as pool:
                tasks = [(name, strategy, rank, port, args.side or 64) for rank in (0, 1)]
                of_rounds.append(max(pool.starmap(shard_costs, tasks, chunksize=1)))
        between, peak = (statistics.median(values) for values in zip(*of_rounds, strict=True))
        print(f"| {name} | {strategy} | {between:.0f} | {peak:.0f} |", flush=True)


def _steps(context: Any, args: Any, cases: dict[str, dict[str, tuple[dict[str, Any], str]]]) -> None:
    """A table of each network: its first case is what the others are compared with."""
    print("| network | how | ms a step | of the first | peak, MB | of the first |\n|---|---|---:|---:|---:|---:|")
    for name, ways in cases.items():
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        memory: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(args.rounds):
            for way, (hparams, precision) in ways.items():
                print(f"measuring {name}, {way}, round {number + 1} of {args.rounds}", file=sys.stderr)
                how = {"batch": args.batch, "threads": args.threads, "side": args.side or 128, "precision": precision}
                with context.Pool(1) as pool:
                    timed, peak = pool.apply(step_costs, (name, hparams, how))
                seconds[way] += timed
                memory[way].append(peak)
        first = next(iter(ways))
        base = statistics.median(seconds[first]), statistics.median(memory[first])
        for way in ways:
            time_, peak = statistics.median(seconds[way]), statistics.median(memory[way])
            ratios = f"{1000 * time_:.0f} | {time_ / base[0]:.2f} | {peak:.0f} | {peak / base[1]:.2f}"
            print(f"| {name} | {way} | {ratios} |", flush=True)


@command()
def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("question", choices=["shards", "checkpointing", "speed"], help="what is measured")
    parser.add_argument("--networks", nargs="+", choices=[*NETWORKS], default=[*NETWORKS], help="some networks alone")
    parser.add_argument("--rounds", type=positive, default=3, help="how often each is measured")
    parser.add_argument("--threads", type=positive, default=1, help="CPU threads of a measurement")
    parser.add_argument("--side", type=positive, help="pixels of a side of the images (default: 128; shards: 64)")
    parser.add_argument("--batch", type=positive, default=4, help="images of a step (shards: always 1)")
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    networks = {name: NETWORKS[name] for name in args.networks}
    cases: dict[str, dict[str, tuple[dict[str, Any], str]]] = {}  # of each network: by name, its settings and precision
    if args.question == "shards":
        _shards(context, args)
    elif args.question == "checkpointing":
        for name, hparams in networks.items():
            again = {**hparams, "checkpointing": True}
            cases[name] = {"kept": (hparams, "32-true"), "computed again": (again, "32-true")}
        _steps(context, args, cases)
    else:
        for name, hparams in networks.items():
            cases[name] = {}
            for precision, last, compiled in product(("32-true", "bf16-mixed"), (False, True), (False, True)):
                way = ", ".join([precision, *["channels_last"] * last, *["compile"] * compiled])
                cases[name][way] = {**hparams, "channels_last": last, "compile": compiled}, precision
        _steps(context, args, cases)


if __name__ == "__main__":
    main()
