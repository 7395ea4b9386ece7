"""What every architecture shares: steps, scores, logged names, normalisation, optimiser, self-describing checkpoint."""

import copy
import difflib
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields
from enum import Enum
from pathlib import PurePath
from typing import Any, ClassVar, get_args

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_modules.components.compiling import compile_, eager, explaining_compiler
from lightning_modules.components.encoders.base import Encoder
from lightning_modules.components.finite import finite_losses, labelled_logits, naming
from lightning_modules.components.float64 import for_float64
from lightning_modules.components.losses import LOSSES
from lightning_modules.components.recomputing import checkpoint_encoders
from lightning_modules.components.schedules import OPTIMIZERS, schedule
from lightning_modules.components.scores.metrics import LossMean, Scores
from lightning_modules.components.scores.reductions import scores
from lightning_modules.components.sharding import shard
from lightning_modules.components.whole_step import WholeStep
from lightning_modules.recipe import MEDIAN_FREQUENCY, Recipe
from lightning_modules.settings import composed

Refinement = Callable[[Tensor, Tensor], Tensor]  # (N, C, H, W) probabilities, (N, in_channels, H, W) images in [0, 1]
# "image": (N, in_channels, H, W) float in [0, 1]; "mask": (N, H, W) long; "index": (N,) long; perhaps "boxes"
Batch = dict[str, Tensor]


