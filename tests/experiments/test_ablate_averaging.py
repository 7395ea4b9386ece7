"""The ablation of averages: one training a network and seed, four scores of each, and what is said of the seeds."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from interrupt import QUIET
from scipy import stats

from experiments.ablate_averaging import NETWORKS, STUDY, describe
from experiments.grids.fairness import check_fair
from experiments.grids.graph import build_planned, planned_cells
from experiments.runs.scoring import carry_out
from experiments.runs.training import train
from lightning_modules.components.averaging import AVERAGES


def test_a_network_is_trained_once_and_scored_four_times(tmp_path: Path) -> None:
    grid = STUDY.ablation("shapes", {"size": 64, "length": 8}, epochs=1)
    planned = {cell.variant: cell for cell in planned_cells(grid, tmp_path, [0], check_fair(grid))}
    parent = planned["U-Net"]
    trained = train(parent.run, parent.folder, **QUIET)["test"]
    scored = {}
    for average in AVERAGES:
        cell = planned[f"U-Net, {average}"]
        scored[average] = carry_out(cell.run, cell.folder)["test"]
        assert cell.result
    assert scored["ema"]["miou"] == pytest.approx(trained["miou"], rel=1e-6)
    assert scored["none"] != scored["recalibrate"]


@dataclass
class Done:
    """A cell with its result, as much of it as is described."""

    variant: str
    planned: Any
    result: dict[str, Any]
    stage: bool = False


def test_what_is_said_of_the_seeds_is_computed_from_the_scores() -> None:
    """With recalibrate half as far apart, exactly; with ema nothing of it is the network's own."""
    generator = np.random.default_rng(0)
    cells = []
    for seed in range(6):
        common, own = generator.normal(), generator.normal(size=len(NETWORKS))
        for network, x in zip(NETWORKS, own, strict=True):
            for average, score in {
                "none": x,
                "recalibrate": x / 2,
                "ema": common,
                "ema+recalibrate": x + common,
            }.items():
                run = SimpleNamespace(seed=seed)
                cells.append(Done(f"{network}, {average}", run, {"test": {"miou": 0.5 + score / 100}}))
    whole: Any = cells
    change, of_ema, _, recalibrate, _, _, block, together_or_not = describe(whole, print).notes
    assert "too narrow" in together_or_not
    by = {(c.variant, c.planned.seed): 100 * c.result["test"]["miou"] - 50 for c in whole}
    changes = [by["U-Net, recalibrate", seed] - by["U-Net, none", seed] for seed in range(6)]
    low, high = stats.ttest_1samp(changes, 0).confidence_interval(0.95)
    assert f"U-Net {np.mean(changes):+.2f} [{low:.2f}, {high:.2f}]" in change and "of 6 seeds" in change
    together = np.mean([[by[f"{n}, ema", s] - by[f"{n}, none", s] for n in NETWORKS] for s in range(6)], axis=1)
    low, high = stats.ttest_1samp(together, 0).confidence_interval(0.95)
    assert f"all together {np.mean(together):+.2f} [{low:.2f}, {high:.2f}]" in of_ema
    assert "over 6 seeds with recalibrate" in recalibrate
    assert recalibrate.count("0.50 [0.50 to 0.50]") == 4
    assert "none" in block and "ema+recalibrate" in block and "share 1.00" not in block
    assert describe(whole[: 2 * len(STUDY.variants)], print).notes == [
        "How far seeds lie apart is compared from three seeds on that have all scores."
    ]


def test_the_networks_can_be_built_on_every_data_set() -> None:
    for data in ("brain", "shapes"):
        grid = STUDY.ablation(data)
        assert list(grid.stages) == list(NETWORKS)
        assert {grid.parents_of(name)[0] for name in grid.runs} == {*NETWORKS}
        assert all(run.hparams["average"] == "ema" for run in grid.stages.values())
        assert all(build_planned(grid, name)[0].hparams["average"] == "ema" for name in grid.stages)


@pytest.mark.parametrize("average", AVERAGES)
def test_every_average_is_a_level_of_each_network(average: str) -> None:
    assert {level["network"] for level in STUDY.levels.values() if level["average"] == average} == {*NETWORKS}
