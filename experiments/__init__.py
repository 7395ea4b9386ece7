"""Runs, ablations and reports: `python -m experiments.<verb>`, or the names below in Python.

    from experiments import Run, Study, Match, Segmenter, cpu_scale, full_size, crossed, variants, load

Each is imported when it is asked for: reading results or writing a report imports no Lightning.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from experiments.shell.helps import answer
from experiments.shell.imports import import_matplotlib, name_torchvision

if TYPE_CHECKING:
    from experiments.grids.ablation import Match, crossed, variants
    from experiments.grids.bases import cpu_scale, full_size
    from experiments.grids.study import Study
    from experiments.prediction.segmenter import Segmenter
    from experiments.runs.run import Run
    from experiments.shell.catalogue import load

__all__ = ["Match", "Run", "Segmenter", "Study", "cpu_scale", "crossed", "full_size", "load", "variants"]
PLACES = {
    "Match": "experiments.grids.ablation",
    "Run": "experiments.runs.run",
    "Segmenter": "experiments.prediction.segmenter",
    "Study": "experiments.grids.study",
    "cpu_scale": "experiments.grids.bases",
    "crossed": "experiments.grids.ablation",
    "full_size": "experiments.grids.bases",
    "load": "experiments.shell.catalogue",
    "variants": "experiments.grids.ablation",
}

if sys.argv[:1] == ["-m"]:  # as long as `python -m` looks for one of our commands
    sys.excepthook = name_torchvision
    answer()
import_matplotlib()


def __getattr__(name: str) -> Any:  # PEP 562
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
