"""A Ray cluster for the commands that can use one."""

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from experiments.shell.difference import SENT, to_send

ROOT = Path(__file__).parents[2]  # what a machine needs of this project to run one of its commands
# Of a checkout, what is never needed to train: results, environments, history. Ray sends the rest to each machine.
EXCLUDED = ["/outputs/", "/.venv*/", "/.git/", "/build/", "/notebooks/", "/tests/", "/docs/", "*.ckpt", "__pycache__"]


def connect(address: str | None, *, send_code: bool) -> Any:
    """The module `ray`, connected to the cluster at `address`, or to one of this machine's own for None.

    With `send_code` the other machines get this checkout for this command, so that all run the same code. Raises
    ValueError without the package, or where nothing answers.
    """
    if find_spec("ray") is None:
        raise ValueError('--launcher ray needs a package: pip install -e ".[cluster]"')
    import ray

    if ray.is_initialized():
        return ray
    code: dict[str, Any] = {}
    if send_code and (ROOT / "setup.cfg").is_file():
        code = {"working_dir": str(ROOT), "excludes": EXCLUDED, "env_vars": {SENT: to_send()}}
    options: dict[str, Any] = {"address": address or "local", **({} if address else {"include_dashboard": False})}
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, runtime_env=code or None, **options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        said = str(error).strip().splitlines()[0]
        raise ValueError(
            f"no Ray cluster answers at --address {address} ({said}): start one with `ray start --head`, and give the "
            "address that it prints; `auto` is the one that runs on this machine"
        ) from error
    return ray
