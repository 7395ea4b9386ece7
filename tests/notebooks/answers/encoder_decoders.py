"""A right answer to each exercise, and wrong ones."""

import torch
import torch.nn.functional as F


def put_back(maxima, code):
    out = torch.zeros(2 * maxima.shape[0], 2 * maxima.shape[1])
    for k in range(4):
        out[k // 2 :: 2, k % 2 :: 2] = maxima * (code == k)
    return out


def columns_first(maxima, code):
    out = torch.zeros(2 * maxima.shape[0], 2 * maxima.shape[1])
    for k in range(4):
        out[k % 2 :: 2, k // 2 :: 2] = maxima * (code == k)
    return out


def doubled(maxima, code):
    return F.interpolate(maxima[None, None], scale_factor=2)[0, 0]


a = (691_200, [2_764_800, 5_529_600, 44_236_800])
b = (50_479_061, [151_142_357, 251_805_653])
c = (put_back, [columns_first, doubled, lambda maxima, code: maxima])
