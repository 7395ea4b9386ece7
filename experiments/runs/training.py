"""`train`, the one code path that trains, and what it checks before and stores after."""

import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy

from datamodules.base import SegmentationDataModule
from experiments.runs import memory
from experiments.runs.averaging import Averaging, check_average
from experiments.runs.callbacks import MetricsFile, PerImage, Predictions, Samples, SeedSteps
from experiments.runs.checkpoints import (
    LAST,
    PREVIOUS,
    SAVE_EVERY,
    CheckpointFiles,
    SafePoints,
    Signals,
    add_scores,
    checkpoint_to_resume,
)
from experiments.runs.devices import check_first, cluster, placed, synchronise_batch_norm
from experiments.runs.energy import Energy, check_installed, entry
from experiments.runs.loops import make_resumable
from experiments.runs.run import Run, changes, check_kept
from experiments.runs.scored import scored_entry, scored_split, what_was_scored
from experiments.runs.strategies import SHARDED, ShardedStrategy, strategy_of
from experiments.shell.ending import Interrupted, WorkerError
from experiments.shell.environment import slow_precision, write_environment
from experiments.shell.files import locked, read_json, write_json
from experiments.shell.processes import first_process
from experiments.shell.store import Store, kept
from lightning_modules.base import SegmentationModule
from lightning_modules.components.losses import median_frequency_weights
from lightning_modules.recipe import MEDIAN_FREQUENCY

# Of Lightning's, those in which this process, which reports, trains too: see `_check_strategy`.
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true", SHARDED)


@dataclass
class Tracking:
    """What a run is logged to beside metrics.csv."""

    loggers: list[Logger] = field(default_factory=list)
    callbacks: list[Callback] = field(default_factory=list)

    def start(self, config: Mapping[str, Any]) -> None:
        """Called when it is sure that the run trains; `config` is what is known only now, of the commit and the
        device."""

    def finish(self, exit_code: int) -> None:
        """Called after the result of the run is stored, or with another code than 0 where it has none."""


Tracker = Callable[[dict[str, Any], Path], Tracking]  # of the settings of a run, flat, with its hash, and its folder


def untracked(settings: dict[str, Any], out: Path) -> Tracking:
    """Logs to metrics.csv alone."""
    return Tracking()


def build(run: Run) -> tuple[SegmentationModule, SegmentationDataModule]:
    """The module and the data module of `run`: where the two meet."""
    datamodule = run.datamodule(**run.data)
    datamodule.seed = run.seed
    hparams = {"in_channels": datamodule.in_channels, **run.hparams}
    module = run.module(datamodule.num_classes, datamodule.ignore_index, **hparams)
    module.check_boxes(datamodule.box_categories)
    module.describe(datamodule.class_names, datamodule.palette)
    module.trained = {"data": run.datamodule.__name__, "reads": datamodule.reads}
    return module, datamodule


def _begun(run: Run) -> tuple[SegmentationModule, SegmentationDataModule]:
    """The module and the data module, with the weights that the seed starts with."""
    seed_everything(run.seed, workers=True, verbose=False)
    module, datamodule = build(run)
    if datamodule.loading.tile is not None:
        module.evaluate_in_tiles(datamodule.loading.tile)
    return module, datamodule


