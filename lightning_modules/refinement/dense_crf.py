"""Fully connected CRF, Kraehenbuehl, Koltun 2011, https://arxiv.org/abs/1210.5644

Mean field inference (Algorithm 1) in a CRF where every pixel sees every other one through two Gaussian kernels (Eq. 3).
As a layer, its weights and compatibility trained: CRF as RNN, Zheng et al. 2015, https://arxiv.org/abs/1502.03240

Departs from the paper in
- the pixel itself, which a kernel includes, as in the authors' code (2013, https://www.philkr.net/code/);
- the normalisation, which every kernel has by default, as in that code;
- the labels' compatibility, which may be any matrix.
"""

from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from lightning_modules.components.choices import one_of
from lightning_modules.components.tracing import tracing
from lightning_modules.refinement import native
from lightning_modules.refinement.checks import (
    MAX_CLASSES,
    MAX_ITERATIONS,
    check_classes,
    check_marginals,
    check_shapes,
    check_values,
    check_whole,
)
from lightning_modules.refinement.mean_field import MeanField, Normalization, Number, takes
from lightning_modules.refinement.memory import check_memory
from lightning_modules.refinement.native.fused import infer
from lightning_modules.refinement.permutohedral import Permutohedral

Method = Literal["lattice", "exact"]

# DeepLab's code brings an older version of the authors' library (libDenseCRF, 2011), which normalises "after" alone.
PRESETS: dict[str, dict[str, Any]] = {
    # Chen et al. 2015, Sec. 4.1: w2 = 3, sigma_gamma = 3 and 10 iterations fixed, the others searched on validation
    # images network by network; these are of the released LargeFOV, liangchiehchen.com/projects/DeepLab-LargeFOV.html
    # (run_densecrf.sh of the release starts from 5, 50 and 3, the plain network's from 5, 50 and 10).
    "deeplab_v1": {
        "w_appearance": 4.0,
        "theta_alpha": 121.0,
        "theta_beta": 5.0,
        "w_smoothness": 3.0,
        "theta_gamma": 3.0,
        "normalization": "after",
    },
    # Chen et al. 2017, ResNet-101 on VOC 2012: liangchiehchen.com/projects/DeepLabv2_resnet.html
    "deeplab_v2": {
        "w_appearance": 4.0,
        "theta_alpha": 67.0,
        "theta_beta": 3.0,
        "w_smoothness": 3.0,
        "theta_gamma": 1.0,
        "normalization": "after",
    },
    # examples/inference.py and README of https://github.com/lucasb-eyer/pydensecrf, with its default normalization
    "pydensecrf": {
        "w_appearance": 10.0,
        "theta_alpha": 80.0,
        "theta_beta": 13.0,
        "w_smoothness": 3.0,
        "theta_gamma": 3.0,
        "normalization": "symmetric",
    },
}


@dataclass(frozen=True, kw_only=True, eq=False)
class DenseMeanField(MeanField):
    """A `MeanField` in which every pixel sees every other one.

    Args:
        iterations: steps of mean field
        method: "lattice" is linear in the pixels, "exact" quadratic, for small images
    """

    iterations: int = 10
    method: Method = "lattice"

    def __post_init__(self) -> None:
        one_of("method", self.method, get_args(Method))
        super().__post_init__()


class Kernel(Protocol):
    """A normalised Gaussian kernel between the P pixels of an image: `Exact` or `Lattice`."""

    def filter(self, values: Tensor, out: Tensor | None = None) -> Tensor:
        """Values (P, C) -> for each pixel the sum over all pixels of kernel times values, (P, C).

        Without gradients, into `out`, which must be finite.
        """
        ...


class Exact:
    """The kernel exp(-|f_i - f_j|^2 / 2) of features (D, P) as a matrix (P, P); differentiable in the features too."""

    def __init__(self, features: Tensor, normalization: Normalization) -> None:
        exponent = features.new_zeros(features.shape[1], features.shape[1])
        for feature in features:
            exponent -= 0.5 * (feature[:, None] - feature).square()
        kernel = exponent.exp_()
        before, after = _norms(kernel.sum(1), normalization)
        self.kernel = after[:, None] * kernel * before

    def filter(self, values: Tensor, out: Tensor | None = None) -> Tensor:
        return torch.mm(self.kernel, values, out=out)


