"""Command lines of `experiments.train`, misspelt and with values of every kind, up to the `Run` that they describe."""

import contextlib
import io
import json
import random
import sys
from functools import cache
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

from datamodules.base import SegmentationDataModule
from experiments.runs.run import Run, defaults
from experiments.shell.catalogue import ARCHITECTURES, DATAMODULES
from experiments.train import parse_run
from lightning_modules.base import SegmentationModule
from tests.fuzz.mutate import refused

NAME = "flags"
VALUES = [
    *("", " ", "0", "1", "-1", "1e300", "1e-300", "nan", "inf", "-inf", "9" * 30, "1.5", "true", "null", "None", "x"),
    *("[]", "[1, 2]", "[1", "{}", '{"a": 1}', '{"class_path": "evilmod.C"}', "evilmod.C", "os.system", "[[[[]]]]"),
    *(
        "!!python/object/apply:os.system ['true']",
        "&a [*a]",
        "{a: &x 1, b: *x}",
        "- 1\n- 2",
        "a: b: c",
        "\x00",
        "\ud800",
    ),
    *("/etc/passwd", "../..", "~", "-", "--", "--x", "=", "=1", "é", "0x10", "1_000", "1e3", "٣", "{{", "%s", "'", '"'),
    *(
        '{"class_path": 1}',
        '{"init_args": {}}',
        '[{"class_path": "os.system"}]',
        "2 4",
        "(2, 4)",
        "[1, null, true, []]",
    ),
]
TRAINER = [
    *("accelerator", "devices", "num_nodes", "strategy", "precision", "max_epochs", "max_steps", "gradient_clip_val"),
    *(
        "accumulate_grad_batches",
        "deterministic",
        "benchmark",
        "sync_batchnorm",
        "limit_train_batches",
        "logger",
        "plugins",
    ),
    *(
        "callbacks",
        "profiler",
        "strategy.class_path",
        "accelerator.help",
        "strategy.init_args.x",
        "val_check_interval",
        "check_val_every_n_epoch",
        "default_root_dir",
        "max_time",
    ),
]
OPTIONS = ["--seed", "--out", "--resume", "--logger", "--save-every", "--config", "--print_config", "--model", "--data"]


class Watch(MetaPathFinder):
    """Notes an attempt to import what only a flag names."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        if fullname.partition(".")[0] == "evilmod":
            self.asked.append(fullname)


WATCH = Watch()
sys.meta_path.insert(0, WATCH)


@cache
def known(part: str, cls: type) -> list[str]:
    return [f"--{part}.{name}" for name in defaults(cls)]


def _flag(rng: random.Random, module: type[SegmentationModule], datamodule: type[SegmentationDataModule]) -> str:
    trainer = [f"--trainer.{name}" for name in TRAINER]
    flag = rng.choice(rng.choice([known("model", module), known("data", datamodule), trainer, OPTIONS]))
    if rng.random() < 0.15:
        at = rng.randrange(len(flag))
        flag = rng.choice([flag[:at] + flag[at + 1 :], flag[:at], flag + "+", flag + ".x", flag.upper(), flag[1:]])
    return flag


def one(rng: random.Random, folder: Path) -> str:
    model, data = rng.choice(list(ARCHITECTURES)), rng.choice(list(DATAMODULES))
    module, datamodule = ARCHITECTURES[model], DATAMODULES[data]
    argv = ["--model", model, "--data", data]
    if "root" in known("data", datamodule) or rng.random() < 0.7:
        argv += ["--data.root", str(folder)] if data in ("camvid", "folder") else []
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        flag, value = _flag(rng, module, datamodule), rng.choice(VALUES)
        if rng.random() < 0.3:
            values = {**defaults(module), **defaults(datamodule)}
            value = json.dumps(values.get(flag.rpartition(".")[2], value))
        argv += rng.choice([[flag, value], [f"{flag}={value}"], [flag], [value]])
    if rng.random() < 0.05:
        rng.shuffle(argv)
    out, err = io.StringIO(), io.StringIO()
    WATCH.asked.clear()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            run, _ = parse_run(argv)
        assert not WATCH.asked, argv
    except SystemExit as stop:
        assert not WATCH.asked, argv
        if stop.code == 0:
            assert out.getvalue(), argv  # --help and --print_config
            return "read"
        message = err.getvalue()
        assert stop.code == 2 and message.startswith("error: ") and "Traceback" not in message, (
            stop.code,
            argv,
            message,
        )
        assert message.count("\n") == 1, (argv, message)
        given = [word.split("=")[0].lstrip("-") for word in argv]
        return refused(ValueError(message), "data.root", *(word for word in given if word))
    stored = json.dumps(run.config())  # a tuple comes back as a list
    assert json.dumps(Run.from_config(json.loads(stored)).config()) == stored, argv
    return "read"
