"""What keeps an ablation fair before it is trained: equal budgets, declared differences, arms matched in size or
compute.

A plan that is not fair is refused; what a study declares unequal is allowed, and said beside its scores: see
`deviations`.
"""

import json
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from experiments.evidence.deviations import SIZES, items
from experiments.grids.ablation import Ablation, Match
from experiments.grids.cost import gmac
from experiments.runs.run import Run, defaults, setting
from experiments.runs.training import build
from experiments.shell.files import read_json
from lightning_modules.components.checkpoints import read_checkpoint

MOST_WIDENING = 2**12  # a search for a match ends here
# What a hyperparameter of this name decides about the training, whatever the architecture.
RECIPE = (
    *("optimizer", "lr", "momentum", "weight_decay", "schedule", "warmup"),
    *("loss", "class_weights", "average", "ema_decay"),
)
LENGTH = (
    *("trainer.max_epochs", "trainer.max_steps", "trainer.limit_train_batches", "trainer.accumulate_grad_batches"),
    "data.batch_size",
)
# The settings that have to be declared as a factor where an item of the budget is to differ.
SOURCES = {
    "steps": LENGTH,
    "batch": ("data.batch_size",),
    "accumulation": ("trainer.accumulate_grad_batches",),
    "images": LENGTH,
    "precision": ("trainer.precision",),
    "gradient_clip_val": ("trainer.gradient_clip_val",),
    "start": ("hparams.weights", "hparams.init_from"),
    "steps_before": ("hparams.weights", "hparams.init_from"),
    **{name: (f"hparams.{name}",) for name in RECIPE},
}

Budget = dict[str, Any]  # by item, see `budget`


def size(run: Run, of: str) -> float:
    """Parameters, or 10^9 multiply-accumulates of the forward pass of one training crop."""
    if of not in SIZES:
        raise ValueError(f"of must be one of {', '.join(SIZES)}, got {of!r}")
    return _size(json.dumps(run.from_scratch().config(), sort_keys=True), of)


@cache  # a grid asks for its variants several times
def _size(config: str, of: str) -> float:
    run = Run.from_config(json.loads(config))
    if of == "gmac":
        return gmac(run, *run.datamodule(**run.data).transform.crop)
    with torch.device("meta"):
        return sum(p.numel() for p in build(run)[0].parameters())


def match(run: Run, like: Run, *, of: str = "parameters", by: str = "width") -> int:
    """The value of the hyperparameter `by` with which `run` comes nearest to the size of `like`, by bisection.

    The size has to grow with `by`. Builds networks without memory and trains none. ValueError for a hyperparameter that
    is no whole number, or that does not reach the size.
    """
    start = run.resolved().get(setting(by))
    if type(start) is not int:  # a bool is none
        whole = ", ".join(_whole(run)) or "none here"
        raise ValueError(f"by must be a hyperparameter with a whole number ({whole}), got {by}={start!r}")
    target = size(like, of)

    def at(value: int) -> float:
        return size(_with(run, by, value), of)

    low, high = 1, start
    while at(high) < target:
        if high >= MOST_WIDENING * start:
            raise ValueError(
                f"{by} = {high} still leaves {at(high):,.4g} {SIZES[of]} where {target:,.4g} are wanted: match by "
                "another hyperparameter"
            )
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if at(middle) < target else (low, middle)
    nearest = min((low, high), key=lambda value: abs(at(value) - target))
    if nearest == 1 and at(1) > target:
        raise ValueError(
            f"{by} = 1 has {at(1):,.4g} {SIZES[of]} already where {target:,.4g} are wanted: match by another "
            "hyperparameter"
        )
    return nearest


def _with(run: Run, name: str, value: Any) -> Run:
    settings: dict[str, Any] = {name: value}
    return run.but(**settings)


def matched(run: Run, like: Run, how: Match) -> Run:
    """The run with the value of `how.by` that makes it as large as `like`."""
    return run if how.by is None else _with(run, how.by, match(run, like, of=how.of, by=how.by))


class Splits(NamedTuple):
    """What a data module loads: how many training images, the names of the test images and the first one's size."""

    train: int
    test: tuple[str, ...]
    test_size: tuple[int, int]


