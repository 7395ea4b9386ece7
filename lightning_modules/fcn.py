"""Fully convolutional networks, Long, Shelhamer, Darrell 2015, https://arxiv.org/abs/1411.4038

FCN-32s, 16s and 8s on VGG16 as the authors released them, https://github.com/shelhamer/fcn.berkeleyvision.org, to the
parameter: 136,152,917, 134,815,994 and 134,489,759 with 21 classes. Of these the frozen bilinear kernels are 1,806,336,
458,640 and 127,008.

Departs from the paper in what the released networks changed:
- every bilinear kernel is frozen (Sec. 4.3 learns all but the last: `upsampling="inner"`);
- the loss is summed over the pixels of one image;
- skips are trained all at once unless `init_from` names the next coarser network (Sec. 4.2 trains in stages).

With another encoder than "vgg16" it is an extension: features of the encoder itself at strides 32, 16 and 8, without
fc6, fc7 and the padding of 100.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.base import SegmentationModule
from lightning_modules.components.blocks import at_least_one, crop, he_
from lightning_modules.components.checkpoints import given, load_start, read_checkpoint
from lightning_modules.components.choices import one_of
from lightning_modules.components.encoders import build_encoder
from lightning_modules.components.encoders.vgg import load_fully_connected_
from lightning_modules.components.schedules import caffe_groups
from lightning_modules.components.upsampling import bilinear_kernel
from lightning_modules.recipe import Recipe
from lightning_modules.settings import keywords

Stride = Literal[32, 16, 8]
Upsampling = Literal["frozen", "inner", "learned"]
STRIDES, UPSAMPLINGS = get_args(Stride), get_args(Upsampling)
PIXELS = 500 * 500  # of an image of PASCAL VOC, nearly
LEARNING_RATES = {32: 1e-10, 16: 1e-12, 8: 1e-14}  # of each stage, for the unnormalised loss: voc-fcn*/solver.prototxt

# Where the first pixel of a map lies in the map it is cropped from: Caffe's `crop` layers, derived from the positions
# of pixels in the image. With 100 pixels of padding, pixel i of pool3 is centred on pixel 8i - 95.5 of the image, of
# pool4 on 16i - 91.5, of fc7 on 32i + 12.5 (7x7 without padding). Pixel o of a transposed convolution of stride s and
# kernel 2s is centred on (o - s + 0.5) / s of what it upsamples: o of upscore2 on 16o - 11.5, where pool4 is at i = o +
# 5; o of upscore_pool4 on 8o - 23.5, where pool3 is at i = o + 9; o of the last layer on o - 31 (o - 27 in 16s, o - 19
# in 32s).
POOL_OFFSETS = (5, 9)
IMAGE_OFFSETS = {32: 19, 16: 27, 8: 31}
UNSCALED = (1.0, 1.0)  # pool4 and pool3 as they are
PUBLISHED_SCALES = (0.01, 0.0001)  # voc-fcn8s-atonce/net.py, for weights of Caffe


class FCN(nn.Module):
    """(N, in_channels, H, W) -> (N, num_classes, H, W), any H and W.

    `pool_scales` are to even out what is scored, as a stream whose map is s times as large learns s^2 times as fast.
    Images divided by their standard deviation give maps of equal size. The published .01 and .0001 are for Caffe's
    VGG16 alone, which sees images in 0..255: give them together with its weights and std=[1/255, 1/255, 1/255].

    Args:
        stride: stride of the finest map that is scored
        encoder: "vgg16" with fc6 and fc7, or another one, whose own maps are scored
        weights: weights of the encoder: null, "imagenet" (downloaded), "package" (of pip), a file or a folder with one;
            of a whole VGG16, fc6 and fc7 get theirs too
        encoder_width: factor of the channels of a native encoder
        fc_width: channels of fc6 and fc7
        upsampling: bilinear kernels are "frozen", learned but for the last one ("inner"), or all "learned"
        at_once: all streams are trained together, not in stages
        pool_scales: what multiplies VGG16's pool4 and pool3 where all streams are trained at once
    """

    scales: Tensor

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        stride: Stride = 8,
        encoder: str = "vgg16",
        weights: str | None = None,
        encoder_width: float = 1.0,
        fc_width: int = 4096,
        upsampling: Upsampling = "frozen",
        at_once: bool = True,
        pool_scales: Annotated[tuple[float, float], ("neutral", UNSCALED)] = UNSCALED,
    ) -> None:
        super().__init__()
        one_of("stride", stride, STRIDES)
        one_of("upsampling", upsampling, UPSAMPLINGS)
        at_least_one(fc_width=fc_width)
        self.published, self.at_once = encoder == "vgg16", at_once
        self.margin = 99 if self.published else 0  # of 100 pixels around the image; conv1_1 pads the last one itself
        _check_scales(pool_scales, self.published and at_once)
        self.encoder = build_encoder(encoder, in_channels, weights=weights, width=encoder_width)
        maps = self.encoder.out_channels
        skips = STRIDES.index(stride)
        if self.published:
            self.fc6, self.fc7 = nn.Conv2d(maps[5], fc_width, 7), nn.Conv2d(fc_width, fc_width, 1)
            self.dropout = nn.Dropout(0.5)
            for conv in (self.fc6, self.fc7):
                he_(conv)
            load_fully_connected_(weights, self.encoder.pretrained, self.fc6, self.fc7)
            scored = [fc_width, maps[3], maps[2]]  # fc7, pool4, pool3
            self.pool_offsets, self.image_offset = POOL_OFFSETS, IMAGE_OFFSETS[stride]
        else:
            scored = [maps[5], maps[4], maps[3]]
            self.pool_offsets, self.image_offset = (0, 0), 0
        # In the state dict, because what the scores have learned belongs to them.
        self.register_buffer("scales", torch.tensor(tuple(pool_scales)))
        self.scores = nn.ModuleList(nn.Conv2d(channels, num_classes, 1) for channels in scored[: skips + 1])
        for score in self.scores.parameters():  # Sec. 4.3: random scores learn no better and no faster
            nn.init.zeros_(score)
        self.up = nn.ModuleList(self._upsampling(num_classes, 2, upsampling != "frozen") for _ in range(skips))
        self.upscore = self._upsampling(num_classes, stride, upsampling == "learned")

    def _upsampling(self, channels: int, stride: int, learned: bool) -> nn.ConvTranspose2d:
        """Sec. 3.3. (N, C, h, w) -> (N, C, stride * h, stride * w); as published with a border of stride / 2 more."""
        padding = 0 if self.published else stride // 2
        up = nn.ConvTranspose2d(channels, channels, 2 * stride, stride, padding, bias=False)
        up.weight = nn.Parameter(bilinear_kernel(channels, stride), requires_grad=learned)
        return up

    def _maps(self, x: Tensor) -> list[Tensor]:
        """What is scored, coarsest first: fc7, pool4 and pool3 of VGG16, otherwise the encoder's last maps."""
        if not self.published:
            return self.encoder(x)[:2:-1]
        maps = self.encoder(F.pad(x, [self.margin] * 4))
        pools = [F.max_pool2d(map_, 2, ceil_mode=True) for map_ in (maps[3], maps[2])[: len(self.up)]]
        top = self.dropout(F.relu(self.fc6(maps[5])))  # H - 6, W - 6
        top = self.dropout(F.relu(self.fc7(top)))
        return [top, *pools]

    def forward(self, x: Tensor) -> Tensor:
        maps = self._maps(x)
        fused: Tensor = self.scores[0](maps[0])
        for score, up, map_, scale, offset in zip(
            self.scores[1:], self.up, maps[1:], self.scales, self.pool_offsets, strict=False
        ):
            upsampled, skip = up(fused), score(scale * map_)[..., offset:, offset:]  # stride halves
            # As published the padded skip is the larger one for every image; other encoders round odd sizes up.
            height, width = (min(pair) for pair in zip(upsampled.shape[-2:], skip.shape[-2:], strict=True))
            fused = crop(upsampled, height, width) + crop(skip, height, width)
        height, width = x.shape[-2:]
        logits: Tensor = self.upscore(fused)
        return crop(logits, height, width, top=self.image_offset, left=self.image_offset)

    @staticmethod
    def corrections(options: Mapping[str, Any]) -> dict[str, str]:
        """See `SegmentationModule.corrections`: of an FCN built with `options`, wherever it stands."""
        used = {name: parameter.default for name, parameter in keywords(FCN).items()}
        used |= {name: value for name, value in options.items() if name in used}
        scaled = used["encoder"] == "vgg16" and used["at_once"] and used["stride"] < 32
        if not scaled or tuple(used["pool_scales"]) != UNSCALED:
            return {}
        return {
            "fcn-pool-scales": "pool4 and pool3 were multiplied by .01 and .0001, which belong to Caffe's VGG16 on "
            "images in 0..255: on normalised images FCN-16s and 8s learned from fc7 alone"
        }

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Weights stored without scales were trained `at_once` with the published ones: the scores take them in."""
        if f"{prefix}scales" not in state_dict:
            state_dict[f"{prefix}scales"] = self.scales
            scales = PUBLISHED_SCALES if self.published and self.at_once else UNSCALED
            for index, (scale, now) in enumerate(zip(scales, self.scales.tolist(), strict=True), start=1):
                name = f"{prefix}scores.{index}.weight"
                if name in state_dict:
                    state_dict[name] = state_dict[name] * (scale / now)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _check_scales(pool_scales: Any, scalable: bool) -> None:
    if len(pool_scales) != 2 or not all(0 < scale < math.inf for scale in pool_scales):
        raise ValueError(f"pool_scales must be two finite numbers of more than 0, got {pool_scales!r}")
    if tuple(pool_scales) != UNSCALED and not scalable:
        raise ValueError(
            f"pool_scales are of encoder='vgg16' with at_once=True, got {pool_scales!r} with another encoder or in "
            "stages: leave them out"
        )


class FCNModule(SegmentationModule):
    """Trains `FCN` as released: unnormalised loss, momentum 0.99, a bias at twice the rate and without decay.

    The published batch is one image. The rates belong to a sum over images of about `PIXELS`, so smaller images need
    more. Those of the later stages are for Caffe's weights too, whose pool4 and pool3 are large: maps of about 1 learn
    as slowly as those rates are low.

    Args:
        lr: learning rate; null takes 1e-10 `at_once`, and else 1e-10, 1e-12 and 1e-14 at stride 32, 16 and 8
        init_from: checkpoint of the same network at twice the stride, for training in stages (at_once=False)
    """

    network: FCN
    recipe = Recipe(loss="ce_sum", lr=None, momentum=0.99, weight_decay=5e-4, schedule="constant")

    def __init__(self, num_classes: int, ignore_index: int, *, init_from: str | None = None, **settings: Any) -> None:
        super().__init__(num_classes, ignore_index, **settings)
        if init_from is not None:
            self._start_from(init_from)

    @classmethod
    def published_lr(cls, hparams: Mapping[str, Any]) -> float:
        # FCN refuses other strides.
        return LEARNING_RATES[32] if hparams["at_once"] else LEARNING_RATES.get(hparams["stride"], 0.0)

    @classmethod
    def corrections(cls, hparams: Mapping[str, Any]) -> dict[str, str]:
        return FCN.corrections(hparams)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return caffe_groups(self.network, self.hparams["lr"], self.hparams["weight_decay"])

    def _start_from(self, checkpoint: str) -> None:
        """Takes over every weight but those of the last upsampling, which starts bilinear again, and the normalisation.

        A mean or std that the user gave stays.
        """
        ours = self.hparams
        if ours["stride"] == 32 or ours["at_once"]:
            raise ValueError(
                f"init_from is for stride 16 or 8 and at_once=False, the later stages, got stride={ours['stride']} and "
                f"at_once={ours['at_once']}: FCN-32s, and all of FCN at once, start from VGG16"
            )
        needed = {"stride": 2 * ours["stride"]}
        needed |= {name: ours[name] for name in ("num_classes", "in_channels", "encoder", "encoder_width", "fc_width")}
        if ours["stride"] == 8:
            needed["at_once"] = False  # or the score of pool4 belongs to a scaled pool4
        stored = read_checkpoint(
            checkpoint, f"init_from={checkpoint!r}", wanted=f"a checkpoint of FCN-{needed['stride']}s"
        )
        architecture, settings = stored["segmentation"]["architecture"], stored["hyper_parameters"]
        wrong = [
            f"{name}={settings.get(name)}, not {value}" for name, value in needed.items() if settings.get(name) != value
        ]
        if architecture != type(self).__name__ or wrong:
            raise ValueError(
                f"init_from={checkpoint!r} holds a {architecture} with {', '.join(wrong) or 'other layers'}"
            )
        new = STRIDES.index(ours["stride"])  # the score and the upsampling of this stage, which the one before has not
        fresh = ("network.upscore.", f"network.scores.{new}.", f"network.up.{new - 1}.", "network.scales")
        kept = (*fresh, *given(self))
        load_start(self, stored["state_dict"], checkpoint, kept=kept, otherwise="holds other layers")
