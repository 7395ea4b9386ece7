"""What our CRFs are compared with: pydensecrf2, a sum over an unfolded window, and the input that all of them get."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lightning_modules.refinement.conv_crf import WindowedMeanField

BLOBS, NOISE = 20, 1  # pixels a random label covers before blurring: like a network's output; a label for each pixel


def unaries(classes: int, height: int, width: int, cell: int = BLOBS) -> Tensor:
    """Probabilities (1, C, H, W): random labels of some `cell` pixels across, blurred, softened."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, classes, -(-height // cell), -(-width // cell), generator=generator)
    labels = F.interpolate(noise, (height, width), mode="bicubic").argmax(1)
    soft = F.one_hot(labels, classes).movedim(3, 1).float()
    for _ in range(2):
        soft = F.avg_pool2d(soft, 7, stride=1, padding=3, count_include_pad=False)
    grain = torch.rand(soft.shape, generator=generator)
    return (3 * soft + grain).softmax(1)


def photograph(path: Path | None) -> np.ndarray:
    """An RGB image (H, W, 3) uint8."""
    if path is not None:
        return np.asarray(Image.open(path).convert("RGB"))
    from skimage import data

    return np.asarray(data.coffee())  # type: ignore[no-untyped-call]


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def pydensecrf(probabilities: Tensor, image: np.ndarray, iterations: int, parameters: dict[str, Any]) -> Tensor:
    """The C++ original behind the interface of `dense_crf`, for one image; a weight of 0 leaves its kernel out."""
    import pydensecrf.densecrf as original

    _, classes, height, width = probabilities.shape
    crf = original.DenseCRF2D(width, height, classes)
    energy = probabilities[0].flatten(1).clamp(min=torch.finfo(torch.float32).tiny).log_().neg_()
    crf.setUnaryEnergy(energy.numpy())
    kinds = {"kernel": original.DIAG_KERNEL, "normalization": original.NORMALIZE_SYMMETRIC}
    alpha, beta, gamma = (parameters[f"theta_{name}"] for name in ("alpha", "beta", "gamma"))
    if parameters["w_smoothness"]:
        crf.addPairwiseGaussian(sxy=gamma, compat=parameters["w_smoothness"], **kinds)
    if parameters["w_appearance"]:
        crf.addPairwiseBilateral(sxy=alpha, srgb=beta, rgbim=image, compat=parameters["w_appearance"], **kinds)
    return torch.from_numpy(np.asarray(crf.inference(iterations))).view(probabilities.shape)


def unfolded(probabilities: Tensor, images: Tensor, **parameters: Any) -> Tensor:
    """`conv_crf` with a square window and symmetric normalization, as its authors' code sums: over a materialised
    window.

    Both kernels are merged into one, as that code does by default.
    """
    number, classes, height, width = probabilities.shape
    crf = WindowedMeanField(classes, shape="square", normalization="symmetric", **parameters)
    window = crf.window

    def neighbours(maps: Tensor) -> Tensor:  # (N, C, window^2, H, W)
        return F.unfold(maps, window, padding=window // 2).view(number, maps.shape[1], window**2, height, width)

    steps = torch.arange(window) - window // 2
    distances = (steps[:, None] ** 2 + steps**2).view(window**2, 1, 1)
    colours = (neighbours(images) - images[:, :, None]).square().sum(1, keepdim=True)
    inside = neighbours(torch.ones_like(images[:, :1]))
    appearance = torch.exp(-distances / (2 * crf.theta_alpha**2) - colours / (2 * crf.theta_beta**2)) * inside
    smoothness = torch.exp(-distances / (2 * crf.theta_gamma**2)) * inside
    merged = torch.zeros_like(appearance)
    for weight, kernel in ((crf.w_appearance, appearance), (crf.w_smoothness, smoothness)):
        norm = kernel.sum(2).rsqrt()
        merged += weight * norm[:, :, None] * kernel * neighbours(norm)
    logs = probabilities.log()
    q = logs.softmax(1)
    for _ in range(crf.iterations):
        q = (logs + (merged * neighbours(q)).sum(2)).softmax(1)
    return q
