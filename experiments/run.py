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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import Logger

from datamodules.base import SegmentationDataModule
from experiments.callbacks import (
    AtomicCheckpoints,
    MetricsFile,
    PerImage,
    Samples,
    SeedSteps,
    StopOnNonFinite,
    last_checkpoint,
)
from experiments.environment import environment
from experiments.files import write_json
from lightning_modules.base import SegmentationModule


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
        **hparams: Any,
    ) -> "Run":
        """The same run with these hyperparameters, arguments of the data or the trainer, or this seed, instead."""
        return Run(
            module=self.module,
            datamodule=self.datamodule,
            hparams={**self.hparams, **hparams},
            data={**self.data, **(data or {})},
            trainer={**self.trainer, **(trainer or {})},
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
        # The number of worker processes changes no number: see datamodules/base.py.
        config["data"].pop("num_workers", None)
        flat = {f"{part}.{key}": config[part][key] for part in ("hparams", "data", "trainer") for key in config[part]}
        return flat | {key: config[key] for key in ("module", "datamodule", "seed")}

    @property
    def hash(self) -> str:
        """A name for the numbers: two runs with the same hash train to the same result."""
        return hashlib.sha256(json.dumps(self.resolved(), sort_keys=True).encode()).hexdigest()[:16]

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> "Run":
        """The run of a `run.json`. Classes come from this project's packages only: a config is data, not code."""
        classes = {}
        for part, package in (("module", "lightning_modules"), ("datamodule", "datamodules")):
            path, _, name = str(config[part]).rpartition(".")
            if path.split(".")[0] != package:
                raise ValueError(f"{part} must be a class of the package {package}, got {config[part]!r}")
            classes[part] = getattr(import_module(path), name)
        return Run(**classes, **{part: config[part] for part in ("hparams", "data", "trainer", "seed")})


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
    loggers: Sequence[Logger] = (),
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
    command: str | None = None,
    **where: Any,
) -> dict[str, Any]:
    """Trains `run` into the folder `out` on the hardware `where` and scores the test split with the last weights.

    Returns what result.json holds. The last epoch is reported, not the best: choosing by validation mIoU and
    reporting it flatters the noisier variant. A folder that holds a run is continued with `resume`, never replaced.
    """
    started = time.monotonic()
    out = Path(out)
    seed_everything(run.seed, workers=True, verbose=False)
    module, datamodule = build(run)
    datamodule.verify()
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:  # the other processes of one machine find what the first has made
        _claim(run, out, resume)
    trainer = Trainer(
        **{"max_epochs": 1, "log_every_n_steps": 10, **run.trainer},
        **{"enable_progress_bar": sys.stderr.isatty(), "enable_model_summary": False, **where},
        default_root_dir=out,
        logger=list(loggers),
        plugins=[AtomicCheckpoints()],
        callbacks=[
            SeedSteps(run.seed),
            StopOnNonFinite(),
            MetricsFile(out),
            PerImage(out),
            Samples(out),
            last_checkpoint(out),
            *callbacks,
        ],
        use_distributed_sampler=False,  # the samplers of datamodules/base.py know epochs, ranks and padding
        enable_autolog_hparams=False,  # the tracking config holds the whole `Run`
        inference_mode=False,  # a metric updated in inference mode cannot be trained beside
    )
    if trainer.is_global_zero:
        write_json(out / "environment.json", environment(command) | {"device": device_name(trainer)})
    last = out / "checkpoints" / "last.ckpt"
    trainer.fit(module, datamodule, ckpt_path=str(last) if resume and last.exists() else None, weights_only=True)
    values = {name: float(value) for name, value in trainer.callback_metrics.items()}
    trainer.test(module, datamodule, verbose=False)
    values |= {name: float(value) for name, value in trainer.callback_metrics.items()}
    result = {
        "hash": run.hash,
        "status": "done",
        **{
            s: {k.removeprefix(f"{s}/"): v for k, v in values.items() if k.startswith(f"{s}/")} for s in ("val", "test")
        },
        "seconds": time.monotonic() - started,
        "epochs": trainer.current_epoch,
        "params": sum(p.numel() for p in module.parameters()),
    }
    if trainer.is_global_zero:
        write_json(out / "result.json", result)
    return result


def device_name(trainer: Trainer) -> str:
    root = trainer.strategy.root_device
    name = torch.cuda.get_device_name(root) if root.type == "cuda" else "CPU"
    return f"{trainer.world_size} x {name}"


def _claim(run: Run, out: Path, resume: bool) -> None:
    """Refuses a folder that holds something else, before anything in it is touched."""
    stored, started = out / "run.json", (out / "result.json").exists() or any(out.glob("checkpoints/*"))
    if started and not stored.exists():
        raise ValueError(f"{out} holds checkpoints but no run.json: choose another folder with --out")
    if started:
        before, now = Run.from_config(json.loads(stored.read_text())), run
        if before.hash != now.hash:
            old, new = (json.loads(json.dumps(r.resolved())) for r in (before, now))
            changed = [
                f"{k}: {old.get(k)!r} -> {new.get(k)!r}" for k in sorted({*old, *new}) if old.get(k) != new.get(k)
            ]
            raise ValueError(f"{out} holds another run ({'; '.join(changed)}): choose another folder with --out")
        if not resume:
            raise ValueError(
                f"{out} already holds this run: continue it with --resume, or choose another folder with --out"
            )
    try:
        write_json(stored, run.config())
    except OSError as error:
        raise ValueError(f"cannot write to {out}: {error.strerror}. Choose another folder with --out") from error


def main() -> None:
    """One cell of an ablation, in a process of its own."""
    _die_with_parent()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--wandb", action="store_true")
    parser.add_argument("--devices", default="auto")
    parser.add_argument("--command", help="the command that asked for this cell, for environment.json")
    args = parser.parse_args()
    run = Run.from_config(json.loads((args.folder / "run.json").read_text()))
    extra: dict[str, Any] = {}
    if args.wandb:
        from experiments.tracking import tracking  # wandb is slow to import, and most cells do without

        extra = tracking(run, args.folder)
    train(run, args.folder, resume=True, command=args.command, devices=args.devices, **extra)


def _die_with_parent() -> None:
    """No cell goes on writing when the ablation that started it was killed."""
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() == 1:
            sys.exit("the process that started this one is gone")


if __name__ == "__main__":
    main()
