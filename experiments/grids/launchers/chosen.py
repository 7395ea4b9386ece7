"""Which launcher a command line asks for: the flags that say where the cells of a grid run."""

import argparse
from pathlib import Path
from typing import Any

import jsonargparse

from experiments.grids.launchers.base import Launcher
from experiments.grids.launchers.local import Local, gpus_of_cell
from experiments.grids.launchers.on_ray import OnRay
from experiments.grids.launchers.on_slurm import OnSlurm

LAUNCHERS = ("local", "ray", "slurm")
Devices = jsonargparse.typing.restricted_string_type("Devices", r"^(auto|[1-9]\d*)$")
Share = jsonargparse.typing.restricted_number_type("Share", float, [(">", 0), ("<=", 1024)])


def add_launcher(parser: argparse.ArgumentParser) -> None:
    """The flags of `launcher_of`."""
    positive = jsonargparse.typing.PositiveInt
    parser.add_argument(
        "--launcher",
        choices=LAUNCHERS,
        default="local",
        help="where cells run: local, on this machine; ray, on a Ray cluster; slurm, as jobs of SLURM",
    )
    parser.add_argument(
        "--address",
        help="of --launcher ray: the cluster, such as auto or HOST:6379 (default: one of this machine alone)",
    )
    parser.add_argument(
        "--store",
        help="URL where the cells are kept, such as s3://BUCKET/NAME: machines that share no folder go on from there",
    )
    parser.add_argument(
        "--slurm",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="of --launcher slurm: options of sbatch, such as partition=gpu time=120 mem=32GB",
    )
    parser.add_argument(
        "--jobs", type=positive, help="cells at a time (default: as many as there are GPUs, or CPU cores)"
    )
    parser.add_argument(
        "--threads", type=positive, default=1, help="CPU threads of a cell; the last digits of its numbers depend on it"
    )
    parser.add_argument(
        "--devices", type=Devices, default="auto", help="devices of one cell; more than one trains it with DDP"
    )
    parser.add_argument(
        "--gpus-per-cell",
        type=Share,
        help="GPUs of one cell: 0.5 puts two cells on one GPU, 2 trains each cell on two (default: 1, or less where "
        "--jobs are more than the GPUs)",
    )


def launcher_of(args: argparse.Namespace, out: Path) -> Launcher:
    """The launcher that the flags ask for; ValueError where they contradict each other or the machine.

    `out` is the folder of the grid.
    """
    for name, launcher in (("address", "ray"), ("slurm", "slurm")):
        if getattr(args, name) and args.launcher != launcher:
            raise ValueError(f"--{name} is for --launcher {launcher}: add that, or leave it out")
    gpus = gpus_of_cell(args.devices, args.gpus_per_cell)
    gpus = None if gpus is None else float(gpus)
    if args.launcher == "local":
        return Local(jobs=args.jobs, threads=args.threads, devices=args.devices, gpus_per_cell=args.gpus_per_cell)
    where: dict[str, Any] = {"jobs": args.jobs, "threads": args.threads, "devices": str(args.devices)}
    if args.launcher == "ray":
        return OnRay(args.address, gpus_per_cell=gpus, **where)
    return OnSlurm(out / "slurm", args.slurm, gpus_per_cell=gpus, **where)
