"""What many GPUs buy: one training on 1 to N of them by arithmetic, and a grid on spot machines by simulation.

    python -m experiments.plan_cluster                                  # DeepLab v3+ on Cityscapes, and 1,000 cells
    python -m experiments.plan_cluster --images-per-second 70 --price 2.5     # with numbers of your own

Everything that is not known before it is measured is an assumption with a flag; the formulas stand beside the numbers.
The grid is run by the scheduler that runs real ones, over machines that are simulated: cells are handed out, lost, and
go on from their last checkpoint, in virtual time. Nothing is trained.
"""

from collections.abc import Sequence
from pathlib import Path

from experiments.machines.record import write_section
from experiments.shell.command import command
from experiments.shell.environment import command_line
from experiments.shell.flags import Parser, above_zero, positive, share

CLASSES, IGNORED = 19, 255  # of Cityscapes


@command()
def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    one = parser.add_argument_group("one training")
    one.add_argument("--gpus", type=positive, default=64, help="GPUs of the cluster")
    one.add_argument("--crops", type=positive, nargs="+", default=[513, 769], help="sides of what is trained on")
    one.add_argument("--batches", type=positive, nargs="+", default=[16, 64], help="images of a step over all GPUs")
    one.add_argument("--steps", type=positive, nargs="+", default=[40_000, 90_000], help="steps of the optimiser")
    one.add_argument("--images-per-second", type=above_zero, default=50.0, help="of one GPU, at the first of --crops")
    one.add_argument("--tflops", type=above_zero, default=312.0, help="10^12 operations a second of a GPU, in bf16")
    one.add_argument("--bandwidth", type=above_zero, default=25e9, help="bytes a second from GPU to GPU")
    one.add_argument("--latency", type=above_zero, default=1e-5, help="seconds of a message from GPU to GPU")
    one.add_argument("--hidden", type=share, default=0.7, help="share of the exchange within the backward pass")
    one.add_argument("--kept", type=share, default=0.9, help="share of the time left by data and validation")
    one.add_argument("--price", type=above_zero, default=2.0, help="price of an hour of a GPU")
    grid = parser.add_argument_group("a grid")
    grid.add_argument("--cells", type=positive, default=1000, help="cells of the grid, five seeds of each variant")
    grid.add_argument("--hours", type=above_zero, default=2.0, help="median hours of a cell, which vary")
    grid.add_argument("--machines", type=positive, default=64, help="spot machines with one cell each")
    grid.add_argument("--losses", type=above_zero, default=0.05, help="losses in an hour of a machine")
    grid.add_argument("--replaced", type=above_zero, default=300.0, help="seconds until another machine is there")
    grid.add_argument("--startup", type=above_zero, default=60.0, help="seconds of each start of a cell")
    grid.add_argument("--saving", type=above_zero, default=5.0, help="seconds of a checkpoint")
    grid.add_argument(
        "--save-every", type=above_zero, nargs="+", default=[1.0, 10.0, 60.0], help="minutes between checkpoints"
    )
    grid.add_argument("--spot-price", type=above_zero, default=0.8, help="price of an hour of a spot machine")
    grid.add_argument("--draws", type=positive, default=3, help="how often the losses are drawn")
    parser.add_argument("--record", type=Path, metavar="FILE", help="Markdown file whose sections are replaced")
    args = parser.parse_args(argv)
    # Only now: they take seconds.
    import torch

    from datamodules.shapes import ShapesDataModule
    from experiments.grids.cost import gmac
    from experiments.grids.launchers.simulated import Machines
    from experiments.machines import plan, spot
    from experiments.runs.run import Run
    from lightning_modules.deeplabv3plus import DeepLabV3PlusModule

    with torch.device("meta"):
        parameters = sum(p.numel() for p in DeepLabV3PlusModule(CLASSES, IGNORED).parameters())
    run = Run(module=DeepLabV3PlusModule, datamodule=ShapesDataModule)  # whose fewer classes take hardly less
    costs = {crop: gmac(run, crop, crop) for crop in args.crops}
    assumed = plan.Assumed(
        args.images_per_second,
        costs[args.crops[0]],
        args.tflops,
        args.bandwidth,
        args.latency,
        args.hidden,
        args.kept,
        args.price,
    )
    networks = [plan.Network("DeepLab v3+ with Xception-65", crop, cost, parameters) for crop, cost in costs.items()]
    of_all = [one for net in networks for one in plan.plans(net, args.gpus, args.batches, args.steps, assumed)]
    made = f"```sh\n{command_line()}\n```"
    arithmetic = f"{plan.told(of_all, args.gpus)}\n\n{made}"
    machines = Machines(args.machines, args.losses, replaced=args.replaced, startup=args.startup, saving=args.saving)
    cells = spot.durations(args.cells, args.hours)
    grid_told = spot.told(machines, cells, args.save_every, args.spot_price, args.price, args.draws)
    simulated = f"{grid_told}\n\n{made}"
    print(f"{arithmetic}\n\n{simulated}")
    if args.record:
        write_section(args.record, "one training on a cluster", arithmetic)
        write_section(args.record, "a grid on spot machines", simulated)


if __name__ == "__main__":
    main()
