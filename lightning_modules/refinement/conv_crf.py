"""ConvCRF, Teichmann, Cipolla 2018, https://arxiv.org/abs/1805.04777

The fully connected CRF of `dense_crf.py` under one more assumption: pixels further apart than a window are independent
(Sec. 4). So a message is a sum over the window, which runs on any device and is exact, without a lattice.
Departs from the paper in that the window may be a square too, which its released code uses where the text has the
Manhattan distance; that the smoothness kernel can be learned offset by offset (`learn=("kernel",)`), in place of position
features learned pixel by pixel, which fix the image's size; that kernels are normalised as in the fully connected CRF, by
sums over the window (the released code leaves them as they are by default); and that the kernels include the pixel
itself, as the code does.
Departs from the released code, with the paper, in that the first iteration starts from the softmax of the logits, where
the code takes log-softmax for probabilities; that the appearance kernel has a position term; that an update
adds the whole message to the logits, where the code weighs both by w and 1 - w; that the blocks of `blur` start in the
upper left corner, where the code centres what it pads, which differs for sides that blur does not divide (by up to 0.49
in a marginal on noise of 18 x 25 pixels, blur 4); and that "symmetric" sums are those of the blocks, not of the pixels (0.02).
"""

import ctypes
import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lightning_modules.refinement import native
from lightning_modules.refinement.checks import (
    MAX_CLASSES,
    NORMALIZATIONS,
    as_float,
    check_choice,
    check_classes,
    check_finite,
    check_marginals,
    check_memory,
    check_parameters,
    check_positive,
    check_shapes,
    check_values,
    check_whole,
    tracing,
)

SHAPES = ("manhattan", "square")
ENGINES = ("auto", "torch", "c++")
LEARNED = ("weights", "thetas", "kernel", "compatibility")
MAX_WINDOW = 1025  # pixels or blocks; who wants to see further has the fully connected CRF
MAX_BLUR = 1024
BLOCK = 2**19  # numbers of a strip of rows that the CPU sums up at a time: fewer cost calls, more leave its cache

Number = float | Tensor
Offsets = tuple[tuple[int, int], ...]  # (dy, dx)
Filter = Callable[[Tensor], Tensor]  # (N, C, h, w) -> (N, C, h, w)


def conv_crf(
    probabilities: Tensor,
    images: Tensor,
    *,
    w_appearance: Number,
    theta_alpha: Number,
    theta_beta: Number,
    w_smoothness: Number,
    theta_gamma: Number,
    window: int = 11,
    shape: str = "manhattan",
    iterations: int = 5,
    compatibility: Tensor | None = None,
    normalization: str = "symmetric",
    blur: int = 1,
    engine: str = "auto",
) -> Tensor:
    """Marginals (N, C, H, W) of the CRF of `dense_crf` whose pixels see no further than a window.

    `probabilities` (N, C, H, W), `images` (N, 1 or 3, H, W) in 0..255; weights, thetas (standard deviations in pixels
    and grey levels), `compatibility` and `normalization` as in `dense_crf`. `window`: its side in pixels, odd; its
    pixels are those within (window - 1) / 2 by Manhattan distance, or the whole "square". `blur`: messages pass at
    1 / blur of the resolution (Sec. 4.2; the paper's experiments use 4), between means over blocks of blur x blur pixels.
    The window then counts blocks. `engine` "c++" serves float32 on the CPU without gradients; "auto" takes it there.

    ValueError for input that has no meaning, more memory than there is, or an engine that cannot serve; NonFiniteError,
    which is one, for probabilities or marginals that are NaN or infinite.
    """
    check_shapes(probabilities, images)
    check_parameters(
        probabilities.shape[1],
        w_appearance=w_appearance,
        theta_alpha=theta_alpha,
        theta_beta=theta_beta,
        w_smoothness=w_smoothness,
        theta_gamma=theta_gamma,
        iterations=iterations,
        compatibility=compatibility,
        normalization=normalization,
    )
    _check_window(window, shape, blur)
    check_choice("engine", engine, ENGINES)
    alpha, beta, gamma = (
        torch.as_tensor(as_float(theta), dtype=probabilities.dtype, device=probabilities.device)
        for theta in (theta_alpha, theta_beta, theta_gamma)
    )
    return _mean_field(
        probabilities,
        images,
        w_appearance=as_float(w_appearance),
        theta_alpha=alpha,
        theta_beta=beta,
        w_smoothness=as_float(w_smoothness),
        theta_gamma=gamma,
        log_kernel=None,
        window=window,
        shape=shape,
        iterations=iterations,
        compatibility=compatibility,
        normalization=normalization,
        blur=blur,
        engine=engine,
    )


