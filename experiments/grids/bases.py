"""What all variants of a study share: a module with its hyperparameters, on any data set, small or at full size."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from datamodules.base import SegmentationDataModule
from experiments.runs.chosen import FROM_SCRATCH, of_scale, scale_of
from experiments.runs.run import Run
from experiments.shell.catalogue import DATAMODULES, key_of
from lightning_modules.base import SegmentationModule


@dataclass(frozen=True, kw_only=True)
class Base:
    """A module with its hyperparameters; the data decide on the rest, by what their data module states or by a rule.

    Args:
        module: the LightningModule that is trained
        hparams: its hyperparameters, where they are not its own defaults
        data: arguments of every data set
        full_size: whether the images keep their size and the training its length, for a GPU
        exceptions: by the name of a data set, what is otherwise on it: hyperparameters, "data.crop", ...
    """

    module: type[SegmentationModule]
    hparams: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    full_size: bool = False
    exceptions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def run(
        self,
        datamodule: type[SegmentationDataModule],
        arguments: Mapping[str, Any] | None = None,
        epochs: int | None = None,
    ) -> tuple[Run, str]:
        """The run on the data set with these arguments, and why it has these settings; `epochs` are for a rule.

        Reads the data where their scale is not stated; raises as `scale_by_rule` does.
        """
        known = datamodule in DATAMODULES.values()
        own = self.exceptions.get(key_of(datamodule, DATAMODULES), {}) if known else {}
        of_data = {name.removeprefix("data."): value for name, value in own.items() if name.startswith("data.")}
        data = {**self.data, **of_data, **(arguments or {})}
        scale = scale_of(datamodule, data, full_size=self.full_size, epochs=epochs)
        run = Run(module=self.module, datamodule=datamodule).but(**of_scale(scale))
        return run.but(**{**self.hparams, **own}).but(data=data), scale.reason


def cpu_scale(
    module: type[SegmentationModule],
    *,
    data: Mapping[str, Any] | None = None,
    exceptions: Mapping[str, Mapping[str, Any]] | None = None,
    **hparams: Any,
) -> Base:
    """Runs of `module` that two CPU cores train in a minute or so, from scratch by AdamW and poly.

    The papers' own recipes fine-tune ImageNet weights over days; they belong to the full-size runs. After so few steps
    the running statistics of batch norm are those of the last ones, and cost single seeds of a U-Net several points.
    So they are measured anew: experiments/results/ablate_averaging.md.
    """
    return Base(module=module, hparams={**FROM_SCRATCH, **hparams}, data=data or {}, exceptions=exceptions or {})


def full_size(
    module: type[SegmentationModule],
    *,
    data: Mapping[str, Any] | None = None,
    exceptions: Mapping[str, Mapping[str, Any]] | None = None,
    **hparams: Any,
) -> Base:
    """Runs of `module` by its paper's recipe, the defaults of the module, on the images' own size, for a GPU."""
    return Base(module=module, hparams=hparams, data=data or {}, full_size=True, exceptions=exceptions or {})
