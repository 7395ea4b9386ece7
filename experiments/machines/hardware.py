"""What the machine computes with, and how much of it this process may use: GPUs, CPUs, memory, descriptors."""

import math
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.machines.finding import Finding, ok, warning, wrong
from experiments.shell import cgroup
from experiments.shell.memory import available_bytes

GIB, MIB = 2**30, 2**20
DRIVER = Path("/proc/driver/nvidia/version")  # also in a container, which shares the kernel
SMI = ("memory.used", "driver_version")


def has_driver() -> bool:
    """Whether there is a driver of NVIDIA's on this machine."""
    return DRIVER.exists() or shutil.which("nvidia-smi") is not None


@dataclass(frozen=True)
class Gpu:
    """What is known of a GPU: bytes in all and in use (NaN where not known), compute capability."""

    name: str
    total: float
    used: float
    capability: tuple[int, int]


def gpus(driver: bool, environ: Mapping[str, str], devices: Path = Path("/dev")) -> list[Finding]:
    """Of each device that torch sees; where there is a `driver` and torch sees none, why."""
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda
        library: Any = torch._C  # whose types know nothing of it
        of_driver = library._cuda_getDriverVersion() if built and driver else 0
        return [no_gpu(driver, built, of_driver, environ, has_node=any(devices.glob("nvidia[0-9]*")))]
    # Not from torch: it would take memory of every device to ask.
    told = smi(SMI)
    found = []
    for number in range(torch.cuda.device_count()):
        of = torch.cuda.get_device_properties(number)
        row = told.get(str(getattr(of, "uuid", "")), [])
        used = float(row[0]) * MIB if row and row[0].isdigit() else math.nan
        gpu = Gpu(of.name, float(of.total_memory), used, (of.major, of.minor))
        of_driver = f", driver {row[1]}" if len(row) > 1 else ""
        found.append(one_gpu(number, gpu, torch.cuda.get_arch_list(), of_driver))
    return found


def no_gpu(driver: bool, built: str | None, of_driver: int, environ: Mapping[str, str], *, has_node: bool) -> Finding:
    """Why torch, `built` for a version of CUDA or None, sees no GPU; `of_driver` is 12040 for one that knows 12.4."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if not driver:
        return ok("none: networks are trained on the CPU")
    if built is None:
        return warning("none is used, as torch is built for the CPU", "see the line of torch")
    if visible is not None and not visible.strip("-1, "):
        return warning(f"CUDA_VISIBLE_DEVICES={visible!r} hides all of them", "unset CUDA_VISIBLE_DEVICES")
    if not has_node:
        said = "the machine has a driver, and no device is visible here, as in a container that was given none"
        return warning(said, "start the container with --gpus all, or ask the scheduler for a GPU (--gres=gpu:1)")
    known = f"{of_driver // 1000}.{of_driver % 1000 // 10}"
    if of_driver and of_driver // 1000 < int(built.split(".")[0]):
        said = f"the driver knows CUDA {known}, and torch is built for {built}: no GPU is used"
        mend = f"install a driver for CUDA {built.split('.')[0]}, or a torch that is built for CUDA {known}"
        return wrong(said, mend)
    mend = "call nvidia-smi; after an update of the driver, restart the machine"
    return wrong(f"torch sees none, though there are devices and a driver for CUDA {known}", mend)


def one_gpu(number: int, gpu: Gpu, built: Sequence[str], driver: str = "") -> Finding:
    """Whether torch has code for it, and whether its memory is free. `built` are torch's, such as "sm_90"."""
    major, minor = gpu.capability
    said = f"{number}: {gpu.name}, {gpu.total / GIB:.0f} GiB, sm_{major}{minor}{driver}"
    machine = {(int(a[3:-1]), int(a[-1])) for a in built if a.startswith("sm_") and a[3:].isdigit()}
    portable = {(int(a[8:-1]), int(a[-1])) for a in built if a.startswith("compute_") and a[8:].isdigit()}
    runs = any(m == major and n <= minor for m, n in machine) or any(one <= gpu.capability for one in portable)
    if not runs:
        said += f": torch is built for {', '.join(built)}, and fails with `no kernel image is available`"
        return wrong(said, "install a build of torch that has it (an older one for an older GPU), or take another GPU")
    if gpu.used > 0.5 * gpu.total:
        mend = "see whose it is with nvidia-smi; choose another by CUDA_VISIBLE_DEVICES, or a smaller --data.batch_size"
        return warning(f"{said}: {gpu.used / GIB:.0f} GiB of it are in use", mend)
    return ok(said)


