"""PointRend, Kirillov, Wu, He, Girshick 2020, https://arxiv.org/abs/1912.08193

Its form for semantic segmentation, Sec. 5: where a coarse segmentation is least certain, a point head predicts anew,
from fine features and the coarse logits at that point. Here it stands on any network of this project.

Departs from the paper:
- a network without logits at low resolution, such as U-Net, has its own averaged over blocks of 4x4 pixels, so that
  there is something to render (an adaptation);
- the image is mirrored up to a multiple of 32 pixels, where the grids of all strides fit, and cut to size again;
- maps are sampled as resizing does, repeating the border, where the authors' code fades to zero;
- the recipe is the default of `Recipe`.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.base import SegmentationModule
from lightning_modules.catalogue import NETWORKS, NetworkName, corrections_below
from lightning_modules.components.blocks import at_least_one, pad_to_multiple, resize, wide
from lightning_modules.components.choices import one_of
from lightning_modules.components.losses import cross_entropy
from lightning_modules.components.points import Grid, caught, point_labels, point_sample, uncertainty

MULTIPLE = 32  # pixels, the largest stride of these networks
COARSE = 4  # pixels, of a network with finer logits: they are rendered in two steps, as in the paper


class PointHead(nn.Module):
    """Features (N, channels, P) and coarse logits (N, num_classes, P) -> logits (N, num_classes, P).

    Three layers and a classifier that all points share; each gets the coarse logits again (Sec. 5). They start as in
    the authors' code (`point_head.py`): He et al. by the number of outputs, and a classifier of nearly zero.
    """

    def __init__(self, channels: int, num_classes: int, *, width: int = 256) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv1d(c + num_classes, width, kernel_size=1) for c in (channels, width, width))
        self.classifier = nn.Conv1d(width + num_classes, num_classes, kernel_size=1)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.startswith("layers"):
                nn.init.kaiming_normal_(parameter, mode="fan_out", nonlinearity="relu")
            else:
                nn.init.normal_(parameter, std=0.001)

    def forward(self, features: Tensor, coarse: Tensor) -> Tensor:
        x = features
        for layer in self.layers:
            x = F.relu(layer(torch.cat([x, coarse], dim=1)))  # channels add up
        logits: Tensor = self.classifier(torch.cat([x, coarse], dim=1))
        return logits


class PointRend(nn.Module):
    """(N, in_channels, H, W) -> (N, num_classes, H, W).

    In training, points are drawn where the coarse logits are least certain (Sec. 3.1). In inference the coarse logits
    are doubled in size until they have the image's, and each time the least certain ones are predicted anew.

    Args:
        network: the architecture below
        network_options: arguments of that network
        features: maps that the point head sees, side by side: "encoder[2]" is item 2 of what the module `encoder`
            returns, "encoder.2" what the module of that name returns; null: the encoder's map at stride 4
        head_width: channels of the head's layers
        points: points of each image in training
        oversample: uniform candidates for each of the points, of which the least certain are taken
        importance: share of the points that are taken so; the rest is uniform
        subdivision_points: points that are predicted anew at each doubling in inference
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        network: NetworkName = "deeplabv3",
        network_options: dict[str, Any] | None = None,
        features: Sequence[str] | None = None,
        head_width: int = 256,
        points: int = 2048,
        oversample: float = 3.0,
        importance: float = 0.75,
        subdivision_points: int = 8192,
    ) -> None:
        super().__init__()
        one_of("network", network, NETWORKS)
        if num_classes < 2:
            raise ValueError(
                f"num_classes must be at least 2 for PointRend, which compares the best two classes, got "
                f"{num_classes}: count the background as one"
            )
        at_least_one(points=points, subdivision_points=subdivision_points, head_width=head_width)
        if oversample < 1 or not 0 <= importance <= 1:
            raise ValueError(
                f"oversample must be at least 1 and importance in [0, 1], got {oversample} and {importance}"
            )
        base = NETWORKS[network]
        options = {**base.options, **(network_options or {})}
        for name, value in base.options.items():
            if options[name] != value:
                raise ValueError(
                    f"network_options must leave {name} of {network!r} at {value}, or PointRend's loss misses "
                    f"parameters of it, got {name}={options[name]}: leave it out"
                )
        try:
            self.network = base.network(num_classes, in_channels, **options)
        except TypeError as error:  # an argument that it does not have
            raise ValueError(f"network_options do not fit {base.network.__name__}: {error}") from error
        if 2 ** getattr(self.network, "depth", 0) > MULTIPLE:
            raise ValueError(f"PointRend takes networks of stride up to {MULTIPLE}: use a depth of at most 5")
        self.features = [base.features] if features is None else _checked(features, self.network)
        self.points, self.oversample, self.importance = points, oversample, importance
        self.subdivision_points = subdivision_points
        self.head = PointHead(self._count_channels(in_channels), num_classes, width=head_width)

    def _count_channels(self, in_channels: int) -> int:
        """The channels of `features` together, from a run of the network on shapes alone."""
        tensors = {**dict(self.network.named_parameters()), **dict(self.network.named_buffers())}
        shapes = {name: tensor.to("meta") for name, tensor in tensors.items()}
        self.network.eval()  # in training, batch norm refuses the one value of a pooled image
        try:
            with caught(self.network, self.features) as maps, torch.no_grad():
                torch.func.functional_call(
                    self.network, shapes, torch.empty(1, in_channels, 2 * MULTIPLE, 2 * MULTIPLE, device="meta")
                )
        except (AttributeError, KeyError, IndexError) as error:
            children = ", ".join(name for name, _ in self.network.named_children())
            raise ValueError(
                f"features must name modules that {type(self.network).__name__} runs, within {children}, or items of "
                "what "
                f'they return, such as "encoder[2]"; got {self.features}: {error}'
            ) from error
        self.network.train()
        for feature, fine in zip(self.features, maps, strict=True):
            if fine.ndim != 4 or not fine.shape[1]:
                raise ValueError(
                    f"features must be maps (N, C, H, W) with channels, but {feature!r} has the shape "
                    f"{tuple(fine.shape)}: name another, such as 'encoder[2]'"
                )
        return sum(fine.shape[1] for fine in maps)

    def grids(self, x: Tensor) -> list[Grid]:
        """(N, in_channels, H, W), sides that divide by 32 -> the coarse logits, then the maps `features`."""
        with caught(self.network, self.features) as maps:
            of_network: Any = getattr(self.network, "logits", self.network)
            coarse: Tensor = wide(of_network(x))
        size = int(x.shape[-1])  # torch.jit.trace has tensors in shapes
        if finer := COARSE * int(coarse.shape[-1]) // size:
            coarse = F.avg_pool2d(coarse, finer)
        margin = _margin(self.network)
        strides = [2 ** round(math.log2((size + 2 * margin) / int(fine.shape[-1]))) for fine in maps]
        fine_grids = [Grid(fine, stride, margin) for fine, stride in zip(maps, strides, strict=True)]
        return [Grid(coarse, size / int(coarse.shape[-1])), *fine_grids]

    def at_points(self, grids: Sequence[Grid], points: Tensor) -> Tensor:
        """The head's logits (N, num_classes, P) at points (N, P, 2) in pixels, float32 or float64 as they."""
        coarse, *fine = [point_sample(grid, points) for grid in grids]
        of_head = self.head.classifier.weight.dtype  # half precision where the whole module is in it
        logits: Tensor = self.head(torch.cat(fine, dim=1).to(of_head), coarse.to(of_head))  # channels add up
        return logits.to(coarse.dtype)

    @torch.no_grad()
    def training_points(self, coarse: Grid, height: int, width: int) -> Tensor:
        """Points (N, points, 2) in the height x width pixels of the image.

        Candidates get their logits first and their uncertainty from them: between two cells that are each certain of
        another class it is high.
        """
        size = coarse.maps.new_tensor([width, height])
        unsure, n = round(self.importance * self.points), len(coarse.maps)
        like: dict[str, Any] = {"dtype": size.dtype, "device": size.device}
        candidates = size * torch.rand(n, round(self.oversample * self.points), 2, **like)
        index = uncertainty(point_sample(coarse, candidates)).topk(unsure, dim=1).indices
        uniform = size * torch.rand(n, self.points - unsure, 2, **like)
        return torch.cat([candidates.gather(1, index[..., None].expand(-1, -1, 2)), uniform], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = (int(side) for side in x.shape[-2:])
        x = pad_to_multiple(x, MULTIPLE)
        grids = self.grids(x)
        logits, stride = grids[0].maps, grids[0].stride
        while stride > 1:
            stride = max(stride / 2, 1)
            logits = resize(logits, (round(int(x.shape[-2]) / stride), round(int(x.shape[-1]) / stride)))
            columns = logits.shape[-1]
            unsure = uncertainty(logits.detach())
            unsure[:, math.ceil(height / stride) :] = -torch.inf  # the mirrored border, which is cut off
            unsure[..., math.ceil(width / stride) :] = -torch.inf
            unsure = unsure.flatten(1)
            index = unsure.topk(min(self.subdivision_points, unsure.shape[1]), dim=1).indices
            cells = torch.stack([index % columns, index // columns], dim=-1)
            points = stride * (cells.to(logits.dtype) + 0.5)
            new = self.at_points(grids, points)
            logits = logits.flatten(2).scatter(2, index[:, None].expand_as(new), new).view_as(logits)
        return logits[..., :height, :width]


def _margin(network: nn.Module) -> int:
    """The pixels that a network pads the image by, as FCN does."""
    margin: Any = getattr(network, "margin", 0)
    return int(margin)


def _checked(features: Sequence[str], network: nn.Module) -> list[str]:
    """`features`, which must be a list of names such as "encoder[2]" and "encoder.2"."""
    names = [] if isinstance(features, str) else list(features)
    if not names or not all(re.fullmatch(r"\w+(\.\w+)*(\[-?\d+\])?", name) for name in names):
        raise ValueError(
            "features must be a list of modules and of items of what they return, such as ['encoder.2', 'encoder[2]'], "
            f"got {features!r}"
        )
    if _margin(network) and not all(name.startswith("encoder[") for name in names):
        raise ValueError(
            "features of an FCN on 'vgg16' must be items of its encoder, such as 'encoder[2]', because maps behind it "
            f"are cropped and shifted, got {names}: use another encoder for others"
        )
    return names


class PointRendModule(SegmentationModule):
    """Trains `PointRend`: the loss of the coarse logits at full size plus the cross-entropy at the points (Sec. 5)."""

    network: PointRend
    entrances = ("grids", "at_points")

    @classmethod
    def corrections(cls, hparams: Mapping[str, Any]) -> dict[str, str]:
        return corrections_below(hparams)

    def loss(self, images: Tensor, masks: Tensor) -> Tensor:
        height, width = masks.shape[-2:]
        x = pad_to_multiple(self.normalise(images), MULTIPLE)
        coarse, *fine = self.network.grids(x)
        points = self.network.training_points(coarse, height, width)
        logits, labels = self.network.at_points([coarse, *fine], points), point_labels(masks, points)
        of_points = cross_entropy(logits, labels, self.ignore_index, self.class_weights)
        whole = resize(coarse.maps, x.shape[-2:])[..., :height, :width]
        return self.loss_function(whole, masks, self.ignore_index, self.class_weights) + of_points
