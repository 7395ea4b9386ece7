"""Any segmentation_models_pytorch architecture and encoder, trained and scored like the native ones.

Iakubovskii, Segmentation Models Pytorch, https://github.com/qubvel-org/segmentation_models.pytorch
"""

from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch
from torch import Tensor

from lightning_modules.base import SegmentationModule
from lightning_modules.components.blocks import pad_to_multiple


class SmpModule(SegmentationModule):
    """Trains `smp.create_model(arch, encoder)`; `recipe` are the keyword arguments of `SegmentationModule`.

    `weights` of the encoder: None, a name that smp downloads ("imagenet"), or the path of a state dict on this
    machine. `mean` and `std` default to ImageNet's: state those of other weights.
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
        is_file = weights is not None and ("/" in weights or Path(weights).suffix in {".pt", ".pth", ".bin"})
        if is_file and not Path(str(weights)).is_file():
            raise FileNotFoundError(
                f"weights={weights!r} is not a file: give the path of an encoder's state dict, or None"
            )
        try:
            self.network = smp.create_model(
                arch, encoder, None if is_file else weights, in_channels=in_channels, classes=num_classes
            )
        except KeyError as error:  # smp names every encoder it has
            raise ValueError(
                f"encoder={encoder!r}: {error.args[0]}; any timm encoder works as 'tu-<its name>'"
            ) from None
        except (OSError, RuntimeError) as error:
            way = "any timm encoder is 'tu-<its name>'" if weights is None or is_file else "without a network pass "
            way += "" if weights is None or is_file else "weights=None, or the path of a state dict file"
            raise ValueError(f"could not make encoder={encoder!r} with weights={weights!r} ({error}): {way}") from error
        if is_file:
            encoder_module: Any = self.network.encoder
            try:
                encoder_module.load_state_dict(torch.load(str(weights), map_location="cpu", weights_only=True))
            except Exception as error:  # torch raises five kinds for files that are not a state dict of this encoder
                raise ValueError(f"weights={weights!r} is no state dict of the encoder {encoder}: {error}") from error

    def forward(self, images: Tensor) -> Tensor:
        """Images of any size: smp's decoders take multiples of the encoder's deepest stride, 32."""
        return super().forward(pad_to_multiple(images, 32))[..., : images.shape[-2], : images.shape[-1]]
