"""Mean field of the dense CRF in fused C++ for the CPU: the kernel `dense_crf.cpp`, called through ctypes."""

from ctypes import c_float, c_int, c_int64, c_uint64, c_void_p

import torch
from torch import Tensor

from lightning_modules.refinement.checks import NORMALIZATIONS, check_memory, free_bytes
from lightning_modules.refinement.native import library

OUT_OF_RANGE = -1  # of the kernel: the lattice's coordinates do not fit 64 bits
OUT_OF_MEMORY = -2
ARGUMENTS = (
    *(c_void_p, c_void_p, c_void_p),  # unary, image, marginals
    *(c_int, c_int, c_int, c_int),  # classes, height, width, channels
    *(c_void_p, c_float, c_float, c_void_p, c_float),  # appearance: weights and deviations; smoothness
    *(c_void_p, c_int, c_int, c_int, c_uint64),  # compatibility, iterations, normalization, threads, bytes
)


def infer(
    unary: Tensor,
    images: Tensor,
    *,
    w_appearance: float | Tensor,
    theta_alpha: float,
    theta_beta: float,
    w_smoothness: float | Tensor,
    theta_gamma: float,
    iterations: int,
    compatibility: Tensor | None,
    normalization: str,
    threads: int | None = None,
) -> Tensor | None:
    """Marginals (N, C, H, W) of unaries (N, C, H, W) and images (N, 1 or 3, H, W) in 0..255, float32 on the CPU.

    The parameters are those of `dense_crf.dense_crf`, which checks them. The same number of threads, by default
    torch's, gives the same bits. None where the kernel cannot serve: no compiler, or deviations so small that the
    coordinates of the lattice do not fit 64 bits. Raises ValueError for more than the memory there is.
    """
    kernel = library("dense_crf")
    if kernel is None:
        return None
    kernel.dense_crf.argtypes, kernel.dense_crf.restype = ARGUMENTS, c_int64
    number, classes, height, width = unary.shape
    what = f"the dense CRF of {classes} classes on {height} x {width} pixels"
    unary, images = unary.detach().float().contiguous(), images.detach().float().contiguous()
    appearance, smoothness = (
        torch.as_tensor(weight, dtype=torch.float32).detach().expand(classes).contiguous()
        for weight in (w_appearance, w_smoothness)
    )
    table = None if compatibility is None else compatibility.detach().float().contiguous()
    marginals = torch.empty_like(unary)
    free = free_bytes(unary.device)
    for index in range(number):
        status = kernel.dense_crf(
            *(unary[index].data_ptr(), images[index].data_ptr(), marginals[index].data_ptr()),
            *(classes, height, width, images.shape[1]),
            *(appearance.data_ptr(), theta_alpha, theta_beta, smoothness.data_ptr(), theta_gamma),
            *(None if table is None else table.data_ptr(), iterations, NORMALIZATIONS.index(normalization)),
            *(torch.get_num_threads() if threads is None else threads, 2**63 if free is None else free),
        )
        if status == OUT_OF_RANGE:
            return None
        if status > 0:
            check_memory(status, unary.device, what)
        if status:
            raise MemoryError(f"{what} ran out of memory: use fewer classes or a smaller image")
    return marginals