def train(
    run: Run,
    out: Path,
    *,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
    tracker: Tracker = untracked,
    save_every: float = SAVE_EVERY,
    command: str | None = None,
    test: bool = True,
    patience: float = 0.0,
    store: Store | None = None,
    energy: bool = False,
    **where: Any,
) -> dict[str, Any]:
    """Trains `run` into the folder `out` on the hardware `where` and scores the test split with the last weights.

    Of data without one it scores the validation images, see `SegmentationDataModule.scored`, and the result says so.

    Returns what result.json holds. The last epoch is reported, not the best: choosing by validation mIoU and reporting
    it flatters the noisier variant. A folder that holds a run is continued with `resume`, never replaced. A checkpoint
    is written after every epoch, and within one every `save_every` minutes. SIGTERM, SIGHUP and SIGINT save and raise
    `Interrupted`. Without `test` the run is a trial, which ends with the validation and never reads the test split.
    A folder that is in use is waited for `patience` seconds. What is in the `store` is begun with, and kept there.
    With `energy` the result has what the counters of the machine say, see `experiments.runs.energy`.

    Where the memory of the device runs out, it goes on with smaller micro-batches, see `memory`.

    Raises ValueError or FileNotFoundError for what a person can mend, before anything is written to `out`. Later
    NonFiniteError for numbers that are none, NoSpaceError for a full disk, NoMemoryError for a device that is too
    small, and WorkerError for a process that was killed while it loaded data.
    """
    out = Path(out)
    _check_length(run.trainer)
    where = placed(where)
    _check_strategy({**run.trainer, **where}.get("strategy", "auto"))
    if not save_every > 0:
        raise ValueError(f"--save-every must be more than 0 minutes, got {save_every}")
    if energy:
        check_installed()
    with Signals() as signals:
        run.check_parents()
        module, datamodule = _begun(run)
        precision, named = (({**run.trainer, **where}.get(name)) for name in ("precision", "strategy"))
        named = named or "auto"
        check_average(module.hparams["average"], precision)
        strategy_of(named, module.hparams, precision)  # refuses what does not go together
        datamodule.verify()
        run = run.identified()
        with _owned(run, out, patience, store) as saved:
            if finished := _check_folder(run, out, resume, "test" if test else "val"):
                return finished
            last = checkpoint_to_resume(out, run.hash, first=first_process()) if resume else None
            settings = run.resolved() | {"hash": run.hash}
            settings |= {"data.root": run.data["root"]} if "root" in run.data else {}
            tracked = tracker(settings, out)

            def ready(most: int | None) -> Trainer:
                """A trainer of `module`, of which no device has more than `most` images at a time."""
                average, decay = module.hparams["average"], module.hparams["ema_decay"]
                averaging = [] if average == "none" else [Averaging(average, decay)]
                saving = [*averaging, SafePoints(out, run.hash, signals, save_every, saved), *tracked.callbacks]
                how = {**where, "strategy": strategy_of(named, module.hparams, precision)}
                measuring = [Energy()] if energy else []
                trainer = _trainer(run, out, [*callbacks, *measuring, *saving], tracked.loggers, how)
                _check_strategy(trainer.strategy)  # what "auto" has become
                check_first(trainer)
                memory.divide(trainer, datamodule, most)
                synchronise_batch_norm(trainer, module)
                if module.hparams["class_weights"] == MEDIAN_FREQUENCY:
                    module.set_class_weights(count_class_weights(datamodule))
                return trainer

            trainer = ready(most := memory.remembered(out) if resume else None)
            made = dict[str, Any]()
            if trainer.is_global_zero:
                if slow := slow_precision(trainer.precision, trainer.strategy.root_device.type):
                    sys.stderr.write(f"{slow}\n")
                write_json(out / "run.json", run.record())
                fits = {} if most is None else {memory.KEY: most}
                made = write_environment(out, command, device=device_name(trainer), **fits)
            trained = {"fingerprint": run.fingerprint, "run": run.hash, "commit": made.get("commit")}
            made = {name: made[name] for name in ("commit", "device") if name in made} | scored_entry(datamodule)
            with _tracked(tracked, made) if trainer.is_global_zero else nullcontext():
                signals.waiting = True
                while True:
                    module.trained |= trained
                    divided = memory.entries(trainer, module, datamodule)
                    with _of_workers(datamodule, signals):
                        most = memory.fit(trainer, module, datamodule, out, last)
                    if most is None:
                        break
                    module, datamodule = _begun(run)
                    memory.free()
                    last = checkpoint_to_resume(out, run.hash)
                    trainer = ready(most)
                fitted = time.monotonic()
                if test:
                    with _of_workers(datamodule, signals), memory.scoring(trainer, datamodule):
                        trainer.test(module, datamodule, verbose=False)
                measured = {name: float(value) for name, value in trainer.callback_metrics.items()}
                validated, seconds = MetricsFile(out).summary()
                result: dict[str, Any] = {
                    "hash": run.hash,
                    "status": "done",
                    **(what_was_scored(datamodule, module.last_confusion["test"]) if test else {}),
                    **({"given": given} if (given := module.given(module.hparams)) else {}),
                    "val": {name.removeprefix("val/"): value for name, value in validated.items()},
                    "test": {n.removeprefix("test/"): value for n, value in measured.items() if n.startswith("test/")},
                    "seconds": seconds + time.monotonic() - fitted,
                    "epochs": trainer.current_epoch,
                    "steps": trainer.global_step,
                    "params": sum(p.numel() for p in module.parameters()),
                    **divided,
                    **entry(trainer),
                }
                if trainer.is_global_zero:
                    if test and (out / "checkpoints" / LAST).exists():
                        add_scores(out / "checkpoints" / LAST, scored_split(result), result["test"])
                    write_json(out / "result.json", result)
        return result


@contextmanager
def _owned(run: Run, out: Path, patience: float, store: Store | None) -> Iterator[Callable[[], None]]:
    """The folder for the first process of a run, with what the store has; gives what to call after a checkpoint."""
    if not first_process():
        yield lambda: None
        return
    with locked(out, patience), kept(store, out, partial(check_kept, run=run)) as saved:
        yield saved


@contextmanager
def _tracked(tracked: Tracking, made: Mapping[str, Any]) -> Iterator[None]:
    """Logs what is trained in this context; its result is stored before a logger is given time to take the rest."""
    tracked.start(made)
    exit_code = 1
    try:
        yield
        exit_code = 0
    finally:
        tracked.finish(exit_code)


