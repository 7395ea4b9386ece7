"""Searches CRF parameters on validation images, as DeepLab did (Chen et al. 2015, https://arxiv.org/abs/1412.7062, Sec. 5).

    python -m experiments.search_crf CHECKPOINT
    python -m experiments.search_crf CHECKPOINT --crf conv --grid w_appearance=1,3 theta_beta=5,10,20 --test

Every combination of the grid is scored on the probabilities of the network, which are computed once; a second round looks
around the best of the first at half the step. The score is the mean IoU of the images together. "No CRF" always takes part
and may win; of equal scores the one with the smaller weights wins. The data are those of the run.json beside the
checkpoint unless flags say otherwise. The same command continues what was interrupted.

The default grid spans what DeepLab searched and released, on images of about 500 x 375 pixels: w_appearance 3 to 10,
theta_alpha 30 to 120, theta_beta 3 to 13, with w_smoothness = 3 and theta_gamma = 3 fixed. Here the deviations of
positions, theta_alpha and theta_gamma, are in proportion to the diagonal of the images. A ConvCRF sees no further than its
window: in place of theta_alpha, `blur` widens it, and weights go to 30.

Writes search.csv, a row a finished combination; best.json, the arguments of `dense_crf` or `conv_crf` (weights of 0
where no CRF was better); search.png, images with and without it. `--test` then scores the choice on the test split, once.
"""

import argparse
import csv
import difflib
import hashlib
import inspect
import io
import itertools
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rich.table
import torch
from jsonargparse.typing import PositiveInt
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor

from datamodules.base import SegmentationDataModule, SegmentationDataset
from experiments.grids.cells import clock
from experiments.reports.figures import drawing, label_colours, save_figure
from experiments.runs.callbacks import to_rgb
from experiments.runs.run import Run
from experiments.shell.ending import ending
from experiments.shell.files import locked, read_json, write_atomic, write_json
from experiments.shell.flags import forgiving_output, refuse
from experiments.train import DATAMODULES, Formatter, Parser, listed, load, lookup
from lightning_modules.base import SegmentationModule
from lightning_modules.components.checkpoints import read_checkpoint
from lightning_modules.components.finite import labelled_logits, naming
from lightning_modules.components.scores.confusion import confusion_matrix, predict_labels, scores
from lightning_modules.refinement.checks import check_memory
from lightning_modules.refinement.conv_crf import conv_crf
from lightning_modules.refinement.dense_crf import dense_crf

Value = float | str
Point = dict[str, Value]  # one combination of the grid: arguments of a CRF
Grid = dict[str, list[Value]]

CRFS: dict[str, Callable[..., Any]] = {"dense": dense_crf, "conv": conv_crf}
NOT_SEARCHED = {"compatibility", "engine", "return_energy"}  # no numbers, or change none
VOC_DIAGONAL = 625.0  # pixels, of 500 x 375, the most frequent size in PASCAL VOC
WEIGHTS = ("w_appearance", "w_smoothness")
SHOWN = 10  # rows of the printed table
EVERY = 15.0  # seconds between two lines of progress


@dataclass(frozen=True)
class Row:
    """A combination and its score; without a point, the network alone."""

    point: Point | None
    miou: float

    def rank(self) -> tuple[float, ...]:
        """Best first; of equal scores the smaller weights, then the smaller deviations."""
        numbers = {} if self.point is None else {k: v for k, v in self.point.items() if isinstance(v, int | float)}
        others = sorted(name for name in numbers if name not in WEIGHTS)
        return (-self.miou, *(numbers.get(name, 0.0) for name in WEIGHTS), *(numbers[name] for name in others))


@dataclass(frozen=True)
class Found:
    """What a search found, best first."""

    rows: list[Row]

    @property
    def best(self) -> Row:
        return self.rows[0]

    @property
    def without(self) -> Row:
        return next(row for row in self.rows if row.point is None)

    @property
    def best_crf(self) -> Point:
        return next(row.point for row in self.rows if row.point is not None)

    @property
    def parameters(self) -> Point:
        """Arguments of the CRF; with weights of 0, which change nothing, where none was better."""
        return self.best.point if self.best.point is not None else self.best_crf | dict.fromkeys(WEIGHTS, 0.0)


