"""Three variants of three seeds made by hand, with everything that a figure shows."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.evidence.experiment import Experiment, load_experiment
from experiments.reports.figures import FIGURES, drawing
from experiments.reports.figures.forms import WIDE, Form
from experiments.shell.files import write_atomic, write_json

CLASSES = ["$road$ & _x_", "<b>car</b>", "in no image"]
SIDES = (24, 20)
IMAGES = 8
RIGHT = {"base": (80, 82, 84), "other $1$": (86, 86, 92), "third": (78, 82, 80)}  # pixels in 100, by seed


def confusions(right: int, images: int = IMAGES) -> np.ndarray:
    """Of each image: two classes of 100 pixels each, as many right; some images are a little harder."""
    found = np.zeros((images, 3, 3), dtype=np.int64)
    for image in range(images):
        kept = right + (image % 2 * 2 - 1)
        found[image, :2, :2] = [[kept, 100 - kept], [100 - kept, kept]]
    return found


def save_npz(path: Path, **arrays: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)  # type: ignore[arg-type]


def write_plan(folder: Path, names: Sequence[str], seeds: int, classes: Sequence[str]) -> None:
    plan: dict[str, Any] = {"experiment": "x", "question": "?", "baseline": names[0], "factors": {}}
    plan |= {"seeds": list(range(seeds)), "data": "d", "data_note": "", "scale_note": "", "class_names": list(classes)}
    plan |= {"palette": [[10 * k % 256, 5 * k % 256, 200 - k] for k in range(len(classes))], "common": {}}
    plan |= {"device": "CPU", "command": "c", "commit": "0"}
    cost = {"levels": {}, "parameters": 1, "gmac": 1.0, "step_ratio": 1.0, "peak_memory_mb": 1.0}
    plan["variants"] = {
        name: {**cost, "gmac": 1.0 + number, "step_seconds": 0.1 * (number + 1)} for number, name in enumerate(names)
    }
    write_atomic(folder / "plan.json", json.dumps(plan))


def write_cell(folder: Path, confusion: np.ndarray, *, earlier: bool = False, seed: int = 0) -> None:
    """A finished cell with everything that a cell stores, or with what an earlier version did."""
    images, classes = confusion.shape[:2]
    rng = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {
        "names": np.array([f"{image}.png" for image in range(images)]),
        "confusion": confusion,
        "boundary_f1": np.full((images, classes), 0.5),
        "checkerboard": np.full(images, 1e-4 * (1 + seed)),
    }
    samples: dict[str, np.ndarray] = {"logits": rng.normal(size=(classes, *SIDES)).astype(np.float16)}
    samples |= {"initial_logits": samples["logits"][::-1], "names": np.array(["0.png", "1.png"])}
    if not earlier:
        bands = np.zeros((images, 20, classes, classes), dtype=np.int64)
        bands[:, 2] = confusion // 2  # half of all, also of the wrong ones, 2 to 3 pixels from a boundary
        calibration = np.zeros((images, 15, 3))
        calibration[:, 14] = [1000, 970, 800 + 10 * seed]
        calibration[:, 7] = [500, 250, 300]
        calibration[:, 0] = [0.5, 0.01, 0.5]  # too few to be drawn
        segments = np.zeros((images, classes, 4), dtype=np.int64)
        segments[:, 0] = [10, 2, 8, 2]
        coverage = np.zeros((images, 240, 2), dtype=np.int64)
        coverage[:, 40], coverage[:, 90] = [100, 40], [300, 10 + seed]
        sizes = np.zeros((images, classes, 3, 2))
        sizes[:, 0] = [[4, 1], [2, 1.5], [0, 0]]
        arrays |= {"trimap": bands, "calibration": calibration, "segments": segments, "coverage": coverage}
        arrays |= {"sizes": sizes, "boundary_iou": np.full((images, classes, 2), [6 + seed, 10])}
        arrays |= {"surface": np.full((images, 5, classes), 0.75), "image_iou": np.full((images, classes), 0.625)}
        samples["kinds"] = np.array(["fixed worst", "best"])
    for index in range(2):
        mask = rng.integers(0, 2, SIDES).astype(np.uint8)
        mask[0, 0] = 255
        samples[f"image_{index}"] = rng.integers(0, 255, (*SIDES, 3), dtype=np.uint8)
        samples |= {f"mask_{index}": mask, f"prediction_{index}": np.zeros(SIDES, dtype=np.uint8) + seed % 2}
    save_npz(folder / "per_image.npz", **arrays)
    save_npz(folder / "samples.npz", **samples)
    write_atomic(folder / "metrics.csv", "epoch,step,train/loss,val/miou\n0,5,1.0,\n1,10,0.5,0.4\n")
    write_json(folder / "run.json", {})
    write_json(folder / "environment.json", {})
    write_json(folder / "result.json", {"status": "done", "seconds": 1.0, "epochs": 2})


def write_experiment(folder: Path, seeds: int = 3) -> Experiment:
    for name, right in RIGHT.items():
        for seed in range(seeds):
            write_cell(folder / name / f"seed{seed}", confusions(right[seed]), seed=seed)
    write_plan(folder, list(RIGHT), seeds, CLASSES)
    return load_experiment(folder)


def draw(experiment: Experiment, name: str, form: Form = WIDE) -> tuple[Figure, str]:
    with drawing(form):
        return FIGURES[name][0](experiment, form)


def texts(axis: Axes) -> list[str]:
    return [text.get_text() for text in axis.texts]


def labels(axis: Axes) -> list[str]:
    return [label.get_text() for label in axis.get_yticklabels()]
