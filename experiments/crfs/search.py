"""Scores every combination of a grid of CRF parameters on images, and remembers those that are done."""

import csv
import hashlib
import io
import itertools
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datamodules.base import SegmentationDataset
from experiments.crfs.grid import CRFS, Grid, Point, around
from experiments.grids.cells import clock
from experiments.runs.run import Run
from experiments.runs.scoring import workers
from experiments.shell.files import write_atomic
from lightning_modules.base import SegmentationModule
from lightning_modules.components.finite import labelled_logits, naming
from lightning_modules.components.scores.confusion import confusion_matrix, predict_labels
from lightning_modules.components.scores.reductions import scores
from lightning_modules.refinement.memory import check_memory

WEIGHTS = ("w_appearance", "w_smoothness")
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
class SearchResult:
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
class Predicted:
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


def spread(length: int, count: int) -> list[int]:
    """Positions of `count` images spread evenly over a split: the next frame of a video shows nothing new."""
    count = min(length, count)
    return [int((i + 0.5) * length / count) for i in range(count)]


def predict(
    module: SegmentationModule,
    dataset: SegmentationDataset,
    split: str,
    positions: Sequence[int],
    say: Callable[[str], None],
) -> Predicted:
    """The images at `positions` with the network's probabilities, in the memory of the computer.

    Raises NonFiniteError, naming the image, for a logit at a labelled pixel that is NaN or infinite.
    """
    needed = 4 * len(positions) * dataset[positions[0]][1].numel() * (module.num_classes + 3)  # float32
    check_memory(needed, torch.device("cpu"), f"keeping the probabilities of {len(positions)} images (--images)")
    predicted = Predicted(split, [], [], [], [], module.num_classes, module.ignore_index)
    spoken = time.monotonic()
    for done, position in enumerate(positions):
        image, mask = dataset[position]
        name = f"{dataset.names[position]} ({split})"
        with torch.no_grad(), naming(name):
            logits = module.eval().predict(image[None].to(module.device)).float()
        labelled_logits(logits, mask[None].to(logits.device), module.ignore_index, [name], module.class_names)
        predicted.names.append(dataset.names[position])
        predicted.images.append((255 * image[None]).round())  # whole grey levels, as a module's `refine` has them
        predicted.masks.append(mask[None])
        predicted.probabilities.append(logits.softmax(1).cpu())
        if time.monotonic() - spoken > EVERY:
            spoken = time.monotonic()
            say(f"network: {done + 1} of {len(positions)} images")
    return predicted


def refined(crf: str, point: Point | None, probabilities: Tensor, images: Tensor) -> Tensor:
    """The marginals of one combination; the probabilities themselves without one."""
    if point is None:
        return probabilities
    marginals: Tensor = CRFS[crf](probabilities, images, **point)
    return marginals


def confusions(
    crf: str, point: Point | None, predicted: Predicted, pool: ThreadPoolExecutor, device: torch.device
) -> np.ndarray:
    """Confusion matrices of the images (n, C, C)."""

    def one(index: int) -> np.ndarray:
        with torch.no_grad(), naming(f"{predicted.names[index]} ({predicted.split})"):
            probabilities, image = predicted.probabilities[index].to(device), predicted.images[index].to(device)
            labels = predict_labels(refined(crf, point, probabilities, image)).cpu()
            return confusion_matrix(labels, predicted.masks[index], predicted.num_classes, predicted.ignore_index)[
                0
            ].numpy()

    return np.stack(list(pool.map(one, range(len(predicted.names)))))


def search(
    crf: str,
    grid: Grid,
    predicted: Predicted,
    finished: Finished,
    *,
    rounds: int = 2,
    jobs: int = 1,
    device: torch.device | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> SearchResult:
    """Scores every combination of the grid, then in each further round those around the best at half the step."""
    device = device or torch.device("cpu")
    rows: list[Row] = []
    with workers(jobs) as pool:
        for number in range(1, rounds + 1):
            scored = [row.point for row in rows]
            wanted = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
            points = [*([] if scored else [None]), *(point for point in wanted if point not in scored)]
            missing = [point for point in points if finished.get(point) is None]
            say(
                f"round {number}: {len(points)} combinations on {len(predicted.names)} images, {len(missing)} of them "
                "to do"
            )
            started = spoken = time.monotonic()
            for done, point in enumerate(missing, start=1):
                miou = float(scores(confusions(crf, point, predicted, pool, device).sum(0))["miou"])
                if math.isnan(miou):
                    raise ValueError(
                        f"none of the {len(predicted.names)} images has a labelled pixel: take more (--images)"
                    )
                finished.add(point, miou)
                now = time.monotonic()
                if now - spoken > EVERY and done < len(missing):
                    spoken, left = now, (now - started) / done * (len(missing) - done)
                    say(
                        f"round {number}: {done} of {len(missing)}, {clock(now - started)} so far, about "
                        f"{clock(left)} to go"
                    )
            rows += [Row(point, score) for point in points if (score := finished.get(point)) is not None]
            rows.sort(key=Row.rank)
            grid = around(grid, SearchResult(rows).best_crf)
    return SearchResult(rows)


def at_an_end(result: SearchResult) -> list[str]:
    """The numbers whose best value is the smallest or the largest that was tried."""
    points = [row.point for row in result.rows if row.point is not None]
    tried = {name: sorted({p[name] for p in points if isinstance(p[name], float)}) for name in result.best_crf}
    return [n for n, values in tried.items() if len(values) > 1 and result.best_crf[n] in (values[0], values[-1])]


def search_key(crf: str, checkpoint: Path, run: Run, split: str, names: Sequence[str]) -> str:
    """Names what decides the score of a combination: the weights, the data and the images."""
    data = {k: v for k, v in run.identified().resolved().items() if k.split(".")[0] in ("data", "datamodule")}
    decides = [crf, hashlib.sha256(checkpoint.read_bytes()).hexdigest(), data, split, list(names)]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