class Lattice:
    """The kernel of `Exact` approximated on the permutohedral lattice (Sec. 3.2), in time linear in the pixels."""

    def __init__(self, features: Tensor, normalization: Normalization, dtype: torch.dtype) -> None:
        self.lattice = Permutohedral(features.t(), dtype=dtype)
        ones = torch.ones(features.shape[1], 1, dtype=dtype, device=features.device)
        self.lattice.normalise(*_norms(self.lattice.filter(ones).squeeze(1), normalization))

    def filter(self, values: Tensor, out: Tensor | None = None) -> Tensor:
        return self.lattice.filter(values, out)


def kernels(image: Tensor, crf: DenseMeanField, dtype: torch.dtype) -> tuple[Kernel, Kernel]:
    """The appearance and the smoothness kernel (Eq. 3) of one image (1 or 3, H, W) in 0..255, for values of `dtype`."""
    geometry = dtype if crf.method == "exact" else torch.float32

    def scaled(values: Tensor, theta: Number) -> Tensor:
        # By a tensor on the same device: CUDA multiplies by 1 / theta where theta is a number, and rounds twice.
        return values.to(geometry) / torch.as_tensor(theta, dtype=geometry, device=image.device)

    height, width = image.shape[1:]
    rows, columns = (torch.arange(size, device=image.device) for size in (height, width))

    def positions(theta: Number) -> list[Tensor]:
        x, y = scaled(columns, theta), scaled(rows, theta)
        return [x.expand(height, width).flatten(), y[:, None].expand(height, width).flatten()]

    appearance = torch.stack([*positions(crf.theta_alpha), *scaled(image, crf.theta_beta).flatten(1)])
    smoothness = torch.stack(positions(crf.theta_gamma))
    if crf.method == "exact":
        return Exact(appearance, crf.normalization), Exact(smoothness, crf.normalization)
    return Lattice(appearance, crf.normalization, dtype), Lattice(smoothness, crf.normalization, dtype)


@takes(DenseMeanField)
def dense_crf(probabilities: Tensor, images: Tensor, *, return_energy: bool = False, **parameters: Any) -> Any:
    """Marginals (N, C, H, W) of the fully connected CRF of `probabilities` (N, C, H, W) and `images` (N, 1 or 3, H, W).

    The images are in 0..255; the `parameters` are those of `DenseMeanField`. Gradients flow to probabilities, weights
    and compatibility, with the method "exact" also to thetas and images. The engine "c++" serves the lattice in float32
    on the CPU without gradients; "auto" takes it where it can. With `return_energy`, also the free energies
    (N, iterations + 1) before the first and after each iteration; they need not fall, as all pixels change at once.

    Raises ValueError for input that has no meaning, more memory than there is, an engine that cannot serve, or a
    lattice under torch.jit.trace or torch.export. It is a NonFiniteError for probabilities or marginals that are NaN or
    infinite.
    """
    check_shapes(probabilities, images)
    if not isinstance(return_energy, bool):
        raise TypeError(f"return_energy must be True or False, got {type(return_energy).__name__}")
    if tracing() and parameters.get("method", DenseMeanField.method) == "lattice":
        raise ValueError(
            "a trace cannot hold the lattice, which is another one for each image: trace the network without its CRF "
            "and call dense_crf on what it returns, or use method='exact' (small images) or a ConvCRF"
        )
    crf = DenseMeanField(probabilities.shape[1], **parameters)
    thetas = (crf.theta_alpha, crf.theta_beta, crf.theta_gamma)
    deep = _learning(*thetas, images)  # through the kernels
    learning = deep or _learning(probabilities, crf.w_appearance, crf.w_smoothness, crf.compatibility)
    _refuse(probabilities, images, crf, learning, deep)
    marginals = _serve(probabilities, images, crf, learning, return_energy)
    if marginals is None:
        marginals, energies = _iterate(probabilities, images, crf, learning, return_energy)
    marginals = check_marginals(marginals)
    return (marginals, energies) if return_energy else marginals


