"""The graph of Semantic Soft Segmentation (`soft_segmentation.py`), Sec. 3.1 to 3.3, and its smallest eigenvectors."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, eigsh, splu
from scipy.spatial import KDTree
from scipy.special import erf

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

SMALLEST_SUPERPIXEL = 16  # pixels


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
        slic = scikit_image().slic
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


def scikit_image() -> Any:
    """skimage.segmentation; ValueError with the way out where it is not installed."""
    try:
        from skimage import segmentation
    except ImportError as error:
        raise ValueError('soft segmentation needs scikit-image: pip install -e ".[soft]"') from error
    return segmentation


def matting_laplacian(image: Array, epsilon: float = 1e-7) -> sp.csr_array:
    """Of Levin, Lischinski, Weiss 2008 (closed-form matting), in windows of 3 x 3, for an image (H, W, 3) in [0, 1].

    Equals pymatting's on photographs, and is positive semidefinite for every image. Where the colours lie on a line, as
    in a grey image, the covariance of a window is nearly singular. Its Cholesky factor keeps what the closed form of
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
