import sys
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from lightning_modules.refinement import laplacian as graph
from lightning_modules.refinement import soft_segmentation as soft
from lightning_modules.refinement import sparsification
from lightning_modules.refinement.laplacian import Superpixels
from lightning_modules.refinement.soft_segmentation import SoftSegmentation, soft_segmentation

Array = NDArray[Any]
SMALL = {"layers": 3, "segments": 6, "eigenvectors": 30, "superpixels": 80}
superpixels = pytest.mark.extra("soft", "skimage")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def two_objects(height: int = 33, width: int = 45) -> tuple[Array, Array]:
    """An image (H, W, 3) in 0..255 of a disc and a square on a background, and the object of each pixel (H, W)."""
    y, x = np.mgrid[:height, :width]
    objects = np.zeros((height, width), dtype=np.int64)
    objects[(y - height / 2) ** 2 + (x - width / 4) ** 2 < (height / 4) ** 2] = 1
    objects[height // 4 : height // 4 * 3, width * 5 // 8 : width * 7 // 8] = 2
    colours = np.array([[60, 90, 60], [200, 60, 50], [70, 80, 210]])
    noise = np.random.default_rng(1).normal(0, 6, (height, width, 3))
    return np.clip(colours[objects] + noise, 0, 255).round(), objects


def maps_of(objects: Array) -> list[Array]:
    """Features that know the objects, in two maps of different size."""
    codes = np.array([[0.0, 1, 0, 2], [3, 0, 1, 0], [0, 0, 4, 1]])
    full = np.moveaxis(codes[objects], -1, 0)
    return [full, full[:2, ::2, ::2]]


def laplacian_of(image: Array, features: Array, superpixels: Superpixels) -> sp.csr_array:
    return (
        graph.matting_laplacian(image)
        + 0.01 * graph.semantic_laplacian(superpixels, features)
        + 0.01 * graph.nonlocal_laplacian(superpixels, image)
    ).tocsr()


def inner(mask: Array) -> Array:
    """The mask without the pixels that touch others."""
    padded = np.pad(mask, 1)
    height, width = mask.shape
    return np.all([padded[y : y + height, x : x + width] for y in range(3) for x in range(3)], 0)


def check_layers(found: SoftSegmentation, image: Array) -> None:
    assert found.alphas.shape[:2] == image.shape[:2]
    assert found.alphas.min() >= 0
    assert np.abs(found.alphas.sum(-1) - 1).max() < 1e-6
    colours = image.reshape(*image.shape[:2], -1)
    composite = (found.alphas[..., None] * colours[..., None, :]).sum(2)
    assert np.abs(composite - colours).max() < 255e-6


@superpixels
def test_objects_become_layers() -> None:
    image, objects = two_objects()
    found = soft_segmentation(image, maps_of(objects), **SMALL)
    assert found.alphas.shape == (33, 45, 3)
    check_layers(found, image)
    assert list(np.argsort(-found.alphas.sum((0, 1)))) == [0, 1, 2]
    taken = set()
    for number in range(3):
        alphas = found.alphas[inner(objects == number)]
        layer = int(alphas.mean(0).argmax())
        assert alphas[:, layer].min() > 0.9
        taken.add(layer)
    assert taken == {0, 1, 2}


@superpixels
def test_the_seed_decides() -> None:
    image, objects = two_objects(24, 31)
    first, again = (soft_segmentation(image, maps_of(objects), seed=3, **SMALL) for _ in range(2))
    assert np.array_equal(first.alphas, again.alphas)
    assert np.array_equal(first.eigenvectors, again.eigenvectors)


@superpixels
@pytest.mark.parametrize("shape", [(23, 31), (3, 90), (64, 5), (17, 17)])
def test_odd_sizes(shape: tuple[int, int], rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (*shape, 3))
    found = soft_segmentation(image, [rng.standard_normal((5, 4, 6)), rng.standard_normal((2, 1, 1))], **SMALL)
    check_layers(found, image)
    assert found.eigenvectors.shape == (*shape, 30)


@superpixels
@pytest.mark.parametrize("levels", [2, 256])
def test_grey_images(levels: int, rng: np.random.Generator) -> None:
    image = rng.integers(0, levels, (20, 22)) * (255 // (levels - 1))
    grey = soft_segmentation(image, [rng.standard_normal((4, 5, 5))], **SMALL)
    check_layers(grey, image)
    laplacian = graph.matting_laplacian(np.repeat(image[..., None] / 255, 3, 2))
    assert np.linalg.eigvalsh(laplacian.toarray()).min() > -1e-6


@superpixels
def test_a_flat_image_without_features_is_one_layer() -> None:
    found = soft_segmentation(np.full((16, 20), 128), [np.ones((3, 4, 4))], **SMALL)
    assert found.alphas.shape == (16, 20, 1)
    check_layers(found, np.full((16, 20), 128))


@superpixels
def test_one_of_each() -> None:
    image, objects = two_objects(12, 15)
    found = soft_segmentation(image, maps_of(objects), layers=1, segments=1, eigenvectors=1, superpixels=1)
    assert found.alphas == pytest.approx(np.ones((12, 15, 1)))


def test_more_layers_than_ten_are_all_below_a_tenth(rng: np.random.Generator) -> None:
    laplacian = graph.matting_laplacian(rng.random((6, 7, 3)))
    alphas = sparsification.relax(np.full((42, 20), 1 / 20), laplacian, np.full(42, 0.9))
    assert np.isfinite(alphas).all()
    assert np.abs(alphas.sum(1) - 1).max() < 1e-12


@pytest.mark.extra("oracle", "pymatting")
def test_matting_laplacian_is_that_of_pymatting(rng: np.random.Generator) -> None:
    import pymatting

    image = rng.random((13, 18, 3))
    ours, theirs = graph.matting_laplacian(image), pymatting.cf_laplacian(image, epsilon=1e-7)
    assert np.abs((ours - theirs).toarray()).max() < 1e-8


@superpixels
def test_laplacians_are_symmetric_and_know_constants() -> None:
    image, objects = two_objects(24, 31)
    features, regions = soft.reduce_features(maps_of(objects), image / 255), Superpixels.of(image / 255, 40)
    matting, nonlocal_ = graph.matting_laplacian(image / 255), graph.nonlocal_laplacian(regions, image / 255)
    alike = graph.semantic_laplacian(regions, np.ones_like(features))
    semantic = graph.semantic_laplacian(regions, features)
    for laplacian in (matting, nonlocal_, alike, semantic):
        assert abs(laplacian - laplacian.T).max() < 1e-12
        assert np.abs(laplacian @ np.ones(24 * 31)).max() < 1e-10
    for laplacian in (matting, nonlocal_, alike, matting + 0.01 * alike + 0.01 * nonlocal_):
        assert np.linalg.eigvalsh(laplacian.toarray()).min() > -1e-9
    assert np.linalg.eigvalsh(semantic.toarray()).min() < -0.1  # unlike neighbours repel: weights down to -1


def test_affinities_by_hand() -> None:
    # Two halves are one superpixel each; a distance of 0.15 is the centre of the error function of Sec. 3.3.
    labels = np.repeat([[0, 0, 0, 1, 1, 1]], 3, 0)
    halves = Superpixels(labels, np.array([7, 10]), np.array([[0, 1]]))
    for distance, weight in ((0.0, 1.0), (0.15, 0.0), (0.5, -1.0)):
        features = labels[..., None] * np.array([distance, 0, 0])
        assert graph.semantic_laplacian(halves, features)[7, 10] == pytest.approx(-weight, abs=1e-4)
    # The centroids are half the width apart, farther than 0.2: no edge, whatever the colours.
    assert graph.nonlocal_laplacian(halves, np.ones((3, 6, 3))).count_nonzero() == 0
    near = Superpixels(labels, np.array([8, 9]), np.array([[0, 1]]))
    for distance, weight in ((0.0, 1.0), (0.05, 0.5), (0.2, 0.0)):
        image = labels[..., None] * np.array([distance, 0, 0])
        assert graph.nonlocal_laplacian(near, image)[8, 9] == pytest.approx(-weight, abs=1e-3)


@superpixels
def test_superpixels_cover_the_image() -> None:
    image, _ = two_objects()
    regions = Superpixels.of(image / 255, 60)
    count = regions.labels.max() + 1
    assert 30 <= count <= 90
    assert set(regions.labels.ravel()) == set(range(count))
    assert regions.centres.shape == (count,)
    assert np.unique(regions.edges) == pytest.approx(np.arange(count))  # everyone has a neighbour
    means = regions.means(image)
    assert means[5] == pytest.approx(image[regions.labels == 5].mean(0))


@superpixels
@pytest.mark.parametrize("repelling", [False, True])
def test_eigenvectors_are_those_of_the_dense_matrix(repelling: bool, rng: np.random.Generator) -> None:
    image = np.cumsum(rng.random((13, 17, 3)), 1) / 20
    regions = Superpixels.of(image, 30)
    features = rng.random((13, 17, 3)) if repelling else np.zeros((13, 17, 3))
    features = regions.means(features)[regions.labels] * 3
    laplacian = laplacian_of(image, features, regions)
    order = graph.elimination_order(13, 17, regions.centres)
    values, vectors = graph.smallest_eigenvectors(laplacian, 12, order=order, rng=rng)
    assert np.abs(vectors.T @ vectors - np.eye(12)).max() < 1e-10
    assert values == pytest.approx(np.linalg.eigvalsh(laplacian.toarray())[:12], abs=1e-12)
    rayleigh = np.einsum("pk,pk->k", vectors, laplacian @ vectors)
    assert rayleigh == pytest.approx(values, abs=1e-12)
    assert (values[0] < -1e-6) == repelling
    assert values[-1] < 0.05 * laplacian.diagonal().mean()  # a random vector's quotient is about that mean


def test_the_shift_goes_below_every_eigenvalue(rng: np.random.Generator) -> None:
    diagonal = np.concatenate([[-3.0, -0.5], np.linspace(0.1, 9, 58)])
    values, _ = graph.smallest_eigenvectors(sp.diags_array(diagonal).tocsr(), 4, order=np.arange(60), rng=rng)
    assert values == pytest.approx(diagonal[:4])


@pytest.mark.parametrize("shape", [(12, 19), (3, 40), (7, 4)])
def test_elimination_order(shape: tuple[int, int]) -> None:
    last = np.array([5, 11, 20])
    order = graph.elimination_order(*shape, last)
    assert sorted(order) == list(range(shape[0] * shape[1]))
    assert set(order[-3:]) == set(last)


def test_elimination_order_fills_little() -> None:
    laplacian = graph.matting_laplacian(np.random.default_rng(0).random((80, 80, 3))) + sp.eye_array(6400)
    order = graph.elimination_order(80, 80, np.array([0]))
    options = {"permc_spec": "NATURAL", "diag_pivot_thresh": 0, "options": {"SymmetricMode": True}}
    ours, rows = (graph.splu(m.tocsc(), **options).nnz for m in (laplacian[order][:, order], laplacian))
    assert ours < 0.6 * rows


@superpixels
def test_sparsified_segments_stay_in_the_span_and_sum_to_one() -> None:
    image, objects = two_objects(20, 26)
    regions = Superpixels.of(image / 255, 30)
    laplacian = laplacian_of(image / 255, np.eye(3)[objects], regions)
    order = graph.elimination_order(20, 26, regions.centres)
    values, vectors = graph.smallest_eigenvectors(laplacian, 20, order=order, rng=np.random.default_rng(0))
    start = np.arange(520) // 26 % 3  # stripes, which the eigenvectors cannot make
    alphas = sparsification.sparsify(values, vectors, start)
    assert np.abs(alphas.sum(1) - 1).max() < 1e-8
    assert np.abs(vectors @ (vectors.T @ alphas) - alphas).max() < 1e-8

    def energy(x: Array) -> float:
        return float(((0.3 * np.abs(x)) ** 0.8 + (0.3 * np.abs(1 - x)) ** 0.8).sum() + (x * (laplacian @ x)).sum())

    projected = vectors @ (vectors.T @ np.eye(3)[start])
    assert energy(alphas) < 0.97 * energy(projected)


def test_weighted_products(rng: np.random.Generator) -> None:
    vectors, weights = rng.random((300, 7)), rng.random((300, 3))
    expected = np.stack([vectors.T @ np.diag(w) @ vectors for w in weights.T])
    assert sparsification._weighted_products(vectors, weights) == pytest.approx(expected)


def test_the_relaxation_solves_its_system(rng: np.random.Generator) -> None:
    laplacian = graph.matting_laplacian(rng.random((6, 7, 3)))
    weights, aim = rng.random((42, 3)) * 50 + 1, rng.random((42, 3))
    solved = sparsification._solve(laplacian, laplacian.diagonal()[:, None], weights, aim, np.zeros((42, 3)), 300)
    # For layers one after the other, as the code has them.
    system = np.kron(np.eye(3), laplacian.toarray()) + np.kron(np.full((3, 3), 100.0), np.eye(42))
    system += np.diag(weights.T.ravel())
    assert solved.T.ravel() == pytest.approx(np.linalg.solve(system, aim.T.ravel()), abs=1e-5)


def test_k_means(rng: np.random.Generator) -> None:
    centres = np.array([[0.0, 0], [5, 0], [0, 5]])
    points = np.repeat(centres, 20, 0) + rng.normal(0, 0.1, (60, 2))
    clusters = sparsification.k_means(points, 3, rng)
    assert [len(set(clusters[i : i + 20])) for i in (0, 20, 40)] == [1, 1, 1]
    assert set(clusters) == {0, 1, 2}
    assert set(sparsification.k_means(np.repeat(centres, 4, 0), 10, rng)) == {
        0,
        1,
        2,
    }  # as many as there are distinct points
    assert set(sparsification.k_means(np.ones((9, 3)), 4, rng)) == {0}


def test_guided_filter_keeps_what_is_linear_in_the_guide(rng: np.random.Generator) -> None:
    guide = rng.random((30, 25, 3))
    linear = guide @ np.array([[1.0, 0], [2, 1], [0, -1]]) + 3
    assert soft.guided_filter(linear, guide, epsilon=1e-12) == pytest.approx(linear)
    assert soft.guided_filter(np.ones((30, 25, 2)), guide) == pytest.approx(np.ones((30, 25, 2)))
    noise = rng.standard_normal((30, 25, 1))
    assert soft.guided_filter(noise, guide).std() < 0.5 * noise.std()


def test_features_become_three_in_the_unit_interval(rng: np.random.Generator) -> None:
    image = rng.random((20, 30, 3))
    maps = [rng.standard_normal((40, 10, 15)), 1e6 * rng.standard_normal((1, 3, 4)), np.zeros((7, 5, 5))]
    reduced = soft.reduce_features(maps, image)
    assert reduced.shape == (20, 30, 3)
    assert reduced.min((0, 1)) == pytest.approx(np.zeros(3))
    assert reduced.max((0, 1)) == pytest.approx(np.ones(3))
    one = soft.reduce_features(maps[1:2], image)
    assert np.ptp(one, (0, 1)) == pytest.approx([1, 0, 0])  # a single channel has a single axis


def test_less_sparse_at_edges() -> None:
    image = np.zeros((20, 30, 3))
    image[:, 15:] = 1
    sparsity = sparsification.sparsity_of(image)
    assert sparsity[:, 14:16] == pytest.approx(1)  # 0.9 and the gradient, cut off at 0.1
    assert sparsity[:, :5] == pytest.approx(0.9)


@superpixels
@pytest.mark.parametrize(
    ("image", "maps", "counts", "message"),
    [
        (np.zeros((40, 1, 3)), None, {}, "sides of at least 3 pixels, .* got 40 x 1"),
        (np.zeros((10, 10, 3)), None, {}, "more than 200 pixels for 100 eigenvectors, got 10 x 10"),
        (np.zeros((0, 10, 3)), None, {}, "got 0 x 10"),
        (np.zeros((40, 40, 4)), None, {}, r"image must be \(H, W, 3\) or \(H, W\), got \(40, 40, 4\)"),
        (np.full((40, 40), 256), None, {}, "image must be in 0..255, got 256 to 256"),
        (np.full((40, 40), np.nan), None, {}, "image must be in 0..255, got nan"),
        (np.full((40, 40), 0.5), None, {}, "image must be in 0..255, got 0.5 to 0.5: undo its scaling"),
        (np.zeros((40, 40)), [], {}, "at least one map"),
        (np.zeros((40, 40)), [np.zeros((3, 4))], {}, r"maps must be \(C, h, w\) and not empty, got \(3, 4\)"),
        (np.zeros((40, 40)), [np.full((3, 4, 4), np.inf)], {}, "maps hold NaN or infinity"),
        (np.zeros((40, 40)), [np.zeros((0, 4, 4))], {}, "maps must be"),
        (np.zeros((40, 40)), None, {"superpixels": 0}, "superpixels must be a whole number of at least 1"),
        (np.zeros((40, 40)), None, {"layers": 41}, "at most 40 of them, got 41"),
        (np.broadcast_to(0, (10**6, 10**6)), None, {}, "soft segmentation of 1000000 x 1000000 pixels .* GiB"),
    ],
)
def test_bad_input(image: Array, maps: list[Array] | None, counts: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        soft_segmentation(image, [np.ones((2, 4, 4))] if maps is None else maps, **counts)


@superpixels
@pytest.mark.parametrize(
    ("name", "values"),
    [
        (
            "image",
            [
                None,
                "x",
                [[1, 2], [3, 4]],
                np.zeros((40, 40), dtype=complex),
                np.full((40, 40), "x"),
                torch.zeros(40, 40),
            ],
        ),
        ("maps", [None, "x", 3, [None], ["x"], np.ones((2, 4, 4)), [[[[1.0]]]], [np.ones((2, 4, 4), dtype=complex)]]),
        *(
            (name, [None, "2", 2.0, True, -1, 2**40, [2]])
            for name in ("layers", "segments", "eigenvectors", "superpixels")
        ),
        ("seed", [None, "2", 2.0, True, -1, 2**70]),
        ("progress", [None, "x", 3]),
    ],
)
def test_arguments_of_another_kind_are_refused_by_name(name: str, values: list[object]) -> None:
    good = {"image": np.zeros((40, 40)), "maps": [np.ones((2, 4, 4))]}
    for value in values:
        with pytest.raises((TypeError, ValueError), match=f"^{name} must"):
            soft_segmentation(**good | {name: value})


def test_without_scikit_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)  # what Python does for a package that is not installed
    with pytest.raises(ValueError, match=r'needs scikit-image: pip install -e "\.\[soft\]"'):
        soft_segmentation(np.zeros((40, 40)), [np.ones((2, 4, 4))])
