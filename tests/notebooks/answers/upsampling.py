"""A right answer to each exercise, and wrong ones."""

import torch


def _with_zeros(x, stride):  # type: ignore[no-untyped-def]
    out = torch.zeros(stride * (x.shape[0] - 1) + 1, stride * (x.shape[1] - 1) + 1)
    out[::stride, ::stride] = x
    return out


a = (({2, 3}, {4, 6, 9}), [({2, 3}, {2, 3}), ({1, 2}, {1, 2, 4})])
b = ({4, 8, 12}, [{4, 5, 6, 7, 8, 9, 10, 11, 12}, {4}])
c = (_with_zeros, [lambda x, stride: x, lambda x, stride: x.repeat_interleave(stride, 0)])
d = ([0, 2, 6, 8], [[0, 8 / 3, 16 / 3, 8], [0, 0, 8, 8]])
