"""An experiment as it lies on the disk: its plan and its finished cells, with the scores of their stored matrices.

A cell is one variant trained with one seed. Its scores come from the stored matrices of the test images, so every
number can be computed again without training.
"""

import csv
import io
import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from experiments.deviations import deviations, other_settings
from experiments.factorial import Effect, factorial_effects, refuse_crossing
from experiments.files import PREDICTION, read_json
from experiments.statistics import Compared, Estimate, compare, estimate, paired_difference
from lightning_modules.components.calibration import BINS, calibration_error
from lightning_modules.components.metrics import scores
from lightning_modules.components.segments import HALLUCINATED, MISSED, PREDICTED, TRUE
from lightning_modules.components.trimap import WIDTH, trimap_curve

PERCENT, PPM = ("%", 100.0), ("ppm", 1e6)
# What a table shows, with the unit it is printed in. A trained network's checkerboard is a few millionths of its power.
SCORES = {
    "miou": ("mIoU", PERCENT),
    "boundary_f1": ("boundary F1", PERCENT),
    "checkerboard": ("checkerboard energy", PPM),
    "pixel_acc": ("pixel accuracy", PERCENT),
}
BOUNDARY = 3  # pixels: as far from a true boundary an error is counted as one at it
# How and where the predictions err. Those of segments and calibration need what cells of earlier versions did not store.
ERRORS = {
    "wrong": ("wrong pixels", PERCENT),
    "boundary_errors": (f"of them within {BOUNDARY} px of a boundary", PERCENT),
    "missed": ("missed segments", PERCENT),
    "hallucinated": ("hallucinated segments", PERCENT),
    "ece": ("calibration error", PERCENT),
    "overconfidence": ("overconfidence", PERCENT),
}
PICTURES = 6  # of the images that a variant is worst or best at, a report shows as many of each kind
PLAN_KEYS = (
    *("experiment", "question", "baseline", "factors", "variants", "seeds", "data", "data_note", "scale_note"),
    *("common", "class_names", "palette", "command", "device", "commit"),
)


@dataclass(frozen=True)
class Cell:
    """One variant trained with one seed, scored on n test images of C classes."""

    variant: str
    seed: int
    folder: Path
    run: dict[str, Any]
    result: dict[str, Any]
    environment: dict[str, Any]
    class_names: list[str]
    image_names: list[str]
    confusion: NDArray[np.int64]  # (n, C, C), rows are the truth
    boundary_f1: NDArray[np.float64]  # (n, C), NaN for a class absent from the truth
    checkerboard: NDArray[np.float64]  # (n,)
    # Of components.trimap (n, width, C, C), .calibration (n, bins, 3) and .segments (n, C, 4); None where not stored.
    trimap: NDArray[np.int64] | None = None
    calibration: NDArray[np.float64] | None = None
    segments: NDArray[np.int64] | None = None

    @cached_property
    def scores(self) -> dict[str, float]:
        """Scores in [0, 1] by their logged names: miou, pixel_acc, boundary_f1, checkerboard, iou/<class>, those of
        `ERRORS`, and trimap/<w>, the mIoU within w pixels of a true boundary; NaN where it was not stored.

        IoU and accuracy are of the matrix summed over all images. Boundary F1 is the mean over the classes of an
        image, then over images; checkerboard energy the mean over images. An image without a labelled pixel counts
        nowhere.
        """
        of_all = scores(self.confusion.sum(axis=0))
        labelled = self.confusion.sum(axis=(1, 2)) > 0
        per_image = [np.nanmean(row) for row in self.boundary_f1[labelled] if not np.isnan(row).all()]
        values = {name: float(of_all[name]) for name in ("miou", "pixel_acc", "macc", "fwiou")}
        values["boundary_f1"] = float(np.mean(per_image)) if per_image else math.nan
        energies = self.checkerboard[labelled & ~np.isnan(self.checkerboard)]  # NaN for an image too small for it
        values["checkerboard"] = float(energies.mean()) if len(energies) else math.nan
        values |= {f"iou/{name}": float(iou) for name, iou in zip(self.class_names, of_all["iou"], strict=True)}
        near = np.full(WIDTH, math.nan) if self.trimap is None else trimap_curve(self.trimap.sum(axis=0))
        values |= {f"trimap/{width}": float(miou) for width, miou in enumerate(near, start=1)}
        return values | self._errors()

    def _errors(self) -> dict[str, float]:
        """The scores of `ERRORS`: shares of all labelled pixels, of the wrong ones, of the segments of all classes."""
        confusion = self.confusion.sum(axis=0)
        wrong = int(confusion.sum() - confusion.trace())
        values = dict.fromkeys(ERRORS, math.nan) | {"wrong": _share(wrong, int(confusion.sum()))}
        if self.trimap is not None:
            near = self.trimap[:, :BOUNDARY].sum(axis=(0, 1))
            values["boundary_errors"] = _share(int(near.sum() - near.trace()), wrong)
        if self.segments is not None:
            counts = self.segments.sum(axis=(0, 1))
            values["missed"] = _share(counts[MISSED], counts[TRUE])
            values["hallucinated"] = _share(counts[HALLUCINATED], counts[PREDICTED])
        if self.calibration is not None:
            found = calibration_error(self.calibration.sum(axis=0))
            values["ece"], values["overconfidence"] = (float(value) for value in found)
        return values

    @cached_property
    def image_miou(self) -> NDArray[np.float64]:
        """The mIoU of each test image alone (n,), in [0, 1]; NaN for one without a labelled pixel."""
        return scores(self.confusion)["miou"]

    def curve(self, column: str) -> dict[int, float]:
        """A column of metrics.csv by epoch; epochs without a value are left out."""
        path = self.folder / "metrics.csv"
        try:
            with path.open(newline="", encoding="utf-8") as file:
                rows = [(row.get("epoch"), row.get(column)) for row in csv.DictReader(file)]
            return {int(float(epoch)): float(value) for epoch, value in rows if epoch and value}
        except (OSError, ValueError, csv.Error) as error:
            raise _unreadable(path, error) from error

    def samples(self) -> dict[str, NDArray[Any]]:
        """The arrays of samples.npz, see `callbacks.sampled`; files of earlier versions have no `kinds`, all are fixed."""
        return _arrays(self.folder / "samples.npz")

    def prediction(self, name: str) -> NDArray[np.uint8] | None:
        """The predicted labels (H, W) of the test image `name`; None where they were not stored."""
        path = self.folder / "predictions.zip"
        if name not in self.image_names or not path.is_file():
            return None
        try:
            with zipfile.ZipFile(path) as archive:
                picture = archive.read(PREDICTION.format(self.image_names.index(name)))
            return np.array(Image.open(io.BytesIO(picture)))
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise _unreadable(path, error) from error


