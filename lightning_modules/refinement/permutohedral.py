"""Permutohedral lattice, Adams, Baek, Davis 2010, https://graphics.stanford.edu/papers/permutohedral/

Gaussian filtering of values at P points in D dimensions in time linear in P: splat on the lattice, blur it, slice.

Departs from the paper in
- the lattice points, which are found by sorting their keys, not in a hash table: each step is one sparse matrix product
  on any device.

The geometry is in float32 for any type of values, in the order of operations of Kraehenbuehl's code (2013,
https://www.philkr.net/code/). Pixel coordinates lie on the faces of simplices, where the last bit decides which points
exist. That code also adds the points around the origin where P is no multiple of 4, this one does not.
"""

import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_modules.refinement.memory import check_memory

TOO_FAR = "the points span too many cells of the lattice: use larger deviations (theta_alpha, theta_beta, theta_gamma)"


class Permutohedral:
    """Filters values at points with `features` (P, D) by exp(-|f_i - f_j|^2 / 2), each point's own value included.

    `dtype` is that of the values. The features get no gradient. Not for two threads at once: it keeps working memory.
    Raises ValueError for features that span too many cells, and for more memory than there is. Sizes follow from the
    values of the features, which no compiled graph can hold: torch.compile leaves it as it is.
    """

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __init__(self, features: Tensor, *, dtype: torch.dtype = torch.float32) -> None:
        keys, weights, steps = _simplices(features.detach().t().float())
        corners, points = keys.shape  # D + 1, P
        ordered, order = keys.flatten().sort(stable=True)
        first = torch.ones_like(ordered, dtype=torch.bool)
        torch.ne(ordered[1:], ordered[:-1], out=first[1:])
        starts = first.nonzero().squeeze(1)
        unique = ordered[starts]
        vertex = torch.empty_like(ordered, dtype=torch.int32)
        vertex[order] = first.cumsum(0, dtype=torch.int32).sub_(1)

        self.num_points, self.num_vertices = points, len(unique)
        self._blurs = _blurs(unique, steps, dtype)
        # Barycentric coordinates are the weights of both splat and slice; by sorting, the splat's are in row order.
        ends = torch.cat([starts, starts.new_tensor([len(order)])]).int()
        splat = _csr(ends, order.int().remainder_(points), weights.take(order).to(dtype), points)
        share = 1 / (1 + 2.0 ** (1 - corners))  # scales the blurs as Kraehenbuehl's code does
        rows = torch.arange(0, len(order) + 1, corners, dtype=torch.int32, device=order.device)
        gather = _csr(
            rows, vertex.view(corners, points).t().flatten(), weights.t().flatten().to(dtype).mul_(share), len(unique)
        )
        self._work: Tensor | None = None
        self._there = self._back = (splat, gather)  # splat (M, P) and slice (P, M) of the filter and of its adjoint

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def normalise(self, before: Tensor, after: Tensor) -> None:
        """Makes `filter` multiply the values by `before` (P,) first and its results by `after` (P,)."""
        there = self._scaled(before, after)
        self._back = there if before is after else self._scaled(after, before)
        self._there = there

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def filter(self, values: Tensor, out: Tensor | None = None) -> Tensor:
        """Values (P, C) -> filtered values (P, C): differentiable in the values, or, without gradients, into `out`."""
        if out is None:
            return _Filter.apply(values, self)
        return self._chain(values, self._there, self._blurs, out)

    def _scaled(self, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        splat, gather = self._there
        columns = splat.col_indices()
        weights = gather.values().view(self.num_points, -1) * after[:, None]
        return (
            _csr(splat.crow_indices(), columns, splat.values() * before.index_select(0, columns), self.num_points),
            _csr(gather.crow_indices(), gather.col_indices(), weights.flatten(), self.num_vertices),
        )

    def _chain(self, values: Tensor, matrices: tuple[Tensor, Tensor], blurs: Sequence[Tensor], out: Tensor) -> Tensor:
        splat, gather = matrices
        if self._work is None or self._work.shape[2] != values.shape[1]:
            size = 2 * self.num_vertices * values.shape[1] * values.element_size()
            check_memory(size, values.device, f"filtering {values.shape[1]} channels on {self.num_vertices:,} points")
            # Zeros, lest 0 times what memory held be NaN; kept, as fresh memory costs as much as the arithmetic.
            self._work = values.new_zeros(2, self.num_vertices, values.shape[1])
        lattice, spare = self._work
        lattice.addmm_(splat, values, beta=0)  # `splat @ values` would fill and copy its result first
        for blur in blurs:
            spare.addmm_(blur, lattice, beta=0)
            lattice, spare = spare, lattice
        return out.addmm_(gather, lattice, beta=0)


class _Filter(torch.autograd.Function):
    """The adjoint is the same chain backwards: a blur is symmetric, and splat and slice are each other's transpose."""

    @staticmethod
    def forward(ctx, values: Tensor, lattice: Permutohedral) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.lattice = lattice
        return lattice._chain(values, lattice._there, lattice._blurs, torch.zeros_like(values))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        lattice = ctx.lattice
        return lattice._chain(gradient, lattice._back, lattice._blurs[::-1], torch.zeros_like(gradient)), None


def _simplices(features: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """Features (D, P) -> keys (D + 1, P) of the corners of each point's simplex and their barycentric weights.

    Keys are integers; the third value is what a step along each of the D + 1 axes of the lattice adds to them.
    """
    dims, points = features.shape
    elevated = _elevate(features)
    if not elevated.abs().max() < 2**24 / (2 * dims + 2):  # float32 holds all that follows exactly; NaN too
        raise ValueError(TOO_FAR)
    # The nearest point with remainder 0; the order of the differences then tells the simplex.
    shrink = float(np.float32(1) / np.float32(dims + 1))
    cells = (elevated * shrink).round_()
    nearest = cells * (dims + 1)
    difference = elevated - nearest
    rank = torch.zeros_like(elevated, dtype=torch.int32)
    for i in range(dims):
        for j in range(i + 1, dims + 1):
            less = difference[i] < difference[j]
            rank[i] += less
            rank[j] += ~less
    rank += cells.sum(0).int()  # not on the plane where coordinates sum to 0: bring it back
    back = ((rank < 0).int() - (rank > dims).int()).mul_(dims + 1)
    ranks = (rank + back).long()
    nearest += back
    # Barycentric coordinates (p. 10)
    offset = torch.empty_like(elevated).scatter_(0, dims - ranks, (elevated - nearest) * shrink)
    weights = torch.cat([(offset[0] + (1 - offset[dims]))[None], offset[1:] - offset[:-1]])

    keys, coordinate_steps = _pack(nearest / (dims + 1))
    taken = torch.empty_like(ranks, dtype=keys.dtype).scatter_(0, ranks, coordinate_steps[:, None].expand(-1, points))
    corners = [keys]
    for remainder in range(1, dims + 1):  # each corner is one step against an axis away from the one before
        corners.append(corners[-1] - taken[dims - remainder + 1])
    return torch.stack(corners), weights, coordinate_steps.tolist()


def _elevate(features: Tensor) -> Tensor:
    """(D, P) -> (D + 1, P) in the plane where coordinates sum to 0, scaled to the deviation of the blurs (p. 5, 6)."""
    dims = len(features)
    deviation = float(np.float32(math.sqrt(2 / 3) * (dims + 1)))
    elevated = features.new_empty(dims + 1, features.shape[1])
    total = torch.zeros_like(features[0])
    for j in range(dims, 0, -1):
        scaled = features[j - 1] * float(np.float32(1 / math.sqrt((j + 1) * j) * deviation))
        elevated[j] = total - scaled * j
        total = total + scaled
    elevated[0] = total
    return elevated


def _pack(cells: Tensor) -> tuple[Tensor, Tensor]:
    """Points (D + 1, P) of the lattice over D + 1 -> one integer each (P,), and what one more of each coordinate adds.

    The digits are the coordinates turned back to the directions of the features, the second feature first. Points of an
    image, with features x, y, ..., then lie in the order of its rows, and splat and slice stay in the cache.
    """
    dims = len(cells) - 1
    directions = torch.zeros(dims, dims + 1, dtype=torch.int64)
    digits = torch.empty_like(cells[1:])
    for j in range(1, dims + 1):
        directions[j - 1, :j], directions[j - 1, j] = 1, -j
        torch.sub(cells[:j].sum(0), cells[j] * j, out=digits[j - 1])
    significance = [1, 0, *range(2, dims)] if dims > 1 else [0]
    low, high = digits.aminmax(dim=1)
    # Corners of a simplex and their neighbours are at most this far from its nearest point.
    margin = 2 * torch.arange(1, dims + 1, device=cells.device)
    low, sizes = low - margin, (high - low + 2 * margin + 1).tolist()
    if math.prod(sizes) >= 2**62:
        raise ValueError(TOO_FAR)
    places = [1] * dims
    for digit, lesser in zip(significance[-2::-1], significance[:0:-1], strict=True):
        places[digit] = places[lesser] * int(sizes[lesser])
    integer = torch.int32 if math.prod(sizes) < 2**31 else torch.int64  # sorts in less time
    keys = torch.zeros_like(digits[0], dtype=integer)
    for digit, least, place in zip(digits, low, places, strict=True):
        keys.add_((digit - least).to(integer), alpha=place)
    return keys, (torch.tensor(places)[:, None] * directions).sum(0).to(keys)


def _blurs(unique: Tensor, steps: Sequence[int], dtype: torch.dtype) -> list[Tensor]:
    """The D + 1 blurs (M, M) with [1 2 1] / 2 along the axes of the lattice, for the sorted keys (M,) of its points."""
    count = len(unique)
    itself = torch.arange(count, dtype=torch.int32, device=unique.device)
    rows = torch.arange(0, 3 * count + 1, 3, dtype=torch.int32, device=unique.device)
    one = torch.ones(count, dtype=dtype, device=unique.device)
    blurs = []
    for step in steps:
        target = unique + step
        nearest = torch.searchsorted(unique, target, out_int32=True).clamp_(max=count - 1)
        found = unique.index_select(0, nearest) == target
        lower = found.nonzero().squeeze(1)
        upper = nearest.index_select(0, lower).long()
        # A neighbour that does not exist is the point itself with weight 0: three entries in every row.
        up, down = torch.where(found, nearest, itself), itself.index_copy(0, upper, lower.int())
        half_up, half_down = 0.5 * found.to(dtype), torch.zeros_like(one).index_fill_(0, upper, 0.5)
        columns, weights = torch.stack([down, itself, up], 1), torch.stack([half_down, one, half_up], 1)
        blurs.append(_csr(rows, columns.flatten(), weights.flatten(), count))
    return blurs


def _csr(rows: Tensor, columns: Tensor, weights: Tensor, width: int) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that sparse CSR is in beta
        return torch.sparse_csr_tensor(rows, columns, weights, (len(rows) - 1, width), check_invariants=False)
