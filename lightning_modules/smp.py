"""Any segmentation_models_pytorch architecture and encoder, trained and scored like the native ones.

Iakubovskii, Segmentation Models Pytorch, https://github.com/qubvel-org/segmentation_models.pytorch
"""

from typing import Any

import segmentation_models_pytorch as smp
from torch import Tensor

from lightning_modules.base import SegmentationModule
from lightning_modules.components.blocks import pad_to_multiple
from lightning_modules.components.encoders.smp import load_smp, to_download
from lightning_modules.components.encoders.weights import downloading


class SmpModule(SegmentationModule):
    """Trains `smp.create_model(arch, encoder)`; `recipe` are the keyword arguments of `SegmentationModule`.

    `weights` of the encoder: None, a name that smp downloads ("imagenet"), the path of a state dict or of a folder with
    one, or "package", which is installed by pip. `mean` and `std` default to those of the weights, or ImageNet's where a
    file does not say.
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int,
        *,
        arch: str = "Unet",
        encoder: str = "resnet34",
        weights: str | None = None,
        in_channels: int = 3,
        **recipe: Any,
    ) -> None:
        super().__init__(num_classes, ignore_index, in_channels=in_channels, **recipe)
        architectures = {name.lower() for name in smp.__all__ if isinstance(getattr(smp, name), type)}
        if arch.lower() not in architectures:
            raise ValueError(f"arch must be one of {', '.join(sorted(architectures))}, got {arch!r}")
        fetched = to_download(encoder, weights)
        with downloading(encoder, fetched):
            self.network = smp.create_model(arch, encoder, fetched, in_channels=in_channels, classes=num_classes)
        self.normalise_like(*load_smp(self.network.encoder, encoder, weights, in_channels))

    def predict(self, images: Tensor) -> Tensor:
        """Images of any size: smp's decoders take multiples of the encoder's deepest stride, 32."""
        return super().predict(pad_to_multiple(images, 32))[..., : images.shape[-2], : images.shape[-1]]
