"""Cells that need others: their graph is checked and hashed before anything is trained, and run in its order."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from interrupt import QUIET
from launched import StandIn
from rich.console import Console

from datamodules.shapes import ShapesDataModule
from experiments.evidence.deviations import other_settings, statements, unequal
from experiments.grids.ablation import Ablation
from experiments.grids.cells import PlannedCell, make_room, run_cells
from experiments.grids.fairness import check_fair
from experiments.grids.graph import build_planned, linked, planned_cells
from experiments.grids.plan import make_plan
from experiments.runs.run import Run
from experiments.runs.scoring import carry_out
from experiments.runs.step import Step
from experiments.runs.training import train
from experiments.shell.files import read_json, write_json
from experiments.shell.found import found
from experiments.tracking.loggers import Logging
from lightning_modules.crf_as_rnn import CRFasRNNModule
from lightning_modules.unet import UNetModule

BASE = Run(
    module=UNetModule,
    datamodule=ShapesDataModule,
    hparams={"width": 2, "depth": 1},
    data={"size": 16, "length": 2, "batch_size": 2},
    trainer={"max_epochs": 2, "limit_val_batches": 0},
)
NETWORK = {"network": "unet", "network_options": dict(BASE.hparams), "crf": "none", "lr": 0.001, "loss": "ce"}
ALONE = replace(BASE, module=CRFasRNNModule, hparams=NETWORK).but(trainer={"max_epochs": 1})
RUNS = {
    "none": ALONE,
    "dense": ALONE.but(step=Step("crf", {"crf": "dense", "images": 1})),
    "trained": ALONE.but(crf="dense", crf_options=found("dense", "crf_options")),
}
CRF = {"w_appearance": 4.0, "normalization": "symmetric"}


def ablation(**changed: Any) -> Ablation:
    declared: dict[str, Any] = {
        "name": "tiny",
        "question": "?",
        "runs": RUNS,
        "factors": {"crf": ("none", "dense"), "crf_options": (None, found("dense", "crf_options"))},
        "baseline": "none",
        "stages": {"base": BASE},
        "parents": {"none": "base", "dense": "none", "trained": "base"},
        "levels": {"none": {"behind": "no"}, "dense": {"behind": "yes"}, "trained": {"behind": "no"}},
    }
    return Ablation(**declared | changed)


def cells(out: Path, seeds: tuple[int, ...] = (0,), **changed: Any) -> dict[str, PlannedCell]:
    grid = ablation(**changed)
    of_seeds = planned_cells(grid, out, seeds, check_fair(grid))
    return {cell.variant if len(seeds) == 1 else f"{cell.variant} {cell.planned.seed}": cell for cell in of_seeds}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"parents": {"none": "bsae"}}, "'bsae' is neither a variant nor a stage"),
        ({"parents": {"non": "base"}}, "'non' is neither a variant nor a stage"),
        (
            {"parents": {"none": "trained", "trained": "none", "dense": "none"}, "stages": {}},
            "none -> trained -> none|trained -> none -> trained",
        ),
        ({"parents": {"none": "dense", "dense": "base"}}, "'none' cannot begin with 'dense': a step leaves no weights"),
        (
            {"parents": {"none": ("base", "trained"), "dense": "none"}},
            "'none' is trained, and so begins with one parent",
        ),
        ({"parents": {"none": "base"}}, "the step 'dense' has no parent"),
        ({"parents": {"dense": "none"}}, "nothing needs the stage base"),
        ({"stages": {"base": BASE, "none": BASE}}, "none is a variant and a stage"),
        ({"levels": {"none": {"crf": "no"}}}, "levels must be of the variants"),
        (
            {"runs": RUNS | {"trained": RUNS["trained"].but(crf_options=found("none", "crf_options"))}},
            "'trained' waits for crf_options of none, which is trained",
        ),
        ({"runs": RUNS | {"trained": RUNS["trained"].but(crf_options=found("x", "y"))}}, "'x' is neither"),
    ],
)
def test_a_graph_that_cannot_be_run_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ablation(**changed)


def test_a_graph_is_data(tmp_path: Path) -> None:
    planned = cells(tmp_path)
    assert {name: list(cell.needs) for name, cell in planned.items()} == {
        "base": [],
        "none": ["base"],
        "dense": ["none"],
        "trained": ["base", "dense"],
    }
    assert [cell.needs["dense"] for cell in planned.values() if "dense" in cell.needs] == [planned["dense"]]
    assert [name for name, cell in planned.items() if cell.stage] == ["base"]


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda: Step("crff"), "step must be one of .*, got 'crff'; did you mean crf"),
        (lambda: Step("crf", {"crf": "dense", "images": test_a_graph_is_data}), "step images must be a number"),
        (lambda: build_planned(ablation(runs=with_options(imags=1)), "dense"), "the step 'crf' got the options"),
    ],
)
def test_a_step_that_is_none_is_refused(step: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        step()


def with_options(**options: Any) -> dict[str, Run]:
    return RUNS | {"dense": ALONE.but(step=Step("crf", {"crf": "dense", **options}))}


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (BASE.but(depth=2), r"'none' cannot begin with 'base': its checkpoint was trained with depth=2, not depth=1"),
        (BASE.but(upsample="nearest"), "'none' cannot begin with 'base': its checkpoint"),
        (ALONE, "'none' cannot begin with 'base': its checkpoint holds CRFasRNNModule"),
    ],
)
def test_a_parent_whose_weights_do_not_fit_is_refused_before_it_is_trained(stage: Run, message: str) -> None:
    grid = ablation(stages={"base": stage})
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build_planned(grid, "none")


def test_fcn_in_stages_begins_each_with_the_coarser_one() -> None:
    from experiments.ablate_fcn_strides import STUDY, staged

    grid = staged(STUDY).ablation("shapes")
    assert grid.name == "ablate_fcn_strides_staged_shapes"
    assert grid.order == ["fcn-32s", "fcn-16s", "fcn-8s"]
    budgets = check_fair(grid)
    steps = budgets["fcn-8s"]["steps"]
    assert [budgets[name]["steps_before"] for name in grid.order] == [0, steps, 2 * steps]
    assert [budgets[name]["start"] for name in grid.order[1:]] == [
        "fcn-32s of the same seed",
        "fcn-16s of the same seed",
    ]
    with torch.device("meta"):
        for name in grid.order:
            build_planned(grid, name)
    said = unequal({"baseline": "fcn-8s", "budget": budgets})
    assert f"steps before (0, not {2 * steps})" in said[0]
    wrong = replace(staged(STUDY), parents={"fcn-16s": "fcn-32s", "fcn-8s": "fcn-32s"}).ablation("shapes")
    with (
        torch.device("meta"),
        pytest.raises(ValueError, match=r"'fcn-8s' cannot begin with 'fcn-32s': .* stride=32, not 16"),
    ):
        build_planned(wrong, "fcn-8s")


def test_a_parent_of_a_network_that_starts_from_none_is_refused() -> None:
    runs = {"first": BASE, "second": BASE.but(width=4)}
    grid = Ablation(
        name="tiny", question="?", runs=runs, factors={"width": (2, 4)}, baseline="first", parents={"second": "first"}
    )
    with torch.device("meta"), pytest.raises(ValueError, match="UNetModule takes no init_from"):
        build_planned(grid, "second")


def test_budgets_count_the_steps_of_parents_that_are_not_trained_yet() -> None:
    budgets = check_fair(ablation())
    assert [budgets[name]["steps"] for name in ("base", "none", "dense", "trained")] == [2, 1, 1, 1]
    assert [budgets[name]["steps_before"] for name in ("base", "none", "dense", "trained")] == [0, 2, 2, 2]
    assert budgets["dense"] == budgets["none"]
    assert budgets["none"]["start"] == "base of the same seed"

    # Another parent than the baseline's is declared by that, and said.
    longer = ablation(stages={"base": BASE, "more": BASE.but(trainer={"max_epochs": 3})}, parents=parents("more"))
    budgets = {name: of for name, of in check_fair(longer).items() if name in RUNS}
    plan = {"baseline": "none", "budget": budgets, "variants": {name: SIZES for name in RUNS}}
    (said,) = [line for line in statements(plan) if line.startswith("Not of equal budget")]
    assert "more of the same seed, not base of the same seed" in said and "steps before (3, not 2)" in said


SIZES = {"parameters": 1, "gmac": 1.0}


def parents(of_trained: str) -> dict[str, str]:
    return {"none": "base", "dense": "none", "trained": of_trained}


def test_hashes_are_known_before_and_the_same_after(tmp_path: Path) -> None:
    planned = cells(tmp_path / "here")
    base, none, dense, child = (planned[name] for name in ("base", "none", "dense", "trained"))
    before = [cell.run.hash for cell in (none, dense)]
    assert [cell.run.hash for cell in cells(tmp_path / "there").values()][1:3] == before  # wherever they lie
    grid = ablation()
    assert linked(grid, check_fair(grid))["none"].hash == before[0]

    train(base.run, base.folder, **QUIET)
    assert base.result
    assert [cell.run.hash for cell in (none, dense)] == before
    by_hand = ALONE.but(init_from=str(base.folder / "checkpoints" / "last.ckpt"))  # by what the file holds
    assert by_hand.hash == before[0]
    assert Run.from_config(json.loads(json.dumps(none.run.config()))).hash == before[0]
    assert Run.from_config(json.loads(json.dumps(dense.run.config()))) == dense.run
    train(none.run, none.folder, **QUIET)
    assert none.result
    assert dense.run.hash == before[1]

    # What a step finds becomes the setting; until then the cell cannot be done.
    assert child.run.hparams["crf_options"] == found("dense", "crf_options")
    done(dense, {"crf_options": CRF})
    assert child.run.hparams["crf_options"] == CRF
    plan = {"common": child.planned.resolved(), "differences": {"trained": {}}}
    assert other_settings(plan, "trained", {"settings": child.run.resolved()}) == []
    done(dense, {})
    with pytest.raises(ValueError, match="must hold crf_options in found, which trained waits for"):
        _ = child.run

    # A child is refused another parent than it was planned with, and set aside where its parent changed.
    other = none.run.after({path: f"run:{'0' * 16}@2" for path in none.run.parents})
    with pytest.raises(ValueError, match=rf"must hold run:{'0' * 16}@2, which this run was planned with, got run:"):
        train(other, tmp_path / "other", **QUIET)
    gone = none.run.after({str(tmp_path / "seed0" / "checkpoints" / "last.ckpt"): f"run:{'0' * 16}@2"})
    with pytest.raises(FileNotFoundError, match="which this run begins with, is not there"):
        carry_out(replace(gone, step=dense.planned.step), tmp_path / "step")
    changed = cells(tmp_path / "here", stages={"base": BASE.but(lr=0.5)})["none"]
    assert changed.result is None
    said = make_room(changed.folder, changed.run)
    assert "held another run (hparams.init_from: 'run:" in said and "seed0.old1; it starts anew" in said


def done(cell: PlannedCell, of: dict[str, Any]) -> None:
    write_json(cell.folder / "result.json", {"hash": cell.run.hash, "test": {"miou": 0.5}, "found": of})


FAILING = "seed0none"
STARTED: list[str] = []


@pytest.fixture
def started() -> list[str]:
    """The cells that `run` has started."""
    STARTED.clear()
    return STARTED


def run(
    planned: dict[str, PlannedCell], jobs: int = 2, seconds: Callable[[PlannedCell], float] = lambda cell: 1.0
) -> list[PlannedCell]:
    """Cells end at once: that in `FAILING` without a result."""

    def begin(folder: Path) -> list[str]:
        (cell,) = (cell for cell in planned.values() if cell.folder == folder)
        STARTED.append(f"{cell.variant} {cell.planned.seed}")
        assert all(need.result for need in cell.needs.values())
        (cell.folder / "log.txt").write_text("why\n")
        if cell.folder.name + cell.variant != FAILING:
            done(cell, {"crf_options": CRF})
        return ["true"]

    how: dict[str, Any] = {"logging": Logging(), "save_every": 1.0, "command": "", "seconds": seconds}
    return run_cells(list(planned.values()), Console(), launcher=StandIn(jobs, begin), **how)


def test_cells_start_when_what_they_need_is_done_and_not_where_it_failed(
    tmp_path: Path, started: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    planned = cells(tmp_path, (0, 1))
    failed = run(planned)
    assert started[:2] == ["base 0", "base 1"]
    assert sorted(started[2:]) == ["dense 1", "none 0", "none 1", "trained 1"]
    assert {f"{cell.variant} {cell.planned.seed}": cell.error for cell in failed} == {
        "none 0": "why",
        "dense 0": "not started, because none failed",
        "trained 0": "not started, because dense failed",
    }
    assert "dense/seed0 not started, because none failed" in capsys.readouterr().out.replace("\n", "")
    assert planned["trained 1"].run.hparams["crf_options"] == CRF
    assert read_json(tmp_path / "trained" / "seed1" / "run.json")["hparams"]["crf_options"] == CRF

    # What is done stays done, and a stage that nobody waits for is not run again.
    (tmp_path / "base" / "seed1" / "result.json").unlink()
    started.clear()
    assert [cell.variant for cell in run(planned)] == ["none", "dense", "trained"]
    assert started == ["none 0"]
    (tmp_path / "none" / "seed1" / "result.json").unlink()
    started.clear()
    run(planned, jobs=1)
    assert started == ["none 0", "base 1", "none 1"]


def test_another_value_that_was_found_trains_anew(tmp_path: Path, started: list[str]) -> None:
    planned = cells(tmp_path, (1,))
    assert run(planned) == []
    done(planned["dense"], {"crf_options": CRF | {"w_appearance": 5.0}})
    started.clear()
    assert run(planned) == []
    assert started == ["trained 1"]
    assert (tmp_path / "trained" / "seed1.old1").is_dir()


def test_a_plan_stores_the_graph_and_knows_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments.grids import known_costs
    from experiments.grids.cost import Cost

    monkeypatch.setattr(known_costs, "measure", lambda runs, **_: {name: Cost(1.0, 2.0) for name in runs})
    made = make_plan(ablation(), tmp_path, [0], 1, 1, lambda line: None)
    content = json.loads(json.dumps(made.content()))
    assert content["parents"] == {"none": ["base"], "dense": ["none"], "trained": ["base"]}
    assert list(content["stages"]) == ["base"] and list(content["budget"]) == list(RUNS)
    assert content["factors"] == {"behind": ["no", "yes"]}
    assert content["variants"]["dense"]["step_seconds"] == 1.0
    step = {key: pair[1] for key, pair in content["differences"]["dense"].items() if key.startswith("step")}
    assert step == {"step": "crf", "step.crf": "dense", "step.images": 1, "step.of": [f"run:{linked_hash('none')}@1"]}
    assert made.seconds(made.cells[2]) < made.seconds(made.cells[1])  # the search has no training steps

    write_json(tmp_path / "plan.json", content)
    monkeypatch.setattr(known_costs, "measure", lambda *_, **__: pytest.fail("the costs are stored"))
    make_plan(ablation(), tmp_path, [0, 1], 1, 1, lambda line: None)
    for other in (ablation(stages={"base": BASE.but(lr=0.5)}), ablation(runs=with_options(images=2))):
        with pytest.raises(ValueError, match="holds the results of another grid"):
            make_plan(other, tmp_path, [0], 1, 1, lambda line: None)


def linked_hash(name: str) -> str:
    grid = ablation()
    return linked(grid, check_fair(grid))[name].hash