class DenseCRF(nn.Module):
    """`dense_crf` as a layer (CRF as RNN): (N, C, H, W) probabilities and (N, 1 or 3, H, W) images -> (N, C, H, W).

    The weights of each class, `w_appearance` and `w_smoothness` (C,), and the `compatibility` (C, C) are trained; they
    start at the given values, None being Potts. It runs `iterations` in training, 5 lest gradients vanish or explode,
    and `test_iterations` in evaluation, 10, as Zheng et al. do. The other `parameters` are those of `DenseMeanField`.
    """

    w_appearance: nn.Parameter
    w_smoothness: nn.Parameter

    @takes(DenseMeanField)
    def __init__(self, num_classes: int, *, iterations: int = 5, test_iterations: int = 10, **parameters: Any) -> None:
        super().__init__()
        check_whole("num_classes", num_classes, 1, MAX_CLASSES)
        check_whole("test_iterations", test_iterations, 0, MAX_ITERATIONS)
        crf = DenseMeanField(num_classes, iterations=iterations, **parameters)
        self.iterations, self.test_iterations = iterations, test_iterations
        fixed = ("theta_alpha", "theta_beta", "theta_gamma", "normalization", "method", "engine")
        self.fixed = {name: getattr(crf, name) for name in fixed}
        for name, weight in (("w_appearance", crf.w_appearance), ("w_smoothness", crf.w_smoothness)):
            value = torch.as_tensor(weight, dtype=torch.get_default_dtype()).detach().expand(num_classes)
            self.register_parameter(name, nn.Parameter(value.clone()))
        potts = 1 - torch.eye(num_classes)
        given = crf.compatibility
        self.compatibility = nn.Parameter(potts if given is None else given.detach().to(potts).clone())

    def forward(self, probabilities: Tensor, images: Tensor) -> Tensor:
        # Only shapes are asked for, or what a pixel depends on: the whole image
        if isinstance(probabilities, Tensor) and probabilities.is_meta and probabilities.ndim == 4:
            return probabilities + probabilities.mean((2, 3), keepdim=True)
        check_shapes(probabilities, images)
        check_classes(probabilities, len(self.w_appearance))
        marginals: Tensor = dense_crf(
            probabilities,
            images,
            w_appearance=self.w_appearance,
            w_smoothness=self.w_smoothness,
            compatibility=self.compatibility,
            iterations=self.iterations if self.training else self.test_iterations,
            **self.fixed,
        )
        return marginals


def _learning(*parts: Number | None) -> bool:
    """Whether gradients flow to one of these."""
    return torch.is_grad_enabled() and any(isinstance(part, Tensor) and part.requires_grad for part in parts)


def _refuse(probabilities: Tensor, images: Tensor, crf: DenseMeanField, learning: bool, deep: bool) -> None:
    """ValueError before the work for what lacks gradients, memory or a meaning; `deep` gradients go through kernels."""
    if crf.method == "lattice" and deep:
        raise ValueError(
            "the lattice has no gradients to theta_alpha, theta_beta, theta_gamma and images: use method='exact', or "
            "detach them"
        )
    number, classes, height, width = probabilities.shape
    pixels, size, channels = height * width, probabilities.element_size(), images.shape[1]
    maps = 2 * number + 5 + 5 * number * crf.iterations * learning  # of (P, C): results, logarithm, messages, updates
    needed = maps * pixels * classes * size
    if crf.method == "exact":
        matrices = 5 + 2 * number * (channels + 4) * deep  # two kernels, and temporaries while one is built
        needed += matrices * pixels**2 * size
    else:
        needed += 48 * (channels + 3 + 3) * pixels  # keys, their order and the matrices: 48 bytes a corner of a simplex
    hint = "; 'lattice' takes far less" if crf.method == "exact" else ""
    what = f"dense_crf of {classes} classes at {height} x {width} ({crf.method}{hint})"
    check_memory(needed, probabilities.device, what)
    check_values(probabilities, images)


