import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scenes import POINTS, TINY, scene
from torch import Tensor

from lightning_modules.refinement import native
from lightning_modules.refinement.dense_crf import (
    PRESETS,
    DenseCRF,
    DenseMeanField,
    Method,
    dense_crf,
    kernels,
)
from lightning_modules.refinement.mean_field import Normalization

METHODS, NORMALIZATIONS = get_args(Method), get_args(Normalization)


@pytest.mark.extra("oracle", "pydensecrf")
@pytest.mark.parametrize("engine", ["torch", "auto"])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("point", POINTS)
def test_equals_pydensecrf(point: dict[str, float], normalization: str, engine: str) -> None:
    from pydensecrf import densecrf as oracle

    name = "NO_NORMALIZATION" if normalization == "none" else f"NORMALIZE_{normalization.upper()}"
    probabilities, image = scene(60, 80, 5)
    crf = oracle.DenseCRF2D(80, 60, 5)
    crf.setUnaryEnergy(np.ascontiguousarray(-probabilities[0].log().flatten(1).numpy()))
    crf.addPairwiseGaussian(sxy=point["theta_gamma"], compat=point["w_smoothness"], normalization=getattr(oracle, name))
    crf.addPairwiseBilateral(
        sxy=point["theta_alpha"],
        srgb=point["theta_beta"],
        rgbim=np.ascontiguousarray(image[0].permute(1, 2, 0).byte().numpy()),
        compat=point["w_appearance"],
        normalization=getattr(oracle, name),
    )
    expected = torch.from_numpy(np.array(crf.inference(10))).view(1, 5, 60, 80)
    marginals = dense_crf(probabilities, image, **point, normalization=normalization, engine=engine)
    torch.testing.assert_close(marginals, expected, atol=1e-4, rtol=0)
    assert (marginals.argmax(1) == expected.argmax(1)).all()
    assert (expected - probabilities).abs().max() > 0.5  # a CRF that does nothing would not pass


@pytest.mark.parametrize("point", POINTS)
def test_a_step_of_the_lattice_is_close_to_the_exact_sum(point: dict[str, float]) -> None:
    probabilities, image = scene(48, 72, 5)
    smooth = F.avg_pool2d(probabilities[0], 7, stride=1, padding=3, count_include_pad=False)
    steps = []
    for method in METHODS:
        terms = kernels(image[0], DenseMeanField(5, **point, method=method), torch.float32)
        steps.append(torch.stack([term.filter(smooth.flatten(1).t()).t().view(5, 48, 72) for term in terms]))
    appearance, smoothness = (steps[0] - steps[1]).abs()
    assert appearance.mean() < 8e-2 / 2
    assert smoothness.mean() < 1e-2 / 2
    # The lattice has no points to blur beyond the border of an image, where its error is larger.
    assert smoothness[:, 12:-12, 12:-12].max() < 2e-2
    assert (steps[1] - smooth).abs().amax((1, 2, 3)).min() > 0.05


