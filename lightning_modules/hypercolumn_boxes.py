"""Hypercolumns in boxes, Hariharan, Arbelaez, Girshick, Malik 2015, https://arxiv.org/abs/1411.5752

The paper's use of hypercolumns: the figure in a given box of a known category. A hypercolumn is what all layers of
interest say of one pixel: their maps, upsampled bilinearly and stacked. The head, `HypercolumnBoxes`, has 3,457,500
parameters with 20 categories.

The network is that of the code that the authors released, which classifies the maps of the whole image once for all its
boxes; the paper's first system runs VGG16 on each box. Departs from both:
- boxes are those of a file, or made from the masks and moved at random, where theirs are a detector's;
- the encoder is trained with the head, unless `train_encoder` is off: theirs was trained for detection and is fixed.
  Trained at their rate, 1e-3, the loss was NaN within 10 steps (from random weights, on CamVid), so that it is 1e-5;
- a batch is of images, in which all boxes of an image count as one; theirs is of 20 boxes;
- conv5_3 is pooled in a box to 7x7 as Fast R-CNN does, whatever the encoder.

**What its scores say.** Boxes made from masks are made from the true masks in validation and test, too. The network is
told where an object of which class is, and answers which pixels are its figure. So its mIoU is not comparable with that
of an architecture that sees the image alone.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.base import Batch, SegmentationModule
from lightning_modules.components.blocks import at_least_one, he_, resize, small_, wide
from lightning_modules.components.boxes import (
    Flat,
    bilinear_taps,
    boxes_of_mask,
    crop,
    flat,
    generator_of,
    jittered,
    labels_in,
    padded,
    paste,
    roi_pool,
)
from lightning_modules.components.choices import one_of
from lightning_modules.components.encoders import build_encoder
from lightning_modules.components.encoders.vgg import load_fully_connected_
from lightning_modules.components.pyramid import pool_to_bins
from lightning_modules.components.schedules import caffe_groups
from lightning_modules.components.scores.metrics import Scores
from lightning_modules.components.whole_step import WholeStep
from lightning_modules.recipe import Recipe

DEPTH = 4  # maps after the one at stride 1: up to conv5_3 of VGG16, at stride 16
BINS = 7  # of a box, which fc6 sees
PUBLISHED_LR, TRAINED_LR = 1e-3, 1e-5  # of a fixed encoder, and of one that is trained
SUMMED, AVERAGED = "ce_sum", "ce"  # over the pixels of a box


class HypercolumnBoxes(nn.Module):
    """pool3 (N, 256, h, w), pool4 (N, 512, h', w'), fc7 (R, 4096), R boxes and their categories -> (R, 50, 50).

    The log odds that a pixel of a box belongs to its object: the logits of `F.binary_cross_entropy_with_logits`.
    `boxes` (R, 5) hold the number of the image, then left, top, right and bottom as shares of its sides; `categories`
    (R,) are below `num_classes`. The maps are of whole images, fc7 is of the boxes: VGG16's on conv5_3, pooled to 7x7
    in each box.

    Each category has grid x grid classifiers, one for each part of the box; between their centres a pixel's probability
    is the bilinear mean of theirs. `scales` multiply pool3 and pool4 first: 0.0027 and 0.063 in the authors' network,
    for their VGG16 on images in 0..255, and nothing here, where images are normalised.
    """

    blend_weights: Tensor

    def __init__(
        self,
        num_classes: int = 20,
        channels: tuple[int, int, int] = (256, 512, 4096),
        *,
        scales: tuple[float, float] = (1.0, 1.0),
        grid: int = 5,
        size: int = 50,
    ) -> None:
        super().__init__()
        at_least_one(num_classes=num_classes, grid=grid, size=size)
        self.scales, self.cells, self.size = scales, grid**2, size
        self.pool3 = nn.Conv2d(channels[0], num_classes * self.cells, kernel_size=3, padding=1)
        self.pool4 = nn.Conv2d(channels[1], num_classes * self.cells, kernel_size=1)
        self.fc7 = nn.Linear(channels[2], num_classes * self.cells)
        small_(self)
        taps = bilinear_taps(torch.tensor([[0.0, 1.0]]), size, grid)[0]  # of each pixel of one side, on the grid
        blend = torch.einsum("yi,xj->ijyx", taps, taps).flatten(0, 1)  # (cells, size, size)
        self.register_buffer("blend_weights", blend, persistent=False)

    def forward(self, pool3: Tensor, pool4: Tensor, fc7: Tensor, boxes: Tensor, categories: Tensor) -> Tensor:
        scores = self.fc7(fc7).unflatten(1, (-1, self.cells))[torch.arange(len(boxes), device=fc7.device), categories]
        scores = scores[..., None, None]
        for conv, maps, scale in ((self.pool3, pool3, self.scales[0]), (self.pool4, pool4, self.scales[1])):
            classified = conv(scale * maps).unflatten(1, (-1, self.cells))  # (N, num_classes, cells, h, w)
            scores = scores + crop(classified[boxes[:, 0].long(), categories], boxes[:, 1:], self.size)
        return self.blend(scores)

    def whole(self, pool3: Tensor, pool4: Tensor, fc7: Tensor) -> Tensor:
        """The same of a box for each category, all of them the whole image: fc7 (N, 4096) -> (N, num_classes, 50, 50).

        In operations that a trace, an exporter and the analysis of receptive fields follow.
        """
        scores = self.fc7(fc7)[..., None, None]
        for conv, maps, scale in ((self.pool3, pool3, self.scales[0]), (self.pool4, pool4, self.scales[1])):
            scores = scores + resize(conv(scale * maps), (self.size, self.size))
        cells = scores.reshape(-1, self.cells, self.size, self.size)
        return self.blend(cells).reshape(scores.shape[0], -1, self.size, self.size)

    def blend(self, scores: Tensor) -> Tensor:
        """Log odds of each cell's classifier (R, cells, size, size) -> those of their mean probability (R, size,
        size)."""
        share = self.blend_weights.log()
        figure = (share + F.logsigmoid(scores)).logsumexp(1)
        ground = (share + F.logsigmoid(-scores)).logsumexp(1)
        return figure - ground


class HypercolumnBoxNet(nn.Module):
    """(N, in_channels, H, W) and R boxes with their categories -> log odds (R, size, size) of the figure in each box.

    Without boxes the whole image is the one box of every category: (N, num_classes, H, W).

    Args:
        encoder: "vgg16" as in the paper: its pool3 and pool4, and fc6 and fc7 on its conv5_3. Of another one, its maps
            at strides 8 and 16, and fc6 and fc7 on the second
        weights: weights of the encoder: null, "imagenet" (downloaded), "package" (of pip), a file or a folder with one;
            of a whole VGG16, fc6 and fc7 get theirs too
        encoder_width: factor of the channels of a native encoder
        fc_width: channels of fc6 and fc7
        train_encoder: whether encoder, fc6 and fc7 are trained with the classifiers; the authors' were trained for
            detection, and are held fixed
        grid: classifiers of a category along each side of a box
        size: pixels of a side of a box, as it is predicted
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        encoder: str = "vgg16",
        weights: str | None = None,
        encoder_width: float = 1.0,
        fc_width: int = 4096,
        train_encoder: bool = True,
        grid: int = 5,
        size: int = 50,
    ) -> None:
        super().__init__()
        at_least_one(fc_width=fc_width)
        self.published, self.train_encoder = encoder == "vgg16", train_encoder
        self.encoder = build_encoder(encoder, in_channels, depth=DEPTH, weights=weights, width=encoder_width)
        maps = self.encoder.out_channels
        seen = (maps[2], maps[3]) if self.published else (maps[3], maps[4])
        if not all(seen):
            some = ", ".join(str(level) for level, channels in enumerate(maps) if channels)
            raise ValueError(f"encoder must have maps at strides 8 and 16 (3 and 4), got {encoder!r}, which has {some}")
        self.fc6, self.fc7 = nn.Conv2d(maps[4], fc_width, BINS), nn.Conv2d(fc_width, fc_width, 1)
        self.dropout = nn.Dropout(0.5)
        he_(self.fc6)
        he_(self.fc7)
        load_fully_connected_(weights if self.published else None, self.encoder.pretrained, self.fc6, self.fc7)
        self.head = HypercolumnBoxes(num_classes, (*seen, fc_width), grid=grid, size=size)
        if not train_encoder:
            for part in (self.encoder, self.fc6, self.fc7):
                part.requires_grad_(False)

    def train(self, mode: bool = True) -> "HypercolumnBoxNet":
        super().train(mode)
        if not self.train_encoder:
            self.encoder.eval()  # its batch norms' statistics are fixed, too
        return self

    def maps(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """pool3, pool4 and conv5_3 of VGG16; of another encoder the maps at strides 8, 16 and 16."""
        maps = self.encoder(x)
        if not self.published:
            return maps[3], maps[4], maps[4]
        pool3, pool4 = (F.max_pool2d(maps[level], 2, ceil_mode=True) for level in (2, 3))
        return pool3, pool4, maps[4]

    def described(self, pooled: Tensor) -> Tensor:
        """fc7 (R, fc_width) of what is pooled in each box, (R, C, 7, 7)."""
        x = self.dropout(F.relu(self.fc6(pooled)))
        return self.dropout(F.relu(self.fc7(x))).flatten(1)

    def forward(self, x: Tensor, boxes: Flat | None = None) -> Tensor:
        pool3, pool4, conv5 = self.maps(x)
        if boxes is None:
            fc7 = self.described(pool_to_bins(conv5, BINS, "max"))
            return resize(self.head.whole(pool3, pool4, fc7), x.shape[-2:])
        fc7 = self.described(roi_pool(conv5, boxes, self.encoder.output_stride, BINS))
        sides = boxes.sides / torch.tensor([x.shape[-1], x.shape[-2]] * 2)
        of_images = torch.cat([boxes.image[:, None].to(sides), sides], dim=1).to(x.device)
        log_odds: Tensor = self.head(pool3, pool4, fc7, of_images, boxes.category.to(x.device))
        return log_odds


@dataclass
class Given:
    """The boxes that one forward predicts in, and the log odds (R, size, size) that it found."""

    boxes: Flat
    log_odds: Tensor | None = None


class HypercolumnBoxesModule(SegmentationModule):
    """Trains `HypercolumnBoxNet` by the authors' recipe: a constant rate, twice as high for biases, a tenth for fc7's
    classifiers, and the loss of figure and ground added up over the pixels of a box.

    Boxes are those of the data set where it has a file of them, and else made from the masks: of each connected
    component of each class. Validation and test get boxes made from the true masks, so mIoU is that of figure and
    ground in given boxes, **not comparable with other architectures**. `box_iou` is the mean IoU of figures in their
    boxes, and `box_iou_whole` that of the answer that all of a box is figure. A logit is the highest log odds of the
    boxes of its class there, and -20 where there is none. Without boxes the whole image is the one box of every class.

    Args:
        lr: learning rate; null takes 1e-3, the authors', of a fixed encoder, and 1e-5 of one that is trained
        loss: binary cross-entropy as sum over the pixels of a box ("ce_sum") or as their mean ("ce"); no other
        overlap: least IoU of a box made from a mask, moved at random, with the true one; 1 moves none
        least_pixels: components of fewer pixels have no box
        most_boxes: the most boxes of an image that are made from its mask, those of the largest components
        background: a class without boxes, whose logit is 0 everywhere: as likely as not; null where every class has
            them
    """

    network: HypercolumnBoxNet
    boxless: Tensor
    recipe = Recipe(loss="ce_sum", lr=None, weight_decay=1e-3, schedule="constant")

    def __init__(
        self,
        num_classes: int,
        ignore_index: int,
        *,
        overlap: float = 0.7,
        least_pixels: int = 16,
        most_boxes: int = 20,
        background: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(num_classes, ignore_index, **settings)
        one_of("loss", self.hparams["loss"], (SUMMED, AVERAGED))
        at_least_one(least_pixels=least_pixels, most_boxes=most_boxes)
        if not 0 < overlap <= 1:
            raise ValueError(f"overlap must be more than 0 and at most 1, got {overlap}")
        if background is not None and not (0 <= background < num_classes and num_classes > 1):
            raise ValueError(
                f"background must be one of several classes, 0 to {num_classes - 1}, got {background}: leave it out "
                "where every class has boxes"
            )
        boxless = torch.tensor([category == background for category in range(num_classes)])
        self.register_buffer("boxless", boxless, persistent=False)
        self._given: Given | None = None  # in which boxes it predicts
        self._whole_step = WholeStep(SUMMED)  # images, not pixels, are what a loss is the mean of
        for split in (self.val_scores, self.test_scores):
            for name in ("box_iou", "box_iou_whole"):
                split.add_mean(name)

    @classmethod
    def published_lr(cls, hparams: Mapping[str, Any]) -> float:
        return TRAINED_LR if hparams["train_encoder"] else PUBLISHED_LR

    @classmethod
    def given(cls, hparams: Mapping[str, Any]) -> dict[str, Any]:
        decide = ("overlap", "least_pixels", "most_boxes", "background")
        return {"boxes": "of the objects", **{name: hparams[name] for name in decide}}

    def parameter_groups(self) -> list[dict[str, Any]]:
        h = self.hparams
        return caffe_groups(self.network, h["lr"], h["weight_decay"], factors={"head.fc7": 0.1})

    # ---- boxes

    def boxes_of(self, masks: Tensor, boxes: Tensor | None = None) -> Flat:
        """The boxes of a batch: those given (N, B, 5), and else made from the masks (N, H, W).

        Those that are made move by the global generator in training, and else by one that each mask decides. Raises
        ValueError for a given box of the background, or of no class.
        """
        if boxes is not None:
            return self._given_boxes(boxes)
        h, made = self.hparams, []
        ignored = [self.ignore_index] + ([] if h["background"] is None else [h["background"]])
        for mask in masks.cpu():
            found = boxes_of_mask(mask, ignored, least_pixels=h["least_pixels"], most=h["most_boxes"])
            generator = None if self.training else generator_of(mask)
            made.append(jittered(found, h["overlap"], (mask.shape[0], mask.shape[1]), generator))
        return flat(padded(made))

    def _given_boxes(self, boxes: Tensor) -> Flat:
        given = flat(boxes)
        self.check_boxes({*given.category.tolist()})
        return given

    def check_boxes(self, categories: Collection[int]) -> None:
        for category in sorted(categories):
            if category == self.hparams["background"] or category >= self.num_classes:
                kind = "none" if category >= self.num_classes else "the background, which has no boxes"
                raise ValueError(
                    f"a box is of class {category}, and of the {self.num_classes} classes that is {kind}: leave the "
                    "box out, or set --model.background to another class"
                )

    @contextmanager
    def _within(self, boxes: Flat) -> Iterator[Given]:
        """What is predicted in this context is predicted in these boxes, and what of each is kept."""
        self._given = given = Given(boxes)
        try:
            yield given
        finally:
            self._given = None

    def forward(self, images: Tensor, boxes: Tensor | None = None) -> Tensor:
        """Images (N, in_channels, H, W) in [0, 1], boxes (N, B, 5) in pixels -> logits (N, num_classes, H, W)."""
        if boxes is None:
            return super().forward(images)
        with self._within(self._given_boxes(boxes)):
            return super().forward(images)

    def predict(self, images: Tensor) -> Tensor:
        """Logits in the boxes of `_within`; outside of it the whole image is the one box of every class."""
        given = self._given
        if given is None:
            logits = self.network(self.normalise(images))
        else:
            given.log_odds = self.log_odds_in(images, given.boxes)
            logits = paste(given.log_odds, given.boxes, (len(images), self.num_classes, *images.shape[2:]))
        return logits.masked_fill(self.boxless[:, None, None], 0)

    def log_odds_in(self, images: Tensor, boxes: Flat) -> Tensor:
        """Log odds (R, size, size) of the figure in each box."""
        if not len(boxes.image):
            return images.new_empty(0, self.network.head.size, self.network.head.size)
        log_odds: Tensor = self.network(self.normalise(images), boxes)
        return log_odds

    # ---- training and scores

    def loss_of(self, batch: Batch) -> Tensor:
        return self.loss(batch["image"], batch["mask"], batch.get("boxes"))

    def loss(self, images: Tensor, masks: Tensor, boxes: Tensor | None = None) -> Tensor:
        """The mean over the images of the mean over the boxes of each; 0 for an image without a box."""
        found = self.boxes_of(masks, boxes)
        if not len(found.image):  # every parameter still gets its gradient, which is 0: several devices wait for it
            found, masks = _whole(masks), torch.full_like(masks, self.ignore_index)
        return self.losses_in(self.log_odds_in(images, found), masks, found).mean()

    def losses_in(self, log_odds: Tensor, masks: Tensor, boxes: Flat) -> Tensor:
        """The loss (N,) of each image, of the log odds (R, size, size) in its boxes."""
        figure, labelled = self._truth(masks, boxes)
        entropy = F.binary_cross_entropy_with_logits(wide(log_odds), figure.to(wide(log_odds)), reduction="none")
        of_boxes = (entropy * labelled).sum((1, 2))
        if self.hparams["loss"] == AVERAGED:
            of_boxes = of_boxes / labelled.sum((1, 2)).clamp(min=1)
        if (weights := self.class_weights) is not None:
            of_boxes = of_boxes * weights[boxes.category.to(masks.device)]
        shares = F.one_hot(boxes.image, len(masks)).to(of_boxes)  # (R, N)
        return of_boxes @ (shares / shares.sum(0).clamp(min=1))

    def _truth(self, masks: Tensor, boxes: Flat) -> tuple[Tensor, Tensor]:
        """Where in each box the pixels of its class are, and where there are labels: bool (R, size, size)."""
        labels = labels_in(masks, boxes, self.network.head.size)
        labelled = labels != self.ignore_index
        return labelled & (labels == boxes.category.to(masks.device)[:, None, None]), labelled

    def image_losses(self, logits: Tensor, masks: Tensor) -> Tensor:
        given = self._given
        if given is None or given.log_odds is None:
            raise RuntimeError("image_losses is of the boxes that a batch was just predicted in")
        return self.losses_in(given.log_odds, masks, given.boxes)

    def box_ious(self, log_odds: Tensor, masks: Tensor, boxes: Flat) -> dict[str, Tensor]:
        """IoU (R,) of the figure in each box, and of all of the box: NaN where neither it nor the truth has a pixel."""
        figure, labelled = self._truth(masks, boxes)
        answers = {"box_iou": (log_odds > 0) & labelled, "box_iou_whole": labelled}
        return {name: (of & figure).sum((1, 2)) / (of | figure).sum((1, 2)) for name, of in answers.items()}

    def _score(self, batch: Batch, split: str, split_scores: Scores) -> dict[str, Tensor]:
        masks = batch["mask"]
        with self._within(self.boxes_of(masks, batch.get("boxes"))) as given:
            scored = super()._score(batch, split, split_scores)
        assert given.log_odds is not None
        for name, of_boxes in self.box_ious(given.log_odds, masks, given.boxes).items():
            split_scores.means[name].update(of_boxes)
        return scored


def _whole(masks: Tensor) -> Flat:
    """The first image of a batch (N, H, W) as a box of the first class."""
    sides = torch.tensor([[0, 0, masks.shape[2], masks.shape[1]]])
    return Flat(torch.zeros(1, dtype=torch.long), sides, torch.zeros(1, dtype=torch.long))
