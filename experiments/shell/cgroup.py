"""What the control groups of this process leave it of its machine: those of a container, of SLURM, of systemd."""

import math
from collections.abc import Iterator
from pathlib import Path

ROOT, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
NO_LIMIT = 2**60  # bytes from which version 1 means none


def folders(controller: str, root: Path = ROOT, own: Path = OWN) -> Iterator[Path]:
    """The folders of the groups that this process is in, from its own upwards; none where the system has none.

    A limit holds for all groups within, so that the smallest on the way up counts. A container sees its own group as
    `root`, under whatever name the machine knows it.
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        tops = [root / controller, root / controllers] if controllers else [root, root / "unified"]
        for top in dict.fromkeys(tops):
            inner = top / name.lstrip("/")
            for folder in (inner, *inner.parents):
                if folder.is_dir():
                    yield folder
                if folder == top:
                    break


def memory_limit(root: Path = ROOT, own: Path = OWN) -> float:
    """The bytes that the process may have, with all others of its group; infinite without a limit."""
    limits = [_number(folder, "memory.max", "memory.limit_in_bytes") for folder in folders("memory", root, own)]
    return min((limit for limit in limits if limit < NO_LIMIT), default=math.inf)


def memory_left(root: Path = ROOT, own: Path = OWN) -> float:
    """The bytes that the group can still take before its limit; infinite without one."""
    left = math.inf
    for folder in folders("memory", root, own):
        limit = _number(folder, "memory.max", "memory.limit_in_bytes")
        used = _number(folder, "memory.current", "memory.usage_in_bytes")
        if limit < NO_LIMIT and used < math.inf:
            left = min(left, max(limit - used, 0))
    return left


def cpu_quota(root: Path = ROOT, own: Path = OWN) -> float:
    """How many CPUs' time the process may take; infinite without a limit."""
    found = math.inf
    for folder in folders("cpu", root, own):
        words = _text(folder / "cpu.max").split()
        quota, period = words if len(words) == 2 else (_text(folder / f"cpu.cfs_{x}_us") for x in ("quota", "period"))
        if quota.isdigit() and period.isdigit() and int(period):  # neither "max" nor -1
            found = min(found, int(quota) / int(period))
    return found


def _number(folder: Path, *names: str) -> float:
    texts = [text for name in names if (text := _text(folder / name)).isdigit()]
    return float(texts[0]) if texts else math.inf


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
