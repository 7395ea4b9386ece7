"""The drafted methods paragraph: what of the plan it says, whom it cites, and that it says nothing else."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from handmade import write_experiment

from experiments.evidence.experiment import Experiment, load_experiment
from experiments.reports import citations, methods
from experiments.reports.write import write_report
from experiments.shell.catalogue import ARCHITECTURES, DATAMODULES
from experiments.shell.citation import bibtex, key_of
from lightning_modules.components.encoders import NATIVE
from lightning_modules.components.losses import LOSSES
from lightning_modules.components.schedules import SCHEDULES
from lightning_modules.components.scores.table import PER_IMAGE
from lightning_modules.papers import PAPERS

BUDGET = {
    "steps": 1240,
    "batch": 4,
    "accumulation": 1,
    "images": 4960,
    "epochs": 12,
    "train_images": 82,
    "test_images": 3,
    "test_size": [233, 197],
    "optimizer": "adamw",
    "lr": 0.005,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "schedule": "poly",
    "warmup": 0.0,
    "loss": "lovasz",
    "class_weights": [0.5, 3.0],
    "average": "recalibrate",
    "ema_decay": None,
    "rates": [[1.0, 1e-4]],
    "precision": "32-true",
    "gradient_clip_val": None,
    "start": "random weights",
    "steps_before": 0,
    "augmentation": {"crop": [96, 128], "zoom": [0.75, 1.5], "flip": True, "jitter": 0.1, "elastic": 0.0},
}
SETTINGS = {
    "module": "lightning_modules.unet.UNetModule",
    "hparams.optimizer": "adamw",
    "hparams.schedule": "poly",
    "hparams.loss": "lovasz",
    "hparams.class_weights": [0.5, 3.0],
}


def planned(folder: Path, **changed: Any) -> Experiment:
    """The experiment made by hand, with a budget and other changes in its plan."""
    write_experiment(folder)
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    plan |= {"budget": {name: BUDGET for name in plan["variants"]}, "common": SETTINGS, "data": "brain"} | changed
    (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    return load_experiment(folder)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return planned(tmp_path_factory.mktemp("outputs") / "study")


def test_every_number_is_of_the_plan_or_the_cells(experiment: Experiment) -> None:
    text = dict(methods.methods(experiment))
    plan, family = experiment.plan, experiment.family
    assert "82 training" in text["Data"] and "233 x 197 pixels" in text["Data"]
    assert f"There are {len(plan['class_names'])} classes" in text["Data"]
    assert f"We compare {len(plan['variants'])} variants of UNet" in text["Networks"]
    assert plan["baseline"] in text["Networks"]
    trained = "12 epochs (1,240 optimiser steps of 4 images) from random weights, by AdamW"
    assert (
        trained in text["Training"] and "learning rate 0.005, which falls to 0 by the poly schedule" in text["Training"]
    )
    assert "the Lovász-softmax loss" in text["Training"] and "class weights 0.5 and 3" in text["Training"]
    assert "crops of 96 x 128 pixels, scaled by a factor between 0.75 and 1.5, mirrored at random" in text["Training"]
    assert f"with {len(plan['seeds'])} random seeds, the same for all" in text["Statistics"]
    assert f"{family.df:g} degrees of freedom" in text["Statistics"]
    assert f"The intervals of the {family.judged} differences" in text["Statistics"]
    assert "not for other images" in text["Statistics"]


def test_what_was_not_done_is_not_said(experiment: Experiment) -> None:
    text = "\n".join(part for _, part in methods.methods(experiment))
    for word in ("tried", "elastic", "Gradients", "precision", "Bonferroni", "Stein", "equivalent", "moving average"):
        assert word not in text, word
    assert "No setting was searched within this experiment" in text


def test_what_was_done_is_said(tmp_path: Path) -> None:
    changed: dict[str, Any] = {"statistics": {"variances": "separate", "margin": 1.5, "until": 2.0}}
    write_experiment(tmp_path / "a")
    baseline = json.loads((tmp_path / "a" / "plan.json").read_text(encoding="utf-8"))["baseline"]
    budget = BUDGET | {"gradient_clip_val": 1.0, "precision": "bf16-mixed", "average": "ema", "schedule": "step"}
    names = json.loads((tmp_path / "a" / "plan.json").read_text(encoding="utf-8"))["variants"]
    changed |= {"budget": dict.fromkeys(names, budget)}
    changed |= {
        "tuning": {
            "seed": 77,
            "settings": {"lr": [0.01, 0.1]},
            "trials": {name: [{"values": {"lr": lr}, "miou": lr} for lr in (0.01, 0.1)] for name in names},
            "chosen": {name: {"lr": 0.1} for name in names},
        }
    }
    text = "\n".join(part for _, part in methods.methods(planned(tmp_path / "b", **changed)))
    for words in (
        "we tried lr (0.01 and 0.1)",
        "Gradients are cut off at a norm of 1.",
        "The precision is bf16-mixed.",
        "an exponential moving average of the weights",
        "divided by 10 after each third",
        "Bonferroni's correction",
        "Stein's procedure",
        "equivalent within 1.5 points",
        "a learning rate that was tuned",
    ):
        assert words in text, words
    assert baseline in text


def test_whom_it_cites(experiment: Experiment) -> None:
    cited = methods.cited([experiment])
    assert cited[:2] == ["10.1016/j.neuroimage.2010.07.033", PAPERS["unet"].cited]
    assert {citations.ADAMW, citations.V2, citations.LOSSES["lovasz"], methods.HOTHORN} <= set(cited)
    assert citations.FREQUENCIES not in cited
    entries = methods.to_bibtex([experiment])
    keys = re.findall(r"^@\w+\{([^,]+),$", entries, re.MULTILINE)
    text = methods.to_markdown([experiment])
    assert len(keys) == len(cited) == len(set(keys))
    of_tables = {key_of(score.cited) for score in PER_IMAGE.values() if score.cited}  # which the text does not name
    named = set(re.findall(r"@([\w]+)", text))
    assert named <= set(keys) <= named | of_tables
    tex = methods.to_latex([experiment])
    assert {key for some in re.findall(r"\\cite\{([^}]+)\}", tex) for key in some.split(",")} == named


def test_variants_that_differ_cite_what_each_is_of(tmp_path: Path) -> None:
    write_experiment(tmp_path)
    plan = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    plan["common"] = {"module": "lightning_modules.deeplabv3plus.DeepLabV3PlusModule"}
    encoders = {"hparams.encoder": ["resnet50", "xception65"], "hparams.loss": ["ce", "focal"]}
    plan["differences"] = dict.fromkeys(plan["variants"], encoders)
    networks = citations.citations_of(plan, "networks")
    wanted = [PAPERS["deeplabv3plus"].cited, citations.ENCODERS["resnet"], citations.ENCODERS["xception"]]
    assert networks == wanted and citations.citations_of(plan, "loss") == [citations.LOSSES["focal"]]
    plan["variants"][plan["baseline"]]["levels"] = {"crf": "dense"}
    assert citations.DENSE_CRF in citations.citations_of(plan, "networks")


def test_everything_that_can_be_chosen_has_its_reference() -> None:
    assert citations.DATA.keys() == DATAMODULES.keys()
    assert {name.split("_")[0] for name in PAPERS} <= {name.split("_")[0] for name in ARCHITECTURES}
    assert methods.LOSSES.keys() == LOSSES.keys() and methods.SCHEDULES.keys() == SCHEDULES.keys()
    for name in NATIVE:
        assert citations._of_encoder(name), name
    every = [*citations.LOSSES.values(), *citations.ENCODERS.values(), *citations.LAYERS.values()]
    every += [*citations.CRFS.values(), citations.ADAMW, citations.V2, citations.FREQUENCIES, citations.TORCH]
    every += [citations.LIGHTNING, methods.HOTHORN, methods.STEIN, *sum(citations.DATA.values(), ())]
    for address in every:
        assert bibtex(address).startswith("@")


def test_names_of_users_are_escaped(tmp_path: Path) -> None:
    write_experiment(tmp_path)
    plan = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    names = [f"{name} 50% & <b>_{k}" for k, name in enumerate(plan["class_names"])]
    experiment = planned(tmp_path / "named", data_note=f"About {' '.join(names)}.")
    assert r"50\% \& \textless{}b\textgreater{}\_0" in methods.to_latex([experiment])
    assert "50% &amp; &lt;b>" in methods.to_markdown([experiment])


def test_a_report_writes_them(tmp_path: Path) -> None:
    folder = planned(tmp_path / "study").folder
    write_report(folder)
    for name in ("methods.md", "methods.tex", "references.bib"):
        assert (folder / name).stat().st_size > 500, name
