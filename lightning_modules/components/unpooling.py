"""Max-pooling that remembers where its maxima were, and its inverse: SegNet, Fig. 3; DeconvNet, Fig. 3."""

import torch.nn.functional as F
from torch import Tensor


def pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """(N, C, H, W) -> maxima of 2x2 windows and their flat positions, both (N, C, ceil(H / 2), ceil(W / 2))."""
    maxima, indices = F.max_pool2d(x, 2, ceil_mode=True, return_indices=True)
    return maxima, indices


def unpool(x: Tensor, indices: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, C, h, w) -> (N, C, *size), what was pooled: each value goes where the maximum was, zeros elsewhere."""
    height, width = size
    # not F.max_unpool2d, which raises on CUDA under deterministic algorithms; 2x2 windows never share a pixel
    flat = x.new_zeros(*x.shape[:2], height * width).scatter_(2, indices.flatten(2), x.flatten(2))
    return flat.view(*x.shape[:2], height, width)
