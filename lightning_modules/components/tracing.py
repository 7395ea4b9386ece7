"""Whether what is computed is written down for other images: a choice by the size of this one would be frozen."""

import torch


def tracing() -> bool:
    """Whether torch.jit.trace or torch.export runs.

    Both record functions of torch alone: of what C++ writes through a pointer, a trace holds memory as it was.
    """
    return bool(torch.jit.is_tracing()) or torch.compiler.is_exporting()  # type: ignore[attr-defined,no-untyped-call]
