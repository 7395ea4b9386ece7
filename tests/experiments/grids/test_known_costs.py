"""Costs that are measured once: for which runs, beside which others, and what a damaged or closed cache does."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from interrupt import BASE

from experiments.grids import known_costs
from experiments.grids.cost import Cost
from experiments.grids.known_costs import NAME, costs_of, key, machine
from experiments.runs.run import Run

WIDE = BASE.but(width=4)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEGLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / NAME


@pytest.fixture
def hour(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], list[list[str]]]:
    """Begins an hour in which all take `slow` times as long; what is measured from then on."""

    def begin(slow: float) -> list[list[str]]:
        measured: list[list[str]] = []

        def measure(runs: Mapping[str, Run], **how: Any) -> dict[str, Cost]:
            measured.append(list(runs))
            return {name: Cost(slow * run.hparams["width"], 10.0 * slow) for name, run in runs.items()}

        monkeypatch.setattr(known_costs, "measure", measure)
        return measured

    return begin


def test_runs_that_cost_the_same_are_measured_once(cache: Path, hour: Callable[[float], list[list[str]]]) -> None:
    measured = hour(1.0)
    runs = {"a": BASE, "rate": BASE.but(lr=0.5, seed=3, trainer={"max_epochs": 9}), "wide": WIDE}
    costs, note = costs_of(runs, threads=1)
    assert measured == [["a", "wide"]]
    assert note == ""
    assert costs == {"a": Cost(2.0, 10.0), "rate": Cost(2.0, 10.0), "wide": Cost(4.0, 10.0)}

    measured = hour(3.0)
    assert costs_of({"other name": WIDE, "b": BASE.but(optimizer="sgd")}, threads=1) == (
        {"other name": Cost(4.0, 10.0), "b": Cost(2.0, 10.0)},
        f"Times of a step are of an earlier measurement: delete {cache} to measure anew.",
    )
    assert measured == []
    cache.unlink()
    assert costs_of({"b": BASE}, threads=1) == ({"b": Cost(6.0, 30.0)}, "")


def test_what_is_not_known_is_measured_beside_what_is(cache: Path, hour: Callable[[float], list[list[str]]]) -> None:
    """In an hour in which everything takes three times as long, ratios are still those of one table."""
    hour(1.0)
    costs_of({"wide": WIDE, "a": BASE}, threads=1)
    measured = hour(3.0)
    runs = {"wider": BASE.but(width=8), "a": BASE, "wide": WIDE}
    costs, note = costs_of(runs, threads=1)
    assert measured == [["a", "wider"]]
    assert costs == {"wider": Cost(8.0, 30.0), "a": Cost(2.0, 10.0), "wide": Cost(4.0, 10.0)}
    assert "for 2 of 3 networks; the others were measured beside a and are scaled as it was" in note
    assert costs_of(runs, threads=1)[0] == costs
    assert len(json.loads(cache.read_text())["tables"]) == 1

    # Networks of two tables are not mixed: the one that knows more serves.
    measured = hour(2.0)
    costs_of({"x": BASE.but(width=16), "y": BASE.but(width=32)}, threads=1)
    costs, _ = costs_of({"x": BASE.but(width=16), "a": BASE, "wide": WIDE}, threads=1)
    assert measured == [["x", "y"], ["a", "x"]]
    assert costs == {"x": Cost(16.0, 20.0), "a": Cost(2.0, 10.0), "wide": Cost(4.0, 10.0)}


@pytest.mark.parametrize(
    "change",
    [
        {"norm": "group"},
        {"loss": "ce-sum"},
        {"class_weights": [1.0] * 4},
        {"data": {"batch_size": 3}},
        {"data": {"crop": 8}},
    ],
)
def test_what_decides_a_cost_names_it(change: dict[str, Any]) -> None:
    assert key(BASE.but(**change), real=False) != key(BASE, real=False)


def test_weights_images_threads_and_code_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    weighted = BASE.but(class_weights=[1.0] * 4)
    assert key(weighted, real=False) == key(BASE.but(class_weights=[2.0] * 4), real=False)
    assert key(BASE, real=True) != key(BASE, real=False)
    assert machine(1) != machine(2)
    here = machine(1)
    monkeypatch.setattr(torch, "__version__", "0.0.1")
    assert machine(1) != here


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"tables": [{"on": {}}]}', '{"tables": null}', "\x00" * 10, "[" * 100_000]
)
def test_a_damaged_file_is_ignored_and_written_anew(
    damage: str, cache: Path, hour: Callable[[float], list[list[str]]]
) -> None:
    measured = hour(1.0)
    cache.parent.mkdir()
    cache.write_text(damage)
    costs_of({"a": BASE}, threads=1)
    costs_of({"a": BASE}, threads=1)
    assert measured == [["a"]]


@pytest.mark.parametrize("number", [0, -1.0, "x", None])
def test_a_time_that_is_none_is_not_believed(
    number: Any, cache: Path, hour: Callable[[float], list[list[str]]]
) -> None:
    hour(1.0)
    costs_of({"a": BASE}, threads=1)
    stored = json.loads(cache.read_text())
    (of,) = stored["tables"][0]["costs"]
    stored["tables"][0]["costs"][of]["step_seconds"] = number
    cache.write_text(json.dumps(stored))
    assert costs_of({"a": BASE}, threads=1) == ({"a": Cost(2.0, 10.0)}, "")


def test_a_cache_that_cannot_be_written_to_keeps_nothing(
    cache: Path, hour: Callable[[float], list[list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = hour(1.0)
    cache.parent.write_text("a file")
    for _ in range(2):
        assert costs_of({"a": BASE}, threads=1) == ({"a": Cost(2.0, 10.0)}, "")

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(known_costs, "cache_folder", homeless)
    assert costs_of({"a": BASE}, threads=1) == ({"a": Cost(2.0, 10.0)}, "")
    assert measured == [["a"]] * 3