def loops(
    p: np.ndarray, image: np.ndarray, iterations: int, mu: np.ndarray, weights: np.ndarray, normalization: str
) -> tuple[np.ndarray, list[float]]:
    """The model written out for one image of TINY's thetas: marginals (C, H, W) and free energies."""
    classes, height, width = p.shape
    pixels = list(product(range(height), range(width)))
    kernel = np.zeros((2, len(pixels), len(pixels)))
    for a, (y, x) in enumerate(pixels):
        for b, (v, u) in enumerate(pixels):
            far, tint = (y - v) ** 2 + (x - u) ** 2, ((image[:, y, x] - image[:, v, u]) ** 2).sum()
            kernel[0, a, b] = math.exp(-far / (2 * TINY["theta_alpha"] ** 2) - tint / (2 * TINY["theta_beta"] ** 2))
            kernel[1, a, b] = math.exp(-far / (2 * TINY["theta_gamma"] ** 2))
    for k in kernel:
        sums = k.sum(1)
        if normalization in ("before", "symmetric"):
            k /= sums[None] ** (0.5 if normalization == "symmetric" else 1)
        if normalization in ("after", "symmetric"):
            k /= sums[:, None] ** (0.5 if normalization == "symmetric" else 1)
    unary = -np.log(p.reshape(classes, -1))
    q = p.reshape(classes, -1).copy()
    energies = []
    for step in range(iterations + 1):
        cost, energy = np.zeros_like(q), 0.0
        for i in range(len(pixels)):
            for j in range(len(pixels)):
                for a in range(classes):
                    for b in range(classes):
                        pair = mu[a, b] * (weights[0, b] * kernel[0, i, j] + weights[1, b] * kernel[1, i, j])
                        cost[a, i] += pair * q[b, j]
                        energy += 0.5 * pair * q[a, i] * q[b, j]
        energies.append(energy + (q * unary).sum() + (q * np.log(q)).sum())
        if step < iterations:
            q = np.exp(-unary - cost)
            q /= q.sum(0)
    return q.reshape(p.shape), energies


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_exact_equals_loops(normalization: str, full: bool) -> None:
    p, image = torch.randn(1, 3, 3, 4).double().softmax(1), 255 * torch.rand(1, 3, 3, 4).double()
    mu = torch.randn(3, 3).double() if full else 1 - torch.eye(3).double()
    parameters: dict[str, Any] = dict(TINY)
    if full:
        parameters |= {"w_appearance": torch.rand(3), "w_smoothness": torch.rand(3), "compatibility": mu}
    weights = np.array([np.broadcast_to(np.asarray(parameters[w]), 3) for w in ("w_appearance", "w_smoothness")])
    marginals, energies = loops(p[0].numpy(), image[0].numpy(), 2, mu.numpy(), weights, normalization)
    found, found_energies = dense_crf(
        p, image, **parameters, iterations=2, normalization=normalization, method="exact", return_energy=True
    )
    assert found[0].numpy() == pytest.approx(marginals, abs=1e-6)
    assert found_energies.shape == (1, 3)
    assert found_energies[0].tolist() == pytest.approx(energies, rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_potts_is_a_compatibility(method: str, engine: str) -> None:
    p, image = scene(24, 36, 4)
    potts = 1 - torch.eye(4)
    found = dense_crf(p, image, **TINY, method=method, engine=engine, compatibility=potts)
    torch.testing.assert_close(found, dense_crf(p, image, **TINY, method=method, engine="torch"), atol=1e-5, rtol=0)


@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_weights_of_classes(engine: str) -> None:
    p, image = scene(24, 36, 4)
    weights = {"w_appearance": torch.rand(4), "w_smoothness": torch.rand(4)}
    mu = torch.randn(4, 4)
    found = dense_crf(p, image, **TINY | weights, compatibility=mu, engine=engine)
    double = dense_crf(p.double(), image, **TINY | weights, compatibility=mu)
    torch.testing.assert_close(found, double.float(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_marginals_and_their_energies(method: str) -> None:
    p, image = scene(24, 36, 4)
    q, energies = dense_crf(p, image, **POINTS[0], method=method, return_energy=True)
    torch.testing.assert_close(q, dense_crf(p, image, **POINTS[0], method=method, engine="torch"))
    torch.testing.assert_close(q.sum(1), torch.ones(1, 24, 36))
    assert energies.shape == (1, 11)
    assert energies[0, -1] < energies[0, 0]
    start, before = dense_crf(p, image, **POINTS[0], method=method, iterations=0, return_energy=True)
    torch.testing.assert_close(start, p)
    torch.testing.assert_close(before, energies[:, :1])


@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_batch_equals_images_one_by_one(engine: str) -> None:
    pairs = [scene(24, 36, 4) for _ in range(3)]
    p, images = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    together = dense_crf(p, images, **POINTS[0], engine=engine)
    torch.testing.assert_close(together, torch.cat([dense_crf(*pair, **POINTS[0], engine=engine) for pair in pairs]))
    _, energies = dense_crf(p, images, **POINTS[0], return_energy=True)
    assert energies.shape == (3, 11)


@pytest.mark.parametrize("engine", ["auto", "torch"])
@pytest.mark.parametrize(("height", "width", "classes"), [(1, 1, 3), (1, 7, 2), (9, 1, 40), (5, 6, 1)])
def test_odd_sizes(height: int, width: int, classes: int, engine: str) -> None:
    p = torch.randn(1, classes, height, width).softmax(1)
    q = dense_crf(p, 255 * torch.rand(1, 3, height, width), **POINTS[0], engine=engine)
    torch.testing.assert_close(q.sum(1), torch.ones(1, height, width))


def test_grey_image_equals_its_theta_in_rgb() -> None:
    p, image = scene(24, 36, 4)
    grey = image[:, :1]
    third = TINY | {"theta_beta": TINY["theta_beta"] * math.sqrt(3)}  # the same distance three times
    found = dense_crf(p, grey, **TINY, method="exact")
    expected = dense_crf(p, grey.expand(-1, 3, -1, -1), **third, method="exact")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_engines_agree_on_a_grey_image(normalization: str) -> None:
    p, image = scene(24, 36, 4)
    parameters = TINY | {"normalization": normalization}
    found, expected = (dense_crf(p, image[:, :1], **parameters, engine=engine) for engine in ("auto", "torch"))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_certain_probabilities_stay_finite(engine: str) -> None:
    p, image = scene(24, 36, 4)
    certain = F.one_hot(p.argmax(1), 4).permute(0, 3, 1, 2).float()
    q = dense_crf(certain, image, **POINTS[0], engine=engine)
    assert q.isfinite().all()
    torch.testing.assert_close(q, certain)  # 87 = -log of the smallest float32 outweighs 13 in all


def test_memory_that_held_nan_is_not_read() -> None:
    p, image = scene(24, 36, 4)
    expected = dense_crf(p, image, **POINTS[0], engine="torch")
    for _ in range(20):
        torch.full((24 * 36 * 8,), math.nan)  # what the next tensors of this size may find
        torch.testing.assert_close(dense_crf(p, image, **POINTS[0], engine="torch"), expected)


def test_autocast_leaves_the_crf_alone() -> None:
    p, image = scene(24, 36, 4)
    mu = torch.randn(4, 4)
    for method in METHODS:
        expected = dense_crf(p, image, **TINY, compatibility=mu, method=method, engine="torch")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = dense_crf(p, image, **TINY, compatibility=mu, method=method, engine="torch")
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name: str) -> None:
    p, image = scene(24, 36, 4)
    assert dense_crf(p, image, **PRESETS[name]).shape == p.shape


# The layer of CRF as RNN


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("method", METHODS)
def test_gradients(method: str, normalization: str) -> None:
    crf = DenseCRF(3, **TINY, iterations=2, method=method, normalization=normalization).double()
    image = 255 * torch.rand(1, 3, 2, 3)
    logits = torch.randn(1, 3, 2, 3, dtype=torch.float64, requires_grad=True)

    def marginals(logits: Tensor, w_appearance: Tensor, w_smoothness: Tensor, compatibility: Tensor) -> Tensor:
        parameters = {"w_appearance": w_appearance, "w_smoothness": w_smoothness, "compatibility": compatibility}
        result: Tensor = torch.func.functional_call(crf, parameters, (logits.softmax(1), image))
        return result

    assert torch.autograd.gradcheck(marginals, (logits, crf.w_appearance, crf.w_smoothness, crf.compatibility))


def test_gradients_of_energies_and_thetas() -> None:
    image = 255 * torch.rand(1, 3, 3, 4)
    logits = torch.randn(1, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    thetas = [torch.tensor(TINY[name], dtype=torch.float64, requires_grad=True) for name in TINY if "theta" in name]

    def run(logits: Tensor, alpha: Tensor, beta: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
        changed: dict[str, Any] = TINY | {"theta_alpha": alpha, "theta_beta": beta, "theta_gamma": gamma}
        q, energies = dense_crf(logits.softmax(1), image, **changed, iterations=2, method="exact", return_energy=True)
        return q, energies

    assert torch.autograd.gradcheck(run, (logits, *thetas))


# Bad input: `checks.py` has the rest


def test_bad_input_is_refused() -> None:
    p, image = scene(24, 36, 4)
    with pytest.raises(ValueError, match="resize"):
        dense_crf(p, image[..., :35], **TINY)
    with pytest.raises(ValueError, match="multiply by 255"):
        dense_crf(p, image / 255, **TINY)
    with pytest.raises(ValueError, match="NaN"):
        dense_crf(p * math.nan, image, **TINY)
    with pytest.raises(ValueError, match=r"softmax\(1\)"):
        dense_crf(p.log(), image, **TINY)
    with pytest.raises(ValueError, match="no side of 0"):
        dense_crf(p[..., :0], image[..., :0], **TINY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "grid"}, "method must be one of lattice, exact, got 'grid'"),
        ({"engine": "cuda"}, "engine must be one of auto, torch, c"),
        ({"normalization": "row"}, "normalization must be one of"),
        ({"theta_beta": 0.0}, "theta_beta must be more than 0"),
        ({"iterations": -1}, "iterations must be a whole number"),
        ({"compatibility": torch.ones(3, 3)}, r"compatibility must be a \(4, 4\) matrix"),
        ({"w_appearance": torch.ones(5)}, "w_appearance must be one number"),
    ],
)
@pytest.mark.parametrize("build", [dense_crf, DenseCRF])
def test_bad_parameters_are_refused(build: Callable[..., Any], change: dict[str, Any], message: str) -> None:
    arguments = scene(24, 36, 4) if build is dense_crf else (4,)
    with pytest.raises(ValueError, match=message):
        build(*arguments, **TINY | change)


def test_more_than_memory_is_refused_before_the_work() -> None:
    many = torch.full((1, 1, 1, 1), 1e-9).expand(1, 10**9, 64, 64)
    with pytest.raises(ValueError, match=r"1000000000 classes at 64 x 64 \(lattice\).* GiB .*fewer classes"):
        dense_crf(many, torch.zeros(1, 3, 64, 64), **TINY)
    large = torch.full((1, 1, 1, 1), 0.5).expand(1, 2, 1500, 2000)
    with pytest.raises(ValueError, match=r"1500 x 2000 .exact; 'lattice' takes far less. needs about .* GiB"):
        dense_crf(large, torch.zeros(1, 3, 1, 1).expand(1, 3, 1500, 2000), **TINY, method="exact")


def test_engine_says_what_it_cannot() -> None:
    p, image = scene(24, 36, 4)
    for arguments, changes, message in (
        ((p, image), {"method": "exact"}, "serves method 'lattice'"),
        ((p.double(), image), {}, "serves float32 on the CPU, not torch.float64"),
        ((p.requires_grad_(), image), {}, "serves inference, not gradients"),
        ((p.detach(), image), {"return_energy": True}, "serves marginals, not energies"),
    ):
        with pytest.raises(ValueError, match=message):
            dense_crf(*arguments, **TINY, **changes, engine="c++")


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SEGLAB_NO_COMPILER", "1")
    native._outcome.cache_clear()
    native._warn.cache_clear()
    yield
    native._outcome.cache_clear()


@pytest.mark.usefixtures("no_compiler")
def test_engine_without_a_compiler() -> None:
    p, image = scene(24, 36, 4)
    expected = dense_crf(p, image, **TINY, engine="torch")
    with pytest.warns(UserWarning, match="SEGLAB_NO_COMPILER"):
        assert torch.equal(dense_crf(p, image, **TINY), expected)
    with pytest.raises(ValueError, match="cannot serve: SEGLAB_NO_COMPILER is set"):
        dense_crf(p, image, **TINY, engine="c++")


def test_lattice_has_no_gradient_to_its_geometry() -> None:
    p, image = scene(24, 36, 4)
    theta = torch.tensor(3.0, requires_grad=True)
    with pytest.raises(ValueError, match=r"no gradients to theta_alpha, .* and images"):
        dense_crf(p, image, **TINY | {"theta_alpha": theta})
    with pytest.raises(ValueError, match=r"no gradients to theta_alpha, .* and images"):
        dense_crf(p, image.requires_grad_(), **TINY)


@pytest.mark.gpu
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("method", METHODS)
def test_gpu_equals_cpu(method: str, normalization: str) -> None:
    p, image = scene(48, 72, 5)
    for point in POINTS:
        expected = dense_crf(p, image, **point, method=method, normalization=normalization, engine="torch")
        found = dense_crf(p.cuda(), image.cuda(), **point, method=method, normalization=normalization)
        torch.testing.assert_close(found.cpu(), expected, atol=1e-4, rtol=0)


@pytest.mark.gpu
def test_gpu_gradients_equal_cpu() -> None:
    p, image = scene(24, 36, 4)
    gradients = []
    for device in ("cpu", "cuda"):
        crf = DenseCRF(4, **TINY).to(device)
        prior = p.to(device).clone().requires_grad_()
        (crf(prior, image.to(device)) * image.to(device)[:, :1]).sum().backward()
        gradients.append([prior.grad.cpu(), *(value.grad.cpu() for value in crf.parameters())])
    for cpu, gpu in zip(*gradients, strict=True):
        torch.testing.assert_close(gpu, cpu, atol=1e-3, rtol=1e-4)
