"""Mean field in fused C++ for the CPU: the kernels `dense_crf.cpp` and `conv_crf.cpp`, called through ctypes."""

from collections.abc import Sequence
from ctypes import c_float, c_int, c_int64, c_uint64, c_void_p
from typing import get_args

import torch
from torch import Tensor

from lightning_modules.refinement.mean_field import MeanField, Normalization
from lightning_modules.refinement.memory import check_memory, free_bytes
from lightning_modules.refinement.native import library

NORMALIZATIONS = get_args(Normalization)  # the kernels take their numbers
OUT_OF_RANGE = -1  # of the kernel: the lattice's coordinates do not fit 64 bits
ARGUMENTS = (
    *(c_void_p, c_void_p, c_void_p),  # unary, image, marginals
    *(c_int, c_int, c_int, c_int),  # classes, height, width, channels
    *(c_void_p, c_float, c_float, c_void_p, c_float),  # appearance: weights and deviations; smoothness
    *(c_void_p, c_int, c_int, c_int, c_uint64),  # compatibility, iterations, normalization, threads, bytes
)


def infer(unary: Tensor, images: Tensor, crf: MeanField, *, threads: int | None = None) -> Tensor | None:
    """Marginals (N, C, H, W) of unaries (N, C, H, W) and images (N, 1 or 3, H, W) in 0..255, float32 on the CPU.

    The same number of threads, by default torch's, gives the same bits. None where the kernel cannot serve: no
    compiler, or deviations so small that the coordinates of the lattice do not fit 64 bits. Raises ValueError for more
    than the memory there is.
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
        for weight in (crf.w_appearance, crf.w_smoothness)
    )
    table = None if crf.compatibility is None else crf.compatibility.detach().float().contiguous()
    alpha, beta, gamma = (float(theta) for theta in (crf.theta_alpha, crf.theta_beta, crf.theta_gamma))
    marginals = torch.empty_like(unary)
    free = free_bytes(unary.device)
    for index in range(number):
        status = kernel.dense_crf(
            *(unary[index].data_ptr(), images[index].data_ptr(), marginals[index].data_ptr()),
            *(classes, height, width, images.shape[1]),
            *(appearance.data_ptr(), alpha, beta, smoothness.data_ptr(), gamma),
            *(None if table is None else table.data_ptr(), crf.iterations, NORMALIZATIONS.index(crf.normalization)),
            *(torch.get_num_threads() if threads is None else threads, 2**63 if free is None else free),
        )
        if status == OUT_OF_RANGE:
            return None
        if status > 0:
            check_memory(status, unary.device, what)
        if status:
            raise MemoryError(f"{what} ran out of memory: use fewer classes or a smaller image")
    return marginals


def infer_in_window(
    logs: Tensor,
    images: Tensor,
    offsets: Sequence[tuple[int, int]],
    smoothness: Tensor,
    weights: Sequence[Tensor],
    compatibility: Tensor | None,
    *,
    per_pixel: float,
    per_level: float,
    blur: int,
    iterations: int,
    normalization: Normalization,
) -> Tensor | None:
    """Marginals (N, C, H, W) of log-probabilities (N, C, H, W) and shrunk images (N, 1 or 3, h, w), float32 on the CPU.

    `smoothness` is the kernel at the `offsets`, half of the window; the numbers are those of the appearance kernel.
    None where there is no compiler; MemoryError where memory runs out.
    """
    kernel = library("conv_crf")
    if kernel is None:
        return None
    places = torch.tensor(offsets, dtype=torch.int32)
    arrays = [array.detach().contiguous() for array in (logs, images, places, smoothness.float(), *weights)]
    matrix = None if compatibility is None else compatibility.detach().contiguous()
    marginals = torch.empty_like(arrays[0])
    number, classes, height, width = logs.shape
    counts = (number, classes, images.shape[1], height, width, len(offsets), blur, iterations)
    failed = kernel.conv_crf(
        *(c_void_p(array.data_ptr()) for array in arrays),
        c_void_p(None if matrix is None else matrix.data_ptr()),
        c_float(per_pixel),
        c_float(per_level),
        *(c_int(count) for count in counts),
        c_int(NORMALIZATIONS.index(normalization)),
        c_int(torch.get_num_threads()),
        c_void_p(marginals.data_ptr()),
    )
    if failed:
        raise MemoryError(f"no memory for a ConvCRF of {classes} classes at {height} x {width}")
    return marginals
