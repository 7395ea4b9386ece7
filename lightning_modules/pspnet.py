"""PSPNet, Zhao, Shi, Qi, Wang, Jia 2017, https://arxiv.org/abs/1612.01105

The network of Fig. 3 on ResNet-50 with 21 classes: 46,716,373 parameters, and 49,081,578 with the auxiliary head of
Fig. 4. Its ResNet starts with three 3x3 convolutions in place of the 7x7 one, as the authors' models do
(`pspnet50_ADE20K_473.prototxt`), and is dilated to output stride 8.

Departs from the paper:
- maps are resized with align_corners=False (the authors' code: True), so that images need not have 8 n + 1 rows.
  Weights that were trained their way give other logits, by about a fifth.

Departs from the prototxt where the authors' PyTorch code, https://github.com/hszhao/semseg, does:
- batch norms decay by 1e-4 (prototxt: 0) and average with momentum 0.1 (0.05);
- the bias of a classifier learns 10 times as fast as the encoder (20).
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from lightning_modules.base import SegmentationModule
from lightning_modules.components.blocks import at_least_one, conv_norm_relu, he_, resize
from lightning_modules.components.encoders import build_encoder
from lightning_modules.components.pyramid import PoolName, PyramidPooling


def head(in_channels: int, width: int, num_classes: int, dropout: float) -> nn.Sequential:
    """(N, in_channels, H, W) -> (N, num_classes, H, W): 3x3 convolution, dropout, classifier."""
    layers = conv_norm_relu(in_channels, width), nn.Dropout(dropout), nn.Conv2d(width, num_classes, kernel_size=1)
    return nn.Sequential(*layers)


class PSPNet(nn.Module):
    """(N, in_channels, H, W) -> (N, num_classes, H, W).

    Args:
        encoder: "resnet50-deep" as in the paper, another native one, or one of smp ("mobilenet_v2") or timm
            ("tu-convnext_atto")
        encoder_width: factor of the channels of a native encoder
        weights: weights of the encoder: null, "imagenet" (downloaded), "package" (of pip), a file or a folder with one
        output_stride: stride of the encoder's last map: 8, 16 or 32
        bins: regions along a side of each level of the pyramid; none make the dilated network that Table 1 starts from
        pool: each region is its mean or its maximum
        reduce: a 1x1 convolution brings the levels of the pyramid down to as many channels as the map has
        decoder_width: channels before the classifier
        dropout: share of values dropped before the classifier
        aux: builds the head on the last stage but one, for `with_aux` alone: it is not part of a prediction (Sec. 4)
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        encoder: str = "resnet50-deep",
        encoder_width: float = 1.0,
        weights: str | None = None,
        output_stride: int = 8,
        bins: Sequence[int] = (1, 2, 3, 6),
        pool: PoolName = "average",
        reduce: bool = True,
        decoder_width: int = 512,
        dropout: float = 0.1,
        aux: bool = True,
    ) -> None:
        super().__init__()
        at_least_one(decoder_width=decoder_width)
        self.encoder = build_encoder(
            encoder, in_channels, output_stride=output_stride, weights=weights, width=encoder_width
        )
        channels = self.encoder.out_channels
        self.pyramid = PyramidPooling(channels[-1], bins=bins, pool=pool, reduce=reduce)
        self.head = head(self.pyramid.out_channels, decoder_width, num_classes, dropout)
        self.aux = head(channels[-2], max(decoder_width // 2, 1), num_classes, dropout) if aux else None
        for part in (self.pyramid, self.head, self.aux or nn.Identity()):
            he_(part)  # "msra" in the authors' models

    def logits(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, num_classes, H / output_stride, W / output_stride)."""
        logits: Tensor = self.head(self.pyramid(self.encoder(x)[-1]))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return resize(self.logits(x), x.shape[-2:])

    def with_aux(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, in_channels, H, W) -> the logits, and those of the auxiliary head, (N, num_classes, H, W) each."""
        assert self.aux is not None
        features = self.encoder(x)
        logits, aux = self.head(self.pyramid(features[-1])), self.aux(features[-2])
        return resize(logits, x.shape[-2:]), resize(aux, x.shape[-2:])


class PSPNetModule(SegmentationModule):
    """Trains `PSPNet` by the recipe of Sec. 5.1: poly schedule from 0.01, batches of 16.

    Args:
        aux_weight: weight of the auxiliary loss, 0.4 after Sec. 5.2; 0 leaves its head out
        new_layers: how many times as fast as the encoder the other layers learn, 10 in the authors' models, which start
            from a trained encoder
    """

    network: PSPNet
    hidden = ("aux",)
    entrances = ("with_aux",)

    def __init__(
        self,
        num_classes: int,
        ignore_index: int,
        *,
        aux_weight: float = 0.4,
        new_layers: float = 10.0,
        **settings: Any,
    ) -> None:
        if not aux_weight >= 0:
            raise ValueError(f"aux_weight must be at least 0, got {aux_weight}")
        super().__init__(num_classes, ignore_index, **settings)
        self.aux_weight, self.new_layers = aux_weight, new_layers

    def build(self, num_classes: int, in_channels: int, **options: Any) -> PSPNet:
        return PSPNet(num_classes, in_channels, aux=self.hparams["aux_weight"] > 0, **options)

    def loss(self, images: Tensor, masks: Tensor) -> Tensor:
        if not self.aux_weight:
            return super().loss(images, masks)
        main, aux = (
            self.loss_function(logits, masks, self.ignore_index, self.class_weights)
            for logits in self.network.with_aux(self.normalise(images))
        )
        return main + self.aux_weight * aux

    def parameter_groups(self) -> list[dict[str, Any]]:
        encoder = list(self.network.encoder.parameters())
        of_encoder = {id(p) for p in encoder}
        new = [p for p in self.network.parameters() if id(p) not in of_encoder]
        return [{"params": encoder}, {"params": new, "lr": self.new_layers * self.hparams["lr"]}]