def _serve(probabilities: Tensor, images: Tensor, crf: DenseMeanField, learning: bool, energy: bool) -> Tensor | None:
    """The marginals of the C++ engine; None where torch is to compute. ValueError where it was asked for and cannot."""
    wanted = ""  # what it would have to be asked for, and is not
    if crf.method != "lattice":
        wanted = f"method 'lattice', not {crf.method!r}"
    elif probabilities.device.type != "cpu" or probabilities.dtype != torch.float32:
        wanted = f"float32 on the CPU, not {probabilities.dtype} on {probabilities.device}"
    elif learning:
        wanted = "inference, not gradients (torch.no_grad)"
    elif energy:
        wanted = "marginals, not energies"
    if crf.engine == "c++" and wanted:
        raise ValueError(f"engine 'c++' serves {wanted}: use engine='auto' or 'torch'")
    if crf.engine == "torch" or wanted:
        return None
    marginals = infer(_log(probabilities).neg_(), images.float(), crf)
    if marginals is None and crf.engine == "c++":
        why = (
            native.reason("dense_crf")
            or "theta_alpha, theta_beta or theta_gamma this small span too many cells of the lattice"
        )
        raise ValueError(f"engine 'c++' cannot serve: {why}; or use engine='torch'")
    return marginals


def _iterate(
    probabilities: Tensor, images: Tensor, crf: DenseMeanField, learning: bool, energy: bool
) -> tuple[Tensor, Tensor]:
    """Mean field in torch, on any device: marginals (N, C, H, W), free energies (N, iterations + 1) or none."""
    like: dict[str, Any] = {"dtype": probabilities.dtype, "device": probabilities.device}
    weights = torch.as_tensor(crf.w_appearance, **like), torch.as_tensor(crf.w_smoothness, **like)
    compatibility = None if crf.compatibility is None else crf.compatibility.to(**like)
    results = []
    with torch.autocast(probabilities.device.type, enabled=False):
        for prior, image in zip(probabilities, images, strict=True):
            terms = kernels(image, crf, probabilities.dtype)
            results.append(_mean_field(prior, terms, weights, compatibility, crf.iterations, learning, energy))
    marginals = torch.stack([q.t() for q, _ in results]).view(probabilities.shape)
    return marginals, torch.stack([energies for _, energies in results])


def _mean_field(
    prior: Tensor,
    terms: tuple[Kernel, Kernel],
    weights: tuple[Tensor, Tensor],
    compatibility: Tensor | None,
    iterations: int,
    learning: bool,
    energy: bool,
) -> tuple[Tensor, Tensor]:
    """Algorithm 1 for one image: prior (C, H, W) -> marginals (P, C), free energies (iterations + 1,) or none."""
    log_prior = _log(prior.flatten(1).t().contiguous())  # (P, C): -U
    q = log_prior.softmax(1)
    # Gradients need every result in memory of its own; without them the same memory serves all iterations.
    mine, other, marginals = (None, None, None) if learning else (torch.zeros_like(q), torch.zeros_like(q), q)
    energies = []
    for step in range(iterations + energy):
        message = torch.mul(terms[0].filter(q, mine), weights[0], out=mine)
        message = torch.addcmul(message, terms[1].filter(q, other), weights[1], out=mine)
        if energy:
            energies.append(_free_energy(q, log_prior, message, compatibility))
        if step < iterations:
            # Potts adds the sum of the messages, the same for all classes, which the softmax takes out again.
            gain = message if compatibility is None else torch.mm(message, -compatibility.t(), out=other)
            q = torch.softmax(torch.add(gain, log_prior, out=mine), 1, out=marginals)
    return q, torch.stack(energies) if energies else q.new_empty(0)


def _free_energy(q: Tensor, log_prior: Tensor, message: Tensor, compatibility: Tensor | None) -> Tensor:
    """The expected energy less the entropy of Q, which mean field lowers (Sec. 3; Koller, Friedman 2009, Sec. 11.5)."""
    cost = message.sum(1, keepdim=True) - message if compatibility is None else message @ compatibility.t()
    return (q * (0.5 * cost - log_prior) + torch.xlogy(q, q)).sum()


def _norms(sums: Tensor, normalization: Normalization) -> tuple[Tensor, Tensor]:
    """What to multiply the values by before and after filtering (P,), from the sums of the rows of the kernel (P,)."""
    ones = torch.ones_like(sums)
    if normalization == "none":
        return ones, ones
    if normalization == "symmetric":
        root = (sums + 1e-20).rsqrt()  # 1e-20 as the authors' code has it
        return root, root
    inverse = 1 / (sums + 1e-20)
    return (inverse, ones) if normalization == "before" else (ones, inverse)


def _log(probabilities: Tensor) -> Tensor:
    """The logarithm, finite where a probability is 0."""
    return probabilities.clamp(min=torch.finfo(torch.float32).tiny).log()
