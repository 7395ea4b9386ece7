"""The settings of a training that nobody states: those that follow from the data, and a recipe for few steps.

The defaults of a module are its paper's, for weights that know ImageNet or for days on a GPU. On a few hundred images
of one's own they end, after some epochs, in a network that predicts one class everywhere.
"""

import inspect
import json
import shlex
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

from datamodules.base import SegmentationDataModule
from datamodules.scale import Scale, scale_by_rule
from experiments.runs.averaging import HALF
from experiments.runs.run import Run, setting

# Of a network that learns from scratch in few steps: experiments/results/ablate_averaging.md has what the last buys.
FROM_SCRATCH = {
    "optimizer": "adamw",
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "schedule": "poly",
    "lr": 2e-3,
    "average": "recalibrate",
}
ON_CPU = 16  # channels of the first layer: of 64, a small set takes minutes an epoch on two cores
OF_OPTIMIZER = ("lr", "momentum", "weight_decay")  # that mean something else to another one
WHY = (
    "Optimiser, rate and normalisation are those by which the studies train from scratch in few steps. "
    "--settings paper takes those of the paper, and any flag wins."
)


@dataclass(frozen=True)
class Chosen:
    """A run with what was chosen for it, by the names that `Run.but` takes, and why."""

    run: Run
    settings: Mapping[str, Any]
    reason: str

    @property
    def told(self) -> str:
        """What is said before the training."""
        words = " ".join(f"{flag(name)} {word(value)}" for name, value in self.settings.items())
        if not words:
            return self.reason
        return f"Chosen for these data, as no flag says otherwise: {words}\n{self.reason}"


def scale_of(
    datamodule: type[SegmentationDataModule],
    arguments: Mapping[str, Any],
    *,
    full_size: bool = False,
    epochs: int | None = None,
) -> Scale:
    """The scale that the data set states, and without one that of the rule, which reads the data: see
    `scale_by_rule`."""
    stated = datamodule.full_size if full_size else datamodule.cpu_scale
    return stated or scale_by_rule(datamodule, arguments, full_size=full_size, epochs=epochs)


def of_scale(scale: Scale) -> dict[str, Any]:
    """What a scale sets, by the names that `Run.but` takes."""
    limited = {} if scale.batches is None else {"trainer.limit_train_batches": scale.batches}
    return {
        **{f"data.{name}": value for name, value in scale.data.items()},
        "trainer.max_epochs": scale.epochs,
        "trainer.check_val_every_n_epoch": scale.validate_every,
        **limited,
        **({"class_weights": scale.class_weights} if scale.class_weights else {}),
    }


def by_data(run: Run, given: Collection[str], *, full_size: bool = False) -> Chosen:
    """The run with a scale and a recipe for its data in all that is not `given`, such as "lr" and "data.crop".

    The same data and the same `given` make the same run. Raises as `scale_by_rule` does.
    """
    arguments = {name: value for name, value in run.data.items() if f"data.{name}" in given}
    epochs = run.trainer.get("max_epochs") if "trainer.max_epochs" in given else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the data: the training verifies them again, and says it then
        scale = scale_of(run.datamodule, arguments, full_size=full_size, epochs=epochs)
    settings, why = (
        of_scale(scale),
        scale.reason or "Data, length and class weights are those that the data set states.",
    )
    if epochs and not scale.reason:  # the rule has fitted it already
        every = settings["trainer.check_val_every_n_epoch"]
        settings["trainer.check_val_every_n_epoch"] = max(n for n in range(1, every + 1) if epochs % n == 0)
    if run.trainer.get("max_steps", -1) > 0 and "trainer.max_epochs" not in given:
        settings |= {"trainer.max_epochs": None}
        del settings["trainer.check_val_every_n_epoch"]
        why = f"{why} Its length is that of --trainer.max_steps."
    settings |= _recipe(run, given)
    if not full_size and _wide(run):
        settings["width"] = ON_CPU
        why = f"{why} On a CPU the network is narrower than its paper's."
    takes = inspect.signature(run.module).parameters
    settings = {name: value for name, value in settings.items() if name not in given}
    if "class_weights" not in takes:
        settings.pop("class_weights", None)
    return Chosen(run.but(**settings), settings, f"{why} {WHY}")


def as_stored(run: Run, given: Collection[str], stored: Run) -> Chosen:
    """The run with the settings of a stored one in all that is not `given`, to go on with it."""
    parts = {"": (run.hparams, stored.hparams), "data.": (run.data, stored.data)}
    parts |= {"trainer.": (run.trainer, stored.trainer)}
    settings = {
        f"{part}{name}": theirs[name]
        for part, (ours, theirs) in parts.items()
        for name in theirs
        if f"{part}{name}" not in given
    }
    lacking = {name for name in run.trainer if f"trainer.{name}" not in given and name not in stored.trainer}
    begun = replace(run, trainer={name: value for name, value in run.trainer.items() if name not in lacking})
    return Chosen(begun.but(**settings), {}, "The settings are those of the run that goes on, but for what flags say.")


def _recipe(run: Run, given: Collection[str]) -> dict[str, Any]:
    """`FROM_SCRATCH` and batch norm, as far as the architecture takes them and nothing that is given speaks against."""
    takes, chosen = inspect.signature(run.module).parameters, dict[str, Any](FROM_SCRATCH)
    if "norm" in takes and "batch" in get_args(takes["norm"].annotation) and not run.hparams.get("init_from"):
        chosen = {"norm": "batch", **chosen}
    if "optimizer" in given and run.hparams.get("optimizer") != FROM_SCRATCH["optimizer"]:
        chosen = {name: value for name, value in chosen.items() if name not in OF_OPTIMIZER}
    if str(run.trainer.get("precision")) in HALF:  # whose small steps an average would lose
        del chosen["average"]
    return {name: value for name, value in chosen.items() if name in takes and name not in given}


def _wide(run: Run) -> bool:
    """Whether the network's first layer has more channels than a CPU trains in minutes; another width is a factor."""
    parameter = inspect.signature(run.module).parameters.get("width")
    begun = run.hparams.get("init_from")  # whose width it is
    return not begun and parameter is not None and isinstance(parameter.default, int) and parameter.default > ON_CPU


def flag(name: str) -> str:
    """The flag of `experiments.train` that sets what `Run.but` calls so."""
    return f"--{setting(name).replace('hparams.', 'model.')}"


def word(value: Any) -> str:
    """A value as a flag takes it, quoted for a shell."""
    plain = isinstance(value, tuple | list) or value is None or isinstance(value, bool)
    return shlex.quote(json.dumps(value, separators=(",", ":")) if plain else str(value))
