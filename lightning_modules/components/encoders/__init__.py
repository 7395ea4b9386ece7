"""Encoders by name, native or from smp and timm, all behind one contract: see `Encoder`."""

import inspect
from typing import Any

import torch

from lightning_modules.components.choices import one_of
from lightning_modules.components.encoders.base import Classifier, Encoder
from lightning_modules.components.encoders.mobilenet import MobileNetV1
from lightning_modules.components.encoders.resnet import (
    ResNet18,
    ResNet34,
    ResNet50,
    ResNet50Deep,
    ResNet101,
    ResNet101Deep,
)
from lightning_modules.components.encoders.smp import SmpEncoder
from lightning_modules.components.encoders.vgg import VGG16
from lightning_modules.components.encoders.weights import load_native
from lightning_modules.components.encoders.xception import Xception65, Xception71

__all__ = ["NATIVE", "Classifier", "Encoder", "build_encoder"]

NATIVE: dict[str, type[Encoder]] = {
    "vgg16": VGG16,
    "resnet18": ResNet18,
    "resnet34": ResNet34,
    "resnet50": ResNet50,
    "resnet101": ResNet101,
    "resnet50-deep": ResNet50Deep,
    "resnet101-deep": ResNet101Deep,
    "xception65": Xception65,
    "xception71": Xception71,
    "mobilenet_v1": MobileNetV1,
}


def build_encoder(
    name: str,
    in_channels: int = 3,
    *,
    depth: int = 5,
    output_stride: int = 32,
    weights: str | None = None,
    width: float = 1.0,
    **options: Any,
) -> Encoder:
    """The encoder `name`: one of `NATIVE`, one of smp's ("mobilenet_v2"), or of timm ("tu-convnext_atto").

    "smp-resnet50" is smp's where a native one has the same name. `depth` maps follow the one at stride 1, and only the
    layers that they need are built; no map has a stride beyond `output_stride` (8, 16 or 32). `weights`: None,
    "imagenet" (downloaded; smp has more names for some), the path of a file or of a folder with one, or "package",
    which is installed by pip (`weights.PACKAGES`). `.mean` and `.std` of the encoder come with its weights: those of a
    folder are in its config.json, as the Hugging Face hub has it. A bare file is taken to be normalised as timm's
    published weights of the same encoder; where smp alone has the encoder they are None. `width` multiplies all
    channels of a native encoder and `options` are its own: norm="batch" of vgg16; multi_grid and rates of ResNets.
    """
    one_of("depth", depth, range(1, 6))
    one_of("output_stride", output_stride, (8, 16, 32))
    if in_channels < 1 or not width > 0:
        raise ValueError(f"in_channels and width must be more than 0, got in_channels={in_channels} and width={width}")
    native: Any = NATIVE.get(name)
    common = ("in_channels", "depth", "output_stride", "width")
    taken = [option for option in inspect.signature(native).parameters if option not in common] if native else []
    if strange := [option for option in options if option not in taken]:
        raise ValueError(
            f"encoder={name!r} takes {', '.join(taken) or 'no options of its own'}, got {', '.join(strange)}"
        )
    if not native:
        if width != 1:
            raise ValueError(
                f"width is of the native encoders {', '.join(NATIVE)}; {name!r} has one width, got {width}"
            )
        name = name.removeprefix("smp-")
        return SmpEncoder(name, in_channels, depth=depth, output_stride=output_stride, weights=weights)
    encoder: Encoder = native(in_channels, depth=depth, output_stride=output_stride, width=width, **options)
    if weights is not None:
        with torch.device("meta"):
            whole = native(in_channels, width=width, **options)
        load_native(encoder, whole, name, weights, in_channels)
    return encoder
