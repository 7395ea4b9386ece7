"""Semantic Soft Segmentation, Aksoy, Oh, Paris, Pollefeys, Matusik 2018, https://doi.org/10.1145/3197517.3201275

Constants that the paper leaves open are those of the authors' MATLAB code, yaksoy/SemanticSoftSegmentation, called "the
code" below. The Laplacian is not normalised: Eq. 3 is, the code is not. As features that differ repel, it has a few
negative eigenvalues on most photographs; its matting and colour terms have none. Departs from the paper in
- the features, which are those of any network: a channel is standardised before it is clamped, each map counts alike,
  and PCA comes before the guided filter, which is linear in them: it then filters 3 channels, not hundreds;
- the superpixels, at least 16 pixels each, so that a small image has fewer than 2500;
- k-means, started by k-means++, the best of some restarts, where the code splits clusters;
- the layers, cut off at 0 and divided by their sum in the end: the relaxation only presses them to sum to 1.

NumPy and SciPy throughout, as nothing here is trained: images are (H, W, 3), sets of pixels (H * W, ...), float64.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from scipy.cluster.vq import vq
from scipy.linalg import eigh
from scipy.ndimage import gaussian_filter1d, uniform_filter, zoom
from scipy.sparse.linalg import LinearOperator, cg, eigsh, splu
from scipy.spatial import KDTree
from scipy.special import erf

from lightning_modules.components.errors import NonFiniteError
from lightning_modules.refinement.checks import check_whole
from lightning_modules.refinement.memory import check_memory

Array = NDArray[np.float64]
Integers = NDArray[np.int64]
Progress = Callable[[str], None]

SEMANTIC_WEIGHT, NONLOCAL_WEIGHT = 0.01, 0.01  # sigma_S and sigma_C, Eq. 6
SPARSITY, SPARSITY_WEIGHT = 0.8, 0.3  # gamma of Sec. 3.4, and the factor of alpha in it, of the code
ITERATIONS, REMOVE_EVERY = 40, 10  # of the constrained sparsification, and between removals
RELAXATIONS, INNER = 20, 100  # of the relaxed sparsification, and of the conjugate gradients in each
FIDELITY, SUM_TO_ONE = 1.0, 100.0  # sigma_F and delta of Sec. 3.4, beside sigma_S = 1
SMALLEST_SUPERPIXEL = 16  # pixels
MOST = 2**20  # layers, segments, eigenvectors or superpixels
BYTES_A_VECTOR, BYTES_A_LEVEL = 32, 900  # of a pixel, see check_size; 320 x 213 and 600 x 400 take less


@dataclass(frozen=True)
class SoftSegmentation:
    """What `soft_segmentation` finds, and on the way.

    `alphas` (H, W, layers) are at least 0, sum to 1 in every pixel and are in the order of their area; `segments`
    (H, W, at most 40) are those before grouping, `features` (H, W, 3) in [0, 1], `eigenvectors` (H, W, count) in the
    order of the `eigenvalues` (count,).
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
    _scikit_image()
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


# ---- Features, Sec. 3.5


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


# ---- Graph, Sec. 3.1 to 3.3


