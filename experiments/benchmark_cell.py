"""Where the processor time of one cell goes: imports, data, forward, backward, optimiser, scores, files, the rest.

    python -m experiments.benchmark_cell ablate_upsampling [--variant NAME] [--rounds 3] [--threads 1]

Trains the cell of the first seed, each round in a process of its own. Each part is what is spent in it and in no part
within it; the median over the rounds, as a Markdown table. One thread, so that processor time is what a core does.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from experiments.grids.processes import variables
from experiments.shell.command import command
from experiments.shell.flags import Parser, positive, refuse

STARTED = time.process_time()  # with what the interpreter took before
REST = "Lightning, logs and the rest"


class Parts:
    """Processor seconds by part: one clock that is handed from a part to the one within it and back."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._within = [REST]
        self._since = time.process_time()

    def _hand_over(self) -> None:
        now = time.process_time()
        self.seconds[self._within[-1]] = self.seconds.get(self._within[-1], 0.0) + now - self._since
        self._since = now

    def timed(self, function: Callable[..., Any], part: str | Callable[..., str]) -> Callable[..., Any]:
        """The same function on the clock of `part`, or of what `part` says of its arguments."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self._hand_over()
            self._within.append(part(*args) if callable(part) else part)
            try:
                return function(*args, **kwargs)
            finally:
                self._hand_over()
                self._within.pop()

        return call

    def watch(self, owner: Any, name: str, part: str | Callable[..., str]) -> None:
        setattr(owner, name, self.timed(getattr(owner, name), part))

    def done(self) -> dict[str, float]:
        self._hand_over()
        return self.seconds


def measure(study: str, variant: str, folder: str) -> dict[str, float]:
    """Trains a cell into `folder`; returns the seconds of its parts."""
    parts = Parts()
    begun = parts.timed(import_module, "imports")
    begun("experiments.runs.training")
    module = begun(f"experiments.{study}")
    import torch
    from torch.optim.swa_utils import AveragedModel

    from datamodules import base as data
    from experiments.runs import averaging, callbacks, checkpoints, training
    from lightning_modules.base import SegmentationModule
    from lightning_modules.components.scores.metrics import Scores

    run = module.RUNS[variant]
    parts.seconds["imports"] += STARTED
    cls: Any = run.module
    parts.watch(run.datamodule, "load", "data")
    parts.watch(data.TrainingSamples, "__getitem__", "augmentation")
    parts.watch(cls, "predict", lambda module, *_: "forward" if module.training else "forward of evaluation")
    parts.watch(cls, "loss", "loss")
    parts.watch(cls, "backward", "backward")
    for optimizer in (torch.optim.SGD, torch.optim.AdamW):
        _watch_update(parts, optimizer)
    parts.watch(Scores, "update", "scores")
    parts.watch(SegmentationModule, "_log_scores", "scores")
    parts.watch(AveragedModel, "update_parameters", "average")
    parts.watch(averaging, "recalibrated", "average")
    parts.watch(checkpoints.SafePoints, "_save", "files")
    for name in ("save_npz", "save_predictions", "encode_labels", "write_atomic"):
        parts.watch(callbacks, name, "files")
    parts.watch(training, "write_json", "files")
    training.train(run, Path(folder, "cell"), accelerator="cpu")
    return parts.done()


def _watch_update(parts: Parts, optimizer: Any) -> None:
    """Its step without the closure, in which Lightning has forward and backward."""
    step = optimizer.step

    def timed(self: Any, closure: Any = None) -> Any:
        return parts.timed(step, "optimiser")(self, closure and parts.timed(closure, REST))

    timed.hooked = True  # type: ignore[attr-defined] # torch would wrap it once more
    optimizer.step = timed


@command()
def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("study", help="the name of a file in experiments/ that has RUNS")
    parser.add_argument("--variant", help="one of its variants (default: the first)")
    parser.add_argument("--rounds", type=positive, default=3, help="how often the cell is trained")
    parser.add_argument("--threads", type=positive, default=1, help="CPU threads of it")
    args = parser.parse_args()
    try:
        runs = import_module(f"experiments.{args.study}").RUNS
    except (ModuleNotFoundError, AttributeError):
        studies = sorted(path.stem for path in Path(__file__).parent.glob("ablate_*.py"))
        refuse(f"study must be one of {', '.join(studies)}, got {args.study!r}")
    variant = args.variant or next(iter(runs))
    if variant not in runs:
        refuse(f"--variant must be one of {', '.join(runs)}, got {variant!r}")
    found = []
    for number in range(args.rounds):
        print(f"training {variant}, round {number + 1} of {args.rounds}", file=sys.stderr)
        with tempfile.TemporaryDirectory() as folder:
            code = (
                "import json; from experiments.benchmark_cell import measure; "
                f"print(json.dumps(measure({args.study!r}, {variant!r}, {folder!r})))"
            )
            done = subprocess.run(
                [sys.executable, "-c", code],
                env=os.environ | variables(args.threads),
                check=True,
                stdout=subprocess.PIPE,
                encoding="utf-8",
            )
        found.append(json.loads(done.stdout.splitlines()[-1]))
    medians = {part: statistics.median(of.get(part, 0.0) for of in found) for part in found[0]}
    whole = sum(medians.values())
    print(f"| part of {variant} | CPU s | share |\n|---|---:|---:|")
    for part, seconds in sorted(medians.items(), key=lambda item: -item[1]):
        print(f"| {part} | {seconds:.2f} | {100 * seconds / whole:.0f} % |")
    print(f"| all | {whole:.2f} | 100 % |")


if __name__ == "__main__":
    main()
