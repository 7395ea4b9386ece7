"""What follows the logits: conditional random fields and soft segmentation. Import from the file that defines it."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, get_args

from torch import Tensor

from lightning_modules.base import Refinement
from lightning_modules.components.choices import one_of

Kind = Literal["dense", "conv"]


def post_process(kind: str, **parameters: Any) -> Refinement:
    """The `refine` of a `SegmentationModule`: a "dense" or "conv" CRF with the arguments of `dense_crf` or `conv_crf`.

    `module.refine = post_process("dense", **PRESETS["deeplab_v2"])`. Its images are in [0, 1], as the module's are, and
    go to whole grey levels. Raises TypeError for arguments that the CRF does not take or lacks.
    """
    one_of("kind", kind, get_args(Kind))
    crf: Any
    if kind == "dense":
        from lightning_modules.refinement.dense_crf import dense_crf as crf
    else:
        from lightning_modules.refinement.conv_crf import conv_crf as crf
    if parameters.get("return_energy"):
        raise ValueError("return_energy must be False, as a module's refine returns probabilities alone: leave it out")
    inspect.signature(crf).bind(None, None, **parameters)

    return functools.partial(_refine, crf, parameters)


def _refine(crf: Callable[..., Tensor], parameters: dict[str, Any], probabilities: Tensor, images: Tensor) -> Tensor:
    if not images.is_floating_point():
        raise ValueError(f"images must be floats in [0, 1], as a module's are, got {images.dtype}: divide by 255")
    # Whole levels have no gradient; detached, gradients to the images through the network remain to be had.
    return crf(probabilities, (images.detach() * 255).round(), **parameters)
