"""What a result says of its scores beside the numbers: of which images they are, and whether anything was learnt."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from datamodules.base import SegmentationDataModule
from datamodules.checks.problems import shown
from lightning_modules.base import SegmentationModule
from lightning_modules.components.scores.reductions import at_chance, constant_class, scores
from lightning_modules.recipe import MEDIAN_FREQUENCY


def what_was_scored(datamodule: SegmentationDataModule, confusion: np.ndarray) -> dict[str, Any]:
    """Entries of result.json that only those runs have which need them, so that all others stay as they were.

    `scored`: "val" where the data have no test split. `constant`: the one class that was predicted at every labelled
    pixel, by the confusion matrix (C, C) of the scored images. `chance`: where several were, but no better than by
    guessing, the class accuracy.
    """
    entries: dict[str, Any] = {**scored_entry(datamodule)}
    if (constant := constant_class(confusion)) is not None:
        return entries | {"constant": datamodule.class_names[constant]}
    return entries | ({"chance": float(scores(confusion)["macc"])} if at_chance(confusion) else {})


def scored_entry(datamodule: SegmentationDataModule) -> dict[str, str]:
    """For a file or a tracker, where metrics keep their names: "test/miou" is then of the images of val."""
    return {} if datamodule.scored == "test" else {"scored": datamodule.scored}


def scored_split(result: Mapping[str, Any]) -> str:
    """The split that the final scores of a result.json are of."""
    return "val" if result.get("scored") == "val" else "test"


def alone(*modules: SegmentationModule) -> list[str]:
    """A line on what these networks answer to an image alone; none where they were trained to."""
    if not any(module.given(module.hparams) for module in modules):
        return []
    return ["no boxes: the whole image is the one box of every class, which the network was not trained on"]


def told(result: Mapping[str, Any], class_weights: Any = None) -> str:
    """The score of a finished run in a line, with what has to be known of it; `class_weights` are those of its loss."""
    split = scored_split(result)
    said = [f"{split}/miou {result['test']['miou']:.4f}, {result['seconds']:.0f} s"]
    if split != "test":
        said.append(f"scored on {split}: no test split")
    if "given" in result:
        said.append("told the boxes of the objects, so not comparable with an architecture that is not")
    if "constant" in result or "chance" in result:
        ways = ["train longer (--trainer.max_epochs)", "raise --model.lr"]
        if class_weights is None:
            ways.append(f"weight the classes (--model.class_weights {MEDIAN_FREQUENCY})")
        *first, last = ways
        found = f"its class accuracy, {shown(_percent(result.get('chance')))}, is no better than chance"
        if "constant" in result:
            found = f"it predicts {shown(str(result['constant']))} everywhere"
        said.append(f"{found}: {', '.join(first)}, or {last}")
    return "; ".join(said)


def _percent(value: Any) -> str:
    return f"{100 * value:.1f} %" if isinstance(value, float) else str(value)
