"""What surrounds a process: variables that change what it does, the name of its host, and W&B."""

import json
import netrc
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from fnmatch import fnmatch
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from experiments.machines.finding import Finding, ok, warning, wrong
from experiments.tracking.client import given_settings

SECONDS = 1.5  # for W&B to answer
WANDB_URL = "https://api.wandb.ai"
OFFLINE = "WANDB_MODE=offline, and later python -m experiments.sync"
MEND_HOST = "add the line `127.0.1.1 NAME`, with what hostname prints, to /etc/hosts, or set GLOO_SOCKET_IFNAME=lo"
# Variables, what they do, and whether that is a reason to look twice. The first pattern that fits counts.
OVERRIDES = (
    ("OMP_NUM_THREADS", "sets the threads of a training, on which its last digits depend", True),
    ("MKL_NUM_THREADS", "sets the threads of a training, on which its last digits depend", True),
    ("OPENBLAS_NUM_THREADS", "sets the threads of NumPy", False),
    ("ATEN_CPU_CAPABILITY", "takes other instructions, on which the last digits depend", True),
    ("ONEDNN_*", "takes other kernels, on which the last digits depend", True),
    ("DNNL_*", "takes other kernels, on which the last digits depend", True),
    ("NVIDIA_TF32_OVERRIDE", "changes the precision of every product on a GPU", True),
    ("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "changes the precision of every product on a GPU", True),
    ("CUBLAS_WORKSPACE_CONFIG", "fixes the workspaces of cuBLAS, as deterministic training asks for", False),
    ("CUDA_VISIBLE_DEVICES", "says which GPUs are seen, and in which order", False),
    ("CUDA_LAUNCH_BLOCKING", "waits for each kernel: slow, for debugging", True),
    ("PYTORCH_NO_CUDA_MEMORY_CACHING", "takes memory anew for each tensor: slow", True),
    ("PYTORCH_*ALLOC_CONF", "says how memory of a GPU is taken", False),
    ("NCCL_DEBUG*", "prints what NCCL does", False),
    ("NCCL_*", "says how GPUs talk to each other; one of another cluster makes them slow or hang", True),
    ("GLOO_SOCKET_IFNAME", "says by which network CPU processes talk", False),
    ("TORCH_DISTRIBUTED_DEBUG", "compares the processes of a run at each step: slow with DETAIL", True),
    ("TORCH_COMPILE_DISABLE", "switches torch.compile off", True),
    ("TORCHDYNAMO_*", "changes what torch.compile does", True),
    ("TORCHINDUCTOR_*", "changes what torch.compile does", True),
    ("TORCH_*", "is torch's", False),
    ("WANDB_*", "is W&B's", False),
    ("SEGLAB_NO_COMPILER", "switches compiled CRFs off: slow", True),
    ("SEGLAB_*", "is this project's", False),
    ("LD_PRELOAD", "puts other code before every library", True),
)
SECRET = ("KEY", "TOKEN", "HEADERS", "PROXY", "PASSWORD", "SECRET")
# By these Lightning takes a process for one that somebody has started as one of several.
RANKS = (
    "LOCAL_RANK",
    "RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "NODE_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
)


def overrides(environ: Mapping[str, str]) -> list[Finding]:
    """Of each variable that changes numbers or behaviour, and is set: what it does."""
    found = []
    for name, value in sorted(environ.items()):
        does = next(((said, twice) for pattern, said, twice in OVERRIDES if fnmatch(name, pattern)), None)
        if does is None or not value:
            continue
        shown = "..." if any(word in name for word in SECRET) else repr(value)
        said = f"{name}={shown} {does[0]}"
        found.append(warning(said, f"unset {name}, unless you mean it") if does[1] else ok(said))
    return found or [ok("no variable is set that changes numbers or behaviour")]


def ranks(environ: Mapping[str, str]) -> Finding:
    """Whether this process is taken for one of several: by torchrun or SLURM, or by what they have left behind."""
    given = [name for name in RANKS if environ.get(name)]
    if environ.get("TORCHELASTIC_RUN_ID"):
        return ok(f"torchrun has started this process, {environ.get('RANK')} of {environ.get('WORLD_SIZE')}")
    if "SLURM_NTASKS" in environ and environ.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        said = f"a job of SLURM with SLURM_NTASKS={environ['SLURM_NTASKS']}"
        if "SLURM_STEP_ID" in environ:
            return ok(f"{said}, started by srun")
        mend = "start the training with srun, or unset SLURM_NTASKS for one process"
        return warning(f"{said}, not started by srun: Lightning waits for the other tasks", mend)
    if given:
        said = (
            f"{', '.join(given)} set, as left over from a launcher: a training would wait for processes that never come"
        )
        return wrong(said, f"unset {' '.join(given)}")
    return ok("one process, started by no launcher")


def host() -> Finding:
    """Whether the name of this machine leads to it: processes of a run meet by it, and hang where it leads nowhere."""
    try:
        found = socket.getaddrinfo(socket.gethostname(), 0, type=socket.SOCK_STREAM)
    except OSError as error:
        return warning(f"the name of this machine leads nowhere ({error.strerror}): processes may not meet", MEND_HOST)
    for family, kind, _, _, address in found:
        with socket.socket(family, kind) as one:
            try:
                one.bind((address[0], 0))
            except OSError:
                continue
        said = f"its name leads to it ({address[0]})"
        if str(address[0]).startswith(("127.", "::1")):
            said += "; between machines, set NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME to the network that they share"
        return ok(said)
    return warning(
        f"the name of this machine leads to {found[0][4][0]}, which is not it: processes may hang", MEND_HOST
    )


def wandb(environ: Mapping[str, str], folder: Path = Path()) -> Finding:
    """Whether W&B answers, where it would be asked: with a key, or WANDB_MODE=online. Nobody else is."""
    settings = given_settings(environ, folder)
    url, mode = str(settings.get("base_url", WANDB_URL)), settings.get("mode", "")
    key = settings.get("api_key") or _in_netrc(environ, urlsplit(url).hostname or "")
    if mode in ("offline", "disabled"):
        return ok(f"{mode}: nobody is asked")
    if not key and mode != "online":
        return ok("no key: --logger wandb logs offline, and nobody is asked")
    if not key:
        return warning("WANDB_MODE=online, and there is no key", "wandb login, or WANDB_MODE=offline")
    mend = "set WANDB_BASE_URL or HTTPS_PROXY, or " + OFFLINE
    question = json.dumps({"query": "query Viewer { viewer { id } }"}).encode()  # without the key
    asked = urllib.request.Request(f"{url.rstrip('/')}/graphql", question, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(asked, timeout=SECONDS) as answer:
            told, date = answer.read(2**16), answer.headers.get("Date")
    except urllib.error.HTTPError as error:
        if error.code == 401:  # which is for who has no key
            return _answered(url, error.headers.get("Date"))
        said = f"{url} answers {error.code} {error.reason}, as a proxy or a firewall does, or a server that is down"
        return warning(said, mend)
    except (OSError, ValueError, HTTPException) as error:
        return warning(f"{url} does not answer ({getattr(error, 'reason', error)})", mend)
    try:
        is_wandb = bool({"data", "errors"} & {*json.loads(told)})
    except (ValueError, TypeError):
        is_wandb = False
    if not is_wandb:
        return warning(f"{url} answers otherwise than W&B does, as a proxy or a portal would", mend)
    return _answered(url, date)


def _answered(url: str, date: Any) -> Finding:
    try:
        ahead = time.time() - parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError):
        return ok(f"{url} answers")
    if abs(ahead) > 60:
        mend = "set the clock by NTP: timedatectl set-ntp true"
        return warning(f"{url} answers, and its clock differs by {-ahead:+.0f} s from this machine's", mend)
    return ok(f"{url} answers, with the same time")


def _in_netrc(environ: Mapping[str, str], name: str) -> bool:
    """Whether the file that `wandb login` writes has a key for this host."""
    path = Path(environ.get("NETRC") or os.path.expanduser("~/.netrc"))
    try:
        return bool(path.is_file() and netrc.netrc(path).authenticators(name))
    except (OSError, netrc.NetrcParseError):
        return False
