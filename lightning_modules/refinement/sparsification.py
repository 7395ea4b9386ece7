"""Soft segments from eigenvectors: both sparsifications of Semantic Soft Segmentation, Sec. 3.4, and the grouping."""

import numpy as np
import scipy.sparse as sp
from scipy.cluster.vq import vq
from scipy.ndimage import gaussian_filter1d
from scipy.sparse.linalg import LinearOperator, cg

from lightning_modules.refinement.laplacian import Array, Integers

SPARSITY, SPARSITY_WEIGHT = 0.8, 0.3  # gamma of Sec. 3.4, and the factor of alpha in it, of the code
ITERATIONS, REMOVE_EVERY = 40, 10  # of the constrained sparsification, and between removals
RELAXATIONS, INNER = 20, 100  # of the relaxed sparsification, and of the conjugate gradients in each
FIDELITY, SUM_TO_ONE = 1.0, 100.0  # sigma_F and delta of Sec. 3.4, beside sigma_S = 1


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