def smi(fields: Sequence[str]) -> dict[str, list[str]]:
    """What nvidia-smi says of each GPU, by its UUID without "GPU-"; empty where it does not answer."""
    query = f"--query-gpu=uuid,{','.join(fields)}"
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=2, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]
    return {row[0].removeprefix("GPU-"): row[1:] for row in rows if row}


def nccl() -> Finding:
    """Whether several GPUs can talk to each other, and CPU processes."""
    import torch
    from torch import distributed

    if not distributed.is_available():
        return wrong("torch is built without distributed: one device at a time", "install another build of torch")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return links(count, has_nccl=distributed.is_nccl_available(), has_gloo=distributed.is_gloo_available())


def links(devices: int, *, has_nccl: bool, has_gloo: bool) -> Finding:
    if not has_nccl and devices > 1:
        mend = "install the CUDA build of torch for Linux, or train on one with --trainer.devices 1"
        return wrong(f"{devices} GPUs, and torch is built without NCCL, by which they share their gradients", mend)
    if not has_gloo:
        return warning(
            "torch is built without gloo: CPU processes cannot share a run", "install another build of torch"
        )
    return ok(f"{_nccl_version()}, and gloo for CPU processes" if has_nccl else "gloo, for CPU processes; no NCCL")


def _nccl_version() -> str:
    import torch

    try:
        version: Any = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
    except (AttributeError, RuntimeError):  # of a build whose library is not found
        return "NCCL"
    return f"NCCL {'.'.join(map(str, version))}"


def shared_memory(folder: Path = Path("/dev/shm")) -> Finding:
    """Processes that load data, and NCCL, hand batches over in it: a small one kills them with SIGBUS."""
    if not folder.is_dir():
        return ok("this system has no /dev/shm")
    usage = shutil.disk_usage(folder)
    said = f"/dev/shm has {_size(usage.total)}, {_size(usage.free)} of it free"
    mend = "start the container with --shm-size=8g (or --ipc=host), or load in the main process: --data.num_workers 0"
    if usage.total <= 64 * MIB:
        return wrong(f"{said}: a process that loads data is killed by SIGBUS (Bus error)", mend)
    if usage.free < GIB:
        return warning(f"{said}: too little for large batches of several processes that load data", mend)
    return ok(said)


def cpus(environ: Mapping[str, str], root: Path = cgroup.ROOT, own: Path = cgroup.OWN) -> Finding:
    """How many there are, how many this process may run on, and for how much of the time."""
    count = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else count
    return cpus_of(count, allowed, cgroup.cpu_quota(root, own), environ.get("OMP_NUM_THREADS", ""))


def cpus_of(count: int, allowed: int, quota: float, threads: str) -> Finding:
    said = f"{count}" + (f", of which this process may run on {allowed}" if allowed < count else "")
    said += f", for the time of {quota:g} (cgroup)" if quota < math.inf else ""
    takes = int(threads) if threads.isdigit() else allowed
    if quota < takes:
        wanted = max(1, int(quota))
        said += f": torch would start {takes} threads, which are stopped again and again"
        return warning(said, f"OMP_NUM_THREADS={wanted}, and --jobs {wanted} for a grid")
    return ok(said)


def memory(root: Path = cgroup.ROOT, own: Path = cgroup.OWN) -> Finding:
    return memory_of(available_bytes(), cgroup.memory_limit(root, own))


def memory_of(available: float, limit: float) -> Finding:
    """In bytes; infinite where the system does not say, or has no limit."""
    if available == math.inf:
        return ok("this system does not say how much is available")
    said = f"{_size(available)} available"
    said += f", limited to {_size(limit)} by the cgroup of a container or a job" if limit < math.inf else ""
    mend = "ask the container (--memory) or the scheduler (--mem) for more, or end what takes it"
    if available < GIB:
        return wrong(f"{said}: an import of torch and a small network take 1 GiB", mend)
    return ok(said) if available >= 4 * GIB else warning(f"{said}: little for training", mend)


def descriptors() -> Finding:
    try:
        import resource
    except ImportError:  # Windows
        return ok("this system has no limit")
    return descriptors_of(*resource.getrlimit(resource.RLIMIT_NOFILE))


def descriptors_of(soft: int, hard: int) -> Finding:
    """The limit of open files and what it can be raised to; -1 is none."""
    said = f"{'any number of' if soft < 0 else soft} open files a process"
    if 0 <= soft < 1024:
        to = 65536 if hard < 0 else min(hard, 65536)
        mend = f"ulimit -n {to}" if to > soft else "have the hard limit raised, in /etc/security/limits.conf"
        return warning(f"{said}: several processes that load data end with `Too many open files`", mend)
    return ok(said)


def _size(count: float) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:.0f} MiB"
