"""Arguments of the refinements of every kind: what they compute sums to 1, and what has no meaning is refused by
name."""

import math
import random
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_modules.crf_as_rnn import CRFasRNN
from lightning_modules.refinement import native
from lightning_modules.refinement.conv_crf import ConvCRF, conv_crf
from lightning_modules.refinement.dense_crf import DenseCRF, dense_crf
from lightning_modules.refinement.soft_segmentation import soft_segmentation
from tests.fuzz.mutate import refused

NAME = "crf"
torch.set_num_threads(1)
for kernel in ("dense_crf", "conv_crf"):
    native.library(kernel)  # compiles for seconds, once

NUMBERS = {"w_appearance": 4.0, "theta_alpha": 20.0, "theta_beta": 9.0, "w_smoothness": 3.0, "theta_gamma": 2.0}
WINDOW = {"window": 5, "shape": "manhattan", "blur": 1}
SOFT = {"layers": 2, "segments": 3, "eigenvectors": 4, "superpixels": 6, "seed": 0}


def _layer(kind: Callable[..., Any], probabilities: Any, images: Any, **settings: Any) -> Any:
    classes = settings.pop("num_classes", 3)
    layer = kind(classes, **settings)
    return layer.train(settings.get("iterations") != 3)(probabilities, images)


def _rnn(kind: str, probabilities: Any, images: Any, **settings: Any) -> Any:
    network = CRFasRNN(3, 3, network="unet", network_options={"width": 1, "depth": 1}, crf=kind, crf_options=settings)
    return network.crf(probabilities, images) if network.crf else probabilities


TARGETS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "dense torch": (
        partial(dense_crf, engine="torch"),
        {"iterations": 2, "compatibility": None, "return_energy": False},
    ),
    "dense exact": (
        partial(dense_crf, method="exact"),
        {"iterations": 2, "compatibility": None, "normalization": "none"},
    ),
    "dense c++": (
        partial(dense_crf, engine="auto"),
        {"iterations": 2, "compatibility": None, "normalization": "after"},
    ),
    "dense": (dense_crf, {"iterations": 2, "method": "lattice", "engine": "auto", "normalization": "before"}),
    "conv torch": (partial(conv_crf, engine="torch"), WINDOW | {"iterations": 2, "normalization": "after"}),
    "conv c++": (partial(conv_crf, engine="auto"), WINDOW | {"iterations": 2, "compatibility": None}),
    "conv": (conv_crf, WINDOW | {"engine": "auto", "normalization": "symmetric"}),
    "DenseCRF": (
        partial(_layer, DenseCRF),
        {
            "num_classes": 3,
            "iterations": 2,
            "test_iterations": 2,
            "method": "lattice",
            "engine": "auto",
            "compatibility": None,
        },
    ),
    "ConvCRF": (
        partial(_layer, ConvCRF),
        WINDOW | {"num_classes": 3, "iterations": 2, "learn": ["weights"], "engine": "auto", "compatibility": None},
    ),
    "CRF as RNN": (partial(_rnn, "dense"), {"iterations": 2, "compatibility": None}),
    "CRF as RNN, conv": (partial(_rnn, "conv"), WINDOW | {"iterations": 2}),
}


def _tensors(rng: random.Random) -> Tensor:
    shape = rng.choice(
        [(), (1,), (3,), (2,), (3, 3), (2, 3), (1, 3, 5, 6), (1, 3, 4, 7), (0,), (3, 0), (1, 1, 5, 6), (5, 6)]
    )
    values = torch.rand(shape, generator=torch.Generator().manual_seed(rng.randrange(2**32)))
    if rng.random() < 0.3:
        values = values * rng.choice([255.0, -1.0, 1e38, math.nan, math.inf, 0.0, 1e-30])
    kinds = ["float32"] * 4 + ["float64", "float16", "bfloat16", "int64", "int32", "uint8", "int8", "bool", "complex64"]
    values = values.to(getattr(torch, rng.choice([*kinds, "uint16", "uint64", "float8_e4m3fn", "complex128"])))
    way = rng.randrange(12)
    if way == 0:
        return values.to("meta")
    if way == 1 and values.dtype in (torch.float32, torch.float64):
        return values.to_sparse()
    if way == 2 and values.is_floating_point():
        return values.clone().requires_grad_()
    if way == 3 and values.ndim > 1:
        return values.transpose(-1, -2)
    if way == 4 and values.dtype == torch.float32 and values.numel():
        return torch.quantize_per_tensor(values.nan_to_num(0, 1, 1), 0.1, 0, torch.quint8)
    if way == 5 and values.ndim == 2 and values.dtype == torch.float32:
        return torch.nested.nested_tensor([values[0], values[0]])
    return values


