"""`Run`, all that decides the numbers of a training, and `train`, the one code path that trains.

python -m experiments.run FOLDER trains the run.json in FOLDER, as experiments/ablation.py does for each of its cells.
"""

import argparse
import ctypes
import hashlib
import inspect
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
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
from experiments.callbacks import (
    AtomicCheckpoints,
    MetricsFile,
    PerImage,
    Predictions,
    Samples,
    SeedSteps,
    StopOnNonFinite,
    last_checkpoint,
)
from experiments.environment import environment
from experiments.files import locked, read_json, write_json
from experiments.flags import forgiving_output
from lightning_modules.base import MEDIAN_FREQUENCY, SegmentationModule
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

    Where it runs (devices, workers, loggers) is not in here.
    """

    module: type[SegmentationModule]
    datamodule: type[SegmentationDataModule]
    hparams: Mapping[str, Any] = field(default_factory=dict)  # keyword arguments of `module`
    data: Mapping[str, Any] = field(default_factory=dict)  # keyword arguments of `datamodule`
    trainer: Mapping[str, Any] = field(default_factory=dict)  # keyword arguments of `Trainer`: max_epochs, precision
    seed: int = 0

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
        return Run(
            module=self.module,
            datamodule=self.datamodule,
            hparams=parts["hparams"],
            data={**parts["data"], **(data or {})},
            trainer={**parts["trainer"], **(trainer or {})},
            seed=self.seed if seed is None else seed,
        )

    def config(self) -> dict[str, Any]:
        """What `run.json` holds: names and plain values, enough to build the same run elsewhere."""
        return {
            "module": f"{self.module.__module__}.{self.module.__name__}",
            "datamodule": f"{self.datamodule.__module__}.{self.datamodule.__name__}",
            "hparams": dict(self.hparams),
            "data": dict(self.data),
            "trainer": dict(self.trainer),
            "seed": self.seed,
        }

    def resolved(self) -> dict[str, Any]:
        """`config` with every default written out, flat: "hparams.lr", "data.crop": what two runs differ in."""
        config = self.config()
        config["hparams"] = {**defaults(self.module), **config["hparams"]}
        config["data"] = {**defaults(self.datamodule), **config["data"]}
        config["data"].pop("num_workers", None)  # changes no number: see datamodules/base.py
        if "root" in config["data"]:
            config["data"]["root"] = os.path.realpath(config["data"]["root"])  # however it was spelled
        flat = {f"{part}.{key}": config[part][key] for part in ("hparams", "data", "trainer") for key in config[part]}
        return flat | {key: config[key] for key in ("module", "datamodule", "seed")}

    @property
    def hash(self) -> str:
        """A name for the settings. With the same code, versions and threads (see environment.json) the same hash trains
        to the same result."""
        return hashlib.sha256(json.dumps(self.resolved(), sort_keys=True).encode()).hexdigest()[:16]

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
        return Run(**classes, **{part: config[part] for part in ("hparams", "data", "trainer", "seed")})


def setting(name: str) -> str:
    """The key in `Run.resolved` of what a factor or a keyword of `Run.but` names: "lr" is "hparams.lr", a hyperparameter;
    "data.crop", "trainer.max_epochs", "module" and "datamodule" are keys already."""
    is_key = name in ("module", "datamodule") or name.startswith(("data.", "trainer."))
    return name if is_key else f"hparams.{name}"


def defaults(cls: type) -> dict[str, Any]:
    """The default of every keyword argument of `cls` and of the project's bases that its **recipe goes to."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if "__init__" in vars(base) and base.__module__.split(".")[0] in ("lightning_modules", "datamodules"):
            parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
            found |= {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    return found


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
    command: str | None = None,
    **where: Any,
) -> dict[str, Any]:
    """Trains `run` into the folder `out` on the hardware `where` and scores the test split with the last weights.

    Returns what result.json holds. The last epoch is reported, not the best: choosing by validation mIoU and
    reporting it flatters the noisier variant. A folder that holds a run is continued with `resume`, never replaced.
    Raises ValueError or FileNotFoundError for what a person can mend, before anything is written to `out`.
    """
    out = Path(out)
    check_logger(logger)
    _check_length(run.trainer)
    _check_strategy({**run.trainer, **where}.get("strategy", "auto"))
    seed_everything(run.seed, workers=True, verbose=False)
    module, datamodule = build(run)
    datamodule.verify()
    with locked(out) if first_process() else nullcontext():
        if first_process() and (finished := _check_folder(run, out, resume)):
            return finished
        extra: dict[str, Any] = {}
        if logger in ("tensorboard", "wandb"):
            from experiments.tracking import tracking  # slow to import, and most runs do without

            extra = tracking(logger, run.resolved() | {"hash": run.hash}, out)
        trainer = _trainer(run, out, [*callbacks, *extra.get("callbacks", ())], extra.get("loggers", []), where)
        _check_strategy(trainer.strategy)  # what "auto" has become
        _synchronise_batch_norm(trainer, module)
        if module.hparams["class_weights"] == MEDIAN_FREQUENCY:
            module.set_class_weights(count_class_weights(datamodule))
        if trainer.is_global_zero:
            write_json(out / "run.json", run.config())
            write_json(out / "environment.json", environment(command) | {"device": device_name(trainer)})
        last = out / "checkpoints" / "last.ckpt"
        trainer.fit(module, datamodule, ckpt_path=str(last) if resume and last.exists() else None, weights_only=True)
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
    own = [SeedSteps(run.seed), StopOnNonFinite(), MetricsFile(out), PerImage(out), Predictions(out), Samples(out)]
    try:
        return Trainer(
            **{"log_every_n_steps": 10, "enable_progress_bar": sys.stderr.isatty(), **run.trainer, **where},
            default_root_dir=out,
            enable_model_summary=False,
            logger=list(loggers),
            plugins=[AtomicCheckpoints()],
            callbacks=[*own, last_checkpoint(out), *callbacks],
            use_distributed_sampler=False,  # the samplers of datamodules/base.py know epochs, ranks and padding
            enable_autolog_hparams=False,  # the tracking config holds the whole `Run`
            inference_mode=False,  # a metric updated in inference mode cannot be trained beside
        )
    except (MisconfigurationException, TypeError) as error:
        raise ValueError(f"Lightning refuses these --trainer flags: {error}") from error


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
    stored, result, last = out / "run.json", out / "result.json", out / "checkpoints" / "last.ckpt"
    if not result.exists() and not last.exists():
        return None
    if not stored.exists():
        raise ValueError(f"{out} holds results but no run.json: choose another folder with --out")
    before = Run.from_config(read_json(stored))
    if before.hash != run.hash:
        old, new = (json.loads(json.dumps(r.resolved())) for r in (before, run))
        changed = [f"{k}: {old.get(k)!r} -> {new.get(k)!r}" for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
        raise ValueError(f"{out} holds another run ({'; '.join(changed)}): choose another folder with --out")
    if not resume:
        raise ValueError(f"{out} already holds this run: continue it with --resume, or choose another --out")
    if result.exists() and read_json(result).get("hash") == run.hash:
        return read_json(result)
    try:
        torch.load(last, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises five kinds by what is broken
        raise ValueError(f"{last} is damaged ({error}): delete {out} to train it from the start") from error
    return None


def main() -> None:
    """One cell of an ablation, in a process of its own."""
    forgiving_output()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--logger", choices=LOGGERS, default=LOGGERS[0])
    parser.add_argument("--devices", default="auto")
    parser.add_argument("--command", help="the command that asked for this cell, for environment.json")
    parser.add_argument("--parent", type=int, help="process to end with")
    args = parser.parse_args()
    if args.parent is not None and sys.platform == "linux":  # no cell goes on when its ablation was killed
        ctypes.CDLL("libc.so.6").prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != args.parent:
            sys.exit("the ablation that started this cell is gone")
    try:
        run = Run.from_config(read_json(args.folder / "run.json"))
    except ValueError as error:
        sys.exit(f"error: {error}")
    train(run, args.folder, resume=True, logger=args.logger, command=args.command, devices=args.devices)


if __name__ == "__main__":
    main()
