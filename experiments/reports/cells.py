"""cells.csv: what each cell counted of each class in each image, for a model of one's own."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from experiments.evidence.cell import Cell
from experiments.evidence.experiment import Experiment
from experiments.reports.formats import defused
from experiments.shell.files import write_whole

MOST_ROWS = 2_000_000  # that are written unasked, some 100 MB
BLOCK = 256  # images whose rows are held at once
COLUMNS = ("variant", "seed", "image", "group", "class", "intersection", "union", "true", "predicted")


def count_rows(experiments: Sequence[Experiment]) -> int:
    cells = [cell for experiment in experiments for cell in experiment.finished()]
    return sum(int(np.count_nonzero(np.logical_or(cell.counts.true, cell.counts.predicted))) for cell in cells)


def write_cells(path: Path, experiments: Sequence[Experiment]) -> None:
    """A row a finished cell, image and class, in pixels; classes in neither truth nor prediction have none.

    The group is empty where it was not stored. Several experiments have a column more, their names.
    """
    several = len(experiments) > 1

    def write(file: IO[bytes]) -> None:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["experiment"] * several + [*COLUMNS])
        for experiment in experiments:
            first = [defused(experiment.plan["experiment"])] * several
            for cell in experiment.finished():
                writer.writerows([*first, *row] for row in _rows(cell))
        text.flush()
        text.detach()  # the file is closed by whoever opened it

    write_whole(path, write)


def _rows(cell: Cell) -> Iterator[tuple[object, ...]]:
    first = defused(cell.variant), cell.seed
    images, classes = ([defused(name) for name in names] for names in (cell.image_names, cell.class_names))
    groups = [defused(group) for group in cell.groups] if cell.groups is not None else [""] * len(images)
    for start in range(0, len(images), BLOCK):
        block = slice(start, start + BLOCK)
        right, true, predicted = (
            counts[block].astype(np.int64) for counts in (cell.counts.right, cell.counts.true, cell.counts.predicted)
        )
        union = true + predicted - right
        places = np.nonzero(union)
        of_rows = (
            array.tolist() for array in (*places, *(counts[places] for counts in (right, union, true, predicted)))
        )
        for image, label, *pixels in zip(*of_rows, strict=True):
            yield *first, images[start + image], groups[start + image], classes[label], *pixels