def _anything(rng: random.Random) -> Any:
    numbers = [0, 0.0, -0.0, 1, 2, 3, 5, -1, 0.5, 1e-300, 1e-13, 1e-11, 1e-3, 1e3, 1e30, 3.4e38, 3.5e38, 1e300, -1e300]
    numbers += [
        math.nan,
        math.inf,
        -math.inf,
        2**31 - 1 + 1,
        2**32 + 3,
        2**63,
        10**30,
        10**400,
        -(2**31),
        99999,
        True,
        False,
    ]
    others = [
        None,
        "x",
        "",
        "5",
        b"5",
        [],
        [1.0],
        [1.0, 2.0, 3.0],
        (),
        (2.0,),
        {},
        {"a": 1},
        set(),
        object(),
        int,
        len,
        1j,
    ]
    others += [
        np.float64(2),
        np.float32(2),
        np.int64(2),
        np.bool_(True),
        np.array(2.0),
        np.ones(3),
        np.ones((3, 3)),
        Fraction(1, 2),
    ]
    others += [
        "exact",
        "lattice",
        "torch",
        "c++",
        "auto",
        "none",
        "before",
        "after",
        "square",
        ["thetas"],
        ["kernel"],
        float,
    ]
    return rng.choice([lambda: rng.choice(numbers), lambda: rng.choice(others), lambda: _tensors(rng)])()


def _softly(rng: random.Random) -> str:
    """`soft_segmentation`, whose valid inputs take a tenth of a second: nearly all have something wrong."""
    noise = np.random.default_rng(rng.randrange(2**32))
    arguments: dict[str, Any] = {
        "image": noise.integers(0, 255, (12, 13, 3)),
        "maps": [noise.random((4, 5, 6))],
        **SOFT,
    }
    names = rng.sample(list(arguments), rng.choice([1, 1, 2]))
    for name in names:
        arguments[name] = _anything(rng)
        if name == "image" and rng.random() < 0.5:
            arguments[name] = noise.random(rng.choice([(0, 0), (2, 2, 3), (5, 5, 3), (12, 13), (12, 13, 4), (12,)]))
        if name == "maps" and rng.random() < 0.5:
            arguments[name] = [arguments[name]]
    try:
        found = soft_segmentation(arguments.pop("image"), arguments.pop("maps"), **arguments)
    except (TypeError, ValueError) as error:
        return refused(error, "pip install", *names)  # scikit-image is an extra
    assert np.allclose(found.alphas.sum(2), 1), arguments
    return "read"


def one(rng: random.Random, folder: Path) -> str:
    if rng.random() < 0.1:
        return _softly(rng)
    target, settings = TARGETS[rng.choice(list(TARGETS))]
    (height, width), number = rng.choice([(5, 6), (1, 1), (1, 9), (7, 1), (4, 33)]), rng.choice([1, 1, 2])
    generator = torch.Generator().manual_seed(rng.randrange(2**32))
    arguments: dict[str, Any] = {
        "probabilities": torch.randn(number, 3, height, width, generator=generator).softmax(1),
        "images": torch.randint(256, (number, 3, height, width), generator=generator).float(),
        **NUMBERS,
        **settings,
    }
    names = rng.sample(list(arguments), rng.choice([0, 1, 1, 1, 2, 3]))
    for name in names:
        arguments[name] = _anything(rng)
        if "iterations" in name and isinstance(arguments[name], int) and 99 < arguments[name] < 2**31:
            arguments[name] = 99  # as many as asked for are done, however long that takes
        if name in ("probabilities", "images") and rng.random() < 0.3:
            arguments[name] = torch.rand(number, 3, height, width, generator=generator) * rng.choice([1, 255])
    before = {name: value.clone() for name, value in arguments.items() if type(value) is Tensor and not value.is_sparse}
    try:
        with torch.set_grad_enabled(rng.random() < 0.3):
            found = target(arguments.pop("probabilities"), arguments.pop("images"), **arguments)
    except (TypeError, ValueError) as error:
        # Two arguments that do not fit each other: the message may name either, and how many classes there are.
        also = ["probabilities"] * ("num_classes" in names) + ["num_classes", "layer"] * ("probabilities" in names)
        return refused(error, *names, *also)
    marginals = found[0] if isinstance(found, tuple) else found
    if marginals.is_meta:  # a layer asked for shapes alone
        return "read"
    assert torch.allclose(marginals.sum(1), torch.ones(()).to(marginals), atol=1e-3), (names, arguments)
    for name, value in before.items():
        if not value.is_meta and name in arguments:
            assert torch.equal(value.nan_to_num(), arguments[name].nan_to_num()), f"{name} was changed"
    return "read"
