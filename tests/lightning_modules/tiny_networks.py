"""The options of a tiny network of each architecture on which others can stand."""

import inspect
from typing import Any

from lightning_modules.catalogue import NETWORKS

RESNET = {"encoder": "resnet18", "encoder_width": 0.05}
VGG = {"encoder_width": 0.05}
# By the catalogue, without what is of the module that trains it.
TINY: dict[str, dict[str, Any]] = {
    name: {key: value for key, value in one.small.items() if key in inspect.signature(one.network).parameters}
    for name, one in NETWORKS.items()
}
# Such that no unit is dead at the start, and gradients can be looked at.
TINY |= {
    "deconvnet": {"width": 4, "fc_width": 8},
    "deeplabv1": VGG | {"fc_width": 8},
    "deeplabv2": RESNET,
    "deeplabv3": RESNET | {"decoder_width": 8},
    "deeplabv3plus": RESNET | {"decoder_width": 8},
    "fcn": VGG | {"fc_width": 8},
    "hypercolumn": VGG,
    "pspnet": RESNET | {"decoder_width": 8},
}
