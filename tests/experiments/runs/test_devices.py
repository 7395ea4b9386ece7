"""Runs on several devices, and the strategies that are refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy, StrategyRegistry
from test_train import QUIET, TINY

from experiments.runs.training import STRATEGIES, _check_strategy, train
from experiments.train import main
from lightning_modules.components.scores.table import PER_IMAGE

FORKED = """
import sys
from experiments.train import main
from two_ranks import in_two_processes

sys.exit(in_two_processes(main))
"""


@pytest.mark.parametrize(
    ("recipe", "command"),
    [
        ("", ["-m", "experiments.train"]),
        ("--model.norm batch --model.average ema+recalibrate", ["-c", FORKED]),  # as torchrun starts them: cheaper
    ],
    ids=["plain", "batch statistics"],
)
def test_two_processes_score_every_image_once_and_agree_with_one(
    recipe: str, command: list[str], tmp_path: Path
) -> None:
    """A real `--trainer.devices 2` of the command line: 7 images on 2 devices leave one device a padding image."""
    flags = "--data shapes --data.size 32 --data.length 7 --data.batch_size 2 --model.width 2 --model.depth 2"
    flags += f" {recipe} --trainer.max_epochs 1 --trainer.accelerator cpu"
    flags += " --model.lr 0.0"  # the same weights, so that scores must be equal
    main([*flags.split(), "--trainer.devices", "1", "--out", str(tmp_path / "1")])
    two_devices = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--out", str(tmp_path / "2")]
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, *command, *flags.split(), *two_devices],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{root}:{root / 'tests' / 'experiments'}"},
    )
    assert done.returncode == 0, done.stderr
    stored = []
    for out in (tmp_path / "1", tmp_path / "2"):
        stored.append((np.load(out / "per_image.npz"), json.loads((out / "result.json").read_text())))
    (one, first), (two, second) = stored
    for key in ("names", "groups"):
        assert one[key].tolist() == two[key].tolist() == [f"test{i:04}" for i in range(7)]
    assert np.array_equal(one["confusion"], two["confusion"])
    for key in PER_IMAGE:
        assert np.array_equal(one[key], two[key], equal_nan=True), key
    assert (tmp_path / "1" / "predictions.zip").read_bytes() == (tmp_path / "2" / "predictions.zip").read_bytes()
    samples = [np.load(tmp_path / devices / "samples.npz") for devices in ("1", "2")]  # most are of the second process
    for key in samples[0]:
        assert np.array_equal(samples[0][key], samples[1][key]), key
    assert first["test"]["miou"] == second["test"]["miou"]
    assert first["val"]["miou"] == second["val"]["miou"]
    assert (first["steps"], first["epochs"]) == (second["steps"], second["epochs"]) == (3, 1)


@pytest.mark.parametrize("name", [*StrategyRegistry.available_strategies(), "dp", "nope"])
def test_a_strategy_that_trains_elsewhere_than_it_reports_is_refused_by_name(name: str, tmp_path: Path) -> None:
    if name in STRATEGIES:
        _check_strategy(name)
        return
    with pytest.raises(ValueError, match=rf"strategy must be one of auto, ddp, .* got '{name}': .* in a terminal"):
        train(TINY, tmp_path / "run", strategy=name, **QUIET)
    assert not (tmp_path / "run").exists()


def test_strategies_that_are_objects_are_judged_by_how_they_start() -> None:
    for fits in (DDPStrategy(), DDPStrategy(find_unused_parameters=True), SingleDeviceStrategy("cpu")):
        _check_strategy(fits)
    for start in ("spawn", "fork", "forkserver"):
        with pytest.raises(ValueError, match=f"got DDPStrategy with processes started by {start}"):
            _check_strategy(DDPStrategy(start_method=start))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got FSDPStrategy: leave it out"):
        _check_strategy(FSDPStrategy())


def test_what_a_notebook_with_several_devices_has_by_default_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning.pytorch.trainer.connectors.accelerator_connector._IS_INTERACTIVE", True)
    with pytest.raises(ValueError, match=r"started by fork, which .* a notebook .*--trainer\.devices 1"):
        train(TINY, tmp_path / "run", devices=2, **QUIET)
    assert not list((tmp_path / "run").glob("[!.]*"))
