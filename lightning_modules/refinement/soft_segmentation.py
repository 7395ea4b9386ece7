"""Semantic Soft Segmentation, Aksoy, Oh, Paris, Pollefeys, Matusik 2018, https://doi.org/10.1145/3197517.3201275

Constants that the paper leaves open are those of the authors' MATLAB code, yaksoy/SemanticSoftSegmentation, called "the
code" below. The Laplacian is not normalised: Eq. 3 is, the code is not. As features that differ repel, it has a few
negative eigenvalues on most photographs; its matting and colour terms have none. Departs from the paper in
- the features, which are those of any network: a channel is standardised before it is clamped, and each map counts
  alike;
- the order of PCA and the guided filter, which is linear in the features: it then filters 3 channels, not hundreds;
- the superpixels, at least 16 pixels each, so that a small image has fewer than 2500;
- k-means, started by k-means++, the best of some restarts, where the code splits clusters;
- the layers, cut off at 0 and divided by their sum in the end: the relaxation only presses them to sum to 1.

NumPy and SciPy throughout, as nothing here is trained: images are (H, W, 3), sets of pixels (H * W, ...), float64.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.ndimage import uniform_filter, zoom

from lightning_modules.components.errors import NonFiniteError
from lightning_modules.refinement.checks import check_whole
from lightning_modules.refinement.laplacian import (
    Array,
    Superpixels,
    elimination_order,
    matting_laplacian,
    nonlocal_laplacian,
    scikit_image,
    semantic_laplacian,
    smallest_eigenvectors,
)
from lightning_modules.refinement.memory import check_memory
from lightning_modules.refinement.sparsification import group, k_means, relax, sparsify, sparsity_of

Progress = Callable[[str], None]

SEMANTIC_WEIGHT, NONLOCAL_WEIGHT = 0.01, 0.01  # sigma_S and sigma_C, Eq. 6
MOST = 2**20  # layers, segments, eigenvectors or superpixels
BYTES_A_VECTOR, BYTES_A_LEVEL = 32, 900  # of a pixel, see check_size; 320 x 213 and 600 x 400 take less


@dataclass(frozen=True)
class SoftSegmentation:
    """What `soft_segmentation` finds, and on the way.

    `alphas` (H, W, layers) are at least 0, sum to 1 in every pixel and are in the order of their area. `segments`
    (H, W, at most 40) are those before grouping, `features` (H, W, 3) are in [0, 1], `eigenvectors` (H, W, count) in
    the order of the `eigenvalues` (count,).
    """

    alphas: Array
    segments: Array
    features: Array
    eigenvalues: Array
    eigenvectors: Array


def soft_segmentation(
    image: NDArray[Any],
    maps: Sequence[NDArray[Any]],
    *,
    layers: int = 5,
    segments: int = 40,
    eigenvectors: int = 100,
    superpixels: int = 2500,
    seed: int = 0,
    progress: Progress = lambda stage: None,
) -> SoftSegmentation:
    """Splits an image (H, W, 3) or (H, W) in 0..255 into soft layers by features, maps (C, h, w) of any size.

    `segments` start the optimisation and are grouped to `layers`; fewer come out where the features have fewer
    clusters. `progress` is told the name of each stage when it begins. The same seed gives the same layers on the same
    machine. TypeError or ValueError, before any work, for what has no meaning or needs more memory than there is.
    """
    image = _checked(image, maps, layers=layers, segments=segments, eigenvectors=eigenvectors, superpixels=superpixels)
    check_whole("seed", seed, 0, 2**63 - 1)
    if not callable(progress):
        raise TypeError(f"progress must be a function of the name of a stage, got {type(progress).__name__}")
    height, width, _ = image.shape
    rng = np.random.default_rng(seed)

    progress("features")
    features = reduce_features(maps, image)
    progress("superpixels")
    regions = Superpixels.of(image, superpixels)
    progress("Laplacian")
    laplacian = (
        matting_laplacian(image)
        + SEMANTIC_WEIGHT * semantic_laplacian(regions, features)
        + NONLOCAL_WEIGHT * nonlocal_laplacian(regions, image)
    ).tocsr()  # Eq. 6
    progress("eigenvectors")
    order = elimination_order(height, width, regions.centres)
    values, vectors = smallest_eigenvectors(laplacian, eigenvectors, order=order, rng=rng)
    progress("constrained sparsification")
    start = k_means(features.reshape(-1, 3), segments, rng)
    soft = sparsify(values, vectors, start)
    progress("grouping")
    grouped = group(soft, features.reshape(-1, 3), layers, rng)
    progress("relaxed sparsification")
    alphas = relax(grouped, laplacian, sparsity_of(image).ravel())
    alphas = alphas[:, np.argsort(-alphas.sum(0), kind="stable")]
    shape = (height, width, -1)
    return SoftSegmentation(alphas.reshape(shape), soft.reshape(shape), features, values, vectors.reshape(shape))


def check_size(height: int, width: int, *, eigenvectors: int = 100) -> None:
    """ValueError for an image that is too small for its Laplacian and eigenvectors, or too large for the memory."""
    if min(height, width) < 3 or height * width <= 2 * eigenvectors:
        raise ValueError(
            f"the image must have sides of at least 3 pixels, and more than {2 * eigenvectors} pixels for "
            f"{eigenvectors} eigenvectors, got {height} x {width}: take a larger one or fewer eigenvectors"
        )
    pixels = height * width
    # Of the Lanczos vectors and those returned; of the factor and its copy, whose rows grow with the logarithm.
    needed = pixels * (BYTES_A_VECTOR * eigenvectors + BYTES_A_LEVEL * math.log2(pixels))
    what = f"soft segmentation of {height} x {width} pixels (fewer with --max-side)"
    check_memory(round(needed), torch.device("cpu"), what)


def _checked(image: NDArray[Any], maps: Sequence[NDArray[Any]], **counts: int) -> Array:
    """The image as (H, W, 3) in [0, 1]."""
    for name, count in counts.items():
        check_whole(name, count, 1, MOST)
    if counts["layers"] > counts["segments"]:
        raise ValueError(
            f"layers are groups of segments: ask for at most {counts['segments']} of them, got {counts['layers']}, or "
            f"for more segments"
        )
    _check_array("image", image)
    if image.ndim != 2 and (image.ndim != 3 or image.shape[2] != 3):
        raise ValueError(f"image must be (H, W, 3) or (H, W), got {image.shape}")
    check_size(*image.shape[:2], eigenvectors=counts["eigenvectors"])
    scikit_image()
    # NaN fails the first comparison too.
    if not (image.min() >= 0 and image.max() <= 255) or (image.max() <= 1 and (image % 1 != 0).any()):
        raise ValueError(f"image must be in 0..255, got {image.min():.4g} to {image.max():.4g}: undo its scaling")
    if not isinstance(maps, list | tuple) or not maps:
        raise ValueError(f"maps must be a list of at least one map of features (C, h, w), got {type(maps).__name__}")
    for values in maps:
        _check_array("maps", values)
        if values.ndim != 3 or not values.size:
            raise ValueError(f"maps must be (C, h, w) and not empty, got {values.shape}")
        if not np.isfinite(values).all():
            raise NonFiniteError("maps hold NaN or infinity, so the encoder's weights may: take another encoder")
    image = np.asarray(image, dtype=np.float64) / 255
    return np.repeat(image[..., None], 3, 2) if image.ndim == 2 else image


def _check_array(name: str, values: NDArray[Any]) -> None:
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "uif":
        kind = getattr(values, "dtype", type(values).__name__)
        raise TypeError(f"{name} must hold NumPy arrays of integers or floats, got {kind}")


def reduce_features(maps: Sequence[NDArray[Any]], image: Array) -> Array:
    """Maps (C, h, w) of an image (H, W, 3) in [0, 1] -> (H, W, 3) in [0, 1], their principal axes with its edges."""
    height, width, _ = image.shape
    finest = max((m.shape[1:] for m in maps), key=lambda size: size[0] * size[1])
    columns = []
    for values in maps:
        pixels = np.asarray(values, dtype=np.float64)
        pixels = pixels - pixels.mean((1, 2), keepdims=True)
        deviation = pixels.std((1, 2), keepdims=True)
        pixels = np.divide(pixels, deviation, out=np.zeros_like(pixels), where=deviation > 1e-12)
        pixels = np.clip(pixels, -5, 5) / np.sqrt(len(pixels))
        columns.append(_resized(np.moveaxis(pixels, 0, -1), *finest).reshape(finest[0] * finest[1], -1))
    stacked = np.concatenate(columns, 1)
    stacked -= stacked.mean(0)
    channels = stacked.shape[1]
    _, axes = eigh(stacked.T @ stacked, subset_by_index=(max(0, channels - 3), channels - 1))
    axes = axes[:, ::-1]
    axes = axes * np.where(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])] < 0, -1, 1)
    reduced = np.zeros((*finest, 3))
    reduced[..., : axes.shape[1]] = (stacked @ axes).reshape(*finest, -1)
    filtered = guided_filter(_resized(reduced, height, width), image)
    filtered = filtered - filtered.min((0, 1))
    most = filtered.max((0, 1))
    return np.divide(filtered, most, out=np.zeros_like(filtered), where=most > 1e-12)


def _resized(values: Array, height: int, width: int) -> Array:
    """(h, w, C) -> (height, width, C), bilinear, pixels taken for areas rather than points."""
    if values.shape[:2] == (height, width):
        return values
    scale = (height / values.shape[0], width / values.shape[1], 1)
    return zoom(values, scale, order=1, mode="nearest", grid_mode=True)


def guided_filter(values: Array, guide: Array, radius: int = 5, epsilon: float = 0.01) -> Array:
    """Values (H, W, C) locally linear in the colours of a guide (H, W, 3); He, Sun, Tang 2010.

    The defaults are nearest those of the code: MATLAB's, with windows of 10 x 10.
    """

    def mean(x: Any) -> Any:
        return uniform_filter(x, (2 * radius + 1, 2 * radius + 1, *[0] * (x.ndim - 2)), mode="reflect")

    colour, level = mean(guide), mean(values)
    variance = mean(guide[..., :, None] * guide[..., None, :]) - colour[..., :, None] * colour[..., None, :]
    covariance = mean(guide[..., :, None] * values[..., None, :]) - colour[..., :, None] * level[..., None, :]
    slope = np.linalg.solve(variance + epsilon * np.eye(3), covariance)  # (H, W, 3, C)
    offset = level - (colour[..., None, :] @ slope)[..., 0, :]
    filtered: Array = (guide[..., None, :] @ mean(slope))[..., 0, :] + mean(offset)
    return filtered
