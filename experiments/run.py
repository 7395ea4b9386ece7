"""`Run`, all that decides the numbers of a training, and `train`, the one code path that trains."""

import hashlib
import inspect
import json
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from torch.nn import SyncBatchNorm
from torch.nn.modules.batchnorm import _BatchNorm

from datamodules.base import SegmentationDataModule
from experiments.callbacks import MetricsFile, PerImage, Predictions, Samples, SeedSteps
from experiments.checkpoints import (
    LAST,
    PREVIOUS,
    SAVE_EVERY,
    CheckpointFiles,
    SafePoints,
    Signals,
    checkpoint_to_resume,
)
from experiments.ending import WorkerError
from experiments.environment import environment
from experiments.files import locked, read_json, write_json
from experiments.identity import by_content
from experiments.loops import make_resumable
from lightning_modules.base import MEDIAN_FREQUENCY, SegmentationModule, plain
from lightning_modules.components.losses import median_frequency_weights

# metrics.csv is written whatever is chosen: csv and none, two words for it, add nothing to it.
LOGGERS = ("csv", "tensorboard", "wandb", "none")
LOGGER_HELP = (
    "beside metrics.csv, which is always written (csv, none: nothing else): tensorboard, or wandb for Weights & Biases, "
    "offline without key or network"
)

# Of Lightning's, those in which this process, which reports, trains too: see `_check_strategy`.
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true")


