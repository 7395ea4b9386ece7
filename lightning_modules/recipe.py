"""How a network is trained: loss, optimiser, rate and schedule, and what its images are normalised by."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from lightning_modules.components.averaging import AVERAGES, AverageName
from lightning_modules.components.choices import one_of
from lightning_modules.components.losses import LOSSES, LossName
from lightning_modules.components.schedules import OPTIMIZERS, SCHEDULES, OptimizerName, ScheduleName

# Of ImageNet, which most encoders were trained on; a grey image takes their mean over the channels.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MEDIAN_FREQUENCY = "median-frequency"  # class_weights that are counted: components.losses.median_frequency_weights


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained. A paper file states its own as `recipe` of its module, by what it changes here.

    Raises ValueError for a setting that is none of its choices or outside of its range.

    Args:
        loss: what is minimised: cross-entropy as mean ("ce") or sum over an image, or see components/losses.py
        class_weights: one number a class, or "median-frequency", which is counted in the training masks
        optimizer: SGD with momentum, or AdamW
        lr: learning rate; some papers give parts of the network a multiple of it
        momentum: of SGD, the share of the last step that is added to the next one; of "adamw" its beta 1
        weight_decay: pulls the weights towards 0: the share of them that a step of rate 1 takes off
        schedule: of the rate over all steps: constant, poly as (1 - t)^0.9, or step to a tenth after each third
        warmup: share of all steps in which the rate rises to `lr`
        mean: of each channel, subtracted from images in [0, 1]; null takes that of the weights, or ImageNet's
        std: of each channel, by which images in [0, 1] are divided; null takes that of the weights, or ImageNet's
        average: what is scored: the last weights (none) or their exponential moving average (ema), recalibrate with
            batch-norm statistics computed again on training crops
        ema_decay: share of the moving average that a step keeps; null is 1 - 5/steps, a memory of a fifth of all
        channels_last: whether the channels of a pixel lie together in memory, which is faster for narrow networks on a
            CPU, and may be slower for others; it changes the rounding, and which values dropout draws
        checkpointing: whether the maps of the encoder are computed again backward instead of kept, which takes less
            memory and more time and changes no number
        compile: whether torch.compile makes the network faster in training, after a minute; it needs a C++ compiler
            and images of one size, and changes the rounding and which values dropout draws
    """

    loss: LossName = "ce"
    class_weights: Sequence[float] | str | None = None
    optimizer: OptimizerName = "sgd"
    lr: float | None = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: ScheduleName = "poly"
    warmup: float = 0.0
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    average: Annotated[AverageName, ("neutral", "none")] = "none"
    ema_decay: Annotated[float | None, ("neutral", None)] = None
    channels_last: Annotated[bool, ("neutral", False)] = False
    checkpointing: Annotated[bool, ("neutral", False)] = False
    compile: Annotated[bool, ("neutral", False)] = False

    def __post_init__(self) -> None:
        one_of("loss", self.loss, LOSSES)
        one_of("optimizer", self.optimizer, OPTIMIZERS)
        one_of("schedule", self.schedule, SCHEDULES)
        one_of("average", self.average, AVERAGES)
        for key, number in (("lr", self.lr), ("weight_decay", self.weight_decay)):
            if number is not None and not 0 <= number < math.inf:
                raise ValueError(f"{key} must be at least 0 and finite, got {number}")
        for key, share in (("momentum", self.momentum), ("warmup", self.warmup), ("ema_decay", self.ema_decay)):
            if share is not None and not 0 <= share < 1:
                raise ValueError(f"{key} must be at least 0 and less than 1, got {share}")
        if self.checkpointing and self.compile:
            raise ValueError(
                "checkpointing=True does not go with compile=True, which chooses by itself what is computed again: "
                "leave one of the two out"
            )
        if self.ema_decay is not None and not self.average.startswith("ema"):
            raise ValueError(
                f"ema_decay is of average='ema', got {self.ema_decay} with average={self.average!r}: leave it out"
            )

    def weight_of_class(self, num_classes: int) -> Tensor | None:
        """(C,) float32; NaN where the training masks have to be counted first."""
        weights = self.class_weights
        if weights is None:
            return None
        if weights == MEDIAN_FREQUENCY:
            return torch.full((num_classes,), torch.nan)
        if not isinstance(weights, Sequence) or isinstance(weights, str) or len(weights) != num_classes:
            raise ValueError(
                f"class_weights must hold one weight for each of the {num_classes} classes, or be "
                f"{MEDIAN_FREQUENCY!r}, got {weights!r}"
            )
        if not (all(0 <= weight < math.inf for weight in weights) and max(weights) > 0):
            raise ValueError(f"class_weights must be at least 0, finite, and one of them more, got {list(weights)}")
        return torch.tensor(weights, dtype=torch.float32)

    def per_channel(self, name: str, in_channels: int) -> Tensor:
        """`mean` or `std` of the images, (in_channels, 1, 1) float32."""
        values: Sequence[float] | None = getattr(self, name)
        if values is None:
            imagenet = IMAGENET_MEAN if name == "mean" else IMAGENET_STD
            values = imagenet if in_channels == 3 else [sum(imagenet) / 3] * in_channels
        if len(values) != in_channels:
            raise ValueError(f"{name} must hold one value for each of the {in_channels} channels, got {list(values)}")
        if not all(math.isfinite(value) and (value > 0 or name == "mean") for value in values):
            raise ValueError(f"{name} must be finite{' and more than 0' * (name == 'std')}, got {list(values)}")
        return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
