"""bfloat16 on a CPU that has no instructions for it: one line, before a training and in the plan of a grid."""

from pathlib import Path

import pytest
from interrupt import BASE, QUIET
from rich.console import Console

from experiments.grids import plan as grids_plan
from experiments.grids.ablation import Ablation, variants
from experiments.grids.cost import Cost
from experiments.grids.plan import make_plan, show_plan
from experiments.runs.training import train
from experiments.shell import environment
from experiments.shell.environment import slow_precision

BF16 = BASE.but(trainer={"max_epochs": 1, "precision": "bf16-mixed"})


@pytest.mark.parametrize(
    ("core", "able"),
    [
        ({"flags": "fpu sse2 avx2"}, False),
        ({"flags": "fpu avx2 avx512bw avx512vl avx512dq"}, False),  # torch says that it supports it
        ({"flags": "fpu avx512_bf16"}, True),
        ({"flags": "amx_bf16 fpu"}, True),
        ({"features": "fp asimd i8mm bf16"}, True),
        ({"features": "fp asimd"}, False),
        ({}, True),  # macOS, Windows: not known
    ],
)
def test_the_instructions_decide(core: dict[str, str], able: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_first_core", lambda: core)
    assert bool(slow_precision("bf16-mixed", "cpu")) != able
    assert bool(slow_precision("bf16-true", "cpu")) != able
    assert not slow_precision("bf16-mixed", "cuda")
    assert not slow_precision("32-true", "cpu") and not slow_precision(None, "cpu")


def test_a_training_says_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(environment, "_first_core", lambda: {"flags": "avx2"})
    train(BF16, tmp_path / "slow", **QUIET)
    told = capsys.readouterr().err
    assert told.count("this CPU has no bf16 instructions") == 1
    assert "--trainer.precision bf16-mixed: " in told and "leave it out" in told
    train(BASE.but(trainer={"max_epochs": 1}), tmp_path / "usual", **QUIET)
    assert "bf16" not in capsys.readouterr().err


def test_a_plan_says_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(environment, "_first_core", lambda: {"flags": "avx2"})
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(
        grids_plan, "costs_of", lambda runs, **_: ({name: Cost(1.0, 1.0) for name in runs}, "measured earlier")
    )
    runs = variants(BF16, {"narrow": {}, "wide": {"width": 4}})
    ablation = Ablation(name="x", question="?", runs=runs, factors={"width": (2, 4)}, baseline="narrow")
    show_plan(make_plan(ablation, tmp_path, [0], 1, 1, lambda line: None), Console(width=160))
    printed = capsys.readouterr().out
    assert printed.count("has no bf16 instructions") == 1
    assert "measured earlier\n" in printed
