"""The guard: unfair grids are refused, declared inequality is said, arms match, and cells are held to their plan."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console

from datamodules.base import SegmentationDataset
from datamodules.shapes import Shapes, ShapesDataModule
from experiments.evidence.deviations import planned, unequal
from experiments.grids.ablation import Ablation, Match, crossed, variants
from experiments.grids.bases import Base
from experiments.grids.fairness import Splits, budget, check_fair, check_matched, match, matched, size
from experiments.grids.plan import make_plan, show_plan
from experiments.grids.study import Study
from experiments.runs.run import Run, setting
from experiments.runs.training import train
from lightning_modules.fcn import FCNModule
from lightning_modules.segnet import SegNetModule
from lightning_modules.unet import UNetModule

BASE = Run(
    module=UNetModule,
    datamodule=ShapesDataModule,
    hparams={"width": 4, "depth": 1},
    data={"size": 24, "length": 6, "batch_size": 2},
    trainer={"max_epochs": 2},
)


class FewerShapes(ShapesDataModule):
    """The same images but for a training split of half as many."""

    def load(self, split: str) -> SegmentationDataset:
        return Shapes(split, self.length // 2 if split == "train" else self.length, self.size)


def grid(factors: dict[str, Any], matched: dict[str, Match] | None = None, **runs: Run) -> Ablation:
    return Ablation(
        name="tiny", question="?", runs=runs, factors=factors, baseline=next(iter(runs)), matched=matched or {}
    )


def splits(run: Run) -> Splits:
    data = run.datamodule(**run.data)
    return Splits(len(data.dataset("train")), tuple(data.dataset("test").names), (24, 24))


def printed_plan(ablation: Ablation, out: Path) -> tuple[dict[str, Any], str]:
    """What plan.json will hold, and what a person sees of it, on one line."""
    plan = make_plan(ablation, out, seeds=[0], jobs=1, threads=1, say=lambda message: None)
    console = Console(width=200, record=True, file=io.StringIO())
    show_plan(plan, console)
    return json.loads(json.dumps(plan.content())), " ".join(console.export_text().split())


# What can be unfair.


NEAREST = BASE.but(upsample="nearest")
UPSAMPLE = {"upsample": ("transposed-2", "nearest")}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (NEAREST.but(lr=0.5), r"hparams\.lr: 0\.001 against 0\.5"),
        (NEAREST.but(schedule="poly"), r"hparams\.schedule: 'constant' against 'poly'"),
        (NEAREST.but(class_weights=(1.0, 2.0, 1.0)), r"hparams\.class_weights: None against \(1\.0, 2\.0, 1\.0\)"),
        (NEAREST.but(**{"trainer.max_epochs": 3}), r"trainer\.max_epochs: 2 against 3"),
        (NEAREST.but(**{"trainer.precision": "bf16-mixed"}), r"trainer\.precision: not set against 'bf16-mixed'"),
        (NEAREST.but(**{"trainer.accumulate_grad_batches": 2}), r"trainer\.accumulate_grad_batches: not set against 2"),
        (NEAREST.but(**{"data.batch_size": 3}), r"data\.batch_size: 2 against 3"),
        (NEAREST.but(**{"data.crop": 16}), r"data\.crop: None against 16"),
        (NEAREST.but(**{"data.jitter": 0.0}), r"data\.jitter: 0\.2 against 0\.0"),
        (NEAREST.but(seed=1), "seed: 0 against 1"),
    ],
)
def test_what_is_not_declared_is_refused_with_both_values_and_the_way_out(other: Run, message: str) -> None:
    wanted = rf"'other' differs from the baseline 'base'.*declared factors \(upsample\): {message}\. Make it equal, or"
    with pytest.raises(ValueError, match=wanted):
        check_fair(grid(UPSAMPLE, base=BASE, other=other))


def test_a_level_that_is_not_declared_and_a_variant_twice_are_refused() -> None:
    with pytest.raises(ValueError, match="'other' has upsample='bilinear', which is none of the declared levels"):
        check_fair(grid(UPSAMPLE, base=BASE, other=BASE.but(upsample="bilinear")))
    with pytest.raises(ValueError, match="'other' and 'base' are the same run"):
        check_fair(grid(UPSAMPLE, base=BASE, other=BASE.but(upsample="transposed-2")))


def test_a_rate_that_a_module_chooses_by_a_factor_is_refused_unless_declared() -> None:
    # FCN trained in stages has a rate for each stride, which the settings do not show_plan: lr is None in all.
    staged = Run(module=FCNModule, datamodule=ShapesDataModule, hparams={"at_once": False}, trainer={"max_epochs": 1})
    runs = variants(staged.but(encoder="resnet50", encoder_width=0.125), crossed(stride=(32, 16)))
    with pytest.raises(
        ValueError, match=r"'stride 16' does not get the budget.*: lr 1e-10 against 1e-12.*hparams\.lr in both"
    ):
        check_fair(grid({"stride": (32, 16)}, **runs))
    stated = {name: run.but(lr=rate) for (name, run), rate in zip(runs.items(), (1e-10, 1e-12), strict=True)}
    budgets = check_fair(grid({"stride": (32, 16), "lr": (1e-10, 1e-12)}, **stated))
    assert [of_one["lr"] for of_one in budgets.values()] == [1e-10, 1e-12]


def test_two_architectures_differ_in_what_only_one_has_but_not_in_the_recipe() -> None:
    u_net = Run(module=UNetModule, datamodule=ShapesDataModule, hparams={"width": 4}, trainer={"max_epochs": 1})
    segnet = Run(module=SegNetModule, datamodule=ShapesDataModule, hparams={"width": 4}, trainer={"max_epochs": 1})
    modules = {"module": tuple(run.resolved()["module"] for run in (u_net, segnet))}
    with pytest.raises(
        ValueError,
        match=r"hparams\.class_weights: None against 'median-frequency'; hparams\.loss: 'ce' against 'ce_per_pixel'; "
        r"hparams\.lr: 0\.001",
    ):
        check_fair(grid(modules, base=u_net, segnet=segnet))
    recipe: dict[str, Any] = {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.0, "class_weights": None, "loss": "ce"}
    check_fair(grid(modules, base=u_net.but(**recipe), segnet=segnet.but(**recipe)))


def test_data_that_give_another_number_of_steps_are_refused_unless_the_length_is_declared() -> None:
    fewer = Run(module=UNetModule, datamodule=FewerShapes, hparams=BASE.hparams, data=BASE.data, trainer=BASE.trainer)
    kinds = tuple(run.resolved()["datamodule"] for run in (BASE, fewer))
    message = r"'fewer' does not get the budget.*\(datamodule\) is about it: steps 6 against 2.*trainer\.max_epochs or"
    with pytest.raises(ValueError, match=message):
        check_fair(grid({"datamodule": kinds}, base=BASE, fewer=fewer))
    longer = fewer.but(**{"trainer.max_epochs": 6})
    budgets = check_fair(grid({"datamodule": kinds, "trainer.max_epochs": (2, 6)}, base=BASE, fewer=longer))
    assert [(b["steps"], b["train_images"]) for b in budgets.values()] == [(6, 6), (6, 3)]


def test_test_splits_of_other_images_are_refused() -> None:
    lengths = {"data.length": (6, 8)}
    with pytest.raises(ValueError, match=r"test splits of other images \(6, 8 of them\).*give all the same test split"):
        check_fair(
            grid(
                {**lengths, "trainer.max_steps": (4,)},
                **variants(
                    BASE.but(**{"trainer.max_steps": 4}), {"base": {"data.length": 6}, "more": {"data.length": 8}}
                ),
            )
        )


# What a budget is.


class Seen(Callback):
    """Counts the images of all training batches."""

    images = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.images += len(batch["image"])


@pytest.mark.parametrize(
    "trainer",
    [
        {"max_epochs": 2},
        {"max_epochs": 3, "max_steps": 4},
        {"max_steps": 5},
        {"max_epochs": 2, "accumulate_grad_batches": 2},
        {"max_epochs": 2, "limit_train_batches": 1},
        {"max_epochs": 2, "limit_train_batches": 0.7},
        {"max_epochs": 2, "limit_train_batches": 3, "accumulate_grad_batches": 2},
        {"max_steps": 3, "limit_train_batches": 3, "accumulate_grad_batches": 2},
    ],
    ids=str,
)
def test_the_steps_are_those_that_the_trainer_takes(trainer: dict[str, Any], tmp_path: Path) -> None:
    run = Run(module=UNetModule, datamodule=ShapesDataModule, hparams=BASE.hparams, data=BASE.data, trainer=trainer)
    seen = Seen()
    result = train(run, tmp_path, callbacks=[seen], accelerator="cpu", devices=1)
    found = budget(run, splits(run))
    assert (found["steps"], found["epochs"]) == (result["steps"], result["epochs"])
    assert found["images"] == seen.images


def test_a_budget_names_the_checkpoint_it_starts_from_and_all_steps_behind_it(tmp_path: Path) -> None:
    recipe = {"encoder": "resnet50", "encoder_width": 0.125, "at_once": False, "lr": 1e-3, "loss": "ce"}
    first = Run(
        module=FCNModule,
        datamodule=ShapesDataModule,
        hparams={**recipe, "stride": 32},
        data=BASE.data | {"size": 64},
        trainer={"max_epochs": 1},
    )
    train(first, tmp_path / "32", accelerator="cpu", devices=1)
    second = first.but(stride=16, init_from=str(tmp_path / "32" / "checkpoints" / "last.ckpt"))
    assert budget(second, splits(second))["steps_before"] == 3
    train(second, tmp_path / "16", accelerator="cpu", devices=1)
    third = first.but(stride=8, init_from=str(tmp_path / "16" / "checkpoints" / "last.ckpt"))
    found = budget(third, splits(third))
    assert found["steps_before"] == 6  # of both stages
    assert found["start"] == f"the checkpoint {tmp_path / '16' / 'checkpoints' / 'last.ckpt'}"
    with pytest.raises(ValueError, match=r"'staged' differs .* hparams\.init_from: None against"):
        check_fair(grid({"stride": (32, 16)}, base=first, staged=second))


def test_an_epoch_without_a_step_is_refused(tmp_path: Path) -> None:
    few = BASE.but(**{"data.batch_size": 8})
    with pytest.raises(
        ValueError, match="base would be trained for no step: a batch of 8 images is more than the 6 train"
    ):
        printed_plan(grid(UPSAMPLE, base=few, other=few.but(upsample="nearest")), tmp_path)


def test_names_of_parts_are_settings_of_those_parts() -> None:
    names = ("lr", "data.crop", "trainer.max_epochs", "module")
    assert [setting(name) for name in names] == ["hparams.lr", "data.crop", "trainer.max_epochs", "module"]
    run = BASE.but(**{"data.crop": 16, "trainer.max_epochs": 5}, upsample="nearest")
    assert (run.data["crop"], run.trainer["max_epochs"], run.hparams["upsample"]) == (16, 5, "nearest")
    assert BASE.trainer["max_epochs"] == 2


# Matching.


@pytest.mark.parametrize("width", [1, 3, 4, 7, 11])
def test_match_finds_the_width_again(width: int) -> None:
    for of in ("parameters", "gmac"):
        assert match(BASE, BASE.but(width=width), of=of, by="width") == width


def test_match_takes_the_nearest_width() -> None:
    like = BASE.but(width=16, skips="none")  # fewer parameters than a network of the same width with skips
    target = size(like, "parameters")
    gaps = {width: abs(size(BASE.but(width=width), "parameters") - target) for width in range(1, 32)}
    assert match(BASE, like) == min(gaps, key=lambda width: gaps[width]) < 16


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"by": "upsample"}, r"whole number \(width, depth\), got upsample='transposed-2'"),
        ({"by": "skips"}, "got skips='concat'"),
        ({"of": "seconds"}, "of must be one of parameters, gmac, got 'seconds'"),
    ],
)
def test_what_cannot_be_matched_is_refused(changed: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        match(BASE, BASE.but(width=8), **changed)


def test_a_network_that_is_too_large_at_its_least_cannot_be_matched() -> None:
    with pytest.raises(ValueError, match=r"width = 1 has .* parameters already where .* are wanted"):
        match(BASE.but(depth=4), BASE.but(width=1))


def test_an_arm_outside_the_tolerance_is_refused_with_the_width_that_fits() -> None:
    how = Match(of="parameters", like="base")
    wide = BASE.but(width=16)
    unmatched = grid({"skips": ("concat", "none")}, {"none": how}, base=wide, none=wide.but(skips="none"))
    with pytest.raises(
        ValueError,
        match=r"'none' is to match 'base' in parameters within 5 %, but has 23,411 against 25,715 "
        r"\(-9\.0 %\).*width=17 fits: Match\(by='width'",
    ):
        check_fair(unmatched)
    how = Match(of="parameters", like="base", by="width")
    none = matched(wide.but(skips="none"), wide, how)
    assert none.hparams["width"] == 17
    fitting = grid({"skips": ("concat", "none")}, {"none": how}, base=wide, none=none)
    check_fair(fitting)  # the width follows, so it is no factor that would have to be declared
    assert abs(check_matched(fitting)["none"] - 1) < 0.05
    with pytest.raises(ValueError, match=r"hparams\.width: 16 against 17"):
        check_fair(grid({"skips": ("concat", "none")}, base=wide, none=none))


@pytest.mark.parametrize(
    ("changed", "how", "message"),
    [
        ({"dropout": 0.5}, Match(of="parameters", like="base", by="dropout", tolerance=0.2), r"by dropout=0\.5, which"),
        ({"norm": "group"}, Match(of="parameters", like="base", by="norm", tolerance=0.2), r"by norm='group', which"),
        (
            {"trainer.limit_val_batches": 1},
            Match(of="parameters", like="base", by="trainer.limit_val_batches", tolerance=0.2),
            "by trainer.limit_val_batches=1, which does not set its size",
        ),
        ({"width": 16}, Match(of="parameters", like="other", by="width"), "'other', which is matched itself"),
        ({"width": 16}, Match(of="parameters", like="base", by="width", tolerance=float("nan")), "within nan %"),
    ],
)
def test_a_match_lets_no_other_difference_through(changed: dict[str, Any], how: Match, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_fair(grid(UPSAMPLE, {"other": how}, base=BASE, other=NEAREST.but(**changed)))


def test_matched_names_variants() -> None:
    with pytest.raises(ValueError, match=r"matched must name variants \(base, other\), got 'else'"):
        grid(UPSAMPLE, {"other": Match(of="gmac", like="else")}, base=BASE, other=NEAREST)


# What plan and report say.


def test_a_declared_budget_is_allowed_and_said(tmp_path: Path) -> None:
    study = Study(
        name="long",
        question="?",
        baseline="short",
        variants={"short": {"trainer.max_epochs": 1}, "long": {"trainer.max_epochs": 2}},
        base=Base(module=BASE.module, hparams=BASE.hparams, data=BASE.data),
    )
    ablation = study.ablation("shapes")
    assert ablation.factors == {"trainer.max_epochs": [1, 2]}
    assert "epochs" not in ablation.scale_note
    with pytest.raises(ValueError, match=r"--epochs is for studies whose variants share trainer\.max_epochs"):
        study.ablation("shapes", epochs=3)
    plan, printed = printed_plan(ablation, tmp_path)
    said = "Not of equal budget, as declared: long differs from short in steps (6, not 3), images (12, not 6)."
    assert unequal(plan) == [said]
    budgets = plan["budget"] | {"again": plan["budget"]["long"]}
    assert unequal(plan | {"budget": budgets}) == [said.replace("long differs", "long; again differ")]
    assert said in printed
    assert "Budget of short: 3 optimiser steps of 2 images (6 images seen, 1 epoch of 6 training images)" in printed
    assert [plan["budget"][name]["steps"] for name in ("short", "long")] == [3, 6]
    assert plan["differences"] == {"short": {}, "long": {"trainer.max_epochs": [1, 2]}}
    assert (planned(plan, "short")["trainer.max_epochs"], planned(plan, "long")["trainer.max_epochs"]) == (1, 2)
    assert "trainer.max_epochs" not in plan["common"]


def test_the_plan_shows_factors_what_follows_and_the_sizes(tmp_path: Path) -> None:
    how = Match(of="gmac", like="base", by="width")
    wide = BASE.but(width=16)
    none = matched(wide.but(skips="none"), wide, how)
    assert none.hparams["width"] > 16
    ablation = grid({"skips": ("concat", "none")}, {"none": how}, base=wide, none=none)
    plan, printed = printed_plan(ablation, tmp_path)
    ratio = plan["matched"]["none"].pop("ratio")
    values = [16, none.hparams["width"]]
    assert plan["matched"]["none"] == {"of": "gmac", "like": "base", "by": "width", "tolerance": 0.05, "values": values}
    arm = f"none with base (ratio {ratio:.3f}, by width from 16 to {values[1]})"
    assert f"Matched in GMAC of a training crop, within 5 %: {arm}." in printed
    for part in (
        "(width)",
        "skips",
        "Budget of every variant: 6 optimiser steps of 2 images",
        "augmentation crop [24, 24]",
    ):
        assert part in printed
    assert "Not of equal budget" not in printed
