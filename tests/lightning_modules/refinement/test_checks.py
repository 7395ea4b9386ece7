import math
from collections.abc import Callable
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_modules.components.errors import NonFiniteError
from lightning_modules.refinement import conv_crf as conv
from lightning_modules.refinement import native, post_process
from lightning_modules.refinement.checks import check_shapes, check_values
from lightning_modules.refinement.conv_crf import ConvCRF, conv_crf
from lightning_modules.refinement.dense_crf import PRESETS, DenseCRF, dense_crf
from lightning_modules.refinement.mean_field import MeanField
from lightning_modules.refinement.memory import check_memory
from lightning_modules.refinement.window import offsets_within

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


def check_inputs(probabilities: Tensor, images: Tensor) -> None:
    """What every CRF does before it works."""
    check_shapes(probabilities, images)
    check_values(probabilities, images)


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


MISUSE = {
    "str": "4.0",
    "None": None,
    "list": [4.0, 4.0, 4.0, 4.0],
    "array": np.ones(4),
    "bool": True,
    "complex": 1j,
    "fraction": Fraction(1, 2),
    "meta": torch.ones(4, device="meta"),
    "sparse": torch.ones(4).to_sparse(),
    "complex tensor": torch.ones(4, dtype=torch.complex64),
    "bool tensor": torch.ones(4, dtype=torch.bool),
    "shape": torch.ones(3),
    "large": 1e300,
    "larger": 10**400,
    "large tensor": torch.tensor(1e300, dtype=torch.float64),
}


@pytest.mark.parametrize("misuse", MISUSE)
@pytest.mark.parametrize("crf", CRFS)
def test_every_engine_refuses_what_is_no_number_by_name(crf: str, misuse: str) -> None:
    _skip_without_compiler(crf)
    for name in WEIGHTS:
        with pytest.raises((TypeError, ValueError), match=rf"^{name} must"):
            CRFS[crf](*inputs(), **WEIGHTS | {name: MISUSE[misuse]})


@pytest.mark.parametrize(
    "matrix",
    [
        np.zeros((4, 4)),
        [[0.0] * 4] * 4,
        "potts",
        0.5,
        torch.zeros(4, 4).to_sparse(),
        torch.zeros(4, 4, device="meta"),
        torch.zeros(4, 4, dtype=torch.complex64),
        torch.zeros(4),
        torch.full((4, 4), 1e300, dtype=torch.float64),
        torch.full((4, 4), math.nan),
    ],
    ids=str,
)
@pytest.mark.parametrize("crf", CRFS)
def test_every_engine_refuses_a_compatibility_that_is_no_matrix(crf: str, matrix: object) -> None:
    _skip_without_compiler(crf)
    with pytest.raises((TypeError, ValueError), match=r"^compatibility must"):
        CRFS[crf](*inputs(), **WEIGHTS, compatibility=matrix)


@pytest.mark.parametrize("name", ["probabilities", "images"])
@pytest.mark.parametrize("crf", CRFS)
def test_every_engine_refuses_inputs_that_are_no_tensors(crf: str, name: str) -> None:
    _skip_without_compiler(crf)
    good = dict(zip(("probabilities", "images"), inputs(), strict=True))
    bad = [
        good[name].numpy(),
        good[name].tolist(),
        None,
        "x",
        1.0,
        good[name].to_sparse(),
        good[name].to(torch.complex64),
    ]
    meta = good[name].to("meta")
    for value in [*bad, *([meta] if "layer" not in crf or name == "images" else [])]:  # layers then say shapes alone
        with pytest.raises((TypeError, ValueError), match=rf"^{name} must"):
            CRFS[crf](*(good | {name: value}).values(), **WEIGHTS)


@pytest.mark.parametrize(
    "value", [2**31, 2**32 + 3, -1, True, 2.0, "2", None, [2], torch.tensor(2), np.int64(2)], ids=repr
)
@pytest.mark.parametrize("crf", CRFS)
def test_every_engine_refuses_iterations_that_a_c_int_does_not_hold(crf: str, value: object) -> None:
    _skip_without_compiler(crf)
    with pytest.raises(
        ValueError, match=r"^iterations must be a whole number of at least 0 and at most 2147483647, got"
    ):
        CRFS[crf](*inputs(), **WEIGHTS, iterations=value)
    if crf == "dense layer":
        with pytest.raises(ValueError, match=r"^test_iterations must be a whole number"):
            CRFS[crf](*inputs(), **WEIGHTS, test_iterations=value)


