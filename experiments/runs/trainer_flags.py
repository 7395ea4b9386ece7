"""The arguments of Lightning's Trainer that are flags, and which of them decide on the numbers of a run."""

import inspect
from collections.abc import Mapping
from typing import Any

import jsonargparse
from lightning.pytorch import Trainer

from experiments.runs.training import STRATEGIES
from experiments.shell.class_flags import ClassParser

# Arguments of Lightning's Trainer that say where a run computes; the hash of a `Run` leaves them out.
WHERE = {
    *("accelerator", "devices", "num_nodes", "strategy", "enable_progress_bar", "benchmark", "detect_anomaly"),
    *("log_every_n_steps", "num_sanity_val_steps"),
}
# Those that `train` sets itself, or that are objects which a flag cannot name.
NOT_FLAGS = {
    "barebones",
    "callbacks",
    "default_root_dir",
    "enable_autolog_hparams",
    "enable_checkpointing",
    "enable_model_summary",
    "fast_dev_run",
    "inference_mode",
    "limit_predict_batches",
    "limit_test_batches",
    "logger",
    "max_time",
    "model_registry",
    "overfit_batches",
    "plugins",
    "profiler",
    "reload_dataloaders_every_n_epochs",
    "use_distributed_sampler",
}

# Those that may be classes: flags name them, as jsonargparse would import any class that a flag or a file asks for.
NAMED = {
    "accelerator": "what computes: cpu, gpu, mps, tpu or another that Lightning knows",
    "strategy": f"how several devices share the work: {', '.join(STRATEGIES)}",
}

Name = jsonargparse.typing.restricted_string_type("Name", r"^[\w-]+$")  # never one to import


DEFAULTS = {name: parameter.default for name, parameter in inspect.signature(Trainer).parameters.items()}


def unlike_default(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the trainer that are not its defaults: a run does not name the others."""
    return {name: value for name, value in arguments.items() if value != DEFAULTS[name]}


def add_trainer(parser: ClassParser, *, where: bool) -> None:
    """The flags --trainer.NAME; those that say where a run computes only with `where`."""
    parser.add_class(Trainer, "trainer", skip={*NOT_FLAGS, *NAMED, *(() if where else WHERE)})
    for name, help_text in NAMED.items() if where else ():
        parser.add_argument(f"--trainer.{name}", type=Name, default="auto", help=help_text)
