import math
from functools import partial

import pytest
import torch
from torch import Tensor

from lightning_modules.components.errors import NonFiniteError
from lightning_modules.refinement import native, post_process
from lightning_modules.refinement.checks import check_inputs, check_memory, check_parameters
from lightning_modules.refinement.conv_crf import ConvCRF, conv_crf
from lightning_modules.refinement.dense_crf import PRESETS, DenseCRF, dense_crf

VALID = {
    "w_appearance": 4.0,
    "theta_alpha": 67.0,
    "theta_beta": 3.0,
    "w_smoothness": 3.0,
    "theta_gamma": 1.0,
    "iterations": 10,
    "compatibility": None,
    "normalization": "symmetric",
}


def inputs(channels: int = 3) -> tuple[Tensor, Tensor]:
    return torch.randn(2, 4, 5, 6).softmax(1), torch.randint(256, (2, channels, 5, 6)).float()


@pytest.mark.parametrize("channels", [1, 3])
def test_probabilities_and_grey_levels_pass(channels: int) -> None:
    probabilities, images = inputs(channels)
    check_inputs(probabilities, images)
    check_inputs(probabilities.double(), images.byte())
    check_inputs(probabilities, torch.zeros_like(images))  # black
    check_inputs(probabilities, images.clamp(max=1))  # nearly black, in whole grey levels


@pytest.mark.parametrize("size", [(2, 3, 6, 5), (2, 3, 5, 7), (1, 3, 5, 6)])
def test_different_sizes_are_named(size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(2, 4, 5, 6\) and \(.*resize"):
        check_inputs(inputs()[0], torch.zeros(size))


@pytest.mark.parametrize("shape", [(0, 4, 5, 6), (2, 0, 5, 6), (2, 4, 0, 6), (2, 4, 5, 0), (4, 5, 6)])
def test_empty_or_flat_probabilities_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="probabilities must be"):
        check_inputs(torch.zeros(shape), inputs()[1])


def test_empty_images_and_other_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="images must be"):
        check_inputs(inputs()[0], torch.zeros(2, 3, 0, 6))
    with pytest.raises(ValueError, match="1 or 3 channels, got 4"):
        check_inputs(inputs()[0], torch.zeros(2, 4, 5, 6))


@pytest.mark.parametrize("value", [-0.5, 255.5, math.nan, math.inf])
def test_grey_levels_out_of_range_are_refused(value: float) -> None:
    probabilities, images = inputs()
    images[1, 2, 3, 4] = value
    with pytest.raises(ValueError, match=r"0\.\.255"):
        check_inputs(probabilities, images)


def test_images_in_zero_to_one_are_refused() -> None:
    probabilities, images = inputs()
    with pytest.raises(ValueError, match="multiply by 255"):
        check_inputs(probabilities, images / 255)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_probabilities_that_are_not_finite_are_refused(value: float) -> None:
    probabilities, images = inputs()
    probabilities[1, 2, 3, 4] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        check_inputs(probabilities, images)


