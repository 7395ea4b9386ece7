"""Searches CRF parameters on validation images, as DeepLab did.

Chen et al. 2015, https://arxiv.org/abs/1412.7062, Sec. 5.

    python -m experiments.search_crf CHECKPOINT
    python -m experiments.search_crf CHECKPOINT --crf conv --grid w_appearance=1,3 theta_beta=5,10,20 --test

Every combination of the grid is scored on the probabilities of the network, which are computed once; a second round
looks around the best of the first at half the step. The score is the mean IoU of the images together. "No CRF" always
takes part and may win; of equal scores the one with the smaller weights wins. The data are those of the run.json beside
the checkpoint unless flags say otherwise. The same command continues what was interrupted.

The default grid spans what DeepLab searched and released, on images of about 500 x 375 pixels. That is w_appearance 3
to 10, theta_alpha 30 to 120 and theta_beta 3 to 13, with w_smoothness = 3 and theta_gamma = 3 fixed. Here the
deviations of positions, theta_alpha and theta_gamma, are in proportion to the diagonal of the images. A ConvCRF sees
no further than its window: in place of theta_alpha, `blur` widens it, and weights go to 30.

Writes search.csv, a row a finished combination; best.json, the arguments of `dense_crf` or `conv_crf` (weights of 0
where no CRF was better); search.png, images with and without it. `--test` then scores the choice on the test split,
once.
"""

import argparse
import math
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from jsonargparse.typing import PositiveInt
from rich.console import Console

from datamodules.base import Loading, SegmentationDataModule
from experiments.crfs.grid import CRFS, check_grid, default_grid, parse_grid
from experiments.crfs.outcome import picture, table
from experiments.crfs.search import (
    Finished,
    SearchResult,
    at_an_end,
    confusions,
    predict,
    search,
    search_key,
    spread,
)
from experiments.runs.beside import run_beside
from experiments.runs.run import Run
from experiments.runs.scored import alone
from experiments.runs.scoring import workers
from experiments.shell.catalogue import DATAMODULES, listed, load, lookup
from experiments.shell.class_flags import Choice, ClassParser, first_word, settings_of
from experiments.shell.command import command
from experiments.shell.ending import ending
from experiments.shell.files import locked, write_json
from experiments.shell.flags import refuse
from lightning_modules.base import SegmentationModule
from lightning_modules.components.scores.reductions import scores


def check_classes(module: SegmentationModule, datamodule: SegmentationDataModule) -> None:
    """ValueError where the network was trained for other classes, or other images, than the data have."""
    if list(module.class_names) != list(datamodule.class_names):
        raise ValueError(
            f"the checkpoint predicts {module.num_classes} classes ({', '.join(module.class_names)}), the data have "
            f"{datamodule.num_classes} ({', '.join(datamodule.class_names)}): choose the data that it was trained on "
            "with --data and --data.root"
        )
    if module.hparams["in_channels"] != datamodule.in_channels:
        raise ValueError(
            f"the checkpoint takes images of {module.hparams['in_channels']} channels, the data have "
            f"{datamodule.in_channels}"
        )
    if datamodule.in_channels not in (1, 3):
        raise ValueError(
            f"a CRF compares the colours of grey or RGB images, and the data have {datamodule.in_channels} channels: "
            "score the network without one"
        )


def parse_search(argv: list[str]) -> tuple[Path, Run, argparse.Namespace]:
    """The checkpoint, the run it is of with the data that the flags leave or change, and the other flags."""
    usage = (
        "python -m experiments.search_crf CHECKPOINT [--data NAME] [--data.FLAG ...] [--grid NAME=V,V ...] [options]"
    )
    word = first_word(
        argv,
        what="a checkpoint, such as outputs/.../checkpoints/last.ckpt",
        usage=usage,
        description=f"{__doc__}\nevery flag: CHECKPOINT --help",
    )
    checkpoint = Path(word)
    chosen, rest = Choice(f"--data takes one of {listed(DATAMODULES)}", data=None).parse_known_args(argv[1:])
    try:
        stored = run_beside(checkpoint)
        if chosen.data is None and stored is None:
            raise ValueError(f"there is no run.json beside {checkpoint} to say what it was trained on: give --data")
        datamodule = stored.datamodule if chosen.data is None else lookup("--data", chosen.data, DATAMODULES)  # type: ignore[union-attr]
    except (ValueError, FileNotFoundError) as error:
        refuse(str(error))
    parser = ClassParser(
        verb="search_crf",
        usage=usage,
        description=f"{__doc__}\ndata sets (--data): {listed(DATAMODULES)}\n\nThe flags below are those of "
        f"{datamodule.__name__}.",
        chosen="after the CHECKPOINT",
    )
    parser.add_argument("--crf", choices=list(CRFS), default="dense", help="the kind of CRF")
    parser.add_argument("--root", type=str, help="folder of the data, the same as --data.root")
    parser.add_argument(
        "--images",
        type=PositiveInt,
        default=100,
        help="images of the split that are used, spread evenly; DeepLab took 100",
    )
    parser.add_argument("--split", choices=["val", "train"], default="val", help="where the parameters are chosen")
    parser.add_argument(
        "--grid",
        nargs="+",
        default=[],
        metavar="NAME=V,V",
        help="values of an argument of the CRF, in place of the default ones: w_appearance=1,3",
    )
    parser.add_argument(
        "--rounds", type=PositiveInt, default=2, help="rounds of the search; each after the first halves the step"
    )
    parser.add_argument("--test", action="store_true", help="score the choice on the test split, once")
    parser.add_argument(
        "--out", type=Path | None, default=None, help="folder of the results (default: beside run.json)"
    )
    parser.add_argument("--jobs", type=PositiveInt, default=os.cpu_count() or 1, help="images at a time")
    parser.add_class(settings_of(datamodule, Loading), "data", help="one of those listed above")
    if stored is not None and datamodule is stored.datamodule:
        parser.set_defaults({f"data.{name}": value for name, value in stored.data.items()})
    if any(action.dest == "data.root" for action in parser._actions):
        rest = [re.sub(r"^--root(?==|$)", "--data.root", word) for word in rest]
    args = parser.parse_args(rest, defaults=True)
    if args.root is not None:
        refuse(f"--root belongs to data in a folder, and {datamodule.__name__} has none")
    run = Run(module=SegmentationModule, datamodule=datamodule, data=args.data.as_dict())
    out = args.out or checkpoint.parent.parent / f"search_{args.crf}"
    options = {name: args[name] for name in ("crf", "images", "split", "grid", "rounds", "test", "jobs")}
    return checkpoint, run, argparse.Namespace(out=Path(out), **options)