@contextmanager
def _of_workers(datamodule: SegmentationDataModule, signals: Signals) -> Iterator[None]:
    """Says in a line what went wrong in a process that loads data, where torch gives its traceback or a number."""
    try:
        yield
    except Exception as error:
        told = str(error)
        if signals.received and "DataLoader worker" in told:  # the signal reached one that had just started, too
            raise Interrupted(signals.received) from error
        if told.startswith("Caught ") and "DataLoader worker" in told.splitlines()[0]:
            # The last line of the worker's traceback, which names the file: "ValueError: images/a.png is damaged".
            raise type(error)(told.rstrip().rpartition(f"\n{type(error).__name__}: ")[2]) from error
        if killed := re.search(r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\) (.*)", told):
            shared = " or --data.num_workers 0, as /dev/shm is full" if "us error" in told else ""
            raise WorkerError(
                f"a process that loads data ({killed[1]}) {killed[2].rstrip('.')}: most likely the memory ran out; "
                f"lower --data.num_workers (now {datamodule.num_workers}){shared}, --data.batch_size (now "
                f"{datamodule.batch_size}) or --data.crop, and continue with --resume"
            ) from error
        raise


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
            f"--trainer.val_check_interval must be a number of batches or a share of an epoch, got {every!r}: "
            "validations by the clock come at other steps each time"
        )
    for name in ("limit_train_batches", "gradient_clip_val"):
        value = arguments.get(name)
        if value is not None and value <= 0:
            raise ValueError(f"--trainer.{name} must be more than 0, got {value}")


def _check_strategy(strategy: str | Strategy) -> None:
    """Refuses what would train elsewhere than it reports.

    Processes that are spawned or forked anew for training and for the test take their steps, epochs and samples with
    them when they end. The first FSDP, DeepSpeed and XLA hold or write weights in forms that nothing here reads back.
    """
    if isinstance(strategy, str):
        fits, got = strategy in STRATEGIES, repr(strategy)
    else:
        start = getattr(strategy, "_start_method", "popen")
        fits, got = (
            type(strategy) in (SingleDeviceStrategy, DDPStrategy, ShardedStrategy) and start == "popen",
            type(strategy).__name__,
        )
        if start != "popen":
            got += f" with processes started by {start}, which is also what a notebook with several devices has"
    if not fits:
        raise ValueError(
            f"--trainer.strategy must be one of {', '.join(STRATEGIES)}, got {got}: leave it out, as ddp, which "
            "several devices have by default, starts the processes itself; in a notebook use --trainer.devices 1, or "
            "train with python -m experiments.train in a terminal"
        )


def _trainer(
    run: Run, out: Path, callbacks: Sequence[Callback], loggers: Sequence[Logger], where: Mapping[str, Any]
) -> Trainer:
    storing = [SeedSteps(run.seed), MetricsFile(out), PerImage(out), Predictions(out), Samples(out)]
    try:
        trainer = Trainer(
            **{"log_every_n_steps": 10, "enable_progress_bar": sys.stderr.isatty(), **run.trainer, **where},
            default_root_dir=out,
            enable_model_summary=False,
            logger=list(loggers),
            plugins=[CheckpointFiles(), *cluster()],
            callbacks=[*storing, *callbacks],
            use_distributed_sampler=False,  # the samplers of datamodules/base.py know epochs, ranks and padding
            enable_autolog_hparams=False,  # the tracking config holds the whole `Run`
            inference_mode=False,  # a metric updated in inference mode cannot be trained beside
        )
    except (MisconfigurationException, TypeError) as error:
        given = ", ".join(f"{name}={value!r}" for name, value in {**run.trainer, **where}.items())
        raise ValueError(f"Lightning refuses these --trainer flags ({given}): {error}") from error
    make_resumable(trainer)
    return trainer


def device_name(trainer: Trainer) -> str:
    root = trainer.strategy.root_device
    name = torch.cuda.get_device_name(root) if root.type == "cuda" else "CPU"
    return f"{trainer.world_size} x {name}"


def _check_folder(run: Run, out: Path, resume: bool, split: str) -> dict[str, Any] | None:
    """Refuses a folder that holds something else; returns the result of this very run if it is there already."""
    stored, result = out / "run.json", out / "result.json"
    begun = resume and stored.exists()  # perhaps ended before its first checkpoint
    if (
        not begun
        and not result.exists()
        and not any(os.path.lexists(out / "checkpoints" / name) for name in (LAST, PREVIOUS))
    ):
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
    if not isinstance(finished.get(split), dict) or "miou" not in finished[split] or "seconds" not in finished:
        raise ValueError(f"{result} is damaged (it holds no scores): delete this file alone, and --resume tests again")
    if finished.get("hash") not in run.hashes:
        raise ValueError(
            f"{result} is the result of another run ({finished.get('hash')}, and this is {run.hash}), from before a "
            "default was changed or from another folder: choose another folder with --out"
        )
    return finished
