"""stats.csv: how much of each image each class takes, and how sure the network was; and what is done already."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments.prediction.sources import Item
from experiments.shell.files import write_atomic

COLUMNS = ("image", "class", "share", "pixels", "area", "unit", "confidence", "entropy", "disagreement")
DONE = ".done.jsonl"


class Unit(NamedTuple):
    """What one pixel covers: 0.04 and "m²"; of a volume "mm³"."""

    size: float
    sign: str


@dataclass
class Tally:
    """Sums over the pixels of each class, which an image may add in parts."""

    classes: int
    pixels: NDArray[np.int64] = field(init=False)
    sums: dict[str, NDArray[np.float64]] = field(init=False)

    def __post_init__(self) -> None:
        self.pixels = np.zeros(self.classes, np.int64)
        self.sums = {name: np.zeros(self.classes) for name in ("confidence", "entropy", "disagreement")}

    def add(self, labels: NDArray[Any], known: NDArray[np.bool_] | None = None, **maps: NDArray[Any] | None) -> None:
        """Maps of the size of `labels`; only pixels that are `known` count."""
        flat = labels[known] if known is not None else labels.ravel()
        self.pixels += np.bincount(flat, minlength=self.classes)[: self.classes]
        for name, values in maps.items():
            if values is None:
                self.sums[name][:] = np.nan
                continue
            of_known = values[known] if known is not None else values.ravel()
            self.sums[name] += np.bincount(flat, of_known, minlength=self.classes)[: self.classes]

    def rows(self, image: str, names: Sequence[str], unit: Unit | None) -> list[dict[str, Any]]:
        """A row a class, and a last one of all."""
        total = int(self.pixels.sum())
        rows = [
            self._row(image, name, self.pixels[i], total, {k: v[i] for k, v in self.sums.items()}, unit)
            for i, name in enumerate(names)
        ]
        return [*rows, self._row(image, "all", total, total, {k: v.sum() for k, v in self.sums.items()}, unit)]

    @staticmethod
    def _row(
        image: str, name: str, pixels: Any, total: int, sums: Mapping[str, Any], unit: Unit | None
    ) -> dict[str, Any]:
        count = int(pixels)
        means = {key: f"{value / count:.4f}" if count and np.isfinite(value) else "" for key, value in sums.items()}
        return {
            "image": image,
            "class": name,
            "share": f"{count / total:.6f}" if total else "",
            "pixels": count,
            "area": f"{count * unit.size:.6g}" if unit else "",
            "unit": unit.sign if unit else "",
            **means,
        }


class Done:
    """The images that are done in a folder of results, with their rows; an interrupted call goes on behind them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / DONE
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.files: dict[str, list[Any]] = {}
        kept = []
        for line in self.path.read_bytes().splitlines() if self.path.is_file() else []:
            try:
                entry = json.loads(line)
                self.rows[entry["image"]], self.files[entry["image"]] = entry["rows"], entry["file"]
            except (ValueError, KeyError, TypeError):  # the line that a kill cut off
                continue
            kept.append(line)
        if kept or self.path.is_symlink():  # a link would lead what is added elsewhere
            write_atomic(self.path, b"".join(line + b"\n" for line in kept))

    def has(self, item: Item) -> bool:
        """Whether this very image is done. ValueError where results of this name are those of another file."""
        if item.name not in self.rows:
            return False
        before, now = self.files[item.name], json.loads(json.dumps(item.known()))
        if before[0] != now[0]:
            raise ValueError(
                f"{self.folder} holds results of {before[0]}, whose name {item.name} those of {now[0]} would have, "
                "too: choose another folder with --out"
            )
        return before == now

    def add(self, item: Item, rows: list[dict[str, Any]]) -> None:
        """Called when all files of the image are written."""
        self.rows[item.name], self.files[item.name] = rows, item.known()
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"image": item.name, "file": self.files[item.name], "rows": rows}) + "\n")

    def write(self, order: Sequence[str]) -> Path:
        """stats.csv of the images that are done, in this order."""
        buffer = io.StringIO()
        used = [row for name in order if name in self.rows for row in self.rows[name]]
        columns = [name for name in COLUMNS if name in COLUMNS[:4] or any(row.get(name) for row in used)]
        writer = csv.DictWriter(buffer, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, "image": _cell(row["image"]), "class": _cell(row["class"])} for row in used)
        write_atomic(self.folder / "stats.csv", buffer.getvalue())
        return self.folder / "stats.csv"


def _cell(text: str) -> str:
    """A name as it is, unless a spreadsheet would take it for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
