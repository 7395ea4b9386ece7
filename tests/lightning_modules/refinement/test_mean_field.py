"""The parameters of the CRFs are declared in one place, and every CRF takes them."""

import ast
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import torch

from lightning_modules import refinement
from lightning_modules.crf_as_rnn import check_options
from lightning_modules.refinement.conv_crf import ConvCRF, WindowedMeanField, conv_crf
from lightning_modules.refinement.dense_crf import PRESETS, DenseCRF, DenseMeanField, dense_crf
from lightning_modules.refinement.mean_field import MeanField
from lightning_modules.settings import keywords as declared_keywords

NUMBERS = {"w_appearance": 4, "theta_alpha": 67, "theta_beta": 3, "w_smoothness": 3.0, "theta_gamma": 1}


def keywords(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(function).parameters.values()
    return {parameter.name: parameter for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


@pytest.mark.parametrize(
    ("crf", "parameters", "more"),
    [
        (dense_crf, DenseMeanField, {"return_energy"}),
        (DenseCRF, DenseMeanField, {"test_iterations"}),
        (conv_crf, WindowedMeanField, set()),
        (ConvCRF, WindowedMeanField, {"learn"}),
    ],
)
def test_every_crf_takes_the_parameters_by_name(
    crf: Callable[..., Any], parameters: type[MeanField], more: set[str]
) -> None:
    assert set(keywords(crf)) == set(keywords(parameters)) | more
    assert not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(crf).parameters.values())
    changed = {"iterations"} if crf is DenseCRF else set()
    same = set(keywords(parameters)) - changed
    assert {name: keywords(crf)[name] for name in same} == {name: keywords(parameters)[name] for name in same}


def test_a_layer_runs_fewer_iterations_in_training() -> None:
    assert [keywords(crf)["iterations"].default for crf in (dense_crf, DenseCRF, conv_crf, ConvCRF)] == [10, 5, 5, 5]
    assert DenseCRF(3, **PRESETS["pydensecrf"]).iterations == 5


def test_no_other_file_declares_a_parameter_again() -> None:
    names = set(keywords(MeanField)) - {"iterations", "compatibility", "normalization", "engine"}
    for path in sorted(Path(refinement.__path__[0]).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                declared = {argument.arg for argument in [*node.args.args, *node.args.kwonlyargs]}
                assert not declared & names, f"{path.name}: {node.name} takes {declared & names}: hand it a MeanField"


def test_whole_numbers_become_floats_and_the_object_stays_as_it_is() -> None:
    crf = MeanField(3, **NUMBERS)
    assert isinstance(crf.w_appearance, float) and isinstance(crf.theta_gamma, float)
    with pytest.raises(AttributeError):
        crf.theta_alpha = 5.0  # type: ignore[misc]


@pytest.mark.parametrize("parameters", [DenseMeanField, WindowedMeanField])
def test_a_closed_set_takes_its_choices_alone(parameters: type[MeanField]) -> None:
    closed = {name: get_args(p.annotation) for name, p in keywords(parameters).items() if get_origin(p.annotation)}
    closed = {name: choices for name, choices in closed.items() if all(isinstance(c, str) for c in choices)}
    assert {"normalization", "engine"} < set(closed)
    for name, choices in closed.items():
        for choice in choices:
            assert getattr(parameters(3, **NUMBERS, **{name: choice}), name) == choice
        with pytest.raises(ValueError, match=f"{name} must be one of .*{choices[-1].replace('+', '.')}, got 'other'"):
            parameters(3, **NUMBERS, **{name: "other"})


def test_a_misspelt_parameter_is_named() -> None:
    p, images = torch.full((1, 2, 3, 3), 0.5), torch.zeros(1, 3, 3, 3)
    for crf in (lambda **given: dense_crf(p, images, **given), lambda **given: ConvCRF(2, **given)):
        with pytest.raises(TypeError, match="theta_gama"):
            crf(**NUMBERS, theta_gama=1.0)


@pytest.mark.parametrize("kind", [DenseCRF, ConvCRF])
def test_a_network_with_a_crf_knows_its_arguments(kind: type[torch.nn.Module]) -> None:
    assert list(declared_keywords(kind)) == list(keywords(kind))
    check_options("crf_options", dict(NUMBERS), kind)
    with pytest.raises(ValueError, match=r"must be arguments of .*CRF, w_appearance, .*, got theta_gama"):
        check_options("crf_options", {"theta_gama": 1.0}, kind)


@pytest.mark.parametrize(
    ("name", "value"), [("iterations", 1), ("window", 3), ("shape", "square"), ("blur", 2), ("normalization", "none")]
)
def test_a_layer_does_what_its_attributes_say(name: str, value: object) -> None:
    torch.manual_seed(0)
    probabilities, images = torch.rand(1, 3, 12, 12).softmax(1), 255 * torch.rand(1, 3, 12, 12)
    given: dict[str, Any] = {**PRESETS["deeplab_v2"], "window": 5, "iterations": 3}
    layer, other = ConvCRF(3, **given), ConvCRF(3, **given | {name: value})
    before = layer(probabilities, images)
    setattr(layer, name, value)
    after = layer(probabilities, images)
    assert not torch.equal(before, after) and torch.equal(after, other(probabilities, images))