class SegmentationModule(LightningModule):
    """Trains and scores `self.network`, which maps images (N, in_channels, H, W) to logits (N, num_classes, H, W).

    A subclass is the file of a paper. It annotates `network` with the class that is built, states the `recipe`, and
    overrides only what its paper does differently, such as `loss` for auxiliary heads. Its arguments are its own, those
    of the network but for the `hidden` ones, and the fields of `Recipe`, each with the recipe's value as default.

    Logs train/loss and train/lr, and for val and test loss, miou, pixel_acc, macc, fwiou, boundary_f1, checkerboard and
    iou/<class>.

    `refine` is what follows the network, such as the fully connected CRF of DeepLab (v1, Sec. 3): None until someone
    assigns a function of class probabilities and images that returns probabilities. It works in evaluation only.

    Args:
        num_classes: classes of the data set, which are the channels of the logits
        ignore_index: the label of pixels that no score and no loss counts
        in_channels: channels of the images
    """

    network: nn.Module  # a subclass names its class here; of a union, the first one's arguments are the module's
    network_class: ClassVar[type[nn.Module]] = nn.Module  # what that annotation names
    recipe: ClassVar[Recipe] = Recipe()
    hidden: ClassVar[tuple[str, ...]] = ()  # arguments of the network that the module works out
    entrances: ClassVar[tuple[str, ...]] = ()  # methods of the network that the module calls, beside forward
    __signature__: ClassVar[inspect.Signature]
    refine: Refinement | None
    mean: Tensor
    std: Tensor
    weight_of_class: Tensor | None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        network = inspect.get_annotations(cls).get("network")
        if network is not None:
            cls.network_class = (get_args(network) or (network,))[0]
        cls.__signature__ = composed(cls, SegmentationModule)

    def __init__(self, num_classes: int, ignore_index: int, *, in_channels: int = 3, **settings: Any) -> None:
        super().__init__()
        signature = inspect.signature(type(self))
        if unknown := [name for name in settings if name not in signature.parameters]:
            near = difflib.get_close_matches(unknown[0], signature.parameters, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise TypeError(f"{type(self).__name__} got an unexpected keyword argument {unknown[0]!r}{hint}")
        for key, count in (("num_classes", num_classes), ("in_channels", in_channels)):
            if count < 1:
                raise ValueError(f"{key} must be at least 1, got {count}")
        if 0 <= ignore_index < num_classes:
            raise ValueError(
                f"ignore_index must be a label that none of the {num_classes} classes has, got {ignore_index}"
            )
        self.save_hyperparameters()  # the subclass's too: a checkpoint rebuilds itself, the logger records them
        for name, parameter in signature.parameters.items():
            self.hparams.setdefault(name, parameter.default)
        if self.hparams["lr"] is None:
            self.hparams["lr"] = self.published_lr(self.hparams)
        self._hparams_initial = copy.deepcopy(self.hparams)  # what a logger records
        recipe = Recipe(**{field.name: self.hparams[field.name] for field in fields(Recipe)})
        weight_of_class = recipe.weight_of_class(num_classes)
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.class_names = [str(index) for index in range(num_classes)]
        self.palette: list[tuple[int, int, int]] = []
        self.trained: dict[str, Any] = {}  # on what and how well, in plain values: the checkpoint carries it
        self.last_confusion: dict[str, np.ndarray] = {}  # of "val" and "test", rows the truth, for callbacks
        self.register_buffer("mean", recipe.per_channel("mean", in_channels))
        self.register_buffer("std", recipe.per_channel("std", in_channels))
        counted = recipe.class_weights == MEDIAN_FREQUENCY
        self._weighed = not counted  # whether weight_of_class is known to hold numbers
        # In the checkpoint where they were counted; given ones are hyperparameters and rebuilt from those.
        self.register_buffer("weight_of_class", weight_of_class, persistent=counted)
        self.loss_function = LOSSES[recipe.loss]
        self.refine = None
        self._cut: tuple[int, Any] | None = None  # side of exact tiles in evaluation, and the network's `Reach`
        self._whole_step = WholeStep(recipe.loss)
        self.epoch_loss = LossMean()
        self.val_scores = Scores(num_classes, ignore_index)
        self.test_scores = Scores(num_classes, ignore_index, detailed=True)
        options = {name: value for name, value in settings.items() if name not in vars(recipe)}
        self.network = self.build(num_classes, in_channels, **options)
        if recipe.checkpointing:
            checkpoint_encoders(self.network)
        if recipe.channels_last:
            self.network.to(memory_format=torch.channels_last)  # and in place, so what is loaded later takes it over
        encoder = next((part for part in self.network.modules() if isinstance(part, Encoder)), None)
        if encoder is not None:
            self.normalise_like(encoder.mean, encoder.std)

    def build(self, num_classes: int, in_channels: int, **options: Any) -> Any:
        """The network with its arguments; overridden where some of them follow from arguments of the module."""
        if self.network_class is nn.Module:
            raise TypeError(
                f"{type(self).__name__} names no network: annotate it in the class, `network: MyNetwork`, or override "
                "build"
            )
        return self.network_class(num_classes, in_channels, **options)

    def configure_model(self) -> None:
        """Spreads the network over devices where the trainer's strategy has a mesh of them: `components.sharding`."""
        if self.device_mesh is not None:
            shard(self.network, self.device_mesh["data_parallel"], self.entrances)

    @classmethod
    def published_lr(cls, hparams: Mapping[str, Any]) -> float:
        """The rate of a paper in which it depends on other hyperparameters: its recipe has `lr=None`."""
        raise ValueError(f"lr must be a number, got None: {cls.__name__} has one rate, {cls.recipe.lr}")

    @classmethod
    def corrections(cls, hparams: Mapping[str, Any]) -> dict[str, str]:
        """What an earlier version did otherwise with these hyperparameters, defaults included: a short name, a
        sentence.

        The names go into a run's hash, so that what was trained before a correction is trained again, and the sentence
        says why. A name stays for ever; settings that a correction does not touch must not list it.
        """
        return {}

    @classmethod
    def given(cls, hparams: Mapping[str, Any]) -> dict[str, Any]:
        """What it is told of a scored image beside its pixels, by these settings: scores compare where that is the
        same."""
        return {}

    def check_boxes(self, categories: Collection[int]) -> None:
        """ValueError for boxes of objects of these classes, of any where the network does not predict in boxes."""
        if categories:
            raise ValueError(
                f"boxes are for an architecture that predicts in boxes, and {type(self).__name__} does not: leave them "
                "out, or take --model hypercolumn_boxes"
            )

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
        if self.training:
            return self.predict(images)
        with eager(self.network):
            logits = self.predict(images) if self._cut is None else self._in_tiles(images)
        logits = logits.contiguous()  # as CRFs, scores and files expect them
        if self.refine is None:
            return logits
        refined = self.refine(logits.float().softmax(1), images)
        return refined.clamp(min=torch.finfo(torch.float32).tiny).log()  # logits again, finite where it is certain

    def evaluate_in_tiles(self, side: int) -> None:
        """In evaluation, images are predicted in tiles of `side` pixels as they would be at once: `analysis.tiling`.

        Raises ValueError for a network that is not local.
        """
        from lightning_modules.analysis.tiling import NotLocalError, reach

        try:
            self._cut = side, reach(self, self.hparams["in_channels"])
        except NotLocalError as error:
            raise ValueError(
                f"tile={side} takes a local network, and for {type(self).__name__} {error}: leave it out, or take a "
                "smaller scale"
            ) from error

    def _in_tiles(self, images: Tensor) -> Tensor:
        from lightning_modules.analysis.tiles import predict_in_tiles

        tiles, self._cut = self._cut, None  # the shapes of the whole image are followed through this module
        assert tiles is not None
        try:
            return predict_in_tiles(self.predict, self, images, *tiles)
        finally:
            self._cut = tiles

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
        normalised = (images - self.mean) / self.std
        if self.hparams["channels_last"]:
            return normalised.contiguous(memory_format=torch.channels_last)
        return normalised

    def loss(self, images: Tensor, masks: Tensor) -> Tensor:
        return self.loss_function(self(images), masks, self.ignore_index, self.class_weights)

    def loss_of(self, batch: Batch) -> Tensor:
        """What a step is trained on; overridden where that is more than images and masks."""
        return self.loss(batch["image"], batch["mask"])

    def on_fit_start(self) -> None:
        if self.hparams["compile"]:
            compile_(self.network, self.entrances, self.trainer.strategy.root_device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        try:
            with explaining_compiler(self.network):
                loss = self.loss_of(batch)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ValueError(
                f"a batch norm of this network is left with one value a channel ({error}): use larger crops, larger "
                "batches or, where the architecture has it, norm='group'"
            ) from error
        # Each call costs about as much as a small layer, and loggers get the numbers of some steps alone.
        if self.trainer._logger_connector.should_update_logs or self.trainer.is_last_batch:
            self.log_dict({"train/loss": loss.detach(), "train/lr": self.trainer.optimizers[0].param_groups[0]["lr"]})
        size = len(batch["image"])
        self.epoch_loss.update(for_float64(loss.detach()).double() * size, size)
        if self._parts() == 1:
            return loss
        return self._whole_step.part(loss, batch["mask"], self.ignore_index, self.class_weights)

    def on_after_backward(self) -> None:
        """Before anything looks at the gradients, once those of all parts are there."""
        if not self.trainer.fit_loop.epoch_loop._should_accumulate():
            self._whole_step.complete(self.parameters(), self._parts())

    def _parts(self) -> int:
        """In how many a step is done."""
        return int(self.trainer.world_size * self.trainer.accumulate_grad_batches)

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
        return split_scores.update(logits, masks, finite_losses(self.image_losses(usable, masks), images))

    def image_losses(self, logits: Tensor, masks: Tensor) -> Tensor:
        """The loss (N,) of each image that is scored, by its logits."""
        weights, pairs = self.class_weights, zip(logits, masks, strict=True)
        return torch.stack([self.loss_function(x[None], y[None], self.ignore_index, weights) for x, y in pairs])

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
            "trained": plain(self.trained, "trained"),
        }
        checkpoint["hyper_parameters"] = plain(_without_files(checkpoint["hyper_parameters"]), "hyperparameter")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        described = checkpoint["segmentation"]
        self.describe(described["class_names"], described["palette"])
        self.trained = {**described.get("trained", {}), **self.trained}  # a run that goes on knows it itself
        if self._trainer is not None and self.trainer.is_global_zero:  # the sum over all devices
            self.epoch_loss.update(*described.get("epoch_loss", (0.0, 0)))


def plain(value: Any, name: str) -> Any:
    """Settings as plain Python, which JSON and checkpoints hold: of numpy's and torch's numbers and arrays, Python's.

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


SegmentationModule.__signature__ = composed(SegmentationModule, SegmentationModule)