@dataclass(frozen=True)
class Missing:
    """A planned cell without a result."""

    variant: str
    seed: int
    state: str  # what is known of it, with the log's path where there is one


@dataclass(frozen=True)
class Picture:
    """A test image with the predictions of the lowest finished seed of each variant; a variant whose prediction was
    not stored is in neither of the two."""

    name: str
    kinds: tuple[str, ...]  # of "fixed", "worst", "best"
    image: NDArray[np.uint8]  # (H, W, 3)
    mask: NDArray[np.uint8]  # (H, W), labels
    predictions: dict[str, NDArray[np.uint8]]  # by variant, (H, W)
    mious: dict[str, float]  # by variant: of this image alone, in [0, 1]


@dataclass(frozen=True)
class Comparison:
    """Two variants that differ in one factor alone."""

    factor: str
    reference: str  # the variant with the baseline's level of the factor
    variant: str
    at: dict[str, str]  # the levels of the other factors, which both share


@dataclass(frozen=True)
class Experiment:
    """The plan of an experiment and its finished cells, variants and seeds in the plan's order."""

    folder: Path
    plan: dict[str, Any]
    cells: dict[str, dict[int, Cell]]  # by variant, then seed; a variant without a finished cell has an empty dict
    missing: list[Missing]
    deviations: list[str]  # what makes the cells less comparable than planned, one sentence each

    def values(self, variant: str, score: str) -> dict[int, float]:
        """The score of every finished seed of the variant."""
        return {seed: cell.scores[score] for seed, cell in self.cells[variant].items()}

    def estimate(self, variant: str, score: str) -> Estimate:
        return estimate(list(self.values(variant, score).values()))

    def difference(self, variant: str, reference: str, score: str) -> Estimate:
        """variant - reference, paired by seed: the mean of the differences, over the seeds that both finished."""
        return paired_difference(self.values(variant, score), self.values(reference, score))

    def finished(self) -> list[Cell]:
        return [cell for cells in self.cells.values() for cell in cells.values()]

    @cached_property
    def pictures(self) -> list[Picture]:
        """Images to look at: fixed ones, then up to `PICTURES` of those that some variant is worst at, from the lowest
        mIoU, and as many it is best at, from the highest; by the mIoU of the image alone, mean over the variants."""
        shown = {name: cells[min(cells)] for name, cells in self.cells.items() if cells}
        kinds: dict[str, set[str]] = {}
        given: dict[str, tuple[NDArray[np.uint8], NDArray[np.uint8]]] = {}
        predicted: dict[str, dict[str, NDArray[np.uint8]]] = {}
        for variant, cell in shown.items():
            arrays = cell.samples()
            for i, name in enumerate(map(str, arrays["names"])):
                given.setdefault(name, (arrays[f"image_{i}"], arrays[f"mask_{i}"]))
                kinds.setdefault(name, set()).update(
                    str(arrays["kinds"][i]).split() if "kinds" in arrays else ["fixed"]
                )
                predicted.setdefault(name, {})[variant] = arrays[f"prediction_{i}"]
        mious = {
            name: {v: float(c.image_miou[c.image_names.index(name)]) for v, c in shown.items() if name in c.image_names}
            for name in given
        }
        mean = {name: float(np.mean(list(values.values()) or [math.nan])) for name, values in mious.items()}
        order = [name for name, words in kinds.items() if "fixed" in words]
        for kind, sign in (("worst", 1), ("best", -1)):
            found = sorted((name for name, words in kinds.items() if kind in words), key=lambda n: sign * mean[n])
            for name in found[PICTURES:]:
                kinds[name].discard(kind)
            order += [name for name in found[:PICTURES] if name not in order]
        pictures = []
        for name in order:
            image, mask = given[name]
            for variant, cell in shown.items():
                if variant not in predicted[name] and (labels := cell.prediction(name)) is not None:
                    predicted[name][variant] = labels
            own = {variant: predicted[name][variant] for variant in shown if variant in predicted[name]}
            words = tuple(word for word in ("fixed", "worst", "best") if word in kinds[name])
            pictures.append(Picture(name, words, image, mask, own, {v: mious[name].get(v, math.nan) for v in own}))
        return pictures

    @property
    def same_images(self) -> bool:
        """Whether all cells were scored on the same test images; without it nothing can be paired by image."""
        return len({tuple(cell.image_names) for cell in self.finished()}) < 2

    @cached_property
    def compared(self) -> Compared | None:
        """The mIoU of all variants against the baseline; None where not all were scored on the same images."""
        if not self.same_images:
            return None
        return compare(self._confusions(), self.plan["baseline"], class_names=self.plan["class_names"])

    @property
    def no_effects(self) -> str:
        """Why several factors have no effects on the mIoU; empty where they have, and for a single factor."""
        if len(self.plan["factors"]) < 2:
            return ""
        return refuse_crossing(self._levels()) or ("" if self.same_images else "not scored on the same test images")

    @cached_property
    def effects(self) -> list[Effect]:
        """Effects of the factors on the mIoU; none for a single factor or a design that is not fully crossed."""
        if len(self.plan["factors"]) < 2 or self.no_effects:
            return []
        levels = self._levels()
        names = self.plan["class_names"]
        return factorial_effects(self._confusions(), levels, levels[self.plan["baseline"]], class_names=names)

    def _levels(self) -> dict[str, dict[str, str]]:
        """By variant, then factor."""
        return {
            name: {factor: str(level) for factor, level in variant["levels"].items()}
            for name, variant in self.plan["variants"].items()
        }

    def _confusions(self) -> dict[str, dict[int, NDArray[np.int64]]]:
        return {name: {seed: cell.confusion for seed, cell in cells.items()} for name, cells in self.cells.items()}


