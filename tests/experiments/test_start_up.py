"""What a command imports before it works: a process that needs no part of a library does not pay for its import."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from handmade import write_experiment

ROOT = Path(__file__).parents[2]
# Those that take a second or more, with what they bring.
SLOW = ("torch", "torchvision", "lightning", "torchmetrics", "segmentation_models_pytorch", "timm", "wandb")
SLOW = (*SLOW, "pandas", "scipy.stats", "matplotlib.pyplot", "jsonargparse")
# All that a cell imports, and the classes that its run.json names.
CELL = """
import ast, inspect
from experiments.grids import cell
of_main = [n for n in ast.walk(ast.parse(inspect.getsource(cell))) if isinstance(n, ast.Import | ast.ImportFrom)]
exec(compile(ast.Module(of_main, []), cell.__file__, "exec"))
run = Run.from_config({
    "module": "lightning_modules.unet.UNetModule", "datamodule": "datamodules.shapes.ShapesDataModule",
    "hparams": {"width": 4, "depth": 2}, "data": {}, "trainer": {"max_epochs": 1}, "seed": 0,
})
run.module(3, 255, **run.hparams).loss
"""
# A command with its words, as `python -m` runs it.
COMMAND = """
import contextlib, io, runpy
module, *words = ARGUMENTS
if "--only" in words:  # every figure is drawn without it, in seconds
    from experiments.reports import figures
    figures.FIGURES = {"scores": figures.FIGURES["scores"]}
sys.argv = [module.replace(".", "/") + ".py", *words]
with contextlib.redirect_stdout(io.StringIO()):
    try:
        runpy.run_module(module, run_name="__main__")
    except SystemExit as stop:
        assert not stop.code, stop.code
"""


def imported(code: str, *arguments: Any) -> set[str]:
    """The modules that a fresh process has imported when it has run `code`."""
    told = "import json, sys; ARGUMENTS = json.loads(sys.argv[1])\n"
    end = "print(json.dumps([*sys.modules]))"
    command = [sys.executable, "-c", told + code + end, json.dumps([*map(str, arguments)])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_a_cell_of_a_native_network_imports_no_library_of_others() -> None:
    others = {"segmentation_models_pytorch", "timm", "wandb", "tensorboard"}
    found = imported(CELL)
    assert {"torch", "lightning"} <= found and not others & found


@pytest.mark.parametrize("flags", [[], ["--list"], ["--only", "nearest+concat"]], ids=str)
def test_a_report_imports_nothing_that_trains(flags: list[str], tmp_path: Path) -> None:
    write_experiment(tmp_path / "x")
    places = ["--list", tmp_path] if "--list" in flags else [tmp_path / "x", *flags]
    found = imported(COMMAND, "experiments.report", *places)
    assert "experiments.report" not in found and "experiments.evidence.cell" in found
    assert sorted({*SLOW} & found) == []
    if not flags:
        assert (tmp_path / "x" / "figures" / "logits.png").is_file()