@pytest.mark.parametrize("name", ["window", "blur"])
@pytest.mark.parametrize("value", [99999, 2**31 + 1, 10**20 + 1, 0, -1, True, 3.0, "3", None, [3]], ids=repr)
@pytest.mark.parametrize("crf", [crf for crf in CRFS if "conv" in crf])
def test_absurd_windows_are_refused_before_offsets_are_made(
    monkeypatch: pytest.MonkeyPatch, crf: str, value: object, name: str
) -> None:
    _skip_without_compiler(crf)
    monkeypatch.setattr(conv, "half_window", lambda *_: pytest.fail("made offsets"))
    with pytest.raises(ValueError, match=rf"^{name} must be a whole number of at least 1 and at most 102"):
        CRFS[crf](*inputs(), **WEIGHTS, **{name: value})


@pytest.mark.parametrize("shape", ["square", "manhattan"])
@pytest.mark.parametrize("window", [1, 3, 5, 9, 31])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (6, 1), (4, 3), (9, 40)])
def test_offsets_are_counted_without_making_them(shape: str, window: int, size: tuple[int, int]) -> None:
    inside = [(dy, dx) for dy, dx in conv.half_window(window, shape) if dy < size[0] and abs(dx) < size[1]]
    assert offsets_within(window, shape, size) == len(inside)


def test_too_much_memory_is_refused_before_offsets_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    probabilities, images = torch.full((1, 2, 300, 300), 0.5), torch.zeros(1, 3, 300, 300)
    monkeypatch.setattr(conv, "half_window", lambda *_: pytest.fail("made offsets"))
    for crf in (conv_crf, lambda *args, **settings: ConvCRF(2, **settings)(*args)):
        with pytest.raises(ValueError, match=r"the window .* needs about .* GiB"):
            crf(probabilities, images, **WEIGHTS, window=1025, shape="square")


@pytest.mark.parametrize("crf", CRFS)
def test_layers_and_functions_refuse_words_that_are_none_of_theirs(crf: str) -> None:
    _skip_without_compiler(crf)
    for name in (
        "normalization",
        *(["engine"] if "layer" in crf else []),
        *(["shape"] if "conv" in crf else ["method"]),
    ):
        if crf == "dense exact" and name == "method":
            continue
        for value in (None, 3, ["none"], np.array(["none", "after"]), torch.ones(2), "sideways"):
            with pytest.raises(ValueError, match=rf"^{name} must be one of"):
                CRFS[crf](*inputs(), **WEIGHTS, **{name: value})


@pytest.mark.parametrize("kind", [DenseCRF, ConvCRF])
def test_layers_refuse_other_numbers_of_classes(kind: Callable[..., torch.nn.Module]) -> None:
    for number in (0, -1, 2.0, "3", None, True, 10**9):
        with pytest.raises(ValueError, match=r"^num_classes must be a whole number"):
            kind(number, **WEIGHTS)
    with pytest.raises(ValueError, match=r"^probabilities must have the 3 classes of this module, got 4"):
        kind(3, **WEIGHTS)(*inputs())


@pytest.mark.parametrize("kind", [DenseCRF, ConvCRF])
def test_layers_tell_shapes_of_maps_alone(kind: Callable[..., torch.nn.Module]) -> None:
    probabilities, images = (values.to("meta") for values in inputs())
    assert kind(4, **WEIGHTS)(probabilities, images).shape == probabilities.shape
    with pytest.raises(ValueError, match=r"^probabilities must"):
        kind(4, **WEIGHTS)(probabilities[0, 0], images)


@pytest.mark.parametrize("learn", ["weights", None, 3, [["weights"]], ["everything"], {"weights": 1}], ids=repr)
def test_what_is_learned_is_a_list_of_names(learn: object) -> None:
    with pytest.raises(ValueError, match=r"^learn must be a list of some of"):
        ConvCRF(3, **WEIGHTS, learn=learn)


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
        MeanField(4, **VALID | {name: value})


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
        MeanField(4, **VALID | {name: value})
    MeanField(4, **VALID)


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