def comparisons(plan: Mapping[str, Any]) -> list[Comparison]:
    """Every pair of variants where one factor leaves the baseline's level and all others stay, whatever their level."""
    levels: dict[str, dict[str, str]] = {name: variant["levels"] for name, variant in plan["variants"].items()}
    baseline = levels[plan["baseline"]]
    found = []
    for factor in plan["factors"]:
        for variant, own in levels.items():
            wanted = own | {factor: baseline[factor]}
            reference = next((name for name, other in levels.items() if other == wanted), None)
            if reference not in (None, variant):
                at = {name: level for name, level in own.items() if name != factor}
                found.append(Comparison(factor, reference, variant, at))
    return found


def load(folder: Path) -> Experiment:
    """Reads plan.json and every finished cell it plans.

    Raises FileNotFoundError where there is no experiment, ValueError for a file that cannot be read.
    """
    if not (folder / "plan.json").is_file():
        known = sorted(str(path.parent) for path in folder.glob("*/plan.json"))
        here = f"experiments below it: {', '.join(known)}" if known else "and there is none in the folders below it"
        raise FileNotFoundError(
            f"{folder} holds no experiment: expected {folder / 'plan.json'}, {here}. "
            "An experiment writes it when it starts, for example python -m experiments.ablate_upsampling"
        )
    plan = read_json(folder / "plan.json")
    absent = [key for key in PLAN_KEYS if key not in plan]
    if absent or plan["baseline"] not in plan["variants"]:
        wrong = f"lacks {', '.join(absent)}" if absent else f"names no variant {plan['baseline']!r}, its baseline"
        raise ValueError(f"{folder / 'plan.json'} {wrong}: start the experiment again, which writes it anew")
    cells: dict[str, dict[int, Cell]] = {variant: {} for variant in plan["variants"]}
    missing = []
    for variant in plan["variants"]:
        for seed in plan["seeds"]:
            cell = folder / variant / f"seed{seed}"
            state = _state(folder, cell, plan, variant)
            if state:
                missing.append(Missing(variant, seed, state))
            else:
                cells[variant][seed] = _load_cell(cell, variant, seed, plan["class_names"])
    return Experiment(folder, plan, cells, missing, _deviations(folder, plan, cells))


