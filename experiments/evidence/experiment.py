"""An experiment as it lies on the disk: its plan, its finished cells, and how they compare.

Every number comes from what the cells have stored of the test images, so it can be computed again without training.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.evidence import schema
from experiments.evidence.arrays import DamagedError
from experiments.evidence.cell import Cell, read_cell
from experiments.evidence.deviations import deviations, other_settings
from experiments.evidence.estimate import Estimate, estimate, paired_difference
from experiments.evidence.factorial import Effect, Levels, level_words, refuse_crossing, starred
from experiments.evidence.family import Family, Images, Place, Row, judge_networks, judge_scores, score_images
from experiments.evidence.spread import Spread, spread
from experiments.evidence.sums import Counts

PICTURES = 6  # worst and best images shown, of each kind
OTHER_IMAGES = "Not all cells were scored on the same test images: their differences are not only the variants'."
LOG_TAIL = 2**16  # bytes at the end of a log, whose last line is shown


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
class OneFactorStep:
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
        """Images to look at: fixed ones, then up to `PICTURES` that variants are worst at, then as many of the best.

        By the mIoU of the image alone, mean over the variants: the worst from the lowest, the best from the highest.
        """
        shown = {name: cells[min(cells)] for name, cells in self.cells.items() if cells}
        kinds: dict[str, set[str]] = {}
        given: dict[str, tuple[NDArray[np.uint8], NDArray[np.uint8]]] = {}
        predicted: dict[str, dict[str, NDArray[np.uint8]]] = {}
        for variant, cell in shown.items():
            arrays = cell.samples()
            stored_kinds = arrays.get("kinds")
            for i, name in enumerate(schema.printable(str(name)) for name in arrays["names"]):
                if name not in given:
                    given[name] = (arrays[f"image_{i}"], arrays[f"mask_{i}"])
                kinds.setdefault(name, set()).update(
                    ["fixed"] if stored_kinds is None else str(stored_kinds[i]).split()
                )
                labels = arrays[f"prediction_{i}"]
                if labels.shape != given[name][1].shape:
                    raise DamagedError(
                        f"{cell.folder / 'samples.npz'}: prediction_{i} must be as large as the mask of other "
                        f"variants, {given[name][1].shape}, got {labels.shape}: delete {cell.folder} and run the "
                        "experiment again"
                    )
                predicted.setdefault(name, {})[variant] = labels
        mious = {
            name: {v: float(c.image_miou[c.image_names.index(name)]) for v, c in shown.items() if name in c.image_names}
            for name in given
        }
        mean = {name: float(np.mean(list(values.values()) or [math.nan])) for name, values in mious.items()}
        order = [name for name, words in kinds.items() if "fixed" in words]
        # What is worst for one variant may be best for another: the mean tells which an image is, and none is both.
        ranked = sorted((name for name, words in kinds.items() if words & {"worst", "best"}), key=mean.__getitem__)
        most = min(PICTURES, len(ranked) // 2)
        for name in ranked:
            kinds[name] -= {"worst", "best"}
        for kind, names in (("worst", ranked[:most]), ("best", ranked[::-1][:most])):
            for name in names:
                kinds[name].add(kind)
            order += [name for name in names if name not in order]
        pictures = []
        for name in order:
            image, mask = given[name]
            for variant, cell in shown.items():
                if variant not in predicted[name]:
                    height, width = mask.shape
                    found_labels = cell.prediction(name, (height, width))
                    if found_labels is not None:
                        predicted[name][variant] = found_labels
            of_variants = {variant: predicted[name][variant] for variant in shown if variant in predicted[name]}
            words = tuple(word for word in ("fixed", "worst", "best") if word in kinds[name])
            pictures.append(
                Picture(name, words, image, mask, of_variants, {v: mious[name].get(v, math.nan) for v in of_variants})
            )
        return pictures

    @property
    def same_images(self) -> bool:
        """Whether all cells were scored on the same test images; without it nothing can be paired by image."""
        return len({tuple(cell.image_names) for cell in self.finished()}) < 2

    @property
    def groups(self) -> list[str] | None:
        """Of each test image, the images that it errs together with; None where a cell has not stored it."""
        stored = [cell.groups for cell in self.finished()]
        return stored[0] if self.same_images and stored and all(groups == stored[0] for groups in stored) else None

    @cached_property
    def family(self) -> Family[str | Levels]:
        """All starred contrasts of the mIoU, judged together: a variant's name is its comparison with the baseline,
        levels are an effect of crossed factors."""
        settings, (scores, images) = self.plan.get("statistics", {}), self._scored
        judged = judge_scores(
            scores,
            self._weights(),
            images=images,
            separate=settings.get("variances") == "separate",
            stage=settings.get("stage"),
            bound=1.0,
        )
        if not self.same_images:
            return replace(judged, reason="not scored on the same images")
        some = self.groups is None and any(cell.groups for cell in self.finished())
        return replace(judged, reason="cells differ in their groups of images") if some else judged

    @cached_property
    def networks(self) -> Family[str | Levels] | None:
        """The same contrasts of the very networks that were trained; None without groups of images enough."""
        return judge_networks(*self._scored, self._weights())

    @cached_property
    def _scored(self) -> tuple[dict[Place, float], Images]:
        """The mIoU of each finished cell, with and without each group of images."""
        return score_images(self.counts(), self.groups, "miou", self.plan["class_names"])

    @cached_property
    def spread(self) -> Spread | None:
        """Of the mIoU over seeds."""
        return spread(self.scores("miou"))

    @property
    def margin(self) -> float | None:
        """Points of mIoU within which two variants count as equivalent, where the plan has one."""
        margin: float | None = self.plan.get("statistics", {}).get("margin")
        return margin

    def scores(self, score: str) -> dict[tuple[str, int], float]:
        """Of each finished cell, by variant and seed."""
        return {(name, seed): cell.scores[score] for name, cells in self.cells.items() for seed, cell in cells.items()}

    def _weights(self) -> dict[str | Levels, dict[str, float]]:
        """Of the variants, in each contrast of the family."""
        return starred(self.levels(), self.plan["baseline"])

    @property
    def comparisons(self) -> dict[str, Row]:
        """Each variant minus the baseline, mIoU in [0, 1]."""
        return {name: row for name, row in self.family.rows.items() if isinstance(name, str)}

    @property
    def no_effects(self) -> str:
        """Why several factors have no effects on the mIoU; empty where they have, and for a single factor."""
        if len(self.plan["factors"]) < 2:
            return ""
        return refuse_crossing(self.levels())

    @property
    def effects(self) -> list[Effect]:
        """Effects of the factors on the mIoU; none for a single factor or a design that is not fully crossed."""
        of_baseline = self.levels()[self.plan["baseline"]]
        return [
            Effect(dict(key), {factor: of_baseline[factor] for factor, _ in key}, row)
            for key, row in self.family.rows.items()
            if not isinstance(key, str)
        ]

    def levels(self) -> dict[str, dict[str, str]]:
        """By variant, then factor."""
        return level_words(self.plan)

    def counts(self) -> dict[str, dict[int, Counts]]:
        """What the statistics need of each finished cell, by variant and seed."""
        return {name: {seed: cell.counts for seed, cell in cells.items()} for name, cells in self.cells.items()}


def one_factor_steps(plan: Mapping[str, Any]) -> list[OneFactorStep]:
    """Every pair of variants where one factor leaves the baseline's level and all others stay, whatever their level."""
    levels: dict[str, dict[str, str]] = {name: variant["levels"] for name, variant in plan["variants"].items()}
    baseline = levels[plan["baseline"]]
    steps = []
    for factor in plan["factors"]:
        for variant, of_variant in levels.items():
            wanted = of_variant | {factor: baseline[factor]}
            reference = next((name for name, other in levels.items() if other == wanted), None)
            if reference not in (None, variant):
                at = {name: level for name, level in of_variant.items() if name != factor}
                steps.append(OneFactorStep(factor, reference, variant, at))
    return steps


