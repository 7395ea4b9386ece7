"""A right answer to each exercise, and wrong ones."""

import torch.nn.functional as F


def twice(x, mode):
    return F.interpolate(x, scale_factor=2, mode=mode)


a = ((3, 4), [(4, 3), (2, 8), (2, 4), 12])
b = (10_773, [10_752, 96_789, 512])
c = (
    lambda deep, shallow: twice(deep, "bilinear") + shallow,
    [lambda deep, shallow: shallow, lambda deep, shallow: twice(deep, "nearest") + shallow, lambda deep: deep],
)
