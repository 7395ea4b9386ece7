"""A finished experiment made by hand: 2 x 2 variants, 3 seeds, and matrices whose IoU are round numbers."""

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.evidence.experiment import load_experiment
from experiments.reports.answer import answer
from experiments.reports.formats import to_csv, to_latex, to_markdown
from experiments.reports.page import Section
from experiments.reports.tables import make_notes, make_tables
from experiments.reports.write import warnings
from experiments.shell.files import write_atomic, write_json

PNG = b"\x89PNG of hand"
CLASSES = ["background", "<script>alert(1)</script>", "=absent_class 5%"]
MIOU = {  # percent, for the seeds 0, 1, 2
    "transposed-3+concat": (80, 82, 84),
    "nearest+concat": (86, 86, 92),
    "transposed-3+none": (60, 62, 64),
    "nearest+none": (62, 62, 62),
}


SIDES = (24, 20)  # of the images: large enough to have a checkerboard energy


def write_experiment(folder: Path, seeds: int = 3) -> None:
    variants: dict[str, Any] = {}
    for number, (name, percents) in enumerate(MIOU.items()):
        upsample, skips = name.split("+")
        variants[name] = {
            "levels": {"upsample": upsample, "skips": skips},
            "parameters": 1_250_000,
            "gmac": 1.5,
            "step_seconds": 0.1 + 0.05 * number,
            "step_ratio": 1 + 0.5 * number,
            "peak_memory_mb": 300.0,
        }
        for seed in range(seeds):
            write_cell(folder / name / f"seed{seed}", upsample, skips, seed, percents[seed])
    plan = {
        "experiment": "ablate_up_sampling",
        "question": "Transposed or resize?",
        "baseline": "transposed-3+concat",
        "factors": {"upsample": ["transposed-3", "nearest"], "skips": ["concat", "none"]},
        "variants": variants,
        "seeds": list(range(seeds)),
        "data": "shapes",
        "data_note": "Made of discs.",
        "scale_note": "CPU scale.",
        "class_names": CLASSES,
        "palette": [[0, 0, 0], [230, 159, 0], [86, 180, 233]],
        "device": "CPU",
        "common": {"trainer.max_epochs": 2, "hparams.width": 4},
        "command": "python -m experiments.x",
        "commit": "ab12",
    }
    write_atomic(folder / "plan.json", json.dumps(plan))  # in this order, which is the order of the rows