def test_nan_logits_are_refused() -> None:
    logits, images = torch.randn(2, 4, 5, 6), inputs()[1]
    logits[0, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        check_inputs(logits.softmax(1), images)


CRFS = {
    "dense torch": partial(dense_crf, engine="torch"),
    "dense c++": partial(dense_crf, engine="c++"),
    "dense exact": partial(dense_crf, method="exact"),
    "conv torch": partial(conv_crf, engine="torch"),
    "conv c++": partial(conv_crf, engine="c++"),
    "dense layer": lambda p, images, **settings: DenseCRF(4, **settings)(p, images),
    "conv layer": lambda p, images, **settings: ConvCRF(4, **settings)(p, images),
}
WEIGHTS = {name: VALID[name] for name in VALID if name not in ("iterations", "compatibility", "normalization")}


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("crf", CRFS)
def test_every_engine_refuses_probabilities_that_are_not_finite(crf: str, value: float) -> None:
    _skip_without_compiler(crf)
    probabilities, images = inputs()
    probabilities[1, 2, 3, 4] = value
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        CRFS[crf](probabilities, images, **WEIGHTS)


@pytest.mark.parametrize("normalization", ["symmetric", "none"])
@pytest.mark.parametrize("crf", CRFS)
def test_every_engine_refuses_to_return_marginals_that_overflowed(crf: str, normalization: str) -> None:
    _skip_without_compiler(crf)
    probabilities, images = inputs()
    high = WEIGHTS | {"w_appearance": 3e38, "w_smoothness": 3e38, "normalization": normalization}
    with pytest.raises(NonFiniteError, match=r"marginals sum to .* in place of 1, .* lower w_appearance"):
        CRFS[crf](probabilities, images, **high)
    with pytest.raises(ValueError, match=r"w_appearance must be finite in float32, got 1e\+300"):
        CRFS[crf](probabilities, images, **WEIGHTS | {"w_appearance": 1e300})


def _skip_without_compiler(crf: str) -> None:
    if "c++" in crf and (reason := native.reason(f"{crf.split()[0]}_crf")):
        pytest.skip(reason)


def test_logits_in_place_of_probabilities_are_refused() -> None:
    with pytest.raises(ValueError, match=r"softmax\(1\)"):
        check_inputs(torch.randn(2, 4, 5, 6), inputs()[1])
    with pytest.raises(ValueError, match=r"softmax\(1\)"):
        check_inputs(torch.randn(2, 4, 5, 6).sigmoid(), inputs()[1])
    with pytest.raises(ValueError, match=r"softmax\(1\)"):
        check_inputs(torch.tensor([1.5, -0.5]).view(1, 2, 1, 1).expand(1, 2, 5, 6), inputs()[1][:1])  # sums to 1


def test_types_are_refused() -> None:
    probabilities, images = inputs()
    with pytest.raises(ValueError, match="float32 or float64"):
        check_inputs(probabilities.bfloat16(), images)
    with pytest.raises(ValueError, match="integers or floats"):
        check_inputs(probabilities, images > 0)


@pytest.mark.parametrize("name", ["theta_alpha", "theta_beta", "theta_gamma"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_thetas_must_be_positive(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be more than 0"):
        check_parameters(4, **VALID | {name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("iterations", -1),
        ("iterations", 2.5),
        ("iterations", True),
        ("normalization", "sym"),
        ("w_appearance", math.nan),
        ("w_smoothness", torch.ones(3)),
        ("compatibility", torch.ones(3, 4)),
        ("compatibility", torch.full((4, 4), math.inf)),
    ],
)
def test_other_parameters_are_checked(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        check_parameters(4, **VALID | {name: value})
    check_parameters(4, **VALID)


def test_memory_is_compared_with_what_is_free() -> None:
    check_memory(2**20, torch.device("cpu"), "a small picture")
    with pytest.raises(ValueError, match=r"a huge picture needs about 1,056.0 GiB on cpu, which has .* GiB free"):
        check_memory(2**40 + 2**35, torch.device("cpu"), "a huge picture")


def test_post_process_refines_in_whole_grey_levels() -> None:
    probabilities, images = inputs()
    refined = post_process("dense", **PRESETS["pydensecrf"])(probabilities, images / 255)
    torch.testing.assert_close(refined, dense_crf(probabilities, images, **PRESETS["pydensecrf"]))


def test_post_process_refuses_what_the_crf_does_not_take() -> None:
    with pytest.raises(ValueError, match="kind must be one of dense, conv"):
        post_process("sparse")
    with pytest.raises(TypeError, match="theta_gama"):
        post_process("dense", **PRESETS["pydensecrf"], theta_gama=1.0)
    with pytest.raises(TypeError, match="w_appearance"):
        post_process("dense")
    with pytest.raises(ValueError, match="return_energy"):
        post_process("dense", **PRESETS["pydensecrf"], return_energy=True)