def budget(run: Run, splits: Splits) -> Budget:
    """What the training of `run` gets, computed from its data, its trainer and its network.

    - steps: of the optimiser; batch: images of one; accumulation: batches that a step adds up
    - images: those seen in all of training, with repetition; epochs
    - train_images, test_images, test_size (height, width): of the data
    - augmentation: the arguments of the data module's transform
    - the names of `RECIPE`: those hyperparameters
    - rates: [factor of lr, weight decay] of the parameter groups
    - precision, gradient_clip_val: of the trainer
    - start: what weights it starts from
    - steps_before: the optimiser steps behind these, where they are a checkpoint of `experiments.train`
    """
    with torch.device("meta"):
        module, datamodule = build(run.from_scratch())
    h, trainer = module.hparams, run.trainer
    accumulation = trainer.get("accumulate_grad_batches", 1)
    batches = splits.train // datamodule.batch_size * accumulation  # as the sampler deals and the trainer counts them
    limit = trainer.get("limit_train_batches", 1.0)
    batches = int(batches * limit) if isinstance(limit, float) else min(batches, limit)
    an_epoch = math.ceil(batches / accumulation)
    limits = [trainer.get("max_steps", -1), an_epoch * (trainer.get("max_epochs") or 0)]
    steps = min((count for count in limits if count > 0), default=0) if an_epoch else 0
    whole, rest = divmod(steps, max(an_epoch, 1))
    parts = whole * batches + rest * accumulation  # the last step of an epoch that is cut short adds up fewer
    groups = {
        (group.get("lr", h["lr"]) / (h["lr"] or 1), group.get("weight_decay", h["weight_decay"]))
        for group in module.parameter_groups()
    }
    start, before = _start(run)
    return {
        "steps": steps,
        "batch": datamodule.batch_size,
        "accumulation": accumulation,
        "images": parts * (datamodule.batch_size // accumulation),
        "epochs": math.ceil(steps / max(an_epoch, 1)),
        "train_images": splits.train,
        "test_images": len(splits.test),
        "test_size": list(splits.test_size),
        "augmentation": dict(vars(datamodule.transform)),
        **{name: h[name] for name in RECIPE},
        "rates": sorted([factor, decay] for factor, decay in groups),
        "precision": str(trainer.get("precision") or "32-true"),
        "gradient_clip_val": trainer.get("gradient_clip_val"),
        "start": start,
        "steps_before": before,
    }


def _start(run: Run) -> tuple[str, int]:
    """What weights the run starts from, in words, and the steps these have behind them."""
    weights, checkpoint = (run.hparams.get(key) for key in ("weights", "init_from"))
    if checkpoint is not None:
        return f"the checkpoint {checkpoint}", _steps_before(Path(checkpoint))
    return "random weights" if weights is None else f"the weights {weights}", 0


def _steps_before(checkpoint: Path) -> int:
    """Optimiser steps of a checkpoint of `experiments.train`, and of the one that its own run started from."""
    if not checkpoint.is_file():
        return 0  # the module says what is wrong with it when it is built
    steps = int(read_checkpoint(checkpoint).get("global_step", 0))
    run = checkpoint.parents[1] / "run.json" if len(checkpoint.parents) > 1 else checkpoint.with_name("run.json")
    earlier = read_json(run)["hparams"].get("init_from") if run.is_file() else None
    return steps + (_steps_before(Path(earlier)) if earlier is not None else 0)


def check_fair(ablation: Ablation) -> dict[str, Budget]:
    """The budget of each variant and stage. ValueError for variants that differ in anything but the declared factors.

    Such a table would answer another question. The differences may be of the settings, or of what becomes of them: the
    steps of another training split, a rate that a module chooses by another hyperparameter. Loads the training and test
    splits.
    """
    _check_given(ablation)
    base = ablation.runs[ablation.baseline].resolved()
    declared = {setting(name) for name in (*ablation.factors, *ablation.tuning.get("settings", ()))}
    for name, run in ablation.runs.items():
        other = run.resolved()
        how = ablation.matched.get(name)
        allowed = declared | ({setting(how.by)} if how and how.by else set())
        if "module" in declared:  # what only one of two architectures has is a part of it
            allowed |= {key for key in base.keys() ^ other.keys() if key.startswith("hparams.")}
        allowed.add("corrections")  # which follow from the other settings
        if run.step:  # declared by being there, as are the networks that it works on
            others = ablation.parents_of(name) != ablation.parents_of(ablation.baseline)
            parts = ("step", "module", "hparams") if others else ("step",)
            allowed |= {key for key in base | other if key.split(".")[0] in parts}
        differing = {key for key in base | other if base.get(key) != other.get(key)} - allowed
        if differing:
            undeclared = "; ".join(f"{k}: {_shown(base, k)} against {_shown(other, k)}" for k in sorted(differing))
            raise ValueError(
                f"{ablation.name}: {name!r} differs from the baseline {ablation.baseline!r} in more than the declared "
                f"factors ({', '.join(ablation.factors)}): {undeclared}. Make it equal, or declare it as a factor"
            )
        for factor, levels in ablation.factors.items():
            if setting(factor) in other and other[setting(factor)] not in levels:
                raise ValueError(
                    f"{ablation.name}: {name!r} has {factor}={other[setting(factor)]!r}, which is none of the declared "
                    f"levels {list(levels)}"
                )
    same: dict[tuple[str, ...], str] = {}
    for name, run in ablation.runs.items():
        other_name = same.setdefault((run.hash, *ablation.parents_of(name)), name)
        if other_name != name:
            raise ValueError(f"{ablation.name}: {name!r} and {other_name!r} are the same run")
    budgets = _budgets(ablation)
    _check_budgets(ablation, budgets, declared)
    check_matched(ablation)
    return budgets


def _check_given(ablation: Ablation) -> None:
    """Refuses variants of which one is told more of the scored images than another: its score is of another task."""
    given = {n: run.module.given({**defaults(run.module), **run.hparams}) for n, run in ablation.runs.items()}
    base = given[ablation.baseline]
    for name, told in given.items():
        if told != base:
            of_each = [str(one or "nothing but the pixels") for one in (told, base)]
            raise ValueError(
                f"{ablation.name}: scores of {name!r} and of the baseline {ablation.baseline!r} do not compare, as the "
                f"networks are told {of_each[0]} and {of_each[1]} of a test image. Compare variants that are told the "
                "same"
            )


def _shown(settings: Mapping[str, Any], key: str) -> str:
    return repr(settings[key]) if key in settings else "not set"


def _budgets(ablation: Ablation) -> dict[str, Budget]:
    loaded: dict[str, Splits] = {}  # by the settings of the data, which most variants share
    budgets: dict[str, Budget] = {}
    for name in ablation.order:
        run, parents = ablation.every[name], [budgets[parent] for parent in ablation.parents_of(name)]
        if run.step:  # no step of an optimiser: it has the budget of what it works on
            budgets[name] = parents[0]
            continue
        key = json.dumps([run.datamodule.__name__, run.data], sort_keys=True)
        if key not in loaded:
            datamodule = run.datamodule(**run.data)
            train, test = datamodule.dataset("train"), datamodule.dataset("test")
            _, height, width = test[0][0].shape
            loaded[key] = Splits(len(train), tuple(test.names), (height, width))
        budgets[name] = budget(run, loaded[key])
        if parents:
            before = parents[0]["steps"] + parents[0]["steps_before"]
            budgets[name] |= {"start": f"{ablation.parents_of(name)[0]} of the same seed", "steps_before": before}
    if len({splits.test for splits in loaded.values()}) > 1:
        counts = ", ".join(str(len(splits.test)) for splits in loaded.values())
        raise ValueError(
            f"{ablation.name}: the variants have test splits of other images ({counts} of them), so their scores could "
            "not be compared image by image: give all the same test split, or, where data have none, the same val split"
        )
    return budgets


def _check_budgets(ablation: Ablation, budgets: Mapping[str, Budget], declared: set[str]) -> None:
    """Refuses what differs without a declared factor that is about it."""
    base, of_base = items(budgets[ablation.baseline]), ablation.parents_of(ablation.baseline)
    for name in ablation.runs:
        items_of_variant = items(budgets[name])
        by_parents = {"start", "steps_before"} if ablation.parents_of(name) != of_base else set()
        if by_parents and ablation.runs[name].step:  # the network that a step works on has its own recipe
            by_parents |= {*RECIPE, "rates"}
        for item, value in items_of_variant.items():
            part, _, key = item.partition(".")
            sources = (f"data.{key}",) if part == "augmentation" else SOURCES.get(item, ())
            if item in by_parents:
                continue
            if sources and value != base.get(item) and not declared.intersection(sources):
                raise ValueError(
                    f"{ablation.name}: {name!r} does not get the budget of the baseline {ablation.baseline!r}, "
                    f"although no declared factor ({', '.join(ablation.factors)}) is about it: {item} "
                    f"{base.get(item)!r} against {value!r}. Set {' or '.join(sources)} in both, so that it is the "
                    "same, or declare it as a factor"
                )


def check_matched(ablation: Ablation) -> dict[str, float]:
    """Size of each matched arm relative to that of the arm it is matched with.

    ValueError outside the tolerance, and for a match that would let other differences through.
    """
    ratios = {}
    for name, how in ablation.matched.items():
        run, like = ablation.runs[name], ablation.runs[how.like]
        if how.like in ablation.matched:  # or two arms of any size could match each other
            raise ValueError(
                f"{ablation.name}: {name!r} is to match {how.like!r}, which is matched itself: expected a variant of a "
                "size of its own. Match both with the same one"
            )
        if how.by is not None and not _sizes(run, how.of, how.by):
            raise ValueError(
                f"{ablation.name}: {name!r} is matched by {how.by}={run.resolved().get(setting(how.by))!r}, which does "
                f"not set its size: expected a whole number, of {', '.join(_whole(run)) or 'which it has none'}, that "
                f"{SIZES[how.of]} grow with. Make it equal, or declare it as a factor"
            )
        ratios[name] = size(run, how.of) / size(like, how.of)
        if not abs(ratios[name] - 1) <= how.tolerance:
            form = ",d" if how.of == "parameters" else ".3g"
            raise ValueError(
                f"{ablation.name}: {name!r} is to match {how.like!r} in {SIZES[how.of]} within {100 * how.tolerance:g} "
                f"%, but has {size(run, how.of):{form}} against {size(like, how.of):{form}} "
                f"({100 * (ratios[name] - 1):+.1f} %). {_way_out(run, like, how)}"
            )
    return ratios


def _sizes(run: Run, of: str, by: str) -> bool:
    """Whether `by` is a hyperparameter that the size grows with, the only kind that may differ for a match."""
    return by in _whole(run) and size(_with(run, by, 2 * run.resolved()[setting(by)]), of) > size(run, of)


def _way_out(run: Run, like: Run, how: Match) -> str:
    """The setting that comes nearest, of those with "width" in their name, or of what was searched already."""
    nearest = []
    for by in [how.by] if how.by else [name for name in _whole(run) if "width" in name]:
        try:
            value = match(run, like, of=how.of, by=by)
            nearest.append((abs(size(_with(run, by, value), how.of) / size(like, how.of) - 1), by, value))
        except ValueError:
            continue  # this one does not reach it, or the network refuses it
    gap, by, value = min(nearest, default=(math.inf, "", 0))
    if gap <= how.tolerance:
        return f"{by}={value} fits: Match(by={by!r}) sets it"
    said = f"The nearest is {by}={value}, {100 * gap:.1f} % off. " if nearest else ""
    return f"{said}Declare a larger tolerance and its reason, or leave the arm unmatched"


def _whole(run: Run) -> list[str]:
    """The hyperparameters of the run that are whole numbers."""
    r = run.resolved()
    names = [key.removeprefix("hparams.") for key in r if key.startswith("hparams.")]
    return [name for name in names if type(r[f"hparams.{name}"]) is int and name != "in_channels"]


def differences(ablation: Ablation) -> dict[str, dict[str, list[Any]]]:
    """Of each variant the settings it does not share with the baseline, factors first: [the baseline's value, its
    own]."""
    base, by_variant = ablation.runs[ablation.baseline].resolved(), {}
    for name, run in ablation.runs.items():
        settings = run.resolved()
        keys = dict.fromkeys([*map(setting, ablation.factors), *base, *settings])
        keys.pop("corrections", None)  # which follow from the other settings
        by_variant[name] = {
            key: [base.get(key), settings.get(key)] for key in keys if base.get(key) != settings.get(key)
        }
    return by_variant
