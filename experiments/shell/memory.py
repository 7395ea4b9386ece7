"""How much memory this process has; NaN where the system does not say (not Linux)."""

import math
from pathlib import Path


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
    # A container has less than its machine: cgroup v2, then v1.
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            most, now = (int((Path("/sys/fs/cgroup") / name).read_text(encoding="utf-8")) for name in (limit, used))
        except (OSError, ValueError):  # "max"
            continue
        free = min(free, max(most - now, 0))
    return float(free)


def _status(key: str) -> float:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return math.nan  # not Linux
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))