@dataclass(frozen=True, kw_only=True)
class Run:
    """All that decides the numbers of a training: what is in here is in git, what is not cannot change them.

    Where it runs (devices, workers, loggers) is not in here, and of data in a folder it counts what they hold, their
    `fingerprint`, and not where they lie. Settings become plain Python; ValueError names one that has no such form.
    """

    module: type[SegmentationModule]
    datamodule: type[SegmentationDataModule]
    hparams: Mapping[str, Any] = field(default_factory=dict)  # keyword arguments of `module`
    data: Mapping[str, Any] = field(default_factory=dict)  # keyword arguments of `datamodule`
    trainer: Mapping[str, Any] = field(default_factory=dict)  # keyword arguments of `Trainer`: max_epochs, precision
    seed: int = 0
    fingerprint: str | None = None  # of data in a folder; None until `identified`, and for data that code makes

    def __post_init__(self) -> None:
        for part in ("hparams", "data", "trainer", "seed"):
            object.__setattr__(self, part, plain(getattr(self, part), part))

    def but(
        self,
        *,
        data: Mapping[str, Any] | None = None,
        trainer: Mapping[str, Any] | None = None,
        seed: int | None = None,
        **settings: Any,
    ) -> "Run":
        """The same run with these hyperparameters, arguments of the data or the trainer, or this seed, instead.

        `settings` are hyperparameters, and by names such as "data.crop" and "trainer.max_epochs" arguments of those parts.
        """
        parts = {"hparams": {**self.hparams}, "data": {**self.data}, "trainer": {**self.trainer}}
        for name, value in settings.items():
            part, _, key = setting(name).partition(".")
            parts[part][key] = value
        parts["data"] |= data or {}
        parts["trainer"] |= trainer or {}
        same_data = parts["data"].get("root") == self.data.get("root")
        return replace(
            self,
            hparams=parts["hparams"],
            data=parts["data"],
            trainer=parts["trainer"],
            seed=self.seed if seed is None else seed,
            fingerprint=self.fingerprint if same_data else None,
        )

    def identified(self) -> "Run":
        """The same run with the fingerprint of its data, which are read for it.

        Raises ValueError where they are no longer those that it had been identified with, FileNotFoundError where they are gone.
        """
        found = self.datamodule.identify(self.data)
        if self.fingerprint not in (None, found):
            raise ValueError(
                f"the data in {self.data['root']} are not those that this run was planned for: their fingerprint is {found}, "
                f"and was {self.fingerprint}. Put them back, or choose another folder with --out"
            )
        return replace(self, fingerprint=found)

    def config(self) -> dict[str, Any]:
        """What `run.json` holds: names and plain values, enough to build the same run elsewhere."""
        return {
            "module": f"{self.module.__module__}.{self.module.__name__}",
            "datamodule": f"{self.datamodule.__module__}.{self.datamodule.__name__}",
            "hparams": dict(self.hparams),
            "data": dict(self.data),
            "trainer": dict(self.trainer),
            "seed": self.seed,
        } | ({"fingerprint": self.fingerprint} if self.fingerprint else {})

    def record(self) -> dict[str, Any]:
        """`config` with the hash and every default of today, so that a later version can say what it would do otherwise."""
        run = self if self.fingerprint else self.identified()
        return run.config() | {"hash": run.hash, "settings": run.resolved()}

    def resolved(self) -> dict[str, Any]:
        """`config` with every default written out, flat: "hparams.lr", "data.crop": what two runs differ in.

        Left out is what changes no number: where files lie, the number of workers, and an argument that earlier versions
        did not have, as long as it is neutral. Its declaration says so: `average: Annotated[str, ("neutral", "none")]`.
        """
        flat = self._flat(by_content(self.hparams))
        if "root" in self.data:
            flat.pop("data.root")
            flat["data.fingerprint"] = self.fingerprint
        return flat

    def _flat(self, hparams: Mapping[str, Any]) -> dict[str, Any]:
        config = self.config() | {"hparams": hparams}
        flat: dict[str, Any] = {key: config[key] for key in ("module", "datamodule", "seed")}
        for part, cls in (("hparams", self.module), ("data", self.datamodule), ("trainer", None)):
            values = {**(defaults(cls) if cls else {}), **config[part]}
            neutral = neutral_values(cls) if cls else {}
            flat |= {f"{part}.{k}": v for k, v in values.items() if k not in neutral or _json(neutral[k]) != _json(v)}
        flat.pop("data.num_workers", None)  # changes no number: see datamodules/base.py
        if corrections := self.corrections():
            flat["corrections"] = sorted(corrections)
        return flat

    def corrections(self) -> dict[str, str]:
        """What earlier versions did otherwise with these settings: see `SegmentationModule.corrections`."""
        return self.module.corrections({**defaults(self.module), **self.hparams})

    @property
    def hash(self) -> str:
        """A name for the settings. With the same code, versions and threads (see environment.json) the same hash trains
        to the same result."""
        run = self if self.fingerprint else self.identified()
        return _digest(run.resolved())

    @property
    def hashes(self) -> set[str]:
        """The hash, and that of versions which named files by where they lie: what was trained by those is done, too."""
        older = self._flat(self.hparams)
        if "root" in self.data:
            older["data.root"] = os.path.realpath(self.data["root"])
        return {self.hash, _digest(older)}

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> "Run":
        """The run of a `run.json`. Classes come from this project's packages only: a config is data, not code."""
        classes = {}
        for part, package in (("module", "lightning_modules"), ("datamodule", "datamodules")):
            path, _, name = str(config[part]).rpartition(".")
            if path.split(".")[0] != package:
                raise ValueError(f"{part} must be a class of the package {package}, got {config[part]!r}")
            try:
                classes[part] = getattr(import_module(path), name)
            except (ImportError, AttributeError) as error:
                raise ValueError(f"{part} {config[part]!r} is no class of this version of the project") from error
        parts = {part: config[part] for part in ("hparams", "data", "trainer", "seed")}
        return Run(**classes, **parts, fingerprint=config.get("fingerprint"))


def identified(runs: Mapping[str, Run]) -> dict[str, Run]:
    """The same runs with the fingerprints of their data, each of which is read once."""
    known: dict[tuple[Any, ...], str | None] = {}
    found = {}
    for name, run in runs.items():
        key = (run.datamodule, run.data.get("root"), run.fingerprint)
        if key not in known:
            known[key] = run.identified().fingerprint
        found[name] = replace(run, fingerprint=known[key])
    return found


def changes(stored: Mapping[str, Any], run: Run) -> list[str]:
    """What of `run` is not as in a stored run.json, in words; of one without its defaults, by what they are today."""
    new, correct = json.loads(json.dumps(run.resolved())), run.corrections()
    old = stored.get("settings")
    if old is None:
        old = json.loads(json.dumps(Run.from_config(stored).resolved()))
        old.pop("corrections", None)
        if "data.fingerprint" in new and "root" in stored["data"]:
            same = os.path.realpath(stored["data"]["root"]) == os.path.realpath(run.data["root"])
            old["data.fingerprint"] = new["data.fingerprint"] if same else f"the data in {stored['data']['root']}"
    found = [
        f"{key}: {old.get(key)!r} -> {new.get(key)!r}"
        for key in sorted({*old, *new} - {"corrections"})
        if old.get(key) != new.get(key)
    ]
    return found + [f"corrected since: {correct[name]}" for name in correct if name not in old.get("corrections", ())]


