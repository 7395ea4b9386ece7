"""What follows the logits: conditional random fields and soft segmentation. Import from the file that defines it."""

import inspect
from typing import Any

from torch import Tensor

from lightning_modules.base import Refinement
from lightning_modules.refinement.checks import check_choice


def post_process(kind: str, **parameters: Any) -> Refinement:
    """The `refine` of a `SegmentationModule`: a "dense" or "conv" CRF with the arguments of `dense_crf` or `conv_crf`.

    `module.refine = post_process("dense", **PRESETS["deeplab_v2"])`. Its images are in [0, 1], as the module's are, and
    go to whole grey levels. Raises TypeError for arguments that the CRF does not take or lacks.
    """
    check_choice("kind", kind, ("dense", "conv"))
    crf: Any
    if kind == "dense":
        from lightning_modules.refinement.dense_crf import dense_crf as crf
    else:
        from lightning_modules.refinement.conv_crf import conv_crf as crf
    if parameters.get("return_energy"):
        raise ValueError("return_energy must be False, as a module's refine returns probabilities alone: leave it out")
    inspect.signature(crf).bind(None, None, **parameters)

    def refine(probabilities: Tensor, images: Tensor) -> Tensor:
        refined: Tensor = crf(probabilities, (images * 255).round(), **parameters)
        return refined

    return refine
