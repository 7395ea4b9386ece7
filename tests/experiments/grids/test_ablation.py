import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from datamodules.shapes import ShapesDataModule
from experiments.grids.ablation import Ablation, crossed, variants
from experiments.grids.command import add_arguments, run_ablation
from experiments.runs.run import Run
from experiments.shell.difference import Difference
from experiments.shell.files import locked, read_json, write_atomic
from lightning_modules.unet import UNetModule

BASE = Run(
    module=UNetModule,
    datamodule=ShapesDataModule,
    hparams={"width": 2, "depth": 1},
    data={"size": 24, "length": 4, "batch_size": 2},
    trainer={"max_epochs": 1},
)
FACTORS = {"upsample": ("transposed-2", "nearest")}


def grid(**runs: Run) -> Ablation:
    return Ablation(
        name="tiny",
        question="?",
        runs=runs or variants(BASE, crossed(**FACTORS)),
        factors=FACTORS,
        baseline=next(iter(runs), "transposed-2"),
    )


def arguments(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(argv)


def test_crossed_names_every_combination() -> None:
    runs = variants(BASE, crossed(upsample=("nearest", "bilinear"), skips=("concat", "none")))
    assert list(runs) == ["nearest+concat", "nearest+none", "bilinear+concat", "bilinear+none"]
    assert runs["bilinear+none"].hparams["skips"] == "none"


def test_a_baseline_that_is_no_variant_is_refused() -> None:
    with pytest.raises(ValueError, match="baseline must be one of transposed-2, nearest, got 'bilinear'"):
        Ablation(name="tiny", question="?", runs=grid().runs, factors=FACTORS, baseline="bilinear")


def test_a_dry_run_prints_the_plan_and_trains_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code = Difference("ab12cd34ef-dirty", {"experiments/ablate_mine.py": "new"}, b"x", [])
    monkeypatch.setattr("experiments.shell.difference.difference", lambda: code)
    assert run_ablation(grid(), arguments("--out", str(tmp_path), "--seeds", "0", "1", "--dry-run")) == 0
    printed = capsys.readouterr().out
    assert "2 variants x 2 seeds" in printed
    assert "transposed-2 (baseline)" in printed
    assert "The code differs from commit ab12cd3 in experiments/ablate_mine.py (new): each run keeps" in printed
    for column in ("parameters", "GMAC", "ms/step", "est. time,", "all seeds"):
        assert column in printed
    assert not list(tmp_path.glob("*/seed*"))


@pytest.mark.usefixtures("one_figure")
def test_a_failing_cell_does_not_stop_the_others_and_finished_cells_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocked = tmp_path / "nearest" / "seed0" / "checkpoints"
    write_atomic(blocked, "a file where the cell needs a folder")
    flags = ("--out", str(tmp_path), "--seeds", "0", "--jobs", "2")
    assert run_ablation(grid(), arguments(*flags)) == 3  # finished in part
    printed = capsys.readouterr().out
    assert "failed: nearest seed 0" in printed
    assert "log.txt" in printed
    assert (tmp_path / "report.html").exists()
    finished = tmp_path / "transposed-2" / "seed0" / "result.json"
    before = finished.stat().st_mtime_ns

    blocked.unlink()
    assert run_ablation(grid(), arguments(*flags)) == 0  # the same command continues
    assert finished.stat().st_mtime_ns == before
    result, plan = read_json(tmp_path / "nearest" / "seed0" / "result.json"), read_json(tmp_path / "plan.json")
    assert result["steps"] == plan["budget"]["nearest"]["steps"] == 2
    assert result["params"] == plan["variants"]["nearest"]["parameters"]
    assert plan["differences"]["nearest"] == {"hparams.upsample": ["transposed-2", "nearest"]}

    # Another grid does not replace these results, and a run.json that cannot be read is set aside.
    longer = variants(BASE.but(trainer={"max_epochs": 2}), crossed(**FACTORS))
    capsys.readouterr()
    assert run_ablation(grid(**longer), arguments(*flags)) == 2
    assert "holds the results of another grid (trainer.max_epochs: 1 -> 2)" in capsys.readouterr().err
    assert finished.stat().st_mtime_ns == before
    (tmp_path / "nearest" / "seed0" / "result.json").unlink()
    (tmp_path / "nearest" / "seed0" / "run.json").write_text("{")
    assert run_ablation(grid(), arguments(*flags)) == 0
    assert (tmp_path / "nearest" / "seed0.old1" / "run.json").read_text() == "{"
    assert finished.stat().st_mtime_ns == before


SCRIPT = """
import sys
from datamodules.shapes import ShapesDataModule
from experiments.grids.ablation import Ablation, crossed, variants
from experiments.grids.command import add_arguments, run_ablation
from experiments.runs.run import Run
from lightning_modules.unet import UNetModule
import argparse

base = Run(module=UNetModule, datamodule=ShapesDataModule, hparams={"width": 2, "depth": 1},
           data={"size": 24, "length": 4, "batch_size": 2}, trainer={"max_epochs": 4000})
factors = {"upsample": ("transposed-2", "nearest")}
grid = Ablation(name="tiny", question="?", runs=variants(base, crossed(**factors)), factors=factors, baseline="nearest")
parser = argparse.ArgumentParser()
add_arguments(parser)
if __name__ == "__main__":
    sys.exit(run_ablation(grid, parser.parse_args()))
"""


def test_an_interrupted_grid_leaves_no_orphan_and_its_cells_their_checkpoints(tmp_path: Path) -> None:
    root, out = Path(__file__).parents[3], tmp_path / "grid"
    (tmp_path / "ablate_tiny.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "ablate_tiny.py"), "--seeds", "0", "--out", str(out), "--jobs", "2"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    process = subprocess.Popen(
        command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 240
    while len(list(out.glob("*/seed0/checkpoints/last.ckpt"))) < 2:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    with pytest.raises(ValueError, match=f"in use by process {process.pid}"), locked(out):  # one grid a folder
        pass
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 130, printed
    assert "the same command continues" in printed
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path) not in listed
    for path in out.glob("*/seed0/checkpoints/last.ckpt"):
        torch.load(path, weights_only=True)  # whole


def test_files_are_written_whole(tmp_path: Path) -> None:
    from experiments.shell.files import write_whole

    path = tmp_path / "result.json"
    write_atomic(path, "old")
    with pytest.raises(OSError, match="disk full"):
        write_whole(path, lambda file: (file.write(b"half"), (_ for _ in ()).throw(OSError("disk full"))))
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]