def setting(name: str) -> str:
    """The key in `Run.resolved` of what a factor or a keyword of `Run.but` names: "lr" is "hparams.lr", a hyperparameter;
    "data.crop", "trainer.max_epochs", "module" and "datamodule" are keys already."""
    is_key = name in ("module", "datamodule") or name.startswith(("data.", "trainer."))
    return name if is_key else f"hparams.{name}"


def defaults(cls: type) -> dict[str, Any]:
    """The default of every keyword argument of `cls` and of the project's bases that its **recipe goes to."""
    return {name: p.default for name, p in _parameters(cls).items() if p.default is not inspect.Parameter.empty}


def neutral_values(cls: type) -> dict[str, Any]:
    """Of the keyword arguments of `cls` that came later, the value with which a run is what it was without them."""
    found = {}
    for name, parameter in _parameters(cls).items():
        for mark in getattr(parameter.annotation, "__metadata__", ()):
            if isinstance(mark, tuple) and len(mark) == 2 and mark[0] == "neutral":
                found[name] = mark[1]
    return found


def _parameters(cls: type) -> dict[str, inspect.Parameter]:
    found: dict[str, inspect.Parameter] = {}
    for base in reversed(cls.__mro__):
        if "__init__" in vars(base) and base.__module__.split(".")[0] in ("lightning_modules", "datamodules"):
            found |= inspect.signature(vars(base)["__init__"]).parameters
    return found


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _digest(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(_json(settings).encode()).hexdigest()[:16]


def build(run: Run) -> tuple[SegmentationModule, SegmentationDataModule]:
    """The module and the data module of `run`: where the two meet."""
    datamodule = run.datamodule(**run.data)
    datamodule.seed = run.seed
    hparams = {"in_channels": datamodule.in_channels, **run.hparams}
    module = run.module(datamodule.num_classes, datamodule.ignore_index, **hparams)
    module.describe(datamodule.class_names, datamodule.palette)
    return module, datamodule


def train(
    run: Run,
    out: Path,
    *,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
    logger: str = LOGGERS[0],
    save_every: float = SAVE_EVERY,
    command: str | None = None,
    **where: Any,
) -> dict[str, Any]:
    """Trains `run` into the folder `out` on the hardware `where` and scores the test split with the last weights.

    Returns what result.json holds. The last epoch is reported, not the best: choosing by validation mIoU and reporting it
    flatters the noisier variant. A folder that holds a run is continued with `resume`, never replaced. A checkpoint is written
    after every epoch, and within one every `save_every` minutes. SIGTERM, SIGHUP and SIGINT save and raise `Interrupted`.

    Raises ValueError or FileNotFoundError for what a person can mend, before anything is written to `out`; NonFiniteError
    for numbers that are none, NoSpaceError for a full disk, WorkerError for a process that was killed while it loaded data.
    """
    out = Path(out)
    check_logger(logger)
    _check_length(run.trainer)
    _check_strategy({**run.trainer, **where}.get("strategy", "auto"))
    if not save_every > 0:
        raise ValueError(f"--save-every must be more than 0 minutes, got {save_every}")
    with Signals() as signals:
        seed_everything(run.seed, workers=True, verbose=False)
        module, datamodule = build(run)
        datamodule.verify()
        run = run.identified()
        with locked(out) if first_process() else nullcontext():
            if first_process() and (finished := _check_folder(run, out, resume)):
                return finished
            last = checkpoint_to_resume(out, run.hash, first=first_process()) if resume else None
            extra: dict[str, Any] = {}
            if logger in ("tensorboard", "wandb"):
                from experiments.tracking import tracking  # slow to import, and most runs do without

                settings = run.resolved() | {"hash": run.hash}
                settings |= {"data.root": run.data["root"]} if "root" in run.data else {}
                extra = tracking(logger, settings, out)
            own = [SafePoints(out, run.hash, signals, save_every), *extra.get("callbacks", ())]
            trainer = _trainer(run, out, [*callbacks, *own], extra.get("loggers", []), where)
            _check_strategy(trainer.strategy)  # what "auto" has become
            _synchronise_batch_norm(trainer, module)
            if module.hparams["class_weights"] == MEDIAN_FREQUENCY:
                module.set_class_weights(count_class_weights(datamodule))
            if trainer.is_global_zero:
                write_json(out / "run.json", run.record())
                write_json(out / "environment.json", environment(command) | {"device": device_name(trainer)})
            signals.waiting = True
            with _of_workers(datamodule):
                trainer.fit(module, datamodule, ckpt_path=str(last) if last else None, weights_only=True)
                fitted = time.monotonic()
                trainer.test(module, datamodule, verbose=False)
            test = {name: float(value) for name, value in trainer.callback_metrics.items()}
            validated, seconds = MetricsFile(out).summary()
            result = {
                "hash": run.hash,
                "status": "done",
                "val": {name.removeprefix("val/"): value for name, value in validated.items()},
                "test": {name.removeprefix("test/"): value for name, value in test.items() if name.startswith("test/")},
                "seconds": seconds + time.monotonic() - fitted,
                "epochs": trainer.current_epoch,
                "steps": trainer.global_step,
                "params": sum(p.numel() for p in module.parameters()),
            }
            if trainer.is_global_zero:
                write_json(out / "result.json", result)
        return result


@contextmanager
def _of_workers(datamodule: SegmentationDataModule) -> Iterator[None]:
    """Says in a line what went wrong in a process that loads data, where torch gives its traceback or a number."""
    try:
        yield
    except Exception as error:
        told = str(error)
        if told.startswith("Caught ") and "DataLoader worker" in told.splitlines()[0]:
            # The last line of the worker's traceback, which names the file: "ValueError: images/a.png is damaged".
            raise type(error)(told.rstrip().rpartition(f"\n{type(error).__name__}: ")[2]) from error
        if killed := re.search(r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\) (.*)", told):
            shared = " or --data.num_workers 0, as /dev/shm is full" if "us error" in told else ""
            raise WorkerError(
                f"a process that loads data ({killed[1]}) {killed[2].rstrip('.')}: most likely the memory ran out; lower "
                f"--data.num_workers (now {datamodule.num_workers}){shared}, --data.batch_size (now {datamodule.batch_size}) or "
                "--data.crop, and continue with --resume"
            ) from error
        raise


def check_logger(name: str) -> None:
    """Refuses a logger whose package is not installed."""
    if name not in LOGGERS:
        raise ValueError(f"--logger must be one of {', '.join(LOGGERS)}, got {name!r}")
    if name == "tensorboard" and find_spec("tensorboard") is None:
        raise ValueError('--logger tensorboard needs a package: pip install -e ".[tensorboard]"')


def count_class_weights(datamodule: SegmentationDataModule) -> torch.Tensor:
    """The median-frequency weights (C,) of the training masks as they are on the disk, without augmentation."""
    dataset, classes = datamodule.dataset("train"), datamodule.num_classes
    masks = (dataset[index][1] for index in range(len(dataset)))
    pixels = torch.stack([torch.bincount(m[m != datamodule.ignore_index], minlength=classes) for m in masks])
    of_images = (pixels > 0) * pixels.sum(1, keepdim=True)  # (images, C): the labelled pixels of an image that holds it
    return median_frequency_weights(pixels.sum(0), of_images.sum(0))


def _check_length(arguments: Mapping[str, Any]) -> None:
    if arguments.get("max_epochs") is None and arguments.get("max_steps", -1) < 1:
        raise ValueError("state how long to train: --trainer.max_epochs or --trainer.max_steps")
    for name in ("max_epochs", "max_steps", "accumulate_grad_batches", "check_val_every_n_epoch"):
        value = arguments.get(name)
        if value is not None and value < 1:
            raise ValueError(f"--trainer.{name} must be at least 1, got {value}")
    every = arguments.get("val_check_interval")
    if every is not None and not isinstance(every, int | float):
        raise ValueError(
            f"--trainer.val_check_interval must be a number of batches or a share of an epoch, got {every!r}: validations by "
            "the clock come at other steps each time"
        )
    for name in ("limit_train_batches", "gradient_clip_val"):
        value = arguments.get(name)
        if value is not None and value <= 0:
            raise ValueError(f"--trainer.{name} must be more than 0, got {value}")


def _check_strategy(strategy: str | Strategy) -> None:
    """Refuses what would train elsewhere than it reports.

    Processes that are spawned or forked anew for training and for the test take their steps, epochs and samples with
    them when they end. FSDP, DeepSpeed and XLA hold or write weights in forms that nothing here reads back.
    """
    if isinstance(strategy, str):
        fits, got = strategy in STRATEGIES, repr(strategy)
    else:
        start = getattr(strategy, "_start_method", "popen")
        fits, got = type(strategy) in (SingleDeviceStrategy, DDPStrategy) and start == "popen", type(strategy).__name__
        if start != "popen":
            got += f" with processes started by {start}, which is also what a notebook with several devices has"
    if not fits:
        raise ValueError(
            f"--trainer.strategy must be one of {', '.join(STRATEGIES)}, got {got}: leave it out, as ddp, which several "
            "devices have by default, starts the processes itself; in a notebook use --trainer.devices 1, or train with "
            "python -m experiments.train in a terminal"
        )


def _trainer(
    run: Run, out: Path, callbacks: Sequence[Callback], loggers: Sequence[Logger], where: Mapping[str, Any]
) -> Trainer:
    own = [SeedSteps(run.seed), MetricsFile(out), PerImage(out), Predictions(out), Samples(out)]
    try:
        trainer = Trainer(
            **{"log_every_n_steps": 10, "enable_progress_bar": sys.stderr.isatty(), **run.trainer, **where},
            default_root_dir=out,
            enable_model_summary=False,
            logger=list(loggers),
            plugins=[CheckpointFiles()],
            callbacks=[*own, *callbacks],
            use_distributed_sampler=False,  # the samplers of datamodules/base.py know epochs, ranks and padding
            enable_autolog_hparams=False,  # the tracking config holds the whole `Run`
            inference_mode=False,  # a metric updated in inference mode cannot be trained beside
        )
    except (MisconfigurationException, TypeError) as error:
        raise ValueError(f"Lightning refuses these --trainer flags: {error}") from error
    make_resumable(trainer)
    return trainer


def _synchronise_batch_norm(trainer: Trainer, module: SegmentationModule) -> None:
    """Batch statistics over all devices, so that their number does not change what is normalised."""
    if trainer.world_size == 1 or not any(isinstance(m, _BatchNorm) for m in module.modules()):
        return
    if trainer.strategy.root_device.type == "cuda":
        module.network = SyncBatchNorm.convert_sync_batchnorm(module.network)  # type: ignore[no-untyped-call]
    else:
        warnings.warn(
            "batch norm cannot be synchronised over CPU processes: each normalises its own share of the batch, so the "
            "result depends on --trainer.devices; use one device, or --model.norm group",
            stacklevel=2,
        )


def first_process() -> bool:
    """Whether this is the first of the processes that train one run on this machine; the others find what it has made."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def device_name(trainer: Trainer) -> str:
    root = trainer.strategy.root_device
    name = torch.cuda.get_device_name(root) if root.type == "cuda" else "CPU"
    return f"{trainer.world_size} x {name}"


def _check_folder(run: Run, out: Path, resume: bool) -> dict[str, Any] | None:
    """Refuses a folder that holds something else; returns the result of this very run if it is there already."""
    stored, result = out / "run.json", out / "result.json"
    if not result.exists() and not any(os.path.lexists(out / "checkpoints" / name) for name in (LAST, PREVIOUS)):
        return None
    if not stored.exists():
        raise ValueError(f"{out} holds results but no run.json: choose another folder with --out")
    if changed := changes(read_json(stored), run):
        raise ValueError(f"{out} holds another run ({'; '.join(changed)}): choose another folder with --out")
    if not resume:
        raise ValueError(f"{out} already holds this run: continue it with --resume, or choose another --out")
    if not result.exists():
        return None
    finished = read_json(result)
    if finished.get("hash") not in run.hashes:
        raise ValueError(
            f"{result} is the result of another run ({finished.get('hash')}, and this is {run.hash}), from before a default was "
            "changed or from another folder: choose another folder with --out"
        )
    return finished
