"""What every architecture shares: steps, scores, logged names, normalisation, optimiser, self-describing checkpoint."""

import math
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_modules.components.finite import finite_losses, labelled_logits, naming
from lightning_modules.components.float64 import for_float64
from lightning_modules.components.losses import LOSSES
from lightning_modules.components.schedules import OPTIMIZERS, SCHEDULES, schedule
from lightning_modules.components.scores.metrics import LossMean, Scores
from lightning_modules.components.scores.reductions import scores

Refinement = Callable[[Tensor, Tensor], Tensor]  # (N, C, H, W) probabilities, (N, in_channels, H, W) images in [0, 1]
Batch = dict[str, Tensor]  # "image": (N, in_channels, H, W) float in [0, 1]; "mask": (N, H, W) long; "index": (N,) long

# Of ImageNet, which most encoders were trained on; a grey image takes their mean over the channels.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

MEDIAN_FREQUENCY = "median-frequency"  # class_weights that are counted: components.losses.median_frequency_weights


class SegmentationModule(LightningModule):
    """Trains and scores `self.network`, which maps images (N, in_channels, H, W) to logits (N, num_classes, H, W).

    A subclass assigns `self.network`, hands the keyword arguments it does not use to this class, and overrides only
    what its paper does differently: defaults of the recipe, `loss` for auxiliary heads. Logs train/loss, train/lr and, for
    val and test, loss, miou, pixel_acc, macc, fwiou, boundary_f1, checkerboard and iou/<class>.

    `optimizer`, `lr`, `momentum`, `weight_decay`: see `components.schedules`; `schedule` falls over all steps after a
    linear rise over the share `warmup` of them. `loss` and `class_weights`: see `components.losses`; the weights are
    one number a class, or "median-frequency" for what `experiments.runs.training` counts in the training masks and the checkpoint
    then carries. `mean` and `std`, one value a channel for images in [0, 1], belong to the weights, so the checkpoint
    carries them.

    `refine` is what follows the network, such as the fully connected CRF of DeepLab (v1, Sec. 3): None until someone
    assigns a function of class probabilities and images that returns probabilities. It works in evaluation only.
    """

    network: nn.Module
    refine: Refinement | None
    mean: Tensor
    std: Tensor
    weight_of_class: Tensor | None

    def __init__(
        self,
        num_classes: int,
        ignore_index: int,
        *,
        in_channels: int = 3,
        loss: str = "ce",
        class_weights: Sequence[float] | str | None = None,
        optimizer: str = "sgd",
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        schedule: str = "poly",
        warmup: float = 0.0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        for key, count in (("num_classes", num_classes), ("in_channels", in_channels)):
            if count < 1:
                raise ValueError(f"{key} must be at least 1, got {count}")
        if 0 <= ignore_index < num_classes:
            raise ValueError(
                f"ignore_index must be a label that none of the {num_classes} classes has, got {ignore_index}"
            )
        for name, value, table in (("loss", loss, LOSSES), ("optimizer", optimizer, OPTIMIZERS)):
            if value not in table:
                raise ValueError(f"{name} must be one of {', '.join(table)}, got {value!r}")
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
        weight_of_class = _weight_of_class(class_weights, num_classes)
        for key, number in (("lr", lr), ("weight_decay", weight_decay)):
            if not 0 <= number < math.inf:
                raise ValueError(f"{key} must be at least 0 and finite, got {number}")
        for key, share in (("momentum", momentum), ("warmup", warmup)):
            if not 0 <= share < 1:
                raise ValueError(f"{key} must be at least 0 and less than 1, got {share}")
        self.save_hyperparameters()  # the subclass's too: a checkpoint rebuilds itself, the logger records them
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.class_names = [str(index) for index in range(num_classes)]
        self.palette: list[tuple[int, int, int]] = []
        self.last_confusion: dict[str, np.ndarray] = {}  # of "val" and "test", rows the truth, for callbacks
        self.register_buffer("mean", _per_channel("mean", mean, IMAGENET_MEAN, in_channels))
        self.register_buffer("std", _per_channel("std", std, IMAGENET_STD, in_channels))
        self._weighed = class_weights != MEDIAN_FREQUENCY  # whether weight_of_class is known to hold numbers
        # In the checkpoint where they were counted; given ones are hyperparameters and rebuilt from those.
        self.register_buffer("weight_of_class", weight_of_class, persistent=class_weights == MEDIAN_FREQUENCY)
        self.loss_function = LOSSES[loss]
        self.refine = None
        self.epoch_loss = LossMean()
        self.val_scores = Scores(num_classes, ignore_index)
        self.test_scores = Scores(num_classes, ignore_index, detailed=True)

    @classmethod
    def corrections(cls, hparams: Mapping[str, Any]) -> dict[str, str]:
        """What an earlier version did otherwise with these hyperparameters, defaults included: a short name and a sentence each.

        The names go into a run's hash, so that what was trained before a correction is trained again, and the sentence says why.
        A name stays for ever; settings that a correction does not touch must not list it.
        """
        return {}

    def describe(self, class_names: Sequence[str], palette: Sequence[tuple[int, int, int]]) -> None:
        """Names and colours of the classes, for logs and pictures; the checkpoint carries them."""
        self.class_names, self.palette = (list(class_names), [(r, g, b) for r, g, b in palette])

    @property
    def class_weights(self) -> Tensor | None:
        """The weight of each class (C,) for the loss; ValueError where it was to be counted and is not yet."""
        if self.weight_of_class is not None and not self._weighed:
            if self.weight_of_class.isnan().any():
                raise ValueError(
                    f"class_weights={MEDIAN_FREQUENCY!r} must be counted before the loss is computed: train with "
                    f"experiments.train, or call set_class_weights (see components.losses.median_frequency_weights)"
                )
            self._weighed = True
        return self.weight_of_class

    def set_class_weights(self, weights: Tensor) -> None:
        """The counted weights (C,) of class_weights="median-frequency"; the checkpoint carries them."""
        assert self.weight_of_class is not None
        self.weight_of_class.copy_(weights)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) in [0, 1] -> logits (N, num_classes, H, W), refined in evaluation."""
        logits = self.predict(images)
        if self.refine is None or self.training:
            return logits
        refined = self.refine(logits.float().softmax(1), images)
        return refined.clamp(min=torch.finfo(torch.float32).tiny).log()  # logits again, finite where it is certain

    def predict(self, images: Tensor) -> Tensor:
        """What the network says of the images; an architecture that pads or tiles them overrides this."""
        logits: Tensor = self.network(self.normalise(images))
        return logits

    def normalise_like(self, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
        """Takes over what an encoder's weights were trained with, where it is known and the user gave nothing else."""
        for key, buffer, values in (("mean", self.mean, mean), ("std", self.std, std)):
            if self.hparams[key] is None and values is not None:
                buffer.copy_(torch.tensor(values).view(-1, 1, 1))

    def normalise(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std

    def loss(self, images: Tensor, masks: Tensor) -> Tensor:
        return self.loss_function(self(images), masks, self.ignore_index, self.class_weights)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        try:
            loss = self.loss(batch["image"], batch["mask"])
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ValueError(
                f"a batch norm of this network is left with one value a channel ({error}): use larger crops, larger "
                "batches or, where the architecture has it, norm='group'"
            ) from error
        self.log_dict({"train/loss": loss.detach(), "train/lr": self.trainer.optimizers[0].param_groups[0]["lr"]})
        size = len(batch["image"])
        self.epoch_loss.update(for_float64(loss.detach()).double() * size, size)
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("train/loss_epoch", self.epoch_loss.compute(), rank_zero_only=True)
        self.epoch_loss.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        return self._score(batch, "val", self.val_scores)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        return self._score(batch, "test", self.test_scores)

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val", self.val_scores)

    def on_test_epoch_end(self) -> None:
        self._log_scores("test", self.test_scores)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimiser trains, the first group at `lr`; a paper with more than one rate overrides this."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def configure_optimizers(self) -> Any:
        h = self.hparams
        optimizer = OPTIMIZERS[h["optimizer"]](self.parameter_groups(), h["lr"], h["momentum"], h["weight_decay"])
        steps = int(self.trainer.estimated_stepping_batches)
        schedules = schedule(optimizer, h["schedule"], steps, h["warmup"])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedules, "interval": "step"}}

    def _score(self, batch: Batch, split: str, split_scores: Scores) -> dict[str, Tensor]:
        """Scores of each image, which callbacks store; a padding image of distributed evaluation counts nowhere.

        Raises NonFiniteError, naming the image, for a logit at a labelled pixel or a loss that is NaN or infinite.
        """
        images = self._image_names(batch, split)
        with naming(", ".join(images)):
            logits, masks = self(batch["image"]).float(), batch["mask"]
        usable = labelled_logits(logits, masks, self.ignore_index, images, self.class_names)
        losses = [
            self.loss_function(image[None], mask[None], self.ignore_index, self.class_weights)
            for image, mask in zip(usable, masks, strict=True)
        ]
        return split_scores.update(logits, masks, finite_losses(torch.stack(losses), images))

    def _image_names(self, batch: Batch, split: str) -> list[str]:
        """What an error calls the images of a batch: by the data set's names where the trainer has one."""
        positions = batch["index"].tolist() if "index" in batch else list(range(len(batch["image"])))
        dataset = getattr(getattr(self._trainer, "datamodule", None), "dataset", None) if "index" in batch else None
        if dataset is None:
            return [f"image {position} ({split})" for position in positions]
        names = dataset(split).names
        return [f"{names[max(position, 0)]} ({split})" for position in positions]  # -1: padding, of the first image

    def _log_scores(self, name: str, split: Scores) -> None:
        self.last_confusion[name] = split.confusion.compute().cpu().numpy()
        values = scores(self.last_confusion[name])
        logged = {key: float(values[key]) for key in ("miou", "pixel_acc", "macc", "fwiou")}
        logged |= {key: float(mean.compute()) for key, mean in split.means.items()}
        logged |= {f"iou/{c}": float(iou) for c, iou in zip(self.class_names, values["iou"], strict=True)}
        split.reset()
        self.log_dict({f"{name}/{key}": value for key, value in logged.items()}, rank_zero_only=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["segmentation"] = {
            "architecture": type(self).__name__,
            "class_names": self.class_names,
            "palette": [list(colour) for colour in self.palette],
            "epoch_loss": list(self.epoch_loss.sums()),  # of the part of an epoch that is done
        }
        checkpoint["hyper_parameters"] = plain(_without_files(checkpoint["hyper_parameters"]), "hyperparameter")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        described = checkpoint["segmentation"]
        self.describe(described["class_names"], described["palette"])
        if self._trainer is not None and self.trainer.is_global_zero:  # the sum over all devices
            self.epoch_loss.update(*described.get("epoch_loss", (0.0, 0)))


def plain(value: Any, name: str) -> Any:
    """Settings as plain Python, which JSON and checkpoints hold: numpy's and torch's numbers and arrays become Python's.

    Raises ValueError for what is neither, such as a function: `name` is what it calls the setting.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(inner, f"{name} {key}") for key, inner in value.items()}
    if isinstance(value, list | tuple | range):
        items = [plain(inner, name) for inner in value]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, np.ndarray | Tensor):
        return plain(value.tolist(), name)
    if isinstance(value, Enum):
        return plain(value.value, name)
    if isinstance(value, PurePath):
        return str(value)
    for kinds, python in (
        ((bool, np.bool_), bool),
        ((int, np.integer), int),
        ((float, np.floating), float),
        (str, str),
    ):
        if isinstance(value, kinds):
            return python(value)
    if value is None:
        return None
    raise ValueError(
        f"{name} must be a number, a word, a list or a dictionary of them, got {value!r} ({type(value).__name__})"
    )


def _without_files(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """`hparams` without the files that the module started from: a checkpoint holds their weights itself."""
    return {
        key: None if key in ("weights", "init_from") else _without_files(value) if isinstance(value, dict) else value
        for key, value in hparams.items()
    }


def _weight_of_class(class_weights: Sequence[float] | str | None, num_classes: int) -> Tensor | None:
    """(C,) float32; NaN where the training masks have to be counted first."""
    if class_weights is None:
        return None
    if class_weights == MEDIAN_FREQUENCY:
        return torch.full((num_classes,), torch.nan)
    if not isinstance(class_weights, Sequence) or isinstance(class_weights, str) or len(class_weights) != num_classes:
        raise ValueError(
            f"class_weights must hold one weight for each of the {num_classes} classes, or be {MEDIAN_FREQUENCY!r}, "
            f"got {class_weights!r}"
        )
    if not (all(0 <= weight < math.inf for weight in class_weights) and max(class_weights) > 0):
        raise ValueError(f"class_weights must be at least 0, finite, and one of them more, got {list(class_weights)}")
    return torch.tensor(class_weights, dtype=torch.float32)


def _per_channel(name: str, values: Sequence[float] | None, imagenet: Sequence[float], in_channels: int) -> Tensor:
    if values is None:
        values = imagenet if in_channels == 3 else [sum(imagenet) / 3] * in_channels
    if len(values) != in_channels:
        raise ValueError(f"{name} must hold one value for each of the {in_channels} channels, got {list(values)}")
    if not all(math.isfinite(value) and (value > 0 or name == "mean") for value in values):
        raise ValueError(f"{name} must be finite{' and more than 0' * (name == 'std')}, got {list(values)}")
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