@dataclass(frozen=True)
class Superpixels:
    """`labels` (H, W) from 0, `centres` (count,) the pixels nearest to their centroids, `edges` (E, 2) neighbours."""

    labels: Integers
    centres: Integers
    edges: Integers

    @classmethod
    def of(cls, image: Array, count: int) -> "Superpixels":
        """Those of SLIC with its parameter-free compactness, as in the code, about `count` of them."""
        height, width, _ = image.shape
        slic = _scikit_image().slic
        count = min(count, max(1, height * width // SMALLEST_SUPERPIXEL))
        _, labels = np.unique(slic(image, count, slic_zero=True, start_label=0), return_inverse=True)
        labels = labels.reshape(height, width)
        sizes = np.bincount(labels.ravel())
        y, x = (np.rint(np.bincount(labels.ravel(), axis.ravel()) / sizes) for axis in np.indices((height, width)))
        pairs = [
            np.stack([labels[rows, columns].ravel(), labels[below, beside].ravel()], 1)
            for rows, below, columns, beside in _neighbours()
        ]
        edges = np.unique(np.sort(np.concatenate(pairs), 1), axis=0)
        return cls(labels, (y * width + x).astype(np.int64), edges[edges[:, 0] != edges[:, 1]])

    def means(self, values: Array) -> Array:
        """(H, W, C) -> (count, C)."""
        flat, sizes = self.labels.ravel(), np.bincount(self.labels.ravel())
        return np.stack([np.bincount(flat, channel) / sizes for channel in values.reshape(len(flat), -1).T], 1)


def _neighbours() -> Iterator[tuple[slice, slice, slice, slice]]:
    """Rows of a pixel and of its neighbour, then columns, for 4 of the 8 neighbours; the others mirror them."""
    every, first, last = slice(None), slice(None, -1), slice(1, None)
    yield every, every, first, last
    yield first, last, every, every
    yield first, last, first, last
    yield first, last, last, first


def _scikit_image() -> Any:
    try:
        from skimage import segmentation
    except ImportError as error:
        raise ValueError('soft segmentation needs scikit-image: pip install -e ".[soft]"') from error
    return segmentation


def matting_laplacian(image: Array, epsilon: float = 1e-7) -> sp.csr_array:
    """Of Levin, Lischinski, Weiss 2008 (closed-form matting), in windows of 3 x 3, for an image (H, W, 3) in [0, 1].

    Equals pymatting's on photographs, and is positive semidefinite for every image: where its colours lie on a line, as
    in a grey one, the covariance of a window is nearly singular, and its Cholesky factor keeps what the closed form of
    the inverse in pymatting 1.1.16 loses, which leaves eigenvalues down to -0.08 in black and white.
    """
    height, width, _ = image.shape
    rows, columns = height - 2, width - 2
    band = np.zeros((height, width, 5, 5))
    windows = np.lib.stride_tricks.sliding_window_view(image, (3, 3), (0, 1)).reshape(rows, columns, 3, 9)
    for top in range(0, rows, 64):
        colours = windows[top : top + 64]
        colours = colours - colours.mean(-1, keepdims=True)
        covariance = (colours @ colours.swapaxes(-1, -2) + epsilon * np.eye(3)) / 9
        whitened = np.linalg.solve(np.linalg.cholesky(covariance), colours)
        entries = np.eye(9) - (1 + whitened.swapaxes(-1, -2) @ whitened) / 9
        bottom = top + len(colours)
        for first in range(9):
            for second in range(9):
                (down, right), (other_down, other_right) = divmod(first, 3), divmod(second, 3)
                pixels = band[top + down : bottom + down, right : columns + right]
                pixels[..., other_down - down + 2, other_right - right + 2] += entries[..., first, second]
    shifts = np.arange(-2, 3)
    y = np.arange(height)[:, None, None, None] + shifts[:, None]
    x = np.arange(width)[:, None, None] + shifts
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    starts = np.concatenate([[0], np.cumsum(inside.sum((2, 3)).ravel())])
    return sp.csr_array((band[inside], (y * width + x)[inside], starts), shape=(height * width,) * 2)


def semantic_laplacian(superpixels: Superpixels, features: Array) -> sp.csr_array:
    """Between adjacent superpixels, weights in [-1, 1]: attracts those of like features and repels others; Sec. 3.3."""
    means = superpixels.means(features)
    first, second = superpixels.edges.T
    likeness = 1 - np.linalg.norm(means[first] - means[second], axis=1)
    return _laplacian(superpixels, superpixels.edges, erf(20 * (likeness - 0.85)))


def nonlocal_laplacian(superpixels: Superpixels, image: Array) -> sp.csr_array:
    """Between superpixels of like colours within 0.2 of the image's height and width, weights in [0, 1]; Sec. 3.2."""
    height, width, _ = image.shape
    places = np.stack([superpixels.centres // width / height, superpixels.centres % width / width], 1)
    edges = KDTree(places).query_pairs(0.2, output_type="ndarray")
    means = superpixels.means(image)
    first, second = edges.T
    likeness = 1 - np.linalg.norm(means[first] - means[second], axis=1)
    weights = (erf(50 * (likeness - 0.95)) + 1) / 2
    return _laplacian(superpixels, edges[weights > 0], weights[weights > 0])


def _laplacian(superpixels: Superpixels, edges: Integers, weights: Array) -> sp.csr_array:
    """Of all pixels, with `edges` (E, 2) between the centres of superpixels."""
    first, second = superpixels.centres[edges].T
    pixels = superpixels.labels.size
    weight = sp.coo_array((weights, (first, second)), shape=(pixels, pixels)).tocsr()
    weight = weight + weight.T
    return sp.diags_array(weight.sum(1)) - weight


# ---- Eigenvectors


def elimination_order(height: int, width: int, last: Integers) -> Integers:
    """The pixels, in an order in which eliminating them fills little; `last` are those that are tied across the image.

    Nested dissection (George 1973): two rows or columns part what windows of 3 x 3 tie, and follow both of their sides.
    """
    pixels = np.arange(height * width).reshape(height, width)
    parts: list[Integers] = []

    def dissect(part: Integers) -> None:
        if min(part.shape) < 5:
            parts.append(part.ravel())
            return
        part = part if part.shape[0] >= part.shape[1] else part.T
        middle = len(part) // 2
        dissect(part[: middle - 1])
        dissect(part[middle + 1 :])
        parts.append(part[middle - 1 : middle + 1].ravel())

    dissect(pixels)
    order = np.concatenate(parts)
    tied = np.zeros(height * width, dtype=bool)
    tied[last] = True
    return np.concatenate([order[~tied[order]], order[tied[order]]])


def smallest_eigenvectors(
    laplacian: sp.csr_array, count: int, *, order: Integers, rng: np.random.Generator
) -> tuple[Array, Array]:
    """The `count` smallest eigenvalues, ascending, and orthonormal eigenvectors (pixels, count) of a symmetric matrix.

    Lanczos iterations on the inverse of the matrix minus a shift below all eigenvalues, factorised in the given
    `order`. The semantic weights that repel let some eigenvalues be negative; the signs of the factor's diagonal count
    those below the shift (Sylvester's law of inertia), which is lowered until there are none.
    """
    permuted = laplacian[order][:, order].tocsc()
    shift = -1e-3
    while True:
        shifted = (permuted - shift * sp.eye_array(len(order), format="csc")).tocsc()
        factor = splu(shifted, permc_spec="NATURAL", diag_pivot_thresh=0, options={"SymmetricMode": True})
        if (factor.U.diagonal() > 0).all():
            break
        shift *= 4
    inverse = LinearOperator(permuted.shape, matvec=factor.solve, dtype=np.float64)
    start = rng.standard_normal(len(order))
    values, vectors = eigsh(permuted, count, sigma=shift, OPinv=inverse, v0=start, tol=1e-10)
    unpermuted = np.empty_like(vectors)
    unpermuted[order] = vectors
    ascending = np.argsort(values, kind="stable")
    return values[ascending], unpermuted[:, ascending]


# ---- Soft segments, Sec. 3.4


def k_means(points: Array, count: int, rng: np.random.Generator, restarts: int = 3) -> Integers:
    """Points (P, D) -> the cluster of each, at most `count`; k-means++, the best of some restarts."""
    best: tuple[float, Integers] | None = None
    for _ in range(restarts):
        centres = _spread(points, count, rng)
        nearest, distance = vq(points, centres)
        for _ in range(100):  # the code's
            sizes = np.bincount(nearest, minlength=len(centres))
            sums = np.stack([np.bincount(nearest, axis, len(centres)) for axis in points.T], 1)
            centres = np.where(sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], centres)
            before = nearest
            nearest, distance = vq(points, centres)
            if (nearest == before).all():
                break
        inertia = float((distance**2).sum())
        if best is None or inertia < best[0]:
            best = inertia, nearest
    assert best is not None
    return np.unique(best[1], return_inverse=True)[1]


def _spread(points: Array, count: int, rng: np.random.Generator) -> Array:
    """At most `count` of the points, each drawn by its squared distance to those before; Arthur, Vassilvitskii 2007."""
    centres = [points[rng.integers(len(points))]]
    distance = ((points - centres[0]) ** 2).sum(1)
    while len(centres) < count and distance.max() > 1e-12:
        cumulative = distance.cumsum()
        centres.append(points[cumulative.searchsorted(rng.random() * cumulative[-1], side="right")])
        distance = np.minimum(distance, ((points - centres[-1]) ** 2).sum(1))
    return np.stack(centres)


def sparsify(eigenvalues: Array, eigenvectors: Array, start: Integers) -> Array:
    """Soft segments (pixels, count) in the span of the eigenvectors that sum to 1 and are near 0 or 1; Sec. 3.4.

    Newton's method of Levin, Rav-Acha, Lischinski 2008 (Spectral Matting, Eq. 9) from the segment of each pixel in
    `start`: the sparsity is replaced by the parabola that touches it, and the sum is held by a Lagrange multiplier.
    Segments that nowhere exceed 0.1 are left out every so often.
    """
    eigenvectors = np.ascontiguousarray(eigenvectors)
    alphas = np.eye(start.max() + 1)[start]
    total = eigenvectors.sum(0)  # coefficients of the image of ones, an eigenvector itself
    for iteration in range(1, ITERATIONS + 1):
        to_one, to_zero = (
            SPARSITY_WEIGHT**SPARSITY * np.maximum(np.abs(alphas - end), 1e-10) ** (SPARSITY - 2) for end in (1, 0)
        )
        inverses = np.linalg.inv(_weighted_products(eigenvectors, to_one + to_zero) + np.diag(eigenvalues))
        free = np.einsum("kij,jk->ik", inverses, eigenvectors.T @ to_one)
        multiplier = np.linalg.solve(inverses.sum(0), free.sum(1) - total)
        alphas = eigenvectors @ (free - (inverses @ multiplier).T)
        if iteration % REMOVE_EVERY == 1 and iteration > 1:
            most = np.abs(alphas).max(0)
            alphas = alphas[:, most >= min(0.1, most.max())]
    return alphas


def _weighted_products(vectors: Array, weights: Array) -> Array:
    """Vectors (P, n), weights (P, K) of at least 0 -> (K, n, n), the vectors' products with one another by each weight.

    A matrix times its transpose costs half of other products, and blocks of 1024 pixels stay in the cache: the time of
    the sparsification is this function's.
    """
    products = np.zeros((weights.shape[1], vectors.shape[1], vectors.shape[1]))
    for block in range(0, len(vectors), 1024):
        part, roots = vectors[block : block + 1024], np.sqrt(weights[block : block + 1024])
        for product, root in zip(products, roots.T, strict=True):
            scaled = part * root[:, None]
            product += scaled.T @ scaled
    return products


def group(alphas: Array, features: Array, count: int, rng: np.random.Generator) -> Array:
    """Soft segments (pixels, K) added up to at most `count` layers, by their mean features (pixels, 3)."""
    weights = np.clip(alphas, 0, 1)
    means = (weights.T @ features) / np.maximum(weights.sum(0), 1e-12)[:, None]
    layers = k_means(means, count, rng, restarts=20)
    return alphas @ np.eye(layers.max() + 1)[layers]


def sparsity_of(image: Array) -> Array:
    """The power gamma of each pixel in the relaxed sparsification, 0.9 to 1: less sparse where the image has an edge.

    The code's derivatives (Farid, Simoncelli 2004, 13 taps) are those of a Gaussian of about 1.55 pixels.
    """
    slopes = [
        gaussian_filter1d(gaussian_filter1d(image, 1.55, along, 1, mode="nearest"), 1.55, 1 - along, mode="nearest")
        for along in (0, 1)
    ]
    steepness = np.sqrt(sum((slope**2).sum(-1) for slope in slopes))
    return 0.9 + np.minimum(steepness, 0.1)


def relax(alphas: Array, laplacian: sp.csr_array, sparsity: Array) -> Array:
    """Layers (pixels, K) freed from the eigenvectors: smooth by the Laplacian, sparse, near those given; Sec. 3.4.

    `sparsity` (pixels,) is the power of each. Conjugate gradients solve for all layers at once, preconditioned by what
    ties the layers of one pixel.
    """
    low = np.minimum(0.1, alphas.max(1, keepdims=True))  # of more than 10 layers all may be below 0.1
    alphas = np.where(alphas < low, 0, np.where(alphas > 0.9, 1, alphas))
    alphas = alphas / alphas.sum(1, keepdims=True)
    initial, diagonal = alphas, laplacian.diagonal()[:, None]
    for _ in range(RELAXATIONS):
        to_zero, to_one = (np.maximum(np.abs(end - alphas), 1e-2) ** (sparsity[:, None] - 2) for end in (0, 1))
        weights = to_zero + to_one + FIDELITY
        alphas = _solve(laplacian, diagonal, weights, to_one + FIDELITY * initial + SUM_TO_ONE, alphas, INNER)
    fidelity = np.full_like(alphas, FIDELITY)
    alphas = _solve(laplacian, diagonal, fidelity, FIDELITY * alphas + SUM_TO_ONE, alphas, 10 * INNER)
    alphas = np.maximum(alphas, 0)
    return alphas / alphas.sum(1, keepdims=True)


def _solve(
    laplacian: sp.csr_array, diagonal: Array, weights: Array, aim: Array, start: Array, iterations: int
) -> Array:
    """X (pixels, K) with laplacian @ X + weights * X + SUM_TO_ONE * (sum of X over K) = aim."""
    shape = start.shape
    inverse = 1 / (diagonal + weights)
    share = inverse * (SUM_TO_ONE / (1 + SUM_TO_ONE * inverse.sum(1, keepdims=True)))

    def apply(flat: Array) -> Array:
        x = flat.reshape(shape)
        return (laplacian @ x + weights * x + SUM_TO_ONE * x.sum(1, keepdims=True)).ravel()

    def precondition(flat: Array) -> Array:  # by Sherman and Morrison's formula in every pixel
        scaled = inverse * flat.reshape(shape)
        return (scaled - share * scaled.sum(1, keepdims=True)).ravel()

    size = (start.size, start.size)
    system, nearly = (LinearOperator(size, matvec=f, dtype=np.float64) for f in (apply, precondition))
    return cg(system, aim.ravel(), start.ravel(), rtol=1e-6, maxiter=iterations, M=nearly)[0].reshape(shape)
