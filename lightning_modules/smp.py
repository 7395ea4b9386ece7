"""Any segmentation_models_pytorch architecture and encoder, trained and scored like the native ones.

Iakubovskii, Segmentation Models Pytorch, https://github.com/qubvel-org/segmentation_models.pytorch
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.base import SegmentationModule
from lightning_modules.components.blocks import crop, mirror_pad, round_up
from lightning_modules.components.encoders.smp import ANY_IMAGE, Probe, any_size, explaining, load_smp, to_download
from lightning_modules.components.encoders.weights import downloading


class BatchNorm2d(nn.BatchNorm2d):
    """torch's, but with a single value a channel it trains by the running statistics: see `blocks.norm_of_one`."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


class SmpModule(SegmentationModule):
    """Trains `smp.create_model(arch, encoder)`.

    Layers that the logits do not depend on, such as the last stages of PSPNet's encoder, are taken out or frozen.
    Images have any size: they are mirrored up to a multiple of 32, and to the smallest size that the architecture
    takes, 128 for PAN and 32 for the others.

    `mean` and `std` default to those of the weights. A folder's config.json says them. A bare file of an encoder
    "tu-<name>" is taken to have those of timm's weights of that name, and any other file ImageNet's.

    Args:
        arch: architecture of smp, such as Unet, FPN, Segformer or DPT
        encoder: encoder of smp ("resnet34") or, as "tu-<name>", of timm
        weights: of the encoder: null, a name that smp downloads ("imagenet"), "package" (of pip), a file or a folder
            with one
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int,
        *,
        arch: str = "Unet",
        encoder: str = "resnet34",
        weights: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(num_classes, ignore_index, **settings)
        in_channels = self.hparams["in_channels"]
        self.normalise_like(*load_smp(self.network.encoder, encoder, weights, in_channels))
        for norm in self.network.modules():
            if type(norm) is nn.BatchNorm2d:
                norm.__class__ = BatchNorm2d
        with explaining(*_asked(arch, encoder)):
            self.smallest = _smallest(self.network, in_channels)
            # Neither square nor a power of 2: what works for few sizes alone fails here.
            Probe(self.network, in_channels, self.smallest + 64, self.smallest + 128).drop_unused(self.network)

    def build(self, num_classes: int, in_channels: int, **options: Any) -> Any:
        import segmentation_models_pytorch as smp  # takes a second or two, and this file is in the catalogue

        arch, encoder = self.hparams["arch"], self.hparams["encoder"]
        architectures = {name.lower() for name in smp.__all__ if isinstance(getattr(smp, name), type)}
        if arch.lower() not in architectures:
            raise ValueError(f"arch must be one of {', '.join(sorted(architectures))}, got {arch!r}")
        fetched = to_download(encoder, self.hparams["weights"])
        arguments = {"in_channels": in_channels, "classes": num_classes, **any_size(encoder)}
        with downloading(encoder, fetched), explaining(*_asked(arch, encoder), fetched):
            return smp.create_model(arch, encoder, fetched, **arguments)

    def predict(self, images: Tensor) -> Tensor:
        """Images of any size: they are mirrored to a size that smp's decoder takes, and the logits cut back."""
        height, width = images.shape[-2:]
        below, right = (max(32 * round_up(side, 32), self.smallest) - side for side in (height, width))
        return crop(super().predict(mirror_pad(images, 0, below, 0, right)), height, width)


def _asked(arch: str, encoder: str) -> tuple[str, str, str]:
    """For an error of smp: what was asked for, of which encoder, and the way out."""
    of_patches = "; DPT takes ViTs of 16 x 16 patches, such as encoder='tu-vit_tiny_patch16_224'"
    way_out = of_patches if arch.lower() == "dpt" else ANY_IMAGE
    return f"arch={arch!r} cannot be had with encoder={encoder!r}", encoder, way_out


def _smallest(network: nn.Module, in_channels: int) -> int:
    """The smallest side of an image, among 32, 64, 128 and 256, that the network takes."""
    reason: Exception | None = None
    for side in (32, 64, 128, 256):
        try:
            Probe(network, in_channels, side, side)
            return side
        except (AssertionError, RuntimeError, ValueError) as error:
            reason = reason or error
    raise ValueError(f"it takes no image of 32, 64, 128 or 256 pixels a side, the first for {reason!r}")