class ConvCRF(nn.Module):
    """`conv_crf` whose parameters train: (N, C, H, W) probabilities, (N, 1 or 3, H, W) images in 0..255 -> marginals.

    `learn` names what does: "weights", one of each kernel for each class; "thetas"; "kernel", the smoothness kernel as
    a table over the window, positive and symmetric, which starts at the Gaussian of theta_gamma and so takes its
    place; "compatibility", which starts at the given matrix or Potts. The other arguments are those of `conv_crf`.
    """

    w_appearance: Tensor
    w_smoothness: Tensor
    log_theta_alpha: Tensor
    log_theta_beta: Tensor
    log_theta_gamma: Tensor
    log_kernel: Tensor | None
    compatibility: Tensor | None

    def __init__(
        self,
        num_classes: int,
        *,
        w_appearance: Number,
        theta_alpha: float,
        theta_beta: float,
        w_smoothness: Number,
        theta_gamma: float,
        window: int = 11,
        shape: str = "manhattan",
        iterations: int = 5,
        compatibility: Tensor | None = None,
        normalization: str = "symmetric",
        blur: int = 1,
        engine: str = "auto",
        learn: Collection[str] = ("weights", "compatibility"),
    ) -> None:
        super().__init__()
        check_whole("num_classes", num_classes, 1, MAX_CLASSES)
        check_parameters(
            num_classes,
            w_appearance=w_appearance,
            theta_alpha=theta_alpha,
            theta_beta=theta_beta,
            w_smoothness=w_smoothness,
            theta_gamma=theta_gamma,
            iterations=iterations,
            compatibility=compatibility,
            normalization=normalization,
        )
        _check_window(window, shape, blur)
        check_choice("engine", engine, ENGINES)
        if not isinstance(learn, list | tuple | set | frozenset) or not all(
            isinstance(part, str) and part in LEARNED for part in learn
        ):
            raise ValueError(f"learn must be a list of some of {', '.join(LEARNED)}, got {learn!r}")
        self.window, self.shape, self.iterations = window, shape, iterations
        self.normalization, self.blur, self.engine = normalization, blur, engine
        if compatibility is None and "compatibility" in learn:
            compatibility = 1 - torch.eye(num_classes)
        if compatibility is not None:
            compatibility = compatibility.to(torch.get_default_dtype())
        theta_alpha, theta_beta, theta_gamma = (float(theta) for theta in (theta_alpha, theta_beta, theta_gamma))
        log_kernel = None
        if "kernel" in learn:
            log_kernel = _gaussian(half_window(window, shape), torch.tensor(theta_gamma), blur)

        def hold(name: str, value: Tensor | None, part: str) -> None:
            if value is not None and part in learn:
                setattr(self, name, nn.Parameter(value.detach().clone()))
            else:
                self.register_buffer(name, None if value is None else value.detach().clone())

        for name, weight in (("w_appearance", w_appearance), ("w_smoothness", w_smoothness)):
            hold(
                name,
                torch.as_tensor(as_float(weight), dtype=torch.get_default_dtype()).expand(num_classes).clone(),
                "weights",
            )
        # Logarithms, so that no step of an optimiser makes a width or a kernel negative.
        hold("log_theta_alpha", torch.tensor(math.log(theta_alpha)), "thetas")
        hold("log_theta_beta", torch.tensor(math.log(theta_beta)), "thetas")
        hold("log_kernel", log_kernel, "kernel")
        # A learned kernel leaves theta_gamma without a gradient, which distributed training does not forgive.
        hold("log_theta_gamma", torch.tensor(math.log(theta_gamma)), "" if "kernel" in learn else "thetas")
        hold("compatibility", compatibility, "compatibility")

    def forward(self, probabilities: Tensor, images: Tensor) -> Tensor:
        # Only shapes are asked for, or what a pixel depends on: a window in each iteration
        if isinstance(probabilities, Tensor) and probabilities.is_meta and probabilities.ndim == 4:
            reach = self.iterations * (self.window // 2) * self.blur
            return F.max_pool2d(probabilities, 2 * reach + 1, stride=1, padding=reach)
        check_shapes(probabilities, images)
        check_classes(probabilities, len(self.w_appearance))
        thetas = {name: getattr(self, f"log_{name}").exp() for name in ("theta_alpha", "theta_beta", "theta_gamma")}
        check_positive(**thetas)  # learned ones may have gone astray
        for name in ("w_appearance", "w_smoothness", "log_kernel", "compatibility"):
            if (value := getattr(self, name)) is not None:
                check_finite(name, value)
        return _mean_field(
            probabilities,
            images,
            w_appearance=self.w_appearance,
            theta_alpha=thetas["theta_alpha"],
            theta_beta=thetas["theta_beta"],
            w_smoothness=self.w_smoothness,
            theta_gamma=thetas["theta_gamma"],
            log_kernel=self.log_kernel,
            window=self.window,
            shape=self.shape,
            iterations=self.iterations,
            compatibility=self.compatibility,
            normalization=self.normalization,
            blur=self.blur,
            engine=self.engine,
        )


def half_window(window: int, shape: str) -> Offsets:
    """The centre and those offsets below it, or right of it in its row: k(i, i + d) = k(i + d, i), so -d follows."""
    radius = window // 2
    return tuple(
        (dy, dx)
        for dy in range(radius + 1)
        for dx in range(-radius if dy else 0, radius + 1)
        if shape == "square" or dy + abs(dx) <= radius
    )


def _offsets_within(window: int, shape: str, size: tuple[int, int]) -> int:
    """How many of the `half_window` join two pixels of an image of this size, without making them."""
    radius, (height, width) = window // 2, size
    count = min(radius, width - 1) + 1
    for dy in range(1, min(radius, height - 1) + 1):
        count += 2 * min(radius if shape == "square" else radius - dy, width - 1) + 1
    return count


def _gaussian(offsets: Offsets, theta: Tensor, blur: int) -> Tensor:
    """Logarithm of the smoothness kernel at each offset; a step at 1 / blur of the resolution is blur pixels."""
    distances = torch.tensor([dy**2 + dx**2 for dy, dx in offsets], device=theta.device)
    return -(blur**2) * distances / (2 * theta**2)


def _check_window(window: int, shape: str, blur: int) -> None:
    check_choice("shape", shape, SHAPES)
    check_whole("window", window, 1, MAX_WINDOW)
    check_whole("blur", blur, 1, MAX_BLUR)
    if window % 2 == 0:
        raise ValueError(f"window must be odd, so that it has a centre, got {window}: take {window + 1}")


def _mean_field(
    probabilities: Tensor,
    images: Tensor,
    *,
    w_appearance: Number,
    theta_alpha: Tensor,
    theta_beta: Tensor,
    w_smoothness: Number,
    theta_gamma: Tensor,
    log_kernel: Tensor | None,
    window: int,
    shape: str,
    iterations: int,
    compatibility: Tensor | None,
    normalization: str,
    blur: int,
    engine: str,
) -> Tensor:
    if torch.is_grad_enabled() and images.requires_grad:
        raise ValueError("ConvCRF has no gradients to images: detach them")
    number, classes, height, width = probabilities.shape
    coarse = -(-height // blur), -(-width // blur)
    learning = torch.is_grad_enabled() and any(
        isinstance(value, Tensor) and value.requires_grad
        for value in (
            *(probabilities, w_appearance, theta_alpha, theta_beta, w_smoothness, compatibility),
            theta_gamma if log_kernel is None else log_kernel,
        )
    )
    # In torch those of all images are held, with their gradients; compiled, of one image up to four forms.
    copies = max(number * (4 if learning else 1), 2 if normalization in ("symmetric", "none") else 4)
    kernels = copies * _offsets_within(window, shape, coarse) * math.prod(coarse) * probabilities.element_size()
    maps = 6 + (8 * iterations if learning else 0)  # logs, marginals, messages and what is on the way
    needed = kernels + maps * probabilities.nbytes
    check_memory(needed, probabilities.device, "the window (a smaller one needs less) of ConvCRF")
    every = half_window(window, shape)
    reach = [m for m, (dy, dx) in enumerate(every) if dy < coarse[0] and abs(dx) < coarse[1]]
    offsets = tuple(every[m] for m in reach)  # those that join two pixels of this image
    if log_kernel is None:
        log_kernel = _gaussian(every, theta_gamma, blur)
    check_values(probabilities, images)
    images = images.to(probabilities)
    if blur > 1:
        images = _shrink(images, blur)
    logs = probabilities.clamp(min=torch.finfo(torch.float32).tiny).log()

    serves = logs.device.type == "cpu" and logs.dtype == torch.float32 and not learning and not tracing()
    if engine == "c++" and not serves:
        raise ValueError(
            f"engine 'c++' serves float32 on the CPU without gradients or tracing, got {logs.dtype} on {logs.device}"
            f"{' with gradients' if learning else ''}{' while tracing' if tracing() else ''}: use engine='auto'"
        )
    weights = [
        torch.as_tensor(weight, dtype=logs.dtype, device=logs.device).expand(classes).contiguous()
        for weight in (w_appearance, w_smoothness)
    ]
    if compatibility is not None:
        compatibility = compatibility.to(logs)
    per_pixel, per_level = (1 / (2 * theta.to(logs) ** 2) for theta in (theta_alpha, theta_beta))
    if engine == "c++" and (missing := native.reason("conv_crf")):
        raise ValueError(f"engine 'c++' is not there: {missing}")
    if serves and engine != "torch":
        library = native.library("conv_crf")
        if library is not None:
            smoothness = log_kernel.exp()[reach]
            scalars = float(per_pixel), float(per_level), blur, iterations, normalization
            found = _compiled(library, logs, images, offsets, smoothness, weights, compatibility, *scalars)
            return check_marginals(found)

    with torch.autocast(logs.device.type, enabled=False):  # lest bfloat16 sum the window
        appearance = _AppearanceKernel.apply(images, per_pixel * blur**2, per_level, offsets)
        table = _table(log_kernel.to(logs).exp(), every)
        one = torch.ones_like(images[:, :1])
        filters = (
            _normalised(lambda values: _LocalSum.apply(values, appearance, offsets), one, normalization),
            _normalised(lambda values: _depthwise(values, table), one, normalization),
        )
        q = logs.softmax(1)
        for _ in range(iterations):
            values = q if blur == 1 else _shrink(q, blur)
            message = sum(
                (
                    weight[:, None, None] * one_filter(values)
                    for weight, one_filter in zip(weights, filters, strict=True)
                ),
                start=torch.zeros((), dtype=logs.dtype, device=logs.device),
            )
            if blur > 1:
                message = F.interpolate(message, scale_factor=blur, mode="bilinear")[..., :height, :width]
            if compatibility is not None:
                message = -torch.einsum("cd,ndhw->nchw", compatibility, message)
            q = (logs + message).softmax(1)  # of Potts, what all classes share is left out: softmax is blind to it
    return check_marginals(q)


def _shrink(maps: Tensor, blur: int) -> Tensor:
    """Means over blocks of blur x blur pixels; at the right and lower border, over what there is."""
    return F.avg_pool2d(maps, blur, ceil_mode=True, count_include_pad=False)


def _normalised(local_sum: Filter, one: Tensor, normalization: str) -> Filter:
    """The filter with each pixel's sum over the window taken out, as `normalization` says."""
    if normalization == "none":
        return local_sum
    total = local_sum(one)
    if normalization == "symmetric":
        n = (total + 1e-20).rsqrt()
        return lambda values: n * local_sum(n * values)
    if normalization == "before":
        return lambda values: local_sum(values / (total + 1e-20))
    return lambda values: local_sum(values) / (total + 1e-20)


def _table(kernel: Tensor, offsets: Offsets) -> Tensor:
    """Values at half of the offsets -> (window, window) of all, 0 outside the window's shape."""
    radius = max(dy for dy, _ in offsets)
    side = 2 * radius + 1
    places = [(radius + dy) * side + radius + dx for dy, dx in offsets]
    mirrored = [side * side - 1 - place for place in places]  # of the centre, the centre itself
    index = torch.tensor(places + mirrored[1:], device=kernel.device)
    return kernel.new_zeros(side * side).index_put((index,), torch.cat([kernel, kernel[1:]])).view(side, side)


def _depthwise(values: Tensor, table: Tensor) -> Tensor:
    channels, side = values.shape[1], len(table)
    return F.conv2d(values, table.expand(channels, 1, side, side), padding=side // 2, groups=channels)


class _Overlap(NamedTuple):
    """The pixels `here` of a strip of rows whose neighbours at an offset, `there`, are in the image."""

    here: tuple[slice, ...]
    there: tuple[slice, ...]


def _overlap(offset: tuple[int, int], top: int, bottom: int, width: int) -> _Overlap:
    dy, dx = offset
    columns = slice(max(0, -dx), width - max(0, dx))
    shifted = slice(columns.start + dx, columns.stop + dx)
    return _Overlap(
        (slice(None), slice(None), slice(top, bottom), columns),
        (slice(None), slice(None), slice(top + dy, bottom + dy), shifted),
    )


def _strips(values: Tensor) -> list[tuple[int, int]]:
    """Rows (first, last + 1) to work on at a time: small enough for the CPU's cache, all of them elsewhere."""
    number, channels, height, width = values.shape
    rows = max(1, BLOCK // (number * channels * width)) if values.device.type == "cpu" else height
    return [(top, min(top + rows, height)) for top in range(0, height, rows)]


class _AppearanceKernel(torch.autograd.Function):
    """Images (N, K, h, w) -> k(i, i + d) for each offset d, (N, offsets, h, w); 0 where i + d is outside the image.

    Gradients flow to the two numbers that the thetas give, and keep the result only: distances are computed again.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, per_pixel: Tensor, per_level: Tensor, offsets: Offsets) -> Tensor:
        number, _, height, width = images.shape
        kernel = images.new_zeros(number, len(offsets), height, width)
        for m, (dy, dx) in enumerate(offsets):
            here, there = _overlap((dy, dx), 0, height - dy, width)
            exponent = (images[here] - images[there]).square_().sum(1).mul_(-per_level)
            torch.exp(exponent.sub_(per_pixel * (dy**2 + dx**2)), out=kernel[:, m, here[2], here[3]])
        ctx.save_for_backward(images, kernel)
        ctx.offsets = offsets
        return kernel

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        images, kernel = ctx.saved_tensors
        to_pixel, to_level = images.new_zeros(2)
        for m, (dy, dx) in enumerate(ctx.offsets):
            here, there = _overlap((dy, dx), 0, images.shape[2] - dy, images.shape[3])
            product = grad[:, m, here[2], here[3]] * kernel[:, m, here[2], here[3]]
            to_pixel -= (dy**2 + dx**2) * product.sum()
            to_level -= ((images[here] - images[there]).square_().sum(1) * product).sum()
        return None, to_pixel, to_level, None


class _LocalSum(torch.autograd.Function):
    """Values (N, C, h, w), kernel (N, offsets, h, w) -> sum over the window of k(i, j) v_j, (N, C, h, w).

    Keeps its arguments and nothing of the size of the window times the classes, for the backward pass neither.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, kernel: Tensor, offsets: Offsets) -> Tensor:
        ctx.save_for_backward(values, kernel)
        ctx.offsets = offsets
        return _local_sum(values, kernel, offsets)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, kernel = ctx.saved_tensors
        to_values = _local_sum(grad, kernel, ctx.offsets) if ctx.needs_input_grad[0] else None  # it is symmetric
        if not ctx.needs_input_grad[1]:
            return to_values, None, None
        to_kernel = torch.zeros_like(kernel)
        to_kernel[:, 0] = (grad * values).sum(1)
        height, width = values.shape[2:]
        for top, bottom in _strips(values):
            for m, (dy, dx) in enumerate(ctx.offsets[1:], start=1):
                last = min(bottom, height - dy)
                if top < last:
                    here, there = _overlap((dy, dx), top, last, width)
                    product = (grad[here] * values[there]).addcmul_(grad[there], values[here])
                    to_kernel[:, m, here[2], here[3]] = product.sum(1)
        return to_values, to_kernel, None


def _local_sum(values: Tensor, kernel: Tensor, offsets: Offsets) -> Tensor:
    height, width = values.shape[2:]
    out = values * kernel[:, :1]
    for top, bottom in _strips(values):
        for m, (dy, dx) in enumerate(offsets[1:], start=1):
            k = kernel[:, m : m + 1]
            last = min(bottom, height - dy)
            if top < last:  # to the strip from its neighbours at d
                here, there = _overlap((dy, dx), top, last, width)
                out[here].addcmul_(k[here], values[there])
            first = max(top, dy)
            if first < bottom:  # and from those at -d, by the same kernel
                here, there = _overlap((dy, dx), first - dy, bottom - dy, width)
                out[there].addcmul_(k[here], values[here])
    return out


def _compiled(
    library: ctypes.CDLL,
    logs: Tensor,
    images: Tensor,
    offsets: Offsets,
    smoothness: Tensor,
    weights: list[Tensor],
    compatibility: Tensor | None,
    per_pixel: float,
    per_level: float,
    blur: int,
    iterations: int,
    normalization: str,
) -> Tensor:
    """The same by `conv_crf.cpp`."""
    places = torch.tensor(offsets, dtype=torch.int32)
    arrays = [array.detach().contiguous() for array in (logs, images, places, smoothness.float(), *weights)]
    matrix = None if compatibility is None else compatibility.detach().contiguous()
    marginals = torch.empty_like(arrays[0])
    number, classes, height, width = logs.shape
    counts = (number, classes, images.shape[1], height, width, len(offsets), blur, iterations)
    failed = library.conv_crf(
        *(ctypes.c_void_p(array.data_ptr()) for array in arrays),
        ctypes.c_void_p(None if matrix is None else matrix.data_ptr()),
        ctypes.c_float(per_pixel),
        ctypes.c_float(per_level),
        *(ctypes.c_int(count) for count in counts),
        ctypes.c_int(NORMALIZATIONS.index(normalization)),
        ctypes.c_int(torch.get_num_threads()),
        ctypes.c_void_p(marginals.data_ptr()),
    )
    if failed:
        raise MemoryError(f"no memory for a ConvCRF of {classes} classes at {height} x {width}")
    return marginals