def load_experiment(folder: Path) -> Experiment:
    """Reads plan.json and every finished cell it plans.

    Raises FileNotFoundError where there is no experiment, ValueError for a file that cannot be read.
    """
    if not (folder / "plan.json").is_file():
        below = sorted(str(path.parent) for path in folder.glob("*/plan.json"))
        here = f"experiments below it: {', '.join(below)}" if below else "and there is none in the folders below it"
        raise FileNotFoundError(
            f"{folder} holds no experiment: expected {folder / 'plan.json'}, {here}. "
            "An experiment writes it when it starts, for example python -m experiments.ablate_upsampling"
        )
    plan = schema.read(folder / "plan.json", schema.StoredPlan)
    cells: dict[str, dict[int, Cell]] = {variant: {} for variant in plan["variants"]}
    missing = []
    for variant in plan["variants"]:
        for seed in plan["seeds"]:
            cell = folder / variant / f"seed{seed}"
            state = state_of(folder, cell, plan, variant)
            if state:
                missing.append(Missing(variant, seed, state))
            else:
                cells[variant][seed] = read_cell(cell, variant, seed, plan["class_names"])
    return Experiment(folder, plan, cells, missing, _deviations(folder, plan, cells))


def flatten(settings: Any, prefix: str = "") -> dict[str, str]:
    """Nested settings as {"hparams.width": "16"}."""
    if not isinstance(settings, Mapping):
        return {prefix: settings if isinstance(settings, str) else json.dumps(settings)}
    flat: dict[str, str] = {}
    for key, value in settings.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def state_of(folder: Path, cell: Path, plan: dict[str, Any], variant: str) -> str:
    """Why a cell has no result of this plan; empty for a finished one."""
    if (cell / "result.json").is_file():
        status = schema.read(cell / "result.json", schema.Result)["status"]
        if status != "done":
            return f"status {status}"
        # A folder can hold cells of an earlier call with other settings, say fewer epochs: never mix the two.
        other = other_settings(plan, variant, schema.read(cell / "run.json", schema.RunRecord))
        return f"trained with other settings ({'; '.join(other)})" if other else ""
    log = cell / "log.txt"
    if log.is_file():
        return f"started, not finished; {log.relative_to(folder)} ends: {_last_line(log)[:200]}"
    return "started, not finished" if cell.is_dir() else "not started"


def _last_line(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_TAIL))
        text = file.read(LOG_TAIL).decode("utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines()]
    return schema.printable(next((line for line in reversed(lines) if line), ""))


def _deviations(folder: Path, plan: dict[str, Any], cells: dict[str, dict[int, Cell]]) -> list[str]:
    sentences = []
    if len({tuple(cell.image_names) for of_variant in cells.values() for cell in of_variant.values()}) > 1:
        sentences.append(OTHER_IMAGES)
    planned = {folder / variant / f"seed{seed}" for variant in plan["variants"] for seed in plan["seeds"]}
    stored = {path.parent for path in folder.glob("*/seed*/result.json") if path.parent.name[4:].isdecimal()}
    not_compared = {*plan.get("not_compared", []), *plan.get("stages", {})}  # what the variants are made from
    stray = [
        str(p)
        for p in (path.relative_to(folder) for path in sorted(stored - planned))
        if p.parts[0] not in not_compared
    ]
    if stray:
        more = f" and {len(stray) - 6} more" if len(stray) > 6 else ""
        sentences.append(
            f"Finished cells that the plan does not name are left out: {', '.join(stray[:6])}{more}. Start the "
            "experiment with their seeds, too, to take them in."
        )
    return sentences + deviations(plan, cells)
