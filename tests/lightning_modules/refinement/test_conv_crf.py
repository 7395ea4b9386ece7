"""ConvCRF against double loops over the pixels, its engines against each other, and its gradients."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.refinement import native
from lightning_modules.refinement.conv_crf import LEARNED, ConvCRF, conv_crf, half_window
from lightning_modules.refinement.dense_crf import dense_crf

NUMBERS: dict[str, Any] = {
    "w_appearance": 4.0,
    "theta_alpha": 3.0,
    "theta_beta": 40.0,
    "w_smoothness": 2.0,
    "theta_gamma": 1.5,
}


def problem(
    height: int, width: int, *, classes: int = 3, channels: int = 3, number: int = 1, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    probabilities = (2 * torch.randn(number, classes, height, width, dtype=dtype)).softmax(1)
    return probabilities, torch.randint(256, (number, channels, height, width)).to(dtype)


def needs_compiler() -> None:
    why = native.reason("conv_crf")
    if why:
        pytest.skip(f"no compiled kernel: {why}")


def kernels(image: Tensor, window: int, shape: str, blur: int = 1) -> list[Tensor]:
    """The appearance and the smoothness kernel (P, P) of one image (K, h, w), pixel by pixel."""
    height, width = image.shape[1:]
    places = list(itertools.product(range(height), range(width)))
    both = [torch.zeros(len(places), len(places), dtype=torch.float64) for _ in range(2)]
    for (i, (y, x)), (j, (v, u)) in itertools.product(enumerate(places), repeat=2):
        down, along = abs(y - v), abs(x - u)
        if (down + along if shape == "manhattan" else max(down, along)) > window // 2:
            continue
        distance = blur**2 * (down**2 + along**2)
        colour = float((image[:, y, x] - image[:, v, u]).square().sum())
        exponent = distance / (2 * NUMBERS["theta_alpha"] ** 2) + colour / (2 * NUMBERS["theta_beta"] ** 2)
        both[0][i, j] = torch.tensor(-exponent, dtype=torch.float64).exp()
        both[1][i, j] = torch.tensor(-distance / (2 * NUMBERS["theta_gamma"] ** 2), dtype=torch.float64).exp()
    return both


def normalised(kernel: Tensor, normalization: str) -> Tensor:
    total = kernel.sum(1)
    if normalization == "symmetric":
        return kernel / total.sqrt()[:, None] / total.sqrt()
    if normalization == "none":
        return kernel
    return kernel / (total if normalization == "before" else total[:, None])


def brute_force(
    probabilities: Tensor,
    images: Tensor,
    window: int,
    shape: str,
    normalization: str,
    *,
    weights: tuple[Tensor, Tensor] | None = None,
    compatibility: Tensor | None = None,
    iterations: int = 3,
) -> Tensor:
    """Mean field with matrices over all pairs of pixels, in float64."""
    classes = probabilities.shape[1]
    probabilities, images = probabilities.double(), images.double()
    if weights is None:
        weights = tuple(torch.full((classes,), NUMBERS[name]) for name in ("w_appearance", "w_smoothness"))
        assert weights is not None
    if compatibility is None:
        compatibility = 1 - torch.eye(classes)
    marginals = []
    for unary, image in zip(-probabilities.log().flatten(2), images, strict=True):
        both = [normalised(kernel, normalization) for kernel in kernels(image, window, shape)]
        q = (-unary).softmax(0)  # (C, P)
        for _ in range(iterations):
            message = sum(w.double()[:, None] * (q @ kernel.T) for w, kernel in zip(weights, both, strict=True))
            q = (-unary - compatibility.double() @ message).softmax(0)
        marginals.append(q.view(classes, *image.shape[1:]))
    return torch.stack(marginals)


@pytest.mark.parametrize("engine", ["torch", "c++"])
@pytest.mark.parametrize("normalization", ["symmetric", "before", "after", "none"])
@pytest.mark.parametrize("shape", ["manhattan", "square"])
def test_sums_over_the_window(shape: str, normalization: str, engine: str) -> None:
    if engine == "c++":
        needs_compiler()
    dtype = torch.float32 if engine == "c++" else torch.float64
    probabilities, images = problem(6, 9, number=2, dtype=dtype)
    settings = {"window": 5, "shape": shape, "normalization": normalization}
    marginals = conv_crf(probabilities, images, **NUMBERS, iterations=3, engine=engine, **settings)
    expected = brute_force(probabilities, images, **settings)
    torch.testing.assert_close(marginals.double(), expected, atol=1e-5 if engine == "c++" else 1e-12, rtol=0)


def test_shapes_of_the_window_differ() -> None:
    probabilities, images = problem(8, 8)
    manhattan, square = (conv_crf(probabilities, images, **NUMBERS, window=5, shape=s) for s in ("manhattan", "square"))
    assert (manhattan - square).abs().max() > 1e-3
    assert 2 * len(half_window(5, "manhattan")) - 1 == 13  # 1 + 3 + 5 + 3 + 1
    assert 2 * len(half_window(5, "square")) - 1 == 25


@pytest.mark.parametrize("engine", ["torch", "c++"])
def test_weights_and_compatibility_of_classes(engine: str) -> None:
    if engine == "c++":
        needs_compiler()
    probabilities, images = problem(7, 5, classes=4)
    weights = torch.rand(4) * 5, torch.rand(4) * 3
    compatibility = torch.rand(4, 4)  # neither symmetric nor 0 on its diagonal
    numbers = {**NUMBERS, "w_appearance": weights[0], "w_smoothness": weights[1]}
    settings = {"window": 7, "shape": "manhattan", "normalization": "symmetric", "compatibility": compatibility}
    marginals = conv_crf(probabilities, images, **numbers, iterations=3, engine=engine, **settings)
    expected = brute_force(probabilities, images, weights=weights, **settings)
    torch.testing.assert_close(marginals.double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("engine", ["torch", "c++"])
@pytest.mark.parametrize("normalization", ["symmetric", "before", "after", "none"])
def test_a_window_over_the_image_is_the_dense_crf(normalization: str, engine: str) -> None:
    if engine == "c++":
        needs_compiler()
    dtype = torch.float32 if engine == "c++" else torch.float64
    probabilities, images = problem(10, 13, classes=5, number=2, dtype=dtype)
    numbers = dict(NUMBERS)
    if normalization == "none":  # sums over 130 pixels, and float32 would be left with four digits after the point
        numbers |= {"w_appearance": 0.1, "w_smoothness": 0.1}
    same: dict[str, Any] = {**numbers, "iterations": 5, "normalization": normalization}
    marginals = conv_crf(probabilities, images, **same, window=25, shape="square", engine=engine)
    expected = dense_crf(probabilities, images, **same, method="exact", engine="torch")
    torch.testing.assert_close(marginals, expected, atol=1e-5 if engine == "c++" else 1e-12, rtol=0)


@pytest.mark.parametrize("blur", [2, 3])
def test_blur_passes_messages_between_blocks(blur: int) -> None:
    """7 x 10 pixels leave blocks that the image cuts: they count what is in it."""
    probabilities, images = problem(7, 10, dtype=torch.float64)
    small = torch.stack([block.mean((2, 3)) for block in blocks(images, blur)], 2).unflatten(2, (-1, -(-10 // blur)))
    both = [normalised(kernel, "symmetric") for kernel in kernels(small[0], 3, "square", blur)]
    q = probabilities
    for _ in range(2):
        coarse = torch.stack([block.mean((2, 3)) for block in blocks(q, blur)], 2)[0]
        message = NUMBERS["w_appearance"] * coarse @ both[0].T + NUMBERS["w_smoothness"] * coarse @ both[1].T
        message = message.view(1, 3, *small.shape[2:])
        message = F.interpolate(message, scale_factor=blur, mode="bilinear")[..., :7, :10]
        q = (probabilities.log() + message).softmax(1)
    settings = {**NUMBERS, "window": 3, "shape": "square", "iterations": 2, "blur": blur}
    torch.testing.assert_close(conv_crf(probabilities, images, **settings), q, atol=1e-12, rtol=0)


def blocks(maps: Tensor, size: int) -> list[Tensor]:
    height, width = maps.shape[2:]
    corners = itertools.product(range(0, height, size), range(0, width, size))
    return [maps[..., y : y + size, x : x + size] for y, x in corners]


@pytest.mark.parametrize("size", [(1, 1), (1, 17), (23, 2), (19, 33)])
@pytest.mark.parametrize("blur", [1, 2, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_engines_agree(channels: int, blur: int, size: tuple[int, int]) -> None:
    needs_compiler()
    probabilities, images = problem(*size, classes=11, channels=channels, number=2)
    varied = {**NUMBERS, "w_smoothness": torch.rand(11) * 4, "compatibility": torch.rand(11, 11)}
    for settings in (NUMBERS, varied):
        for normalization in ("symmetric", "before"):
            both = [
                conv_crf(probabilities, images, **settings, normalization=normalization, blur=blur, engine=engine)
                for engine in ("torch", "c++")
            ]
            torch.testing.assert_close(*both, atol=1e-5, rtol=0)


def test_threads_change_nothing() -> None:
    needs_compiler()
    probabilities, images = problem(37, 50, classes=6)
    one = conv_crf(probabilities, images, **NUMBERS, engine="c++")
    torch.set_num_threads(3)
    assert torch.equal(one, conv_crf(probabilities, images, **NUMBERS, engine="c++"))


def test_strips_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    probabilities, images = problem(12, 9, dtype=torch.float64)

    def gradient() -> Tensor:
        module = ConvCRF(3, **NUMBERS, window=7, learn=["thetas"]).double()
        (module(probabilities, images) ** 2).sum().backward()
        gradients = [parameter.grad for parameter in module.parameters()]
        return torch.stack([g for g in gradients if g is not None])

    whole = gradient()
    monkeypatch.setattr("lightning_modules.refinement.window.BLOCK", 3 * 9 * 2)  # two rows at a time
    torch.testing.assert_close(gradient(), whole)


def test_without_messages_marginals_are_the_probabilities() -> None:
    probabilities, images = problem(9, 9)
    silent = {**NUMBERS, "w_appearance": 0.0, "w_smoothness": 0.0}
    for engine in ("torch", "auto"):
        torch.testing.assert_close(
            conv_crf(probabilities, images, **NUMBERS, iterations=0, engine=engine), probabilities
        )
        torch.testing.assert_close(conv_crf(probabilities, images, **silent, engine=engine), probabilities)


def test_certain_pixels_stay_finite() -> None:
    _, images = problem(9, 9)
    certain = F.one_hot(torch.randint(3, (1, 9, 9)), 3).movedim(3, 1).float().requires_grad_()
    marginals = conv_crf(certain, images, **NUMBERS)
    marginals.square().sum().backward()
    assert certain.grad is not None and certain.grad.isfinite().all() and marginals.isfinite().all()


@pytest.mark.parametrize("blur", [1, 2])
@pytest.mark.parametrize("normalization", ["symmetric", "none"])
@pytest.mark.parametrize("learn", [("weights", "thetas", "compatibility"), ("kernel",)])
def test_gradients(learn: tuple[str, ...], normalization: str, blur: int) -> None:
    probabilities, images = problem(3, 4, channels=1, dtype=torch.float64)
    module = ConvCRF(
        3, **NUMBERS, window=3, shape="square", iterations=2, normalization=normalization, blur=blur, learn=learn
    )
    names = [name for name, _ in module.named_parameters()]
    values = [parameter.detach().double().requires_grad_() for parameter in module.parameters()]

    def marginals(logits: Tensor, *parameters: Tensor) -> Tensor:
        named = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(module.double(), named, (logits.softmax(1), images))

    assert torch.autograd.gradcheck(marginals, (probabilities.log().requires_grad_(), *values))


@pytest.mark.parametrize("learn", [(), *((part,) for part in LEARNED), LEARNED])
def test_what_is_learned_is_a_parameter_and_moves_the_loss(learn: tuple[str, ...]) -> None:
    """DistributedDataParallel waits for ever for a parameter without a gradient."""
    module = ConvCRF(3, **NUMBERS, window=5, learn=learn)
    expected = {
        "weights": {"w_appearance", "w_smoothness"},
        "thetas": {"log_theta_alpha", "log_theta_beta", "log_theta_gamma"},
        "kernel": {"log_kernel"},
        "compatibility": {"compatibility"},
    }
    names = set().union(*(expected[part] for part in learn))
    names -= {"log_theta_gamma"} if "kernel" in learn else set()
    assert {name for name, _ in module.named_parameters()} == names
    probabilities, images = problem(8, 9)
    module(probabilities, images)[:, 0].square().sum().backward() if learn else None
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())


@pytest.mark.parametrize("learn", [(), *((part,) for part in LEARNED), LEARNED])
def test_learning_starts_at_the_given_crf(learn: tuple[str, ...]) -> None:
    """One module takes images of any size, and its engines agree."""
    module = ConvCRF(3, **NUMBERS, window=5, learn=learn)
    for size in ((8, 9), (3, 15)):
        probabilities, images = problem(*size)
        expected = conv_crf(probabilities, images, **NUMBERS, window=5, engine="torch")
        torch.testing.assert_close(module(probabilities, images), expected, atol=1e-5, rtol=0)
        with torch.no_grad():
            torch.testing.assert_close(module(probabilities, images), expected, atol=1e-5, rtol=0)


def test_a_learned_kernel_serves_both_engines() -> None:
    needs_compiler()
    module = ConvCRF(3, **NUMBERS, window=5, shape="square", learn=LEARNED)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.rand_like(parameter)
        probabilities, images = problem(2, 9)  # the window is taller than the image
        module.engine = "c++"
        compiled = module(probabilities, images)
        module.engine = "torch"
        torch.testing.assert_close(module(probabilities, images), compiled, atol=1e-5, rtol=0)


def test_training_learns_which_classes_to_expect_together() -> None:
    """A label is noise that turns it into the next class, so a compatibility without symmetry undoes more of it."""
    truth = (torch.arange(12) // 4).expand(1, 12, 12)
    images = 100.0 * truth[:, None]
    noisy = F.one_hot((truth + (torch.rand(truth.shape) < 0.4)) % 3, 3).movedim(3, 1).float()
    probabilities = (2 * noisy).softmax(1)
    module = ConvCRF(3, **NUMBERS, window=5)
    optimizer = torch.optim.Adam(module.parameters(), 0.1)
    losses = []
    for _ in range(15):
        loss = F.nll_loss(module(probabilities, images).log(), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_no_window_is_kept_for_the_backward_pass() -> None:
    """What autograd holds is maps of the classes or of the kernel, never of both."""
    classes, window, height, width = 10, 11, 32, 32
    probabilities, images = problem(height, width, classes=classes)
    module = ConvCRF(classes, **NUMBERS, window=window, shape="square", learn=LEARNED)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        module(probabilities, images)
    assert max(sizes) == len(half_window(window, "square")) * height * width


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 4}, "window must be odd"),
        ({"window": 0}, "window must be a whole number of at least 1"),
        ({"blur": 0}, "blur must be"),
        ({"shape": "round"}, "shape must be one of manhattan, square"),
        ({"engine": "cuda"}, "engine must be one of"),
        ({"normalization": "both"}, "normalization must be one of"),
        ({"theta_gamma": 0.0}, "theta_gamma must be more than 0"),
        ({"iterations": -1}, "iterations must be"),
        ({"compatibility": torch.eye(2)}, "compatibility must be"),
    ],
)
def test_refuses_what_has_no_meaning(settings: dict[str, object], message: str) -> None:
    probabilities, images = problem(5, 5)
    with pytest.raises(ValueError, match=message):
        conv_crf(probabilities, images, **{**NUMBERS, **settings})
    with pytest.raises(ValueError, match=message):
        ConvCRF(3, **{**NUMBERS, **settings})


def test_refuses_bad_input() -> None:
    probabilities, images = problem(5, 5)
    with pytest.raises(ValueError, match="same number, height and width"):
        conv_crf(probabilities, images[..., :4], **NUMBERS)
    with pytest.raises(ValueError, match="multiply by 255"):
        conv_crf(probabilities, images / 255, **NUMBERS)
    with pytest.raises(ValueError, match="the 4 classes of this module, got 3"):
        ConvCRF(4, **NUMBERS)(probabilities, images)
    with pytest.raises(ValueError, match="learn must be a list of some of"):
        ConvCRF(3, **NUMBERS, learn=["weight"])
    with pytest.raises(ValueError, match=r"needs about .* GiB"):
        conv_crf(*problem(512, 512), **NUMBERS, window=601, shape="square")


def test_the_compiled_engine_says_what_it_cannot_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    probabilities, images = problem(5, 5)
    with pytest.raises(ValueError, match=r"'c\+\+' serves float32 on the CPU without gradients"):
        conv_crf(probabilities.double(), images, **NUMBERS, engine="c++")
    with pytest.raises(ValueError, match="with gradients"):
        ConvCRF(3, **NUMBERS, engine="c++")(probabilities, images)
    monkeypatch.setenv("SEGLAB_NO_COMPILER", "1")
    native._outcome.cache_clear()
    native._warn.cache_clear()
    try:
        with pytest.raises(ValueError, match="SEGLAB_NO_COMPILER"):
            conv_crf(probabilities, images, **NUMBERS, engine="c++")
        with pytest.warns(UserWarning, match="SEGLAB_NO_COMPILER"):
            served = conv_crf(probabilities, images, **NUMBERS)
        torch.testing.assert_close(served, conv_crf(probabilities, images, **NUMBERS, engine="torch"))
    finally:
        native._outcome.cache_clear()
        native._warn.cache_clear()


@pytest.mark.gpu
@pytest.mark.parametrize("blur", [1, 4])
def test_gpu_agrees_with_cpu(blur: int) -> None:
    probabilities, images = problem(61, 47, classes=21)
    on_cpu = conv_crf(probabilities, images, **NUMBERS, blur=blur)
    on_gpu = conv_crf(probabilities.cuda(), images.cuda(), **NUMBERS, blur=blur)
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, atol=1e-4, rtol=0)


def test_gradients_to_images_are_refused() -> None:
    probabilities, images = problem(5, 6)
    with pytest.raises(ValueError, match="no gradients to images: detach"):
        conv_crf(probabilities, images.requires_grad_(), **NUMBERS, window=3)


def test_bfloat16_autocast_changes_nothing() -> None:
    probabilities, images = problem(12, 14)
    costs: dict[str, Any] = {**NUMBERS, "window": 5, "compatibility": 1 - torch.eye(3), "engine": "torch"}
    expected = conv_crf(probabilities, images, **costs)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(conv_crf(probabilities, images, **costs), expected)