def flatten(settings: Any, prefix: str = "") -> dict[str, str]:
    """Nested settings as {"hparams.width": "16"}."""
    if not isinstance(settings, Mapping):
        return {prefix: settings if isinstance(settings, str) else json.dumps(settings)}
    flat: dict[str, str] = {}
    for key, value in settings.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _state(folder: Path, cell: Path, plan: dict[str, Any], variant: str) -> str:
    """Why a cell has no result of this plan; empty for a finished one."""
    if (cell / "result.json").is_file():
        status = read_json(cell / "result.json").get("status")
        if status != "done":
            return f"status {status}"
        # A folder can hold cells of an earlier call with other settings, say fewer epochs: never mix the two.
        other = other_settings(plan, variant, read_json(cell / "run.json"))
        return f"trained with other settings ({'; '.join(other)})" if other else ""
    log = cell / "log.txt"
    if log.is_file():
        lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
        last = next((line for line in reversed(lines) if line), "")
        return f"started, not finished; {log.relative_to(folder)} ends: {last[:200]}"
    return "started, not finished" if cell.is_dir() else "not started"


def _load_cell(folder: Path, variant: str, seed: int, class_names: list[str]) -> Cell:
    arrays, classes = _arrays(folder / "per_image.npz"), len(class_names)
    expected: dict[str, tuple[int, ...]] = {
        "names": (-1,),
        "confusion": (-1, classes, classes),
        "boundary_f1": (-1, classes),
        "checkerboard": (-1,),
    }
    # Not in files of earlier versions, and the trimap not of more than base.MOST_TRIMAP_CLASSES.
    later: dict[str, tuple[int, ...]] = {"trimap": (-1, WIDTH, classes, classes)}
    later |= {"calibration": (-1, BINS, 3), "segments": (-1, classes, 4)}
    expected |= {key: shape for key, shape in later.items() if key in arrays}
    images = len(arrays.get("names", ()))
    for key, (_, *rest) in expected.items():
        shape = arrays[key].shape if key in arrays else None
        if shape != (images, *rest) or not images:
            raise ValueError(
                f"{folder / 'per_image.npz'}: {key} must have the shape {('n', *rest)} for n images, got {shape}: "
                f"delete {folder} and run the experiment again"
            )
    return Cell(
        *(variant, seed, folder, read_json(folder / "run.json"), read_json(folder / "result.json")),
        *(read_json(folder / "environment.json"), class_names),
        image_names=[str(name) for name in arrays["names"]],
        confusion=arrays["confusion"],
        boundary_f1=arrays["boundary_f1"],
        checkerboard=arrays["checkerboard"],
        trimap=arrays.get("trimap"),
        calibration=arrays.get("calibration"),
        segments=arrays.get("segments"),
    )


def _deviations(folder: Path, plan: dict[str, Any], cells: dict[str, dict[int, Cell]]) -> list[str]:
    found = []
    if len({tuple(cell.image_names) for of_variant in cells.values() for cell in of_variant.values()}) > 1:
        found.append("Not all cells were scored on the same test images: their differences are not only the variants'.")
    planned = {folder / variant / f"seed{seed}" for variant in plan["variants"] for seed in plan["seeds"]}
    stored = {path.parent for path in folder.glob("*/seed*/result.json") if path.parent.name[4:].isdigit()}
    known = plan.get("not_compared", [])  # folders of what the variants are made from
    stray = [str(p) for p in (path.relative_to(folder) for path in sorted(stored - planned)) if p.parts[0] not in known]
    if stray:
        more = f" and {len(stray) - 6} more" if len(stray) > 6 else ""
        found.append(f"Finished cells that the plan does not name are left out: {', '.join(stray[:6])}{more}.")
    return found + deviations(plan, cells)


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            return dict(stored)
    except Exception as error:  # numpy raises OSError, ValueError, BadZipFile, zlib.error, EOFError by what is broken
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} cannot be read ({error}): delete {path.parent} and run the experiment again")


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else math.nan
