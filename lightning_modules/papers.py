"""The paper of each architecture, and how many parameters its network has: the one table of them.

README.md and docs/architectures.md say these numbers, CITATION.cff the papers; tests compare them with this table, and
the numbers with the networks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Paper:
    """What an architecture is measured by.

    Args:
        cited: DOI or address of the paper, as CITATION.cff has it
        parameters: of the network as published; None where it stands on others, holds many, or is no paper's
        num_classes: classes of that network
        in_channels: channels of its images
        settings: of the module, with which it is that network
        derived: whether the paper leaves open what the parameters depend on, so that they are of what is built here
    """

    cited: str
    parameters: int | None = None
    num_classes: int = 21
    in_channels: int = 3
    settings: Mapping[str, Any] = field(default_factory=dict)
    derived: bool = False

    @property
    def form(self) -> str:
        """What the parameters are of, in words."""
        channels = f"{self.in_channels} channel{'s'[: self.in_channels - 1]}"
        told = [f"{name} {value}" for name, value in self.settings.items()]
        return ", ".join([f"{channels} and {self.num_classes} classes", *told])


PAPERS: dict[str, Paper] = {
    "fcn": Paper(cited="10.1109/CVPR.2015.7298965", parameters=134_489_759, settings={"stride": 8}),
    "hypercolumn": Paper(cited="https://arxiv.org/abs/1411.5752"),  # an adaptation
    "hypercolumn_boxes": Paper(cited="https://arxiv.org/abs/1411.5752", parameters=137_718_044, num_classes=20),
    "unet": Paper(
        cited="10.1007/978-3-319-24574-4_28",
        parameters=31_030_658,
        num_classes=2,
        in_channels=1,
        settings={"padding": "valid"},
    ),
    "segnet": Paper(
        cited="10.1109/TPAMI.2016.2644615", parameters=29_449_355, num_classes=11, settings={"variant": "segnet"}
    ),
    "deconvnet": Paper(cited="https://arxiv.org/abs/1505.04366", parameters=251_805_653),
    "deeplabv1": Paper(
        cited="https://arxiv.org/abs/1412.7062", parameters=20_505_429, settings={"field_of_view": "3x3-rate12"}
    ),
    "deeplabv2": Paper(
        cited="https://arxiv.org/abs/1606.00915", parameters=44_048_532, settings={"encoder": "resnet101"}
    ),
    "deeplabv3": Paper(
        cited="https://arxiv.org/abs/1706.05587", parameters=58_040_661, settings={"encoder": "resnet101"}
    ),
    "deeplabv3plus": Paper(
        cited="https://arxiv.org/abs/1802.02611", parameters=41_049_269, settings={"encoder": "xception65"}
    ),
    "pspnet": Paper(
        cited="https://arxiv.org/abs/1612.01105",
        parameters=46_716_373,
        settings={"encoder": "resnet50-deep", "aux_weight": 0},
    ),
    "pointrend": Paper(cited="https://arxiv.org/abs/1912.08193"),
    "inverted_net": Paper(
        cited="https://arxiv.org/abs/1701.08816",
        parameters=3_141_028,
        num_classes=4,
        in_channels=1,
        settings={"variant": "inverted"},
        derived=True,
    ),
    "crf_as_rnn": Paper(cited="10.1109/ICCV.2015.179"),
    "smp": Paper(cited="https://github.com/qubvel-org/segmentation_models.pytorch"),
}
