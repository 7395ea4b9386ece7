"""ConvCRF, Teichmann, Cipolla 2018, https://arxiv.org/abs/1805.04777

The fully connected CRF of `dense_crf.py` under one more assumption: pixels further apart than a window are independent
(Sec. 4). So a message is a sum over the window, which runs on any device and is exact, without a lattice.
Departs from the paper in
- the window, which may be a square too, as in the released code; the text has the Manhattan distance;
- the smoothness kernel, which can be learned offset by offset (`learn=("kernel",)`): the paper's position features are
  learned pixel by pixel, which fixes the image's size;
- the normalisation, which is that of the fully connected CRF, by sums over the window; the released code has none by
  default;
- the pixel itself, which the kernels include, as the code does.

Departs from the released code, with the paper, in
- the first iteration, which starts from the softmax of the logits; the code takes log-softmax for probabilities;
- the appearance kernel, which has a position term;
- the update, which adds the whole message to the logits; the code weighs both by w and 1 - w;
- the blocks of `blur`, which start in the upper left corner; the code centres what it pads. That differs for sides that
  blur does not divide, by up to 0.49 in a marginal on noise of 18 x 25 pixels, blur 4;
- "symmetric" sums, which are those of the blocks, not of the pixels (0.02).
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.components.choices import one_of
from lightning_modules.components.tracing import tracing
from lightning_modules.refinement import native
from lightning_modules.refinement.checks import (
    MAX_CLASSES,
    check_classes,
    check_finite,
    check_marginals,
    check_shapes,
    check_values,
    check_whole,
)
from lightning_modules.refinement.mean_field import MeanField, Normalization, takes
from lightning_modules.refinement.memory import check_memory
from lightning_modules.refinement.native.fused import infer_in_window
from lightning_modules.refinement.window import (
    AppearanceKernel,
    LocalSum,
    Offsets,
    depthwise,
    gaussian,
    half_window,
    offsets_within,
    table,
)

Shape = Literal["manhattan", "square"]
Part = Literal["weights", "thetas", "kernel", "compatibility"]
LEARNED = get_args(Part)
MAX_WINDOW = 1025  # pixels or blocks; who wants to see further has the fully connected CRF
MAX_BLUR = 1024

Filter = Callable[[Tensor], Tensor]  # (N, C, h, w) -> (N, C, h, w)
Thetas = tuple[Tensor, Tensor, Tensor]  # alpha, beta, gamma


@dataclass(frozen=True, kw_only=True, eq=False)
class WindowedMeanField(MeanField):
    """A `MeanField` whose pixels see no further than a window (Sec. 4).

    Args:
        window: side of the window in pixels, or in blocks of `blur`; odd
        shape: whether the pixels within (window - 1) / 2 by Manhattan distance count, or the whole square
        blur: messages pass at 1 / blur of the resolution (Sec. 4.2; the paper's experiments use 4), between means over
            blocks of blur x blur pixels
    """

    window: int = 11
    shape: Shape = "manhattan"
    blur: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("shape", self.shape, get_args(Shape))
        check_whole("window", self.window, 1, MAX_WINDOW)
        check_whole("blur", self.blur, 1, MAX_BLUR)
        if self.window % 2 == 0:
            raise ValueError(f"window must be odd, so that it has a centre, got {self.window}: take {self.window + 1}")


@takes(WindowedMeanField)
def conv_crf(probabilities: Tensor, images: Tensor, **parameters: Any) -> Tensor:
    """Marginals (N, C, H, W) of the CRF of `dense_crf` whose pixels see no further than a window.

    `probabilities` (N, C, H, W), `images` (N, 1 or 3, H, W) in 0..255; the `parameters` are those of
    `WindowedMeanField`. The engine "c++" serves float32 on the CPU without gradients; "auto" takes it there.

    ValueError for input that has no meaning, more memory than there is, or an engine that cannot serve; NonFiniteError,
    which is one, for probabilities or marginals that are NaN or infinite.
    """
    check_shapes(probabilities, images)
    crf = WindowedMeanField(probabilities.shape[1], **parameters)
    alpha, beta, gamma = (
        torch.as_tensor(theta, dtype=probabilities.dtype, device=probabilities.device)
        for theta in (crf.theta_alpha, crf.theta_beta, crf.theta_gamma)
    )
    return _mean_field(probabilities, images, crf, (alpha, beta, gamma))


class ConvCRF(nn.Module):
    """`conv_crf` whose parameters train: (N, C, H, W) probabilities, (N, 1 or 3, H, W) images in 0..255 -> marginals.

    The `parameters` are those of `WindowedMeanField`. `learn` names what trains:
    - "weights", one of each kernel for each class;
    - "thetas";
    - "kernel", the smoothness kernel as a table over the window, positive and symmetric, which starts at the Gaussian
      of theta_gamma and so takes its place;
    - "compatibility", which starts at the given matrix or Potts.
    """

    w_appearance: Tensor
    w_smoothness: Tensor
    log_theta_alpha: Tensor
    log_theta_beta: Tensor
    log_theta_gamma: Tensor
    log_kernel: Tensor | None
    compatibility: Tensor | None

    @takes(WindowedMeanField)
    def __init__(
        self, num_classes: int, *, learn: Collection[Part] = ("weights", "compatibility"), **parameters: Any
    ) -> None:
        super().__init__()
        check_whole("num_classes", num_classes, 1, MAX_CLASSES)
        crf = WindowedMeanField(num_classes, **parameters)
        if not isinstance(learn, list | tuple | set | frozenset) or not all(
            isinstance(part, str) and part in LEARNED for part in learn
        ):
            raise ValueError(f"learn must be a list of some of {', '.join(LEARNED)}, got {learn!r}")
        self.window, self.shape, self.blur, self.iterations = crf.window, crf.shape, crf.blur, crf.iterations
        self.normalization, self.engine = crf.normalization, crf.engine
        compatibility = crf.compatibility
        if compatibility is None and "compatibility" in learn:
            compatibility = 1 - torch.eye(num_classes)
        if compatibility is not None:
            compatibility = compatibility.to(torch.get_default_dtype())
        alpha, beta, gamma = (float(theta) for theta in (crf.theta_alpha, crf.theta_beta, crf.theta_gamma))
        log_kernel = None
        if "kernel" in learn:
            log_kernel = gaussian(half_window(crf.window, crf.shape), torch.tensor(gamma), crf.blur)

        def hold(name: str, value: Tensor | None, part: str) -> None:
            if value is not None and part in learn:
                setattr(self, name, nn.Parameter(value.detach().clone()))
            else:
                self.register_buffer(name, None if value is None else value.detach().clone())

        for name, weight in (("w_appearance", crf.w_appearance), ("w_smoothness", crf.w_smoothness)):
            numbers = torch.as_tensor(weight, dtype=torch.get_default_dtype())
            hold(name, numbers.expand(num_classes).clone(), "weights")
        # Logarithms, so that no step of an optimiser makes a width or a kernel negative.
        hold("log_theta_alpha", torch.tensor(math.log(alpha)), "thetas")
        hold("log_theta_beta", torch.tensor(math.log(beta)), "thetas")
        hold("log_kernel", log_kernel, "kernel")
        # A learned kernel leaves theta_gamma without a gradient, which distributed training does not forgive.
        hold("log_theta_gamma", torch.tensor(math.log(gamma)), "" if "kernel" in learn else "thetas")
        hold("compatibility", compatibility, "compatibility")

    def forward(self, probabilities: Tensor, images: Tensor) -> Tensor:
        # Only shapes are asked for, or what a pixel depends on: a window in each iteration
        if isinstance(probabilities, Tensor) and probabilities.is_meta and probabilities.ndim == 4:
            reach = self.iterations * (self.window // 2) * self.blur
            return F.max_pool2d(probabilities, 2 * reach + 1, stride=1, padding=reach)
        check_shapes(probabilities, images)
        check_classes(probabilities, len(self.w_appearance))
        alpha, beta, gamma = self.log_theta_alpha.exp(), self.log_theta_beta.exp(), self.log_theta_gamma.exp()
        crf = WindowedMeanField(  # learned ones may have gone astray
            len(self.w_appearance),
            w_appearance=self.w_appearance,
            theta_alpha=alpha,
            theta_beta=beta,
            w_smoothness=self.w_smoothness,
            theta_gamma=gamma,
            compatibility=self.compatibility,
            window=self.window,
            shape=self.shape,
            blur=self.blur,
            iterations=self.iterations,
            normalization=self.normalization,
            engine=self.engine,
        )
        if self.log_kernel is not None:
            check_finite("log_kernel", self.log_kernel)
        return _mean_field(probabilities, images, crf, (alpha, beta, gamma), self.log_kernel)


class _Problem(NamedTuple):
    """What an engine works on: images and kernels at 1 / blur of the resolution."""

    logs: Tensor  # (N, C, H, W), of the probabilities
    images: Tensor  # (N, 1 or 3, h, w)
    weights: list[Tensor]  # (C,), of the appearance and of the smoothness kernel
    compatibility: Tensor | None
    window: Offsets  # half of it, see `half_window`
    reach: list[int]  # which of these offsets join two pixels of this image
    log_kernel: Tensor  # logarithm of the smoothness kernel at each offset of the half window
    per_pixel: Tensor  # of the appearance kernel: what a squared distance and a squared difference are multiplied by
    per_level: Tensor

    @property
    def offsets(self) -> Offsets:
        return tuple(self.window[m] for m in self.reach)


def _mean_field(
    probabilities: Tensor, images: Tensor, crf: WindowedMeanField, thetas: Thetas, log_kernel: Tensor | None = None
) -> Tensor:
    """Marginals by the engine that can serve; a learned `log_kernel` over the half window replaces theta_gamma's."""
    alpha, beta, gamma = thetas
    parts = (probabilities, crf.w_appearance, crf.w_smoothness, crf.compatibility, alpha, beta)
    learning = torch.is_grad_enabled() and any(
        isinstance(part, Tensor) and part.requires_grad
        for part in (*parts, gamma if log_kernel is None else log_kernel)
    )
    _refuse(probabilities, images, crf, learning)
    logs = probabilities.clamp(min=torch.finfo(torch.float32).tiny).log()
    images = images.to(probabilities)
    if crf.blur > 1:
        images = _shrink(images, crf.blur)
    height, width = images.shape[2:]
    window = half_window(crf.window, crf.shape)
    if log_kernel is None:
        log_kernel = gaussian(window, gamma, crf.blur)
    per_pixel, per_level = (1 / (2 * theta.to(logs) ** 2) for theta in (alpha, beta))
    problem = _Problem(
        logs=logs,
        images=images,
        weights=[
            torch.as_tensor(weight, dtype=logs.dtype, device=logs.device).expand(logs.shape[1]).contiguous()
            for weight in (crf.w_appearance, crf.w_smoothness)
        ],
        compatibility=None if crf.compatibility is None else crf.compatibility.to(logs),
        window=window,
        reach=[m for m, (dy, dx) in enumerate(window) if dy < height and abs(dx) < width],
        log_kernel=log_kernel,
        per_pixel=per_pixel,
        per_level=per_level,
    )
    marginals = _serve(problem, crf, learning)
    return check_marginals(_iterate(problem, crf) if marginals is None else marginals)


def _refuse(probabilities: Tensor, images: Tensor, crf: WindowedMeanField, learning: bool) -> None:
    """ValueError before the work for what has no gradients, too little memory or no meaning."""
    if torch.is_grad_enabled() and images.requires_grad:
        raise ValueError("ConvCRF has no gradients to images: detach them")
    number, _, height, width = probabilities.shape
    coarse = -(-height // crf.blur), -(-width // crf.blur)
    # In torch those of all images are held, with their gradients; compiled, of one image up to four forms.
    copies = max(number * (4 if learning else 1), 2 if crf.normalization in ("symmetric", "none") else 4)
    offsets = offsets_within(crf.window, crf.shape, coarse)
    kernels = copies * offsets * math.prod(coarse) * probabilities.element_size()
    maps = 6 + (8 * crf.iterations if learning else 0)  # logs, marginals, messages and what is on the way
    needed = kernels + maps * probabilities.nbytes
    check_memory(needed, probabilities.device, "the window (a smaller one needs less) of ConvCRF")
    check_values(probabilities, images)


def _serve(problem: _Problem, crf: WindowedMeanField, learning: bool) -> Tensor | None:
    """The marginals of the C++ engine; None where torch is to compute. ValueError where it was asked for and cannot."""
    logs = problem.logs
    serves = logs.device.type == "cpu" and logs.dtype == torch.float32 and not learning and not tracing()
    if crf.engine == "c++" and not serves:
        raise ValueError(
            f"engine 'c++' serves float32 on the CPU without gradients or tracing, got {logs.dtype} on {logs.device}"
            f"{' with gradients' if learning else ''}{' while tracing' if tracing() else ''}: use engine='auto'"
        )
    if crf.engine == "c++" and (missing := native.reason("conv_crf")):
        raise ValueError(f"engine 'c++' is not there: {missing}")
    if crf.engine == "torch" or not serves:
        return None
    return infer_in_window(
        logs,
        problem.images,
        problem.offsets,
        problem.log_kernel.exp()[problem.reach],
        problem.weights,
        problem.compatibility,
        per_pixel=float(problem.per_pixel),
        per_level=float(problem.per_level),
        blur=crf.blur,
        iterations=crf.iterations,
        normalization=crf.normalization,
    )


def _iterate(problem: _Problem, crf: WindowedMeanField) -> Tensor:
    """Mean field in torch, on any device."""
    logs, offsets, blur = problem.logs, problem.offsets, crf.blur
    height, width = logs.shape[2:]
    with torch.autocast(logs.device.type, enabled=False):  # lest bfloat16 sum the window
        appearance = AppearanceKernel.apply(problem.images, problem.per_pixel * blur**2, problem.per_level, offsets)
        smoothness = table(problem.log_kernel.to(logs).exp(), problem.window)
        ones = torch.ones_like(problem.images[:, :1])
        filters = (
            _normalised(lambda values: LocalSum.apply(values, appearance, offsets), ones, crf.normalization),
            _normalised(lambda values: depthwise(values, smoothness), ones, crf.normalization),
        )
        q = logs.softmax(1)
        for _ in range(crf.iterations):
            values = q if blur == 1 else _shrink(q, blur)
            message = sum(
                (
                    weight[:, None, None] * kernel(values)
                    for weight, kernel in zip(problem.weights, filters, strict=True)
                ),
                start=torch.zeros((), dtype=logs.dtype, device=logs.device),
            )
            if blur > 1:
                message = F.interpolate(message, scale_factor=blur, mode="bilinear")[..., :height, :width]
            if problem.compatibility is not None:
                message = -torch.einsum("cd,ndhw->nchw", problem.compatibility, message)
            q = (logs + message).softmax(1)  # of Potts, what all classes share is left out: softmax is blind to it
    return q


def _shrink(maps: Tensor, blur: int) -> Tensor:
    """Means over blocks of blur x blur pixels; at the right and lower border, over what there is."""
    return F.avg_pool2d(maps, blur, ceil_mode=True, count_include_pad=False)


def _normalised(local_sum: Filter, ones: Tensor, normalization: Normalization) -> Filter:
    """The filter with each pixel's sum over the window taken out, as `normalization` says."""
    if normalization == "none":
        return local_sum
    total = local_sum(ones)
    if normalization == "symmetric":
        n = (total + 1e-20).rsqrt()
        return lambda values: n * local_sum(n * values)
    if normalization == "before":
        return lambda values: local_sum(values / (total + 1e-20))
    return lambda values: local_sum(values) / (total + 1e-20)