def write_cell(folder: Path, upsample: str, skips: str, seed: int, percent: int) -> None:
    """Two images; both classes have the IoU d / (d + 2 o) = percent / 100 when summed over the two."""
    d, o = percent, (100 - percent) // 2
    total = np.array([[d, o, 0], [o, d, 0], [0, 0, 0]])
    height, width = SIDES
    rng = np.random.default_rng(seed)
    mask = (np.arange(width) > width // 2) * np.ones((height, 1))
    save_npz(
        folder / "per_image.npz",
        names=np.array(["a.png", "b.png"]),
        confusion=np.stack([total // 2, total - total // 2]),
        boundary_f1=np.array([[0.5, 0.7, math.nan], [percent / 100, percent / 100, math.nan]]),
        checkerboard=np.array([1e-4, 3e-4]) * (1 + seed),
    )
    save_npz(
        folder / "samples.npz",
        names=np.array(["a.png"]),
        image_0=rng.integers(0, 255, (*SIDES, 3), dtype=np.uint8),
        mask_0=mask.astype(np.uint8),
        prediction_0=np.roll(mask, 1, axis=1).astype(np.uint8),
        logits=rng.normal(size=(3, *SIDES)).astype(np.float16),
        initial_logits=rng.normal(size=(3, *SIDES)).astype(np.float16),
    )
    rows = ["epoch,step,train/loss,val/miou", "0,5,1.0,", f"1,10,0.5,{percent / 100}"]  # no validation in epoch 0
    write_atomic(folder / "metrics.csv", "\n".join(rows) + "\n")
    hparams = {"width": 4, "upsample": upsample, "skips": skips}
    write_json(folder / "run.json", {"hparams": hparams, "trainer": {"max_epochs": 2}, "seed": seed})
    write_json(folder / "environment.json", {"commit": "ab12", "torch_threads": 1, "device": "1 x CPU"})
    write_json(folder / "result.json", {"hash": "0", "status": "done", "seconds": 3.2, "epochs": 2})


def save_npz(path: Path, **arrays: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)  # type: ignore[arg-type]


def write_tables(folder: Path) -> None:
    """The tables alone, as write_report writes them: figures and page take seconds."""
    one = section(folder, {})
    write_atomic(folder / "table.md", to_markdown([one]))
    write_atomic(folder / "table.csv", to_csv([one]))
    write_atomic(folder / "table.tex", to_latex([one]))


PLANTED = {"transposed-3+concat": 60, "nearest+concat": 60, "transposed-3+none": 40, "nearest+none": 32}  # percent


def plant(folder: Path, seeds: int = 3, images: int = 12, groups: int = 0) -> None:
    """An experiment whose mIoU are PLANTED to the digit, though every seed and every image moves them.

    `groups` of neighbouring images are stored; 0 for a version that stored none.
    """
    write_experiment(folder, seeds)
    rng = np.random.default_rng(0)
    for number, (name, percent) in enumerate(PLANTED.items()):
        # Per mille, zero on average over 3 seeds; no two variants alike, whose difference would not vary.
        offsets = [(-6, 0, 6), (6, -6, 0), (0, 6, -6), (6, 0, -6)][number]
        for seed in range(seeds):
            moved = 2 * rng.integers(1, 20, images // 2)
            right = 10 * percent + offsets[seed] + np.concatenate([moved, -moved])  # of 1000 pixels in the union
            wrong = (1000 - right) // 2
            confusion = np.zeros((images, 3, 3), dtype=np.int64)
            confusion[:, 0, 0] = confusion[:, 1, 1] = right
            confusion[:, 0, 1] = confusion[:, 1, 0] = wrong
            save_npz(
                folder / name / f"seed{seed}" / "per_image.npz",
                names=np.array([f"{image}.png" for image in range(images)]),
                confusion=confusion,
                boundary_f1=np.full((images, 3), 0.5),
                checkerboard=np.full(images, 1e-4),
                **({"groups": np.array([f"g{image * groups // images}" for image in range(images)])} if groups else {}),
            )


def change_plan(folder: Path, **changes: Any) -> None:
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    write_atomic(folder / "plan.json", json.dumps(plan | changes))


def keep(folder: Path, *variants: str) -> None:
    """Of the plan's variants these alone."""
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    change_plan(folder, variants={name: plan["variants"][name] for name in variants})


def one_factor(folder: Path) -> None:
    """Every variant is a level of one factor."""
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    variants = {name: variant | {"levels": {"network": name}} for name, variant in plan["variants"].items()}
    change_plan(folder, variants=variants, factors={"network": list(variants)})


def move(folder: Path, variant: str, seed: int, per_mille: int) -> None:
    """Adds to the mIoU of a planted cell."""
    path = folder / variant / f"seed{seed}" / "per_image.npz"
    with np.load(path) as stored:
        arrays = dict(stored)
    arrays["confusion"][:, [0, 1], [0, 1]] += per_mille
    arrays["confusion"][:, [0, 1], [1, 0]] -= per_mille // 2
    save_npz(path, **arrays)


def rows(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "table.csv").open(newline="", encoding="utf-8") as file:
        return {row["variant"]: row for row in csv.DictReader(file)}


FIGURES = {name: (PNG, f"caption of {name}") for name in ("scores", "samples", "extremes", "logits", "seeds")}


def section(folder: Path, figures: Mapping[str, tuple[bytes, str]] = FIGURES) -> Section:
    experiment = load_experiment(folder)
    tables, notes = make_tables(experiment), make_notes(experiment)
    return Section(experiment, answer(experiment), tables, notes, warnings(experiment), figures)
