"""Recomputes the first table of this archive from cells.csv: python verify.py (needs numpy and scipy).

cells.csv holds the pixels of each class in each test image that truth and prediction share, by variant and seed. From
them follow the mIoU of every training, its mean and standard deviation, and each difference with its interval and star.
"""

import csv
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "code"))  # the statistics of the report, as they were when it was written

import numpy as np

from experiments.evidence.factorial import starred
from experiments.evidence.family import Family, judge
from experiments.evidence.sums import Counts, addends, evaluate


def read(experiment: dict[str, Any]) -> tuple[dict[str, dict[int, Counts]], list[str] | None]:
    """The counts of each training, images in one order, and the group of each image."""
    images: dict[str, str] = {}
    rows: dict[tuple[str, int], list[tuple[str, str, int, int, int]]] = {}
    with (HERE / "cells.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row.get("experiment", experiment["cells_name"]) != experiment["cells_name"]:
                continue
            images[row["image"]] = row["group"]
            pixels = (int(row["intersection"]), int(row["true"]), int(row["predicted"]))
            rows.setdefault((row["variant"], int(row["seed"])), []).append((row["image"], row["class"], *pixels))
    place, classes = {name: i for i, name in enumerate(images)}, {c: k for k, c in enumerate(experiment["classes"])}
    names = {cell: variant for variant, cell in experiment["variants"].items()}
    cells: dict[str, dict[int, Counts]] = {variant: {} for variant in experiment["variants"]}
    for (variant, seed), found in sorted(rows.items(), key=lambda item: item[0][1]):
        arrays = np.zeros((3, len(place), len(classes)))
        for image, label, *counts in found:
            arrays[:, place[image], classes[label]] = counts
        cells[names[variant]][seed] = Counts(arrays[0], arrays[1], arrays[2])
    return cells, [*images.values()] if all(images.values()) else None


def table(experiment: dict[str, Any]) -> Iterator[list[str]]:
    """The rows of the first table: variant, mIoU, difference, GMAC."""
    cells, groups = read(experiment)
    options = {"separate": experiment["separate"], "stage": experiment["stage"], "bound": 1.0}
    weights = starred(experiment["levels"], experiment["baseline"])
    family: Family[Any] = judge(cells, weights, groups=groups, class_names=experiment["classes"], **options)
    for variant, of_seeds in cells.items():
        scores = [100 * float(evaluate(addends(counts, "miou").sum(axis=0), "miou")) for counts in of_seeds.values()]
        std = float(np.std(scores, ddof=1)) if len(scores) > 1 else float("nan")
        spread = f" ± {std:.2f}" if len(scores) > 1 else " ± -"
        few = "" if len(scores) == experiment["seeds"] else f" ({len(scores)} of {experiment['seeds']})"
        score = f"{np.mean(scores):.2f}{spread}{few}" if scores else "-"
        yield [variant, score, difference(family, variant, experiment["baseline"]), experiment["gmac"][variant]]


def difference(family: Family[Any], variant: str, baseline: str) -> str:
    if variant == baseline:
        return "baseline"
    row = family.rows.get(variant)
    if row is None or np.isnan(row.estimate):
        return "-"
    row = row.times(100)
    shown = f"{row.estimate:z.2f}"
    shown = shown if shown.startswith("-") or float(shown) == 0 else f"+{shown}"
    return f"{shown} {'[-]' if row.reason else f'[{row.low:z.2f}, {row.high:z.2f}]'}{row.mark}"


def main() -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a console that has no letter for ±
    differing = 0
    for experiment in json.loads((HERE / "first_table.json").read_text(encoding="utf-8")):
        print(experiment["title"])
        for printed, again in zip(experiment["rows"], table(experiment), strict=True):
            same = printed == again
            differing += not same
            print(f"  {' | '.join(again)}   {'as printed' if same else 'PRINTED: ' + ' | '.join(printed)}")
    print("every number is as printed" if not differing else f"{differing} rows differ from what is printed")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
