"""Scores predictions of a labelled folder, and compares two networks on the same images."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from datamodules.checks.problems import shown
from datamodules.files import files_by_name, read_groups, read_mask, readable
from experiments.evidence.arrays import Npz
from experiments.evidence.family import judge_networks, score_images
from experiments.evidence.schema import MOST_IMAGES, per_image
from experiments.prediction.segmenter import IGNORED, Prediction, enlarged
from experiments.prediction.sources import Item
from experiments.runs.callbacks import save_npz
from experiments.shell.files import write_atomic
from lightning_modules.components.scores.reductions import scores
from lightning_modules.components.scores.table import ASKED, PER_IMAGE, SCORES, SIZES, Predicted, errors, numbers

# Of the logits at the network's scale, which are no longer there when labels have the size of the image.
LEFT_OUT = {"checkerboard"}
OF_CLASS = {"iou": "IoU", "acc": "accuracy", "dice": "Dice"}


class Scored:
    """What is known of the images that are scored; the scores of an image are kept in `parts` until all are done.

    Args:
        masks: folder of index PNGs, each with the name of its image and 255 where it is unlabelled
        items: the images, each of which must have a mask
        out: folder of the results
        groups: groups.csv or another file "image,group" of images that belong together; None for each its own

    Raises FileNotFoundError or ValueError for masks that are missing, before anything is predicted.
    """

    def __init__(
        self, masks: Path, items: Sequence[Item], out: Path, classes: Sequence[str], groups: Path | None
    ) -> None:
        if not masks.is_dir():
            raise FileNotFoundError(f"--score {masks} is no folder: give the one with the masks of the images")
        flat = {name: paths[0] for name, paths in files_by_name(masks).items()}
        if len({item.name.rpartition("/")[2] for item in items}) < len(items):  # one mask would be that of several
            flat = {}
        self.masks = {item.name: self._mask(masks, item, flat) for item in items}
        if missing := [name for name, path in self.masks.items() if path is None]:
            raise FileNotFoundError(
                f"{len(missing)} of {len(items)} images have no mask in {masks}: {', '.join(map(shown, missing[:5]))}; "
                "a mask has the name of its image and ends in .png"
            )
        self.classes, self.out = list(classes), out
        self.groups: dict[str, str] = {}
        if groups is not None:
            self.groups, problems = read_groups(groups.parent, [item.name for item in items], None)
            if groups.name != "groups.csv" or problems:
                said = problems[0].said if problems else f"{groups} must be called groups.csv"
                raise ValueError(f"--groups: {said}")

    @staticmethod
    def _mask(masks: Path, item: Item, flat: Mapping[str, Path]) -> Path | None:
        beside = masks / f"{item.name}.png"
        return beside if beside.is_file() else flat.get(item.name.rpartition("/")[2])

    def __call__(self, item: Item, prediction: Prediction) -> None:
        """Scores an image, before it counts as done. Raises ValueError for a mask of another size or class."""
        path = self.masks[item.name]
        assert path is not None
        mask = index_mask(path)
        if mask.shape != prediction.size:
            sizes = [f"{width} x {height}" for height, width in (mask.shape, prediction.size)]
            raise ValueError(f"{path} has {sizes[0]} pixels, and its image {sizes[1]}")
        known = mask != IGNORED
        if known.any() and int(mask[known].max()) >= len(self.classes):
            raise ValueError(
                f"{path} holds the label {int(mask[known].max())}, and the network has {len(self.classes)} classes, 0 "
                f"to {len(self.classes) - 1}; unlabelled pixels are 255"
            )
        of_scale = prediction.scaled.probabilities
        assert of_scale is not None
        # As the labels: each pixel has the probabilities of the one of the network that is nearest to it.
        full = np.stack([enlarged(one, prediction.size) for one in of_scale])
        logits = torch.from_numpy(full)[None].clamp(min=torch.finfo(torch.float32).tiny).log()
        labels = torch.from_numpy(prediction.labels.astype(np.int64))[None]
        batch = Predicted(logits, labels, torch.from_numpy(mask.astype(np.int64))[None], len(self.classes), IGNORED)
        used = [name for name, of in PER_IMAGE.items() if of.applies(len(self.classes), detailed=True)]
        row = {name: PER_IMAGE[name].compute(batch)[0].numpy() for name in used if name not in LEFT_OUT}
        place = self._part(item.name)
        place.parent.mkdir(parents=True, exist_ok=True)
        save_npz(place, **row)

    def _part(self, name: str) -> Path:
        return self.out / ".scores" / f"{name}.npz"

    def finish(self, names: Sequence[str]) -> tuple[str, float]:
        """Writes per_image.npz, scores.csv and scores.md, with what each score is; returns the table and the mIoU."""
        parts = []
        for name in names:
            with np.load(self._part(name), allow_pickle=False) as stored:
                parts.append(dict(stored))
        arrays = {key: np.stack([part[key] for part in parts]) for key in parts[0]}
        groups = [self.groups.get(name, name) for name in names]
        save_npz(self.out / "per_image.npz", names=np.array(names), groups=np.array(groups), **arrays)
        rows, miou = self._rows(arrays)
        write_atomic(self.out / "scores.csv", _csv(rows))
        table = _markdown(rows, len(names), int((arrays["confusion"].sum((1, 2)) > 0).sum()))
        titles = {title for title, *_ in rows}
        meanings = [f"- {one.meaning}" for one in numbers().values() if one.title in titles and one.meaning]
        write_atomic(self.out / "scores.md", "\n".join([table, *meanings, ""]))
        return table, miou

    def _rows(self, arrays: Mapping[str, NDArray[Any]]) -> tuple[list[tuple[str, str, float, str]], float]:
        """What is scored, of which class, the value and its unit."""
        confusion = arrays["confusion"].astype(np.int64).sum(0)
        values = scores(confusion)
        reduced: dict[str, float] = {}
        labelled = arrays["confusion"].sum((1, 2)) > 0
        for name, array in arrays.items():
            entry = PER_IMAGE[name]
            reduced |= entry.reduce(array.sum(0) if entry.summed else array[labelled], confusion)
        rows = []
        for name, number in (SCORES | errors() | SIZES | ASKED).items():
            if name in reduced:
                rows.append((number.title, "", reduced[name] * number.unit.factor, number.unit.sign))
        for key, title in OF_CLASS.items():
            if key in values:
                of_class = zip(self.classes, values[key], strict=True)
                rows += [(title, name, 100 * float(value), "%") for name, value in of_class]
        return rows, float(values["miou"])


def index_mask(path: Path) -> NDArray[np.uint8]:
    """(H, W) labels; ValueError for a mask that is no 8-bit index image, whose values would become other labels."""
    with readable(str(path)):
        try:
            with Image.open(path) as image:
                mode = image.mode
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{path} is no image: {error}") from error
    if mode not in ("P", "L"):
        raise ValueError(
            f"{path} is an image of mode {mode}, and a mask has labels of 8 bits (mode P or L): `experiments.check DIR "
            "--fix OUT` writes them of colours and other values"
        )
    return read_mask(path)


def _csv(rows: Sequence[tuple[str, str, float, str]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["score", "class", "value", "unit"])
    writer.writerows([s, c, "" if np.isnan(v) else f"{v:.4f}", u] for s, c, v, u in rows)
    return buffer.getvalue()


def _markdown(rows: Sequence[tuple[str, str, float, str]], images: int, labelled: int) -> str:
    overall = [f"| {s} ({u}) | {_number(v)} |" for s, c, v, u in rows if not c]
    titles = list(dict.fromkeys(s for s, c, *_ in rows if c))
    of_class: dict[str, dict[str, float]] = {}
    for score, name, value, _ in rows:
        if name:
            of_class.setdefault(name, {})[score] = value
    lines = [f"{images} images, {labelled} of them with labels, at the size of the masks.", ""]
    lines += ["| score | |", "|---|---:|", *overall, ""]
    lines += [f"| class | {' | '.join(f'{t} (%)' for t in titles)} |", f"|---|{'---:|' * len(titles)}"]
    for name, values in of_class.items():
        safe = name.replace("|", "\\|")
        lines.append(f"| {safe} | {' | '.join(_number(values.get(t, np.nan)) for t in titles)} |")
    return "\n".join([*lines, ""])


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.2f}"


def compare(here: Path, other: Path, classes: Sequence[str]) -> str:
    """By how much the mIoU of this folder is above that of another one, of the same images, in a sentence.

    The interval is by the jackknife over groups of images: it speaks of these two networks on other such images, and
    not of other seeds. Raises FileNotFoundError or ValueError for a folder without scores or with other images.
    """
    stored = {}
    for folder in (here, other):
        path = folder / "per_image.npz"
        if not path.is_file():
            raise FileNotFoundError(
                f"--compare {folder} has no per_image.npz: predict into it with --score MASKS first"
            )
        fields = {
            name: replace(array, optional=array.optional or name in LEFT_OUT) for name, array in per_image().items()
        }
        arrays = Npz(path, fields, {"C": len(classes)}, MOST_IMAGES)
        stored[folder] = (arrays.texts("names"), arrays.texts("groups"), arrays["confusion"])
    (names, groups, mine), (their_names, _, theirs) = stored[here], stored[other]
    if sorted(names) != sorted(their_names):
        raise ValueError(f"--compare {other} has scores of other images than {here}: predict the same ones")
    theirs = theirs[[their_names.index(name) for name in names]]
    same = bool((mine.sum(2) == theirs.sum(2)).all())
    if not same:
        raise ValueError(f"--compare {other} was scored on other masks than {here}: give both the same --score")
    values, images = score_images({"here": {0: mine}, "other": {0: theirs}}, groups, "miou", classes)
    difference = 100 * (values["here", 0] - values["other", 0])
    told = (
        f"mIoU {100 * values['here', 0]:.2f} % here, {100 * values['other', 0]:.2f} % in {other}: a difference of "
        f"{difference:+.2f} points"
    )
    family = judge_networks(values, images, {"difference": {"here": 1.0, "other": -1.0}})
    row = None if family is None else family.rows["difference"]
    if row is None or row.reason:
        return f"{told} on these images; of others nothing can be said: {images.reason if row is None else row.reason}"
    return (
        f"{told} [{100 * row.low:.2f}, {100 * row.high:.2f}], 95 % interval by the jackknife over "
        f"{len(images.sizes)} groups of images: of these two networks on other such images, not of other seeds"
    )
