"""How large a data set is trained in a study: as the data set states it, or by a rule from its images."""

import inspect
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from datamodules.base import SegmentationDataModule


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The settings of a training that depend on the data, for two CPU cores or for a GPU.

    Args:
        data: arguments of the data module
        epochs: passes over the training images
        validate_every: epochs from one validation to the next
        batches: most batches of an epoch; None for all
        class_weights: of the loss: a number for each class, "median-frequency", or None for equal ones
        reason: why these, for a plan and a report; empty where the data set states them
    """

    data: Mapping[str, Any] = field(default_factory=dict)
    epochs: int
    validate_every: int
    batches: int | None = None
    class_weights: tuple[float, ...] | str | None = None
    reason: str = ""


@dataclass(frozen=True)
class _Limits:
    longest: int | None  # pixels that the longer side of an image is scaled down to; None leaves the images as they are
    crop: int  # pixels of its longer side at most
    step: int  # the crop is a multiple of it
    batch: int
    steps: int  # of the optimiser, about
    epochs: int  # at most


CPU = _Limits(longest=192, crop=96, step=16, batch=4, steps=300, epochs=150)
GPU = _Limits(longest=None, crop=512, step=32, batch=16, steps=20_000, epochs=200)
LOOKED_AT = 32  # training images whose sizes and labels are looked at, evenly spread
VALIDATIONS = {CPU: 3, GPU: 10}
RARE = 0.1  # a class with less than this share of an equal one is lost without its weight


def scale_by_rule(
    datamodule: type["SegmentationDataModule"],
    arguments: Mapping[str, Any],
    *,
    full_size: bool = False,
    epochs: int | None = None,
) -> Scale:
    """The scale at which images of these sizes and this number train, in minutes on two CPU cores or at `full_size`.

    `arguments` of the data module and `epochs` stay as they are given. Verifies the data and reads up to 32 training
    images. Raises FileNotFoundError where there are none, and ValueError for bad ones.
    """
    limits = GPU if full_size else CPU
    takes = inspect.signature(datamodule).parameters
    data = datamodule(**arguments)
    data.verify()
    images = data.dataset("train")
    count = len(images)
    places = sorted({round(i * (count - 1) / (LOOKED_AT - 1)) for i in range(LOOKED_AT)})
    pixels, sizes = torch.zeros(data.num_classes, dtype=torch.int64), []
    for place in places:
        _, mask = images[place]
        pixels += torch.bincount(mask[mask != data.ignore_index], minlength=data.num_classes)
        sizes.append(tuple(mask.shape))
    height, width = (median(side) for side in zip(*sizes, strict=True))
    chosen: dict[str, Any] = {}
    said = [f"median size {height:g} x {width:g} pixels"]
    if limits.longest and "scale" in takes and "scale" not in arguments and max(height, width) > limits.longest:
        chosen["scale"] = round(limits.longest / max(height, width), 3)
        height, width = chosen["scale"] * height, chosen["scale"] * width
        said.append(f"scale {chosen['scale']:g}")
    if "crop" in takes and "crop" not in arguments:
        high, wide = (_multiple(min(side, limits.crop), limits.step) for side in (height, width))
        chosen["crop"] = (high, wide)
        said.append(f"crop {high} x {wide}" + (", which pads the images" if high > height or wide > width else ""))
    if "zoom" in takes and "zoom" not in arguments:
        chosen["zoom"] = (0.75, 1.5)
        said.append("zoom 0.75 to 1.5")
    if "flip" in takes and "flip" not in arguments and _have_sides(data.class_names):
        chosen["flip"] = False
        said.append("not mirrored, as left and right are classes")
    if "batch_size" in takes and "batch_size" not in arguments:
        chosen["batch_size"] = min(limits.batch, count)
    batch = {"batch_size": data.batch_size, **chosen}["batch_size"]
    if full_size and "num_workers" in takes and "num_workers" not in arguments:
        chosen["num_workers"] = 8
    if batch > count:
        raise ValueError(f"--data.batch_size must be at most the {count} training images, got {batch}")
    an_epoch, validations, asked = count // batch, VALIDATIONS[limits], epochs is not None
    if epochs is None:
        epochs = min(limits.epochs, max(1, round(limits.steps / an_epoch)))
        epochs = validations * round(epochs / validations) if epochs >= validations else epochs
    batches = limits.steps if an_epoch > 2 * limits.steps else None
    steps = epochs * (batches or an_epoch)
    weights, why = _weights(pixels, data.class_names)
    limited = f" of {batches} batches" if batches else ""
    reason = (
        f"The settings follow from the data by rule. {count:,} training image{'s' * (count > 1)}, {len(places)} looked "
        f"at: {', '.join(said)}; batches of {batch} and {epochs} epoch{'s' * (epochs > 1)}{limited}"
        f"{', as asked for,' * asked} make {steps:,} steps; {why}."
    )
    every = max(n for n in range(1, max(1, epochs // validations) + 1) if epochs % n == 0)
    return Scale(
        data=chosen, epochs=epochs, validate_every=every, batches=batches, class_weights=weights, reason=reason
    )


def _have_sides(names: list[str]) -> bool:
    """Whether a mirrored image would have the labels of another one: "left_lung" and "right_lung"."""
    words = {word for name in names for word in re.split(r"[\W_]+", name.lower())}
    return {"left", "right"} <= words


def _multiple(side: float, step: int) -> int:
    """The largest multiple of `step` that is not longer than a side, and at least one that a network can halve."""
    return max(32, math.floor(side / step) * step)


def _weights(pixels: torch.Tensor, names: list[str]) -> tuple[str | None, str]:
    shares = pixels / max(1, int(pixels.sum()))
    rarest = int(shares.argmin())
    if not int(pixels[rarest]):
        return (
            "median-frequency",
            f"none of these has the class {names[rarest]}, so classes are weighted by median frequency",
        )
    said = f"the rarest class, {names[rarest]}, has {100 * float(shares[rarest]):.2g} % of the labelled pixels"
    if float(shares[rarest]) < RARE / len(names):
        return "median-frequency", f"{said}, so classes are weighted by median frequency"
    return None, f"{said}, so classes have equal weights"
