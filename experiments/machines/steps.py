"""Trains a few steps as one of several processes, and says how long each took and what for.

    python -m torch.distributed.run --standalone --nproc-per-node 2 -m experiments.machines.steps ASKED.json OUT

`experiments.benchmark_scaling` starts it. Each process writes OUT/<rank>.json.
"""

import json
import math
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from experiments.runs.run import Run
from experiments.runs.training import train
from experiments.shell.command import command
from experiments.shell.files import write_json
from experiments.shell.flags import Parser


@dataclass(frozen=True)
class Asked:
    """What is measured: after `warmup` steps `steps` as they are in a training, then `steps` pairs that are taken
    apart."""

    run: dict[str, Any]  # the form of run.json
    processes: int
    warmup: int
    steps: int
    accelerator: str

    @property
    def total(self) -> int:
        return self.warmup + 3 * self.steps


@dataclass
class Measured:
    """Seconds of one process: medians over its steps.

    `period` is from the end of one step to that of the next, as in a training. Of a step that is taken apart, `data` is
    the wait for the loader, `compute` the step without an exchange of gradients, and `exchange` what it takes longer
    with one. `late` is the wait for the slowest process.
    """

    period: float
    data: float
    compute: float
    exchange: float
    late: float
    gradient_bytes: int


class Watch(Callback):
    """Takes the times of an `Asked`.

    Exchange is found by difference: of the pairs every other step has no exchange of gradients (that of
    `DistributedDataParallel.no_sync`), and all begin together and end with an idle device. So what is hidden behind the
    backward pass is not counted, and what is waited for is.
    """

    def __init__(self, asked: Asked) -> None:
        self.asked, self.step, self.bytes = asked, 0, 0
        self.first = True  # of an epoch, before which the loader starts
        self.mark: Any = None  # when the last step as in a training ended
        self.marks: list[tuple[Any, Any]] = []  # that and the end of the next one
        self.begun, self.ended = 0.0, math.nan  # of the step that is taken apart; NaN before the first of an epoch
        self.parts: dict[str, list[float]] = {"data": [], "late": [], "with": [], "without": []}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        parameters = [p for p in pl_module.parameters() if p.requires_grad]
        self.bytes = sum(p.numel() * p.element_size() for p in parameters)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.first, self.ended = True, math.nan

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        apart = self.step >= self.asked.warmup + self.asked.steps
        wrapped = trainer.strategy.model
        if isinstance(wrapped, DistributedDataParallel):
            wrapped.require_backward_grad_sync = not (apart and self.step % 2)  # as its no_sync does
        if apart:
            now = time.perf_counter()
            if not math.isnan(self.ended):
                self.parts["data"].append(now - self.ended)
            if distributed.is_initialized():
                distributed.barrier()
            self.begun = time.perf_counter()
            self.parts["late"].append(self.begun - now)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        device = trainer.strategy.root_device
        if self.step >= self.asked.warmup + self.asked.steps:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            self.ended = time.perf_counter()
            self.parts["without" if self.step % 2 else "with"].append(self.ended - self.begun)
        else:
            mark = _now(device)
            if self.step >= self.asked.warmup and not self.first:
                self.marks.append((self.mark, mark))
            self.mark = mark
        self.first = False
        self.step += 1

    def measured(self) -> Measured:
        """Raises ValueError where an epoch has too few steps to see how one follows another."""
        periods = [_between(*pair) for pair in self.marks]
        if not periods or not self.parts["data"] or not self.parts["with"] or not self.parts["without"]:
            raise ValueError(
                "an epoch must have at least 2 steps, which is two times the images of a step: take more images, or a "
                "smaller --data.batch_size"
            )
        median = {name: statistics.median(values) for name, values in self.parts.items() if values}
        alone = self.asked.processes == 1  # then both kinds of steps are the same
        compute = statistics.median(self.parts["with"] + self.parts["without"]) if alone else median["without"]
        exchange = 0.0 if alone else max(0.0, median["with"] - median["without"])
        return Measured(statistics.median(periods), median["data"], compute, exchange, median["late"], self.bytes)


def _now(device: torch.device) -> Any:
    """A point in time: on a GPU that at which it gets there, without waiting for it."""
    if device.type != "cuda":
        return time.perf_counter()
    event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _between(earlier: Any, later: Any) -> float:
    if isinstance(earlier, float):
        return float(later - earlier)
    later.synchronize()
    return float(earlier.elapsed_time(later)) / 1000


@command()
def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("asked", type=Path, metavar="ASKED.json", help="what is measured: an `Asked`")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the times that each process writes")
    args = parser.parse_args()
    asked = Asked(**json.loads(args.asked.read_text(encoding="utf-8")))
    watch = Watch(asked)
    where: dict[str, Any] = {"accelerator": asked.accelerator, "devices": asked.processes}
    where |= {"strategy": "ddp"} if asked.processes > 1 else {}
    train(Run.from_config(asked.run), args.out / "run", callbacks=[watch], test=False, **where)
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    write_json(args.out / f"{rank}.json", asdict(watch.measured()))


if __name__ == "__main__":
    main()
