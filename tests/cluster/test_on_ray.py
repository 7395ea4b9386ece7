"""Grids on a Ray cluster that loses nodes: every cell finishes, and no number differs from an undisturbed grid's."""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from interrupt import BASE, outcome, unequal, wait_for
from rich.console import Console

from experiments.grids.cells import PlannedCell, run_cells
from experiments.grids.launchers import on_ray
from experiments.grids.launchers.local import Local
from experiments.grids.launchers.on_ray import OnRay
from experiments.shell.files import read_json
from experiments.tracking.loggers import Logging
from lightning_modules.crf_as_rnn import CRFasRNNModule

pytestmark = [pytest.mark.slow, pytest.mark.extra("cluster", "ray")]

LONG = BASE.but(dropout=0.0, data={"length": 40}, trainer={"max_epochs": 6})
NETWORK = {name: LONG.hparams[name] for name in ("width", "depth", "norm")}
BEGUN = {"network": "unet", "network_options": NETWORK, "crf": "none", "lr": 0.001, "loss": "ce"}
CHILD = replace(LONG, module=CRFasRNNModule, hparams=BEGUN)


def grid(out: Path) -> list[PlannedCell]:
    """Two cells that stand alone, and a parent with its child."""
    parent = PlannedCell("parent", LONG.but(seed=2), out / "parent" / "seed2", 6, steps=120)
    child = PlannedCell("child", CHILD.but(seed=2), out / "child" / "seed2", 6, 120, ["parent"])
    child.needs = {"parent": parent}
    alone = [PlannedCell("alone", LONG.but(seed=seed), out / "alone" / f"seed{seed}", 6, 120) for seed in (0, 1)]
    return [*alone, parent, child]


def run(cells: list[PlannedCell], launcher: Any) -> list[PlannedCell]:
    usual: dict[str, Any] = {"logging": Logging(), "save_every": 1e-9, "command": "it"}
    return run_cells(cells, Console(), launcher=launcher, seconds=lambda cell: 1.0, **usual)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[PlannedCell]:
    cells = grid(tmp_path_factory.mktemp("undisturbed"))
    assert run(cells, Local(jobs=2, threads=1)) == []
    return cells


def process_of(cell: PlannedCell) -> int:
    """The process that trains a cell, by the claim it has to its folder."""
    (claim,) = cell.folder.glob(".claim-*")
    return int(claim.read_text(encoding="utf-8").split()[1])


def test_cells_whose_nodes_are_lost_go_on_elsewhere_and_nothing_differs(
    tmp_path: Path,
    nodes: Any,
    undisturbed: list[PlannedCell],
    meanwhile: Callable[[Callable[[], None]], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One node in the middle of a cell, and another one while a parent trains, which its child waits for."""
    cells = grid(tmp_path / "grid")
    alone, _, parent, _ = cells
    lost: list[tuple[PlannedCell, int]] = []

    def lose_nodes() -> None:
        for cell in (alone, parent):
            wait_for(lambda cell=cell: 1 <= cell.epochs_done() < 5, 120)
            node = nodes.running(process_of(cell))
            nodes.kill(node)
            lost.append((cell, cell.epochs_done()))

    meanwhile(lose_nodes)
    assert run(cells, OnRay(nodes.address, jobs=None, threads=1, devices="auto", gpus_per_cell=None)) == []
    told = capsys.readouterr().out.replace("\n", "")
    assert [cell for cell, _ in lost] == [alone, parent]
    for cell, epochs in lost:
        log = (cell.folder / "log.txt").read_text()
        assert log.count("== attempt") == 2, log
        assert f"{cell.folder}: test/miou" in told and "attempt 2, on" in told
        sent, here = (read_json(of.folder / "environment.json")["commit"] for of in (cell, undisturbed[0]))
        assert sent == here != "unknown"  # the code came without its history
        assert epochs >= 1  # which the second attempt did not train again:
        assert (cell.folder / "metrics.csv").read_text().count("\n") == 7
    for mine, theirs in zip(cells, undisturbed, strict=True):
        assert unequal(outcome(mine.folder), outcome(theirs.folder)) == []


def test_shares_of_a_gpu_and_gangs_are_placed_by_ray(
    tmp_path: Path, nodes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two GPUs that a node says it has: four half ones at once, and a cell of two that waits until both are free."""
    import ray

    nodes.add(num_cpus=4, num_gpus=2)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(on_ray, "run_cell", look_around)
    seen = {}
    for gpus in (0.5, 2.0):
        launcher = OnRay(nodes.address, jobs=None, threads=1, devices="auto", gpus_per_cell=gpus)
        assert launcher.jobs == {0.5: 4, 2.0: 1}[gpus] and launcher.devices == {0.5: "auto", 2.0: "2"}[gpus]
        with launcher.open([]):
            asked = [tmp_path / f"{gpus}" / f"seed{seed}" for seed in range(4 if gpus == 0.5 else 2)]
            (tmp_path / f"{gpus}").mkdir()
            jobs = launcher.start([on_ray.Asked(folder, []) for folder in asked])
            while any(job.poll() is None for job in jobs):
                launcher.pause()
            seen[gpus] = [ray.get(job.reference) for job in jobs]
    assert sorted(one["gpus"] for one in seen[0.5]) == ["0", "0", "1", "1"]
    assert {one["at_once"] for one in seen[0.5]} == {4}
    first, second = sorted(seen[2.0], key=lambda one: one["started"])
    assert first["gpus"] == second["gpus"] == "0,1" and first["ended"] <= second["started"]


def look_around(folder: str, flags: list[str], variables: dict[str, str]) -> dict[str, Any]:
    """What a cell would see, in its place."""
    started, gpus, place = time.time(), os.environ["CUDA_VISIBLE_DEVICES"], Path(folder)
    place.mkdir()
    until = started + (60 if len(gpus) == 1 else 1)
    while len(there := [*place.parent.glob("seed*")]) < 4 and time.time() < until:
        time.sleep(0.1)
    seen = {"gpus": gpus, "started": started, "ended": time.time(), "at_once": len(there)}
    return {"status": 0, "host": "h", "attempt": 1, **seen}


def test_a_cell_that_no_node_can_hold_waits_for_one_that_comes_and_is_refused_where_none_can(
    nodes: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    needs: dict[str, Any] = {"jobs": None, "threads": 64, "devices": "auto", "gpus_per_cell": None}
    OnRay(nodes.address, **needs)
    assert "no node of the cluster has what a cell needs (CPU 64" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"\(CPU 64.*; the most of one node: CPU \d.*\): lower --threads"):
        OnRay(None, **needs)


def test_a_cluster_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: (_ for _ in ()).throw(ConnectionError("Could not find any")))
    with pytest.raises(ValueError, match=r"no Ray cluster answers at --address auto .*ray start --head"):
        OnRay("auto", jobs=None, threads=1, devices="auto", gpus_per_cell=None)
