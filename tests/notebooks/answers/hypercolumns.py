"""A right answer to each exercise, and wrong ones."""

import torch
import torch.nn.functional as F


def _hypercolumn(maps, i, j, size):  # type: ignore[no-untyped-def]
    return torch.cat([F.interpolate(m, size, mode="bilinear")[0, :, i, j] for m in maps])


a = (1280, [512, 3])
b = (0.67, [0.8, 0.2])
c = (_hypercolumn, [lambda maps, i, j, size: maps[0][0, :, 0, 0], lambda maps, i, j, size: torch.zeros(10)])
