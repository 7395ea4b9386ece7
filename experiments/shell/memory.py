"""How much memory this process has; NaN where the system does not say (not Linux)."""

import math
from pathlib import Path

from experiments.shell.cgroup import memory_left


def resident_mb() -> float:
    """Resident memory now, in MiB."""
    return _status("VmRSS:")


def peak_mb() -> float:
    """The most resident memory so far, in MiB."""
    return _status("VmHWM:")


def available_bytes() -> float:
    """Memory that a process can still take without making others wait; infinite where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return math.inf
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), math.inf)
    return min(free, memory_left())  # of a container, or of a job of SLURM


def _status(key: str) -> float:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return math.nan  # not Linux
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))
