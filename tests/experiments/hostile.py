"""An experiment made by hand whose names try to break a page: markup, scripts, right-to-left text, 200 letters."""

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.evidence.experiment import load_experiment
from experiments.reports.page import Section
from experiments.reports.tables import Table
from experiments.shell.files import write_atomic, write_json

BASE, IMG, LONG, UNFINISHED = "base", "<img src=x onerror=window.ran=1>", "v" * 200, "toString"
VARIANTS = [BASE, IMG, "constructor", LONG, UNFINISHED]  # the last one has no result
CLASSES = [
    "</script><script>window.ran=1</script>",
    "\u202e\u05e9\u05dc\u05d5\u05dd",
    "w" * 200,
    "$10^2$ & <b>bold</b>",
]
IMAGES = ["'\"><img src=x onerror=window.ran=1>", "b", "c"]
SIDES = (24, 40)  # height and width of the images
PALETTE = [[0, 0, 0], [230, 159, 0], [86, 180, 233], [0, 158, 115]]
RIGHT = {BASE: (80, 84), IMG: (90, 90), "constructor": (60, 64), LONG: (70, 72)}  # pixels of 100 of each class, by seed
SCORES = Table(
    "answer",
    "Scores of <i>all</i>",
    ["variant", "mIoU (%)", "difference", "p", "images"],
    [
        [BASE, "83.98 ± 2.82", "baseline", "-", "1,234"],
        [IMG, "9.10 ± 0.10", "-12.79 [-13.00, -12.00]*", "< 0.001", "98"],
        ["constructor", "-", "+0.50 [-1.00, 2.00]", "0.001", "1,000"],
        [LONG, "100.00 ± 0.00", "-2.00 [-3.00, -1.00]", "0.040", "-"],
    ],
    best=[(3, 1)],
    notes=["* a <b>note</b>"],
)


def write_hostile(folder: Path, sides: tuple[int, int] = SIDES) -> Path:
    """2 seeds of each variant but the last; validation in every second of 4 epochs."""
    variants = {
        name: {"levels": {"kind": name}, "parameters": 1000, "gmac": 0.1, "step_ratio": 1.0, "step_seconds": 0.1}
        | {"peak_memory_mb": 1.0}
        for name in VARIANTS
    }
    plan = {
        "experiment": "ablate_<b>hostile</b>",
        "question": "Does <script>window.ran=1</script> run?",
        "baseline": BASE,
        "factors": {"kind": VARIANTS},
        "variants": variants,
        "seeds": [0, 1],
        "data": "<b>data</b>",
        "data_note": "",
        "scale_note": "",
        "class_names": CLASSES,
        "palette": PALETTE,
        "device": "CPU",
        "common": {"trainer.max_epochs": 4, "hparams.width": 4},
        "command": "python -m experiments.x --out '<b>'",
        "commit": "ab12",
    }
    write_atomic(folder / "plan.json", json.dumps(plan))
    for number, (name, right) in enumerate(RIGHT.items()):
        for seed in (0, 1):
            _write_cell(folder / name / f"seed{seed}", name, number, seed, right[seed], sides)
    return folder


def _write_cell(folder: Path, variant: str, number: int, seed: int, right: int, sides: tuple[int, int]) -> None:
    """Three images; of 100 pixels of the first three classes `right` are right, the others called the next class."""
    one = np.zeros((4, 4), dtype=np.int64)
    for label in range(3):
        one[label, label], one[label, (label + 1) % 3] = right, 100 - right
    height, width = sides
    mask = np.arange(height * width).reshape(sides) * 3 // (height * width)
    mask[0] = 255
    arrays: dict[str, Any] = {}
    for image in range(2):
        arrays[f"image_{image}"] = np.full((*sides, 3), 60 * image + 40, dtype=np.uint8)
        arrays[f"mask_{image}"] = mask.astype(np.uint8)
        arrays[f"prediction_{image}"] = ((mask + number) % 4).astype(np.uint8)
    folder.mkdir(parents=True)
    np.savez(folder / "samples.npz", names=np.array(IMAGES[:2]), **arrays)
    np.savez(
        folder / "per_image.npz",
        names=np.array(IMAGES),
        confusion=np.stack([one] * 3),
        boundary_f1=np.full((3, 4), 0.5),
        checkerboard=np.full(3, math.nan),
    )
    rows = ["epoch,step,train/loss,val/miou"]
    rows += [
        f"{epoch},{epoch},{1 / (1 + epoch)},{(0.1 * epoch + 0.01 * seed) if epoch % 2 else ''}" for epoch in range(4)
    ]
    write_atomic(folder / "metrics.csv", "\n".join(rows) + "\n")
    found = {"threshold": 0.5 + seed} if variant == "constructor" else {}  # what a search of each seed has found
    hparams = {"width": 4, "kind": variant}
    write_json(folder / "run.json", {"hparams": hparams, "trainer": {"max_epochs": 4}, "seed": seed, **found})
    write_json(folder / "environment.json", {"commit": "0123abc", "torch_threads": 1, "device": "1 x CPU"})
    write_json(folder / "result.json", {"hash": "0", "status": "done", "seconds": 1.0, "epochs": 4})


def make_section(folder: Path) -> Section:
    """With a table to sort and pictures of one pixel for figures."""
    buffer = io.BytesIO()
    Image.new("L", (1, 1)).save(buffer, "png")
    one = (buffer.getvalue(), f"A <b>caption</b>. {LONG}")
    figures = {name: one for name in ("seeds", "seeds-narrow", "scores", "curves", "confusion", "samples")}
    classes = Table(
        "classes", f"By class, against {LONG}", ["variant", *CLASSES], [[BASE, "1", "2", "3", "4"]], notes=[LONG]
    )
    notes, warnings = [f"A <b>note</b>. {LONG}"], [f"A <b>warning</b>. {LONG}"]
    answer = ["The <b>answer</b>, of " + IMG + ".", "More of it."]
    return Section(load_experiment(folder), answer, [SCORES, classes], notes, warnings, figures)
