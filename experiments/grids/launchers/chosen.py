"""Which launcher a command line asks for: the flags that say where the cells of a grid run."""

import argparse

import jsonargparse

from experiments.grids.launchers.base import Launcher
from experiments.grids.launchers.local import Local

Devices = jsonargparse.typing.restricted_string_type("Devices", r"^(auto|[1-9]\d*)$")
Share = jsonargparse.typing.restricted_number_type("Share", float, [(">", 0), ("<=", 1024)])


def add_launcher(parser: argparse.ArgumentParser) -> None:
    """The flags of `launcher_of`."""
    positive = jsonargparse.typing.PositiveInt
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


def launcher_of(args: argparse.Namespace) -> Launcher:
    """The launcher that the flags ask for; ValueError where they contradict each other or the machine."""
    return Local(jobs=args.jobs, threads=args.threads, devices=args.devices, gpus_per_cell=args.gpus_per_cell)
