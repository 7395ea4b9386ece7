"""`Run`, all that decides the numbers of a training or a step, its hash, and in what two runs differ."""

import hashlib
import inspect
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from datamodules.base import SegmentationDataModule
from experiments.runs.identity import START, by_content, identity
from experiments.runs.step import Step
from experiments.shell.files import read_json
from experiments.shell.found import wanted
from lightning_modules.base import SegmentationModule, plain
from lightning_modules.components.losses import DENOMINATORS

# Settings that change no number: see datamodules/base.py and lightning_modules/recipe.py.
UNCOUNTED = ("data.num_workers", "data.tile", "hparams.checkpointing")

Base = TypeVar("Base", SegmentationModule, SegmentationDataModule)


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that decides the numbers of a training: two runs with the same hash give the same result.

    Where it runs (devices, workers, loggers) is not in here, and of data in a folder it counts what they hold, their
    `fingerprint`, and not where they lie. Settings become plain Python; ValueError names one that has no such form.

    `parents` names the checkpoints of other runs that it begins with by what they hold, or will hold once those are
    trained: so its hash is known before, and is the same after. With a `step` nothing is trained. The step works on
    the weights of `parents`; the settings are those that the first of them was trained with.
    """

    module: type[SegmentationModule]
    datamodule: type[SegmentationDataModule]
    hparams: Mapping[str, Any] = field(default_factory=dict)  # keyword arguments of `module`
    data: Mapping[str, Any] = field(default_factory=dict)  # keyword arguments of `datamodule`
    trainer: Mapping[str, Any] = field(default_factory=dict)  # keyword arguments of `Trainer`: max_epochs, precision
    seed: int = 0
    fingerprint: str | None = None  # of data in a folder; None until `identified`, and for data that code makes
    step: Step | None = None
    parents: Mapping[str, str] = field(default_factory=dict)  # checkpoint -> "run:HASH@STEPS"

    def __post_init__(self) -> None:
        for part in ("hparams", "data", "trainer", "seed"):
            object.__setattr__(self, part, plain(getattr(self, part), part))
            if part != "seed" and not isinstance(getattr(self, part), dict):
                raise ValueError(f"{part} must be keyword arguments by name, got {getattr(self, part)!r}")
        if not isinstance(self.step, Step | None):
            raise TypeError(f"step must be a Step, got {self.step!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be a whole number of at least 0 and less than 2**32, got {self.seed!r}")
        for path, holds in self.parents.items():
            if not isinstance(path, str) or not re.fullmatch(START, str(holds)):
                raise ValueError(f"parents must name checkpoints with run:HASH@STEPS, got {path!r}: {holds!r}")

    def but(
        self,
        *,
        data: Mapping[str, Any] | None = None,
        trainer: Mapping[str, Any] | None = None,
        seed: int | None = None,
        step: Step | None = None,
        **settings: Any,
    ) -> "Run":
        """The same run with these hyperparameters, arguments of the data or the trainer, seed or step, instead.

        `settings` are hyperparameters, and by names such as "data.crop" and "trainer.max_epochs" arguments of those
        parts; `module` and `datamodule` are other classes.
        """
        if wrong := {"hparams", "parents", "fingerprint"} & settings.keys():
            raise ValueError(f"but takes hyperparameters by their names, got {', '.join(sorted(wrong))}")
        classes = {name: settings.pop(name) for name in ("module", "datamodule") if name in settings}
        parts = {"hparams": {**self.hparams}, "data": {**self.data}, "trainer": {**self.trainer}}
        for name, value in settings.items():
            part, _, key = setting(name).partition(".")
            parts[part][key] = value
        parts["data"] |= data or {}
        parts["trainer"] |= trainer or {}
        same_data = "datamodule" not in classes and all(
            parts["data"].get(name) == self.data.get(name) for name in self.datamodule.located
        )
        return replace(
            self,
            **classes,
            hparams=parts["hparams"],
            data=parts["data"],
            trainer=parts["trainer"],
            seed=self.seed if seed is None else seed,
            step=step or self.step,
            fingerprint=self.fingerprint if same_data else None,
        )

    def after(self, parents: Mapping[str, str]) -> "Run":
        """The same run from these checkpoints, see `parents`; a training begins with the weights of one."""
        begun = self if self.step else self.but(init_from=next(iter(parents)))
        return replace(begun, parents=dict(parents))

    def alone(self) -> "Run":
        """A training that needs no other run: of its parents' architecture, and with the defaults of those settings
        that another cell is still to find."""
        hparams = {key: None if key == "init_from" and self.parents else v for key, v in self.hparams.items()}
        known = {key: value for key, value in hparams.items() if not wanted(value)}
        return replace(self, hparams=known, step=None, parents={})

    def from_scratch(self) -> "Run":
        """`alone`, and without any file that it starts from: of the same size and cost."""
        run = self.alone()
        return run.but(**{key: None for key in ("weights", "init_from") if run.hparams.get(key) is not None})

    def check_parents(self) -> None:
        """Raises FileNotFoundError or ValueError unless its checkpoints hold what it was planned with."""
        for path, holds in self.parents.items():
            way_out = f"Delete {Path(path).parent.parent}, and the command of the grid trains it again"
            if not Path(path).is_file():
                raise FileNotFoundError(f"{path}, which this run begins with, is not there. {way_out}")
            if (held := identity(path)) != holds:
                raise ValueError(f"{path} must hold {holds}, which this run was planned with, got {held}. {way_out}")

    def identified(self) -> "Run":
        """The same run with the fingerprint of its data, which are read for it.

        Raises ValueError where they are no longer those that it had been identified with, FileNotFoundError where they
        are gone.
        """
        fingerprint = self.datamodule.identify(self.data)
        if self.fingerprint not in (None, fingerprint):
            raise ValueError(
                f"the data in {self.data.get('root')} are not those that this run was planned for: their fingerprint "
                f"is {fingerprint}, and was {self.fingerprint}. Put them back, or choose another folder with --out"
            )
        return replace(self, fingerprint=fingerprint)

    def config(self) -> dict[str, Any]:
        """What `run.json` holds: names and plain values, enough to build the same run elsewhere."""
        return {
            "module": f"{self.module.__module__}.{self.module.__name__}",
            "datamodule": f"{self.datamodule.__module__}.{self.datamodule.__name__}",
            "hparams": dict(self.hparams),
            "data": dict(self.data),
            "trainer": dict(self.trainer),
            "seed": self.seed,
            **({"fingerprint": self.fingerprint} if self.fingerprint else {}),
            **({"step": {"name": self.step.name, "options": dict(self.step.options)}} if self.step else {}),
            **({"parents": dict(self.parents)} if self.parents else {}),
        }

    def record(self) -> dict[str, Any]:
        """`config` with the hash and every default of today, so that a later version can say what it would do
        otherwise."""
        run = self if self.fingerprint else self.identified()
        return run.config() | {"hash": run.hash, "settings": run.resolved()}

    def resolved(self) -> dict[str, Any]:
        """`config` with every default written out, flat: "hparams.lr", "data.crop": what two runs differ in.

        Left out is what changes no number: where files lie, the number of workers, and an argument that earlier
        versions did not have, as long as it is neutral. Its declaration says so: `average: Annotated[str, ("neutral",
        "none")]`.
        """
        flat = self._flat(by_content(self.hparams, self.parents))
        if "root" in self.data:
            for name in self.datamodule.located:  # the fingerprint counts what they hold
                flat.pop(f"data.{name}", None)
            flat["data.fingerprint"] = self.fingerprint
        return flat

    def _flat(self, hparams: Mapping[str, Any]) -> dict[str, Any]:
        config = self.config() | {"hparams": hparams}
        flat: dict[str, Any] = {key: config[key] for key in ("module", "datamodule", "seed")}
        for part, cls in (("hparams", self.module), ("data", self.datamodule), ("trainer", None)):
            values = {**(defaults(cls) if cls else {}), **config[part]}
            neutral = neutral_values(cls) if cls else {}
            flat |= {f"{part}.{k}": v for k, v in values.items() if k not in neutral or _json(neutral[k]) != _json(v)}
        if self.step:
            options = {f"step.{name}": value for name, value in self.step.options.items()}
            flat |= {"step": self.step.name, **options, "step.of": list(self.parents.values())}
        for name in UNCOUNTED:
            flat.pop(name, None)
        if corrections := self.corrections():
            flat["corrections"] = sorted(corrections)
        return flat

    def corrections(self) -> dict[str, str]:
        """What earlier versions did otherwise with these settings: see `SegmentationModule.corrections`."""
        settings = {**defaults(self.module), **self.hparams}
        corrected = self.module.corrections(settings)
        if (self.trainer.get("accumulate_grad_batches") or 1) > 1 and settings.get("loss") in DENOMINATORS:
            corrected |= {
                "accumulated_mean": "the loss of accumulated batches is the mean over all their labelled pixels, no "
                "longer the mean of each batch's mean"
            }
        return corrected

    @property
    def hash(self) -> str:
        """A name for the settings. With the same code, versions and threads (see environment.json) the same hash trains
        to the same result."""
        run = self if self.fingerprint else self.identified()
        return _digest(run.resolved())

    @property
    def hashes(self) -> set[str]:
        """The hash, and that of versions which named files by where they lie: what was trained by those is done,
        too."""
        older = self._flat(self.hparams)
        if "root" in self.data:
            older["data.root"] = os.path.realpath(self.data["root"])
        return {self.hash, _digest(older)}

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> "Run":
        """The run of a `run.json`. Classes come from this project's packages only: a config is data, not code.

        Raises ValueError for anything that is not what `config` gives.
        """
        parts = ("module", "datamodule", "hparams", "data", "trainer", "seed")
        if not isinstance(config, Mapping) or (missing := [part for part in parts if part not in config]):
            lacks = f"it lacks {', '.join(missing)}" if isinstance(config, Mapping) else f"got {type(config).__name__}"
            raise ValueError(f"a run must be a dictionary with {', '.join(parts)}: {lacks}")
        fingerprint = config.get("fingerprint")
        if fingerprint is not None and not re.fullmatch("[0-9a-f]{16}", str(fingerprint)):
            raise ValueError(f"fingerprint must be 16 hexadecimal digits or null, got {fingerprint!r}")
        step, parents = config.get("step"), config.get("parents", {})
        is_step = step is None or (isinstance(step, Mapping) and step.keys() == {"name", "options"})
        if not is_step or not isinstance(parents, Mapping):
            raise ValueError(f"step must have a name and options, parents their paths, got {step!r} and {parents!r}")
        return Run(
            module=_class("module", config["module"], "lightning_modules", SegmentationModule),
            datamodule=_class("datamodule", config["datamodule"], "datamodules", SegmentationDataModule),
            **{part: config[part] for part in parts[2:]},
            fingerprint=fingerprint,
            step=Step(**step) if step else None,
            parents=dict(parents),
        )


def _class(part: str, name: Any, package: str, base: type[Base]) -> type[Base]:
    """The class that a config names: one of a kind, of one package, whose modules are all that is imported for it."""
    if not isinstance(name, str) or not re.fullmatch(rf"{package}(\.[A-Za-z_]\w*)+", name, re.ASCII):
        raise ValueError(f"{part} must be a class of the package {package}, got {name!r}")
    path, _, last = name.rpartition(".")
    try:
        cls = getattr(import_module(path), last)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{part} {name!r} is no class of this version of the project") from error
    if not isinstance(cls, type) or not issubclass(cls, base) or cls is base:
        raise ValueError(f"{part} must be a {base.__name__}, got {name!r}")
    return cls


def identified(runs: Mapping[str, Run]) -> dict[str, Run]:
    """The same runs with the fingerprints of their data, each of which is read once."""
    fingerprints: dict[tuple[Any, ...], str | None] = {}
    identified_runs = {}
    for name, run in runs.items():
        located = {name: run.data.get(name) for name in run.datamodule.located}
        key = (run.datamodule, _json(located), run.fingerprint)
        if key not in fingerprints:
            fingerprints[key] = run.identified().fingerprint
        identified_runs[name] = replace(run, fingerprint=fingerprints[key])
    return identified_runs


def check_kept(path: Path, url: str, run: Run) -> None:
    """Raises ValueError where the run.json of a store, fetched to `path`, is not that of `run`."""
    if changed := changes(read_json(path), run):
        raise ValueError(f"{url} holds another run ({'; '.join(changed)}): choose another --store")


def changes(stored: Mapping[str, Any], run: Run) -> list[str]:
    """What of `run` is not as in a stored run.json, in words; of one without its defaults, by what they are today."""
    new, correct = json.loads(json.dumps(run.resolved())), run.corrections()
    old = stored.get("settings")
    if (
        not isinstance(old, Mapping | None)
        or not {"module", "datamodule", "hparams", "data", "trainer"} <= stored.keys()
    ):
        raise ValueError("run.json is damaged (it holds no run): choose another folder with --out")
    if old is None:
        old = json.loads(json.dumps(Run.from_config(stored).resolved()))
        old.pop("corrections", None)
        if "data.fingerprint" in new and "root" in stored["data"]:
            same = os.path.realpath(stored["data"]["root"]) == os.path.realpath(run.data["root"])
            old["data.fingerprint"] = new["data.fingerprint"] if same else f"the data in {stored['data']['root']}"
    changed = [
        f"{key}: {old.get(key)!r} -> {new.get(key)!r}"
        for key in sorted({*old, *new} - {"corrections"})
        if old.get(key) != new.get(key)
    ]
    return changed + [f"corrected since: {correct[name]}" for name in correct if name not in old.get("corrections", ())]


def setting(name: str) -> str:
    """The key in `Run.resolved` of what a factor or a keyword of `Run.but` names: "lr" is "hparams.lr", a
    hyperparameter; "data.crop", "trainer.max_epochs", "module", "datamodule" and "step" are keys already."""
    is_key = name in ("module", "datamodule", "step") or name.startswith(("data.", "trainer."))
    return name if is_key else f"hparams.{name}"


def defaults(cls: type) -> dict[str, Any]:
    """The default of every keyword argument of `cls`."""
    return {name: p.default for name, p in _parameters(cls).items() if p.default is not inspect.Parameter.empty}


def neutral_values(cls: type) -> dict[str, Any]:
    """Of the keyword arguments of `cls` that came later, the value with which a run is what it was without them."""
    neutral = {}
    for name, parameter in _parameters(cls).items():
        for mark in getattr(parameter.annotation, "__metadata__", ()):
            if isinstance(mark, tuple) and len(mark) == 2 and mark[0] == "neutral":
                neutral[name] = mark[1]
    return neutral


def _parameters(cls: type) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(cls).parameters  # composed of what the class and its parts declare


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _digest(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(_json(settings).encode()).hexdigest()[:16]
