"""A study of two tiny U-Nets, as a command line asks for it and as it is run."""

import json
from pathlib import Path
from typing import Any

from experiments import Study, cpu_scale, crossed
from experiments.grids.ablation import Ablation
from experiments.grids.command import run_grid
from experiments.grids.study_flags import parse_study
from lightning_modules.unet import UNetModule

STUDY = Study(
    name="ablate_width",
    question="Does width help?",
    baseline="width 2",
    variants=crossed(width=(2, 4)),
    base=cpu_scale(UNetModule, depth=1, lr=5e-3, exceptions={"brain": {"depth": 2, "data.crop": 64}}),
)
TINY = ["--data", "shapes", "--data.size", "24", "--data.length", "4", "--data.batch_size", "2", "--epochs", "1"]
TINY += ["--seeds", "0", "1", "2"]


def asked(*words: str, study: Study = STUDY) -> Ablation:
    changed, settings, _ = parse_study(study, None, words)
    return changed.asked(settings)


def run(out: Path, *words: str, study: Study = STUDY) -> dict[str, Any]:
    study, settings, args = parse_study(study, None, [*TINY, *words, "--out", str(out)])
    assert run_grid(lambda: study.asked(settings), study.experiment(settings), args) == 0
    plan: dict[str, Any] = json.loads((out / "plan.json").read_text()) if (out / "plan.json").exists() else {}
    return plan
