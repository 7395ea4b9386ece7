"""The attacks: files of strangers that try to run code, to write elsewhere, to take the memory, or to say what they
should not.

Each gets a folder `here`, in which the commands run, and one `outside`, in which nothing may appear; `canary` is the
file that an attack would make if it ran. What is opened is named, or read as the data that it claims to be.
"""

import hashlib
import json
import pickle
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.folders import (
    bombs,
    formulas,
    latex,
    markdown,
    objects,
    page,
    programs,
    record_name,
    seeds,
    symlinked,
)
from tests.faults.harness import QUIET, TINY, Bench, Ended, Wrong, check, check_ended
from tests.faults.kernels import CACHE
from tests.faults.payload import Payload, told
from tests.faults.starts import begun

NEVER = r"^error: .*(holds more than data; it is not loaded|objects, not plain data)"


@dataclass(frozen=True)
class Attack:
    """`name` is what a stranger gives, `does` what happens instead of what it wants; `when` as of a fault."""

    name: str
    does: str
    act: Callable[[Bench], tuple[Ended, str]]
    when: str = "test"  # or "push", or "full"


# Checkpoints


def poisoned(bench: Bench, path: Path, kind: str) -> Path:
    """A checkpoint with a payload, and a hash beside it that fits."""
    import torch

    content: dict[str, Any] = {
        "segmentation": {"architecture": "unet"},
        "hyper_parameters": {},
        "state_dict": {},
        "x": Payload(bench.canary),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    path.with_name(f"{path.name}.sha256").write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")
    return path


def loaded(bench: Bench, kind: str, **variables: str) -> tuple[Ended, str]:
    from experiments.shell.catalogue import load

    path = poisoned(bench, bench.here / "x.ckpt", kind)
    ended = bench.call(told(lambda: load(path)), variables=variables)
    return check_ended(ended, 2, NEVER), "refused"


def resumed(bench: Bench, kind: str, **variables: str) -> tuple[Ended, str]:
    for name in ("last.ckpt", "previous.ckpt"):
        poisoned(
            bench, begun(bench).with_name(name) if not bench.out.exists() else bench.out / "checkpoints" / name, kind
        )
    ended = bench.train("--resume", "--trainer.max_epochs", 8, variables=variables)
    return check_ended(ended, 2, NEVER), "refused"


def from_flag(bench: Bench, kind: str, *flags: str, **variables: str) -> tuple[Ended, str]:
    path = poisoned(bench, bench.here / "x.ckpt", kind)
    data = ["--data", "shapes", "--data.size", "32", "--out", str(bench.out)]
    ended = bench.run("experiments.train", *data, *QUIET, *flags, path, variables=variables)
    check_ended(ended, 2, r"^error: .*x\.ckpt.*(more than data|plain data|is damaged)")
    check(not bench.out.exists(), "a folder was made")
    return ended, "refused"


FCN = (
    *[
        "--model",
        "fcn",
        "--model.encoder",
        "resnet18",
        "--model.stride",
        "16",
        "--model.at_once",
        "false",
        "--model.init_from",
    ],
)
CRF = ("--model", "crf_as_rnn", "--model.network", "unet", "--model.init_from")
WEIGHTS = ("--model", "fcn", "--model.encoder", "resnet18", "--model.weights")
FORCED = {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}


def instantiator(bench: Bench) -> tuple[Ended, str]:
    """Lightning calls what a checkpoint names so, unless the class says otherwise."""
    import torch

    from experiments.shell.catalogue import load
    from lightning_modules.components.checkpoints import read_checkpoint

    path = begun(bench)
    for name in ("os.system", "builtins.eval", "subprocess.getoutput"):
        content = read_checkpoint(bench.out / "checkpoints" / "previous.ckpt")
        content["hyper_parameters"] = {"_instantiator": name, "command": f"touch '{bench.canary}'"}
        content["hparams_name"] = content["hyper_parameters_name"] = "kwargs"
        torch.save(content, path)
        path.with_name("last.ckpt.sha256").unlink(missing_ok=True)
        ended = check_ended(bench.call(told(lambda: load(path))), 2, "^error: ")
    return ended, "refused"


def from_the_net(bench: Bench) -> tuple[Ended, str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/x.ckpt"
        ended = bench.run("experiments.train", *TINY[6:], *QUIET, *CRF, address)
        check_ended(ended, 2, r"^error: .*http://.* is not a file")
        try:
            server.accept()
        except TimeoutError:
            return ended, "nobody is asked"
    raise Wrong("the address was asked")


# Settings


def classes(bench: Bench) -> tuple[Ended, str]:
    """A run.json of a stranger, which `experiments.grids.cell` trains."""
    from datamodules.shapes import ShapesDataModule
    from experiments.runs.run import Run
    from lightning_modules.unet import UNetModule

    config = Run(module=UNetModule, datamodule=ShapesDataModule, trainer={"max_epochs": 1}).config()
    (bench.here / "evil.py").write_text(f"open({str(bench.canary)!r}, 'w')\nclass C: pass\n")
    shell = {"args": f"touch '{bench.canary}'", "shell": True}
    others: list[dict[str, Any]] = [
        {"module": "evil.C"},
        {"module": "os.system", "hparams": {"command": f"touch '{bench.canary}'"}},
        {"module": "subprocess.Popen", "hparams": shell},
        {"datamodule": "subprocess.Popen", "data": shell},
        {"module": "lightning_modules.base.np"},
        {"module": "lightning_modules.refinement.native.library", "hparams": {"name": "../../x"}},
        {"module": "lightning_modules.refinement.native.subprocess.Popen", "hparams": shell},
        {"datamodule": "datamodules.folder.Path", "data": {"_": "x"}},
        {"module": "lightning_modules..evil.C"},
        {"module": ["x"]},
    ]
    bench.out.mkdir(parents=True)
    for other in others:
        (bench.out / "run.json").write_text(json.dumps(config | other))
        ended = check_ended(bench.run("experiments.grids.cell", bench.out), 2, r"^error: .*(module|datamodule)")
    return ended, f"{len(others)} of {len(others)} refused"


# What is logged


def secrets(bench: Bench) -> tuple[Ended, str]:
    key = "5ec2e7" * 6 + "0123"
    variables = {"WANDB_API_KEY": key, "WANDB_MODE": "offline", "AWS_SECRET_ACCESS_KEY": "hunter2hunter2"}
    ended = bench.train("--trainer.max_epochs", 1, "--logger", "wandb", variables=variables, limit=120)
    check_ended(ended, 0, limit=120)
    # What is uploaded; the logs of the client beside it stay on this machine.
    logged = bench.out / "wandb"
    files = [
        path for path in logged.rglob("*") if path.is_file() and (path.suffix == ".wandb" or "files" in path.parts)
    ]
    check(files, "nothing was logged")
    host = socket.gethostname()
    words = {"the key": key, "another key": "hunter2hunter2", "a folder": str(bench.folder)}
    words |= {"the host": host} if len(host) > 5 else {}
    for path in files:
        found = [what for what, word in words.items() if word.encode() in path.read_bytes()]
        check(not found, f"{path.name} holds {found}")
    return ended, f"in none of {len(files)} files of W&B"


KINDS = {"zip": "as torch.save writes it", "legacy": "of the older form"}
ATTACKS: list[Attack] = [
    *(
        attack
        for kind, words in KINDS.items()
        for attack in (
            Attack(f"code in a checkpoint {words}: load", "is not run", lambda b, k=kind: loaded(b, k)),
            Attack(f"code in a checkpoint {words}: --resume", "is not run", lambda b, k=kind: resumed(b, k)),
            Attack(
                f"code in a checkpoint {words}: fcn init_from",
                "is not run",
                lambda b, k=kind: from_flag(b, k, *FCN),
            ),
            Attack(
                f"code in a checkpoint {words}: crf_as_rnn init_from",
                "is not run",
                lambda b, k=kind: from_flag(b, k, *CRF),
            ),
            Attack(f"code in a checkpoint {words}: weights", "is not run", lambda b, k=kind: from_flag(b, k, *WEIGHTS)),
        )
    ),
    Attack("a pickle as checkpoint", "is not run", lambda b: loaded(b, "pickle")),
    Attack(
        "the same where TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set: load",
        "is not run",
        lambda b: loaded(b, "zip", **FORCED),
    ),
    Attack("the same: --resume", "is not run", lambda b: resumed(b, "zip", **FORCED)),
    Attack("the same: init_from", "is not run", lambda b: from_flag(b, "zip", *CRF, **FORCED)),
    Attack("a program named as _instantiator of a checkpoint", "is not run", instantiator),
    Attack("a checkpoint from http://", "is refused, nobody is asked", from_the_net),
    Attack("a run.json that names other classes", "are refused", classes),
    Attack("objects in an array of a result folder", "are not loaded", objects),
    Attack("markup and scripts as names: report.html", "are text", page, when="push"),
    Attack("markup as names: table.md", "is text", markdown, when="push"),
    Attack("commands as names: table.tex", "are text", latex, when="push"),
    Attack("formulas as names: table.csv", "are text", formulas, when="push"),
    Attack("an experiment named ../../x: --record", "stays in its folder", record_name, when="push"),
    *(Attack(f"compiled kernels: {name}", "is not loaded, nothing waits", act) for name, act in CACHE.items()),
    Attack("keys, folders and the host: what W&B is given", "are not in it", secrets, when="full"),
    Attack("a shell command as seed of a plan.json: reproduce.sh", "is refused", seeds),
    Attack("a program as command of a plan.json: reproduce.sh", "is not run", programs, when="push"),
    Attack("bombs in predictions.zip", "take no memory", bombs, when="push"),
    Attack("links to other folders in a result folder", "are not followed in writing", symlinked),
]  # fmt: skip
