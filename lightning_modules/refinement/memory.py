"""What a computation needs and what its device has free: refused before the work, not killed within it."""

import os
from pathlib import Path

import torch


def check_memory(needed_bytes: int, device: torch.device, what: str) -> None:
    """ValueError if `what` needs more bytes than the device has free; says nothing where that cannot be known."""
    free = free_bytes(device)
    if free is not None and needed_bytes > free:
        raise ValueError(
            f"{what} needs about {needed_bytes / 2**30:,.1f} GiB on {device}, which has {free / 2**30:,.1f} GiB free: "
            "use fewer classes or a smaller image"
        )


def free_bytes(device: torch.device) -> int | None:
    """What is free on the device, in bytes; None where that cannot be known."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):  # macOS tells what there is, not what is free
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None
