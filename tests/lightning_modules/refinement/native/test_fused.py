import os

import numpy as np
import pytest
import torch

from lightning_modules.refinement import native
from lightning_modules.refinement.dense_crf import dense_crf
from lightning_modules.refinement.mean_field import MeanField
from lightning_modules.refinement.native import fused

pytestmark = pytest.mark.skipif(native._compiler() is None, reason="needs a C++ compiler (c++, g++, clang++)")

WIDE = {"w_appearance": 10.0, "theta_alpha": 80.0, "theta_beta": 13.0, "w_smoothness": 3.0, "theta_gamma": 3.0}
NARROW = {"w_appearance": 4.0, "theta_alpha": 67.0, "theta_beta": 3.0, "w_smoothness": 3.0, "theta_gamma": 1.0}


def _problem(classes, height, width, *, number=1, channels=3, seed=0):
    """Smooth noise as the image and as the unaries: neighbours share simplices, and others do not."""
    generator = torch.Generator().manual_seed(seed)

    def smooth(channels, cells):
        coarse = torch.randn(number, channels, height // cells + 2, width // cells + 2, generator=generator)
        return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")

    images = (128 + 60 * smooth(channels, 12) + 4 * smooth(channels, 1)).clamp(0, 255).round()
    return (2 * smooth(classes, 6) + 0.3 * smooth(classes, 1)).contiguous(), images


def infer(unary, images, *, threads=None, **parameters):
    return fused.infer(unary, images, MeanField(unary.shape[1], **parameters), threads=threads)


def _infer(unary, images, *, iterations=10, compatibility=None, normalization="symmetric", threads=1, **parameters):
    marginals = infer(
        unary,
        images,
        iterations=iterations,
        compatibility=compatibility,
        normalization=normalization,
        threads=threads,
        **parameters,
    )
    assert marginals is not None
    return marginals


def _torch(unary, images, *, iterations=10, compatibility=None, normalization="symmetric", **parameters):
    return dense_crf(
        (-unary).softmax(1),
        images,
        iterations=iterations,
        compatibility=compatibility,
        normalization=normalization,
        engine="torch",
        **parameters,
    )


@pytest.mark.extra("oracle", "pydensecrf")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("normalization", ["symmetric", "before", "after", "none"])
@pytest.mark.parametrize("parameters", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("classes", [5, 21, 35])
def test_marginals_are_those_of_the_authors_code(classes, parameters, normalization, threads):
    from pydensecrf import densecrf

    kinds = {
        "symmetric": densecrf.NORMALIZE_SYMMETRIC,
        "before": densecrf.NORMALIZE_BEFORE,
        "after": densecrf.NORMALIZE_AFTER,
        "none": densecrf.NO_NORMALIZATION,
    }
    if normalization == "none":  # sums of these kernels reach hundreds: the softmax would blow up float32's last bits
        parameters = parameters | {name: parameters[name] / 100 for name in ("w_appearance", "w_smoothness")}
    height, width = 60, 82  # 4920 pixels: a multiple of 4, without which the authors' code adds pixels of its own
    unary, images = _problem(classes, height, width)
    crf = densecrf.DenseCRF2D(width, height, classes)
    crf.setUnaryEnergy(np.ascontiguousarray(unary[0].flatten(1).numpy()))
    options = {"kernel": densecrf.CONST_KERNEL, "normalization": kinds[normalization]}
    crf.addPairwiseGaussian(sxy=parameters["theta_gamma"], compat=parameters["w_smoothness"], **options)
    crf.addPairwiseBilateral(
        sxy=parameters["theta_alpha"],
        srgb=parameters["theta_beta"],
        rgbim=np.ascontiguousarray(images[0].permute(1, 2, 0).numpy().astype(np.uint8)),
        compat=parameters["w_appearance"],
        **options,
    )
    expected = torch.from_numpy(np.array(crf.inference(10))).view(1, classes, height, width)
    marginals = _infer(unary, images, normalization=normalization, threads=threads, **parameters)
    torch.testing.assert_close(marginals, expected, atol=1e-4, rtol=0)
    assert (marginals.argmax(1) == expected.argmax(1)).all()


@pytest.mark.parametrize("classes", [1, 2, 8, 9, 16, 33, 64, 70])
def test_any_number_of_classes(classes):
    unary, images = _problem(classes, 33, 35)
    torch.testing.assert_close(
        _infer(unary, images, **WIDE, threads=2), _torch(unary, images, **WIDE), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("normalization", ["symmetric", "before", "after", "none"])
@pytest.mark.parametrize("weights", ["numbers", "negative", "by class"])
@pytest.mark.parametrize("full", [False, True], ids=["potts", "full"])
def test_class_weights_and_a_full_compatibility(full, weights, normalization):
    unary, images = _problem(11, 33, 35)
    generator = torch.Generator().manual_seed(1)
    compatibility = torch.randn(11, 11, generator=generator) if full else None
    parameters = (
        NARROW
        | {
            "numbers": {},
            "negative": {"w_appearance": -2.0},
            "by class": {name: 3 * torch.rand(11, generator=generator) for name in ("w_appearance", "w_smoothness")},
        }[weights]
    )
    options = {"compatibility": compatibility, "normalization": normalization, "iterations": 3, **parameters}
    torch.testing.assert_close(
        _infer(unary, images, threads=2, **options), _torch(unary, images, **options), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 3), (32, 32), (31, 65)])
@pytest.mark.parametrize("channels", [1, 3])
def test_small_grey_and_batched_images(size, channels):
    unary, images = _problem(4, *size, number=2, channels=channels)
    torch.testing.assert_close(
        _infer(unary, images, threads=2, **WIDE), _torch(unary, images, **WIDE), atol=1e-4, rtol=0
    )


def test_no_iterations_or_no_weights_are_the_softmax():
    unary, images = _problem(5, 20, 24)
    expected = (-unary).softmax(1)
    torch.testing.assert_close(_infer(unary, images, iterations=0, **WIDE), expected)
    off = WIDE | {"w_appearance": 0.0, "w_smoothness": 0.0}
    torch.testing.assert_close(_infer(unary, images, **off), expected)


def test_messages_too_large_for_an_exponential_do_not_overflow():
    unary, images = _problem(5, 40, 40)
    heavy = WIDE | {"w_appearance": 500.0}
    marginals = _infer(unary, images, **heavy)
    torch.testing.assert_close(marginals.sum(1), torch.ones(1, 40, 40))
    assert (marginals.argmax(1) == _torch(unary, images, **heavy).argmax(1)).float().mean() > 0.99


def test_certain_unaries_stay_finite():
    unary, images = _problem(5, 40, 40)
    unary = torch.where(unary == unary.amin(1, keepdim=True), 0.0, 87.3)  # -log of float32's smallest number
    marginals = _infer(unary, images, **WIDE)
    torch.testing.assert_close(marginals.sum(1), torch.ones(1, 40, 40))


def test_the_same_number_of_threads_gives_the_same_bits():
    unary, images = _problem(21, 70, 90)
    for threads in (1, 2, 3):
        first = _infer(unary, images, threads=threads, **NARROW)
        assert all(torch.equal(first, _infer(unary, images, threads=threads, **NARROW)) for _ in range(5))


@pytest.mark.parametrize("threads", [3, 5, 64])
def test_more_threads_than_tiles_or_cores(threads):
    unary, images = _problem(6, 100, 70)
    one = _infer(unary, images, threads=1, **NARROW)
    torch.testing.assert_close(_infer(unary, images, threads=threads, **NARROW), one, atol=1e-5, rtol=0)


def test_deviations_too_small_for_the_keys_are_left_to_the_torch_engine():
    unary, images = _problem(3, 20, 24)
    tiny = WIDE | {"theta_alpha": 1e-3, "theta_beta": 1e-3}
    assert infer(unary, images, iterations=1, compatibility=None, normalization="symmetric", **tiny) is None


def test_too_much_memory_is_refused_before_any_work(monkeypatch):
    unary, images = _problem(3, 20, 24)
    monkeypatch.setattr("lightning_modules.refinement.native.fused.free_bytes", lambda device: 1000)
    monkeypatch.setattr("lightning_modules.refinement.memory.free_bytes", lambda device: 10**6)
    with pytest.raises((ValueError, MemoryError), match="fewer classes or a smaller image"):
        _infer(unary, images, **WIDE)


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads memory from /proc")
def test_memory_is_given_back():
    unary, images = _problem(8, 64, 64)

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    for _ in range(20):
        _infer(unary, images, iterations=1, threads=2, **NARROW)
    before = resident()
    for _ in range(200):
        _infer(unary, images, iterations=1, threads=2, **NARROW)
    assert resident() - before < 200 * 64 * 64 * 4  # one array of a float a pixel kept by each call