def run_search(checkpoint: Path, run: Run, args: argparse.Namespace, console: Console) -> None:
    """What the command does, once its flags are known."""

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, markup=False)

    wanted = parse_grid(args.crf, args.grid)
    module = load(checkpoint)
    datamodule = run.datamodule(**run.data)
    check_classes(module, datamodule)
    if args.test and datamodule.scored == "val":
        raise ValueError(
            "--test scores the choice on images that chose nothing, and these data have no test split: their final "
            "scores are of val, by which parameters are chosen here. Leave --test out, or make a test split with "
            "experiments.split"
        )
    datamodule.verify()
    for line in alone(module):
        say(line)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dataset = datamodule.dataset(args.split)
    positions = spread(len(dataset), args.images)
    height, width = dataset[positions[0]][1].shape
    check_grid(args.crf, default_grid(args.crf, math.hypot(height, width)) | wanted)
    with locked(args.out):
        predicted = predict(module.to(device), dataset, args.split, positions, say)
        grid = default_grid(args.crf, predicted.diagonal) | wanted
        finished = Finished(args.out / "search.csv", search_key(args.crf, checkpoint, run, args.split, predicted.names))
        result = search(args.crf, grid, predicted, finished, rounds=args.rounds, jobs=args.jobs, device=device, say=say)
        write_json(args.out / "best.json", result.parameters)
        picture(args.crf, result, predicted, datamodule.palette, args.out / "search.png", device)
        console.print(table(result))
        for line in verdict(args.crf, result, args.split, len(predicted.names)):
            say(line)
        say(f"results: {args.out}")
        if args.test:
            whole = predict(module, datamodule.dataset("test"), "test", range(len(datamodule.dataset("test"))), say)
            with workers(args.jobs) as pool:
                before, after = (
                    float(scores(confusions(args.crf, p, whole, pool, device).sum(0))["miou"])
                    for p in (None, result.best.point)
                )
            images = len(whole.names)
            write_json(
                args.out / "test.json",
                {"parameters": result.parameters, "images": images, "without": before, "miou": after},
            )
            say(
                f"test split, {images} images, scored once with the choice made above: mIoU {after:.2%}, without CRF "
                f"{before:.2%}. This is the honest number: these images chose nothing."
            )


def verdict(crf: str, result: SearchResult, split: str, images: int) -> Iterable[str]:
    """What a reader of the table must know."""
    if result.best.point is None:
        best = result.rows[1]
        yield (
            f"No CRF wins: {result.best.miou:.2%} mIoU without, at most {best.miou:.2%} with a {crf} CRF of this grid. "
            "best.json holds weights of 0, which change nothing."
        )
    else:
        yield (
            f"Best: {', '.join(f'{k} {v}' for k, v in result.best.point.items())}: mIoU {result.best.miou:.2%}, "
            f"without CRF {result.without.miou:.2%}. The {images} images of {split} chose it, so the gain is "
            "flattered; --test gives the honest one."
        )
    if ends := at_an_end(result):
        yield f"At an end of what was tried: {', '.join(ends)}. A wider --grid may hold a better CRF."


def main(argv: list[str] | None = None) -> None:
    with command() as console:
        checkpoint, run, args = parse_search(sys.argv[1:] if argv is None else argv)
        with ending(f"interrupted; the same command continues the search in {args.out}"):
            run_search(checkpoint, run, args, console)


if __name__ == "__main__":
    main()
