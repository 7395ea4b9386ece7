import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_modules.refinement.permutohedral import Permutohedral, _simplices


def plain(features: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The filter point by point, its lattice a dictionary: features (P, D), values (P, C) -> (P, C)."""
    dims = features.shape[1]
    simplices = []
    for feature in features:
        scaled = [x * math.sqrt(2 / 3) * (dims + 1) / math.sqrt(j * (j + 1)) for j, x in enumerate(feature, 1)]
        elevated = [sum(scaled), *(sum(scaled[j:]) - j * scaled[j - 1] for j in range(1, dims + 1))]
        nearest = [round(x / (dims + 1)) * (dims + 1) for x in elevated]
        falling = sorted(range(dims + 1), key=lambda i: nearest[i] - elevated[i])
        surplus = sum(nearest) // (dims + 1)
        for i in falling[: max(-surplus, 0)]:
            nearest[i] += dims + 1
        for i in falling[dims + 1 - max(surplus, 0) :]:
            nearest[i] -= dims + 1
        falling = sorted(range(dims + 1), key=lambda i: nearest[i] - elevated[i])
        offsets = [(elevated[i] - nearest[i]) / (dims + 1) for i in falling]
        weights = [1 + offsets[-1] - offsets[0], *(a - b for a, b in zip(offsets[-2::-1], offsets[:0:-1], strict=True))]
        corners = [
            tuple(nearest[i] + k - (dims + 1) * (falling.index(i) > dims - k) for i in range(dims + 1))
            for k in range(dims + 1)
        ]
        simplices.append(list(zip(corners, weights, strict=True)))

    lattice = {corner: np.zeros(values.shape[1]) for simplex in simplices for corner, _ in simplex}
    for value, simplex in zip(values, simplices, strict=True):
        for corner, weight in simplex:
            lattice[corner] = lattice[corner] + weight * value
    for axis in range(dims + 1):
        step = np.array([dims if i == axis else -1 for i in range(dims + 1)])
        lattice = {
            corner: value + sum(lattice.get(tuple(np.array(corner) + sign * step), 0) for sign in (-1, 1)) / 2
            for corner, value in lattice.items()
        }
    share = 1 / (1 + 2**-dims)
    return np.array([share * sum(weight * lattice[corner] for corner, weight in simplex) for simplex in simplices])


@pytest.mark.parametrize("dims", [1, 2, 3, 5])
def test_equals_a_plain_lattice(dims: int) -> None:
    features, values = 2 * torch.randn(60, dims), torch.rand(60, 4)
    expected = plain(features.double().numpy(), values.double().numpy())
    assert Permutohedral(features).filter(values).numpy() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("dims", [1, 2, 3, 5])
def test_barycentric_weights(dims: int) -> None:
    features = 5 * torch.randn(1000, dims)
    keys, weights, _ = _simplices(features.t())
    assert weights.min() > -1e-5
    torch.testing.assert_close(weights.sum(0), torch.ones(1000))
    assert (keys.sort(0).values.diff(dim=0) != 0).all()  # as many corners as there should be


@pytest.mark.parametrize(("dims", "tolerance"), [(1, 0.02), (2, 0.03), (3, 0.05)])
def test_close_to_the_gaussian(dims: int, tolerance: float) -> None:
    features, values = torch.rand(2000, dims) * 6, torch.rand(2000, 2)
    kernel = (-0.5 * (features[:, None] - features).square().sum(2)).exp()
    lattice = Permutohedral(features)
    ones = torch.ones(2000, 1)
    filtered = lattice.filter(values) / lattice.filter(ones)
    torch.testing.assert_close(filtered, kernel @ values / kernel.sum(1, keepdim=True), atol=tolerance, rtol=0)


def matrix(lattice: Permutohedral) -> Tensor:
    return lattice.filter(torch.eye(lattice.num_points, dtype=torch.float64))


def test_normalise_scales_rows_and_columns() -> None:
    features = torch.randn(30, 3)
    before, after = torch.rand(2, 30, dtype=torch.float64)
    lattice = Permutohedral(features, dtype=torch.float64)
    expected = after[:, None] * matrix(lattice) * before
    lattice.normalise(before, after)
    torch.testing.assert_close(matrix(lattice), expected)


@pytest.mark.parametrize("same", [True, False])
def test_gradient_is_the_transpose(same: bool) -> None:
    before, after = torch.rand(2, 30, dtype=torch.float64)
    lattice = Permutohedral(torch.randn(30, 3), dtype=torch.float64)
    lattice.normalise(before, before if same else after)
    values, gradient = torch.rand(30, 2, dtype=torch.float64, requires_grad=True), torch.rand(30, 2).double()
    lattice.filter(values).backward(gradient)
    torch.testing.assert_close(values.grad, matrix(lattice).t() @ gradient)
    assert torch.autograd.gradcheck(lattice.filter, (values,))


def test_filters_into_given_memory_and_again() -> None:
    lattice, values = Permutohedral(torch.randn(50, 5)), torch.rand(50, 3)
    expected = lattice.filter(values)
    out = torch.full((50, 3), 7.0)
    assert lattice.filter(values, out) is out
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(lattice.filter(values[:, :2]), expected[:, :2])  # other channels, other working memory


def test_order_of_points_does_not_matter() -> None:
    features, values, order = torch.randn(80, 5), torch.rand(80, 3), torch.randperm(80)
    torch.testing.assert_close(
        Permutohedral(features[order]).filter(values[order]), Permutohedral(features).filter(values)[order]
    )


def test_geometry_is_the_same_for_float64() -> None:
    features = torch.cartesian_prod(torch.arange(12.0), torch.arange(10.0))  # on the faces of simplices
    single, double = Permutohedral(features), Permutohedral(features.double(), dtype=torch.float64)
    assert single.num_vertices == double.num_vertices
    values = torch.rand(120, 3)
    torch.testing.assert_close(single.filter(values), double.filter(values.double()).float())


@pytest.mark.parametrize("scale", [1e6, math.inf, math.nan])
def test_points_too_far_apart_are_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="larger deviations"):
        Permutohedral(torch.rand(10, 5) * scale)


def test_more_channels_than_memory_are_refused() -> None:
    lattice = Permutohedral(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="GiB"):
        lattice.filter(torch.zeros(1, 1).expand(1, 2**40), torch.zeros(1, 1))


@pytest.mark.gpu
def test_gpu_equals_cpu() -> None:
    features = torch.cartesian_prod(torch.arange(40.0), torch.arange(30.0))
    features = torch.cat([features, 9 * torch.rand(1200, 3)], 1)
    values = torch.rand(1200, 21)
    lattice = Permutohedral(features.cuda())
    assert lattice.num_vertices == Permutohedral(features).num_vertices
    torch.testing.assert_close(lattice.filter(values.cuda()).cpu(), Permutohedral(features).filter(values))
