"""A question asked on any data set: what an `ablate_<factor>.py` declares, and the command line it gets for it."""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from experiments.grids.ablation import Ablation, Match, Measured, variants
from experiments.grids.bases import Base, cpu_scale, full_size
from experiments.grids.cells import PlannedCell
from experiments.grids.command import run_grid
from experiments.grids.fairness import matched
from experiments.grids.settings import Flag, Settings
from experiments.grids.study_flags import parse_study
from experiments.grids.tuning import check_tuned
from experiments.runs.run import Run, defaults, setting
from experiments.shell.catalogue import DATAMODULES, key_of
from experiments.shell.command import command
from lightning_modules.catalogue import NETWORKS

__all__ = ["Base", "Flag", "Study", "cpu_scale", "full_size"]


@dataclass(frozen=True, kw_only=True)
class Study:
    """Variants of a run, on any data set: small enough for two CPU cores, and at the paper's size for a GPU.

    Args:
        name: of the experiment, and of the folder of its results
        question: what it answers, in a sentence
        baseline: the variant that the others are compared with
        variants: by name, the settings by which each differs from the base: see `Run.but`
        base: what they share: see `cpu_scale`
        full_size: the same for a GPU; None where the study has none
        matched: the arms that are to be as large as another one
        tune: hyperparameters with the values that every variant is tried with, on validation; each keeps its best
        flags: those of its command line that no other study has
        parents: whose last weights a variant or a stage begins with, see `Ablation`
        stages: makes of the base the runs that are done first and not compared, by name, and the one that the variants
            differ from
        levels: of each variant, of factors that are no settings
        finish: measures what the report says beside the scores
        seeds: how many are trained where a call names none
    """

    name: str
    question: str
    baseline: str
    variants: Mapping[str, Mapping[str, Any]]
    base: Base
    full_size: Base | None = None
    matched: Mapping[str, Match] = field(default_factory=dict)
    tune: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    flags: Sequence[Flag] = ()
    parents: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    stages: Callable[[Run], tuple[Mapping[str, Run], Run]] | None = None
    levels: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    finish: Callable[[Sequence[PlannedCell], Callable[[str], None]], Measured] | None = None
    seeds: int = 5

    def runs(self, data: str = "", *, full_size: bool = False, **arguments: Any) -> dict[str, Run]:
        """The runs of its variants on a data set of the catalogue, with these arguments of its data module."""
        return dict(self.ablation(data, arguments, full_size=full_size).runs)

    def experiment(self, settings: Settings) -> str:
        """The name of the experiment on a data set: that of the study on the first of the catalogue."""
        data = key_of(settings.datamodule, DATAMODULES)
        return (
            self.name
            + f"_{data}" * (data != next(iter(DATAMODULES)))
            + "_full_size" * settings.full_size
            + "_quick" * settings.quick
        )

    def ablation(self, data: str = "", arguments: Mapping[str, Any] | None = None, **settings: Any) -> Ablation:
        """The grid on the data set, see `Settings`.

        Reads the data where their scale follows from them. Raises FileNotFoundError where they are not there, and
        ValueError for settings that the study or the data do not have.
        """
        return self.asked(Settings(data=data, arguments=arguments or {}, **settings))

    def asked(self, s: Settings) -> Ablation:
        """The grid that the flags describe."""
        shared = self.full_size if s.full_size else self.base
        if shared is None:
            raise ValueError(f"{self.name} has no full size: leave out --full-size, or state Study(full_size=...)")
        takes = inspect.signature(s.datamodule).parameters
        needed = [name for name, p in takes.items() if p.default is p.empty and name not in s.arguments]
        if needed:
            listed = " and ".join(f"--data.{name}" for name in needed)
            raise ValueError(f"--data {key_of(s.datamodule, DATAMODULES)} needs {listed}: --help says what that is")
        if unknown := [name for name in s.arguments if name not in takes]:
            raise ValueError(f"{s.datamodule.__name__} takes no {', '.join(unknown)}: it takes {', '.join(takes)}")
        if s.epochs is not None and "max_epochs" in s.trainer:
            raise ValueError("--epochs and --trainer.max_epochs are one setting: leave one of them out")
        if s.quick and (s.full_size or s.epochs is not None or {"max_epochs", "max_steps"} & s.trainer.keys()):
            raise ValueError("--quick says how long to train: leave out --epochs, --trainer.max_epochs and --full-size")
        self._refuse_tuned(s)
        trainer = dict(s.trainer)
        epochs = s.epochs or trainer.pop("max_epochs", None)
        if epochs is not None and epochs < 1:
            raise ValueError(f"--trainer.max_epochs must be at least 1, got {epochs}")
        base, reason = shared.run(s.datamodule, s.arguments, epochs)
        before = base.resolved()
        if s.quick:
            epochs = max(1, before["trainer.max_epochs"] // 4)
        if epochs is not None:
            self._refuse_varied("--quick" if s.quick else "--epochs", "trainer.max_epochs")
            # The largest interval that is not longer than the default and ends with the last epoch.
            every = max(n for n in range(1, before["trainer.check_val_every_n_epoch"] + 1) if epochs % n == 0)
            base = base.but(trainer={"max_epochs": epochs, "check_val_every_n_epoch": every})
        elif "max_epochs" in s.trainer:  # null: as long as the steps say
            base = base.but(trainer={"max_epochs": None})
        if s.scale is not None:
            self._refuse_varied("--scale", "data.scale", "data.size", "data.crop")
            base = base.but(data=_scaled(base, s.scale))
        if s.weights is not None:
            self._refuse_varied("--weights", "weights")
            base = _with_weights(base, s.weights)
        given = {**s.hparams, **{f"trainer.{name}": value for name, value in trainer.items()}}
        for name in given:
            self._refuse_varied(f"--base.{name}" if setting(name) != name else f"--{name}", name)
        for name in s.arguments:
            self._refuse_varied(f"--data.{name}", f"data.{name}")
        base, tuned = base.but(**given), {setting(name) for name in {**self.tune, **s.tune}}
        after, validations = base.resolved(), "trainer.check_val_every_n_epoch"
        of_data = [f"data.{name}" for name in s.arguments if name != "root"]
        changed = [f"{key} {after.get(key)}" for key in of_data]
        by_quick = "trainer.max_epochs" if s.quick else ""
        changed += [
            f"{key.removeprefix('hparams.')} {value}"
            + (f" (the study has {before[key]})" if before.get(key) is not None else "")
            for key, value in after.items()
            if before.get(key) != value
            and not (key == validations and epochs)
            and key not in {*of_data, *tuned, by_quick}
        ]
        return self._described(base, s, reason, changed)

    def _refuse_tuned(self, s: Settings) -> None:
        """A flag that sets what trials choose would silently lose against their values."""
        flags = {name: f"--base.{name}" for name in s.hparams} | ({"weights": "--weights"} if s.weights else {})
        for name, flag in flags.items():
            if name in s.tune:
                raise ValueError(f"{flag} and --tune {name} set the same: leave one of them out")
            if name in self.tune:
                raise ValueError(
                    f"{flag} sets what {self.name} tunes, {name}: leave it out, or give --tune {name} values"
                )

    def _refuse_varied(self, flag: str, *names: str) -> None:
        varied = [name for name in names if any(name in changed for changed in self.variants.values())]
        by = [how.by for how in self.matched.values() if how.by in names]
        if varied or by:
            raise ValueError(
                f"{flag} is for studies whose variants share {(varied or by)[0]}; the variants of {self.name} have "
                "their own: leave the flag out, or change the variants"
            )

    def _described(self, base: Run, s: Settings, reason: str, changed: Sequence[str]) -> Ablation:
        stages, shared = self.stages(base) if self.stages else ({}, base)
        runs = variants(shared, self.variants)
        runs |= {name: matched(runs[name], runs[how.like], how) for name, how in self.matched.items()}
        factors: dict[str, list[Any]] = {}  # each setting that a variant gives, and its levels in their order
        for name in dict.fromkeys(key for of_one in self.variants.values() for key in of_one if key != "step"):
            levels = [run.resolved()[setting(name)] for run in runs.values()]
            factors[name] = [level for i, level in enumerate(levels) if level not in levels[:i]]
        r = base.resolved()
        shown = {key: f"{key.removeprefix('hparams.')} {r[key]}" for key in r if key.endswith("width") and r[key]}
        shown |= {"data.crop": f"crop {r['data.crop']}"} if r.get("data.crop") else {}
        shown |= {"data.batch_size": f"batch {r['data.batch_size']}"} if "data.batch_size" in r else {}
        epochs = r.get("trainer.max_epochs")
        shown |= {"trainer.max_epochs": f"{epochs} epoch{'s' * (epochs > 1)}"} if epochs else {}
        size = ", ".join(text for key, text in shown.items() if key not in map(setting, factors))
        after = shared.trainer.get("max_epochs")
        trained_on = stages and after and any(run.step is None for run in runs.values())
        size += f", then {after} more of every variant" if trained_on else ""
        notes = [f"{'Full size' if s.full_size else 'CPU scale'}: {size}.", reason]
        if s.quick:
            notes.append(
                "A first look with --quick, which set the epochs to a quarter: after a full training the variants may "
                "rank otherwise."
            )
        notes.append(f"Set by flags: {', '.join(changed)}." if changed else "")
        tune = {**self.tune, **s.tune}
        by = [how.by for how in self.matched.values() if how.by]
        check_tuned(self.name, base, tune, [*factors, *by], matched=bool(self.matched))
        return Ablation(
            name=self.experiment(s),
            question=self.question,
            runs=runs,
            factors=factors,
            baseline=self.baseline,
            matched=self.matched,
            data=key_of(s.datamodule, DATAMODULES),
            data_note=" ".join(filter(None, [s.datamodule.about(s.arguments), *({*map(_of_given, runs.values())})])),
            scale_note=" ".join(filter(None, notes)),
            tune=tune,
            parents=self.parents,
            stages=stages,
            levels=self.levels,
            finish=self.finish,
        )

    def command_line(self, description: str | None, argv: Sequence[str] | None = None) -> NoReturn:
        """What `python -m experiments.<name>` does; `description` is the docstring of the file."""
        with command():
            study, settings, args = parse_study(self, description, sys.argv[1:] if argv is None else argv)
        sys.exit(run_grid(lambda: study.asked(settings), study.experiment(settings), args))


def _of_given(run: Run) -> str:
    """A sentence on what a network is told beside the pixels, for a report."""
    if not run.module.given({**defaults(run.module), **run.hparams}):
        return ""
    return (
        "The networks are told the boxes of the objects, in test images too: their scores are those of figure and "
        "ground in given boxes, and do not compare with scores elsewhere."
    )


def _with_weights(base: Run, weights: str) -> Run:
    """The same with these weights of the encoder, which may be that of a network within its module."""
    inner = NETWORKS[base.resolved()["hparams.network"]].network if "hparams.network" in base.resolved() else None
    if inner and "weights" in defaults(inner):
        return base.but(network_options={**base.hparams.get("network_options", {}), "weights": weights})
    if "hparams.weights" not in base.resolved():
        name = inner.__name__ if inner else base.module.__name__
        raise ValueError(f"--weights is for networks on an encoder, and {name} has none")
    return base.but(weights=weights)


def _scaled(base: Run, scale: float) -> dict[str, Any]:
    """Arguments of the data for images whose sides are `scale` times those of `base`."""
    if not 0 < scale <= 8:
        raise ValueError(f"--scale must be more than 0 and at most 8, got {scale}")
    r = base.resolved()
    crop = [round(scale * side) for side in base.datamodule(**base.data).transform.crop]
    if min(crop) < 16:
        raise ValueError(f"--scale {scale} leaves a crop of {crop[0]} x {crop[1]} pixels; at least 16 x 16 are needed")
    if "data.scale" in r:
        return {"scale": scale * r["data.scale"], "crop": tuple(crop)}
    if "data.size" in r:  # of images that code makes
        return {"size": round(scale * r["data.size"]), "crop": tuple(crop)}
    raise ValueError(f"--scale is for data with an argument scale or size, and {base.datamodule.__name__} has none")
