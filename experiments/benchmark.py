"""What a training step of each variant of an experiment costs: time in rounds A B C A B C ..., and peak memory.

python -m experiments.benchmark ablate_upsampling
"""

import pkgutil
from importlib import import_module
from pathlib import Path

from experiments.shell.command import command
from experiments.shell.flags import Parser, positive, refuse


@command()
def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("experiment", help="the name of a file in experiments/ that has RUNS")
    parser.add_argument("--rounds", type=positive, default=5, help="how often each variant is measured")
    parser.add_argument("--threads", type=positive, default=1, help="CPU threads of a measurement")
    args = parser.parse_args()
    studies = [
        info.name for info in pkgutil.iter_modules([str(Path(__file__).parent)]) if info.name.startswith("ablate_")
    ]
    if args.experiment not in studies:
        refuse(f"experiment must be one of {', '.join(studies)}, got {args.experiment!r}")
    # Only now: they take seconds.
    import torch

    from experiments.grids.cost import measure
    from experiments.runs.training import build

    runs = import_module(f"experiments.{args.experiment}").RUNS
    for run in runs.values():  # before minutes of measurement: weights that are not installed, for one
        with torch.device("meta"):
            build(run.alone())
    costs = measure(runs, args.rounds, threads=args.threads, progress=print)
    first = next(iter(costs.values()))
    print(f"\n{'variant':28} {'ms/step':>9} {'ratio':>7} {'peak MB':>9} {'ratio':>7}")
    for name, cost in costs.items():
        print(
            f"{name:28} {1000 * cost.step_seconds:9.1f} {cost.step_seconds / first.step_seconds:7.2f} "
            f"{cost.peak_memory_mb:9.0f} {cost.peak_memory_mb / first.peak_memory_mb:7.2f}"
        )


if __name__ == "__main__":
    main()
