"""Every architecture by the name of its file. To add one: its file, and one entry here.

An entry names the module's class as text, so that an architecture that stands on another one, which it chooses by name,
can read this catalogue too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

if TYPE_CHECKING:
    from lightning_modules.base import SegmentationModule


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What the project knows of an architecture beside its file.

    Args:
        path: file and class of its module, in the package lightning_modules
        small: settings of the module that make a network of some thousand parameters, for the contract tests
        features: the map at stride 4, as `PointRend` reads it; only on a network that has one can others stand
        options: arguments that the network has to have below another one
    """

    path: str
    small: Mapping[str, Any]
    features: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def module(self) -> "type[SegmentationModule]":
        file, _, name = self.path.rpartition(".")
        cls: type[SegmentationModule] = getattr(import_module(f"lightning_modules.{file}"), name)
        return cls

    @property
    def network(self) -> type[nn.Module]:
        return self.module.network_class


TINY_RESNET = {"encoder": "resnet50", "encoder_width": 0.0625}
TINY_UNET = {"network": "unet", "network_options": {"width": 4, "depth": 2}}
MAP_4 = "encoder[2]"  # of a ResNet what PointRend's paper calls "res2"

ARCHITECTURES: dict[str, Architecture] = {
    "fcn": Architecture(
        path="fcn.FCNModule", small={"encoder_width": 0.0625, "fc_width": 8, "lr": 1e-3}, features=MAP_4
    ),
    "hypercolumn": Architecture(path="hypercolumn.HypercolumnModule", small={"encoder_width": 0.0625}, features=MAP_4),
    "hypercolumn_boxes": Architecture(
        path="hypercolumn_boxes.HypercolumnBoxesModule",
        small={"encoder_width": 0.0625, "fc_width": 8, "size": 10, "least_pixels": 4, "lr": 1e-5},
    ),
    "unet": Architecture(path="unet.UNetModule", small={"width": 4, "depth": 2}, features="encoder.2"),
    "segnet": Architecture(path="segnet.SegNetModule", small={"width": 4, "class_weights": None}, features=MAP_4),
    "deconvnet": Architecture(path="deconvnet.DeconvNetModule", small={"width": 2, "fc_width": 4}, features=MAP_4),
    "deeplabv1": Architecture(
        path="deeplabv1.DeepLabV1Module", small={"encoder_width": 0.0625, "fc_width": 8}, features=MAP_4
    ),
    "deeplabv2": Architecture(path="deeplabv2.DeepLabV2Module", small=TINY_RESNET, features=MAP_4),
    "deeplabv3": Architecture(
        path="deeplabv3.DeepLabV3Module", small={**TINY_RESNET, "decoder_width": 8}, features=MAP_4
    ),
    "deeplabv3plus": Architecture(
        path="deeplabv3plus.DeepLabV3PlusModule",
        small={**TINY_RESNET, "decoder_width": 8, "low_level_width": 4},
        features=MAP_4,
    ),
    "pspnet": Architecture(
        path="pspnet.PSPNetModule",
        small={**TINY_RESNET, "decoder_width": 8},
        features=MAP_4,
        options={"aux": False},  # a head that no logits come from
    ),
    "pointrend": Architecture(path="pointrend.PointRendModule", small={**TINY_UNET, "head_width": 8, "points": 32}),
    "crf_as_rnn": Architecture(path="crf_as_rnn.CRFasRNNModule", small={**TINY_UNET, "loss": "ce", "lr": 1e-3}),
    "inverted_net": Architecture(
        path="inverted_net.InvertedNetModule",
        small={"width": 8, "depth": 2, "class_weights": None},
        features="encoder.2",
    ),
    "smp": Architecture(path="smp.SmpModule", small={"encoder": "resnet18"}),
}
# On which others can stand.
NETWORKS = {name: ARCHITECTURES[name] for name in sorted(ARCHITECTURES) if ARCHITECTURES[name].features}
if TYPE_CHECKING:
    NetworkName = str
else:
    NetworkName = Literal[tuple(NETWORKS)]  # for the command line, which lists its choices


def corrections_below(hparams: Mapping[str, Any]) -> dict[str, str]:
    """`corrections` of the network that an architecture with these hyperparameters stands on, where it has any."""
    name = hparams["network"]
    network: Any = NETWORKS[name].network if isinstance(name, str) and name in NETWORKS else None
    return network.corrections(hparams["network_options"] or {}) if hasattr(network, "corrections") else {}