@dataclass(frozen=True)
class Kept:
    """Images of a split, their masks and what the network says of them."""

    split: str
    names: list[str]
    images: list[Tensor]  # (1, 1 or 3, H, W) in 0..255
    masks: list[Tensor]  # (1, H, W)
    probabilities: list[Tensor]  # (1, C, H, W)
    num_classes: int
    ignore_index: int

    @property
    def diagonal(self) -> float:
        """The median over the images, in pixels."""
        return float(np.median([math.hypot(*mask.shape[-2:]) for mask in self.masks]))


class Finished:
    """search.csv: the score of every finished combination.

    `key` names all else that decides a score. Rows of another key, of an earlier search with other images say, stay in
    the file and are not used.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        self.lines: list[dict[str, str]] = []
        self.miou: dict[str, float] = {}
        try:
            if path.exists():
                self.lines = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
            self.miou = {self._name(line): float(line["miou"]) for line in self.lines}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error!r}): delete it to search from the start") from error

    def get(self, point: Point | None) -> float | None:
        """The mIoU of a combination, None before it is known."""
        return self.miou.get(self._name(self._line(point)))

    def add(self, point: Point | None, miou: float) -> None:
        line = self._line(point)
        self.miou[self._name(line)] = miou
        self.lines.append({**line, "miou": repr(miou)})
        columns = [column for column in dict.fromkeys(itertools.chain(*self.lines)) if column != "miou"]
        file = io.StringIO()
        writer = csv.DictWriter(file, [*columns, "miou"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.lines)
        write_atomic(self.path, file.getvalue())

    def _line(self, point: Point | None) -> dict[str, str]:
        return {"key": self.key, **{name: str(value) for name, value in (point or {}).items()}}

    @staticmethod
    def _name(line: Mapping[str, str]) -> str:
        """Of a combination, whatever the order of its columns."""
        return json.dumps(sorted((name, value) for name, value in line.items() if value and name != "miou"))


def default_grid(crf: str, diagonal: float) -> Grid:
    """The grid for images of this diagonal in pixels: ends and middles of what DeepLab searched or released.

    v1, Sec. 5: w1 in [5, 10], sigma_alpha in [50:10:100], sigma_beta in [3:1:10], released with 4, 121 and 5; v2, Sec. 4.1:
    [3:6], [30:10:100] and [3:6]. Both search with w2 = 3 and sigma_gamma = 3 fixed. pydensecrf's example has sigma_beta
    13. ConvCRF, Sec. 4.2 and its code: blur 4 and w1 10, theta_alpha beyond the window.
    """
    scale = diagonal / VOC_DIAGONAL
    grid: Grid = {
        "w_appearance": [3.0, 5.5, 10.0],
        "theta_alpha": [_rounded(scale * pixels) for pixels in (30.0, 60.0, 120.0)],
        "theta_beta": [3.0, 6.0, 13.0],
        "w_smoothness": [3.0],
        "theta_gamma": [_rounded(3.0 * scale)],
    }
    if crf == "conv":
        grid |= {"w_appearance": [3.0, 10.0, 30.0], "theta_alpha": [_rounded(scale * 60.0)], "blur": [1, 2, 4]}
    return grid


def parse_grid(crf: str, texts: Sequence[str]) -> Grid:
    """`name=value,value,...` for arguments of a CRF; ValueError for what is none, with the nearest name."""
    known = {
        parameter.name: parameter
        for parameter in inspect.signature(CRFS[crf]).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in NOT_SEARCHED
    }
    grid: Grid = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"--grid knows {', '.join(known)} of {crf}_crf, got {name!r}{hint}")
        kind = type(known[name].default)
        read = kind if kind in (int, str) else float
        try:
            grid[name] = [read(value) for value in values.split(",")]
        except ValueError:
            grid[name] = []
        if not equals or not grid[name]:
            wanted = {int: "whole numbers", str: "names", float: "numbers"}[read]
            raise ValueError(f"--grid {name} must list {wanted}, such as {name}=3,4,5, got {text!r}")
    return grid


def check_grid(crf: str, grid: Grid) -> None:
    """Tries every value on an image of one grey: what the CRF refuses, it refuses before the work and not within it."""
    first = {name: values[0] for name, values in grid.items()}
    for name, values in grid.items():
        for value in values:
            try:
                CRFS[crf](torch.full((1, 2, 4, 4), 0.5), torch.full((1, 3, 4, 4), 128.0), **first | {name: value})
            except ValueError as error:
                raise ValueError(f"--grid: {error}") from error


def spread(length: int, count: int) -> list[int]:
    """Positions of `count` images spread evenly over a split: the next frame of a video shows nothing new."""
    count = min(length, count)
    return [int((i + 0.5) * length / count) for i in range(count)]


def keep(
    module: SegmentationModule,
    dataset: SegmentationDataset,
    split: str,
    positions: Sequence[int],
    say: Callable[[str], None],
) -> Kept:
    """The images at `positions` with the network's probabilities, in the memory of the computer.

    Raises NonFiniteError, naming the image, for a logit at a labelled pixel that is NaN or infinite.
    """
    needed = 4 * len(positions) * dataset[positions[0]][1].numel() * (module.num_classes + 3)  # float32
    check_memory(needed, torch.device("cpu"), f"keeping the probabilities of {len(positions)} images (--images)")
    kept = Kept(split, [], [], [], [], module.num_classes, module.ignore_index)
    spoken = time.monotonic()
    for done, position in enumerate(positions):
        image, mask = dataset[position]
        name = f"{dataset.names[position]} ({split})"
        with torch.no_grad(), naming(name):
            logits = module.eval().predict(image[None].to(module.device)).float()
        labelled_logits(logits, mask[None].to(logits.device), module.ignore_index, [name], module.class_names)
        kept.names.append(dataset.names[position])
        kept.images.append((255 * image[None]).round())  # whole grey levels, as a module's `refine` has them
        kept.masks.append(mask[None])
        kept.probabilities.append(logits.softmax(1).cpu())
        if time.monotonic() - spoken > EVERY:
            spoken = time.monotonic()
            say(f"network: {done + 1} of {len(positions)} images")
    return kept


@contextmanager
def workers(jobs: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that compute with one core each, as the kernels let go of the interpreter; cancelled by an interrupt."""
    pool = ThreadPoolExecutor(jobs, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def refined(crf: str, point: Point | None, probabilities: Tensor, images: Tensor) -> Tensor:
    """The marginals of one combination; the probabilities themselves without one."""
    if point is None:
        return probabilities
    marginals: Tensor = CRFS[crf](probabilities, images, **point)
    return marginals


def confusions(crf: str, point: Point | None, kept: Kept, pool: ThreadPoolExecutor, device: torch.device) -> np.ndarray:
    """Confusion matrices of the images (n, C, C)."""

    def one(index: int) -> np.ndarray:
        with torch.no_grad(), naming(f"{kept.names[index]} ({kept.split})"):
            probabilities, image = kept.probabilities[index].to(device), kept.images[index].to(device)
            labels = predict_labels(refined(crf, point, probabilities, image)).cpu()
            return confusion_matrix(labels, kept.masks[index], kept.num_classes, kept.ignore_index)[0].numpy()

    return np.stack(list(pool.map(one, range(len(kept.names)))))


def search(
    crf: str,
    grid: Grid,
    kept: Kept,
    finished: Finished,
    *,
    rounds: int = 2,
    jobs: int = 1,
    device: torch.device | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Found:
    """Scores every combination of the grid, then in each further round those around the best at half the step."""
    device = device or torch.device("cpu")
    rows: list[Row] = []
    with workers(jobs) as pool:
        for number in range(1, rounds + 1):
            known = [row.point for row in rows]
            wanted = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
            points = [*([] if known else [None]), *(point for point in wanted if point not in known)]
            missing = [point for point in points if finished.get(point) is None]
            say(f"round {number}: {len(points)} combinations on {len(kept.names)} images, {len(missing)} of them to do")
            started = spoken = time.monotonic()
            for done, point in enumerate(missing, start=1):
                miou = float(scores(confusions(crf, point, kept, pool, device).sum(0))["miou"])
                if math.isnan(miou):
                    raise ValueError(f"none of the {len(kept.names)} images has a labelled pixel: take more (--images)")
                finished.add(point, miou)
                now = time.monotonic()
                if now - spoken > EVERY and done < len(missing):
                    spoken, left = now, (now - started) / done * (len(missing) - done)
                    say(
                        f"round {number}: {done} of {len(missing)}, {clock(now - started)} so far, about {clock(left)} to go"
                    )
            rows += [Row(point, score) for point in points if (score := finished.get(point)) is not None]
            rows.sort(key=Row.rank)
            grid = _around(grid, Found(rows).best_crf)
    return Found(rows)


def _around(grid: Grid, best: Point) -> Grid:
    """Half a step below and above the best value of each number that has several, and the best value of what has one.

    Steps are ratios, as the ranges of DeepLab are spanned by them; next to 0 they are differences.
    """
    return {name: _halfway(sorted(values), best[name]) for name, values in grid.items()}


def _halfway(values: list[Any], best: Any) -> list[Value]:
    if len(values) == 1 or not isinstance(best, float):
        return [best]
    place = values.index(best)
    below = values[place - 1] if place else None
    above = values[place + 1] if place + 1 < len(values) else None
    near = [_middle(best, other) for other in (below, above) if other is not None]
    if len(near) == 1 and best > 0:  # at an end of the range: as far beyond it
        near.append(_rounded(best * best / near[0]) if near[0] > 0 else best)
    return sorted({*near, best})


def _middle(a: float, b: float) -> float:
    return _rounded(math.sqrt(a * b) if min(a, b) > 0 else (a + b) / 2)


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def at_an_end(found: Found) -> list[str]:
    """The numbers whose best value is the smallest or the largest that was tried."""
    points = [row.point for row in found.rows if row.point is not None]
    tried = {name: sorted({p[name] for p in points if isinstance(p[name], float)}) for name in found.best_crf}
    return [n for n, values in tried.items() if len(values) > 1 and found.best_crf[n] in (values[0], values[-1])]


def search_key(crf: str, checkpoint: Path, run: Run, split: str, names: Sequence[str]) -> str:
    """Names what decides the score of a combination: the weights, the data and the images."""
    data = {k: v for k, v in run.identified().resolved().items() if k.split(".")[0] in ("data", "datamodule")}
    decides = [crf, hashlib.sha256(checkpoint.read_bytes()).hexdigest(), data, split, list(names)]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


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


def table(found: Found) -> rich.table.Table:
    """The best combinations and the network alone."""
    names = list(found.best_crf)
    shown = rich.table.Table(*["", *names, "mIoU (%)", "gain"])
    for place, row in enumerate(found.rows):
        if place < SHOWN or row.point is None:
            values = [str(row.point[name]) for name in names] if row.point else ["no CRF", *["-"] * (len(names) - 1)]
            gain = "" if row.point is None else f"{100 * (row.miou - found.without.miou):+.2f}"
            shown.add_row(str(place + 1), *values, f"{100 * row.miou:.2f}", gain)
    return shown


def picture(
    crf: str, found: Found, kept: Kept, palette: Sequence[Sequence[int]], path: Path, device: torch.device
) -> None:
    """Writes a figure of three images, with the most to gain, the middle one and the most to lose by the best CRF."""
    with workers(1) as pool:
        per_image = [scores(confusions(crf, point, kept, pool, device))["miou"] for point in (None, found.best_crf)]
    order = np.argsort(np.nan_to_num(per_image[0] - per_image[1]), kind="stable")
    rows = list(dict.fromkeys([int(order[0]), int(order[len(order) // 2]), int(order[-1])]))
    colours = label_colours(palette)
    height, width = kept.masks[rows[0]].shape[-2:]
    with drawing():
        figure = Figure(figsize=(11, 0.4 + len(rows) * (0.3 + 2.7 * height / width)), layout="constrained")
        axes = figure.subplots(len(rows), 4, squeeze=False)
        for line, index in zip(axes, rows, strict=True):
            probabilities, image = kept.probabilities[index].to(device), kept.images[index].to(device)
            with torch.no_grad():
                labels = [predict_labels(refined(crf, p, probabilities, image))[0] for p in (None, found.best_crf)]
            tiles = [to_rgb(kept.images[index][0] / 255), *(colours[x.cpu()] for x in (kept.masks[index][0], *labels))]
            titles = [kept.names[index], "truth"]
            titles += [
                f"{name}: mIoU {100 * s[index]:.1f} %" for name, s in zip(("no CRF", crf), per_image, strict=True)
            ]
            for axis, tile, title in zip(line, tiles, titles, strict=True):
                axis.imshow(tile, interpolation="nearest")
                axis.set_title(title, fontsize=8)
                axis.set_axis_off()
        save_figure(figure, path, {"Software": None})


def parse(argv: list[str]) -> tuple[Path, Run, argparse.Namespace]:
    """The checkpoint, the run it is of with the data that the flags leave or change, and the other flags."""
    usage = (
        "python -m experiments.search_crf CHECKPOINT [--data NAME] [--data.FLAG ...] [--grid NAME=V,V ...] [options]"
    )
    if not argv or argv[0].startswith("-"):
        if {"-h", "--help"} & {*argv}:
            print(f"usage: {usage}\n\n{__doc__}\nevery flag: CHECKPOINT --help")
            sys.exit(0)
        refuse(f"the first word is to be a checkpoint, such as outputs/.../checkpoints/last.ckpt (usage: {usage})")
    checkpoint = Path(argv[0])
    choice = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    choice.add_argument("--data")
    try:
        chosen, rest = choice.parse_known_args(argv[1:])
        stored = _stored_run(checkpoint)
        if chosen.data is None and stored is None:
            raise ValueError(f"there is no run.json beside {checkpoint} to say what it was trained on: give --data")
        datamodule = stored.datamodule if chosen.data is None else lookup("--data", chosen.data, DATAMODULES)  # type: ignore[union-attr]
    except (ValueError, FileNotFoundError, argparse.ArgumentError) as error:
        refuse(str(error))
    parser = Parser(
        prog="python -m experiments.search_crf",
        usage=usage,
        description=f"{__doc__}\ndata sets (--data): {listed(DATAMODULES)}\n\nThe flags below are those of "
        f"{datamodule.__name__}.",
        formatter_class=Formatter,
        allow_abbrev=False,
    )
    parser.chosen = "after the CHECKPOINT"
    parser.add_argument("--crf", choices=list(CRFS), default="dense", help="the kind of CRF")
    parser.add_argument("--root", type=str, help="folder of the data, the same as --data.root")
    parser.add_argument("--images", type=PositiveInt, default=100, help="of the split, spread evenly; DeepLab took 100")
    parser.add_argument("--split", choices=["val", "train"], default="val", help="where the parameters are chosen")
    parser.add_argument("--grid", nargs="+", default=[], metavar="NAME=V,V", help="values in place of the default ones")
    parser.add_argument("--rounds", type=PositiveInt, default=2, help="each after the first halves the step")
    parser.add_argument("--test", action="store_true", help="score the choice on the test split, once")
    parser.add_argument(
        "--out", type=Path | None, default=None, help="folder of the results (default: beside run.json)"
    )
    parser.add_argument("--jobs", type=PositiveInt, default=os.cpu_count() or 1, help="images at a time")
    parser.add_class_arguments(datamodule, "data")
    for action in parser._actions:
        if action.option_strings == ["--data"]:
            action.metavar, action.help = "NAME", "one of those listed above"
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


def _stored_run(checkpoint: Path) -> Run | None:
    """The run of the run.json beside a checkpoint, or beside its folder."""
    read_checkpoint(checkpoint)
    for folder in (checkpoint.parent, checkpoint.parent.parent):
        if (folder / "run.json").is_file():
            return Run.from_config(read_json(folder / "run.json"))
    return None


def run_search(checkpoint: Path, run: Run, args: argparse.Namespace, console: Console) -> None:
    """What the command does, once its flags are known."""

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, markup=False)

    wanted = parse_grid(args.crf, args.grid)
    module = load(checkpoint)
    datamodule = run.datamodule(**run.data)
    check_classes(module, datamodule)
    datamodule.verify()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dataset = datamodule.dataset(args.split)
    positions = spread(len(dataset), args.images)
    height, width = dataset[positions[0]][1].shape
    check_grid(args.crf, default_grid(args.crf, math.hypot(height, width)) | wanted)
    with locked(args.out):
        kept = keep(module.to(device), dataset, args.split, positions, say)
        grid = default_grid(args.crf, kept.diagonal) | wanted
        finished = Finished(args.out / "search.csv", search_key(args.crf, checkpoint, run, args.split, kept.names))
        found = search(args.crf, grid, kept, finished, rounds=args.rounds, jobs=args.jobs, device=device, say=say)
        write_json(args.out / "best.json", found.parameters)
        picture(args.crf, found, kept, datamodule.palette, args.out / "search.png", device)
        console.print(table(found))
        for line in verdict(args.crf, found, args.split, len(kept.names)):
            say(line)
        say(f"results: {args.out}")
        if args.test:
            whole = keep(module, datamodule.dataset("test"), "test", range(len(datamodule.dataset("test"))), say)
            with workers(args.jobs) as pool:
                before, after = (
                    float(scores(confusions(args.crf, p, whole, pool, device).sum(0))["miou"])
                    for p in (None, found.best.point)
                )
            images = len(whole.names)
            write_json(
                args.out / "test.json",
                {"parameters": found.parameters, "images": images, "without": before, "miou": after},
            )
            say(
                f"test split, {images} images, scored once with the choice made above: mIoU {after:.2%}, without CRF "
                f"{before:.2%}. This is the honest number: these images chose nothing."
            )


def verdict(crf: str, found: Found, split: str, images: int) -> Iterable[str]:
    """What a reader of the table must know."""
    if found.best.point is None:
        best = found.rows[1]
        yield (
            f"No CRF wins: {found.best.miou:.2%} mIoU without, at most {best.miou:.2%} with a {crf} CRF of this grid. "
            "best.json holds weights of 0, which change nothing."
        )
    else:
        yield (
            f"Best: {', '.join(f'{k} {v}' for k, v in found.best.point.items())}: mIoU {found.best.miou:.2%}, without "
            f"CRF {found.without.miou:.2%}. The {images} images of {split} chose it, so the gain is flattered; --test "
            "gives the honest one."
        )
    if ends := at_an_end(found):
        yield f"At an end of what was tried: {', '.join(ends)}. A wider --grid may hold a better CRF."


def main(argv: list[str] | None = None) -> None:
    forgiving_output()
    checkpoint, run, args = parse(sys.argv[1:] if argv is None else argv)
    console = Console(width=None if sys.stdout.isatty() else 160)
    with ending(f"interrupted; the same command continues the search in {args.out}"):
        run_search(checkpoint, run, args, console)


if __name__ == "__main__":
    main()
